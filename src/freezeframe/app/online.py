"""Make an image of disks that are in use, as of one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from freezeframe.app.backup import (
    BackupResult,
    as_text,
    disk_record,
    find_parents,
    new_manifest,
    pieces,
    region_title,
    without_repeats,
)
from freezeframe.app.bases import Trust, as_it_is, find_bases, source_of, take_over
from freezeframe.app.choose import machine_lacks
from freezeframe.app.company import Company, ShadowSettings, gather
from freezeframe.app.copies import Copied, Copies
from freezeframe.app.mounted import Mounted
from freezeframe.app.providers import Chosen, choose_provider, overrides
from freezeframe.app.session import index_for_writing
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.engine import HotEngine, HotResult
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.backup.hot.states import swap_stretches
from freezeframe.backup.hot.tracked import Tracked
from freezeframe.backup.hot.world import World
from freezeframe.backup.pipeline import Unreadable
from freezeframe.block.open import open_shared
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import RememberingReader
from freezeframe.core.clock import Clock, SystemClock
from freezeframe.core.errors import (
    FreezeframeError,
    RepositoryDamaged,
    SourceError,
    UsageError,
)
from freezeframe.core.progress import Progress
from freezeframe.core.units import GRANULE, MIB
from freezeframe.image.manifest import HotProof, Mode, Proof, TrackRecord
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY
from freezeframe.repo.writer import BlobWriter
from freezeframe.shadow.filesystems import disks_beneath
from freezeframe.shadow.outsiders import Outsider, find_outsiders
from freezeframe.shadow.stack import Stack
from freezeframe.store.local import LocalStore
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node
from freezeframe.tracking import (
    Tracker,
    forget_base,
    remember_base,
    start,
)

#: Bytes for what is read around the freeze, to begin with: more is taken when it is needed. A bit
#: above what is kept free before a freeze (`backup.hot.disk`), so that a quiet disk takes no more.
_FIRST_MEMORY = 20 * MIB


def backup_online(
    repository: Repository,
    paths: Sequence[str],
    progress: Progress,
    settings: HotSettings | None = None,
    *,
    shadow: ShadowSettings | None = None,
    decompress_every: int = DECOMPRESS_EVERY,
    clock: Clock | None = None,
) -> BackupResult:
    """Image disks in use, all of them in one image and as of one moment.

    Writers (applications) whose data lie wholly in the image share the moment, and so do
    volumes that another provider takes: their bytes are read from its copies, after it.
    Raises `UsageError` for what cannot be imaged so, `TrackingUnavailable`, `FreezeError` and
    its kind, `WriterVeto`, `NotConverging`; whatever fails, no image appears and nothing
    stays frozen. The trackers go on: the next image reads what changed.
    """
    settings, clock = settings or HotSettings(), clock or SystemClock()
    shadow = shadow or ShadowSettings()
    begun = clock.monotonic()
    with ExitStack() as stack:
        named = _nodes(paths)
        _refuse_own_store(repository, named)
        nodes, chosen = _divided(named, shadow)
        for path, each in chosen:
            progress.note(f"{path}: copied on write by {each.kind}: {each.reason}")
        stack.enter_context(repository.lock().begun())
        company = gather(list(named.values()), [each for _, each in chosen], shadow, progress)
        stack.callback(company.remember, clock)
        stack.enter_context(company.coordinator)
        trackers = {number: stack.enter_context(start(node)) for number, node in _wholes(nodes)}
        outsiders = find_outsiders(list(nodes.values()))
        frozen = [*nodes.values(), *_frozen_by_us(chosen)]
        # Early: its watchdog takes a moment to start.
        mounted = Mounted(frozen, outsiders, settings.freeze_limit)
        stack.callback(mounted.close)
        index = index_for_writing(repository, progress)
        disks = [
            _open(number, path, node, len(nodes), settings, outsiders, stack)
            for number, (path, node) in enumerate(nodes.items())
        ]
        copies = Copies(chosen, len(disks), stack)
        trust = find_bases(repository, index, disks, trackers, progress)
        parents = [disk.parent for disk in disks]
        live = [as_it_is(source) for source in copies.live]
        parents += find_parents(repository, index, live, progress)
        writer = stack.enter_context(
            BlobWriter(repository, index, decompress_every=decompress_every)
        )
        sizes = [*(disk.size for disk in disks), *copies.sizes]
        image = ImageWriter(repository, writer, sizes, parents)
        take_over(disks, trackers, trust, image, repository)
        world = World(
            disks=disks,
            sources=[source_of(disk) for disk in disks],
            tracked=_tracked(disks, trackers, settings),
            filesystems=mounted,
            image=image,
            progress=progress,
            settings=settings,
            content=_content(repository, index),
            flush=writer.flush,
            now=clock.now,
            company=None if company.empty else company.coordinator,
        )
        try:
            result = HotEngine(world).run()
        except RepositoryDamaged:
            # Built upon, it would fail each time: the next one reads everything.
            for tracker in trackers.values():
                forget_base(tracker, repository.config.id)
            raise
        copied = _finish_company(company, copies, result, image, progress, settings.threads)
        result = _joined(result, company, disks, copies, copied)
        _tell(result, progress)
        writer.flush()
        unreadable = sum(disk.unreadable.total for disk in disks) + copied.unreadable.total
        proof = Proof(
            bytes_read=sum(disk.bytes_read for disk in disks) + copied.bytes_read,
            bytes_new=writer.stats.plain_bytes,
            bytes_stored=writer.stats.stored_bytes,
            seconds=round(clock.monotonic() - begun, 3),
            unreadable_bytes=unreadable,
            decompressed_one_in=decompress_every,
        )
        missing = [disk.unreadable for disk in disks]
        missing += [copied.unreadable.of(number) for number in range(len(copied.plans))]
        starts = [disk.node.start for disk in disks] + [node.start for node in copies.nodes]
        records = tuple(
            msgspec.structs.replace(disk_record(plan, bad, states), start=begin)
            for plan, bad, states, begin in zip(
                result.plans, missing, result.states, starts, strict=True
            )
        )
        hot = _hot_proof(result.proof, disks, trust)
        snapshot, manifest = image.commit(
            new_manifest(Mode.ONLINE, result.moment, records, proof, hot, company.proof()),
            [plan.used for plan in result.plans],
            {plan.name: pieces(plan) for plan in result.plans},
            company.pieces(),
        )
        # Only now: until the image is durable, the one before is what the next builds on.
        for tracker in trackers.values():
            try:
                remember_base(tracker, repository.config.id, snapshot.id)
            except (OSError, FreezeframeError) as error:
                progress.note(f"the next image will be read in full: {error}")
    return BackupResult(snapshot, manifest, unreadable)


def _divided(
    named: Mapping[str, Node], shadow: ShadowSettings
) -> tuple[dict[str, Node], list[tuple[str, Chosen]]]:
    """Tell which volumes the engine takes itself, and which other providers do."""
    wanted = overrides(shadow.providers, named)
    stack, lacks = Stack(), machine_lacks()
    hot: dict[str, Node] = {}
    others: list[tuple[str, Chosen]] = []
    for path, node in named.items():
        chosen = choose_provider(node, wanted.get(node.number, ""), stack=stack, lacks=lacks)
        # Why the engine cannot take what nobody else takes, the engine says itself.
        if chosen.provider is None:
            hot[path] = node
        else:
            others.append((path, chosen))
    for path, chosen in others:
        below = stack.below_device(chosen.volume.node)
        if any(node.number in below.nodes for node in hot.values()):
            raise UsageError(
                f"{path} lies on a disk that is imaged as well",
                hint="name the disk alone: all that lies on it is frozen together",
            )
    return hot, others


def _frozen_by_us(chosen: Sequence[tuple[str, Chosen]]) -> list[Node]:
    """Return the volumes whose providers leave it to us to freeze what is mounted there."""
    return [
        each.volume.node
        for _, each in chosen
        if each.provider is not None and not each.provider.holds_filesystems
    ]


def _finish_company(
    company: Company,
    copies: Copies,
    result: HotResult,
    image: ImageWriter,
    progress: Progress,
    threads: int | None,
) -> Copied:
    """Have the writers finish, read the copies, and remove them."""
    coordinator = company.coordinator
    if company.empty:
        return Copied((), (), Unreadable(0))
    coordinator.finish(taken=True)
    names = [plan.name for plan in result.plans]
    copied = copies.store(
        coordinator.shadows(), image, progress, coordinator.check, taken=names, threads=threads
    )
    try:
        coordinator.release()
    except FreezeframeError as error:
        # The image is good; what stays is told, and tried again by the next run.
        progress.note(f"{error.message}; {error.hint}")
    return copied


def _joined(
    result: HotResult,
    company: Company,
    disks: Sequence[HotDisk],
    copies: Copies,
    copied: Copied,
) -> HotResult:
    """Return the result with the copies' disks, and with what the writers say of all regions."""
    plans = (*result.plans, *copied.plans)
    nodes = [*(disk.node for disk in disks), *copies.nodes]
    states = tuple(
        company.states(each, plan.layout, node)
        for each, plan, node in zip((*result.states, *copied.states), plans, nodes, strict=True)
    )
    return replace(result, plans=plans, states=states)


