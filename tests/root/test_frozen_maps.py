"""Used maps of mounted filesystems under a writer: frozen ones are exact, live ones never fail.

A copy of only what the map of the frozen filesystem names, the rest of it garbage, is judged
by the filesystem's own checker and compared with its files as they were while frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from freezeframe.block.device import Device, open_descriptor
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import FrozenView, RememberingReader
from freezeframe.core.errors import ToolFailed
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, KIB, MIB
from freezeframe.fs.base import State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.fsproof import PlainFile, loop_mounted, make_tree, tree_checksums
from freezeframe.testing.volumes import unmount

pytestmark = pytest.mark.root

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_MAKE = {
    "ext4": "mke2fs -q -F -t ext4",
    "ext4-1k": "mke2fs -q -F -t ext4 -b 1024 -O fast_commit,orphan_file",
    "ext3": "mke2fs -q -F -t ext3",
    "xfs": "mkfs.xfs -q -f -m rmapbt=1,reflink=1",
    "btrfs": "mkfs.btrfs -q",
}
_SIZE = 320 * MIB
_SECRET = b"found again by what it holds" + os.urandom(16 * KIB)

#: Creates, renames and unlinks, and writes at random with fdatasync, until it is ended; a dot
#: on standard output for each round.
_WRITER = r"""
import os, random, sys
folder, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
os.makedirs(folder, exist_ok=True)
data = os.open(f"{folder}/data", os.O_RDWR | os.O_CREAT)
os.ftruncate(data, 24 << 20)
names = []
for turn in range(100_000):
    for _ in range(8):
        name = f"{folder}/{turn}-{rng.random()}"
        with open(name, "wb") as file:
            file.write(rng.randbytes(rng.choice((10, 3000, 9000, 70_000))))
        names.append(name)
        os.pwrite(data, rng.randbytes(4096), rng.randrange(6000) * 4096)
    os.fdatasync(data)
    for _ in range(3):
        index = rng.randrange(len(names))
        os.rename(names[index], names[index] + "-")
        names[index] += "-"
    while len(names) > 200:
        os.unlink(names.pop(rng.randrange(len(names))))
    if turn % 16 == 5:
        os.sync() if turn % 5 == 0 else os.fsync(data)
    os.write(1, b".")
"""


@dataclass(frozen=True)
class Mounted:
    """A filesystem that somebody writes to, and the device beneath it, past the page cache."""

    folder: Path
    disk: Device
    descriptor: int

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it; thaw it whatever happens."""
        fcntl.ioctl(self.descriptor, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(self.descriptor, _FITHAW, 0)


@contextlib.contextmanager
def _written_to(image: Path, kind: str, options: str = "") -> Iterator[Mounted]:
    with image.open("wb") as file:
        file.truncate(_SIZE)
    run((*_MAKE[kind].split(), str(image)))
    folder = image.parent / "mounted"
    folder.mkdir()
    with attached(image) as device, contextlib.ExitStack() as stack:
        run(("mount", "-o", options or "defaults", device, str(folder)))
        stack.callback(unmount, folder)
        make_tree(folder, names=False)
        (folder / "secret").write_bytes(_SECRET)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(folder / f"w{seed}"), str(seed)],
                stdout=subprocess.PIPE,
            )
            for seed in range(2)
        ]
        for writer in writers:
            stack.callback(_end, writer)
            assert writer.stdout is not None
            # They are at work, and what they have made is being unmade.
            assert len(writer.stdout.read(30)) == 30
        mount = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, mount)
        descriptor, direct = open_descriptor(device, os.O_RDONLY)
        assert direct
        yield Mounted(folder, stack.enter_context(Device(descriptor, device, direct=direct)), mount)
        assert all(writer.poll() is None for writer in writers)


def _end(writer: subprocess.Popen[bytes]) -> None:
    writer.kill()
    writer.wait()
    assert writer.stdout is not None
    writer.stdout.close()


