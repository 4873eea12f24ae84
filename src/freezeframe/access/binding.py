"""mfusepy's binding of libfuse with what it lacks: no needless copy, and holes.

To be imported once the library has been chosen (`fuse.load_binding`): importing mfusepy
loads it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import mfusepy

from freezeframe.access.pages import library_store

if TYPE_CHECKING:
    from freezeframe.access.operations import TreeOperations


class Binding(mfusepy.FUSE):
    """Calls a `TreeOperations`."""

    operations: TreeOperations

    def read(
        self,
        path: bytes | None,
        buf: ctypes._Pointer[ctypes.c_byte],
        size: int,
        offset: int,
        fip: ctypes._Pointer[mfusepy.fuse_file_info],
    ) -> int:
        """Fill the library's own buffer."""
        array = (ctypes.c_ubyte * size).from_address(ctypes.addressof(buf.contents))
        view = memoryview(array).cast("B")
        number = fip.contents.fh
        length = self.operations.read_into(number, offset, view)
        if path is not None:
            self.operations.after_read(path.decode(), number, offset, length)
        return length

    def init_fuse_3(
        self,
        conn: ctypes._Pointer[ctypes.Structure],
        config: ctypes._Pointer[ctypes.Structure],
    ) -> None:
        """Note the handle by which the kernel is told of bytes it did not ask for."""
        fuse = mfusepy._libfuse.fuse_get_context().contents.fuse
        if fuse:
            self.operations.take_store(library_store(mfusepy._libfuse, fuse))
        super().init_fuse_3(conn, config)

    def lseek(
        self,
        path: bytes | None,
        offset: int,
        whence: int,
        fip: ctypes._Pointer[mfusepy.fuse_file_info],
    ) -> int:
        """Find data and holes."""
        del path
        return self.operations.seek(fip.contents.fh, offset, whence)
