"""The contract of `block.base`: what every reader and writer has to do.

A new kind joins by opening one over bytes the test knows, and calling these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from freezeframe.block.base import Reader, Writer
from freezeframe.core.errors import SourceError, TargetUnsuitable


def spans(size: int, sector: int, seed: int = 1, count: int = 60) -> Iterator[tuple[int, int]]:
    """Give (offset, length) ranges that go wrong easily: at borders, across them, empty, random."""
    edges = [0, 1, sector - 1, sector, sector + 1, size // 2, size - sector, size - 1, size]
    for start in edges:
        for stop in edges:
            if start <= stop:
                yield start, stop - start
    dice = random.Random(seed)
    for _ in range(count):
        start = dice.randrange(size)
        yield start, min(dice.choice((1, 511, 4096, 70_000, 1_100_000)), size - start)


def check_reader(reader: Reader, content: bytes) -> None:
    """Check a reader whose bytes are known: exact reads, errors at the end, many threads."""
    assert reader.size == len(content)
    assert reader.sector in (512, 4096)
    assert reader.name
    for offset, length in spans(reader.size, reader.sector):
        wanted = content[offset : offset + length]
        assert reader.read_at(offset, length) == wanted, (offset, length)
        buffer = bytearray(b"\xee" * (length + 2))
        reader.read_into(offset, memoryview(buffer)[1 : length + 1])
        assert buffer == b"\xee" + wanted + b"\xee", (offset, length)
    for offset, length in ((reader.size, 1), (0, reader.size + 1), (-1, 2), (reader.size + 1, 0)):
        try:
            reader.read_at(offset, length)
        except SourceError:
            continue
        raise AssertionError(f"{length} bytes at {offset} were read of {reader.size}")
    _check_holes(reader, content)
    with ThreadPoolExecutor(4) as pool:
        ranges = list(spans(reader.size, reader.sector, seed=2))
        for (offset, length), got in zip(
            ranges, pool.map(lambda r: reader.read_at(*r), ranges), strict=True
        ):
            assert got == content[offset : offset + length], (offset, length)


def _check_holes(reader: Reader, content: bytes) -> None:
    """Check that what is said to be a hole is zeros."""
    data = reader.data_extents()
    assert data.end <= reader.size
    for start, stop in data.complement(reader.size):
        assert not any(content[start:stop]), (start, stop)


def check_writer(writer: Writer, content: bytes, seed: int = 3) -> bytes:
    """Check a writer whose bytes are known; return what it must hold afterwards."""
    model = bytearray(content)
    dice = random.Random(seed)
    for number, (offset, length) in enumerate(spans(writer.size, writer.sector, seed, 30)):
        if number % 5 == 4:
            writer.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = dice.randbytes(length)
            writer.write_at(offset, (data, bytearray(data), memoryview(data))[number % 3])
            model[offset : offset + length] = data
        assert writer.read_at(max(offset - 5, 0), 5) == model[max(offset - 5, 0) :][:5]
    assert writer.read_at(0, writer.size) == model
    for offset, length in ((writer.size, 1), (-1, 2), (0, writer.size + 1)):
        try:
            writer.write_at(offset, bytes(length))
        except TargetUnsuitable:
            continue
        raise AssertionError(f"{length} bytes at {offset} were written to {writer.size}")
    _check_neighbours(writer, model)
    writer.discard(0, 0)
    writer.flush()
    assert writer.read_at(0, writer.size) == model
    return bytes(model)


def _check_neighbours(writer: Writer, model: bytearray) -> None:
    """Write ranges that share sectors and no byte, from many threads at once."""
    step = 700
    starts = range(0, min(writer.size, 400 * step) - step, step)
    dice = random.Random(4)
    pieces = {start: dice.randbytes(step) for start in starts}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: writer.write_at(start, pieces[start]), starts))
    for start, piece in pieces.items():
        model[start : start + step] = piece
    assert writer.read_at(0, writer.size) == model
