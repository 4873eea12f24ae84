"""Restores that look what the target holds already write just the rest, and all of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.faulty import FaultyReader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, GRANULE, MIB
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.restore.execute import execute_restore
from freezeframe.restore.plan import RestorePlan, Target, only_changed, plan_restore, to_zero
from freezeframe.restore.survey import survey
from freezeframe.testing.images import SparseDisk, save_image
from freezeframe.testing.repositories import memory_repository

SIZE = 6 * MIB + 5000


class Recorder(MemoryBlocks):
    """Remembers what was written."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.written: list[tuple[int, int]] = []

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.written.append((offset, offset + len(data)))
        super().write_at(offset, data)


@pytest.fixture(scope="module")
def repository() -> Repository:
    return memory_repository()


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(SIZE)


def image_of(
    repository: Repository, data: bytes, used: Extents, fine: tuple[int, ...] = ()
) -> ImageReader:
    """An image that holds the used bytes, and zeros elsewhere, as a backup makes it."""
    held = bytearray(len(data))
    for start, stop in used:
        held[start:stop] = data[start:stop]
    chunks = {at // CHUNK: bytes(held[at : at + CHUNK]) for at in range(0, len(data), CHUNK)}
    return save_image(repository, SparseDisk(len(data), chunks), used=used, fine=fine)[0]


def planned(
    image: ImageReader, target: MemoryBlocks | FaultyReader, *, zero_unused: bool = False
) -> RestorePlan:
    record = image.manifest.disks[0]
    blobs = image.disk_blobs(record)
    place = Target("target", target.size, 512, blank=False)
    plan = plan_restore("it", record, blobs, place, zero_unused=zero_unused, discard=False)
    found = survey(image, blobs, plan.write, to_zero(plan), target, plan.start, Silent(), threads=2)
    return only_changed(plan, found)


sectors = st.integers(0, SIZE // 512).map(lambda number: number * 512)
ranges = st.lists(st.tuples(sectors, sectors), max_size=5).map(
    lambda pairs: Extents.of(pairs).clip(0, SIZE)
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(ranges, ranges, st.booleans(), st.sets(st.integers(0, 6), max_size=2))
def test_what_is_written_is_what_differs(
    repository: Repository, used: Extents, dirty: Extents, zero_unused: bool, fine: set[int]
) -> None:
    data = content(1)
    image = image_of(repository, data, used, tuple(fine))
    blobs = image.disk_blobs(image.manifest.disks[0])
    before = bytearray(data)
    for start, stop in dirty:
        before[start:stop] = bytes(byte ^ 255 for byte in data[start:stop])
    target = Recorder(bytes(before))
    plan = planned(image, target, zero_unused=zero_unused)
    execute_restore(plan, image, blobs, target, Silent(), threads=2)
    after = target.read_at(0, SIZE)
    rest = bytearray(SIZE) if zero_unused else before
    wanted = bytearray(rest)
    for start, stop in used:
        wanted[start:stop] = data[start:stop]
    assert after == bytes(wanted)
    # Nothing but the chunks in which something in use was different.
    changed = (used & dirty).aligned(CHUNK)
    assert plan.survey is not None
    assert plan.survey.differ == len((used & dirty).units(CHUNK))
    if not zero_unused:
        assert not Extents.of(target.written) - changed
    # And then nothing differs any more.
    again = Recorder(after)
    plan = planned(image, again, zero_unused=zero_unused)
    assert plan.write == Extents.empty()
    assert not plan.zero
    execute_restore(plan, image, blobs, again, Silent(), threads=2)
    assert again.written == []


def test_fine_chunks_are_compared_piece_by_piece(repository: Repository) -> None:
    data = content(2)
    image = image_of(repository, data, Extents.single(0, SIZE), fine=(3,))
    before = bytearray(data)
    before[3 * MIB + 2 * GRANULE] ^= 1
    target = Recorder(bytes(before))
    plan = planned(image, target)
    assert list(plan.write) == [(3 * MIB + 2 * GRANULE, 3 * MIB + 3 * GRANULE)]


def test_what_was_freed_before_the_image_was_made_is_in_the_blob_and_does_not_count(
    repository: Repository,
) -> None:
    data = content(3)
    chunks = {at // CHUNK: data[at : at + CHUNK] for at in range(0, SIZE, CHUNK)}
    used = Extents.of([(MIB, MIB + 8192)])
    image = save_image(repository, SparseDisk(SIZE, chunks), used=used)[0]
    target = Recorder(bytes(MIB) + data[MIB : MIB + 8192] + bytes(SIZE - MIB - 8192))
    plan = planned(image, target)
    assert plan.write == Extents.empty()
    assert plan.survey is not None
    assert (plan.survey.differ, plan.survey.chunks) == (0, 1)


def test_what_cannot_be_read_of_the_target_is_written(repository: Repository) -> None:
    data = content(4)
    image = image_of(repository, data, Extents.single(0, SIZE))
    target = FaultyReader(MemoryBlocks(data), bad=Extents.of([(2 * MIB + 512, 2 * MIB + 1024)]))
    assert list(planned(image, target).write) == [(2 * MIB, 3 * MIB)]


def test_the_plan_says_how_much(repository: Repository) -> None:
    data = content(5)
    image = image_of(repository, data, Extents.single(0, SIZE))
    target = Recorder(bytes(MIB) + data[MIB:])
    told = "\n".join(planned(image, target).describe())
    assert "1 of 7 chunks in use differ" in told
    assert "what differs on it now is lost" in told
