"""Threads that share work: all of it done, and the first failure stops all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from freezeframe.system.workers import run_workers


def test_every_item_once() -> None:
    done: list[int] = []
    run_workers(range(1000), lambda: done.append, threads=4)
    assert sorted(done) == list(range(1000))


def test_each_thread_has_a_worker_of_its_own() -> None:
    made: list[int] = []
    gate = threading.Barrier(3)

    def make() -> Callable[[int], None]:
        made.append(threading.get_ident())
        gate.wait()
        return lambda item: None

    run_workers(range(9), make, threads=3)
    assert len(set(made)) == 3


def test_the_first_failure_stops_the_others() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    def work(item: int) -> None:
        taken.append(item)
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        run_workers(endless(), lambda: work, threads=2)
    assert len(taken) < 10_000_000


def test_several_failures_are_all_told() -> None:
    gate = threading.Barrier(2)

    def work(item: int) -> None:
        gate.wait(timeout=30)
        raise ValueError(str(item))

    with pytest.raises(ExceptionGroup) as caught:
        run_workers([1, 2], lambda: work, threads=2)
    assert sorted(str(error) for error in caught.value.exceptions) == ["1", "2"]


def test_an_error_that_several_threads_share_is_one() -> None:
    gate = threading.Barrier(2)
    shared = ValueError("full")

    def work(item: int) -> None:
        gate.wait(timeout=30)
        raise shared

    with pytest.raises(ValueError, match="full"):
        run_workers([1, 2], lambda: work, threads=2)


def test_a_failing_source_of_work_is_told() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        run_workers(broken(), lambda: lambda item: None, threads=2)


def test_a_worker_that_cannot_be_made_is_told() -> None:
    def make() -> Callable[[int], None]:
        raise MemoryError("no buffer")

    with pytest.raises(MemoryError):
        run_workers([1], make, threads=1)


def test_a_thread_that_would_leave_is_a_failure() -> None:
    def leave(item: int) -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        run_workers(range(9), lambda: leave, threads=1)
