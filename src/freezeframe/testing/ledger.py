"""A ledger of what a database has acknowledged, kept where the image does not reach.

Each of some sessions does transaction after transaction, each of two parts with the
session's next number, and notes the number once the database has said that it is durable.
What a restored database must hold is then known exactly: from every session the numbers from
1 to some last one, which is not below what was noted before the freeze, nor above what was
begun; and of each both parts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.testing.frozen import eventually

#: Seconds a transaction may take: a freeze in which disks are copied is among them.
_PATIENCE = 120.0


@dataclass
class Ledger:
    """What each session has begun, and what was acknowledged; the last numbers."""

    begun: list[int]
    acknowledged: list[int]
    #: Seconds the longest transaction took since it was last asked.
    longest: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)

    def so_far(self) -> list[int]:
        """Return what is acknowledged by now."""
        return list(self.acknowledged)

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until every session has done some more."""
        before = self.so_far()
        eventually(
            lambda: (
                bool(self.errors)
                or all(
                    now >= was + count for now, was in zip(self.acknowledged, before, strict=True)
                )
            )
        )
        assert not self.errors, self.errors

    def check(
        self, found: Mapping[int, Sequence[int]], before: Sequence[int], *, name: str = ""
    ) -> int:
        """Compare what a restored database holds; return how many transactions that is.

        `found`: session → its numbers, in their order. `before`: what was acknowledged before
        the freeze was asked for. `AssertionError` where anything is lost, or torn.
        """
        for session, noted in enumerate(before):
            numbers = list(found.get(session, ()))
            assert numbers == list(range(1, len(numbers) + 1)), f"{name}: a hole in {session}"
            assert noted <= len(numbers) <= self.begun[session], (
                f"{name}: session {session} has {len(numbers)}, {noted} were acknowledged"
            )
        return sum(len(numbers) for numbers in found.values())


@contextlib.contextmanager
def load(
    make: Callable[[], Client],
    statement: Callable[[int, int], str],
    *,
    sessions: int = 3,
    rest: float = 0.0,
) -> Iterator[Ledger]:
    """Have sessions at work within; `statement` makes one transaction of (session, number)."""
    ledger = Ledger([0] * sessions, [0] * sessions)
    threads = [
        threading.Thread(
            target=_work, args=(ledger, session, make, statement, rest), name=f"load-{session}"
        )
        for session in range(sessions)
    ]
    for thread in threads:
        thread.start()
    try:
        ledger.wait_for_more()
        yield ledger
        assert not ledger.errors, ledger.errors
    finally:
        ledger.stop.set()
        for thread in threads:
            thread.join()


def _work(
    ledger: Ledger,
    session: int,
    make: Callable[[], Client],
    statement: Callable[[int, int], str],
    rest: float,
) -> None:
    try:
        with make() as client:
            while not ledger.stop.is_set():
                number = ledger.begun[session] + 1
                ledger.begun[session] = number
                at = time.monotonic()
                client.ask(statement(session, number), Deadline.after(_PATIENCE))
                ledger.acknowledged[session] = number
                ledger.longest = max(ledger.longest, time.monotonic() - at)
                if rest:
                    time.sleep(rest)
    except (ClientFailed, OSError) as error:
        if not ledger.stop.is_set():
            ledger.errors.append(error)
