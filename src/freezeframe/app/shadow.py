"""Make, list and remove shadow copies of volumes that stay until they are deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from freezeframe.app.company import Company, ShadowSettings, gather
from freezeframe.app.providers import Chosen, choose_provider, overrides
from freezeframe.core.clock import Clock, SystemClock
from freezeframe.core.errors import FreezeError, SourceError, UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import ShadowProof
from freezeframe.shadow import journal
from freezeframe.shadow.filesystems import OnDisks, find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.journal import SetEntry
from freezeframe.shadow.leftovers import Cleaned, clean_leftovers, remove_kept, trouble_of
from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class MadeSet:
    """A set that was made."""

    entry: SetEntry
    proof: ShadowProof | None


@dataclass(frozen=True, slots=True)
class KeptSet:
    """A set that is kept."""

    entry: SetEntry
    #: Why its copies are not whole any more; nothing where they are.
    trouble: str


def create_set(
    paths: Sequence[str],
    progress: Progress,
    settings: ShadowSettings | None = None,
    *,
    label: str = "",
    clock: Clock | None = None,
) -> MadeSet:
    """Make a read-only device of each volume as it is at one moment; all stay until deleted.

    Raises `UsageError` where a volume has no provider, `FreezeError` and its kind, `WriterVeto`
    and `ShadowFailed`: then nothing of it is left.
    """
    settings, clock = settings or ShadowSettings(), clock or SystemClock()
    settings = replace(settings, wishes=replace(settings.wishes, keep=True))
    _check_label(label)
    chosen = _choose(paths, settings)
    nodes = [each.volume.node for each in chosen]
    company = gather(nodes, chosen, settings, progress)
    try:
        entry = _taken(company, chosen, label)
    finally:
        company.remember(clock)
    return MadeSet(entry, company.proof())


def _taken(company: Company, chosen: Sequence[Chosen], label: str) -> SetEntry:
    ours = [
        each.volume.node
        for each in chosen
        if each.provider is not None and not each.provider.holds_filesystems
    ]
    with company.coordinator as coordinator:
        coordinator.prepare()
        found = _filesystems(ours)
        with Freezer(found.filesystems, limit=coordinator.limits.commit) as freezer:
            coordinator.take(freezer)
        if not found.same_as(_filesystems(ours)):
            raise FreezeError(
                "filesystems were mounted or unmounted while the shadow copies were made",
                hint="nothing of them is left: run it again",
            )
        coordinator.finish(taken=True)
        coordinator.check()
        entry = msgspec.structs.replace(coordinator.keep(), label=label)
        journal.keep(entry)
        coordinator.forget()
    return entry


def _filesystems(nodes: Sequence[Node]) -> OnDisks:
    return find_filesystems(nodes) if nodes else OnDisks((), ())


def _choose(paths: Sequence[str], settings: ShadowSettings) -> list[Chosen]:
    nodes: dict[str, Node] = {}
    for path in paths:
        node = sysfs.node_of(path)
        if node is None:
            raise SourceError(
                f"{path} is no block device", hint="name volumes: `freezeframe disks` lists disks"
            )
        if node.number not in {other.number for other in nodes.values()}:
            nodes[path] = node
    wanted = overrides(settings.providers, nodes)
    stack = Stack()
    chosen = []
    for path, node in nodes.items():
        each = choose_provider(node, wanted.get(node.number, ""), hot=False, stack=stack)
        if each.provider is None:
            raise UsageError(
                f"no provider makes a shadow copy of {path}: {each.reason}",
                hint="volumes of LVM and device-mapper have some; an image of any disk in use: "
                "freezeframe backup",
            )
        if not each.provider.can_keep:
            raise UsageError(
                f"shadow copies by {each.kind} end with the program that makes them",
                hint="choose another: --provider VOLUME=KIND",
            )
        chosen.append(each)
    return chosen


def _check_label(label: str) -> None:
    if not label:
        return
    journal.check_name(label)
    if any(label in (found.entry.label, found.entry.name) for found in journal.kept()):
        raise UsageError(
            f"there is a set of shadow copies named {label}",
            hint=f"choose another name, or delete it: freezeframe shadow delete {label}",
        )


def kept_sets() -> list[KeptSet]:
    """Return the sets that are kept, oldest first."""
    return [KeptSet(found.entry, trouble_of(found.entry)) for found in journal.kept()]


def delete_set(name: str) -> Iterator[Cleaned]:
    """Remove a kept set, by its name or id. Raises `UsageError` where there is none."""
    for found in journal.kept():
        if name in (found.entry.label, found.entry.name):
            yield from remove_kept(found.entry)
            return
    raise UsageError(
        f"there is no set of shadow copies named {name}", hint="freezeframe shadow list"
    )


def clean_sets() -> Iterator[Cleaned]:
    """Remove what programs left behind that died. Kept sets stay."""
    return clean_leftovers()
