"""The small parts of used maps by their algebra, and the contract suite by bad parsers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.block.base import Reader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import PeerList, Peers, State, UsedMap
from freezeframe.fs.bits import UsedUnits
from freezeframe.fs.fat.structs import entries
from freezeframe.fs.ntfs.structs import parse_boot, parse_list, parse_runs, unprotect
from freezeframe.testing.fs_contract import check_damaged, check_kind, check_map, check_mounted

# -- flags to extents ---------------------------------------------------------------


@given(
    pieces=st.lists(st.lists(st.booleans(), max_size=40), max_size=6),
    unit=st.sampled_from([512, 4096, 65536]),
    base=st.integers(0, 5000),
)
def test_pieces_are_as_good_as_the_whole(pieces: list[list[bool]], unit: int, base: int) -> None:
    units = UsedUnits(unit, base)
    for piece in pieces:
        units.add(np.array(piece, np.bool_))
    flags = np.array([flag for piece in pieces for flag in piece], np.bool_)
    assert units.extents() == Extents.from_bits(flags, unit, base)
    assert units.flagged == int(flags.sum())


@given(data=st.binary(max_size=20), spare=st.integers(0, 7))
def test_bitmaps_begin_with_the_lowest_bit(data: bytes, spare: int) -> None:
    count = max(len(data) * 8 - spare, 0)
    units = UsedUnits(512)
    units.add_bitmap(data, count)
    number = int.from_bytes(data, "little")
    expected = [n for n in range(count) if number >> n & 1]
    assert units.extents().units(512).tolist() == expected


@given(flags=st.lists(st.booleans(), min_size=1, max_size=400), most=st.integers(1, 8))
def test_too_many_ranges_are_merged_outward(flags: list[bool], most: int) -> None:
    """Kept: all that is used, never more than the region, in few ranges."""
    base, unit = 700, 20 * KIB
    units = UsedUnits(unit, base, most_ranges=most)
    for start in range(0, len(flags), 50):
        units.add(np.array(flags[start : start + 50], np.bool_))
    found, exact = units.extents(), Extents.from_bits(np.array(flags, np.bool_), unit, base)
    assert not exact - found
    assert len(found) <= most
    assert not found or int(found.starts[0]) >= base
    assert found.end <= base + len(flags) * unit
    if len(exact) <= most and len(flags) <= 50:
        assert found == exact


# -- FAT ----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 0xFFF), min_size=1, max_size=60))
def test_entries_of_12_bits(values: list[int]) -> None:
    packed = sum(value << 12 * n for n, value in enumerate(values))
    data = packed.to_bytes(-(-len(values) * 12 // 8), "little")
    assert entries(data, 12, len(values)).tolist() == values


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=20))
def test_entries_of_32_bits_leave_four_out(values: list[int]) -> None:
    data = struct.pack(f"<{len(values)}I", *values)
    assert entries(data, 32, len(values)).tolist() == [v & 0x0FFFFFFF for v in values]


# -- NTFS ---------------------------------------------------------------------------


def packed(value: int) -> bytes:
    size = 1
    while not -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1:
        size += 1
    return value.to_bytes(size, "little", signed=True)


CLUSTERS = 1 << 40
RUN = st.tuples(st.integers(1, 1 << 20), st.none() | st.integers(0, CLUSTERS - (1 << 20)))


@given(runs=st.lists(RUN, max_size=12), lowest=st.integers(0, 1 << 30), rest=st.binary(max_size=5))
def test_run_lists(runs: list[tuple[int, int | None]], lowest: int, rest: bytes) -> None:
    data, last = b"", 0
    for length, place in runs:
        size = packed(length)
        where = b"" if place is None else packed(place - last)
        last = last if place is None else place
        data += bytes([len(size) | len(where) << 4]) + size + where
    found = parse_runs(data + b"\0" + rest, lowest, CLUSTERS)
    assert [(run.length, run.lcn) for run in found] == [
        (length, -1 if place is None else place) for length, place in runs
    ]
    assert [run.vcn for run in found] == [
        lowest + sum(length for length, _ in runs[:n]) for n in range(len(runs))
    ]


@given(st.binary(max_size=80))
def test_any_bytes_as_run_list(data: bytes) -> None:
    try:
        runs = parse_runs(data, 0, 1000)
    except NotUnderstood:
        return
    assert all(run.length > 0 and run.lcn + run.length <= 1000 for run in runs if run.lcn >= 0)


@given(st.binary(max_size=200))
def test_any_bytes_as_attribute_list(data: bytes) -> None:
    try:
        found = parse_list(data)
    except NotUnderstood:
        return
    assert len(found) <= len(data) // 26


@given(st.binary(min_size=84, max_size=84))
def test_any_bytes_as_boot_sector(data: bytes) -> None:
    try:
        found = parse_boot(data.ljust(512, b"\0"))
    except NotUnderstood:
        return
    assert found.clusters * found.cluster <= found.sectors * found.sector


@given(st.binary(min_size=1024, max_size=1024), st.sampled_from([b"FILE", b"INDX"]))
def test_any_bytes_as_record(data: bytes, magic: bytes) -> None:
    with pytest.raises(NotUnderstood):
        # Two blocks that end in the number asked for: not by chance.
        unprotect(magic + data[4:510] + b"\x01\0" + data[512:1022] + b"\x02\0", magic)


# -- the contract suite sees what it is for ------------------------------------------

Parser = Callable[[Reader], UsedMap]


class Bad:
    """A parser of regions that begin with `BAD`, with something wrong."""

    name = "bad"

    def __init__(self, parser: Parser, recognise: bool | None = None) -> None:
        self._parser = parser
        self._recognise = recognise

    def recognise(self, reader: Reader) -> bool:
        if self._recognise is not None:
            return self._recognise
        return reader.size >= 512 and reader.read_at(0, 3) == b"BAD"

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        return self._parser(reader)


def outside(reader: Reader) -> UsedMap:
    return UsedMap("bad", Extents.single(0, reader.size + 1), True)


def not_canonical(reader: Reader) -> UsedMap:
    starts, stops = np.array([0, 512], np.int64), np.array([512, 1024], np.int64)
    return UsedMap("bad", Extents(starts, stops), True)


def unbounded(reader: Reader) -> UsedMap:
    for _ in range(1000):
        reader.read_at(0, reader.size)
    return UsedMap("bad", Extents.empty(), True)


def greedy(reader: Reader) -> UsedMap:
    np.zeros(400 * MIB, np.uint8)
    return UsedMap("bad", Extents.empty(), True)


def careless(reader: Reader) -> UsedMap:
    return UsedMap("bad", Extents.single(0, 1 << reader.read_at(600, 1)[0] % 40), True)


def trusting(reader: Reader) -> UsedMap:
    count = reader.read_at(600, 1)[0]
    return UsedMap("bad", Extents.single(0, [1, 2, 3][count]), True)


def partial(reader: Reader) -> UsedMap:
    return UsedMap("bad", Extents.single(0, 512), False, notes=("not understood",))


@pytest.mark.parametrize(
    "parser", [outside, not_canonical, unbounded, careless, trusting, partial, greedy]
)
def test_bad_parsers_are_found(parser: Parser, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"BAD" + bytes(MIB))
    with pytest.raises((AssertionError, IndexError)):
        check_kind(Bad(parser), image)


def test_a_parser_that_recognises_all_is_found(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"BAD" + bytes(MIB))
    with pytest.raises(AssertionError, match="recognised in"):
        check_kind(Bad(lambda reader: UsedMap("bad", Extents.empty(), True), True), image)


def test_a_parser_that_believes_less_of_a_frozen_one_is_found() -> None:
    class Hopeful(Bad):
        def used_map(
            self, reader: Reader, peers: Peers, *, state: State = State.AT_REST
        ) -> UsedMap:
            stop = reader.size if state is not State.FROZEN else 512
            return UsedMap("bad", Extents.single(0, stop), True)

    reader = MemoryBlocks(b"BAD" + bytes(MIB))
    kind = Hopeful(partial)
    rest = kind.used_map(reader, PeerList((reader,)))
    with pytest.raises(AssertionError, match="another map when frozen"):
        check_mounted(kind, reader, (), rest)


def test_errors_of_ours_are_fine() -> None:
    def refuses(reader: Reader) -> UsedMap:
        raise NotUnderstood("never")

    check_damaged(Bad(refuses), MemoryBlocks(MIB), ())
    check_map(UsedMap("x", Extents.empty(), True), 0)
