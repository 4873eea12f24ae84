"""What a set of shadow copies has made and holds, written down so that others can clean it up.

One file a set. It is written before anything is made or held, and removed when nothing of it
is left. Beside it lies a file that the set's program keeps locked: who gets that lock knows
that the program is gone. The folder is in memory; sets that are to be kept (`freezeframe
shadow create`) are written to disk instead, for a volume manager's snapshots outlive a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, UsageError

#: Of sets under way.
RUNNING = Path("/run/freezeframe/shadow")
#: Of sets that are kept, and what writers last said.
KEPT = Path("/var/lib/freezeframe/shadow")

#: The guard's file beside a set's.
UNDONE = ".undone"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_FORMAT = 1


class ProviderEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One provider of a set."""

    kind: str
    #: What its `clean` has to know.
    record: dict[str, str]
    #: Command lines that let writes through again.
    undo: tuple[tuple[str, ...], ...] = ()


class WriterEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One writer of a set."""

    name: str
    undo: tuple[tuple[str, ...], ...] = ()


class ShadowEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One shadow copy of a set that is kept."""

    volume: str
    #: `8:1` of the volume.
    number: str
    size: int
    path: str
    provider: str
    is_device: bool = True


class SetEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One set, as it stands in its file."""

    format: int = _FORMAT
    name: str
    #: What a user calls it.
    label: str = ""
    #: ISO 8601, when it was begun.
    created: str = ""
    #: Of the boot it was made in: device-mapper's tables end with that.
    boot: str = ""
    pid: int = 0
    #: Where it was: `prepare`, `window`, `taken`, `kept`.
    state: str = ""
    providers: tuple[ProviderEntry, ...] = ()
    writers: tuple[WriterEntry, ...] = ()
    shadows: tuple[ShadowEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A set somebody wrote down."""

    entry: SetEntry
    path: Path
    #: Whether its program still runs.
    alive: bool


class Journal(Closing):
    """The file of one set under way. Holds the lock until it is closed."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        check_name(name)
        self.name = name
        self._folder = _own_folder(folder or RUNNING)
        self._path = self._folder / f"{name}.json"
        self._lock = _locked(self._path.with_suffix(".lock"))
        if self._lock is None:
            raise UsageError(
                f"a set of shadow copies named {name} is being made",
                hint="wait for it, or choose another name",
            )

    def write(self, entry: SetEntry) -> None:
        """Write the set down. In memory: nothing is waited for."""
        _write(self._path, entry)

    def remove(self) -> None:
        """Say that nothing of it is left."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the lock go."""
        if self._lock is not None:
            if not self._path.exists():
                self._path.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def running(folder: Path | None = None) -> list[Found]:
    """Return the sets under way and those that a program left."""
    found = []
    for path, entry in _entries(folder or RUNNING):
        lock = _locked(path.with_suffix(".lock"))
        if lock is not None:
            os.close(lock)
        found.append(Found(entry, path, alive=lock is None))
    return found


@contextlib.contextmanager
def taken_over(found: Found) -> Iterator[bool]:
    """Hold a set that a program left, to clean it up; gives whether it could be had."""
    lock_path = found.path.with_suffix(".lock")
    lock = _locked(lock_path)
    if lock is None:
        yield False
        return
    try:
        yield found.path.exists()
        if not found.path.exists():
            lock_path.unlink(missing_ok=True)
    finally:
        os.close(lock)


# -- sets that are kept -----------------------------------------------------------------


def keep(entry: SetEntry, folder: Path | None = None) -> None:
    """Write down a set that stays when its program ends. Durable on return."""
    path = _own_folder(folder or KEPT) / f"{entry.name}.json"
    _write(path, entry, durable=True)


def kept(folder: Path | None = None) -> list[Found]:
    """Return the sets that are kept, oldest first."""
    found = [Found(entry, path, alive=False) for path, entry in _entries(folder or KEPT)]
    return sorted(found, key=lambda each: each.entry.created)


def forget(name: str, folder: Path | None = None) -> None:
    """Say that nothing of a kept set is left."""
    check_name(name)
    ((folder or KEPT) / f"{name}.json").unlink(missing_ok=True)


def check_name(name: str) -> None:
    """Raise `UsageError` for what cannot be the name of a set."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a set of shadow copies",
            hint="small letters, digits and -, 31 at most",
        )


# -- files ------------------------------------------------------------------------------


def _own_folder(folder: Path) -> Path:
    """Make a folder that is root's own: who could write there could have commands run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise FreezeframeError(
            f"{folder} is not this user's own folder", hint="see who made it, and remove it"
        )
    return folder


def _entries(folder: Path) -> Iterator[tuple[Path, SetEntry]]:
    try:
        paths = sorted(folder.glob("*.json"))
        if paths and folder.lstat().st_uid != os.geteuid():
            return
    except OSError:
        return
    for path in paths:
        # What cannot be read is none of ours, or of a newer program.
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            entry = msgspec.json.decode(path.read_bytes(), type=SetEntry)
            if entry.format <= _FORMAT and entry.name == path.stem:
                yield path, entry


def _write(path: Path, entry: SetEntry, *, durable: bool = False) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(msgspec.json.encode(entry))
        if durable:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)
    if durable:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return a descriptor with the lock; None where another program has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FreezeframeError(f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
