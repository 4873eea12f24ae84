"""The index against a dict that does the same, slowly."""

from __future__ import annotations

import hashlib
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.core.errors import RepositoryDamaged
from freezeframe.repo import index as index_module
from freezeframe.repo.crypto import OVERHEAD
from freezeframe.repo.index import Index
from freezeframe.repo.index_files import IndexBuilder, StoredPack, decode_index, encode_index
from freezeframe.repo.pack import BlobKind, Entry

DATA, TREE = BlobKind.DATA, BlobKind.TREE


def an_id(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def make_pack(number: int, blobs: list[tuple[BlobKind, int]], raw: bool = False) -> StoredPack:
    entries, offset = [], 0
    for kind, blob in blobs:
        length = 100 + blob % 50
        entries.append(Entry(kind, an_id(blob), offset, length, 0 if raw else 1000 + blob))
        offset += length
    return StoredPack(an_id(-number - 1), entries)


def build(files: list[list[StoredPack]]) -> Index:
    builder = IndexBuilder()
    for number, packs in enumerate(files):
        builder.add(decode_index(encode_index(packs), f"{number}"), f"{number}")
    return builder.build()


def ids(numbers: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(map(an_id, numbers)), np.uint8).reshape(-1, 32)


_blobs = st.lists(st.tuples(st.sampled_from(BlobKind), st.integers(0, 30)), max_size=8)
_packs = st.lists(_blobs, max_size=6)


@settings(max_examples=60)
@given(_packs, _packs, st.sets(st.integers(0, 11)), st.integers(1, 20))
def test_it_finds_what_a_dict_finds(
    loaded: list[list[tuple[BlobKind, int]]],
    added: list[list[tuple[BlobKind, int]]],
    gone: set[int],
    merge_at: int,
) -> None:
    packs = [make_pack(number, blobs) for number, blobs in enumerate([*loaded, *added])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_MERGE_AT", merge_at)
        # Twice the same pack in different files, as an interrupted rebuild leaves it.
        index = build([packs[: len(loaded)], packs[:1] if loaded else []])
        for pack in packs[len(loaded) :]:
            index.add(pack.id, pack.entries)
        check_against(index, packs)
        there = [pack for number, pack in enumerate(packs) if number not in gone]
        index.drop_missing_packs([pack.id.hex() for pack in there])
        check_against(index, there)


def check_against(index: Index, packs: list[StoredPack]) -> None:
    places: dict[tuple[BlobKind, bytes], set[tuple[bytes, int]]] = {}
    lengths: dict[tuple[BlobKind, bytes], tuple[int, int]] = {}
    for pack in packs:
        for entry in pack.entries:
            places.setdefault((entry.kind, entry.id), set()).add((pack.id, entry.offset))
            lengths[entry.kind, entry.id] = entry.length, entry.uncompressed
    for kind in BlobKind:
        found = index.find_many(kind, ids(list(range(40))))
        for number in range(40):
            key = (kind, an_id(number))
            assert index.has(*key) == (key in places) == bool(found.present[number])
            location = index.find(*key)
            if location is None:
                assert key not in places
                continue
            assert {(spot.pack, spot.offset) for spot in index.find_all(*key)} <= places[key]
            assert (location.pack, location.offset) in places[key]
            assert (location.length, location.plain_length) == lengths[key]
            pack_id = index.pack_id(int(found.packs[number]))
            assert (pack_id, int(found.offsets[number])) in places[key]
            assert int(found.lengths[number]) == lengths[key][0]
            assert int(found.plain_lengths[number]) == lengths[key][1]
            assert index.pack_name(int(found.packs[number])) == pack_id.hex()


def test_every_copy_of_a_blob_is_found() -> None:
    index = build([[make_pack(0, [(DATA, 1)])], [make_pack(1, [(DATA, 1)])]])
    assert {place.pack for place in index.find_all(DATA, an_id(1))} == {an_id(-1), an_id(-2)}
    assert index.total == 2


def test_data_and_trees_are_separate_name_spaces() -> None:
    index = build([[make_pack(0, [(DATA, 1), (TREE, 2)])]])
    assert index.has(DATA, an_id(1))
    assert not index.has(TREE, an_id(1))
    assert index.has(TREE, an_id(2))


def test_raw_blobs_have_their_plain_length() -> None:
    index = build([[make_pack(0, [(DATA, 1)], raw=True)]])
    found = index.find(DATA, an_id(1))
    assert found is not None
    assert not found.compressed
    assert found.plain_length == found.length - OVERHEAD
    many = index.find_many(DATA, ids([1, 2]))
    assert many.plain_lengths.tolist() == [found.plain_length, 0]
    assert many.compressed.tolist() == [False, False]
    assert many.take(np.array([1, 0])).present.tolist() == [False, True]


def test_ids_that_begin_alike_are_told_apart() -> None:
    near = [b"\x07" * 8 + bytes([number]) * 24 for number in range(5)]
    pack = StoredPack(an_id(0), [Entry(DATA, blob, n * 50, 50, 9) for n, blob in enumerate(near)])
    index = build([[pack]])
    for number, blob in enumerate(near):
        place = index.find(DATA, blob)
        assert place is not None
        assert place.offset == number * 50
    assert not index.has(DATA, b"\x07" * 8 + b"\x09" * 24)
    found = index.find_many(DATA, np.frombuffer(b"".join(near), np.uint8).reshape(-1, 32))
    assert found.offsets.tolist() == [0, 50, 100, 150, 200]


def test_packs_that_will_be_deleted_do_not_count() -> None:
    pack, other = make_pack(0, [(DATA, 1)]), make_pack(1, [(DATA, 2)])
    dead = encode_index([pack, other])[:-1] + (
        b',"packs_to_delete":[{"id":"%s","time":"2024-01-01T00:00:00Z","blobs":[]}]}'
        % pack.id.hex().encode()
    )
    builder = IndexBuilder()
    builder.add(decode_index(encode_index([pack]), "0"), "0")
    builder.add(decode_index(dead, "1"), "1")
    index = builder.build()
    assert not index.has(DATA, an_id(1))
    assert index.has(DATA, an_id(2))


def test_an_entry_takes_less_than_60_bytes() -> None:
    index = build([[make_pack(number, [(DATA, n) for n in range(1000)])] for number in range(3)])
    columns = index.columns(DATA)
    keys = sum(column.nbytes for column in columns.keys)
    rest = [columns.packs, columns.offsets, columns.lengths, columns.plains]
    assert (keys + sum(column.nbytes for column in rest)) / len(columns) < 60


def test_an_empty_index() -> None:
    for index in (Index.empty(), build([]), build([[]])):
        assert not index.has(DATA, an_id(1))
        assert not index.find_many(DATA, ids([1])).present.any()
        assert index.find_many(DATA, np.empty((0, 32), np.uint8)).present.shape == (0,)
        assert index.drop_missing_packs([]) == 0
        assert index.total == 0


@pytest.mark.parametrize(
    "change",
    [
        (b'"offset":0', b'"offset":-1'),
        (b'"offset":0', b'"offset":4294967296'),
        (b'"length":1', b'"length":"1'),
        (b'"type":"data"', b'"type":"odd"'),
        (b'"id":"', b'"id":"zz'),
        (an_id(1).hex().encode(), b"z" * 64),
        (b'"length":101', b'"length":31'),
    ],
)
def test_a_broken_index_file_is_named(change: tuple[bytes, bytes]) -> None:
    text = encode_index([make_pack(0, [(DATA, 1)])])
    assert change[0] in text
    with pytest.raises(RepositoryDamaged, match="index/name"):
        IndexBuilder().add(decode_index(text.replace(*change, 1), "name"), "name")


def test_fuzzed_index_files_become_an_index_or_are_refused() -> None:
    text = encode_index([make_pack(n, [(DATA, n), (TREE, n + 9)], raw=n == 1) for n in range(3)])
    rnd = random.Random(2)
    for _ in range(1500):
        broken = bytearray(text)
        for _ in range(rnd.randrange(1, 4)):
            broken[rnd.randrange(len(broken))] = rnd.choice(b'0123456789abz-{}[]":,.eE')
        builder = IndexBuilder()
        try:
            builder.add(decode_index(bytes(broken), "x"), "x")
        except RepositoryDamaged:
            continue
        index = builder.build()
        index.find_many(DATA, ids([0, 1, 2]))
        assert index.total <= 6


def test_readers_never_miss_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MERGE_AT", 3)
    index = Index.empty()
    added = 0
    missed: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            upto = added
            missed.extend(
                n for n in range(max(0, upto - 20), upto) if not index.has(DATA, an_id(n))
            )

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(400):
        pack = make_pack(number, [(DATA, number)])
        index.add(pack.id, pack.entries)
        added = number + 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not missed
