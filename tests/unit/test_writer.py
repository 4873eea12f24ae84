"""Writing blobs: what is stored when, and what happens when it cannot be."""

from __future__ import annotations

import hashlib
import os
import threading

import numpy as np
import pytest

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged, StoreError
from freezeframe.core.progress import Silent
from freezeframe.repo.check import check
from freezeframe.repo.index import Index
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository, create_repository, open_repository
from freezeframe.repo.writer import BlobKind, BlobWriter
from freezeframe.store.base import Kind, Parts
from freezeframe.store.memory import MemoryStore
from freezeframe.system.workers import run_workers
from freezeframe.testing.faulty_store import Fault, FaultyStore
from freezeframe.testing.repositories import PASSWORD, memory_repository, save_file

DATA = BlobKind.DATA
KIB = 1024


def noise(count: int, size: int = 10 * KIB) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def damage(repository: Repository) -> list[str]:
    problems = check(repository, read_data=True, progress=Silent())
    return [f"{problem.object}: {problem.text}" for problem in problems if problem.damage]


@pytest.fixture
def repository() -> Repository:
    return memory_repository()


def test_what_was_put_is_read_back(repository: Repository) -> None:
    blobs = [b"", b"x", bytes(100_000), os.urandom(100_000), b"text " * 10_000]
    with BlobWriter(repository, repository.load_index()) as writer:
        handle = writer.handle()
        ids = [handle.put(DATA, memoryview(bytearray(blob))) for blob in blobs]
    assert ids == [hashlib.sha256(blob).digest() for blob in blobs]
    reader = BlobReader(repository, repository.load_index())
    assert [reader.read(DATA, blob_id) for blob_id in ids] == blobs
    assert damage(repository) == []


def test_a_blob_is_stored_once(repository: Repository) -> None:
    index = repository.load_index()
    with BlobWriter(repository, index) as writer:
        for handle in (writer.handle(), writer.handle()):
            handle.put(DATA, b"same" * 100)
            handle.put(BlobKind.TREE, b"same" * 100)
        stats = writer.stats
    assert (stats.blobs_new, stats.blobs_known) == (2, 2)
    assert (stats.plain_bytes, stats.known_bytes) == (800, 800)
    with BlobWriter(repository, repository.load_index()) as writer:
        writer.handle().put(DATA, b"same" * 100)
        assert (writer.stats.blobs_new, writer.stats.blobs_known) == (0, 1)
    assert len(repository.store.list(Kind.DATA)) == 2
    assert len(repository.store.list(Kind.INDEX)) == 1


def test_trees_and_data_lie_in_separate_packs(repository: Repository) -> None:
    save_file(repository, noise(5))
    index = repository.load_index()
    packs = [set(index.columns(kind).packs.tolist()) for kind in BlobKind]
    assert packs[0].isdisjoint(packs[1])
    assert all(packs)


def test_several_threads_share_packs(repository: Repository) -> None:
    blobs = noise(60)
    with BlobWriter(repository, repository.load_index(), pack_size=100 * KIB) as writer:

        def make_worker() -> object:
            handle = writer.handle()
            return lambda blob: handle.put(DATA, blob)

        run_workers([*blobs, *blobs], make_worker, threads=4)  # type: ignore[arg-type]
        assert writer.stats.blobs_new == 60
    reader = BlobReader(repository, repository.load_index())
    for blob in blobs:
        assert reader.read(DATA, hashlib.sha256(blob).digest()) == blob
    assert len(repository.store.list(Kind.DATA)) == 6
    assert damage(repository) == []


def test_nothing_counts_as_known_before_it_is_durable(repository: Repository) -> None:
    index = repository.load_index()
    with BlobWriter(repository, index) as writer:
        blob_id = writer.handle().put(DATA, b"on its way")
        assert not index.has(DATA, blob_id)
        assert repository.load_index().total == 0
        writer.flush()
        assert index.has(DATA, blob_id)
        assert repository.load_index().has(DATA, blob_id)


def test_an_index_is_written_at_intervals(repository: Repository) -> None:
    """An interrupted run is found again: nothing is flushed here."""
    now = [0.0]
    index = repository.load_index()
    writer = BlobWriter(
        repository, index, pack_size=20 * KIB, uploaders=1, monotonic=lambda: now[0]
    )
    handle = writer.handle()
    first = [handle.put(DATA, blob) for blob in noise(4)]
    now[0] = 61.0
    second = [handle.put(DATA, blob) for blob in noise(20)]
    # The uploader has taken the packs before these, so it wrote the index that was due.
    found = repository.load_index()
    assert all(found.has(DATA, blob_id) for blob_id in first[:2])
    assert not all(found.has(DATA, blob_id) for blob_id in second)
    writer.abort()
    # What was durable at the end is in an index, too.
    packs = repository.pack_names()
    found = repository.load_index()
    known = {found.pack_name(number) for number in range(found.pack_count)}
    assert known == packs
    assert damage(repository) == []


