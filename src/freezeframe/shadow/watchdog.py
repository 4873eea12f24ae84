"""The program's side of the watchdog: starting it, and telling it what is frozen."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from freezeframe.core.errors import FreezeError
from freezeframe.shadow import watchdog_process
from freezeframe.system.freeze import FITHAW

#: Seconds; a start takes some 50 ms, an answer less than one.
_PATIENCE = 20.0


class Watchdog:
    """A process that thaws what this one has frozen when this one cannot.

    When this process ends in any way, SIGKILL included, and when `limit` seconds have
    passed since `arm`: then also what a freeze call that has not returned yet freezes.
    `descriptors` and `names` are of the filesystems, which are spoken of by their index.
    For one thread; not for a forked child.
    """

    def __init__(self, descriptors: Sequence[int], names: Sequence[str], limit: float) -> None:
        self._descriptors = list(descriptors)
        self._names = list(names)
        self._limit = limit
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: Whether its memory is locked: it should be, but works without.
        self.locked = False

    def __enter__(self) -> Watchdog:
        self.ensure()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id; 0 where it does not run."""
        return self._process.pid if self._process is not None else 0

    def ensure(self) -> None:
        """Start it where it does not run. `FreezeError` where it cannot be started."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = self._start(theirs)
            ours.settimeout(_PATIENCE)
            self._channel = ours
            answer = ours.recv(64)
        except OSError as error:
            self.close()
            raise _ended(str(error)) from error
        if not answer.startswith(b"ready "):
            self.close()
            raise _ended("it ended at once")
        self.locked = answer == b"ready 1"

    def _start(self, channel: socket.socket) -> subprocess.Popen[bytes]:
        # Where the kernel has no pidfd (5.3), the closed channel alone tells of our end.
        process = -1
        with contextlib.suppress(OSError):
            process = os.pidfd_open(os.getpid())
        passed = [channel.fileno(), *self._descriptors]
        if process >= 0:
            passed.append(process)
        filesystems = [
            text
            for descriptor, name in zip(self._descriptors, self._names, strict=True)
            for text in (str(descriptor), name)
        ]
        try:
            return subprocess.Popen(
                # Isolated, without site: it needs neither the environment nor packages.
                [sys.executable, "-I", "-S", "-B", str(Path(watchdog_process.__file__)),
                 repr(self._limit), str(FITHAW), str(channel.fileno()), str(process),
                 *filesystems],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                # Ctrl-C goes to a whole terminal, and a closed terminal ends its session.
                start_new_session=True,
                cwd="/",
            )  # fmt: skip
        finally:
            if process >= 0:
                os.close(process)

    def close(self) -> None:
        """End it; should anything still be frozen, it thaws that first."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            # It may be thawing: it is not to be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            self._process = None

    # -- what the program does ----------------------------------------------------------

    def arm(self) -> None:
        """Say that the time runs from now. `FreezeError` where the watchdog has ended."""
        self._tell("arm")

    def about(self, index: int) -> None:
        """Say that the next call freezes this one. `FreezeError` as for `arm`."""
        self._tell(f"about {index}")

    def frozen(self, index: int) -> None:
        """Say that the call has frozen it."""
        self._tell(f"frozen {index}")

    def failed(self, index: int) -> None:
        """Say that the call has not frozen it."""
        self._tell(f"failed {index}")

    def thawed(self, index: int) -> None:
        """Say that it was thawed by us."""
        with contextlib.suppress(FreezeError):
            self._tell(f"thawed {index}")

    def hurried(self, before: str) -> None:
        """Say that the kernel is told to hurry, and what to set it back to if we die."""
        with contextlib.suppress(FreezeError):
            self.ensure()
            self._tell(f"hurried {int(before)}")

    def calmed(self) -> None:
        """Say that it was set back by us."""
        with contextlib.suppress(FreezeError):
            self._tell("calmed")

    def disarm(self) -> tuple[int, ...]:
        """Stop the clock; return what the watchdog thawed since `arm`.

        Empty also where it has ended: a watchdog that died thaws nothing.
        """
        return self._answer("disarm")

    def ask(self) -> tuple[int, ...]:
        """Return what the watchdog thawed since `arm`; the clock runs on."""
        return self._answer("ask")

    def _tell(self, text: str) -> None:
        if self._channel is None:
            raise _ended("it does not run")
        try:
            self._channel.send(text.encode())
        except OSError as error:
            raise _ended(str(error)) from error

    def _answer(self, text: str) -> tuple[int, ...]:
        try:
            self._tell(text)
            answer = self._channel.recv(4096) if self._channel is not None else b""
        except (OSError, FreezeError):
            return ()
        return tuple(int(number) for number in answer.split()[1:])


def _ended(reason: str) -> FreezeError:
    return FreezeError(
        f"the watchdog that thaws in an emergency is not there: {reason}",
        hint="nothing is frozen without it; try again, and look into the kernel log if it "
        "ends again",
    )
