"""Calls into writers and providers that may hang, each bounded by a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from freezeframe.core.errors import FreezeframeError
from freezeframe.shadow.deadline import Deadline


@dataclass(slots=True)
class Outcome:
    """What became of one call."""

    #: `time.monotonic()` of its start and end; the end is 0 where it did not end in time.
    begun: float = 0.0
    ended: float = 0.0
    error: BaseException | None = None

    @property
    def late(self) -> bool:
        """Whether it has not come back in time; it may still be at it."""
        return not self.ended

    @property
    def good(self) -> bool:
        """Whether it ended without an error."""
        return bool(self.ended) and self.error is None

    @property
    def seconds(self) -> float:
        """How long it took; until now where it is still at it."""
        return (self.ended or time.monotonic()) - self.begun

    @property
    def why(self) -> str:
        """Say why it is not good; for messages."""
        if self.late:
            return f"no answer after {self.seconds:.1f} s"
        if isinstance(self.error, FreezeframeError):
            return self.error.message
        return f"{type(self.error).__name__}: {self.error}" if self.error else ""

    @property
    def hint(self) -> str:
        """What its error says is to be done."""
        return self.error.hint if isinstance(self.error, FreezeframeError) else ""


class _Call:
    def __init__(self, body: Callable[[], None]) -> None:
        self.body = body
        self.outcome = Outcome(time.monotonic())
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.body()
        except BaseException as error:  # whoever waits for it raises it
            self.outcome.error = error
        self.outcome.ended = time.monotonic()
        self.done.set()


class Crew:
    """Threads for calls, started beforehand: none has to be made while disks stand still.

    They are daemons: a call that hangs keeps neither the caller nor the program's end waiting.
    One that hangs occupies its thread, so there is another one for each call.
    """

    def __init__(self, size: int) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()
        self._started = 0
        self._ensure(size)

    def run(self, bodies: Sequence[Callable[[], None]], deadline: Deadline) -> list[Outcome]:
        """Call all of them at once; return what became of each by the deadline."""
        calls = [_Call(body) for body in bodies]
        self._ensure(len(calls))
        with self._lock:
            self._idle -= len(calls)
        for call in calls:
            self._calls.put(call)
        for call in calls:
            call.done.wait(deadline.left)
        # As of now: what comes back later changes nothing any more.
        return [
            Outcome(c.outcome.begun, c.outcome.ended if c.done.is_set() else 0.0, c.outcome.error)
            for c in calls
        ]

    def close(self) -> None:
        """Let the threads end, as far as they come back."""
        for _ in range(self._started):
            self._calls.put(None)

    def _ensure(self, count: int) -> None:
        """Have so many threads wait for calls."""
        with self._lock:
            lacks = max(count - self._idle, 0)
            self._idle += lacks
            self._started += lacks
        for _ in range(lacks):
            threading.Thread(target=self._serve, name="shadow", daemon=True).start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            with self._lock:
                self._idle += 1