# -- what is imaged ---------------------------------------------------------------------


def _nodes(paths: Sequence[str]) -> dict[str, Node]:
    """Return the devices by the paths they were named. Raises `UsageError`."""
    if not paths:
        raise UsageError(
            "no disk to image was named",
            hint="name devices; `freezeframe disks` lists this machine's",
        )
    found: dict[str, Node] = {}
    for path in without_repeats(paths):
        node = sysfs.node_of(path)
        if node is None:
            if not Path(path).exists():
                raise SourceError(f"{path} does not exist", hint="`freezeframe disks` lists disks")
            raise UsageError(
                f"{path} is a file: only devices can be imaged while they are in use",
                hint="nobody must write to it: use --offline",
            )
        found[path] = node
    return found


def _wholes(nodes: Mapping[str, Node]) -> list[tuple[str, Node]]:
    return list({node.whole.number: node.whole for node in nodes.values()}.items())


def _refuse_own_store(repository: Repository, nodes: Mapping[str, Node]) -> None:
    """Refuse a repository on a disk that is imaged: each pass would make the next one longer."""
    if not isinstance(repository.store, LocalStore):
        return
    found = disks_beneath(repository.store.location, list(nodes.values()))
    if found:
        path = next(path for path, node in nodes.items() if node.number == found[0].number)
        raise UsageError(
            f"the repository {repository.store.location} lies on {path}, which is to be imaged",
            hint="keep the repository on another disk: this one's failure would take both",
        )


