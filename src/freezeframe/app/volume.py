"""Bring a logical volume back that lies inside of an image's disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.cache import BlobCache
from freezeframe.access.disk import ImageDisk
from freezeframe.app.restore import (
    RestoreOptions,
    existing_target,
    give_name,
    new_file,
    said_incomplete,
)
from freezeframe.block.base import Writer
from freezeframe.block.open import open_target
from freezeframe.block.window import Window
from freezeframe.core.errors import UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.fs.lvm import open_volumes
from freezeframe.fs.lvm.volume import LogicalVolume
from freezeframe.image.reader import ImageReader
from freezeframe.layout.base import Role
from freezeframe.restore.volume import VolumePlan, execute_volume, plan_volume, survey_volume


@dataclass(frozen=True, slots=True)
class PreparedVolume:
    """A plan and what is needed to execute it."""

    plan: VolumePlan
    volume: LogicalVolume
    options: RestoreOptions
    #: The target, open since it was looked at.
    held: Writer | None = None


@contextmanager
def prepared_volume(
    image: ImageReader, options: RestoreOptions, progress: Progress
) -> Iterator[PreparedVolume]:
    """Decide what will be written where; with `changed_only`, look at the target first.

    It is then held from that look on, and released by `execute_prepared` or in the end.
    Raises `UsageError` where the image has no such volume.
    """
    if options.partition is not None or options.disk or options.grow or options.shrink:
        raise UsageError(
            "--volume goes with none of --disk, --partition, --grow and --shrink",
            hint="a volume is restored as it was; then grow its filesystem",
        )
    with ExitStack() as stack:
        volume, used = _opened(image, options.volume, stack)
        target = existing_target(image, options) or new_file(options, volume.size)
        if options.changed_only and target.blank:
            raise UsageError(
                f"there is no {options.to} yet, so that nothing of it could be kept",
                hint="leave --changed-only out",
            )
        plan = plan_volume(
            image.snapshot.short_id,
            volume.name,
            volume.size,
            used,
            target,
            zero_unused=options.zero_unused,
            discard=options.discard and not options.changed_only,
        )
        held = None
        if options.changed_only:
            held = stack.enter_context(open_target(target.path))
            plan = survey_volume(plan, volume, held, progress, threads=options.threads)
        yield PreparedVolume(plan, volume, options, held)


def _opened(image: ImageReader, name: str, stack: ExitStack) -> tuple[LogicalVolume, Extents]:
    """Open a volume and tell what of it is in use, as the image has it."""
    cache = stack.enter_context(BlobCache())
    windows: list[Window] = []
    used: list[Extents] = []
    for record in image.manifest.disks:
        regions = [r for r in record.regions if r.role in (Role.PARTITION, Role.WHOLE)]
        if not any(region.content == "lvm2" for region in regions):
            continue
        disk = stack.enter_context(ImageDisk(image, record, cache=cache))
        held = image.disk_blobs(record).used
        for region in regions:
            windows.append(Window(disk, region.start, region.length))
            used.append(held.clip(region.start, region.start + region.length).shift(-region.start))
    volumes = {volume.name: volume for volume in open_volumes(windows)}
    if name not in volumes:
        known = ", ".join(volumes) or "none that can be read by itself"
        raise UsageError(f"the image has no logical volume {name}", hint=f"it has: {known}")
    volume = volumes[name]
    parts = {
        physical: used[next(n for n, window in enumerate(windows) if window is reader)]
        for physical, reader in volume.devices.items()
    }
    return volume, volume.from_physical(parts)


def execute_prepared(prepared: PreparedVolume, progress: Progress) -> int:
    """Do what the plan says; return how many bytes of data were written."""
    plan, threads = prepared.plan, prepared.options.threads
    if not plan.target.blank:
        with (
            prepared.held or open_target(plan.target.path) as writer,
            said_incomplete(plan.target.path),
        ):
            return execute_volume(plan, prepared.volume, writer, progress, threads=threads)
    final = Path(plan.target.path)
    unfinished = final.with_name(f"{final.name}.unfinished-{os.getpid()}")
    try:
        with open_target(unfinished, size=plan.target.size) as writer:
            written = execute_volume(plan, prepared.volume, writer, progress, threads=threads)
        give_name(unfinished, final)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return written