def _copy(disk: Device, used: Extents, target: Path) -> None:
    """Copy what is in use; all else is garbage."""
    with target.open("wb") as file:
        for start, stop in used.complement(disk.size):
            for offset in range(start, stop, MIB):
                os.pwrite(file.fileno(), b"\xa5" * min(MIB, stop - offset), offset)
        for start, stop in used:
            for offset in range(start, stop, MIB):
                data = disk.read_at(offset, min(MIB, stop - offset))
                os.pwrite(file.fileno(), data, offset)
        file.truncate(disk.size)


def _check(kind: str, copy: Path, files: dict[str, str], folder: Path) -> None:
    """Raise where the checker or the kernel sees anything else than the frozen filesystem."""
    if kind.startswith("ext"):
        run(("e2fsck", "-fn", str(copy)))
    if kind == "btrfs":
        run(("btrfs", "check", "--check-data-csum", str(copy)))
    # XFS: this replays the log.
    with loop_mounted(copy, folder) as mounted:
        assert tree_checksums(mounted) == files
    if kind == "xfs":
        run(("xfs_repair", "-n", str(copy)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext4", ""),
        ("ext4", "discard"),
        ("ext4", "data=journal"),
        ("ext4-1k", "discard"),
        ("ext3", ""),
        ("xfs", ""),
        ("xfs", "discard"),
        ("btrfs", ""),
        ("btrfs", "discard=sync"),
        ("btrfs", "discard=async"),
    ],
)
def test_the_map_of_a_frozen_filesystem_leaves_nothing_out(
    kind: str, options: str, tmp_path: Path
) -> None:
    copies: list[tuple[Path, dict[str, str], UsedMap]] = []
    with _written_to(tmp_path / "image", kind, options) as mounted:
        for turn in range(3):
            time.sleep(0.3)
            copy = tmp_path / f"copy{turn}"
            with mounted.frozen():
                result = used_map(mounted.disk, state=State.FROZEN)
                assert result.understood, result.notes
                assert not any("count as used" in note for note in result.notes)
                assert result.state is State.FROZEN
                _copy(mounted.disk, result.used, copy)
                files = tree_checksums(mounted.folder)
            copies.append((copy, files, result))
    assert copies[0][1] != copies[2][1]
    for copy, files, result in copies:
        assert len(files) > 200
        assert result.used.total < _SIZE * 0.9
        where = copy.read_bytes().find(_SECRET[: 4 * KIB])
        assert where > 0
        _check(kind, copy, files, tmp_path / "after")
        if kind == "xfs":
            _replayed_within(copy, result.used)
    # One block less, and it is seen.
    copy, files, result = copies[-1]
    with copy.open("r+b") as file:
        os.pwrite(file.fileno(), b"\xa5" * 4 * KIB, copy.read_bytes().find(_SECRET[: 4 * KIB]))
    with pytest.raises((AssertionError, ToolFailed, OSError)):
        _check(kind, copy, files, tmp_path / "after")


def _replayed_within(copy: Path, used: Extents) -> None:
    """After the log's replay nothing is in use, as xfs_db has it, that the map did not name."""
    fields = run(("xfs_db", "-r", "-c", "sb 0", "-c", "print", str(copy))).stdout.decode()
    values = dict(line.split(" = ", 1) for line in fields.splitlines())
    block, group = int(values["blocksize"]), int(values["agblocks"])
    output = run(("xfs_db", "-r", "-c", "freesp -d", str(copy))).stdout.decode()
    free = []
    for line in output.splitlines():
        # A line of words above, a histogram of more columns below.
        if len(line.split()) != 3 or "agno" in line:
            continue
        number, start, length = map(int, line.split())
        first = (number * group + start) * block
        free.append((first, first + length * block))
    assert free
    assert not Extents.of(free).complement(copy.stat().st_size) - used


