"""What programs left behind that died while they made shadow copies, and removing it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import FreezeframeError
from freezeframe.shadow.journal import (
    UNDONE,
    Found,
    ProviderEntry,
    SetEntry,
    forget,
    kept,
    running,
    taken_over,
)
from freezeframe.shadow.providers import provider_kinds
from freezeframe.shadow.providers.base import Provider
from freezeframe.system.run import run

#: Seconds a command that lets go what was held may take.
_ONE_COMMAND = 10.0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of one leftover."""

    name: str
    #: `lvm`, `writers`; in words.
    what: str
    #: Why it could not be removed; nothing where it was.
    trouble: str = ""
    hint: str = ""


def clean_leftovers(folder: Path | None = None) -> Iterator[Cleaned]:
    """Remove what dead programs left: let go what is held, remove copies, forget the set.

    Kept sets and those of programs that run are left alone.
    """
    for found in running(folder):
        if not found.alive:
            yield from _clean(found)
    yield from _strays(folder)


def remove_kept(entry: SetEntry, folder: Path | None = None) -> Iterator[Cleaned]:
    """Remove a kept set's copies; forget it where nothing of it is left."""
    good = True
    for each in _clean_providers(entry):
        good = good and not each.trouble
        yield each
    if good:
        forget(entry.name, folder)


def trouble_of(entry: SetEntry) -> str:
    """Say why the copies of a kept set are not whole; nothing where they are."""
    kinds = provider_kinds().kinds
    for provider in entry.providers:
        kind = kinds.get(provider.kind)
        if kind is None:
            return f"there is no provider {provider.kind} any more"
        if text := kind.trouble(provider.record):
            return text
    return ""


def _clean(found: Found) -> Iterator[Cleaned]:
    with taken_over(found) as ours:
        if not ours:
            return
        good = True
        undone = found.path.with_suffix(UNDONE)
        held = () if undone.exists() else _let_go(found.entry)
        for each in (*held, *_clean_providers(found.entry)):
            good = good and not each.trouble
            yield each
        if good:
            found.path.unlink(missing_ok=True)
            undone.unlink(missing_ok=True)
            yield Cleaned(found.entry.name, f"a set left in state `{found.entry.state}`")


def _let_go(entry: SetEntry) -> Iterator[Cleaned]:
    """Run what lets go, should the guard have died as well. It does nothing where it has not."""
    if entry.state != "window":
        return
    for provider in entry.providers:
        for command in provider.undo:
            with contextlib.suppress(FreezeframeError):
                run(command, timeout=_ONE_COMMAND)
    for writer in entry.writers:
        for command in writer.undo:
            with contextlib.suppress(FreezeframeError):
                run(command, timeout=_ONE_COMMAND)
        if writer.undo:
            yield Cleaned(entry.name, f"{writer.name} was thawed, if it was frozen")


def _clean_providers(entry: SetEntry) -> Iterator[Cleaned]:
    kinds = provider_kinds().kinds
    for provider in reversed(entry.providers):
        yield _clean_one(entry.name, provider, kinds)


def _clean_one(name: str, provider: ProviderEntry, kinds: Mapping[str, type[Provider]]) -> Cleaned:
    kind = kinds.get(provider.kind)
    if kind is None:
        return Cleaned(
            name,
            provider.kind,
            "there is no such provider any more",
            "install the package it came from, or remove it by hand",
        )
    try:
        kind.clean(provider.record)
    except FreezeframeError as error:
        return Cleaned(name, provider.kind, error.message, error.hint)
    return Cleaned(name, provider.kind)


def _strays(folder: Path | None) -> Iterator[Cleaned]:
    """Remove what has the name of a set that nobody knows: left before the machine restarted."""
    known = {found.entry.name for found in (*running(folder), *kept())}
    for kind in provider_kinds().kinds.values():
        try:
            records = kind.strays()
        except FreezeframeError as error:
            yield Cleaned("", kind.kind, error.message, error.hint)
            continue
        for record in records:
            name = record.get("name", "")
            # Each provider of a set has a name that begins with the set's.
            if name and not any(name == one or name.startswith(f"{one}-") for one in known):
                entry = ProviderEntry(kind=kind.kind, record=dict(record))
                yield _clean_one(name, entry, {kind.kind: kind})
