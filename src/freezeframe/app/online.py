"""Make an image of disks that are in use, as of one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from freezeframe.app.session import index_for_writing
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.engine import HotEngine, HotResult
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.backup.hot.states import RegionState, region_states, swap_stretches
from freezeframe.backup.hot.tracked import Tracked, on_source
from freezeframe.backup.hot.world import World
from freezeframe.backup.plan import Source, plan_disks
from freezeframe.block.open import open_shared
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import RememberingReader
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.clock import Clock, SystemClock
from freezeframe.core.errors import (
    FreezeframeError,
    RepositoryDamaged,
    SourceError,
    UsageError,
)
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import GRANULE, MIB
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import DiskRecord, HotProof, Manifest, Mode, Proof, TrackRecord
from freezeframe.image.parent import ParentDisk, parent_disk
from freezeframe.image.reader import ImageReader, images
from freezeframe.image.writer import ImageWriter
from freezeframe.layout.base import DiskLayout
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY
from freezeframe.repo.writer import BlobWriter
from freezeframe.shadow.filesystems import disks_beneath, find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.outsiders import Outsider, find_outsiders
from freezeframe.store.local import LocalStore
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_source
from freezeframe.system.sysfs import Node
from freezeframe.tracking import (
    Distrust,
    Tracker,
    changed_since,
    forget_base,
    remember_base,
    start,
)

#: Bytes for what is read around the freeze, to begin with: more is taken when it is needed.
_FIRST_MEMORY = 32 * MIB


@dataclass(slots=True)
class _Trust:
    """What is known of a disk from before."""

    base: str = ""
    distrust: tuple[str, ...] = ()
    changed: int = 0


def backup_online(
    repository: Repository,
    paths: Sequence[str],
    progress: Progress,
    settings: HotSettings | None = None,
    *,
    decompress_every: int = DECOMPRESS_EVERY,
    clock: Clock | None = None,
) -> BackupResult:
    """Image disks in use, all of them in one image and as of one moment.

    Raises `UsageError` for what cannot be imaged so, `TrackingUnavailable`, `FreezeError` and
    its kind, `NotConverging`; whatever fails, no image appears and nothing stays frozen.
    The trackers go on: the next image reads what changed.
    """
    settings, clock = settings or HotSettings(), clock or SystemClock()
    begun = clock.monotonic()
    with ExitStack() as stack:
        nodes = _nodes(paths)
        _refuse_own_store(repository, nodes)
        stack.enter_context(repository.lock().begun())
        trackers = {number: stack.enter_context(start(node)) for number, node in _wholes(nodes)}
        index = index_for_writing(repository, progress)
        outsiders = find_outsiders(list(nodes.values()))
        disks = [
            _open(number, path, node, len(nodes), settings, outsiders, stack)
            for number, (path, node) in enumerate(nodes.items())
        ]
        trust = _find_bases(repository, index, disks, trackers, progress)
        writer = stack.enter_context(
            BlobWriter(repository, index, decompress_every=decompress_every)
        )
        image = ImageWriter(
            repository, writer, [disk.size for disk in disks], [disk.parent for disk in disks]
        )
        _take_over(disks, trackers, trust, image, repository)
        mounted = _Mounted(list(nodes.values()), outsiders, settings.freeze_limit)
        stack.callback(mounted.close)
        world = World(
            disks=disks,
            sources=[_source(disk) for disk in disks],
            tracked=_tracked(disks, trackers, settings),
            filesystems=mounted,
            image=image,
            progress=progress,
            settings=settings,
            content=_content(repository, index),
            flush=writer.flush,
            now=clock.now,
        )
        try:
            result = HotEngine(world).run()
        except RepositoryDamaged:
            # Built upon, it would fail each time: the next one reads everything.
            for tracker in trackers.values():
                forget_base(tracker, repository.config.id)
            raise
        _tell(result, progress)
        writer.flush()
        unreadable = sum(disk.unreadable.total for disk in disks)
        proof = Proof(
            bytes_read=sum(disk.bytes_read for disk in disks),
            bytes_new=writer.stats.plain_bytes,
            bytes_stored=writer.stats.stored_bytes,
            seconds=round(clock.monotonic() - begun, 3),
            unreadable_bytes=unreadable,
            decompressed_one_in=decompress_every,
        )
        records = tuple(
            msgspec.structs.replace(
                disk_record(plan, disk.unreadable, states), start=disk.node.start
            )
            for plan, disk, states in zip(result.plans, disks, result.states, strict=True)
        )
        hot = _hot_proof(result.proof, disks, trust)
        manifest: Manifest = new_manifest(Mode.ONLINE, result.moment, records, proof, hot)
        snapshot = image.commit(
            manifest,
            [plan.used for plan in result.plans],
            {plan.name: pieces(plan) for plan in result.plans},
        )
        # Only now: until the image is durable, the one before is what the next builds on.
        for tracker in trackers.values():
            try:
                remember_base(tracker, repository.config.id, snapshot.id)
            except (OSError, FreezeframeError) as error:
                progress.note(f"the next image will be read in full: {error}")
    return BackupResult(snapshot, manifest, unreadable)


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


def _source(disk: HotDisk) -> Source:
    about = describe_source(disk.node.path)
    return Source(disk.memory, disk.path, about.model, about.serial)


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


class _Mounted:
    """The filesystems on the disks that are imaged, and their freezer, as of one look."""

    def __init__(self, nodes: Sequence[Node], outsiders: Sequence[Outsider], limit: float) -> None:
        self._nodes = nodes
        self._outsiders = outsiders
        self._limit = limit
        self._stack = ExitStack()
        self.renew()

    def renew(self) -> None:
        """Find those of now, and make a freezer of them."""
        self.close()
        self._found = find_filesystems(self._nodes)
        self.freezer = self._stack.enter_context(
            Freezer(self._found.filesystems, limit=self._limit)
        )

    def unchanged(self) -> bool:
        """Whether the same ones are mounted, as writable, as then."""
        return self._found.same_as(find_filesystems(self._nodes))

    def states(self, disk: HotDisk, layout: DiskLayout) -> dict[int, RegionState]:
        """Return the state of each region of a disk, by its start."""
        cannot = [each.device for each in self.freezer.unfreezable]
        return region_states(disk.node, layout, self._found.filesystems, cannot, self._outsiders)

    def close(self) -> None:
        """Let the filesystems go, and end the watchdog."""
        self._stack.close()


def _content(repository: Repository, index: Index) -> Callable[[bytes], bytes]:
    blobs = BlobReader(repository, index)
    return lambda blob_id: blobs.read(BlobKind.DATA, blob_id)


# -- what is known from before ------------------------------------------------------------


def _find_bases(
    repository: Repository,
    index: Index,
    disks: Sequence[HotDisk],
    trackers: Mapping[str, Tracker],
    progress: Progress,
) -> list[_Trust]:
    """Find the image each disk may be built on: the trackers' own base, or the newest."""
    trust: list[_Trust] = []
    shots = {shot.id: shot for shot in images(repository, on_damage=lambda _: None)}

    def tell(error: FreezeframeError) -> None:
        progress.note(f"{error.message}; not built upon")

    for disk in disks:
        tracker = trackers[disk.node.whole.number]
        known = changed_since(tracker, repository.config.id)
        if isinstance(known, Distrust):
            trust.append(_Trust(distrust=known.reasons))
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
            trust.append(_Trust(distrust=(reason,)))
            continue
        disk.parent = parent
        trust.append(_Trust(base=known.image_id))
    rest = [disk for disk, each in zip(disks, trust, strict=True) if not each.base]
    found = find_parents(repository, index, [_as_it_is(disk) for disk in rest], progress)
    for disk, parent in zip(rest, found, strict=True):
        disk.parent = parent
    return trust


def _as_it_is(disk: HotDisk) -> DiskRecord:
    """Describe a disk from its bytes as they lie there now, moving or not."""

    def read(reader: RegionReader, peers: Peers) -> UsedMap:
        return used_map(reader, peers, state=State.LIVE)

    (plan,) = plan_disks([_source(disk)], read_map=read)
    return disk_record(plan, Extents.empty())


def _take_over(
    disks: Sequence[HotDisk],
    trackers: Mapping[str, Tracker],
    trust: Sequence[_Trust],
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


def _hot_proof(proof: HotProof, disks: Sequence[HotDisk], trust: Sequence[_Trust]) -> HotProof:
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
