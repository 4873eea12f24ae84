"""A tree of folders and files, as FUSE asks for it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from freezeframe.access.pages import PageStore, Store
from freezeframe.access.tree import Entry, File, Folder, Link, find
from freezeframe.block.base import Reader, Writer
from freezeframe.core.errors import FreezeframeError, TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
#: Damage is told of so many places; a disk full of it would fill the terminal.
_TOLD = 1000


class TreeOperations:
    """Answers for one mount. Thread-safe; every method raises `OSError` for the kernel.

    `tell` gets a line for each damaged place that somebody reads, once. `shared`: users
    besides the owner may look.
    """

    #: Times are nanoseconds: mfusepy asks for this.
    use_ns = True

    def __init__(
        self,
        root: Folder,
        tell: Callable[[str], None],
        *,
        folder: Path | None = None,
        shared: bool = False,
    ) -> None:
        self._root = root
        #: Where it is mounted.
        self._folder = folder
        self._tell = tell
        self._shared = shared
        self._owner = os.geteuid(), os.getegid()
        self._open: dict[int, tuple[Reader, Writer | None]] = {}
        self._numbers = itertools.count(1)
        self._told: set[tuple[str, int]] = set()
        #: Set when the kernel begins to ask.
        self.mounted = threading.Event()
        #: Takes the rest of chunks that were opened for a small read; None: nobody does.
        self.pages: PageStore | None = None

    def init_with_config(self, connection: object, config: object) -> None:
        """Note that it is mounted."""
        del connection, config
        self.mounted.set()

    def take_store(self, store: Store) -> None:
        """Take what hands bytes to the kernel."""
        if self._folder is not None:
            folder = os.fspath(self._folder)
            self.pages = PageStore(store, lambda path: Path(folder + path).stat().st_ino)

    # -- names --------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Return what stat(2) tells."""
        del fh
        return self._status(self._find(path))

    def readdir(self, path: str, fh: int) -> list[str]:
        """List a folder."""
        del fh
        return [".", "..", *self._entries(self._find(path))]

    def readlink(self, path: str) -> str:
        """Return where a link leads."""
        entry = self._find(path)
        if not isinstance(entry, Link):
            raise _error(errno.EINVAL)
        return entry.target

    def statfs(self, path: str) -> dict[str, int]:
        """Tell that nothing is free."""
        del path
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def _find(self, path: str) -> Entry:
        try:
            entry = find(self._root, path)
        except FreezeframeError as error:
            raise self._failed(path, 0, error) from error
        if entry is None:
            raise _error(errno.ENOENT)
        return entry

    def _entries(self, entry: Entry) -> list[str]:
        if not isinstance(entry, Folder):
            raise _error(errno.ENOTDIR)
        try:
            return list(entry.entries)
        except FreezeframeError as error:
            raise self._failed("a folder", 0, error) from error

    def _status(self, entry: Entry) -> dict[str, int]:
        time = int(entry.time * 1e9)
        known = {
            "st_uid": self._owner[0],
            "st_gid": self._owner[1],
            "st_nlink": 1,
            "st_atime": time,
            "st_mtime": time,
            "st_ctime": time,
        }
        others = 0o055 if self._shared else 0
        if isinstance(entry, Folder):
            mode = stat.S_IFDIR | 0o500 | (0 if entry.private else others)
            return {**known, "st_mode": mode, "st_nlink": 2}
        if isinstance(entry, Link):
            return {**known, "st_mode": stat.S_IFLNK | 0o777, "st_size": len(entry.target)}
        mode = stat.S_IFREG | (0o600 if entry.writer is not None else 0o400 | others & 0o044)
        blocks = -(-(entry.size if entry.taken is None else entry.taken) // 512)
        return {**known, "st_mode": mode, "st_size": entry.size, "st_blocks": blocks}

    # -- files --------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        """Open a file; return the number it is known by."""
        entry = self._find(path)
        if not isinstance(entry, File):
            raise _error(errno.EISDIR)
        if flags & _WRITING and entry.writer is None:
            raise _error(errno.EROFS)
        try:
            reader = entry.reader()
        except FreezeframeError as error:
            raise self._failed(path, 0, error) from error
        number = next(self._numbers)
        self._open[number] = reader, entry.writer
        return number

    def release(self, path: str, fh: int) -> int:
        """Close it."""
        del path
        self._open.pop(fh, None)
        return 0

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        """Fill a buffer as far as the file goes; return how much that was."""
        reader, _ = self._opened(number)
        length = min(len(buffer), max(reader.size - offset, 0))
        if not length:
            return 0
        try:
            reader.read_into(offset, buffer[:length])
        except UnreadableRange as error:
            raise self._failed(error.path, error.offset, error) from error
        except FreezeframeError as error:
            raise self._failed(reader.name, offset, error) from error
        return length

    def after_read(self, path: str, number: int, offset: int, length: int) -> None:
        """Give the kernel what it did not ask for, now that it has been answered."""
        found = self._open.get(number)
        # What is written to must not be overtaken by what was there before.
        if self.pages is not None and found is not None and found[1] is None:
            self.pages.offer(path, found[0], offset, length)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Return bytes: as `read_into`."""
        del path
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(fh, offset, memoryview(buffer))])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write to a private layer."""
        del path
        _, writer = self._opened(fh)
        if writer is None:
            raise _error(errno.EROFS)
        try:
            writer.write_at(offset, data)
        except TargetUnsuitable as error:
            self._told_of(writer.name, offset, error)
            raise _error(errno.ENOSPC) from error
        except FreezeframeError as error:
            raise self._failed(writer.name, offset, error) from error
        return len(data)

    def refuse(self, *arguments: object) -> int:
        """Change nothing: no name, no size, no mode."""
        del arguments
        raise _error(errno.EROFS)

    truncate = unlink = rmdir = mkdir = mknod = create = rename = refuse
    link = symlink = chmod = chown = utimens = setxattr = removexattr = refuse

    def lseek(self, path: str, offset: int, whence: int) -> int:
        """Make the binding look for holes; it calls `seek`."""
        raise NotImplementedError(path, offset, whence)

    def seek(self, number: int, offset: int, whence: int) -> int:
        """Find data (SEEK_DATA) or a hole (SEEK_HOLE) from an offset on."""
        reader, _ = self._opened(number)
        if not 0 <= offset < reader.size:
            raise _error(errno.ENXIO)
        try:
            extents = reader.data_extents()
        except FreezeframeError as error:
            raise self._failed(reader.name, offset, error) from error
        if whence == os.SEEK_DATA:
            return _next_data(extents, offset)
        if whence == os.SEEK_HOLE:
            return min(_next_hole(extents, offset), reader.size)
        raise _error(errno.EINVAL)

    def _opened(self, number: int) -> tuple[Reader, Writer | None]:
        found = self._open.get(number)
        if found is None:
            raise _error(errno.EBADF)
        return found

    # -- errors -------------------------------------------------------------------------

    def _failed(self, name: str, offset: int, error: FreezeframeError) -> OSError:
        self._told_of(name, offset, error)
        return _error(errno.EIO)

    def _told_of(self, name: str, offset: int, error: FreezeframeError) -> None:
        place = name, offset
        if place not in self._told and len(self._told) < _TOLD:
            self._told.add(place)
            self._tell(error.message)


def _next_data(extents: Extents, offset: int) -> int:
    """Return the first byte from an offset on that is in the set."""
    index = int(np.searchsorted(extents.stops, offset, "right"))
    if index == len(extents):
        raise _error(errno.ENXIO)
    return max(offset, int(extents.starts[index]))


def _next_hole(extents: Extents, offset: int) -> int:
    """Return the first byte from an offset on that is not in the set."""
    index = int(np.searchsorted(extents.stops, offset, "right"))
    if index < len(extents) and int(extents.starts[index]) <= offset:
        return int(extents.stops[index])
    return offset


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
