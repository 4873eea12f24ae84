"""Whatever becomes of the program, what it froze is thawed; what others froze is not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeBroken, FreezeError
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.watchdog import Watchdog
from freezeframe.system.run import run
from freezeframe.testing.frozen import (
    MountedDisk,
    eventually,
    is_frozen,
    mounted_disk,
    record_writer,
)

pytestmark = pytest.mark.root

#: Never reached: where this is the limit, it was the end of the program that thawed.
LONG = 3600.0

_PROGRAM = """
import sys, time
from freezeframe.core.errors import FreezeBroken
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.system import sysfs

disks = [sysfs.node_of(path) for path in sys.argv[2:]]
with Freezer(find_filesystems(disks).filesystems, limit=float(sys.argv[1])) as freezer:
    print(freezer._watchdog.pid, flush=True)
    try:
        with freezer.window():
            print("frozen", flush=True)
            sys.stdin.readline()
        print("lasted", flush=True)
    except FreezeBroken:
        print("broken", flush=True)
"""


@contextlib.contextmanager
def freezing_program(limit: float, *disks: MountedDisk) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that is within its window; `watchdog` is its watchdog's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(limit), *(disk.device for disk in disks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.watchdog = int(process.stdout.readline())  # type: ignore[attr-defined]
        assert process.stdout.readline() == b"frozen\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def gone(pid: int) -> bool:
    # Its parent is gone before it, and in a container nobody may collect it.
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, request.param) as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, "ext4", size=64 << 20) as disk:
        yield disk


def test_killed_within_the_window(disk: MountedDisk) -> None:
    with record_writer(disk.point / "records") as writer:
        with freezing_program(LONG, disk) as program:
            assert is_frozen(disk.point)
            program.kill()
            eventually(lambda: not is_frozen(disk.point))
            writer.wait_for_more()
        eventually(lambda: gone(program.watchdog))  # type: ignore[attr-defined]


def test_killed_with_several_frozen(ext4: MountedDisk, tmp_path: Path) -> None:
    with (
        mounted_disk(tmp_path, "xfs", "second") as second,
        mounted_disk(ext4.point, "ext4", "inner", size=24 << 20) as inner,
        freezing_program(LONG, ext4, second) as program,
    ):
        points = (inner.point, ext4.point, second.point)
        assert all(is_frozen(point) for point in points)
        program.kill()
        for point in points:
            eventually(lambda point=point: not is_frozen(point))  # type: ignore[misc]


def test_a_whole_session_is_ended(ext4: MountedDisk) -> None:
    """Ctrl-C, a closed terminal, a service manager: none of it ends the watchdog."""
    with freezing_program(LONG, ext4) as program:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(program.watchdog, number)  # type: ignore[attr-defined]
        assert is_frozen(ext4.point)
        program.kill()
        eventually(lambda: not is_frozen(ext4.point))


def test_a_program_that_is_stopped(disk: MountedDisk) -> None:
    with freezing_program(3.0, disk) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.send_signal(signal.SIGSTOP)
        eventually(lambda: not is_frozen(disk.point))
        program.send_signal(signal.SIGCONT)
        program.stdin.write(b"go on\n")
        assert program.stdout.readline() == b"broken\n"


def test_a_program_that_is_in_time(ext4: MountedDisk) -> None:
    with freezing_program(LONG, ext4) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"go on\n")
        assert program.stdout.readline() == b"lasted\n"
        assert program.wait() == 0
        assert not is_frozen(ext4.point)
        eventually(lambda: gone(program.watchdog))  # type: ignore[attr-defined]


def test_too_slow(disk: MountedDisk) -> None:
    found = find_filesystems([disk.node])
    with Freezer(found.filesystems, limit=3.0) as freezer:
        with (
            pytest.raises(FreezeBroken, match=r"longer than 3 s") as caught,
            freezer.window() as window,
        ):
            eventually(lambda: not is_frozen(disk.point))
        assert caught.value.hint
        assert window.broken
        # The next one is a window of its own.
        with freezer.window() as window:
            pass
        assert not window.broken


def freeze_when_thawed(point: Path) -> None:
    eventually(lambda: not is_frozen(point))
    run(("fsfreeze", "--freeze", str(point)))


def test_a_freeze_of_others_after_the_limit_is_left_alone(ext4: MountedDisk) -> None:
    found = find_filesystems([ext4.node])
    with Freezer(found.filesystems, limit=3.0) as freezer:
        try:
            with pytest.raises(FreezeBroken), freezer.window():
                freeze_when_thawed(ext4.point)
            assert is_frozen(ext4.point)
        finally:
            run(("fsfreeze", "--unfreeze", str(ext4.point)))


def test_the_end_of_a_program_thaws_nothing_of_others(ext4: MountedDisk, tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "ext4", "second", size=64 << 20) as second:
        found = find_filesystems([ext4.node, second.node])
        with Freezer(found.filesystems) as freezer:
            with freezer.window():
                pass
            run(("fsfreeze", "--freeze", str(second.point)))
        try:
            assert is_frozen(second.point)
            assert not is_frozen(ext4.point)
        finally:
            run(("fsfreeze", "--unfreeze", str(second.point)))


def test_without_a_watchdog_nothing_is_frozen(ext4: MountedDisk) -> None:
    found = find_filesystems([ext4.node])
    with Freezer(found.filesystems) as freezer:
        watchdog = freezer._watchdog
        assert watchdog is not None
        first = watchdog.pid
        # It dies within a window: that lasts, and the next one has a new watchdog.
        with freezer.window() as window:
            os.kill(first, signal.SIGKILL)
        assert not window.broken
        with freezer.window() as window:
            assert watchdog.pid not in (0, first)
        assert not window.broken


def test_a_watchdog_that_cannot_start(ext4: MountedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = find_filesystems([ext4.node])
    with (
        Freezer(found.filesystems) as freezer,
        pytest.raises(FreezeError, match="watchdog"),
        freezer.window(),
    ):
        pass
    assert not is_frozen(ext4.point)


def test_only_what_was_announced(ext4: MountedDisk) -> None:
    """Another's freeze, under a watchdog whose time is up and whose program ends."""
    descriptor = os.open(ext4.point, os.O_RDONLY)
    try:
        with Watchdog([descriptor], ["there"], 0.1) as watchdog:
            watchdog.ensure()
            assert watchdog.locked
            run(("fsfreeze", "--freeze", str(ext4.point)))
            watchdog.arm()
            watchdog.about(0)
            watchdog.failed(0)
            time.sleep(0.5)
            assert watchdog.thawed_by_it() == ()
            assert watchdog.disarm() == ()
        assert is_frozen(ext4.point)
    finally:
        run(("fsfreeze", "--unfreeze", str(ext4.point)), ok=(0, 1))
        os.close(descriptor)
