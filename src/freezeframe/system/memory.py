"""How much memory the machine has to spare, and keeping our own from being taken away."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

# From Linux' asm-generic/mman.h; PowerPC, SPARC and Alpha number them otherwise.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = (
    (0x2000, 0x4000, 0x8000)
    if os.uname().machine.startswith(("ppc", "sparc", "alpha"))
    else (1, 2, 4)
)

_libc = ctypes.CDLL(None, use_errno=True)


def lock_memory() -> None:
    """Hold all memory of this process that is there or will be touched.

    Nothing of it is taken away then. What was never touched is not read in: that would take
    a third of a second, and reading is what a frozen filesystem allows. `OSError` where the
    right or the memory is missing.
    """
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fill_memory() -> None:
    """Read in all that this process has mapped, its programs and libraries too, and hold it.

    For who must not even read from a disk: a third of a second at first, little when repeated.
    `OSError` as `lock_memory`.
    """
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unlock_memory() -> None:
    """Undo `lock_memory`; nothing happens where nothing is locked."""
    _libc.munlockall()


def available_memory() -> int:
    """Return the bytes that can be used without swapping (MemAvailable); 0 where unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
