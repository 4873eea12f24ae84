"""Make an image of disks that are not in use."""

from __future__ import annotations

import datetime as dt
import os
import platform
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

import freezeframe
from freezeframe.app.session import index_for_writing
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.pipeline import Unreadable, store_chunks
from freezeframe.backup.plan import DiskPlan, PlannedRegion, Source, plan_disks, safe_name
from freezeframe.block.open import open_shared, open_source
from freezeframe.core.clock import Clock, SystemClock
from freezeframe.core.errors import FreezeframeError, SourceBusy, UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import SEGMENT
from freezeframe.fs.base import UsedMap
from freezeframe.image import manifest as manifests
from freezeframe.image.manifest import (
    Consistency,
    DiskRecord,
    Host,
    HotProof,
    Manifest,
    Mode,
    Origin,
    Proof,
    RegionRecord,
    ShadowProof,
    VolumeRecord,
)
from freezeframe.image.parent import ParentDisk, matching, parent_disk
from freezeframe.image.reader import ImageReader, images
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.index import Index
from freezeframe.repo.repository import Repository
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.writer import BlobWriter
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_source
from freezeframe.system.holders import source_holders


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What a backup made."""

    snapshot: Snapshot
    manifest: Manifest
    #: Bytes that could not be read and are zeros in the image.
    unreadable: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What an image is made of that is no disk of this machine."""

    origin: Origin
    #: The name of the machine it is of.
    host: str
    #: What each path that is read stands for.
    names: Mapping[str, str]
    #: Paths that are shown by a program of ours: nobody else writes there, whatever time it tells.
    shown: frozenset[str]

    def described(self, manifest: Manifest) -> Manifest:
        """Return a manifest that says so."""
        return msgspec.structs.replace(manifest, origin=self.origin, host=Host(name=self.host))


def backup_offline(
    repository: Repository,
    paths: Sequence[str],
    progress: Progress,
    *,
    everything: bool = False,
    decompress_every: int = DECOMPRESS_EVERY,
    threads: int | None = None,
    clock: Clock | None = None,
    granular: bool = True,
    imported: Imported | None = None,
) -> BackupResult:
    """Image disks with exclusive access, all of them in one image.

    `granular` is for measurements only (see `ImageWriter`). With `imported` the paths stand
    for something else, which the manifest names.
    Raises `SourceBusy` where one is in use; whatever fails, no image appears.
    """
    if not paths:
        raise UsageError(
            "no disk to image was named",
            hint="name devices or disk image files; `freezeframe disks` lists this machine's",
        )
    clock = clock or SystemClock()
    begun, created = clock.monotonic(), clock.now()
    with ExitStack() as stack:
        named = without_repeats(paths)
        sources = [_open(path, stack, imported) for path in named]
        stack.enter_context(repository.lock().begun())
        index = index_for_writing(repository, progress)
        plans = plan_disks(sources, everything=everything)
        for plan in plans:
            _tell(plan, progress)
        # What cannot be written down must be known now, not after hours.
        manifests.encode(_manifest(plans, Unreadable(len(plans)), created, Proof()))
        records = [disk_record(plan, Extents.empty()) for plan in plans]
        parents = find_parents(repository, index, records, progress)
        writer = stack.enter_context(
            BlobWriter(repository, index, decompress_every=decompress_every)
        )
        sizes = [plan.layout.size for plan in plans]
        image = ImageWriter(repository, writer, sizes, parents, granular=granular)
        progress.start("image", sum(plan.to_read.total for plan in plans))
        unreadable = store_chunks(plans, image, progress, threads=threads)
        writer.flush()
        for path in named:
            # A mount that was read-only at the start may have been made writable since.
            if holders := source_holders(path):
                raise SourceBusy(path, holders, hint="no image was made: run it again")
        proof = Proof(
            bytes_read=sum(plan.to_read.total for plan in plans) - unreadable.total,
            bytes_new=writer.stats.plain_bytes,
            bytes_stored=writer.stats.stored_bytes,
            seconds=round(clock.monotonic() - begun, 3),
            unreadable_bytes=unreadable.total,
            decompressed_one_in=decompress_every,
        )
        manifest = _manifest(plans, unreadable, created, proof)
        if imported is not None:
            manifest = imported.described(manifest)
        snapshot, manifest = image.commit(
            manifest, [plan.used for plan in plans], {plan.name: pieces(plan) for plan in plans}
        )
    return BackupResult(snapshot, manifest, unreadable.total)


def without_repeats(paths: Sequence[str]) -> list[str]:
    """Drop a disk that is named twice, by whatever names; what cannot be reached is kept.

    Raises `UsageError` where a disk and a partition of it are named, or a loop device and the
    file beneath it.
    """
    kept: dict[tuple[str, int, int], str] = {}
    parts: dict[str, str] = {}
    wholes: dict[str, str] = {}
    for path in paths:
        identity = _identity(path)
        if identity in kept:
            continue
        kept[identity] = path
        if (node := sysfs.node_of(path)) is not None:
            (parts if node.partition else wholes)[node.whole.number] = path
    for number in parts.keys() & wholes.keys():
        raise UsageError(
            f"{parts[number]} is a partition of {wholes[number]}",
            hint="the disk is imaged with its partitions: name the disk alone",
        )
    for path in wholes.values():
        node = sysfs.node_of(path)
        backing = sysfs.loop_backing(node) if node is not None else None
        if backing is not None and ("file", *backing) in kept:
            raise UsageError(
                f"{kept['file', *backing]} is the file beneath {path}", hint="name one of them"
            )
    return list(kept.values())


