"""Which disks to image, and whether they are in use: decided before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.app.hot_doctor import hot_lacks, hot_needs
from freezeframe.app.track import disks_in_use
from freezeframe.core.errors import TrackingUnavailable, UsageError
from freezeframe.image.manifest import Mode
from freezeframe.repo.repository import Repository
from freezeframe.shadow.filesystems import disks_beneath
from freezeframe.store.local import LocalStore
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_disk
from freezeframe.system.holders import source_holders
from freezeframe.system.sysfs import Node
from freezeframe.tracking.disk import describe, refuse_untrackable
from freezeframe.tracking.program import way_to_mark


@dataclass(frozen=True, slots=True)
class Choice:
    """What is imaged, and how."""

    paths: tuple[str, ...]
    mode: Mode
    #: Why, one line each, for the user.
    reasons: tuple[str, ...]


def choose(
    repository: Repository, paths: Sequence[str], *, offline: bool = False, online: bool = False
) -> Choice:
    """Decide which disks are imaged and how, where the user left that open.

    Without paths: every disk that holds a mounted filesystem of this machine, but for the
    repository's own and removable ones. Without a mode: online if any of them is in use.
    Raises `UsageError` where nothing is left, or what was asked for contradicts itself.
    """
    if offline and online:
        raise UsageError("--offline and --online exclude each other", hint="leave one out")
    reasons: list[str] = []
    if not paths:
        paths, reasons = _of_this_machine(repository)
    if offline or online:
        return Choice(tuple(paths), Mode.OFFLINE if offline else Mode.ONLINE, tuple(reasons))
    busy = {path: holders for path in paths if (holders := source_holders(path))}
    # What is missing, and a file that somebody writes to, is told by who opens it.
    devices = [path for path in busy if sysfs.node_of(path) is not None]
    for path in devices:
        reasons.append(f"{path}: online, because it is {busy[path][0]}")
    for path in paths:
        if path not in busy:
            reasons.append(f"{path}: offline, nobody uses it" if not devices else f"{path}: online")
    return Choice(tuple(paths), Mode.ONLINE if devices else Mode.OFFLINE, tuple(reasons))


def _of_this_machine(repository: Repository) -> tuple[list[str], list[str]]:
    chosen: list[str] = []
    reasons: list[str] = []
    nodes = disks_in_use()
    own = set()
    if isinstance(repository.store, LocalStore):
        own = {node.number for node in disks_beneath(repository.store.location, nodes)}
    for node in nodes:
        disk = describe_disk(node.path)
        if node.number in own:
            reasons.append(f"{node.path}: left out, the repository lies on it")
        elif disk is not None and disk.removable:
            reasons.append(f"{node.path}: left out, it is removable: name it to image it")
        else:
            chosen.append(node.path)
    if not chosen:
        said = f" ({'; '.join(reasons)})" if reasons else ""
        raise UsageError(
            f"no disk of this machine is left to image{said}",
            hint="name disks, and keep the repository on another one: `freezeframe disks`",
        )
    return chosen, reasons


# -- one disk by itself -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """How `backup` would take one disk, or why it would not."""

    #: None where it would refuse.
    mode: Mode | None
    #: For the user: `online: mounted read-write at /srv`.
    text: str
    #: Who may write to it, as an administrator says it.
    holders: tuple[str, ...] = ()


def how_taken(path: str, lacks: Sequence[str], *, repository: str = "") -> Taken:
    """Tell how `backup` would take a disk or file, by the same rules as it decides itself.

    `lacks` is what `machine_lacks` gives, `repository` the path of one on this machine; nothing
    where it is not known.
    """
    holders = source_holders(path)
    if not holders:
        return Taken(Mode.OFFLINE, "offline, exclusively")
    node, first = sysfs.node_of(path), holders[0]
    if node is None:
        why = "only devices can be imaged while they are in use"
    elif repository and disks_beneath(repository, [node]):
        why = "the repository lies on it"
    elif lacks:
        why = f"this machine lacks {', '.join(lacks)} for imaging disks in use"
    else:
        why = untrackable(node)
    if why:
        return Taken(None, f"not while it is {first}: {why}", holders)
    return Taken(Mode.ONLINE, f"online: {first}", holders)


def machine_lacks() -> tuple[str, ...]:
    """Return what keeps this machine from imaging any disk in use, as `doctor` names it."""
    return hot_lacks(hot_needs())


def untrackable(node: Node) -> str:
    """Return why writes to a disk cannot be followed; nothing where they can."""
    try:
        disk = describe(node)
        refuse_untrackable(node.whole, disk)
        way_to_mark(disk)
    except TrackingUnavailable as error:
        return error.message
    return ""
