"""What two images differ in, from their trees alone, held against the disks themselves."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from freezeframe.app.diff import compare_images
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, GRANULE, MIB, SEGMENT
from freezeframe.image.compare import Comparison, compare_disks
from freezeframe.image.parent import parent_disk
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.testing.images import SparseDisk, save_image
from freezeframe.testing.repositories import memory_repository

SIZE = 12 * MIB + 70_000
_unique = itertools.count(1)


def fresh(length: int = CHUNK) -> bytes:
    return next(_unique).to_bytes(8, "big") * (length // 8) + bytes([1] * (length % 8))


def changed(chunk: bytes, *granules: int) -> bytes:
    data = bytearray(chunk)
    for granule in granules:
        data[granule * GRANULE] ^= 1
    return bytes(data)


@pytest.fixture
def repository() -> Repository:
    return memory_repository()


def following(
    repository: Repository, image: ImageReader, disk: SparseDisk, *, fine: Iterable[int] = ()
) -> ImageReader:
    def refuse(error: Exception) -> None:
        raise error

    parent = parent_disk(image, image.manifest.disks[0], refuse)
    return save_image(repository, disk, parent, fine=tuple(fine))[0]


def compared(one: ImageReader, other: ImageReader, *, exact: bool = False) -> Comparison:
    return compare_disks(
        one, one.manifest.disks[0], other, other.manifest.disks[0], Silent(), exact=exact
    )


def forbid_reading(image: ImageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files and trees may be read; the bytes of the disk may not."""

    def refuse(*_: object) -> bytes:
        raise AssertionError("data was read")

    monkeypatch.setattr(image, "read_group", refuse)


def truth(one: SparseDisk, other: SparseDisk) -> Extents:
    """The granules that differ, compared byte by byte."""
    found = []
    for number in one.chunks.keys() | other.chunks.keys():
        a = one.chunks.get(number, bytes(one.length(number)))
        b = other.chunks.get(number, bytes(other.length(number)))
        for at in range(0, len(a), GRANULE):
            if a[at : at + GRANULE] != b[at : at + GRANULE]:
                start = number * CHUNK + at
                found.append((start, min(start + GRANULE, number * CHUNK + len(a))))
    return Extents.of(found)


def test_the_same_disk_twice_differs_in_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SparseDisk(SIZE, {number: fresh() for number in (0, 3)})
    one = save_image(repository, disk)[0]
    other = save_image(repository, disk)[0]
    forbid_reading(one, monkeypatch)
    forbid_reading(other, monkeypatch)
    assert compared(one, other) == Comparison(*[Extents.empty()] * 4)
    (change,) = compare_images(one, other, Silent())
    assert change.same


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_differs_is_missed_and_reading_settles_the_rest(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    last = SIZE // CHUNK
    disk = SparseDisk(SIZE, {n: fresh() for n in range(last) if dice.random() < 0.7})
    disk.chunks[last] = fresh(disk.length(last))
    images, disks = [save_image(repository, disk)[0]], [disk]
    for _ in range(3):
        chunks = dict(disks[-1].chunks)
        for number in dice.sample(range(last), 4):
            way = dice.randrange(4)
            if way == 0 and number in chunks:
                chunks[number] = changed(chunks[number], dice.randrange(16))
            elif way == 1:
                chunks[number] = bytes(CHUNK)
            elif way == 2:
                chunks[number] = fresh()
            else:
                chunks[number] = disks[0].chunks.get(number, bytes(CHUNK))
        disks.append(SparseDisk(SIZE, chunks))
        images.append(
            following(repository, images[-1], disks[-1], fine=dice.sample(range(last), 1))
        )
    for (a, one), (b, other) in itertools.combinations(zip(images, disks, strict=True), 2):
        wanted = truth(one, other)
        exact = compared(a, b, exact=True)
        assert not exact.unclear
        assert (wanted - exact.changed) == Extents.empty()
        # Where granules are compared nothing but what differs is named.
        assert exact.changed.total <= len(wanted.units(CHUNK)) * CHUNK
        assert not exact.changed - wanted.aligned(CHUNK)
        with monkeypatch.context() as patch:
            forbid_reading(a, patch)
            forbid_reading(b, patch)
            found = compared(a, b)
        assert not wanted - (found.changed | found.unclear)
        assert not found.changed - wanted.aligned(CHUNK)


def test_a_chunk_stored_otherwise_and_yet_the_same_is_known_by_its_sum(
    repository: Repository,
) -> None:
    chunk = fresh()
    one = save_image(repository, SparseDisk(SIZE, {2: chunk}))[0]
    other = save_image(repository, SparseDisk(SIZE, {2: chunk}), fine=(2,))[0]
    third = save_image(repository, SparseDisk(SIZE, {2: changed(chunk, 5)}), fine=(2,))[0]
    assert len(other.disk_blobs(other.manifest.disks[0]).starts) > len(
        one.disk_blobs(one.manifest.disks[0]).starts
    )
    assert not compared(one, other).unclear
    maybe = compared(one, third)
    assert list(maybe.unclear) == [(2 * MIB, 3 * MIB)]
    assert not maybe.changed
    sure = compared(one, third, exact=True)
    assert list(sure.changed) == [(2 * MIB + 5 * GRANULE, 2 * MIB + 6 * GRANULE)]


def test_what_came_into_use_and_what_was_freed(repository: Repository) -> None:
    disk = SparseDisk(SIZE, {1: fresh()})
    one = save_image(repository, disk, used=Extents.of([(MIB, 2 * MIB)]))[0]
    other = save_image(repository, disk, used=Extents.of([(MIB, MIB + 4096), (5 * MIB, 6 * MIB)]))[
        0
    ]
    found = compared(one, other)
    assert list(found.gained) == [(5 * MIB, 6 * MIB)]
    assert list(found.freed) == [(MIB + 4096, 2 * MIB)]


@pytest.mark.parametrize(("small", "large"), [(3 * MIB, 5 * MIB), (SEGMENT, SEGMENT + MIB)])
def test_disks_of_different_size(repository: Repository, small: int, large: int) -> None:
    chunk, more = fresh(), fresh()
    one = save_image(repository, SparseDisk(small, {1: chunk}))[0]
    other = save_image(repository, SparseDisk(large, {1: chunk, large // CHUNK - 1: more}))[0]
    for a, b in ((one, other), (other, one)):
        found = compared(a, b)
        assert list(found.changed) == [(large - MIB, large)]
        assert not found.unclear
        (change,) = compare_images(a, b, Silent())
        assert "the disk had" in change.notes[0]
        assert not change.same
