"""A small process beside this one that goes on when this one cannot.

What it does is in a program of its own, with nothing but the standard library: it has to be
small, single-threaded and wholly in memory. A fork of this program would be none of that, and
a fork of a process with threads may hang.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeError

#: Seconds; a start takes some 50 ms, an answer less than one.
PATIENCE = 20.0
#: Bytes of one answer, at most.
_ANSWER = 65536


class Companion(Closing):
    """The program's side: starting the process, talking to it, and ending it.

    For one thread; not for a forked child.
    """

    #: As messages call it.
    what = "a process that helps in an emergency"

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: Whether it was begun and has not said that it is ready.
        self._starting = False
        #: Whether its memory is locked: it should be, but works without.
        self.locked = False

    @abstractmethod
    def command(self, channel: int, process: int) -> list[str]:
        """Return its command line; it talks to `channel` and watches the pidfd `process`.

        The latter is -1 where the kernel has none: the closed channel alone tells of our end.
        """

    def descriptors(self) -> Sequence[int]:
        """Return which descriptors it is given, besides those two."""
        return ()

    def environment(self) -> Mapping[str, str] | None:
        """Return its environment; None for this program's own."""
        return None

    @property
    def pid(self) -> int:
        """Its process id; 0 where it does not run."""
        return self._process.pid if self._process is not None else 0

    def ensure(self) -> None:
        """Start it where it does not run. `FreezeError` where it cannot be started."""
        self.begin()
        self._wait_until_ready()

    def begin(self) -> None:
        """Start it where it does not run, without waiting; the first message waits.

        `FreezeError` where it cannot be started.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = self._start(theirs)
            ours.settimeout(PATIENCE)
            self._channel = ours
            self._starting = True
        except OSError as error:
            self.close()
            raise self._ended(str(error)) from error

    def _wait_until_ready(self) -> None:
        if self._channel is None or not self._starting:
            return
        try:
            answer = self._channel.recv(64)
        except OSError as error:
            self.close()
            raise self._ended(str(error)) from error
        self._starting = False
        if not answer.startswith(b"ready "):
            self.close()
            raise self._ended("it ended at once")
        self.locked = answer == b"ready 1"

    def _start(self, channel: socket.socket) -> subprocess.Popen[bytes]:
        process = -1
        with contextlib.suppress(OSError):
            process = os.pidfd_open(os.getpid())
        passed = [channel.fileno(), *self.descriptors()]
        if process >= 0:
            passed.append(process)
        try:
            return subprocess.Popen(
                self.command(channel.fileno(), process),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                env=self.environment(),
                # Ctrl-C goes to a whole terminal, and a closed terminal ends its session.
                start_new_session=True,
                cwd="/",
            )
        finally:
            if process >= 0:
                os.close(process)

    def close(self) -> None:
        """End it; should anything still be held, it lets that go first."""
        self._starting = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            # It may be at work: it is not to be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
            self._process = None

    def tell(self, text: str) -> None:
        """Send it a message. `FreezeError` where it has ended."""
        self._wait_until_ready()
        if self._channel is None:
            raise self._ended("it does not run")
        try:
            self._channel.send(text.encode())
        except OSError as error:
            raise self._ended(str(error)) from error

    def ask(self, text: str) -> str:
        """Send it a message and return what it answers; nothing where it has ended."""
        try:
            self.tell(text)
            return self._channel.recv(_ANSWER).decode() if self._channel is not None else ""
        except (OSError, FreezeError):
            return ""

    def _ended(self, reason: str) -> FreezeError:
        return FreezeError(
            f"{self.what} is not there: {reason}",
            hint="nothing is frozen without it; try again, and look into the kernel log if it "
            "ends again",
        )
