"""Nobody else may use what is imaged: every kind of use is seen, refused, and named."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from freezeframe.block.open import open_shared, open_source, open_target, probe_target
from freezeframe.core.errors import FreezeframeError, SourceBusy, SourceError
from freezeframe.core.units import MIB
from freezeframe.system.holders import source_holders, target_holders
from freezeframe.system.loop import attached
from freezeframe.system.mounts import swaps
from freezeframe.system.run import run

pytestmark = pytest.mark.root


def blank(path: Path, size: int = 16 * MIB) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


@contextmanager
def mounted(what: str, where: Path, *options: str) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    run(["mount", *options, what, str(where)])
    try:
        yield where
    finally:
        run(["umount", str(where)])


@contextmanager
def other(code: str, path: str) -> Iterator[subprocess.Popen[bytes]]:
    script = f"import os,sys\npath=sys.argv[1]\n{code}\nprint(flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def refused(path: str | Path) -> SourceBusy:
    """Check that a source is refused, its target too; return why."""
    for open_it in (open_target, probe_target):
        with pytest.raises(FreezeframeError):
            open_it(path)
    with pytest.raises(SourceBusy) as caught:
        open_source(path)
    assert caught.value.hint
    with open_shared(path) as reader:
        assert reader.size
    return caught.value


def free(path: str | Path) -> None:
    """Check that it can be had, for reading and for writing."""
    assert source_holders(path) == target_holders(path) == ()
    with open_source(path) as reader:
        reader.read_at(0, 4096)
    with open_target(path) as target:
        assert (target.size, target.sector) == (reader.size, reader.sector)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[str]:
    path = blank(tmp_path / "ext4.raw")
    run(["mkfs.ext4", "-q", str(path)])
    with attached(path) as device:
        yield device


def test_unused(ext4: str, tmp_path: Path) -> None:
    free(ext4)
    # The file beneath may be read, but not overwritten under the device's feet.
    with open_source(tmp_path / "ext4.raw"):
        pass
    with pytest.raises(SourceBusy, match=f"attached as {ext4}"):
        open_target(tmp_path / "ext4.raw")


def test_mounted_read_write(ext4: str, tmp_path: Path) -> None:
    with mounted(ext4, tmp_path / "at rest"):
        error = refused(ext4)
        assert error.holders == (f"mounted read-write at {tmp_path}/at rest",)
        assert error.hint == f"free it first: umount {tmp_path}/at rest"
        file = refused(tmp_path / "ext4.raw")
        assert file.holders == (f"attached as {ext4}, mounted read-write at {tmp_path}/at rest",)
    free(ext4)


def test_a_read_only_mount_of_a_read_write_filesystem(ext4: str, tmp_path: Path) -> None:
    with (
        mounted(ext4, tmp_path / "rw") as first,
        mounted(str(first), tmp_path / "ro", "-o", "bind,ro"),
    ):
        assert len(refused(ext4).holders) == 2


def test_mounted_read_only(ext4: str, tmp_path: Path) -> None:
    with mounted(ext4, tmp_path / "m", "-o", "ro"):
        with open_source(ext4) as reader, open_source(tmp_path / "ext4.raw"):
            assert reader.read_at(1080, 2) == b"\x53\xef"
        for open_it in (open_target, probe_target):
            for path in (ext4, tmp_path / "ext4.raw"):
                with pytest.raises(SourceBusy, match="mounted read-only at"):
                    open_it(path)


def test_a_mount_that_becomes_read_write_meanwhile(
    ext4: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freezeframe.block.device._WATCH_EVERY", 0.0)
    with mounted(ext4, tmp_path / "m", "-o", "ro"), open_source(ext4) as reader:
        reader.read_at(0, 4096)
        run(["mount", "-o", "remount,rw", str(tmp_path / "m")])
        with pytest.raises(SourceBusy, match="read-write"):
            reader.read_at(0, 4096)


def test_mounted_in_another_view(ext4: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    # What other tests have mounted at this moment must not stay mounted in this view.
    leave = "awk '$5 ~ /pytest/ {print $5}' /proc/self/mountinfo | xargs -r umount -l"
    command = f"{leave}; mount {ext4} {tmp_path}/m && echo && cat"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        holders = refused(ext4).holders
        assert f"mounted read-write at {tmp_path}/m in the view of pid" in holders[0]
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
    free(ext4)


def test_partitions(tmp_path: Path) -> None:
    path = blank(tmp_path / "disk.raw", 48 * MIB)
    run(["sfdisk", "-q", str(path)], stdin=b"label: gpt\nsize=20MiB\nsize=20MiB\n")
    with attached(path, partitions=True) as device:
        for number in (1, 2):
            run(["mkfs.ext4", "-q", f"{device}p{number}"])
        free(device)
        with mounted(f"{device}p1", tmp_path / "m"):
            text = f"{device}p1 is mounted read-write at {tmp_path}/m"
            assert refused(device).holders == (text,)
            assert text in refused(path).holders[0]
            refused(f"{device}p1")
            free(f"{device}p2")
        with mounted(f"{device}p1", tmp_path / "m", "-o", "ro"):
            with open_source(device) as reader:
                assert reader.size == 48 * MIB
                # The rest of the disk is held meanwhile.
                with pytest.raises(SourceBusy):
                    open_source(f"{device}p2")
                with pytest.raises(SourceBusy):
                    open_target(f"{device}p2")
            with other(f"os.open('{device}p2', os.O_RDONLY | os.O_EXCL)", device):
                refused(device)
            with pytest.raises(SourceBusy):
                open_target(device)
        # One who writes to the whole writes to the part.
        with other("os.open(path, os.O_RDWR)", device) as process:
            assert f"pid {process.pid} " in refused(f"{device}p1").holders[0]


def test_swap(tmp_path: Path) -> None:
    path = blank(tmp_path / "swap.raw")
    run(["mkswap", str(path)])
    with attached(path) as device:
        before = len(swaps())
        run(["swapon", device])
        try:
            assert len(swaps()) == before + 1
            assert refused(device).holders == ("in use as swap",)
            assert refused(path).holders == (f"attached as {device}, in use as swap",)
        finally:
            run(["swapoff", device])
        free(device)


def test_btrfs_of_two_devices(tmp_path: Path) -> None:
    paths = [blank(tmp_path / f"{name}.raw", 120 * MIB) for name in "ab"]
    with ExitStack() as stack:
        devices = [stack.enter_context(attached(path)) for path in paths]
        run(["mkfs.btrfs", "-q", "-d", "single", "-m", "raid1", *devices])
        with mounted(devices[0], tmp_path / "m"):
            for device, path in zip(devices, paths, strict=True):
                assert "mounted read-write at" in refused(device).holders[0]
                refused(path)
        with mounted(devices[0], tmp_path / "m", "-o", "ro"):
            for device in devices:
                with open_source(device) as reader:
                    reader.read_at(0, MIB)
                with pytest.raises(SourceBusy, match="mounted read-only"):
                    open_target(device)
        for device in devices:
            free(device)


def test_a_log_on_another_device(tmp_path: Path) -> None:
    with (
        attached(blank(tmp_path / "xfs.raw", 320 * MIB)) as device,
        attached(blank(tmp_path / "log.raw", 80 * MIB)) as log,
    ):
        run(["mkfs.xfs", "-q", "-l", f"logdev={log}", device])
        with mounted(device, tmp_path / "m", "-o", f"logdev={log}"):
            text = "the log or realtime device of the filesystem mounted read-write at"
            assert text in refused(log).holders[0]
            refused(device)
        free(log)


def test_a_journal_on_another_device(tmp_path: Path) -> None:
    with (
        attached(blank(tmp_path / "journal.raw")) as journal,
        attached(blank(tmp_path / "ext4.raw")) as device,
    ):
        run(["mke2fs", "-q", "-b", "4096", "-O", "journal_dev", journal])
        run(["mkfs.ext4", "-q", "-b", "4096", "-J", f"device={journal}", device])
        with mounted(device, tmp_path / "m"):
            assert refused(journal).holders == ("the journal of a mounted filesystem",)
            refused(device)
        free(journal)


def test_held_exclusively_by_another(ext4: str) -> None:
    with other("os.open(path, os.O_RDONLY | os.O_EXCL)", ext4) as process:
        assert f"maybe by pid {process.pid} (" in refused(ext4).holders[0]
    with open_source(ext4):
        assert "held exclusively" in refused(ext4).holders[0]
    free(ext4)


def test_open_for_writing_by_another(ext4: str, tmp_path: Path) -> None:
    with other("os.open(path, os.O_RDWR)", ext4) as process:
        assert refused(ext4).holders[0].startswith(f"open for writing by pid {process.pid} (")
        assert "attached as" in refused(tmp_path / "ext4.raw").holders[0]
    # By another name for the same device, too.
    mode = stat.S_IFBLK | 0o600
    os.mknod(tmp_path / Path(ext4).name, mode, Path(ext4).stat().st_rdev)
    with other("os.open(path, os.O_RDWR)", str(tmp_path / Path(ext4).name)):
        refused(ext4)
    with other("os.open(path, os.O_RDONLY)", ext4):
        free(ext4)


def test_a_guest_has_it(ext4: str) -> None:
    qemu = subprocess.Popen(
        ["qemu-io", "-f", "raw", ext4], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    try:
        qemu.stdin.write(b"read 0 512\n")
        qemu.stdin.flush()
        qemu.stdout.readline()
        assert f"pid {qemu.pid} (qemu-io)" in refused(ext4).holders[0]
    finally:
        qemu.communicate(b"quit\n")


def test_a_loop_device_over_a_device(ext4: str, tmp_path: Path) -> None:
    with attached(ext4) as above:
        with mounted(above, tmp_path / "m"):
            text = f"attached as {above}, mounted read-write at {tmp_path}/m"
            assert refused(ext4).holders == (text,)
        with open_source(ext4):
            pass
        with pytest.raises(SourceBusy, match="attached as"):
            open_target(ext4)


def test_a_deleted_file_is_still_attached(ext4: str, tmp_path: Path) -> None:
    os.link(tmp_path / "ext4.raw", tmp_path / "second-name.raw")
    (tmp_path / "ext4.raw").unlink()
    with mounted(ext4, tmp_path / "m"):
        refused(tmp_path / "second-name.raw")


def test_the_machines_own_root_is_refused() -> None:
    device = run(["findmnt", "-n", "-o", "SOURCE", "/"]).stdout.decode().strip()
    if Path(device).is_block_device():
        assert "mounted read-write at /" in source_holders(device)
        # A container may be denied the device altogether.
        with pytest.raises((SourceBusy, SourceError)):
            open_source(device)


def test_no_rights(ext4: str) -> None:
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            open_source(ext4)
        except SourceError as error:
            os._exit(7 if "sudo" in error.hint else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
