"""Which writers take part in an image: found by themselves, and only those it holds whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from freezeframe.core.errors import UsageError
from freezeframe.shadow.crew import Crew
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.writers import writer_kinds
from freezeframe.shadow.writers.base import Writer, WriterKind

#: Seconds all kinds together are waited for: one that hangs is told, and left out.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class FoundWriter:
    """A writer that runs here, and what its data lie on."""

    writer: Writer
    name: str
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Writers:
    """All writers that run here, and kinds that could not be looked for."""

    found: tuple[FoundWriter, ...]
    #: Kind → why not.
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part in an image, and who does not."""

    chosen: tuple[FoundWriter, ...]
    #: Name → why not; of those that have anything in the image.
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WriterChoice:
    """Which writers a user wants."""

    #: All that run here and lie wholly in the image.
    auto: bool = True
    #: These, whatever else runs: their names, or kinds.
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> WriterChoice:
        """Understand `auto`, `none`, or names. Raises `UsageError`."""
        if not words or list(words) == ["auto"]:
            return cls()
        if list(words) == ["none"]:
            return cls(auto=False)
        if {"auto", "none"} & set(words):
            raise UsageError(
                "writers are `auto`, `none`, or names", hint="name them: freezeframe writers"
            )
        return cls(auto=False, names=tuple(words))


def find_writers(
    kinds: Mapping[str, WriterKind] | None = None, patience: float = _PATIENCE
) -> Writers:
    """Look for all writers. A kind that fails, hangs, or cannot be loaded is told."""
    broken: dict[str, str] = {}
    if kinds is None:
        registered = writer_kinds()
        broken.update(registered.broken)
        kinds = _made(registered.kinds, broken)
    found: dict[str, list[FoundWriter]] = {}

    def look(name: str, kind: WriterKind) -> None:
        found[name] = [
            FoundWriter(writer, writer.name, tuple(writer.paths())) for writer in kind.find()
        ]

    calls: list[Callable[[], None]] = [partial(look, name, kind) for name, kind in kinds.items()]
    crew = Crew(len(calls))
    outcomes = crew.run(calls, Deadline.after(patience))
    crew.close()
    for name, outcome in zip(kinds, outcomes, strict=True):
        if not outcome.good:
            broken[name] = outcome.why
            found.pop(name, None)
    # In the order of the kinds: what is found last must not depend on who was quick.
    ordered = [each for name in kinds for each in found.get(name, ())]
    return Writers(tuple({each.name: each for each in ordered}.values()), broken)


def choose_writers(writers: Writers, scope: Scope, choice: WriterChoice) -> Cast:
    """Decide who takes part.

    Raises `UsageError` where one was named that does not run here, or whose data do not lie
    wholly in the image: then it can make no promise for what is in it.
    """
    chosen: list[FoundWriter] = []
    left_out: dict[str, str] = {}
    for each in writers.found:
        named = bool({each.name, each.writer.kind} & set(choice.names))
        outside = [path for path in each.paths if not scope.covers(path)]
        here = any(scope.touches(path) for path in each.paths)
        if named and outside:
            raise UsageError(
                f"the data of {each.name} do not all lie in the image:"
                f" {', '.join(map(str, outside))}",
                hint="image those volumes as well, or leave the writer out",
            )
        if named or (choice.auto and not outside):
            chosen.append(each)
        elif here:
            left_out[each.name] = (
                f"not all of its data lie in the image: {', '.join(map(str, outside))}"
                if outside
                else "it was not asked for"
            )
    known = {word for each in writers.found for word in (each.name, each.writer.kind)}
    if lost := [name for name in choice.names if name not in known]:
        why = "; ".join(f"{kind}: {text}" for kind, text in writers.broken.items())
        raise UsageError(
            f"no writer named {lost[0]} runs here" + (f" ({why})" if why else ""),
            hint="freezeframe writers lists those that do",
        )
    return Cast(tuple(chosen), left_out)


def _made(kinds: Mapping[str, type[WriterKind]], broken: dict[str, str]) -> dict[str, WriterKind]:
    made = {}
    for name, kind in kinds.items():
        try:
            made[name] = kind()
        except Exception as error:  # another package's mistake, whatever it is
            broken[name] = f"{type(error).__name__}: {error}"
    return made
