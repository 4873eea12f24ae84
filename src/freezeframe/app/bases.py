"""What is known of disks in use from before: the image that theirs may be built on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freezeframe.app.backup import disk_record, find_parents
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.tracked import on_source
from freezeframe.backup.plan import Source, plan_disks
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import GRANULE
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.parent import ParentDisk, parent_disk
from freezeframe.image.reader import ImageReader, images
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.index import Index
from freezeframe.repo.repository import Repository
from freezeframe.system.disks import describe_source
from freezeframe.tracking import Distrust, Tracker, changed_since


@dataclass(slots=True)
class Trust:
    """What is known of a disk from before."""

    base: str = ""
    distrust: tuple[str, ...] = ()
    changed: int = 0


def find_bases(
    repository: Repository,
    index: Index,
    disks: Sequence[HotDisk],
    trackers: Mapping[str, Tracker],
    progress: Progress,
) -> list[Trust]:
    """Find the image each disk may be built on: the trackers' own base, or the newest."""
    trust: list[Trust] = []
    shots = {shot.id: shot for shot in images(repository, on_damage=lambda _: None)}

    def tell(error: FreezeframeError) -> None:
        progress.note(f"{error.message}; not built upon")

    for disk in disks:
        tracker = trackers[disk.node.whole.number]
        known = changed_since(tracker, repository.config.id)
        if isinstance(known, Distrust):
            trust.append(Trust(distrust=known.reasons))
            continue
        shot = shots.get(known.image_id)
        parent: ParentDisk | None = None
        reason = "its last image is no longer in the repository"
        if shot is not None:
            try:
                image = ImageReader(repository, index, shot)
                # The tracker vouches for the disk itself; what of it was imaged is told here.
                # The start, too: a partition may have been given another's number and size.
                wanted = (disk.path, disk.size, disk.node.start)
                record = next(
                    (r for r in image.manifest.disks if (r.path, r.size, r.start) == wanted), None
                )
                reason = f"its last image ({shot.short_id}) is of other devices"
                if record is not None:
                    parent = parent_disk(image, record, tell)
            except FreezeframeError as error:
                reason = error.message
        if parent is None:
            trust.append(Trust(distrust=(reason,)))
            continue
        disk.parent = parent
        trust.append(Trust(base=known.image_id))
    rest = [disk for disk, each in zip(disks, trust, strict=True) if not each.base]
    found = find_parents(repository, index, [as_it_is(source_of(disk)) for disk in rest], progress)
    for disk, parent in zip(rest, found, strict=True):
        disk.parent = parent
    return trust


def source_of(disk: HotDisk) -> Source:
    """Return a disk as plans name it."""
    about = describe_source(disk.node.path)
    return Source(disk.memory, disk.path, about.model, about.serial)


def as_it_is(source: Source) -> DiskRecord:
    """Describe a disk from its bytes as they lie there now, moving or not."""

    def read(reader: RegionReader, peers: Peers) -> UsedMap:
        return used_map(reader, peers, state=State.LIVE)

    (plan,) = plan_disks([source], read_map=read)
    return disk_record(plan, Extents.empty())


def take_over(
    disks: Sequence[HotDisk],
    trackers: Mapping[str, Tracker],
    trust: Sequence[Trust],
    image: ImageWriter,
    repository: Repository,
) -> None:
    """Begin the image with what the trusted base has and nobody has written since."""
    for disk, each in zip(disks, trust, strict=True):
        if not each.base:
            continue
        pending = trackers[disk.node.whole.number].pending(repository.config.id)
        if pending is None:
            continue
        granules = on_source(pending.granules(), disk)
        changed = Extents.from_blocks(granules, GRANULE).clip(0, disk.size)
        each.changed = changed.total
        image.take_over(disk.number, disk.take_from_parent(changed))
