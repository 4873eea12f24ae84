"""The applications of this machine that can make themselves consistent for an image."""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.core.errors import FreezeframeError
from freezeframe.shadow.discover import FoundWriter, find_writers
from freezeframe.shadow.results import LastResult, last_results
from freezeframe.shadow.stack import Stack
from freezeframe.shadow.writers import writer_kinds


@dataclass(frozen=True, slots=True)
class WriterView:
    """One writer as `freezeframe writers` shows it."""

    name: str
    kind: str
    about: str
    paths: tuple[str, ...]
    #: Devices of the filesystems its data lie on: `/dev/sda1`.
    volumes: tuple[str, ...]
    last: LastResult | None


@dataclass(frozen=True, slots=True)
class WritersView:
    """All that were found, and kinds that could not be looked for."""

    writers: tuple[WriterView, ...]
    #: (kind, why not).
    unavailable: tuple[tuple[str, str], ...]


def examine_writers() -> WritersView:
    """Look for all writers. Changes nothing; a few seconds at most."""
    stack, last, writers = Stack(), last_results(), find_writers()
    views = tuple(_view(each, stack, last.get(each.name)) for each in writers.found)
    found = {each.kind for each in views}
    unavailable = dict(writers.broken)
    for name, kind in writer_kinds().kinds.items():
        if name in found or name in unavailable:
            continue
        try:
            reason = kind().unavailable()
        except Exception as error:  # another package's mistake, whatever it is
            reason = f"{type(error).__name__}: {error}"
        if reason:
            unavailable[name] = reason
    return WritersView(views, tuple(unavailable.items()))


def _view(each: FoundWriter, stack: Stack, last: LastResult | None) -> WriterView:
    try:
        about = each.writer.about()
    except FreezeframeError as error:
        about = error.message
    filesystems = dict.fromkeys(stack.filesystem_of(path) for path in each.paths)
    nodes = [node for filesystem in filesystems for node in stack.devices_of(filesystem)]
    return WriterView(
        name=each.name,
        kind=each.writer.kind,
        about=about,
        paths=tuple(map(str, each.paths)),
        volumes=tuple(dict.fromkeys(node.path for node in nodes)),
        last=last,
    )
