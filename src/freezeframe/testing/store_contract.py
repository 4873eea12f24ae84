"""What every store must pass.

To join, subclass and return an empty store:

class TestMyStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        ...
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from freezeframe.core.errors import ObjectMissing, RepositoryDamaged, StoreError
from freezeframe.store.base import CONFIG_NAME, Kind, Store

_NAMED = [kind for kind in Kind if kind is not Kind.CONFIG]


def name_of(data: bytes) -> str:
    """Return the name an object of these bytes has."""
    return hashlib.sha256(data).hexdigest()


class StoreContract:
    """The suite."""

    def make_store(self, folder: Path) -> Store:
        """Return an empty store; `folder` is empty and the test's own."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """Give each test a store."""
        store = self.make_store(tmp_path)
        store.create()
        return store

    @pytest.mark.parametrize("kind", _NAMED)
    def test_what_is_put_can_be_got_listed_and_removed(self, store: Store, kind: Kind) -> None:
        """Every kind keeps its own objects."""
        data = os.urandom(1000)
        name = name_of(data)
        assert not store.exists(kind, name)
        store.put(kind, name, [data])
        assert store.exists(kind, name)
        assert store.get(kind, name) == data
        assert store.list(kind) == [(name, 1000)]
        for other in Kind:
            if other is not kind:
                assert store.list(other) == []
        store.remove(kind, name)
        assert not store.exists(kind, name)
        assert store.list(kind) == []

    def test_config_is_an_object_without_a_hash(self, store: Store) -> None:
        """There is one, by its own name."""
        store.put(Kind.CONFIG, CONFIG_NAME, [b"set", b"tings"])
        assert store.get(Kind.CONFIG, CONFIG_NAME) == b"settings"
        assert store.list(Kind.CONFIG) == [(CONFIG_NAME, 8)]

    def test_parts_of_all_kinds_are_joined(self, store: Store) -> None:
        """Bytes, bytearrays, memoryviews, empty ones, and very many."""
        few: list[bytes | bytearray | memoryview]
        few = [b"a", bytearray(b"bc"), memoryview(b"xdefx")[1:4], b""]
        parts = few * 2500
        data = b"".join(parts)
        store.put(Kind.DATA, name_of(data), parts)
        assert store.get(Kind.DATA, name_of(data)) == data

    def test_the_callers_buffer_is_free_after_put(self, store: Store) -> None:
        """What is stored does not change with it."""
        buffer = bytearray(b"before")
        name = name_of(bytes(buffer))
        store.put(Kind.DATA, name, [buffer])
        buffer[:] = b"after!"
        assert store.get(Kind.DATA, name) == b"before"

    def test_ranges(self, store: Store) -> None:
        """Any range within an object, the empty ones too."""
        data = os.urandom(5000)
        name = name_of(data)
        store.put(Kind.DATA, name, [data])
        assert store.get(Kind.DATA, name, 100, 50) == data[100:150]
        assert store.get(Kind.DATA, name, 4999) == data[4999:]
        assert store.get(Kind.DATA, name, 5000) == b""
        assert store.get(Kind.DATA, name, 10, 0) == b""

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 11), (5, 6), (10, 1), (11, None), (1 << 40, 1)]
    )
    def test_a_range_past_the_end_is_damage(
        self, store: Store, offset: int, length: int | None
    ) -> None:
        """Never fewer bytes than asked for; and nothing huge is allocated."""
        name = name_of(b"0123456789")
        store.put(Kind.DATA, name, [b"0123456789"])
        with pytest.raises(RepositoryDamaged, match="ends at 10 bytes"):
            store.get(Kind.DATA, name, offset, length)
        with pytest.raises(RepositoryDamaged):
            store.get(Kind.DATA, name, 0, 1 << 44)

    @pytest.mark.parametrize("kind", list(Kind))
    def test_what_is_not_there_is_named(self, store: Store, kind: Kind) -> None:
        """Getting and removing alike."""
        name = CONFIG_NAME if kind is Kind.CONFIG else "0" * 64
        with pytest.raises(ObjectMissing, match=name):
            store.get(kind, name)
        with pytest.raises(ObjectMissing, match=name):
            store.remove(kind, name)

    def test_an_object_is_never_replaced(self, store: Store) -> None:
        """Written once: the first stays."""
        name = name_of(b"first")
        store.put(Kind.SNAPSHOTS, name, [b"first"])
        with pytest.raises(StoreError, match="exists already"):
            store.put(Kind.SNAPSHOTS, name, [b"other"])
        assert store.get(Kind.SNAPSHOTS, name) == b"first"
        assert len(store.list(Kind.SNAPSHOTS)) == 1

    @pytest.mark.parametrize(
        "name", ["", "..", "../config", "A" * 64, "0" * 63, "0" * 65, "é" * 64]
    )
    def test_names_that_are_none_reach_nothing(self, store: Store, name: str) -> None:
        """Neither for reading nor for writing."""
        with pytest.raises(StoreError):
            store.put(Kind.KEYS, name, [b""])
        with pytest.raises(StoreError):
            store.get(Kind.KEYS, name)
        with pytest.raises(StoreError):
            store.remove(Kind.KEYS, name)
        with pytest.raises(StoreError):
            store.exists(Kind.KEYS, name)

    def test_creating_again_changes_nothing(self, store: Store) -> None:
        """What is there stays."""
        store.put(Kind.KEYS, name_of(b"key"), [b"key"])
        store.create()
        assert store.list(Kind.KEYS) == [(name_of(b"key"), 3)]

    def test_many_threads_at_once(self, store: Store) -> None:
        """All put, get and list together, and nothing is lost or mixed."""
        errors: list[BaseException] = []

        def work(seed: int) -> None:
            try:
                for number in range(10):
                    data = f"{seed} {number}".encode() * 100
                    store.put(Kind.DATA, name_of(data), [data])
                    assert store.get(Kind.DATA, name_of(data)) == data
                    store.list(Kind.DATA)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(store.list(Kind.DATA)) == 40

    def test_two_who_put_the_same_name(self, store: Store) -> None:
        """One wins, the other is told, and the object is whole."""
        data = os.urandom(100_000)
        told: list[StoreError] = []

        def work() -> None:
            try:
                store.put(Kind.DATA, name_of(data), [data])
            except StoreError as error:
                told.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 3
        assert store.get(Kind.DATA, name_of(data)) == data

    def test_tidying_leaves_objects_alone(self, store: Store) -> None:
        """However old they are."""
        store.put(Kind.DATA, name_of(b"x"), [b"x"])
        assert store.tidy(-1000) == 0
        assert store.list(Kind.DATA) == [(name_of(b"x"), 1)]
