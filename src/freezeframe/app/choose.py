"""Which disks to image, and whether they are in use: decided before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.app.track import disks_in_use
from freezeframe.core.errors import UsageError
from freezeframe.image.manifest import Mode
from freezeframe.repo.repository import Repository
from freezeframe.shadow.filesystems import disks_beneath
from freezeframe.store.local import LocalStore
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_disk
from freezeframe.system.holders import source_holders


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
