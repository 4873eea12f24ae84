"""Used maps of disks in use: an estimate of now, and exact ones of the frozen moment."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.hot.world import World
from freezeframe.backup.plan import DiskPlan, plan_disks
from freezeframe.block.base import Reader
from freezeframe.block.remembering import FrozenView, NotRemembered
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.layout.capture import capture


def find_states(world: World) -> None:
    """Find out what may be believed of each region, now that filesystems are known."""
    world.layouts = [
        capture(disk.memory, source.path)
        for disk, source in zip(world.disks, world.sources, strict=True)
    ]
    world.states = [
        world.filesystems.states(disk, layout)
        for disk, layout in zip(world.disks, world.layouts, strict=True)
    ]


def estimate(world: World) -> None:
    """Read the used maps as they lie on the disks now: what is worth copying ahead."""
    # With the tables, so that what they are read from stays remembered.
    plans = plan(world, [disk.memory for disk in world.disks], State.LIVE)
    for disk, each in zip(world.disks, plans, strict=True):
        disk.memory.trim()
        disk.estimate(_guess(world, disk, each))
        if disk.memory.over_limit and not world.inside:
            world.inside = True
            world.note("structures do not fit into memory: used maps are read inside the freeze")


def _guess(world: World, disk: HotDisk, estimated: DiskPlan) -> Extents:
    """Return the estimate; where a moving filesystem gave none, what its parent has."""
    used = estimated.used
    for part in estimated.regions:
        content = part.content
        state = world.states[disk.number].get(part.region.start)
        if content is None or content.understood or state is None:
            continue
        if state.state is State.FROZEN and disk.parent is not None:
            span = Extents.single(part.region.start, part.region.stop)
            used = (used - span) | (disk.parent.used & span)
    return used


def plan(world: World, readers: Sequence[Reader], state: State) -> tuple[DiskPlan, ...]:
    """Plan all disks as `readers` show them; `state` is that of what will be frozen."""
    by_reader = {id(reader): number for number, reader in enumerate(readers)}

    def read(reader: RegionReader, peers: Peers) -> UsedMap:
        found = world.states[by_reader[id(reader.base)]].get(reader.start)
        if found is None or found.state is State.FROZEN:
            return used_map(reader, peers, state=state, volumes=_volumes(found, state))
        if found.state is State.AT_REST:
            return used_map(reader, peers)
        content = used_map(reader, peers, state=State.LIVE)
        # Nobody can vouch for a map that changes while all else is frozen.
        everything = Extents.single(0, reader.size)
        return replace(content, used=everything, understood=False, notes=(found.note,))

    sources = [
        replace(source, reader=reader)
        for source, reader in zip(world.sources, readers, strict=True)
    ]
    plans = plan_disks(sources, read_map=read)
    return tuple(
        replace(each, used=each.used - disk.never)
        for disk, each in zip(world.disks, plans, strict=True)
    )


def _volumes(found: RegionState | None, state: State) -> dict[str, State] | None:
    """Return the states of logical volumes; those to be frozen are in `state` now."""
    if found is None or found.volumes is None:
        return None
    return {name: state if each is State.FROZEN else each for name, each in found.volumes.items()}


def frozen_plans(world: World) -> tuple[DiskPlan, ...] | None:
    """Plan the disks as they were in the freeze, after it.

    None where something was needed that nobody has read: it is noted on the disks, which must
    be frozen again.
    """
    for disk in world.disks:
        disk.account()
    views = [FrozenView(disk.memory, disk.overlay) for disk in world.disks]
    plans: tuple[DiskPlan, ...] = ()
    # Parsers of filesystems catch that and give a map all the same; that of tables does not.
    with contextlib.suppress(NotRemembered):
        plans = plan(world, views, State.FROZEN)
    if not all(view.complete for view in views):
        # Once more, going on where bytes are missing, to find all of them at once. A map that
        # lacked something says nothing of what is used.
        guesses = [FrozenView(disk.memory, disk.overlay, guess=True) for disk in world.disks]
        plan(world, guesses, State.FROZEN)
        for disk, view, guess in zip(world.disks, views, guesses, strict=True):
            disk.structures = disk.structures | view.missing | guess.missing
        return None
    complete = True
    for disk, each in zip(world.disks, plans, strict=True):
        missing = each.used - disk.covered - disk.overlay.extents()
        disk.require(missing)
        complete = complete and not missing
    return plans if complete else None
