"""A store in memory: for tests, and for what never needs to be kept."""

from __future__ import annotations

import threading

from freezeframe.core.errors import ObjectMissing, RepositoryDamaged, StoreError
from freezeframe.store.base import Kind, Listing, Parts, is_object_name


class MemoryStore:
    """Objects in a dict."""

    def __init__(self, location: str = "memory") -> None:
        self._location = location
        self._lock = threading.Lock()
        self._objects: dict[tuple[Kind, str], bytes] = {}

    @property
    def location(self) -> str:
        """What it was called at its making."""
        return self._location

    def create(self) -> None:
        """Nothing is needed."""

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        """Keep a copy."""
        _check_name(kind, name)
        data = b"".join(parts)
        with self._lock:
            if (kind, name) in self._objects:
                raise StoreError(f"{kind}/{name} exists already, and is never replaced")
            self._objects[kind, name] = data

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of an object."""
        _check_name(kind, name)
        try:
            data = self._objects[kind, name]
        except KeyError:
            raise ObjectMissing(kind, name) from None
        if length is None:
            length = max(len(data) - offset, 0)
        part = data[offset : offset + length]
        if offset > len(data) or len(part) != length:
            raise RepositoryDamaged(kind, name, f"it ends at {len(data)} bytes")
        return part

    def list(self, kind: Kind) -> Listing:
        """Return names and sizes."""
        with self._lock:
            return [(name, len(data)) for (of, name), data in self._objects.items() if of is kind]

    def exists(self, kind: Kind, name: str) -> bool:
        """Whether it is there."""
        _check_name(kind, name)
        return (kind, name) in self._objects

    def remove(self, kind: Kind, name: str) -> None:
        """Forget an object."""
        _check_name(kind, name)
        with self._lock:
            if self._objects.pop((kind, name), None) is None:
                raise ObjectMissing(kind, name)

    def tidy(self, older_than: float) -> int:  # noqa: ARG002 - the protocol's parameter
        """Nothing is ever left over."""
        return 0


def _check_name(kind: Kind, name: str) -> None:
    if not is_object_name(kind, name):
        raise StoreError(f"{name!r} is no name of an object of kind {kind}")
