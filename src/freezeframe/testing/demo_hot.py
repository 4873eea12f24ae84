"""The demo's second part: a disk is imaged twice while a program hammers it, and comes back.

The program appends records to two filesystems in turn, each record durable before the next.
An image of one moment holds them without a gap, and the two filesystems agree within one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.app.choose import machine_lacks
from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import MIB, human_size
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.demo_steps import Demo, Different, Row, check, image_ids
from freezeframe.testing.frozen import RecordWriter, running_writer
from freezeframe.testing.program import PROGRAM
from freezeframe.testing.tracking import ensure_mounts
from freezeframe.testing.volumes import mounted, mounted_device, survey
from freezeframe.tracking.tracker import stop_number

#: Bytes this part takes: the disk, what of it is stored, and one restored copy at a time.
ROOM = 2048 * MIB
_SIZE = 640 * MIB
_TABLE = b"label: gpt\nsize=262MiB, name=first\nname=second\n"
_KINDS = ("ext4", "xfs")
_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
#: Files that nobody writes to, and one that is written all over: bytes on each filesystem.
_CALM, _STIRRED = 64 * MIB, 32 * MIB

#: A record on the first filesystem, then the same on the second, each with fsync; between
#: them pages at random on both. For each pair of records a dot.
_WRITER = """
import os, random, sys
folders, size = sys.argv[2:], int(sys.argv[1])
records = [os.open(f"{f}/records", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for f in folders]
pages = [os.open(f"{f}/pages", os.O_RDWR) for f in folders]
number = 0
while True:
    for file in records:
        os.write(file, b"record %010d\\n" % number)
        os.fsync(file)
    os.write(1, b".")
    number += 1
    for file in pages:
        for _ in range(8):
            os.pwrite(file, random.randbytes(4096), random.randrange(size // 4096) * 4096)
        os.fdatasync(file)
"""


#: Some kernels leave out a write now and then, which makes the next image a full read.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Taken:
    """An image that was made while the writer wrote."""

    id: str
    #: Pairs of records durable before it was begun, and after it was made.
    before: int
    after: int


def image_in_use(demo: Demo) -> None:
    """Do it, or say why this machine cannot. Raises `Different` where it went wrong."""
    with contextlib.suppress(ToolFailed):
        ensure_mounts()
    if lacks := machine_lacks():
        text = f"not on this machine, which lacks: {', '.join(lacks)}"
        demo.say(f"\n── Imaging a disk in use: {text}")
        demo.rows.append(Row("image a disk in use", result=text))
        return
    disk = demo.folder / "hot.img"
    with _mounted_disk(demo, disk) as (device, points), _writer(points) as writer:
        first = _image(demo, writer, device, "image a disk in use")
        second = _image(demo, writer, device, "image it again")
        for _ in range(_TRIES):
            left_out = [why for why in _hot(second.id).distrust if "did not tell" in why]
            if not left_out:
                break
            demo.say(f"  {left_out[0]}: that is why it was read in full; once more")
            first, second = second, _image(demo, writer, device, "and again")
    _trusted(demo, first, second)
    demo.say(f"\nThe writer was at record {second.after} when it was stopped.")
    for taken, name in ((first, "first"), (second, "second")):
        _restore(demo, taken, name)
    disk.unlink()


@contextlib.contextmanager
def _mounted_disk(demo: Demo, disk: Path) -> Iterator[tuple[str, list[Path]]]:
    """Give a disk with two mounted filesystems; in the end nothing of it is left attached."""
    with contextlib.ExitStack() as stack:
        with demo.step("Making a disk that will be in use", "make a disk to be used") as row:
            with disk.open("xb") as file:
                file.truncate(_SIZE)
            run(("sfdisk", "-q", str(disk)), stdin=_TABLE)
            device = stack.enter_context(attached(disk, partitions=True))
            stack.callback(_stop_tracking, device)
            points = [_fill(stack, demo, device, number) for number in (1, 2)]
            row.size, row.result = human_size(_SIZE), f"{' and '.join(_KINDS)}, mounted"
        yield device, points


def _fill(stack: contextlib.ExitStack, demo: Demo, device: str, number: int) -> Path:
    kind, part = _KINDS[number - 1], f"{device}p{number}"
    run((*_MAKE[kind], part))
    point = demo.folder / f"mounted-{kind}"
    point.mkdir()
    stack.callback(point.rmdir)
    stack.enter_context(mounted_device(part, kind, point, read_only=False))
    for name, size in (("calm", _CALM), ("pages", _STIRRED)):
        with (point / name).open("wb") as file:
            file.write(os.urandom(size))
    demo.say(f"  {part}: {kind}, mounted at {point}")
    return point


def _stop_tracking(device: str) -> None:
    node = sysfs.node_of(device)
    if node is not None:
        stop_number(node.whole.number)


def _writer(points: list[Path]) -> contextlib.AbstractContextManager[RecordWriter]:
    """Have the program write until the end."""
    return running_writer(_WRITER, str(_STIRRED), *points)


def _image(demo: Demo, writer: RecordWriter, device: str, name: str) -> _Taken:
    words = "Imaging the disk while a program writes records and random pages to both filesystems"
    with demo.step(words, name) as row:
        writer.wait_for_more()
        before = writer.written()
        demo.program("backup", "--online", device)
        after = writer.written()
        image = image_ids()[-1]
        hot = _hot(image)
        row.size = human_size(hot.bytes_read)
        row.result = f"image {image[:8]}, paused for {hot.pause_ms:.0f} ms; bytes are those read"
        demo.say(f"  the writer wrote {after - before} pairs of records meanwhile")
        writer.wait_for_more()
    return _Taken(image, before, after)


@dataclass(frozen=True, slots=True)
class _Hot:
    """What the demo wants to know of the proof."""

    pause_ms: float
    bytes_read: int
    base: str
    #: Why marks were not trusted.
    distrust: tuple[str, ...]


def _hot(image: str) -> _Hot:
    shown = run((str(PROGRAM), "show", image, "--json")).stdout.decode().splitlines()[0]
    hot = json.loads(shown)["manifest"]["hot"]
    (disk,) = hot["disks"]
    distrust = tuple(disk.get("distrust", ()))
    return _Hot(hot["pause_ms"], disk["bytes_read"], disk.get("base", ""), distrust)


def _trusted(demo: Demo, first: _Taken, second: _Taken) -> None:
    """Make sure that the second image built on the first."""
    with demo.step("Looking at the proof of the second image", "proof of the second") as row:
        demo.program("show", second.id)
        earlier, later = _hot(first.id), _hot(second.id)
        if later.base != first.id:
            raise Different("the second image did not trust the marks since the first")
        row.size = human_size(later.bytes_read)
        row.result = f"marks trusted; the first read {human_size(earlier.bytes_read)}"


def _restore(demo: Demo, taken: _Taken, name: str) -> None:
    """Restore an image onto a blank disk, check it, and read the records."""
    words = f"Restoring the {name} image of the disk in use, and reading the records"
    with demo.step(words, f"restore {name} of the used") as row:
        target = demo.folder / "hot-restored.img"
        demo.program("restore", taken.id, "--to", str(target), "--yes")
        disk = survey(target)
        xfs = disk.volume("xfs")
        demo.say("mounting its xfs once: frozen, it leaves its log to be replayed")
        with mounted(target, disk.sector, xfs, read_only=False):
            pass
        checkers = check(demo, target)
        counts = []
        for kind in _KINDS:
            with mounted(target, disk.sector, disk.volume(kind)) as root:
                counts.append(_records(root / "records"))
                demo.say(f"  {kind}: {counts[-1]} records without a gap")
        first, second = counts
        if not (second <= first <= second + 1):
            raise Different(f"{first} records on one filesystem and {second} on the other")
        if not taken.before <= second <= taken.after + 1:
            raise Different(f"record {second} was not written while the image was made")
        demo.say("  the two filesystems are of one moment")
        row.size = human_size(target.stat().st_blocks * 512)
        row.result = f"{checkers} checks clean, {first} + {second} records, no gap"
        target.unlink()


def _records(path: Path) -> int:
    """Return how many records a file holds. Raises `Different` for a gap, or half a record."""
    data = path.read_bytes()
    count = data.count(b"\n")
    if data != b"".join(b"record %010d\n" % number for number in range(count)):
        raise Different(f"the records of {path.name} have a gap")
    return count
