"""The rest of a chunk for the kernel's page cache, when it has asked for a little of it.

A chunk has to be opened whole, whatever is wanted of it: 2 ms for the first 4 KiB. The next
4 KiB of it then cost nothing, if the kernel has them already. Its page cache holds far more
than ours, and gives the memory back when it is needed.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from freezeframe.block.base import Reader
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import CHUNK, KIB

#: Longer requests come from the kernel's own reading ahead: it needs no help with those.
_SMALL = 64 * KIB
#: Chunks waiting to be handed over; more are not worth their memory.
_WAITING = 4

#: Hands bytes at an offset of an inode to the kernel.
Store = Callable[[int, int, bytes], None]


class PageStore(Closing):
    """Hands chunks to the kernel in a thread of its own.

    Not in the one that answers: the kernel holds the page that was asked for until then.
    """

    def __init__(self, store: Store, inode_of: Callable[[str], int]) -> None:
        self._store = store
        self._inode_of = inode_of
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pages")
        self._waiting = threading.Semaphore(_WAITING)
        self._lock = threading.Lock()
        self._inodes: dict[str, int] = {}
        self._under_way: set[tuple[str, int]] = set()

    def offer(self, path: str, reader: Reader, offset: int, length: int) -> None:
        """Hand over the chunk around a request that was just answered, if it was a small one."""
        if length > _SMALL:
            return
        start = offset // CHUNK * CHUNK
        key = path, start
        with self._lock:
            if key in self._under_way or not self._waiting.acquire(blocking=False):
                return
            self._under_way.add(key)
        try:
            self._pool.submit(self._hand_over, key, reader)
        except RuntimeError:  # closed meanwhile
            self._done(key)

    def _hand_over(self, key: tuple[str, int], reader: Reader) -> None:
        path, start = key
        try:
            if path not in self._inodes:
                self._inodes[path] = self._inode_of(path)
            data = reader.read_at(start, min(CHUNK, reader.size - start))
            self._store(self._inodes[path], start, data)
        except (OSError, FreezeframeError):
            pass  # told when somebody wants it
        finally:
            self._done(key)

    def _done(self, key: tuple[str, int]) -> None:
        with self._lock:
            self._under_way.discard(key)
        self._waiting.release()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Buffer(ctypes.Structure):
    """`struct fuse_bufvec` with its one `struct fuse_buf`, of libfuse's fuse_common.h."""

    _fields_ = (
        ("count", ctypes.c_size_t),
        ("idx", ctypes.c_size_t),
        ("off", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_char_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_longlong),
        # Newer versions have more; zeros mean nothing there.
        ("reserved", ctypes.c_size_t * 8),
    )


def library_store(library: ctypes.CDLL, fuse: int) -> Store:
    """Return what hands bytes to the kernel through libfuse; `fuse` is its own handle."""
    library.fuse_get_session.restype = ctypes.c_void_p
    library.fuse_get_session.argtypes = (ctypes.c_void_p,)
    notify = library.fuse_lowlevel_notify_store
    notify.restype = ctypes.c_int
    notify.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_longlong,
        ctypes.POINTER(_Buffer),
        ctypes.c_int,
    )
    session: object = library.fuse_get_session(fuse)

    def store(inode: int, offset: int, data: bytes) -> None:
        buffer = _Buffer(count=1, size=len(data), mem=data, fd=-1)
        code: object = notify(session, inode, offset, ctypes.byref(buffer), 0)
        if code:
            raise OSError(-int(str(code)), os.strerror(-int(str(code))))

    return store
