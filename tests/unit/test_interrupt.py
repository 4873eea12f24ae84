"""Signals become one orderly stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from freezeframe.system.interrupt import deferred, orderly_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with orderly_stop():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        # The second one does not cut short what cleans up; the third does.
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_closed_terminal_is_no_reason() -> None:
    with orderly_stop():
        os.kill(os.getpid(), signal.SIGHUP)


def test_deferred_until_the_end() -> None:
    done = []
    with orderly_stop():
        try:
            with deferred():
                os.kill(os.getpid(), signal.SIGINT)
                # Another thread may be the one the kernel picks.
                threading.Thread(target=lambda: done.append("thread")).start()
                subprocess.run([sys.executable, "-c", "pass"], check=True)
                done.append("acquired")
        except KeyboardInterrupt:
            done.append("stopped")
        assert [word for word in done if word != "thread"] == ["acquired", "stopped"]
        with deferred():
            pass


def test_children_started_while_deferred_do_not_hear_it() -> None:
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with deferred():
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert told.stdout == b"True\n"


def test_other_threads_do_nothing() -> None:
    seen = []

    def body() -> None:
        with orderly_stop(), deferred():
            seen.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [True]
