"""What is noted of each tracker: where, in which form, and who may change it.

Notes and pending sets lie in memory (tmpfs), for two reasons. Marks are kept by the kernel in
memory, so a reboot ends the chain of increments anyway. And they are written while every
filesystem on a disk is frozen, which would never end on one of those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from freezeframe.core.errors import TrackingBusy, TrackingUnavailable
from freezeframe.system.mounts import own_mounts
from freezeframe.tracking.counting import Counted
from freezeframe.tracking.disk import TrackedDisk
from freezeframe.tracking.pinned import Link

BPFFS = Path("/sys/fs/bpf")
#: Tried in this order: the first that is memory.
_MEMORY = (Path("/run"), Path("/dev/shm"))
_KINDS_OF_MEMORY = ("tmpfs", "ramfs")
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class PinnedLink:
    """One program attached, and what the kernel said of it then."""

    name: str
    link: int
    tag: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that was true when tracking of a disk started."""

    disk: TrackedDisk
    boot: str
    generation: str
    links: tuple[PinnedLink, ...]
    #: Seconds since 1970.
    started: float
    #: `requests`, `bios`, or `classic` where the kernel has no BTF.
    mode: str
    #: Where counting its writes began.
    counted: Counted
    #: Why an earlier tracker of this disk was given up; empty where there was none.
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The last image of one repository that has this disk."""

    repository: str
    image: str
    #: The tracker's, when the image was made.
    generation: str
    #: Name of the file that holds what was written since.
    pending: str


def notes_folder() -> Path:
    """Return the folder of all notes, in memory and root's own. Raises `TrackingUnavailable`."""
    folder = place_in_memory() / "freezeframe" / "tracking"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in (folder.parent, folder):
        status = part.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise TrackingUnavailable(
                f"{part} is not this user's own folder",
                hint="see who made it, and remove it",
            )
    return folder


def place_in_memory() -> Path:
    """Return the filesystem the notes go to. Raises `TrackingUnavailable` for none in memory."""
    kinds = {mount.point: mount.kind for mount in own_mounts()}
    for place in _MEMORY:
        if kinds.get(str(place)) in _KINDS_OF_MEMORY:
            return place
    raise TrackingUnavailable(
        "neither /run nor /dev/shm is memory (tmpfs), where marks are kept",
        hint="mount one: mount -t tmpfs tmpfs /dev/shm",
    )


def pins_folder() -> Path:
    """Return the folder of all pins. Raises `TrackingUnavailable` where there is no bpffs."""
    if not any(mount.kind == "bpf" and mount.point == str(BPFFS) for mount in own_mounts()):
        raise TrackingUnavailable(
            f"no BPF filesystem is mounted at {BPFFS}",
            hint=f"mount it: mount -t bpf bpf {BPFFS}",
        )
    return BPFFS / "freezeframe"


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of one tracker lies."""

    pins: Path
    notes: Path

    @property
    def record(self) -> Path:
        """The record of the tracker."""
        return self.notes / "record.json"

    @property
    def flags(self) -> Path:
        """The pinned map of flags."""
        return self.pins / "flags"

    @property
    def state(self) -> Path:
        """The pinned map of counters."""
        return self.pins / "state"

    def link(self, program: str) -> Path:
        """Return the pinned link of a program."""
        return self.pins / f"link_{program}"

    def base(self, repository: str) -> Path:
        """Return the note on the last image in a repository."""
        return self.notes / f"base-{_short(repository)}.json"

    def remove(self) -> None:
        """Detach everything and forget all notes; nothing there is no error."""
        # The record first: without it nothing of the rest is believed.
        with contextlib.suppress(FileNotFoundError):
            self.record.unlink()
        for folder in (self.pins, self.notes):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


def places_of(number: str) -> Places:
    """Return where the tracker of a disk (`8:0`) lies. Raises `TrackingUnavailable`."""
    key = number.replace(":", "-")
    return Places(pins_folder() / key, notes_folder() / key)


def all_places() -> list[Places]:
    """Return the places of every tracker there are notes of."""
    pins, notes = pins_folder(), notes_folder()
    names = sorted(path.parent.name for path in notes.glob("*/record.json"))
    return [Places(pins / name, notes / name) for name in names]


def read_record(places: Places) -> Record | None:
    """Return what was noted; None for nothing, or nothing that makes sense."""
    return _read(places.record, Record)


def read_base(places: Places, repository: str) -> BaseRecord | None:
    """Return what was noted of a repository; None for nothing, or nothing that makes sense."""
    found = _read(places.base(repository), BaseRecord)
    return found if found is not None and found.repository == repository else None


def bases(places: Places) -> list[BaseRecord]:
    """Return what was noted of all repositories."""
    found = (_read(path, BaseRecord) for path in sorted(places.notes.glob("base-*.json")))
    return [base for base in found if base is not None]


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def write_note(path: Path, note: Record | BaseRecord) -> None:
    """Put a note in its place, whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(msgspec.json.encode(note))
    unfinished.rename(path)


def new_pending_name(repository: str) -> str:
    """Return a name for a pending set that no other has."""
    return f"pending-{_short(repository)}-{os.urandom(8).hex()}"


def _short(repository: str) -> str:
    """Return what stands for a repository in names of files: ids may hold anything."""
    return hashlib.sha256(repository.encode()).hexdigest()[:16]


def as_noted(name: str, link: Link) -> PinnedLink:
    """Return a link as it goes into the record."""
    return PinnedLink(name, link.link, link.tag)


@contextlib.contextmanager
def locked(number: str) -> Iterator[None]:
    """Hold a disk's tracker alone. Raises `TrackingBusy` where somebody else does.

    Two harvests at once would each see half of the marks.
    """
    descriptor = lock(number)
    try:
        yield
    finally:
        os.close(descriptor)


def lock(number: str) -> int:
    """Return a descriptor that holds the lock until it is closed. Raises `TrackingBusy`."""
    path = notes_folder() / f"{number.replace(':', '-')}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise TrackingBusy(
            f"another freezeframe works with the marks of disk {number}",
            hint="wait until it is done",
        ) from error
    return descriptor
