"""What every store promises: named objects, written once, whole or not at all."""

from __future__ import annotations

import string
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol


class Kind(StrEnum):
    """What an object is; the folder it lies in, as restic names them."""

    CONFIG = "config"
    KEYS = "keys"
    DATA = "data"
    INDEX = "index"
    SNAPSHOTS = "snapshots"
    LOCKS = "locks"


#: The one object of kind CONFIG; all others are named by the SHA-256 of their bytes.
CONFIG_NAME = "config"

#: What an object is made of: written one after the other, without being joined first.
Parts = Sequence[bytes | bytearray | memoryview]
#: (name, size in bytes) of objects.
Listing = list[tuple[str, int]]

_HEX = frozenset(string.hexdigits.lower())


def is_object_name(kind: Kind, name: str) -> bool:
    """Whether a name can be an object's: 64 lowercase hex digits, or `config`."""
    if kind is Kind.CONFIG:
        return name == CONFIG_NAME
    return len(name) == 64 and _HEX.issuperset(name)


class Store(Protocol):
    """Named write-once objects of a few kinds. Thread-safe.

    Every method raises `StoreError` where the storage fails. Names are 64 lowercase hex
    digits (`config` for the one of kind CONFIG); others raise `StoreError`.
    """

    @property
    def location(self) -> str:
        """Where it is, as the user would name it."""

    def create(self) -> None:
        """Make what an empty store needs. Doing it again changes nothing."""

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        """Store an object made of `parts` joined; the caller may reuse them on return.

        On return the object is durable. Whatever fails, or whenever the machine dies, it is
        either there whole or not there. An object that exists is never replaced: `StoreError`.
        """

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`, or all that follow.

        Raises `ObjectMissing`, and `RepositoryDamaged` where the object ends before.
        """

    def list(self, kind: Kind) -> Listing:
        """Return (name, size in bytes) of every object, in no order; foreign names are not."""

    def exists(self, kind: Kind, name: str) -> bool:
        """Whether the object is there."""

    def remove(self, kind: Kind, name: str) -> None:
        """Remove an object. Raises `ObjectMissing` where there is none."""

    def tidy(self, older_than: float) -> int:
        """Remove what interrupted puts left more than `older_than` seconds ago; return how many."""
