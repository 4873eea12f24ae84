"""What every provider of shadow copies must pass, on a real kernel, with writers at work.

To join, subclass, name the provider, and give it two mounted filesystems to work on:

class TestMine(ProviderContract):
    provider = MyProvider

    @contextmanager
    def ground(self, folder: Path) -> Iterator[Ground]:
        ...

Needs root. The first filesystem must be on a volume of the provider's; what is not in
`Ground.volumes` is frozen and read as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.filesystems import MountedFilesystem, find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.providers.base import (
    Provider,
    ProviderFailed,
    Shadow,
    ShadowLost,
    Volume,
    Wishes,
)
from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.devmapper import has_device_mapper
from freezeframe.system.run import run
from freezeframe.testing.frozen import RecordWriter, eventually, is_frozen, running_writer
from freezeframe.testing.volumes import unmount

#: Seconds; an emulated machine takes its time.
_PATIENCE = 120.0

_PAIRS = """
import os, sys, time
files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in sys.argv[2:]]
pause = float(sys.argv[1])
number = 0
while True:
    for file in files:
        os.write(file, b"record %010d\\n" % number)
        os.fsync(file)
        if pause:
            time.sleep(pause)
    os.write(1, b".")
    number += 1
"""
_LENGTH = len("record 0000000000\n")

_FLOOD = """
import os, random, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
size = int(sys.argv[2])
if os.fstat(file).st_size < size:
    for place in range(0, size, 1 << 20):
        os.pwrite(file, os.urandom(1 << 20), place)
    os.fsync(file)
