"""Locks among ourselves; restic's side of it is in the contract tests."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec
import pytest

from freezeframe.core.errors import RepositoryDamaged, RepositoryLocked, StoreError
from freezeframe.repo.keys import host_name
from freezeframe.repo.locks import LockTimes, is_stale
from freezeframe.repo.repository import Repository, create_repository
from freezeframe.repo.structs import LockFile
from freezeframe.store.base import Kind, Parts
from freezeframe.store.memory import MemoryStore
from freezeframe.testing.repositories import PASSWORD, memory_repository, save_file

QUICK = LockTimes(settle=0.0, refresh=0.01, retry=0.01, give_up=0.05)


def now() -> dt.datetime:
    """Asked anew each time: collecting all tests may lie minutes before this one."""
    return dt.datetime.now().astimezone()


@pytest.fixture
def repository() -> Repository:
    return memory_repository()


def locks(repository: Repository) -> list[str]:
    return [name for name, _ in repository.store.list(Kind.LOCKS)]


def foreign(repository: Repository, **changes: object) -> str:
    lock = LockFile(now(), exclusive=False, hostname="elsewhere", username="x", pid=1)
    return repository.write_lock(msgspec.structs.replace(lock, **changes))


def test_shared_locks_go_together_and_exclude_exclusive_ones(repository: Repository) -> None:
    with repository.lock():
        with repository.lock():
            assert len(locks(repository)) == 2
            with pytest.raises(RepositoryLocked, match=f"process {os.getpid()} of"):
                repository.lock(exclusive=True).acquire()
        assert len(locks(repository)) == 1
    assert locks(repository) == []
    with repository.lock(exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(RepositoryLocked, match="locked exclusively by"):
                repository.lock(exclusive=exclusive).acquire()
    assert locks(repository) == []


def test_a_lock_is_removed_whatever_happens(repository: Repository) -> None:
    def interrupted() -> None:
        with repository.lock():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert locks(repository) == []


class _Rival(MemoryStore):
    """Somebody else locks at the moment we have written our lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock: Callable[[], str] | None = None

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        super().put(kind, name, parts)
        if kind is Kind.LOCKS and self.lock is not None:
            rival, self.lock = self.lock, None
            rival()


def test_a_conflict_that_appears_while_waiting_is_seen() -> None:
    """Two who lock at once: each writes, then looks again."""
    store = _Rival()
    repository = create_repository(store, PASSWORD)
    store.lock = lambda: foreign(repository, exclusive=True)
    with pytest.raises(RepositoryLocked, match="elsewhere"):
        repository.lock(times=QUICK).acquire()
    assert len(locks(repository)) == 1


def test_a_lock_nobody_can_read_is_a_conflict(repository: Repository) -> None:
    repository.store.put(Kind.LOCKS, "0" * 64, [b"half a lo"])
    with pytest.raises(RepositoryLocked) as caught:
        repository.lock().acquire()
    assert "--remove-all" in caught.value.hint
    assert repository.unlock() == 0
    assert repository.unlock(remove_all=True) == 1


def test_unlocking_removes_what_was_left_behind(repository: Repository) -> None:
    alive = foreign(repository)
    foreign(repository, time=now() - dt.timedelta(minutes=31))
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    foreign(repository, hostname=host_name(), pid=int(dead.stdout))
    here = foreign(repository, hostname=host_name(), pid=os.getpid())
    assert repository.unlock() == 2
    assert sorted(locks(repository)) == sorted([alive, here])
    assert repository.unlock(remove_all=True) == 2


@pytest.mark.parametrize("pid", [0, -1, 1 << 40])
def test_odd_process_numbers_are_not_stale(pid: int) -> None:
    assert not is_stale(LockFile(now(), exclusive=True, hostname=host_name(), pid=pid))


def test_a_stale_lock_still_conflicts_and_says_so(repository: Repository) -> None:
    foreign(repository, exclusive=True, time=now() - dt.timedelta(hours=3))
    with pytest.raises(RepositoryLocked, match="elsewhere, refreshed 3h00m ago") as caught:
        repository.lock().acquire()
    assert "freezeframe unlock" in caught.value.hint


