"""What the machine's disks hold, and how each would be taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freezeframe.app.backup import as_text, disk_record
from freezeframe.backup.plan import Source, plan_disks
from freezeframe.block.open import open_shared
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.image.manifest import DiskRecord
from freezeframe.system.disks import describe_source, list_disks
from freezeframe.system.holders import source_holders


@dataclass(frozen=True, slots=True)
class DiskView:
    """One disk as `freezeframe disks` shows it."""

    path: str
    #: How it would be taken, or why it cannot be looked at.
    state: str
    holders: tuple[str, ...]
    record: DiskRecord | None


def examine_disks(paths: Sequence[str] = ()) -> Iterator[DiskView]:
    """Look at the named disks, or at all of the machine; opens nothing exclusively.

    The used maps of a mounted filesystem are read from disk as they lie there, and may be
    older than what the kernel holds in memory: they are shown, never imaged.
    """
    for path in paths or [disk.path for disk in list_disks()]:
        try:
            holders = tuple(source_holders(path))
            with open_shared(path) as reader:
                about = describe_source(path)
                source = Source(reader, as_text(path), about.model, about.serial)
                (plan,) = plan_disks([source])
                record = disk_record(plan, Extents.empty())
        except FreezeframeError as error:
            yield DiskView(path, error.message, (), None)
            continue
        state = "in use: unmount it to image it" if holders else "offline, exclusively"
        yield DiskView(path, state, holders, record)
