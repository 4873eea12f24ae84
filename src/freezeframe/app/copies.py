"""Volumes of an image whose bytes are read from shadow copies, after the moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from freezeframe.app.backup import as_text
from freezeframe.app.providers import Chosen
from freezeframe.backup.hot.states import RegionState, region_states
from freezeframe.backup.pipeline import Unreadable, store_chunks
from freezeframe.backup.plan import DiskPlan, Source, plan_disks
from freezeframe.block.open import open_shared
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import Consistency
from freezeframe.image.writer import ImageWriter
from freezeframe.layout.capture import capture
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.outsiders import find_outsiders
from freezeframe.shadow.providers.base import Shadow
from freezeframe.system.disks import describe_source
from freezeframe.system.sysfs import Node

#: Seconds between two looks whether the copies are still whole.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Copied:
    """What was read of the copies."""

    plans: tuple[DiskPlan, ...]
    states: tuple[dict[int, RegionState], ...]
    unreadable: Unreadable

    @property
    def bytes_read(self) -> int:
        """Bytes read from the copies."""
        return sum(plan.to_read.total for plan in self.plans) - self.unreadable.total


class Copies:
    """The volumes that providers take, in the order of the image; `first` is their number."""

    def __init__(self, chosen: Sequence[tuple[str, Chosen]], first: int, stack: ExitStack) -> None:
        self.first = first
        self.nodes: list[Node] = [each.volume.node for _, each in chosen]
        self.sizes = [each.volume.size for _, each in chosen]
        self._paths = [as_text(Path(path).absolute()) for path, _ in chosen]
        #: The volumes as they are now, moving: to find out what they were before.
        self.live = [
            self._source(number, node.path, stack) for number, node in enumerate(self.nodes)
        ]
        self._states = [
            _states(node, source) for node, source in zip(self.nodes, self.live, strict=True)
        ]

    def _source(self, number: int, path: str, stack: ExitStack) -> Source:
        about = describe_source(self.nodes[number].path)
        reader = stack.enter_context(open_shared(path))
        return Source(reader, self._paths[number], about.model, about.serial)

    def store(
        self,
        shadows: Sequence[Shadow],
        image: ImageWriter,
        progress: Progress,
        check: Callable[[], None],
        *,
        taken: Sequence[str],
        threads: int | None,
    ) -> Copied:
        """Read the copies into the image. Raises `ShadowLost` where one is no longer whole.

        `taken` are names of disks that the image has already.
        """
        by_number = {shadow.volume.node.number: shadow for shadow in shadows}
        sources: list[Source] = []
        states: list[dict[int, RegionState]] = []
        # Closed at the end: a copy that is open cannot be removed.
        with ExitStack() as opened:
            for number, node in enumerate(self.nodes):
                shadow = by_number.get(node.number)
                if shadow is None or not shadow.is_device:
                    raise FreezeframeError(
                        f"{node.path} has no shadow copy that could be imaged",
                        hint="choose another provider: --provider VOLUME=hot",
                    )
                sources.append(self._source(number, shadow.path, opened))
                states.append(_agreed(self._states[number], _states(node, sources[-1])))
            plans = _plan(sources, states, taken)
            progress.start("copy", sum(plan.to_read.total for plan in plans))
            unreadable = store_chunks(
                plans, image, _Checking(progress, check), threads=threads, first=self.first
            )
        # Only now is it known that what was read was what the copies were to hold.
        check()
        return Copied(plans, tuple(states), unreadable)


def _states(node: Node, source: Source) -> dict[int, RegionState]:
    """Return the state that each region of a volume had in the window."""
    found = find_filesystems([node]).filesystems
    cannot = [each.device for each in found if not each.freezes]
    layout = capture(source.reader, source.path)
    return region_states(node, layout, found, cannot, find_outsiders([node]))


def _agreed(
    before: dict[int, RegionState], after: dict[int, RegionState]
) -> dict[int, RegionState]:
    """Return the states of the moment, from those before and after it.

    What was mounted or unmounted meanwhile is parsed as if it were at rest: then anything
    unclean counts as used.
    """
    at_rest = RegionState(State.AT_REST, Consistency.CRASH, "mounted or unmounted meanwhile")
    return {
        start: state if start in before and before[start].state is state.state else at_rest
        for start, state in after.items()
    }


def _plan(
    sources: Sequence[Source], states: Sequence[dict[int, RegionState]], taken: Sequence[str]
) -> tuple[DiskPlan, ...]:
    by_reader = {id(source.reader): each for source, each in zip(sources, states, strict=True)}

    def read(reader: RegionReader, peers: Peers) -> UsedMap:
        state = by_reader[id(reader.base)].get(reader.start)
        if state is None or state.state is State.AT_REST:
            return used_map(reader, peers)
        content = used_map(reader, peers, state=state.state, volumes=state.volumes)
        if state.state is State.FROZEN:
            return content
        # Nobody can vouch for the map of a filesystem that was written to in the window.
        everything = Extents.single(0, reader.size)
        return replace(content, used=everything, understood=False, notes=(state.note,))

    plans = plan_disks(sources, read_map=read)
    names = set(taken)
    renamed = []
    for plan in plans:
        name, count = plan.name, 1
        while name in names:
            count += 1
            name = f"{plan.name}-{count}"
        names.add(name)
        renamed.append(replace(plan, name=name))
    return tuple(renamed)


class _Checking:
    """Progress that looks after the copies, too: one that is lost ends the reading at once."""

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self._progress = progress
        self._check = check
        self._lock = threading.Lock()
        self._looked = time.monotonic()

    def start(self, label: str, total: int) -> None:
        """Begin a stage."""
        self._progress.start(label, total)

    def advance(self, amount: int) -> None:
        """Count work done, and look now and then."""
        self._progress.advance(amount)
        if time.monotonic() - self._looked < _LOOK or not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            self._check()
        finally:
            self._lock.release()

    def note(self, text: str) -> None:
        """Say something to be read now."""
        self._progress.note(text)