class _Watched(MemoryStore):
    """Signals each lock written, and can be told to refuse them."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Semaphore(0)
        self.refuse = False

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        if kind is Kind.LOCKS:
            if self.refuse:
                raise StoreError("no room")
            self.written.release()
        super().put(kind, name, parts)


def wait_until_lost(lock: object) -> None:
    while not getattr(lock, "lost"):  # noqa: B009 - typed as object to keep it short
        pass


def test_a_lock_is_refreshed_and_the_old_one_removed() -> None:
    store = _Watched()
    repository = create_repository(store, PASSWORD)
    with repository.lock(times=QUICK) as lock:
        first = lock.name
        # While it settled it may have been refreshed already.
        while store.written.acquire(blocking=False):
            pass
        for _ in range(3):
            store.written.acquire()
        assert lock.name != first
        assert not store.exists(Kind.LOCKS, first)
        assert not lock.lost
        assert len(locks(repository)) <= 2
    assert locks(repository) == []


def test_a_lock_that_was_removed_is_lost_and_nothing_more_is_written(
    repository: Repository,
) -> None:
    with repository.lock(times=QUICK) as lock:
        while not lock.lost:
            repository.unlock(remove_all=True)
        with pytest.raises(RepositoryLocked, match="lost: somebody removed it"):
            save_file(repository, [b"x"])
        assert repository.store.list(Kind.DATA) == []
        assert repository.store.list(Kind.SNAPSHOTS) == []
    assert locks(repository) == []
    save_file(repository, [b"x"])


def test_a_lock_that_cannot_be_refreshed_for_long_is_lost() -> None:
    store = _Watched()
    repository = create_repository(store, PASSWORD)
    with repository.lock(times=QUICK) as lock:
        store.refuse = True
        wait_until_lost(lock)
        with pytest.raises(RepositoryLocked, match="could not be refreshed: no room"):
            repository.check_locks()
    repository.check_locks()


def test_sighup_does_not_end_a_holder(repository: Repository) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with repository.lock(), repository.lock():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is before
    with repository.lock():
        os.kill(os.getpid(), signal.SIGHUP)


def test_another_handler_of_sighup_is_kept(repository: Repository) -> None:
    heard = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    try:
        with repository.lock():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGHUP]


def test_a_damaged_lock_file_is_named(repository: Repository) -> None:
    repository.store.put(Kind.LOCKS, "0" * 64, [b"x" * 100])
    with pytest.raises(RepositoryDamaged, match="locks/0000"):
        repository.read_lock("0" * 64)


class _Slow(MemoryStore):
    """A store that takes long to write our lock: somebody else's is there when it is."""

    meanwhile: Callable[[], object] | None = None

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        super().put(kind, name, parts)


def test_who_locked_while_ours_was_written_is_seen_before_anything_is_read() -> None:
    store = _Slow()
    repository = create_repository(store, PASSWORD)
    store.meanwhile = lambda: foreign(repository, exclusive=True)
    with pytest.raises(RepositoryLocked, match="locked exclusively by"), repository.lock().begun():
        raise AssertionError("what is read here may be gone")
    assert len(locks(repository)) == 1


def test_a_lock_that_has_begun_is_settled_before_it_counts(repository: Repository) -> None:
    with repository.lock().begun() as lock:
        foreign(repository, exclusive=True)
        with pytest.raises(RepositoryLocked, match="locked exclusively by"):
            lock.settle()
    assert len(locks(repository)) == 1


def test_whoever_writes_first_settles_a_lock_that_has_begun(repository: Repository) -> None:
    times = LockTimes(settle=0.05)
    with repository.lock(times=times).begun():
        before = repository.store.list(Kind.INDEX)
        foreign(repository, exclusive=True)
        with pytest.raises(RepositoryLocked, match="locked exclusively by"):
            repository.save_index([])
        assert list(repository.store.list(Kind.INDEX)) == list(before)
    with (
        pytest.raises(RepositoryLocked, match="locked exclusively by"),
        repository.lock(times=times).begun(),
    ):
        raise AssertionError("the other one is there already")