while True:
    for _ in range(64):
        os.pwrite(file, os.urandom(4096), random.randrange(size // 4096) * 4096)
    os.fsync(file)
    os.write(1, b".")
"""


def deadline() -> Deadline:
    """Return one that only a hang exceeds."""
    return Deadline.after(_PATIENCE)


def volume_at(point: Path) -> Volume:
    """Return the volume a filesystem is mounted from."""
    stack = Stack()
    number = stack.filesystem_of(point)
    (node, *_) = stack.devices_of(number)
    found = [each for each in find_filesystems([node]).filesystems if each.device == number]
    return Volume(node, node.size, tuple(found))


def filesystem_at(point: Path) -> MountedFilesystem:
    """Return what is mounted there."""
    return volume_at(point).filesystems[0]


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a provider is tried."""

    #: Two mounted filesystems, each for one file of records.
    points: tuple[Path, Path]
    #: What the provider copies: one volume, or both.
    volumes: tuple[Volume, ...]
    #: For a set whose store overflows when 12 MiB are written; None where there is no store.
    small: Wishes | None = None
    wishes: Wishes = field(default_factory=Wishes)


@contextlib.contextmanager
def pairs_written(points: tuple[Path, Path], pause: float = 0) -> Iterator[RecordWriter]:
    """Have a process write record n to the first filesystem, then to the second, in turns.

    With so many seconds between two writes.
    """
    for point in points:
        (point / "records").unlink(missing_ok=True)
    with running_writer(_PAIRS, str(pause), *(point / "records" for point in points)) as writer:
        yield writer


def records_in(file: Path) -> int:
    """Return how many records a file holds. `AssertionError` where they are not in a row."""
    data = file.read_bytes()
    whole = len(data) // _LENGTH
    expected = b"".join(b"record %010d\n" % number for number in range(whole + 1))
    assert data == expected[: len(data)], "a record is torn or missing"
    return whole


@contextlib.contextmanager
def window(provider: Provider, points: tuple[Path, ...]) -> Iterator[None]:
    """Hold everything still within, as the coordinator does."""
    own = {each.device for volume in provider.volumes for each in volume.filesystems}
    frozen = [
        each
        for each in map(filesystem_at, points)
        if not (provider.holds_filesystems and each.device in own)
    ]
    with Freezer(frozen, limit=60) as freezer, freezer.window():
        try:
            provider.hold(deadline())
            yield
        finally:
            provider.resume()


@contextlib.contextmanager
def opened(shadow: Shadow) -> Iterator[Path]:
    """Give the folder with the files of a shadow copy."""
    if not shadow.is_device:
        yield Path(shadow.path, "5/top")
        return
    point = Path(f"/run/freezeframe-test-{Path(shadow.path).name}")
    point.mkdir()
    kind = shadow.volume.filesystems[0].kind
    options = {"xfs": "ro,nouuid,norecovery"}.get(kind, "ro")
    try:
        run(("mount", "-t", kind, "-o", options, shadow.path, str(point)))
        try:
            yield point
        finally:
            unmount(point)
    finally:
        point.rmdir()


def digest(device: str) -> int:
    """Return a sum of all that a device holds."""
    run(("blockdev", "--flushbufs", device))
    found = 0
    with Path(device).open("rb", buffering=0) as file:
        while piece := file.read(MIB):
            found = zlib.crc32(piece, found)
    return found


def fsck(shadow: Shadow) -> None:
    """Have the filesystem's own program find nothing."""
    if shadow.is_device and shadow.volume.filesystems[0].kind == "ext4":
        run(("e2fsck", "-fn", shadow.path))


class ProviderContract:
    """The suite."""

    provider: ClassVar[type[Provider]]
    #: So many copies are made one after the other by the test of the point in time.
    rounds: ClassVar[int] = 2
    #: Where the program is killed: a step's name, or before the call of device-mapper of that
    #: number in a commit.
    killed_at: ClassVar[tuple[str | int, ...]] = ("prepare", "hold", "commit", "resume")

    @contextlib.contextmanager
    def ground(self, folder: Path) -> Iterator[Ground]:
        """Give two mounted filesystems; `folder` is empty and the test's own."""
        del folder
        yield from ()
        raise NotImplementedError

    def state(self) -> str:
        """Return what must be as before in the end: tables, volumes; our own loops and mounts."""
        listed = run(("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")).stdout
        lines = [*listed.decode().splitlines(), *Path("/proc/self/mounts").read_text().splitlines()]
        lines = [line for line in lines if "ff-test" in line]
        if has_device_mapper():
            for command in (
                ("dmsetup", "table"),
                ("dmsetup", "info", "-c", "--noheadings", "-o", "name,attr,tables_loaded"),
                ("lvm", "lvs", "-a", "--noheadings", "-o", "lv_name,lv_attr,lv_size,lv_tags"),
            ):
                lines += run(command).stdout.decode().splitlines()
        return "\n".join(sorted(lines))

    def break_commit(self, provider: Provider) -> None:
        """Have the next commit of a prepared provider fail, by something real."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Ground]:
        """Give each test its ground; in the end everything is as it was on it."""
        with self.ground(tmp_path) as ground:
            before = self.state()
            yield ground
            eventually(lambda: self.state() == before or self._explain(before))

    def _explain(self, before: str) -> bool:
        time.sleep(0.2)
        now = self.state()
        for line in set(now.splitlines()) ^ set(before.splitlines()):
            print("differs:", line)
        return now == before

    def make(self, place: Ground, wishes: Wishes | None = None, name: str = "ff-test") -> Provider:
        """Return a fresh set."""
        return self.provider(name, place.volumes, wishes or place.wishes)

    # -- looking ------------------------------------------------------------------------

    def test_it_says_whether_it_suits(self, place: Ground) -> None:
        """With a reason, and without doing anything."""
        before = self.state()
        for volume in place.volumes:
            fit = self.provider.fit(volume)
            assert fit.suits, fit.reason
            assert fit.reason
        assert self.provider.unavailable() == ""
        assert self.state() == before

    # -- points in time -----------------------------------------------------------------

    def test_one_point_in_time(self, place: Ground) -> None:
        """A record on the second filesystem is never missing on the first."""
        with pairs_written(place.points) as writer:
            for _ in range(self.rounds):
                provider = self.make(place)
                try:
                    provider.prepare(deadline())
                    writer.wait_for_more()
                    counts = self._take(place, provider, writer)
                finally:
                    provider.release()
                print("records on the copies:", counts)
                assert counts[0] - 1 <= counts[1] <= counts[0], counts
                writer.wait_for_more()

    def _take(self, place: Ground, provider: Provider, writer: RecordWriter) -> list[int]:
        """Make copies, let the writer go on, and return how many records each holds."""
        plain: list[Path] = []
        copied = {volume.filesystems[0].point for volume in place.volumes}
        with window(provider, place.points):
            least = writer.written()
            provider.commit(deadline())
            # What nobody copies stands still meanwhile.
            for number, point in enumerate(place.points):
                if str(point) not in copied:
                    plain.append(Path(f"/run/freezeframe-test-plain-{number}"))
                    shutil.copyfile(point / "records", plain[-1])
        shadows = provider.shadows()
        assert [shadow.volume for shadow in shadows] == list(place.volumes)
        sums = [digest(shadow.path) for shadow in shadows if shadow.is_device]
        for _ in range(3):
            writer.wait_for_more()
        by_point: dict[str, int] = {}
        for shadow in shadows:
            with opened(shadow) as root:
                by_point[shadow.volume.filesystems[0].point] = records_in(root / "records")
            fsck(shadow)
        left = [records_in(file) for file in plain]
        for file in plain:
            file.unlink()
        provider.check()
        assert sums == [digest(shadow.path) for shadow in shadows if shadow.is_device]
        provider.check()
        counts = [by_point[str(p)] if str(p) in by_point else left.pop(0) for p in place.points]
        # One more may be written and not told, and one more begun.
        assert least <= counts[0] <= least + 2, (least, counts)
        return counts

    def test_what_it_gives_is_read_only(self, place: Ground) -> None:
        """For everybody, root too."""
        provider = self.make(place)
        try:
            provider.prepare(deadline())
            with window(provider, place.points):
                provider.commit(deadline())
            for shadow in provider.shadows():
                if shadow.is_device:
                    node = sysfs.node_of(shadow.path)
                    assert node is not None
                    assert node.size == shadow.volume.size
                    assert run(("blockdev", "--getro", shadow.path)).stdout == b"1\n"
                    # A loop device may be opened for writing (6.18), but not written to.
                    with pytest.raises(OSError, match=r"permitted|denied|Read-only"):
                        _overwrite(shadow.path)
                else:
                    with opened(shadow) as root, pytest.raises(OSError, match="Read-only"):
                        (root / "new").touch()
        finally:
            provider.release()

    def test_released_while_everything_is_written(self, place: Ground) -> None:
        """And a second time; and before anything was made."""
        with pairs_written(place.points) as writer:
            provider = self.make(place)
            provider.release()
            provider.prepare(deadline())
            with window(provider, place.points):
                provider.commit(deadline())
            writer.wait_for_more()
            provider.release()
            writer.wait_for_more()
            provider.release()
            provider.prepare(deadline())
            provider.release()
            writer.wait_for_more()

    def test_held_and_let_go(self, place: Ground) -> None:
        """Without a commit nothing has happened, and it can be held again."""
        with pairs_written(place.points) as writer:
            provider = self.make(place)
            try:
                provider.prepare(deadline())
                before = self.state()
                with window(provider, place.points):
                    pass
                writer.wait_for_more()
                assert self.state() == before
                provider.resume()
                counts = self._take(place, provider, writer)
                assert counts[0] - 1 <= counts[1] <= counts[0], counts
            finally:
                provider.release()

    def test_two_sets_of_the_same_volumes(self, place: Ground) -> None:
        """Each is whole, whichever is released first."""
        with pairs_written(place.points) as writer:
            for first in (0, 1):
                sets = [self.make(place, name=f"ff-test-{n}") for n in range(2)]
                try:
                    for each in sets:
                        each.prepare(deadline())
                        with window(each, place.points):
                            each.commit(deadline())
                        writer.wait_for_more()
                    counts = [self._first_count(each) for each in sets]
                    assert counts[0] < counts[1]
                    sets[first].release()
                    writer.wait_for_more()
                    other = sets[1 - first]
                    other.check()
                    assert self._first_count(other) == counts[1 - first]
                    other.check()
                finally:
                    for each in sets:
                        each.release()
                writer.wait_for_more()

    def _first_count(self, provider: Provider) -> int:
        shadow = provider.shadows()[0]
        with opened(shadow) as root:
            return records_in(root / "records")

    # -- failures -----------------------------------------------------------------------

    def test_a_commit_that_fails(self, place: Ground) -> None:
        """Everything goes on, and nothing is left."""
        with pairs_written(place.points) as writer:
            provider = self.make(place)
            provider.prepare(deadline())
            self.break_commit(provider)
            failures = (ProviderFailed, OSError)
            with pytest.raises(failures) as raised, window(provider, place.points):
                provider.commit(deadline())
            print("told:", raised.value)
            writer.wait_for_more()
            provider.release()
            writer.wait_for_more()

    def test_a_store_that_overflows(self, place: Ground) -> None:
        """The copy is lost, which is told; the volume and its writers are not."""
        if place.small is None:
            return
        with pairs_written(place.points) as writer:
            flood = place.points[0] / "flood"
            with running_writer(_FLOOD, flood, str(16 * MIB)) as flooding:
                provider = self.make(place, place.small)
                try:
                    provider.prepare(deadline())
                    with window(provider, place.points):
                        provider.commit(deadline())
                    provider.check()
                    with pytest.raises(ShadowLost) as raised:
                        self._wait_until_lost(provider, flooding)
                    print("told:", raised.value.message)
                    assert self.provider.trouble(provider.record())
                    writer.wait_for_more()
                    flooding.wait_for_more()
                finally:
                    provider.release()
                flooding.wait_for_more()
            writer.wait_for_more()
            flood.unlink()
        for point in place.points:
            records_in(point / "records")

    def _wait_until_lost(self, provider: Provider, flooding: RecordWriter) -> None:
        patience = deadline()
        while not patience.passed:
            flooding.wait_for_more()
            provider.check()

    def test_killed_at_each_step(self, place: Ground) -> None:
        """Writers go on at once; another process finds and removes all that is left."""
        with pairs_written(place.points) as writer:
            for step in self.killed_at:
                before = self.state()
                record = self._killed_at(step, place)
                began = time.monotonic()
                for point in place.points:
                    eventually(lambda point=point: not is_frozen(point))  # type: ignore[misc]
                writer.wait_for_more()
                held = time.monotonic() - began
                self.provider.clean(record)
                writer.wait_for_more()
                self.provider.clean(record)
                eventually(lambda state=before: self.state() == state or self._explain(state))  # type: ignore[misc]
                print(f"killed at {step}: writers went on after {held:.1f} s at most")

    def _killed_at(self, step: str | int, place: Ground) -> Mapping[str, str]:
        """Have a forked process be killed at a step; return what it had written down."""
        journal = Path("/run/freezeframe-test-journal")
        journal.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            try:
                self._live_until(step, place, journal)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (step, status)
        found: dict[str, str] = json.loads(journal.read_text())
        return found

    def _live_until(self, step: str | int, place: Ground, journal: Path) -> None:
        provider = self.make(place)

        def write() -> None:
            journal.write_text(json.dumps(dict(provider.record())))

        provider.journal = write
        try:
            provider.prepare(deadline())
            _die_if(step == "prepare")
            with window(provider, place.points):
                _die_if(step == "hold")
                if isinstance(step, int):
                    die_at_call(step)
                provider.commit(deadline())
                _die_if(step == "commit")
            _die_if(step == "resume")
        except BaseException as error:
            print(f"before {step}: {error!r}", flush=True)
            raise


def _die_if(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(number: int) -> None:
    """Be killed at the device-mapper call of that number from now on, before it is made."""
    import fcntl
    from types import SimpleNamespace

    from freezeframe.system import devmapper

    left = number

    def counted(descriptor: int, request: int, argument: bytearray, mutate: bool) -> int:
        nonlocal left
        left -= 1
        _die_if(left < 0)
        return int(fcntl.ioctl(descriptor, request, argument, mutate))

    devmapper.fcntl = SimpleNamespace(ioctl=counted)  # type: ignore[attr-defined, assignment]


def _overwrite(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, bytes(4096), 0)
    finally:
        os.close(descriptor)
