"""Signals that end the program, turned into one orderly stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("freezeframe.interrupt")

#: Ctrl-C, and how service managers and shutdowns end a program.
_STOPPING = (signal.SIGINT, signal.SIGTERM)
#: From the third signal on, cleaning up is taken to hang and is interrupted itself.
_PATIENCE = 2


@contextmanager
def orderly_stop() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise one `KeyboardInterrupt` in the main thread.

    A second signal is not raised, so that cleaning up is not itself cut short; from the
    third on they are again. SIGHUP is ignored: a closed terminal does not end an image that
    takes hours. Does nothing outside the main thread, where Python knows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        del frame
        received += 1
        if received == 1 or received > _PATIENCE:
            raise KeyboardInterrupt(signal.Signals(number).name)
        log.warning("stopping already; once more to stop at once")

    former = {number: signal.signal(number, stop) for number in _STOPPING}
    former[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, SIGINT and SIGTERM wait; one that came is delivered at the end.

    For the moments in which something is acquired (a loop device) and not yet noted. Child
    processes started within do not get them either: Ctrl-C goes to all of a terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        pending.append(number)

    # Blocking alone would do if there were no other threads for the kernel to deliver to.
    former = {number: signal.signal(number, note) for number in _STOPPING}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in former.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