def _written_since(memory: RememberingReader, truth: Path) -> Extents:
    """Granules of which what is remembered is not what was there in the freeze.

    What a tracker marks holds at least these.
    """
    marks = []
    with PlainFile(truth) as frozen:
        for start in range(0, frozen.size, GRANULE):
            length = min(GRANULE, frozen.size - start)
            was, now = bytearray(length), bytearray(frozen.read_at(start, length))
            for first, last in memory.recall(start, memoryview(was)):
                now[first - start : last - start] = was[first - start : last - start]
            if was != now:
                marks.append((start, start + length))
    return Extents.of(marks)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_parsed_after_the_thaw_it_is_the_same(kind: str, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    with _written_to(tmp_path / "image", kind) as mounted:
        disk = mounted.disk
        memory = RememberingReader(disk)
        overlay = GranuleOverlay(disk.size, 64 * MIB)
        changed = 0
        for _ in range(4):
            with mounted.frozen():
                pass
            used_map(memory, state=State.LIVE)
            with mounted.frozen():
                expected = used_map(disk, state=State.FROZEN)
                _copy(disk, Extents.single(0, disk.size), truth)
            written = _written_since(memory, truth)
            changed += len(written)
            memory.forget(written)
            overlay.clear()
            with PlainFile(truth) as frozen:
                overlay.read_granules(frozen, written.units(GRANULE))
                # What a second window would have to read; the writer writes on.
                guess = FrozenView(memory, overlay, guess=True)
                used_map(guess, state=State.FROZEN)
                overlay.read_granules(frozen, guess.missing.units(GRANULE))
                view = FrozenView(memory, overlay)
                result = used_map(view, state=State.FROZEN)
                while not view.complete:
                    overlay.read_granules(frozen, view.missing.units(GRANULE))
                    view = FrozenView(memory, overlay)
                    result = used_map(view, state=State.FROZEN)
            assert result == expected
            assert expected.understood
            # What a tracker would tell: all of that was written.
            memory.forget(overlay.extents())
        assert changed


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_live_map_never_fails(kind: str, tmp_path: Path) -> None:
    with _written_to(tmp_path / "image", kind, "discard") as mounted:
        disk = mounted.disk
        memory = RememberingReader(disk)
        understood = 0
        for turn in range(200):
            if turn % 10 == 0:
                with mounted.frozen():
                    pass
            # Half of them from memory that is out of date, and partly so.
            if turn % 4 == 0:
                memory.forget(Extents.single(turn * MIB, disk.size))
            result = used_map(memory if turn % 2 else disk, state=State.LIVE)
            assert result.state is State.LIVE
            assert result.used == Extents.of(result.used).clip(0, disk.size)
            assert not any("report it" in note for note in result.notes), result.notes
            understood += result.understood
        assert understood > 20
        with mounted.frozen():
            exact = used_map(disk, state=State.FROZEN)
        with mounted.frozen():
            live = used_map(disk, state=State.LIVE)
            frozen = used_map(disk, state=State.FROZEN)
        # Of a filesystem that does not move the estimate is exact.
        assert live.used == frozen.used
        assert exact.understood


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_is_not_frozen_is_not_at_rest(kind: str, tmp_path: Path) -> None:
    with _written_to(tmp_path / "image", kind) as mounted:
        assert not used_map(mounted.disk).understood
        if kind == "ext4":
            # It says itself that it is not frozen. XFS does not: who calls must know.
            assert not used_map(mounted.disk, state=State.FROZEN).understood


def test_granules_are_read_past_the_page_cache(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(100 * GRANULE + 3 * KIB))
    with attached(image) as device:
        descriptor, direct = open_descriptor(device, os.O_RDONLY)
        with Device(descriptor, device, direct=direct) as disk:
            overlay = GranuleOverlay(disk.size, 90 * GRANULE)
            wanted = np.flatnonzero(np.arange(101) % 5 != 1)
            assert not len(overlay.read_granules(disk, wanted))
            overlay.discard(wanted[::4])
            assert not len(overlay.read_granules(disk, wanted))
            raw = image.read_bytes()
            for granule in wanted.tolist():
                start = granule * GRANULE
                assert bytes(overlay.view(granule)) == raw[start : start + GRANULE]
            assert len(overlay.view(100)) == 3 * KIB
