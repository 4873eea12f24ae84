"""Every write to a disk is marked: on loop devices, with the real kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from freezeframe import tracking
from freezeframe.core.errors import TrackingBusy, TrackingUnavailable
from freezeframe.core.units import GRANULE, KIB, MIB
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.program import PROGRAM
from freezeframe.testing.tracking import (
    DirectFile,
    changed_granules,
    content,
    drop_caches,
    node_of,
    tracked,
    tracked_loop,
)
from freezeframe.tracking import Base, Distrust, Tracker, changed_since, remember_base
from freezeframe.tracking.record import places_of
from freezeframe.tracking.tracker import stop_number

pytestmark = pytest.mark.root

SIZE = 64 * MIB
#: Not a whole number of granules, nor of pages of flags.
ODD_SIZE = 300 * MIB + 20 * KIB


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where loop devices are fast."""
    folder = Path("/dev/shm") / f"freezeframe-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def assert_all_marked(changed: NDArray[np.int64], marked: NDArray[np.int64]) -> None:
    missed = np.setdiff1d(changed, marked)
    assert missed.size == 0, f"{missed.size} of {changed.size} changed granules have no mark"


def taken(tracker: Tracker) -> set[int]:
    found = set(tracker.harvest().tolist())
    assert tracker.broken() == ()
    assert tracker.left_out() == ()
    return found


