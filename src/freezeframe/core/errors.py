"""Errors, grouped by what the caller may do next.

Each carries fields besides its text, a `hint` that says what to do next, and the exit
code of the command line (restic's where restic has one).
"""

from __future__ import annotations


class FreezeframeError(Exception):
    """Anything the program can explain. Nobody needs a traceback for it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FreezeframeError):
    """What was asked for makes no sense: ask differently."""

    exit_code = 2


# -- the source ---------------------------------------------------------------------


class SourceBusy(FreezeframeError):
    """A device is in use and cannot be had exclusively: stop its holders first.

    `holders` tells who, one line each: `mounted read-write at /srv`, `LVM volume group vg0`.
    """

    def __init__(self, device: str, holders: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__(f"{device} is in use: {'; '.join(holders)}", hint=hint)
        self.device = device
        self.holders = holders


class SourceError(FreezeframeError):
    """A source cannot be read at all, shrank or vanished: the image cannot be made."""


class UnreadableRange(FreezeframeError):
    """Some sectors cannot be read: retry smaller, then go on without them.

    `offset` and `length` in bytes; the bad sectors lie somewhere in that range.
    """

    def __init__(self, path: str, offset: int, length: int, reason: str) -> None:
        super().__init__(f"{path}: {length} bytes at {offset} cannot be read: {reason}")
        self.path = path
        self.offset = offset
        self.length = length
        self.reason = reason


class NotUnderstood(FreezeframeError):
    """A structure on disk is unknown, dirty or damaged: count its whole region as used."""


# -- freezing -----------------------------------------------------------------------


class FreezeError(FreezeframeError):
    """A filesystem could not be frozen or thawed as asked: nothing of ours stays frozen."""


class FreezeBusy(FreezeError):
    """Somebody else has frozen a filesystem: wait for them, or image it another way."""


class FreezeBroken(FreezeError):
    """A freeze ended before it was to: what was read under it is not one point in time."""


class WritesLeftOut(FreezeBroken):
    """Writes left no mark, and nobody knows which: all has to be read again."""


# -- the target ---------------------------------------------------------------------


class TargetUnsuitable(FreezeframeError):
    """The target of a restore is mounted, too small or forbidden: choose another."""


# -- the repository -----------------------------------------------------------------


class StoreError(FreezeframeError):
    """The storage below a repository failed: no room, no permission, gone."""


class ObjectMissing(StoreError):
    """A named object is not in the store."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"{kind}/{name} is not in the repository",
            hint="run `freezeframe check` to see what else is missing",
        )
        self.kind = kind
        self.name = name


class NoRepository(FreezeframeError):
    """There is no repository at that place: make one, or name another."""

    exit_code = 10


class RepositoryUnsupported(FreezeframeError):
    """A repository of a format this program does not write."""

    exit_code = 10


class RepositoryLocked(FreezeframeError):
    """Another program holds a lock that conflicts: wait, or `unlock` if it died."""

    exit_code = 11


class WrongPassword(FreezeframeError):
    """No key of the repository opens with the password given."""

    exit_code = 12


class RepositoryDamaged(FreezeframeError):
    """An object of the repository is not what it must be.

    `kind` and `name` tell which: `data/<id>`, `index/<id>`, `blob/<id>`.
    """

    def __init__(self, kind: str, name: str, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"{kind}/{name} is damaged: {reason}",
            hint=hint or "run `freezeframe check --read-data` to see everything that is hit",
        )
        self.kind = kind
        self.name = name
        self.reason = reason


class NoSuchImage(FreezeframeError):
    """No image, or more than one, has that name: list them with `images`."""


# -- the machine --------------------------------------------------------------------


class ToolMissing(FreezeframeError):
    """A program of the system is needed and not installed."""

    def __init__(self, tool: str, package: str, purpose: str) -> None:
        super().__init__(
            f"{tool} is needed {purpose} and is not installed",
            hint=f"install it: apt-get install {package}",
        )
        self.tool = tool
        self.package = package


class ToolFailed(FreezeframeError):
    """A program of the system was run and failed; `output` is what it printed."""

    def __init__(self, command: str, returncode: int, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        super().__init__(f"`{command}` failed with exit code {returncode}: {last[0]}")
        self.command = command
        self.returncode = returncode
        self.output = output


class TrackingUnavailable(FreezeframeError):
    """Writes to a disk cannot be tracked here: image it offline, or give the machine what lacks."""


class TrackingBusy(FreezeframeError):
    """Another freezeframe works with the marks of a disk: wait for it."""
