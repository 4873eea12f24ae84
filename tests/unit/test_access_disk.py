"""The reader over a disk of an image, against the bytes it was made of."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.access.cache import BlobCache
from freezeframe.access.disk import ImageDisk
from freezeframe.access.streams import Streams
from freezeframe.core.errors import SourceError, UnreadableRange
from freezeframe.core.units import CHUNK, GRANULE, MIB, SEGMENT
from freezeframe.image.reader import ImageReader
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import Proof
from freezeframe.store.base import Kind
from freezeframe.testing.images import SparseDisk, save_image
from freezeframe.testing.repositories import (
    flip_bit,
    local_repository,
    memory_repository,
    object_path,
    overwrite,
)

_SIZE = 9 * CHUNK + 12_800


def _content(*, seed: int = 1) -> SparseDisk:
    """Make a disk with data, zero chunks, a short last chunk, and two equal ones."""
    random = np.random.default_rng(seed)
    disk = SparseDisk(_SIZE)
    for number in (0, 1, 3, 4, 7, 9):
        disk.chunks[number] = random.bytes(disk.length(number))
    disk.chunks[8] = disk.chunks[0]
    half = bytearray(random.bytes(CHUNK))
    half[5 * GRANULE : 9 * GRANULE] = bytes(4 * GRANULE)
    disk.chunks[5] = bytes(half)
    return disk


def _bytes(disk: SparseDisk) -> bytes:
    return b"".join(
        disk.chunks.get(number, bytes(disk.length(number)))
        for number in range(-(-disk.size // CHUNK))
    )


@pytest.fixture(scope="module")
def made() -> tuple[ImageReader, bytes]:
    disk = _content()
    image, _ = save_image(memory_repository(), disk, fine=(1, 5))
    return image, _bytes(disk)


@pytest.mark.parametrize("limit", [0, 3 * GRANULE, 2 * CHUNK, 64 * CHUNK])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    reads=st.lists(
        st.tuples(st.integers(0, _SIZE), st.integers(0, 3 * CHUNK)), min_size=1, max_size=8
    )
)
def test_any_reads_give_the_disk(
    made: tuple[ImageReader, bytes], limit: int, reads: list[tuple[int, int]]
) -> None:
    image, expected = made
    with (
        BlobCache(limit, threads=2) as cache,
        ImageDisk(image, image.manifest.disks[0], cache=cache) as disk,
    ):
        for offset, wanted in reads:
            length = min(wanted, _SIZE - offset)
            assert disk.read_at(offset, length) == expected[offset : offset + length]
            buffer = bytearray(length)
            disk.read_into(offset, memoryview(buffer))
            assert buffer == expected[offset : offset + length]
            assert cache.size <= limit


def test_sequential_reading_by_several_threads(made: tuple[ImageReader, bytes]) -> None:
    image, expected = made
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        found: dict[int, list[bool]] = {}

        def read(step: int) -> None:
            found[step] = [
                disk.read_at(at, min(step, _SIZE - at)) == expected[at : at + step]
                for at in range(0, _SIZE, step)
            ]

        threads = [threading.Thread(target=read, args=(4096 * n,)) for n in (1, 7, 32, 300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(all(each) for each in found.values())


def test_each_blob_is_opened_once(
    made: tuple[ImageReader, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, expected = made
    opened: list[bytes] = []
    one, many = image.blobs.read, image.blobs.read_many

    def read(kind: BlobKind, blob_id: bytes, proof: Proof | None = None) -> bytes:
        opened.append(blob_id)
        return one(kind, blob_id, proof)

    def read_many(kind: BlobKind, ids: np.ndarray) -> list[bytes]:
        opened.extend(row.tobytes() for row in ids)
        return many(kind, ids)

    with ImageDisk(image, image.manifest.disks[0]) as disk:
        disk.read_at(0, 1)  # the list of blobs
        monkeypatch.setattr(image.blobs, "read", read)
        monkeypatch.setattr(image.blobs, "read_many", read_many)
        for at in range(0, _SIZE, 65_536):
            disk.read_at(at, min(65_536, _SIZE - at))
    assert expected
    assert len(opened) == len(set(opened))
    blobs = image.disk_blobs(image.manifest.disks[0])
    zeros = {row.tobytes() for row in blobs.ids[blobs.zero]}
    assert not zeros & set(opened)


def test_data_extents_leave_out_zeros_only(made: tuple[ImageReader, bytes]) -> None:
    image, expected = made
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        holes = disk.data_extents().complement(_SIZE)
        assert holes.total >= 2 * CHUNK + 4 * GRANULE
        assert not any(any(expected[start:stop]) for start, stop in holes)


def test_beyond_the_end(made: tuple[ImageReader, bytes]) -> None:
    image, _ = made
    with ImageDisk(image, image.manifest.disks[0]) as disk, pytest.raises(SourceError):
        disk.read_at(_SIZE - 1, 2)


def test_a_flipped_bit_costs_just_its_chunk(tmp_path: Path) -> None:
    content = _content()
    repository = local_repository(tmp_path / "repo")
    image, _ = save_image(repository, content)
    expected = _bytes(content)
    blobs = image.disk_blobs(image.manifest.disks[0])
    blob_id = blobs.ids[3].tobytes()
    place = image.index.find(BlobKind.DATA, blob_id)
    assert place is not None
    flip_bit(object_path(tmp_path / "repo", Kind.DATA, place.pack.hex()), place.offset + 1000)
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        for _ in range(2):
            for at in range(0, _SIZE, GRANULE):
                length = min(GRANULE, _SIZE - at)
                if at // CHUNK == 3:
                    with pytest.raises(UnreadableRange, match="chunk 3: ") as caught:
                        disk.read_at(at, length)
                    assert blob_id.hex() in str(caught.value)
                    assert (caught.value.offset, caught.value.length) == (3 * CHUNK, CHUNK)
                else:
                    assert disk.read_at(at, length) == expected[at : at + length]


def test_a_chunk_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Sealed with the right key, and yet not what the image means."""
    image, _ = save_image(local_repository(tmp_path / "repo"), _content())
    blobs = image.disk_blobs(image.manifest.disks[0])
    places = [image.index.find(BlobKind.DATA, blobs.ids[n].tobytes()) for n in (3, 4)]
    one, other = (place for place in places if place is not None)
    assert (one.pack, one.length) == (other.pack, other.length)
    path = object_path(tmp_path / "repo", Kind.DATA, one.pack.hex())
    data = bytearray(path.read_bytes())
    first = data[one.offset :][: one.length]
    data[one.offset : one.offset + one.length] = data[other.offset :][: one.length]
    data[other.offset : other.offset + one.length] = first
    overwrite(path, bytes(data))
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        for chunk in (3, 4):
            with pytest.raises(UnreadableRange, match="SHA-256"):
                disk.read_at(chunk * CHUNK, 512)
        assert len(disk.read_at(0, 2 * CHUNK)) == 2 * CHUNK


