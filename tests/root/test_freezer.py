"""Freezing mounted filesystems together: what writes is held, and always goes on after."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeBroken, FreezeBusy, FreezeError
from freezeframe.shadow.filesystems import OnDisks, find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.system.freeze import Frozen, freeze, sync_filesystem, thaw
from freezeframe.system.interrupt import orderly_stop
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.frozen import (
    MountedDisk,
    is_frozen,
    mounted_at,
    mounted_disk,
    record_writer,
)

pytestmark = pytest.mark.root

KINDS = ["ext4", "xfs", "btrfs"]
#: Long enough for a writer that is not held to write many records.
MOMENT = 0.3


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, request.param) as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, "ext4", size=64 << 20) as disk:
        yield disk


def on(*disks: MountedDisk) -> OnDisks:
    return find_filesystems([disk.node for disk in disks])


@contextlib.contextmanager
def frozen_by_another(point: Path) -> Iterator[None]:
    """Freeze as another program would."""
    run(("fsfreeze", "--freeze", str(point)))
    try:
        yield
    finally:
        run(("fsfreeze", "--unfreeze", str(point)), ok=(0, 1))


def test_the_calls(disk: MountedDisk) -> None:
    descriptor = os.open(disk.point, os.O_RDONLY)
    try:
        assert not thaw(descriptor)
        assert freeze(descriptor) is Frozen.DONE
        assert freeze(descriptor) is Frozen.BUSY
        assert thaw(descriptor)
        assert not thaw(descriptor)
        sync_filesystem(descriptor)
    finally:
        os.close(descriptor)


def test_what_cannot_be_frozen() -> None:
    descriptor = os.open("/dev/shm", os.O_RDONLY)
    try:
        assert freeze(descriptor) is Frozen.UNSUPPORTED
    finally:
        os.close(descriptor)


def test_writers_are_held_and_go_on(disk: MountedDisk) -> None:
    with record_writer(disk.point / "records") as writer, Freezer(on(disk).filesystems) as freezer:
        assert [each.point for each in freezer.flush()] == [str(disk.point)]
        for _ in range(3):
            writer.wait_for_more()
            with freezer.window() as window:
                held = writer.written()
                time.sleep(MOMENT)
                assert writer.written() == held
                assert is_frozen(disk.point)
            assert not is_frozen(disk.point)
            assert window.memory_locked
            assert not window.broken
            (times,) = window.times
            assert times.held >= MOMENT
            assert window.until - window.since >= MOMENT
            assert window.pause == pytest.approx(times.blocked)
        writer.wait_for_more()


def test_what_was_written_before_is_on_the_disk_within(disk: MountedDisk) -> None:
    with Freezer(on(disk).filesystems) as freezer:
        (disk.point / "file").write_bytes(b"needle in the hay" * 100)
        with freezer.window(), Path(disk.device).open("rb", buffering=0) as device:
            # Past the cache of the filesystem; that of the device has nothing yet.
            found = any(
                b"needle in the hay" in block for block in iter(lambda: device.read(1 << 20), b"")
            )
        assert found


def test_two_disks_together(tmp_path: Path) -> None:
    with (
        mounted_disk(tmp_path, "ext4", "first") as first,
        mounted_disk(tmp_path, "xfs", "second") as second,
        record_writer(first.point / "records") as one,
        record_writer(second.point / "records") as two,
        Freezer(on(first, second).filesystems) as freezer,
    ):
        with freezer.window() as window:
            before = one.written(), two.written()
            time.sleep(MOMENT)
            assert (one.written(), two.written()) == before
        assert len(window.times) == 2
        # Together: each is held while the other is.
        ends = [times.asked + times.freeze + times.held for times in window.times]
        assert max(times.asked + times.freeze for times in window.times) == window.since
        assert min(ends) == pytest.approx(window.until)
        assert window.until - window.since >= MOMENT
        one.wait_for_more()
        two.wait_for_more()


def test_a_filesystem_on_a_file_of_another(ext4: MountedDisk) -> None:
    with mounted_disk(ext4.point, "ext4", "inner", size=24 << 20) as inner:
        found = on(ext4)
        assert [each.point for each in found.filesystems] == [str(inner.point), str(ext4.point)]
        with (
            record_writer(inner.point / "records") as writer,
            Freezer(found.filesystems) as freezer,
        ):
            freezer.flush()
            for _ in range(5):
                with freezer.window() as window:
                    held = writer.written()
                    time.sleep(0.05)
                    assert writer.written() == held
                assert not window.broken
                writer.wait_for_more()


def test_what_cannot_be_frozen_on_a_file_of_what_can(ext4: MountedDisk) -> None:
    with mounted_disk(ext4.point, "ext4", "inner", size=24 << 20) as inner:
        upper, lower = on(ext4).filesystems
        with (
            record_writer(inner.point / "records") as writer,
            Freezer([replace(upper, freezes=False), lower]) as freezer,
        ):
            with freezer.window() as window:
                time.sleep(0.05)
                # Its disk is a frozen file: to sync it would be to wait for the thaw.
                freezer.sync_unfreezable()
                assert [each.point for each in window.unfreezable] == [str(inner.point)]
            writer.wait_for_more()


def test_the_wrong_order_is_ended_by_the_watchdog(ext4: MountedDisk) -> None:
    """Frozen first, the lower filesystem keeps the freeze of the upper from ever returning."""
    with mounted_disk(ext4.point, "ext4", "inner", size=24 << 20) as inner:
        wrong = tuple(reversed(on(ext4).filesystems))
        with record_writer(inner.point / "records") as writer:
            with Freezer(wrong, limit=1.0) as freezer:
                with pytest.raises(FreezeBroken) as caught, freezer.window():
                    raise AssertionError("it was never frozen")
                assert caught.value.hint
                assert not is_frozen(inner.point)
                assert not is_frozen(ext4.point)
            writer.wait_for_more()


def test_somebody_elses_freeze_is_theirs(tmp_path: Path) -> None:
    with (
        mounted_disk(tmp_path, "ext4", "first", size=64 << 20) as first,
        mounted_disk(tmp_path, "ext4", "second", size=64 << 20) as second,
        Freezer(on(first, second).filesystems, patience=0.2) as freezer,
    ):
        last = freezer.filesystems[-1].point
        with frozen_by_another(Path(last)):
            with pytest.raises(FreezeBusy, match=last), freezer.window():
                raise AssertionError("it was never frozen by us")
            # Theirs still is, ours is not.
            assert [is_frozen(disk.point) for disk in (first, second)].count(True) == 1
            assert is_frozen(Path(last))
            with pytest.raises(FreezeBusy):
                freezer.flush()
        with freezer.window() as window:
            pass
        assert len(window.times) == 2


def test_somebody_elses_freeze_is_waited_for(ext4: MountedDisk) -> None:
    with Freezer(on(ext4).filesystems, patience=60) as freezer:
        code = f"import time, os\ntime.sleep(0.5)\nos.system('fsfreeze --unfreeze {ext4.point}')"
        with frozen_by_another(ext4.point):
            child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
            with freezer.window() as window:
                assert is_frozen(ext4.point)
            os.waitpid(child, 0)
        assert not window.broken


def test_thawed_by_another_it_is_no_point_in_time(ext4: MountedDisk) -> None:
    with Freezer(on(ext4).filesystems) as freezer:
        with pytest.raises(FreezeBroken, match="by another program"), freezer.window() as window:
            run(("fsfreeze", "--unfreeze", str(ext4.point)))
        assert window.broken
        with freezer.window() as window:
            pass
        assert not window.broken


def test_an_error_within_thaws(ext4: MountedDisk) -> None:
    with Freezer(on(ext4).filesystems) as freezer:
        with pytest.raises(ZeroDivisionError), freezer.window():
            _ = 1 // 0
        assert not is_frozen(ext4.point)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_thaw(ext4: MountedDisk, number: signal.Signals) -> None:
    done = []
    with orderly_stop(), Freezer(on(ext4).filesystems) as freezer:
        try:
            with freezer.window():
                os.kill(os.getpid(), number)
                done.append("went on")
        except KeyboardInterrupt:
            done.append("stopped")
        assert not is_frozen(ext4.point)
    assert done == ["went on", "stopped"]


def test_the_program_is_quiet_within(ext4: MountedDisk, caplog: pytest.LogCaptureFixture) -> None:
    file = logging.FileHandler(ext4.point / "log")
    logger = logging.getLogger("freezeframe.tests.frozen")
    logger.addHandler(file)
    collecting, writing = gc.isenabled(), sys.dont_write_bytecode
    try:
        with Freezer(on(ext4).filesystems) as freezer:
            with freezer.window():
                # Written at once, it would wait for the thaw, and the thaw for it.
                logger.warning("said within")
                assert not gc.isenabled()
                assert sys.dont_write_bytecode
            assert "said within" in (ext4.point / "log").read_text()
            assert "said within" in caplog.text
            assert (gc.isenabled(), sys.dont_write_bytecode) == (collecting, writing)
    finally:
        logger.removeHandler(file)
        file.close()


def test_what_is_mounted_twice_is_frozen_once(disk: MountedDisk, tmp_path: Path) -> None:
    (disk.point / "folder").mkdir()
    with mounted_at(str(disk.point / "folder"), tmp_path / "bound", "--bind"):
        found = on(disk).filesystems
        assert [each.point for each in found] == [str(disk.point)]
        with Freezer(found) as freezer, freezer.window() as window:
            assert is_frozen(tmp_path / "bound")
        assert len(window.times) == 1


def test_read_only_is_left_alone(ext4: MountedDisk) -> None:
    run(("mount", "-o", "remount,ro", str(ext4.point)))
    (found,) = on(ext4).filesystems
    assert found.read_only
    with Freezer([found]) as freezer, freezer.window() as window:
        assert not is_frozen(ext4.point)
    assert window.times == ()


def test_no_filesystem_at_all() -> None:
    with Freezer([]) as freezer, freezer.window() as window:
        pass
    assert window.pause == 0
    assert freezer.flush() == ()


def test_what_was_unmounted_cannot_be_reached(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "ext4", size=64 << 20) as disk:
        found = on(disk)
    with pytest.raises(FreezeError, match="cannot be reached"), Freezer(found.filesystems):
        pass


def test_a_covered_mount_is_reached_another_way_or_refused(
    ext4: MountedDisk, tmp_path: Path
) -> None:
    (ext4.point / "folder").mkdir()
    with mounted_at(str(ext4.point / "folder"), tmp_path / "bound", "--bind"):
        run(("mount", "-t", "tmpfs", "cover", str(ext4.point)))
        try:
            found = on(ext4)
            with Freezer(found.filesystems) as freezer, freezer.window():
                assert is_frozen(tmp_path / "bound")
            alone = [replace(each, ways=each.ways[:1]) for each in found.filesystems]
            with pytest.raises(FreezeError, match="cannot be reached"), Freezer(alone):
                pass
        finally:
            run(("umount", str(ext4.point)))


def test_a_disk_with_partitions(tmp_path: Path) -> None:
    image = tmp_path / "table.raw"
    image.touch()
    os.truncate(image, 128 << 20)
    run(("sfdisk", "-q", str(image)), stdin=b"label: gpt\nsize=40MiB\nsize=40MiB\n")
    with attached(image, partitions=True) as device:
        for number in (1, 2):
            run(("mkfs.ext4", "-q", f"{device}p{number}"))
        with (
            mounted_at(f"{device}p1", tmp_path / "one"),
            mounted_at(f"{device}p2", tmp_path / "two"),
        ):
            found = on(MountedDisk(device, tmp_path))
            assert {each.devices for each in found.filesystems} == {
                (f"{device}p1",),
                (f"{device}p2",),
            }
            with Freezer(found.filesystems) as freezer, freezer.window() as window:
                assert is_frozen(tmp_path / "one")
                assert is_frozen(tmp_path / "two")
            assert len(window.times) == 2
