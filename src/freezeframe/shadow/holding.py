"""What the coordinator does alike with writers and with providers: holding, and letting go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.shadow.crew import Crew
from freezeframe.shadow.guard import Guard, Hold

#: Seconds a thaw, a resume or a release is waited for before the others' turn comes.
LETTING_GO = 20.0


@dataclass(slots=True)
class Part:
    """One writer or provider, and where it is."""

    #: As the guard knows it.
    key: str
    #: What lets it go if this program dies.
    undo: tuple[tuple[str, ...], ...] = ()
    #: Whether it has been asked to hold still, and was not let go since.
    held: bool = False
    #: Counts freezes and thaws: who comes back from one and finds another number was too late.
    turn: int = 0
    #: When its freeze was asked for, and when that was done, monotonic.
    asked: float = 0.0
    since: float = 0.0
    #: Whether a call of it never came back.
    hangs: bool = False


class Holding:
    """The writers, or the providers, of a set: their calls, bounded, and the guard told."""

    def __init__(self, crew: Crew, guard: Guard, keys: Sequence[str]) -> None:
        self.crew = crew
        self.parts = [Part(key) for key in keys]
        self._guard = guard

    def tell_guard(self, seconds: float) -> None:
        """Say that all are about to be held, for so long at most."""
        if self.parts:
            self._guard.ensure()
            self._guard.hold(Hold(part.key, seconds, part.undo) for part in self.parts)

    def free(self, numbers: Sequence[int]) -> list[str]:
        """Say that these were let go; return which of them the guard had let go before."""
        for number in numbers:
            self.parts[number].held = False
        undone = self._guard.free([self.parts[number].key for number in numbers])
        return [f"{key} was held for too long, and let go by the guard" for key in undone]
