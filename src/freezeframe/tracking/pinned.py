"""Pinned maps, links and programs, by the system call bpf(2) alone: no library is needed.

Numbers and structures: include/uapi/linux/bpf.h of Linux.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "i686": 357,
    "armv7l": 386,
}
_OBJ_GET = 7
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
#: struct bpf_prog_info as far as it is read, and where recursion_misses (5.12) lies in it.
_PROG_INFO_SIZE = 216
_TAG = slice(8, 16)
_MISSES = 208
#: struct bpf_link_info: type, id, prog_id; what follows differs from type to type.
_LINK_INFO_SIZE = 64

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    """Call the kernel. Raises `OSError`."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) is not known for {platform.machine()}")
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_ulong(len(attributes))
    )
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return int(result)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open what is pinned at a path. Raises `OSError`: nothing there, no rights."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attributes = struct.pack("=QII", ctypes.addressof(name), 0, 0)
    try:
        descriptor = _bpf(_OBJ_GET, attributes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _info(descriptor: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    attributes = struct.pack("=IIQ", descriptor, size, ctypes.addressof(buffer))
    _bpf(_OBJ_GET_INFO_BY_FD, attributes)
    return buffer.raw


def map_memory(path: Path, length: int) -> mmap.mmap:
    """Map a pinned array (`length` bytes from its start) for reading and writing.

    The caller closes it. Raises `OSError`.
    """
    with _opened(path) as descriptor:
        return mapped(descriptor, length)


def mapped(descriptor: int, length: int) -> mmap.mmap:
    """Map an array by its descriptor, which may be closed afterwards."""
    page = mmap.PAGESIZE
    whole = -(-length // page) * page
    return mmap.mmap(descriptor, whole, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


@dataclass(frozen=True, slots=True)
class Link:
    """A program attached, as the kernel tells it."""

    #: Ids are given once a boot.
    link: int
    #: Hash of the program's instructions, 16 hex digits.
    tag: str
    #: How often the kernel left the program out because it was at work on that processor
    #: already; of one such program, not of several that listen to the same.
    misses: int


def link_at(path: Path) -> Link:
    """Return what is attached by a pinned link. Raises `OSError`."""
    with _opened(path) as descriptor:
        _, number, program = struct.unpack_from("=3I", _info(descriptor, _LINK_INFO_SIZE))
    held = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", program, 0, 0))
    try:
        info = _info(held, _PROG_INFO_SIZE)
    finally:
        os.close(held)
    (misses,) = struct.unpack_from("=Q", info, _MISSES)
    return Link(number, info[_TAG].hex(), misses)
