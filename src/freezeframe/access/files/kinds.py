"""The registry: which reader is for which filesystem. The one place that knows all of them."""

from __future__ import annotations

from freezeframe.access.files.base import Filesystem, understood
from freezeframe.access.files.btrfs import Btrfs
from freezeframe.access.files.exfat import ExFat
from freezeframe.access.files.ext import Ext
from freezeframe.access.files.fat import Fat
from freezeframe.access.files.ntfs import Ntfs
from freezeframe.access.files.xfs import Xfs
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.base import PeerList, Peers

#: As used maps name them.
KINDS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "exfat", "fat12", "fat16", "fat32")
)


def readable(content: str) -> bool:
    """Whether files of such a filesystem can be read."""
    return content in KINDS


def open_filesystem(content: str, reader: Reader, peers: Peers | None = None) -> Filesystem:
    """Open a filesystem of a kind; `peers` holds the other regions, for those of several disks.

    Raises `NotUnderstood` where it is damaged, has unknown features, or is of another kind.
    """
    with understood():
        if content in ("ext2", "ext3", "ext4"):
            return Ext(reader)
        if content == "xfs":
            return Xfs(reader)
        if content == "btrfs":
            return Btrfs(reader, peers or PeerList((reader,)))
        if content == "ntfs":
            return Ntfs(reader)
        if content == "exfat":
            return ExFat(reader)
        if content in ("fat12", "fat16", "fat32"):
            return Fat(reader)
    raise NotUnderstood(f"{reader.name} holds {content}: there is no reader for its files")