def _identity(path: str) -> tuple[str, int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return path, 0, 0
    if stat.S_ISBLK(status.st_mode):
        return "device", status.st_rdev, 0
    return "file", status.st_dev, status.st_ino


def _open(path: str, stack: ExitStack, imported: Imported | None) -> Source:
    if imported is not None:
        opener = open_shared if path in imported.shown else open_source
        reader = stack.enter_context(opener(path))
        return Source(reader, imported.names[path], shown_at=path)
    reader = stack.enter_context(open_source(path))
    about = describe_source(path)
    return Source(reader, as_text(Path(path).absolute()), about.model, about.serial)


def as_text(path: str | Path) -> str:
    """Return a path as it stands in a manifest: names of files are bytes, those are text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _tell(plan: DiskPlan, progress: Progress) -> None:
    """Say what an administrator must know before the image is made."""
    for note in plan.layout.notes:
        progress.note(f"{plan.name}: {note}")
    for part in plan.regions:
        for note in part.content.notes if part.content else ():
            progress.note(f"{plan.name} {region_title(part)}: {note}")


def region_title(part: PlannedRegion) -> str:
    """Name a region as messages do: `partition 2 (ext4)`."""
    content = f" ({part.content.kind})" if part.content else ""
    number = f" {part.region.number}" if part.region.number else ""
    return f"{part.region.role.value}{number}{content}"


def find_parents(
    repository: Repository, index: Index, records: Sequence[DiskRecord], progress: Progress
) -> list[ParentDisk | None]:
    """Find what the newest image of each disk has of it; None where there is none.

    `records` are the disks as they are now. What is damaged of one is told and left out: it
    is then hashed and looked up anew.
    """
    found: list[ParentDisk | None] = [None] * len(records)
    host = platform.node()

    def tell(error: FreezeframeError) -> None:
        progress.note(f"{error.message}; not built upon")

    for snapshot in reversed(images(repository, on_damage=tell)):
        wanted = {record.path for record, have in zip(records, found, strict=True) if not have}
        if snapshot.hostname != host or not wanted & set(snapshot.paths):
            continue
        try:
            image = ImageReader(repository, index, snapshot)
            for number, ours in enumerate(records):
                theirs = matching(image, host=host, like=ours) if found[number] is None else None
                if theirs is not None:
                    found[number] = parent_disk(image, theirs, tell)
        except FreezeframeError as error:
            tell(error)
        if all(found):
            break
    return found


# -- from plans to records ------------------------------------------------------------


def this_host() -> Host:
    """Describe the machine the program runs on."""
    try:
        machine_id = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        machine_id = ""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return Host(
        name=platform.node(),
        kernel=platform.release(),
        system=system,
        machine_id=machine_id,
        firmware="uefi" if Path("/sys/firmware/efi").exists() else "bios",
    )


def _manifest(
    plans: Sequence[DiskPlan], unreadable: Unreadable, created: dt.datetime, proof: Proof
) -> Manifest:
    disks = tuple(disk_record(plan, unreadable.of(number)) for number, plan in enumerate(plans))
    return new_manifest(Mode.OFFLINE, created, disks, proof)


def new_manifest(
    mode: Mode,
    created: dt.datetime,
    disks: tuple[DiskRecord, ...],
    proof: Proof,
    hot: HotProof | None = None,
    shadow: ShadowProof | None = None,
) -> Manifest:
    """Write down an image of this machine made by this program."""
    return Manifest(
        format=manifests.FORMAT,
        program=f"freezeframe {freezeframe.__version__}",
        created=created,
        mode=mode,
        host=this_host(),
        disks=disks,
        proof=proof,
        hot=hot,
        shadow=shadow,
    )


def disk_record(
    plan: DiskPlan, unreadable: Extents, states: Mapping[int, RegionState] | None = None
) -> DiskRecord:
    """Write down one disk as it was imaged; `states` of its regions where it was in use."""
    known = states or {}
    return DiskRecord(
        name=plan.name,
        path=plan.source.path,
        size=plan.layout.size,
        sector=plan.layout.sector,
        table=plan.layout.table.value,
        disk_id=plan.layout.disk_id,
        model=plan.source.model,
        serial=plan.source.serial,
        segment=SEGMENT,
        used=plan.used.total,
        regions=tuple(region_record(part, known.get(part.region.start)) for part in plan.regions),
        unreadable=manifests.pairs(unreadable),
        notes=plan.layout.notes,
    )


def region_record(part: PlannedRegion, state: RegionState | None = None) -> RegionRecord:
    """Write down one region, and how it was taken where the disk was in use."""
    region, content = part.region, part.content or UsedMap("", part.used, True)
    return RegionRecord(
        role=region.role.value,
        start=region.start,
        length=region.length,
        number=region.number,
        type_code=region.type_code,
        type_name=region.type_name,
        name=region.name,
        uuid=region.uuid,
        bootable=region.bootable,
        content=content.kind,
        label=content.label,
        content_uuid=content.uuid,
        block_size=content.block_size,
        span=content.span,
        used=part.used.total,
        understood=content.understood,
        consistency=state.consistency if state is not None else Consistency.EXCLUSIVE,
        notes=content.notes,
        volumes=tuple(
            VolumeRecord(
                name=name,
                content=inner.kind,
                size=inner.span,
                used=inner.used.total,
                label=inner.label,
                content_uuid=inner.uuid,
                understood=inner.understood,
                notes=inner.notes,
            )
            for name, inner in content.inside.items()
        ),
    )


def pieces(plan: DiskPlan) -> dict[str, bytes]:
    """Collect the files of `layout/<disk>`: of the table, and of what is in the partitions."""
    found = dict(plan.layout.pieces)
    for part in plan.regions:
        for name, data in (part.content.pieces if part.content else {}).items():
            plain = safe_name(name)
            found[f"{part.region.role.value}-{part.region.number}-{plain}"] = data
    return found