def test_sums_that_are_wrong_cost_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    content = _content()
    image, _ = save_image(memory_repository(), content)
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        monkeypatch.setattr(disk._fingerprinter, "sum", lambda chunk: bytes(16))
        assert disk.read_at(0, _SIZE) == _bytes(content)


def test_a_pack_that_vanished(tmp_path: Path) -> None:
    content = _content()
    image, _ = save_image(local_repository(tmp_path / "repo"), content, pack_size=MIB)
    blobs = image.disk_blobs(image.manifest.disks[0])
    place = image.index.find(BlobKind.DATA, blobs.ids[4].tobytes())
    assert place is not None
    with ImageDisk(image, image.manifest.disks[0]) as disk:
        assert disk.read_at(0, CHUNK) == content.chunks[0]
        object_path(tmp_path / "repo", Kind.DATA, place.pack.hex()).unlink()
        with pytest.raises(UnreadableRange, match="chunk 4: "):
            disk.read_at(4 * CHUNK, 512)
        assert disk.read_at(7 * CHUNK, CHUNK) == content.chunks[7]


def test_segments_are_found() -> None:
    disk = SparseDisk(2 * SEGMENT + 5 * MIB)
    random = np.random.default_rng(5)
    for number in (0, 1023, 1024, 2047, 2048, 2052):
        disk.chunks[number] = random.bytes(CHUNK)
    image, _ = save_image(memory_repository(), disk)
    with ImageDisk(image, image.manifest.disks[0]) as found:
        for border in (SEGMENT, 2 * SEGMENT):
            last, first = border // CHUNK - 1, border // CHUNK
            data = found.read_at(border - CHUNK, 2 * CHUNK)
            assert data == disk.chunks[last] + disk.chunks[first]
        assert found.read_at(disk.size - 10, 10) == disk.chunks[2052][-10:]
        assert not any(found.read_at(SEGMENT + 2 * CHUNK, 3 * CHUNK))


@given(
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, MIB)), max_size=60),
    st.integers(MIB, 16 * MIB),
)
def test_streams_never_ask_for_what_is_far(reads: list[tuple[int, int]], furthest: int) -> None:
    streams = Streams(furthest)
    for offset, length in reads:
        start, stop = streams.note(offset, length)
        assert offset + length <= start <= stop <= offset + length + furthest


def test_a_sequential_stream_is_read_ahead_once() -> None:
    streams = Streams(8 * MIB)
    asked: list[tuple[int, int]] = []
    for at in range(0, 64 * MIB, 128 * 1024):
        start, stop = streams.note(at, 128 * 1024)
        if stop > start:
            asked.append((start, stop))
    assert all(a[1] == b[0] for a, b in itertools.pairwise(asked))
    assert asked[-1][1] >= 64 * MIB
