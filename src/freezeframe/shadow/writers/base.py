"""What a writer is: an application that makes itself consistent for the moment of an image.

A writer is found by its kind, one for each instance that runs. The coordinator calls, in
this order and with everything bounded by a deadline:

    prepare → (freeze → thaw)… → finish

`freeze` and `thaw` may come several times, because a hot freeze that left too much is done
again. Each call is made in a thread of the coordinator; `thaw` may come from another one
than `freeze`, and while `freeze` still hangs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import Scope

__all__ = ["Scope", "Writer", "WriterKind", "WriterResult", "WriterVeto"]


_NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_PIECES: Mapping[str, bytes] = MappingProxyType({})


class WriterVeto(FreezeError):
    """A writer says no: its application could not be made consistent now."""


@dataclass(frozen=True, slots=True)
class WriterResult:
    """What a writer says of its data in the image."""

    #: What may be claimed: the application's own promise, or no more than a power cut's.
    consistency: Literal["application", "crash"]
    notes: tuple[str, ...] = ()
    #: For people and programs: positions, versions. Never a password.
    facts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    #: Files kept in the image beside the layout (a backup label), by name: letters, digits,
    #: `.`, `-` and `_`.
    pieces: Mapping[str, bytes] = field(default_factory=lambda: _NO_PIECES)


class Writer(ABC):
    """One running instance of an application."""

    #: The application: `postgresql`.
    kind: ClassVar[str]
    #: Whether it holds programs still that may use other writers (a script that stops a
    #: service, a container): it is frozen before all others and thawed after them.
    stops_others: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Which instance, unique on this machine and the same each time: `postgresql:15/main`."""

    @abstractmethod
    def about(self) -> str:
        """Say in a few words what it is and how it is: version, state, how many databases."""

    @abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """Return all files and folders its data lie on, absolute, links followed.

        Data, logs of transactions, tablespaces: what a restore needs. It takes part in an
        image that holds all of them, and is left out of others. One that names nothing takes
        part in every image.
        """

    def prepare(self, scope: Scope, deadline: Deadline) -> None:  # noqa: B027
        """Do what may take long and holds nothing: a checkpoint, the start of a backup.

        Raises `WriterVeto`.
        """

    @abstractmethod
    def freeze(self, deadline: Deadline) -> None:
        """Hold still: on return nothing half-done is on the disk, or to be written to it.

        Done before the deadline. Raises `WriterVeto`; then `thaw` is called all the same.
        """

    @abstractmethod
    def thaw(self) -> None:
        """Let it go on, at once; nothing happens where it is not frozen.

        Called from any thread, also while `freeze` hangs, and more than once. Raises
        `FreezeError` only where it could not be thawed, with a hint how to do that by hand.
        """

    @abstractmethod
    def finish(self, taken: bool) -> WriterResult:
        """End what `prepare` began; `taken` tells whether there is a point in time.

        Called once, after the last `thaw`, whatever happened. Raises `WriterVeto` where it
        turns out that what was frozen was not consistent (a server that died meanwhile):
        then there will be no image.
        """

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return command lines that thaw it if this program dies while it is frozen.

        Asked before each `freeze`; run by a small process that
        outlives this one, in this order, without a shell, each for at most some seconds.
        Nothing where the hold ends with this process (a database connection) or by itself.
        """
        return ()


class WriterKind(ABC):
    """A kind of application, and how its instances on this machine are found."""

    #: As `Writer.kind`.
    kind: ClassVar[str]

    @abstractmethod
    def find(self) -> Sequence[Writer]:
        """Return the instances that run here. Quick (a second at most), and never hangs.

        Looks, but changes nothing; no password on a command line. One that runs and cannot
        be used (no permission) is returned and vetoes in `prepare`, so that it is seen.
        """

    def unavailable(self) -> str:
        """Say why none can be found here (a client program or a right is missing), or nothing."""
        return ""