def granules_of(offset: int, length: int) -> set[int]:
    return set(range(offset // GRANULE, (offset + length - 1) // GRANULE + 1))


# -- writes -------------------------------------------------------------------------------


@pytest.mark.parametrize("force_classic", [False, True], ids=["btf", "classic"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_random_writes(tmp_path: Path, sector: int, force_classic: bool) -> None:
    """Exactly what was written is marked: no granule less, and past the cache none more."""
    generator = random.Random(1)
    with (
        tracked_loop(tmp_path / "disk", ODD_SIZE, sector=sector, force_classic=force_classic) as (
            device,
            tracker,
        ),
        DirectFile(device) as file,
    ):
        assert tracker.granules == -(-ODD_SIZE // GRANULE)
        assert tracker.count() == 0
        assert tracker.record.mode == ("classic" if force_classic else "requests")
        sectors = ODD_SIZE // sector
        wanted: set[int] = set()
        for _ in range(2000):
            length = sector * generator.choice([1, 1, 2, 7, 8, 16, 17, 32])
            offset = sector * generator.randrange(sectors - length // sector)
            file.write(offset, generator.randbytes(length))
            wanted |= granules_of(offset, length)
        file.write((sectors - 1) * sector, generator.randbytes(sector))
        wanted.add(tracker.granules - 1)
        file.read(0, 16 * MIB)
        os.fsync(file.descriptor)
        assert tracker.count() == len(wanted)
        assert taken(tracker) == wanted
        assert taken(tracker) == set()
        # Large ones, that are split into many requests.
        for offset, length in ((3 * MIB + sector, 9 * MIB), (256 * MIB - sector, 3 * MIB)):
            file.write(offset, bytes(length))
            assert taken(tracker) == granules_of(offset, length)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("force_classic", [False, True], ids=["btf", "classic"])
def test_each_change_beneath_a_filesystem(tmp_path: Path, kind: str, force_classic: bool) -> None:
    """Files made, changed, removed and trimmed; what differs on disk afterwards is marked."""
    where = tmp_path / "m"
    where.mkdir()
    generator = random.Random(2)
    with tracked_loop(tmp_path / "disk", 320 * MIB, force_classic=force_classic) as (
        device,
        tracker,
    ):
        run([f"mkfs.{kind}", "-q", device])
        drop_caches(device)
        tracker.harvest()
        before = content(device)
        run(["mount", "-o", "discard", device, str(where)])
        try:
            for number in range(300):
                path = where / f"file{generator.randrange(60)}"
                if path.exists() and number % 5 == 0:
                    path.unlink()
                    continue
                with path.open("r+b" if path.exists() else "w+b") as file:
                    file.seek(generator.randrange(MIB))
                    file.write(generator.randbytes(generator.randrange(1, 200_000)))
                    file.flush()
                    if number % 7 == 0:
                        os.fdatasync(file.fileno())
                    if number % 11 == 0:
                        run(["fallocate", "-p", "-o", "4096", "-l", "65536", str(path)])
            for number in range(0, 60, 2):
                (where / f"file{number}").unlink(missing_ok=True)
            run(["fstrim", str(where)])
        finally:
            run(["umount", str(where)])
        drop_caches(device)
        changed = changed_granules(before, content(device))
        assert changed.size > 100
        marked = tracker.harvest()
        assert tracker.broken() == ()
        assert tracker.left_out() == ()
        assert_all_marked(changed, marked)


@pytest.mark.parametrize("force_classic", [False, True], ids=["btf", "classic"])
def test_discards_and_zeroes(tmp_path: Path, force_classic: bool) -> None:
    start, length = 5 * MIB + 4 * KIB, 400 * MIB
    with tracked_loop(tmp_path / "disk", 600 * MIB, force_classic=force_classic) as (
        device,
        tracker,
    ):
        for command in (
            ["blkdiscard", "-o", str(start), "-l", str(length)],
            ["blkdiscard", "-z", "-o", str(start), "-l", str(length)],
            ["fallocate", "-p", "-o", str(start), "-l", str(length)],
            ["fallocate", "-z", "-o", str(start), "-l", str(length)],
            ["blkdiscard", "-o", str(start), "-l", "4096"],
        ):
            asked = int(command[-1])
            run([*command, device])
            found = taken(tracker)
            # A loop device may leave out the ends that are no whole block of its file.
            inner = granules_of(start + GRANULE, asked - 2 * GRANULE) if asked > MIB else set()
            assert inner <= found <= granules_of(start, asked), command
            assert found, command


def test_a_partition_is_marked_at_its_place_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    run(["sfdisk", "-q", str(path)], stdin=b"label: gpt\nstart=2048, size=8MiB\nsize=20MiB\n")
    with attached(path, partitions=True) as device:
        second = node_of(f"{device}p2")
        begin = sysfs.read_number(second.folder / "start") * 512
        with tracked(second.path) as tracker, DirectFile(second.path) as file:
            assert tracker.disk.name == Path(device).name
            assert tracker.granules == SIZE // GRANULE
            file.write(MIB, bytes(4096))
            assert taken(tracker) == granules_of(begin + MIB, 4096)
            run(["blkdiscard", "-o", "4M", "-l", "1M", second.path])
            assert taken(tracker) == granules_of(begin + 4 * MIB, MIB)


def test_several_disks_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(tracked_loop(tmp_path / n, SIZE)) for n in "abc"]
        files = [stack.enter_context(DirectFile(device)) for device, _ in pairs]
        generations = {tracker.generation for _, tracker in pairs}
        assert len(generations) == 3
        for number, file in enumerate(files):
            file.write(number * MIB, bytes(4096))
        assert [taken(tracker) for _, tracker in pairs] == [{0}, {16}, {32}]
        names = {status.disk.name for status in tracking.running()}
        assert {Path(device).name for device, _ in pairs} <= names


@pytest.fixture
def zram() -> Iterator[str]:
    control = Path("/sys/class/zram-control")
    if not control.exists():
        pytest.skip("no zram in this kernel")
    number = (control / "hot_add").read_text().strip()
    folder = Path(f"/sys/block/zram{number}")
    try:
        (folder / "disksize").write_text(str(SIZE))
        yield f"/dev/zram{number}"
    finally:
        (folder / "reset").write_text("1")
        (control / "hot_remove").write_text(number)


def test_a_disk_without_requests(zram: str) -> None:
    generator = random.Random(3)
    with tracked(zram) as tracker, DirectFile(zram) as file:
        assert tracker.disk.bio_based
        assert tracker.record.mode == "bios"
        wanted = set()
        for _ in range(3000):
            length = 4096 * generator.choice([1, 2, 17, 40])
            offset = 4096 * generator.randrange((SIZE - length) // 4096)
            file.write(offset, generator.randbytes(length))
            wanted |= granules_of(offset, length)
        file.read(0, MIB)
        assert taken(tracker) == wanted
        run(["blkdiscard", "-o", "1M", "-l", "4M", zram])
        assert taken(tracker) == granules_of(MIB, 4 * MIB)
        remember_base(tracker, "repo", "image")
        assert isinstance(changed_since(tracker, "repo"), Distrust)
        tracker.close()
        with pytest.raises(TrackingUnavailable, match="no BTF"):
            tracking.start(node_of(zram), force_classic=True)


# -- the race, with the real program --------------------------------------------------------

WRITER = """
import os, sys, time, random, mmap
device, part, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
generator = random.Random(part)
end = time.monotonic() + seconds
count = 0
while time.monotonic() < end:
    for _ in range(256):
        count += 1
        buffer[:8] = count.to_bytes(8, "little")
        buffer[4088:] = count.to_bytes(8, "little")
        # Few granules, so that each is written again and again between two harvests.
        os.pwrite(descriptor, buffer, (part * 64 + generator.randrange(64)) * 65536 + 4096 * part)
print(count)
"""


def test_a_copy_kept_up_by_harvests_is_the_disk(memory: Path) -> None:
    """Two writers as fast as the disk takes it; whoever misses a mark ends with another copy."""
    granules = 128
    with tracked_loop(memory / "disk", granules * GRANULE) as (device, tracker):
        copy = np.zeros((granules, GRANULE), np.uint8)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, device, str(part), "12"], stdout=subprocess.PIPE
            )
            for part in range(2)
        ]
        into = np.empty(granules, np.int64)
        tracker.prepare()
        harvests = 0
        with DirectFile(device) as file:

            def keep_up() -> None:
                for granule in tracker.harvest(into).tolist():
                    data = file.read(granule * GRANULE, GRANULE)
                    copy[granule] = np.frombuffer(data, np.uint8)

            while any(writer.poll() is None for writer in writers):
                keep_up()
                harvests += 1
            keep_up()
        written = sum(int(writer.communicate()[0]) for writer in writers)
        assert all(writer.returncode == 0 for writer in writers)
        assert written > 20_000
        assert harvests > 100
        assert tracker.broken() == ()
        drop_caches(device)
        # So many writes that the kernel may have left out one: 4 KiB, and it says so.
        told = re.search(r"(\d+) sectors", " ".join(tracker.left_out()))
        assert changed_granules(copy, content(device)).size <= (int(told[1]) // 8 if told else 0)


def test_a_mark_is_there_when_the_write_returns(memory: Path) -> None:
    with tracked_loop(memory / "disk", SIZE) as (device, tracker), DirectFile(device) as file:
        generator = random.Random(4)
        for _ in range(5000):
            granule = generator.randrange(tracker.granules)
            file.write(granule * GRANULE, bytes(4096))
            assert tracker.harvest().tolist() == [granule]


# -- outliving processes ----------------------------------------------------------------------

STARTER = """
import sys
from freezeframe.system import sysfs
from freezeframe.tracking import start
node = sysfs.node_of(sys.argv[1])
with start(node) as tracker:
    print(tracker.generation)
"""


def test_marks_go_on_when_the_process_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    with attached(path) as device:
        node = node_of(device)
        assert tracking.open_running(node) is None
        try:
            generation = run([sys.executable, "-c", STARTER, device]).stdout.decode().strip()
            with DirectFile(device) as file:
                file.write(7 * GRANULE, bytes(4096))
            (status,) = [s for s in tracking.running() if s.disk.name == node.name]
            assert (status.marked, status.doubts, status.generation) == (1, (), generation)
            tracker = tracking.open_running(node)
            assert tracker is not None
            with tracker:
                assert tracker.generation == generation
                with pytest.raises(TrackingBusy):
                    tracking.open_running(node)
                with pytest.raises(TrackingBusy):
                    tracking.stop(node)
                assert taken(tracker) == {7}
            # Nothing is started anew where all is well.
            with tracking.start(node) as again:
                assert again.generation == generation
        finally:
            assert tracking.stop(node)
        assert not tracking.stop(node)
        assert tracking.open_running(node) is None


def test_a_number_used_again_is_never_trusted(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, SIZE)
    with attached(tmp_path / "a") as device:
        node = node_of(device)
        with tracking.start(node) as tracker:
            remember_base(tracker, "repo", "image")
            assert isinstance(changed_since(tracker, "repo"), Base)
            generation = tracker.generation
    try:
        (status,) = [s for s in tracking.running() if s.disk.name == node.name]
        assert status.doubts
        run(["losetup", device, str(tmp_path / "b")])
        try:
            # The old program marks the new disk, and nobody may believe it.
            with DirectFile(device) as file:
                file.write(0, bytes(4096))
            (status,) = [s for s in tracking.running() if s.disk.name == node.name]
            assert any("another disk has taken the place" in doubt for doubt in status.doubts)
            assert tracking.open_running(node) is None
            with tracking.start(node) as tracker:
                assert tracker.generation != generation
                found = changed_since(tracker, "repo")
                assert isinstance(found, Distrust)
                assert "another disk has taken the place" in found.reasons[0]
        finally:
            run(["losetup", "-d", device])
    finally:
        stop_number(node.number)


def test_a_disk_that_changed_its_size(tmp_path: Path) -> None:
    with tracked_loop(tmp_path / "disk", SIZE) as (device, tracker):
        remember_base(tracker, "repo", "image")
        os.truncate(tmp_path / "disk", 2 * SIZE)
        run(["losetup", "-c", device])
        with DirectFile(device) as file:
            file.write(SIZE + MIB, bytes(4096))
        assert any("past the end" in reason for reason in tracker.broken())
        found = changed_since(tracker, "repo")
        assert isinstance(found, Distrust)
        assert any("size" in reason for reason in found.reasons)


def test_a_loop_device_that_shows_another_part_of_its_file(tmp_path: Path) -> None:
    """The number of the disk stays, and so does its size."""
    with tracked_loop(tmp_path / "disk", SIZE) as (device, tracker):
        remember_base(tracker, "repo", "image")
        assert isinstance(changed_since(tracker, "repo"), Base)
        os.truncate(tmp_path / "disk", SIZE + MIB)
        request, size = 0x4C04, 232  # LOOP_SET_STATUS64; offset and limit lie at 24 and 32
        with DirectFile(device) as file:
            status = bytearray(fcntl.ioctl(file.descriptor, 0x4C05, bytes(size)))
            struct.pack_into("=QQ", status, 24, MIB, SIZE)
            fcntl.ioctl(file.descriptor, request, bytes(status))
        assert node_of(device).size == SIZE
        found = changed_since(tracker, "repo")
        assert isinstance(found, Distrust)
        assert any("it showed" in reason for reason in found.reasons)


def test_pins_that_were_removed_or_put_back(tmp_path: Path) -> None:
    with tracked_loop(tmp_path / "disk", SIZE) as (_, tracker):
        remember_base(tracker, "repo", "image")
        assert tracker.broken() == ()
        pin = places_of(tracker.disk.number).link("request_2")
        pin.unlink()
        assert any("no longer attached" in reason for reason in tracker.broken())
        assert isinstance(changed_since(tracker, "repo"), Distrust)
        # In doubt there is no base at all.
        remember_base(tracker, "repo", "second")
        assert not places_of(tracker.disk.number).base("repo").exists()


# -- bases --------------------------------------------------------------------------------------


def base(tracker: Tracker, repository: str) -> tuple[str, list[int]]:
    found = changed_since(tracker, repository)
    assert isinstance(found, Base), found
    return found.image_id, found.granules.tolist()


def test_two_repositories_have_increments_of_their_own(tmp_path: Path) -> None:
    with tracked_loop(tmp_path / "disk", SIZE) as (device, tracker), DirectFile(device) as file:

        def write(granule: int) -> None:
            file.write(granule * GRANULE, bytes(4096))

        assert isinstance(changed_since(tracker, "one"), Distrust)
        write(1)
        tracker.harvest()
        remember_base(tracker, "one", "a")
        assert base(tracker, "one") == ("a", [])
        write(2)
        assert base(tracker, "one") == ("a", [2])
        assert base(tracker, "one") == ("a", [2])
        assert isinstance(changed_since(tracker, "two"), Distrust)
        remember_base(tracker, "two", "b")
        write(3)
        assert base(tracker, "two") == ("b", [3])
        assert base(tracker, "one") == ("a", [2, 3])
        # Written after the last harvest: not in the image, and not lost.
        write(4)
        remember_base(tracker, "one", "c")
        assert base(tracker, "one") == ("c", [4])
        assert base(tracker, "two") == ("b", [3, 4])
        tracker.close()
        with tracking.start(node_of(device)) as again:
            write(5)
            assert base(again, "one") == ("c", [4, 5])
            assert base(again, "two") == ("b", [3, 4, 5])
            (status,) = [s for s in tracking.running() if s.disk.name == again.disk.name]
            assert sorted(status.bases) == [("one", "c"), ("two", "b")]


def test_the_classic_tracepoint_gives_no_increments(tmp_path: Path) -> None:
    with tracked_loop(tmp_path / "disk", SIZE, force_classic=True) as (_, tracker):
        remember_base(tracker, "repo", "image")
        found = changed_since(tracker, "repo")
        assert isinstance(found, Distrust)
        assert "no BTF" in found.reasons[0]


REMEMBERER = """
import sys
from freezeframe.system import sysfs
from freezeframe.tracking import open_running, remember_base
tracker = open_running(sysfs.node_of(sys.argv[1]))
number = int(sys.argv[2])
print(flush=True)
while True:
    number += 1
    remember_base(tracker, "repo", str(number))
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_remembering(tmp_path: Path) -> None:
    """Either the old base with its set, or the new one with an empty set; then all goes on."""
    generator = random.Random(5)
    with tracked_loop(tmp_path / "disk", 512 * MIB) as (device, tracker):
        node = node_of(device)
        remember_base(tracker, "repo", "0")
        known = 0
        tracker.close()
        for turn in range(12):
            with DirectFile(device) as file:
                file.write(turn * GRANULE, bytes(4096))
            process = subprocess.Popen(
                [sys.executable, "-c", REMEMBERER, device, str(known)], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(generator.random() * 0.02)
            process.kill()
            told = [int(line) for line in process.communicate()[0].split()]
            durable = told[-1] if told else known
            with tracking.start(node) as again:
                image, granules = base(again, "repo")
                # The one it had printed, or the one it was at when it was killed.
                assert int(image) in (durable, durable + 1)
                # Nobody harvested between: the write waited in the kernel.
                assert turn in granules
                known = int(image)
                remember_base(again, "repo", str(known))
                assert base(again, "repo") == (str(known), [])
                pending = list(again.places.notes.glob("pending-*"))
                assert len(pending) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", ["create", "write_note", "PendingSet"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_step_of_remembering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, after: bool
) -> None:
    """With a full set before: old base and full set, or new base and empty set."""
    with tracked_loop(tmp_path / "disk", SIZE) as (device, tracker):
        remember_base(tracker, "repo", "old")
        with DirectFile(device) as file:
            file.write(9 * GRANULE, bytes(4096))
        assert base(tracker, "repo") == ("old", [9])
        module = sys.modules["freezeframe.tracking.tracker"]
        original = getattr(module, point)

        def killed(*arguments: object) -> None:
            if after:
                original(*arguments)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module, point, killed)
            with pytest.raises(Killed):
                remember_base(tracker, "repo", "new")
        tracker.close()
        with tracking.start(node_of(device)) as again:
            committed = point == "PendingSet" or (point == "write_note" and after)
            assert base(again, "repo") == (("new", []) if committed else ("old", [9]))


# -- the commands ---------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)

    def call(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [PROGRAM, "track", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    with attached(path) as device:
        try:
            assert call("start", device) == f"{device}  started\n"
            assert call("start", device) == f"{device}  running\n"
            with DirectFile(device) as file:
                file.write(0, bytes(8192))
            assert '"state":"running"' in call("start", "--json", device)
            line = next(x for x in call("status").splitlines() if x.startswith(Path(device).name))
            assert line.split()[1:] == ["64.0", "MiB", "64.0", "KiB", "1", "none", "yes"]
            assert '"marked":65536' in call("status", "--json")
        finally:
            assert call("stop", device) == f"{device}  stopped\n"
        assert call("stop", device) == f"{device}  not tracked\n"
    assert "no block device" in call("start", str(path), code=2)
