"""Chunk jobs cover exactly what must be read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.backup.chunks import chunk_jobs
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK

SIZE = 5 * CHUNK + 12345
edges = st.one_of(st.integers(0, SIZE), st.integers(0, 5).map(lambda n: n * CHUNK), st.just(SIZE))


@given(st.lists(st.tuples(edges, edges), max_size=10))
def test_jobs_cover_the_extents(ranges: list[tuple[int, int]]) -> None:
    wanted = Extents.of(ranges)
    jobs = list(chunk_jobs(7, wanted, SIZE))
    assert [job.number for job in jobs] == wanted.units(CHUNK).tolist()
    assert all(job.disk == 7 for job in jobs)
    for job in jobs:
        assert job.length == min(CHUNK, SIZE - job.number * CHUNK)
        assert job.parts
        assert all(0 <= start < stop <= job.length for start, stop in job.parts)
    read = Extents.of(
        (job.number * CHUNK + start, job.number * CHUNK + stop)
        for job in jobs
        for start, stop in job.parts
    )
    assert read == wanted
