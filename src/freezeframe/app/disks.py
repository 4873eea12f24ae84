"""What the machine's disks hold, and how each would be taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freezeframe.app.backup import as_text, disk_record
from freezeframe.app.choose import how_taken, machine_lacks
from freezeframe.app.providers import Chosen, choose_provider
from freezeframe.backup.hot.states import RegionState, region_states
from freezeframe.backup.plan import DiskPlan, Source, plan_disks
from freezeframe.block.base import Reader
from freezeframe.block.open import open_shared
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import DiskRecord, Mode
from freezeframe.layout.capture import capture
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.outsiders import find_outsiders
from freezeframe.shadow.stack import Stack
from freezeframe.store.local import LocalStore
from freezeframe.store.open import open_store
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_source, list_disks
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class DiskView:
    """One disk as `freezeframe disks` shows it."""

    path: str
    #: How it would be taken, or why it would not, or cannot be looked at.
    state: str
    #: `offline`, `online`; nothing where it would be refused.
    mode: str
    holders: tuple[str, ...]
    record: DiskRecord | None
    #: Who would take it, and the volumes upon it, while they are in use.
    providers: tuple[Chosen, ...] = ()


def examine_disks(paths: Sequence[str] = (), location: str = "") -> Iterator[DiskView]:
    """Look at the named disks, or at all of the machine; opens nothing exclusively.

    `location` is where the repository is, if that is known: its own disk is not imaged in use.
    The used maps of a mounted filesystem are read from disk as they lie there, and may be
    older than what the kernel holds in memory: they are shown, never imaged.
    """
    store = open_store(location) if location else None
    repository = store.location if isinstance(store, LocalStore) else ""
    lacks = machine_lacks()
    for path in paths or [disk.path for disk in list_disks()]:
        try:
            taken = how_taken(path, lacks, repository=repository)
            with open_shared(path) as reader:
                record = _record(path, reader, online=taken.mode is not Mode.OFFLINE)
        except FreezeframeError as error:
            yield DiskView(path, error.message, "", (), None)
            continue
        yield DiskView(
            path,
            taken.text,
            taken.mode.value if taken.mode else "",
            taken.holders,
            record,
            _providers(path, lacks),
        )


def _providers(path: str, lacks: Sequence[str]) -> tuple[Chosen, ...]:
    """Tell who would take a disk, and each volume upon it, with the reasons."""
    node = sysfs.node_of(path)
    if node is None:
        return ()
    nodes: dict[str, Node] = {node.number: node}
    for part in (node, *node.partitions()):
        nodes |= {above.number: above for above in _volumes_upon(part)}
    stack = Stack()
    return tuple(choose_provider(each, stack=stack, lacks=lacks) for each in nodes.values())


def _volumes_upon(node: Node) -> Iterator[Node]:
    for holder in node.holders():
        yield holder
        yield from _volumes_upon(holder)


def _record(path: str, reader: Reader, *, online: bool) -> DiskRecord:
    about = describe_source(path)
    source = Source(reader, as_text(path), about.model, about.serial)
    node = sysfs.node_of(path) if online else None
    if node is None:
        (plan,) = plan_disks([source])
        return disk_record(plan, Extents.empty())
    plan, states = _in_use(source, node)
    return disk_record(plan, Extents.empty(), states)


def _in_use(source: Source, node: Node) -> tuple[DiskPlan, dict[int, RegionState]]:
    """Plan a disk that others write to, as an image of it would see it before any freeze."""
    layout = capture(source.reader, source.path)
    found = find_filesystems([node]).filesystems
    cannot = [each.device for each in found if not each.freezes]
    states = region_states(node, layout, found, cannot, find_outsiders([node]))

    def read(reader: RegionReader, peers: Peers) -> UsedMap:
        state = states.get(reader.start)
        if state is None or state.state is State.AT_REST:
            return used_map(reader, peers)
        volumes = {
            name: State.LIVE if each is State.FROZEN else each
            for name, each in (state.volumes or {}).items()
        }
        return used_map(reader, peers, state=State.LIVE, volumes=volumes or None)

    (plan,) = plan_disks([source], read_map=read, layouts=[layout])
    return plan, states
