"""A store that fails where it is told to: faults below the code, not mocks of it."""

from __future__ import annotations

import threading
from enum import StrEnum

from freezeframe.core.errors import StoreError
from freezeframe.store.base import Kind, Listing, Parts, Store


class Fault(StrEnum):
    """How a put fails."""

    #: Nothing is stored.
    REFUSE = "refuse"
    #: As REFUSE, for want of room; from then on every put fails.
    FULL = "full"
    #: The first half is stored under the full name, as a broken storage may do.
    TORN = "torn"
    #: All is stored, and the answer is lost.
    LOST_ANSWER = "lost answer"


class FaultyStore:
    """Passes everything to another store but the puts that are to fail.

    The `number`-th put (from 1) of the kinds given fails in the way given; 0 fails none.
    `puts` counts them. Thread-safe.
    """

    def __init__(
        self,
        store: Store,
        fault: Fault = Fault.REFUSE,
        number: int = 0,
        kinds: frozenset[Kind] = frozenset(Kind),
    ) -> None:
        self._store = store
        self._fault = fault
        self._number = number
        self._kinds = kinds
        self._lock = threading.Lock()
        self.puts = 0

    @property
    def location(self) -> str:
        """The other store's."""
        return self._store.location

    def create(self) -> None:
        """Create the other store."""
        self._store.create()

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        """Store, or fail."""
        if not self._fails(kind):
            self._store.put(kind, name, parts)
            return
        if self._fault is Fault.TORN:
            data = b"".join(parts)
            self._store.put(kind, name, [data[: len(data) // 2]])
        elif self._fault is Fault.LOST_ANSWER:
            self._store.put(kind, name, parts)
        elif self._fault is Fault.FULL:
            raise StoreError(f"{self.location} cannot take {kind}/{name}: no room is left")
        raise StoreError(f"{self.location} cannot take {kind}/{name}: a fault was asked for")

    def _fails(self, kind: Kind) -> bool:
        if kind not in self._kinds:
            return False
        with self._lock:
            self.puts += 1
            if self._fault is Fault.FULL:
                return 0 < self._number <= self.puts
            return self.puts == self._number

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read from the other store."""
        return self._store.get(kind, name, offset, length)

    def list(self, kind: Kind) -> Listing:
        """List the other store."""
        return self._store.list(kind)

    def exists(self, kind: Kind, name: str) -> bool:
        """Look into the other store."""
        return self._store.exists(kind, name)

    def remove(self, kind: Kind, name: str) -> None:
        """Remove from the other store."""
        self._store.remove(kind, name)

    def tidy(self, older_than: float) -> int:
        """Tidy the other store."""
        return self._store.tidy(older_than)
