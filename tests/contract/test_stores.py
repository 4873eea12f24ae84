"""Both stores, and the faulty one while it has nothing to fail."""

from __future__ import annotations

from pathlib import Path

from freezeframe.store.base import Store
from freezeframe.store.local import LocalStore
from freezeframe.store.memory import MemoryStore
from freezeframe.testing.faulty_store import FaultyStore
from freezeframe.testing.store_contract import StoreContract


class TestLocalStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return LocalStore(folder / "repository")


class TestMemoryStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return MemoryStore()


class TestFaultyStoreWithoutFaults(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return FaultyStore(MemoryStore())