def _open(
    number: int,
    path: str,
    node: Node,
    count: int,
    settings: HotSettings,
    outsiders: Sequence[Outsider],
    stack: ExitStack,
) -> HotDisk:
    reader = stack.enter_context(open_shared(path))
    return HotDisk(
        number=number,
        path=as_text(Path(path).absolute()),
        node=node,
        reader=reader,
        memory=RememberingReader(reader),
        overlay=GranuleOverlay(reader.size, min(_FIRST_MEMORY, settings.residual_memory) // count),
        never=swap_stretches(node, outsiders).clip(0, reader.size),
    )


def _tracked(
    disks: Sequence[HotDisk], trackers: Mapping[str, Tracker], settings: HotSettings
) -> list[Tracked]:
    room = settings.residual_memory // GRANULE * 2
    return [
        Tracked(
            tracker,
            [disk for disk in disks if disk.node.whole.number == number],
            np.zeros(min(room, tracker.granules), np.int64),
        )
        for number, tracker in trackers.items()
    ]


def _content(repository: Repository, index: Index) -> Callable[[bytes], bytes]:
    blobs = BlobReader(repository, index)
    return lambda blob_id: blobs.read(BlobKind.DATA, blob_id)


# -- what is told ---------------------------------------------------------------------------


def _tell(result: HotResult, progress: Progress) -> None:
    """Say what an administrator must know of the image."""
    for plan, states in zip(result.plans, result.states, strict=True):
        for note in plan.layout.notes:
            progress.note(f"{plan.name}: {note}")
        for part in plan.regions:
            state = states.get(part.region.start)
            notes = part.content.notes if part.content else ()
            for note in dict.fromkeys((*notes, *((state.note,) if state and state.note else ()))):
                progress.note(f"{plan.name} {region_title(part)}: {note}")


def _hot_proof(proof: HotProof, disks: Sequence[HotDisk], trust: Sequence[Trust]) -> HotProof:
    records = tuple(
        TrackRecord(
            disk=disk.path,
            marks=disk.marks,
            bytes_read=disk.bytes_read,
            base=each.base,
            distrust=each.distrust,
            changed=each.changed,
        )
        for disk, each in zip(disks, trust, strict=True)
    )
    return msgspec.structs.replace(proof, disks=records)
