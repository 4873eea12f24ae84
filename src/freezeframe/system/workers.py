"""Threads that share a stream of work: bounded, and the first failure stops all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


def default_threads(*, waiting: bool = True) -> int:
    """One thread a core, and one more where threads wait for a disk, so that no core idles."""
    return len(os.sched_getaffinity(0)) + waiting


class _Stream(Generic[Item]):
    """An iterator many threads may take from, that can be stopped."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def take(self) -> tuple[Item] | None:
        """Return the next item in a tuple of one, or None at the end."""
        with self._lock:
            if self.stopped.is_set():
                return None
            for item in self._items:
                return (item,)
            return None


def run_workers(
    items: Iterable[Item],
    make_worker: Callable[[], Callable[[Item], None]],
    *,
    threads: int | None = None,
) -> None:
    """Call a worker for every item, in several threads, in no order to rely on.

    `make_worker` is called once in each thread, so that each has contexts and buffers of its
    own; nothing is queued, so what is in memory is what the workers hold. The first failure
    stops all: it is raised when every thread has ended, as it is where it is the only one, in
    an `ExceptionGroup` with the others otherwise. Ctrl-C in the calling thread stops them too.
    """
    stream = _Stream(iter(items))
    errors: list[BaseException] = []

    def body() -> None:
        try:
            worker = make_worker()
            while (taken := stream.take()) is not None:
                worker(taken[0])
        except BaseException as error:
            # SystemExit, too: it would end this thread without a word, its work undone.
            stream.stopped.set()
            # What several threads share may fail all of them with one and the same error.
            if not any(error is other for other in errors):
                errors.append(error)

    count = threads or default_threads()
    pool = [threading.Thread(target=body, name=f"worker-{n}", daemon=True) for n in range(count)]
    try:
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    except BaseException:
        stream.stopped.set()
        for thread in pool:
            if thread.ident is not None:
                thread.join()
        raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several workers failed", errors)