def test_an_index_file_holds_whole_packs_and_not_too_much(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freezeframe.repo.writer._INDEX_BLOBS", 10)
    monkeypatch.setattr("freezeframe.repo.writer._PACK_BLOBS", 4)
    with BlobWriter(repository, repository.load_index()) as writer:
        handle = writer.handle()
        for blob in noise(50, 10):
            handle.put(DATA, blob)
    counts = []
    for name, _ in repository.store.list(Kind.INDEX):
        packs = repository.load_index_file(name).packs or []
        counts.append(sum(len(pack.blobs) for pack in packs))
    assert max(counts) <= 10
    assert sum(counts) == 50


def test_flushing_often_is_fine(repository: Repository) -> None:
    with BlobWriter(repository, repository.load_index()) as writer:
        writer.flush()
        handle = writer.handle()
        for blob in noise(3):
            handle.put(DATA, blob)
            writer.flush()
        writer.flush()
    assert len(repository.store.list(Kind.INDEX)) == 3
    assert damage(repository) == []


# -- failures --------------------------------------------------------------------------


def faulty(fault: Fault, number: int, kind: Kind) -> tuple[MemoryStore, Repository]:
    store = MemoryStore()
    create_repository(store, PASSWORD)
    save_file(open_repository(store, PASSWORD), [b"earlier"])
    wrapped = FaultyStore(store, fault, number, frozenset([kind]))
    return store, open_repository(wrapped, PASSWORD)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize(("kind", "number"), [(Kind.DATA, 1), (Kind.DATA, 4), (Kind.INDEX, 1)])
def test_a_failing_store_stops_everything_and_harms_nothing(
    fault: Fault, kind: Kind, number: int
) -> None:
    store, repository = faulty(fault, number, kind)
    blobs = noise(40)
    with pytest.raises(StoreError):
        save_file(repository, blobs, pack_size=50 * KIB)
    honest = open_repository(store, PASSWORD)
    assert len(honest.snapshots()) == 1
    if fault is not Fault.TORN:
        assert damage(honest) == []
    elif kind is Kind.INDEX:
        # A storage that keeps half an object: named, and the rest can still be used.
        assert any(text.startswith("index/") for text in damage(honest))
        for name, _ in store.list(Kind.INDEX):
            try:
                honest.load_index_file(name)
            except RepositoryDamaged:
                store.remove(Kind.INDEX, name)
    # The next run goes on.
    save_file(honest, blobs, pack_size=50 * KIB)
    assert damage(honest) == []


def test_every_thread_is_told_the_first_failure() -> None:
    _, repository = faulty(Fault.FULL, 2, Kind.DATA)
    writer = BlobWriter(repository, Index.empty(), pack_size=20 * KIB)
    told: list[BaseException] = []

    def work() -> None:
        handle = writer.handle()
        try:
            while True:
                handle.put(DATA, os.urandom(10 * KIB))
        except StoreError as error:
            told.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 4
    assert len(set(map(id, told))) == 1
    assert "no room" in str(told[0])
    with pytest.raises(StoreError, match="no room"):
        writer.flush()
    writer.abort()
    with pytest.raises(StoreError, match="no room"):
        writer.handle().put(DATA, b"late")


def test_an_exception_in_the_block_stores_nothing_half(repository: Repository) -> None:
    def interrupted() -> None:
        with BlobWriter(repository, repository.load_index()) as writer:
            writer.handle().put(DATA, b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert repository.store.list(Kind.DATA) == []
    assert repository.store.list(Kind.INDEX) == []


def test_a_closed_writer_takes_nothing(repository: Repository) -> None:
    with BlobWriter(repository, repository.load_index()) as writer:
        handle = writer.handle()
    with pytest.raises(FreezeframeError, match="closed"):
        handle.put(DATA, b"x")
    with pytest.raises(FreezeframeError, match="closed"):
        writer.flush()
    writer.close()


class _SlowStore(MemoryStore):
    """Lets a pack in only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        if kind is Kind.DATA:
            self.gate.wait()
        super().put(kind, name, parts)


def test_a_slow_store_holds_the_workers_back() -> None:
    store = _SlowStore()
    repository = create_repository(store, PASSWORD)
    writer = BlobWriter(repository, Index.empty(), pack_size=10 * KIB, uploaders=1)
    handle = writer.handle()
    started = threading.Semaphore(0)

    def work() -> None:
        for _ in range(50):
            handle.put(DATA, os.urandom(10 * KIB))
            started.release()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):  # one being stored and two in the queue
        started.acquire()
    thread.join(0.2)
    assert thread.is_alive()
    assert writer.stats.blobs_new <= 4
    store.gate.set()
    thread.join()
    writer.close()
    assert damage(repository) == []


# -- healing and reading ---------------------------------------------------------------


def test_what_was_lost_is_stored_again(repository: Repository) -> None:
    blobs = noise(10)
    save_file(repository, blobs, pack_size=30 * KIB)
    victim = repository.store.list(Kind.DATA)[0][0]
    repository.store.remove(Kind.DATA, victim)
    assert damage(repository)
    index = repository.load_index()
    assert index.drop_missing_packs(repository.pack_names()) > 0
    with BlobWriter(repository, index) as writer:
        handle = writer.handle()
        for blob in blobs:
            handle.put(DATA, blob)
    found = repository.load_index()
    found.drop_missing_packs(repository.pack_names())
    reader = BlobReader(repository, found)
    for blob in blobs:
        assert reader.read(DATA, hashlib.sha256(blob).digest()) == blob


def test_a_good_copy_serves_for_a_bad_one(repository: Repository) -> None:
    for _ in range(2):
        with BlobWriter(repository, Index.empty()) as writer:
            blob_id = writer.handle().put(DATA, b"twice" * 100)
    assert repository.load_index().total == 2
    for name, _ in repository.store.list(Kind.DATA):
        data = repository.store.get(Kind.DATA, name)
        repository.store.remove(Kind.DATA, name)
        repository.store.put(Kind.DATA, name, [bytes(len(data))])
        reader = BlobReader(repository, repository.load_index())
        if all(
            repository.store.get(Kind.DATA, n)[:1] == b"\0"
            for n, _ in repository.store.list(Kind.DATA)
        ):
            with pytest.raises(RepositoryDamaged, match=blob_id.hex()):
                reader.read(DATA, blob_id)
        else:
            assert reader.read(DATA, blob_id) == b"twice" * 100


def test_runs_are_read_in_few_pieces(repository: Repository) -> None:
    blobs = noise(20)
    save_file(repository, blobs, pack_size=10 << 20)
    index = repository.load_index()
    reader = BlobReader(repository, index)
    ids = np.frombuffer(
        b"".join(hashlib.sha256(blob).digest() for blob in blobs), np.uint8
    ).reshape(-1, 32)
    found = index.find_many(DATA, ids)
    rows = np.argsort(found.offsets)[[0, 1, 2, 10, 11, 19]]
    assert reader.read_run(DATA, ids[rows], found.take(rows)) == [blobs[row] for row in rows]
    none = np.empty(0, np.int64)
    assert reader.read_run(DATA, ids[none], found.take(none)) == []


def test_a_damaged_blob_in_a_run_is_named(repository: Repository) -> None:
    blobs = noise(5)
    save_file(repository, blobs)
    index = repository.load_index()
    ids = np.frombuffer(
        b"".join(hashlib.sha256(blob).digest() for blob in blobs), np.uint8
    ).reshape(-1, 32)
    found = index.find_many(DATA, ids)
    name = index.pack_name(int(found.packs[0]))
    data = bytearray(repository.store.get(Kind.DATA, name))
    data[int(found.offsets[3]) + 100] ^= 1
    repository.store.remove(Kind.DATA, name)
    repository.store.put(Kind.DATA, name, [data[: int(found.offsets[4]) + 100]])
    reader = BlobReader(repository, index)
    rows = np.array([0, 1, 2])
    assert reader.read_run(DATA, ids[rows], found.take(rows)) == blobs[:3]
    for bad in (3, 4):
        rows = np.array([0, 1, 2, bad])
        with pytest.raises(RepositoryDamaged, match=ids[bad].tobytes().hex()) as caught:
            reader.read_run(DATA, ids[rows], found.take(rows))
        assert name[:16] in caught.value.reason


def test_an_unknown_blob_is_named(repository: Repository) -> None:
    reader = BlobReader(repository, Index.empty())
    with pytest.raises(RepositoryDamaged, match="ab" * 32):
        reader.read(DATA, bytes.fromhex("ab" * 32))
