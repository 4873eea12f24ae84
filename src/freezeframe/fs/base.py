"""What every filesystem room promises: recognise a region, tell what of it is in use."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents


class State(enum.StrEnum):
    """What others may do to a region while its used map is read: how far to trust its bytes."""

    #: Nobody has it mounted for writing. Anything unclean counts as used, whole.
    AT_REST = "at rest"
    #: Mounted, and frozen (FIFREEZE) at the moment the bytes are from: exact, to be trusted.
    #: Who says so answers for it; a filesystem that cannot be frozen is taken whole.
    FROZEN = "frozen"
    #: Mounted and written to: an estimate of what is worth copying ahead, nothing more. It
    #: names too much and too little, as its structures are of different moments.
    LIVE = "live"


def verify_at_rest(name: str, state: State) -> None:
    """Raise `NotUnderstood` for a mounted filesystem of a kind that cannot be frozen.

    Its marks tell nothing then: FAT sets its dirty bit at the mount, but exfat and ntfs3
    clear theirs with every sync (exfat_sync_fs, ntfs_sync_fs) and write on.
    """
    if state is not State.AT_REST:
        raise NotUnderstood(f"{name} that is mounted cannot be frozen: imaged whole")


@dataclass(frozen=True, slots=True)
class UsedMap:
    """What of a region holds something; the rest may be stored as zeros.

    Whoever makes one answers for this: no byte outside `used` is ever needed by the
    filesystem, its boot code, its checker or its mount.
    """

    #: The word for it: `ext4`, `xfs`, `btrfs`, `ntfs`, `fat32`, `swap`, `lvm2`, `luks2`, `unknown`.
    kind: str
    #: In bytes from the start of the region; never past the region's end.
    used: Extents
    #: Whether the structures were understood. False: `used` is the whole region.
    understood: bool
    #: Why not, or anything an administrator should know: dirty, newer features, damage.
    notes: tuple[str, ...] = ()
    label: str = ""
    uuid: str = ""
    #: Allocation unit in bytes; 0 where there is none.
    block_size: int = 0
    #: Bytes the filesystem itself spans; 0 where it does not say.
    span: int = 0
    #: Text or raw pieces worth keeping beside the image, by file name (`[A-Za-z0-9._-]+`).
    pieces: Mapping[str, bytes] = field(default_factory=dict)
    #: Volumes inside (LVM): name → its own used map, for display only.
    inside: Mapping[str, UsedMap] = field(default_factory=dict)
    #: What was said of the region when the map was read; a map of `LIVE` proves nothing.
    state: State = State.AT_REST


class Peers(Protocol):
    """The other regions of the same image, for filesystems that span several."""

    def regions(self) -> Iterable[Reader]:
        """Every region of every disk in the image, this one included, in a fixed order."""


@dataclass(frozen=True, slots=True)
class PeerList:
    """The plain peers: a list of readers."""

    readers: tuple[Reader, ...] = ()

    def regions(self) -> Iterable[Reader]:
        """Give them in order."""
        return self.readers


class FilesystemKind(Protocol):
    """One filesystem or volume format."""

    @property
    def name(self) -> str:
        """Its word, lower case: `ext`, `xfs`."""

    def recognise(self, reader: Reader) -> bool:
        """Whether the region starts (or ends) with this format's signature. Reads little."""

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Tell what is in use. Never mounts, needs no root, bounded in time and memory.

        `state` tells what others may do to the region meanwhile. A kind that cannot be
        frozen refuses all but `AT_REST`, however clean it looks.

        Raises `NotUnderstood` with the reason where the structures are damaged, dirty in a
        way that makes the maps untrue, or newer than this parser; the caller then counts
        the whole region as used. Raises `UnreadableRange` where the medium fails.
        """
