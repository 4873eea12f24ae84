"""Go on in the background once all is ready, and not before."""

from __future__ import annotations

import logging
import os
import sys
import syslog
from collections.abc import Callable

from freezeframe.core.errors import FreezeframeError

_READY = b"ready"


class Backgrounded(Exception):
    """Raised in the process that was started: the other one goes on and all is well."""


def fork_until_ready() -> Callable[[], None]:
    """Fork; return, in the child, what it calls when it has done all that may fail.

    Until then it has the terminal: it may ask for a password, and its errors are seen. The
    parent waits for that and raises `Backgrounded`; or `SystemExit` with the child's exit
    code where it ended first, having said why. Call it before any thread is started.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        if told == _READY:
            raise Backgrounded
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code < 0:
            raise FreezeframeError(f"the process in the background was ended by signal {-code}")
        raise SystemExit(code or 1)
    os.close(reader)

    def ready() -> None:
        os.setsid()
        os.chdir("/")
        sys.stdout.flush()
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        _log_to_system()
        os.write(writer, _READY)
        os.close(writer)

    return ready


class _SystemLog(logging.Handler):
    """Hands warnings to the system's log: nobody sees a terminal any more."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        syslog.syslog(syslog.LOG_WARNING, self.format(record))


def _log_to_system() -> None:
    syslog.openlog("freezeframe", syslog.LOG_PID, syslog.LOG_DAEMON)
    handler = _SystemLog(logging.INFO)
    log = logging.getLogger("freezeframe")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
