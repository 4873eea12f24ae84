"""Tell how one image differs from another: disk by disk, region by region."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from freezeframe.core.errors import UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK, human_size
from freezeframe.image.compare import Comparison, compare_disks
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import ImageReader
from freezeframe.layout.base import Role


@dataclass(frozen=True, slots=True)
class RegionChange:
    """What of one region differs. Bytes of the disk."""

    region: RegionRecord
    #: Blobs that differ; those that may (stored in different pieces).
    changed: Extents
    unclear: Extents
    #: Bytes that came into use, and that are no longer in use.
    gained: int
    freed: int

    @property
    def chunks(self) -> int:
        """How many chunks of 1 MiB hold anything that differs or may."""
        return len((self.changed | self.unclear).units(CHUNK))

    @property
    def same(self) -> bool:
        """Whether nothing of it differs."""
        return not (self.changed or self.unclear or self.gained or self.freed)


@dataclass(frozen=True, slots=True)
class DiskChange:
    """What of one disk differs. One of `old` and `new` is None where only one image has it."""

    old: DiskRecord | None
    new: DiskRecord | None
    regions: tuple[RegionChange, ...] = ()
    #: What happened to the disk and its partitions, in sentences.
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> DiskRecord:
        """The disk as it is in the newer image that has it."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def same(self) -> bool:
        """Whether nothing of it differs."""
        both = self.old is not None and self.new is not None
        return both and not self.notes and all(change.same for change in self.regions)


def compare_images(
    old: ImageReader, new: ImageReader, progress: Progress, *, disk: str = "", exact: bool = False
) -> list[DiskChange]:
    """Compare all disks of two images, or the one named, of the newer or the older one.

    Without `exact` no data is read: see `image.compare`. Raises `UsageError` where no image
    has that disk.
    """
    pairs = list(_pairs(old.manifest.disks, new.manifest.disks))
    if disk:
        pairs = [pair for pair in pairs if any(d and disk in (d.name, d.path) for d in pair)]
        if not pairs:
            raise UsageError(f"neither image has a disk {disk}")
    changes = []
    for was, now in pairs:
        if was is None or now is None:
            changes.append(DiskChange(was, now))
            continue
        found = compare_disks(old, was, new, now, progress, exact=exact)
        changes.append(DiskChange(was, now, tuple(_regions(was, now, found)), _notes(was, now)))
    return changes


def _pairs(
    olds: tuple[DiskRecord, ...], news: tuple[DiskRecord, ...]
) -> Iterator[tuple[DiskRecord | None, DiskRecord | None]]:
    """Find for each disk the one it was: by its table's id, then by name, then by being alone."""
    left = list(olds)
    if len(olds) == len(news) == 1:
        yield olds[0], news[0]
        return
    for now in news:
        known = [was for was in left if now.disk_id and was.disk_id == now.disk_id]
        known = known or [was for was in left if was.name == now.name]
        if known:
            left.remove(known[0])
        yield (known[0] if known else None), now
    for was in left:
        yield was, None


def _regions(was: DiskRecord, now: DiskRecord, found: Comparison) -> Iterator[RegionChange]:
    """Give what each region of the newer disk has of the differences, then of what was cut off."""
    beyond = [r for r in was.regions if r.start >= now.size]
    for region in (*now.regions, *beyond):
        start, stop = region.start, region.start + region.length
        yield RegionChange(
            region=region,
            changed=found.changed.clip(start, stop),
            unclear=found.unclear.clip(start, stop),
            gained=found.gained.clip(start, stop).total,
            freed=found.freed.clip(start, stop).total,
        )


def _notes(was: DiskRecord, now: DiskRecord) -> tuple[str, ...]:
    notes = []
    if was.size != now.size:
        notes.append(f"the disk had {human_size(was.size)} and has {human_size(now.size)}")
    if was.table != now.table:
        notes.append(f"its table was {was.table} and is {now.table}")
    elif was.disk_id != now.disk_id:
        notes.append(f"its id was {was.disk_id or 'none'} and is {now.disk_id or 'none'}")
    olds = {r.number: r for r in was.regions if r.role in (Role.PARTITION, Role.WHOLE)}
    news = {r.number: r for r in now.regions if r.role in (Role.PARTITION, Role.WHOLE)}
    for number in sorted(olds.keys() | news.keys()):
        name = f"partition {number}" if number else "what is on it"
        one, other = olds.get(number), news.get(number)
        if one is None or other is None:
            notes.append(f"{name} is {'new' if one is None else 'gone'}")
            continue
        notes += [f"{name} {what}" for what in _moved(one, other)]
    return tuple(notes)


def _moved(one: RegionRecord, other: RegionRecord) -> Iterator[str]:
    if one.start != other.start:
        yield f"began at {human_size(one.start)} and begins at {human_size(other.start)}"
    if one.length != other.length:
        yield f"had {human_size(one.length)} and has {human_size(other.length)}"
    if one.content != other.content:
        yield f"held {one.content or 'nothing known'} and holds {other.content or 'nothing known'}"
    elif one.content_uuid != other.content_uuid:
        yield f"holds another {other.content} than before"
