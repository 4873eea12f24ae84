"""Programs that are run to hold something and to let it go: bounded, and ended from outside."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.system.run import foreign_environment

#: So much of what a program prints is kept.
_MOST = 1 << 20
#: Seconds between SIGTERM and SIGKILL.
_PATIENCE = 0.5


class CommandFailed(FreezeError):
    """A program failed or took too long; `output` is the end of what it printed."""

    def __init__(self, command: Sequence[str], reason: str, output: str) -> None:
        last = output.strip().splitlines()[-1:]
        super().__init__(": ".join([f"`{shlex.join(command)}` {reason}", *last]))
        self.reason = reason
        self.output = output


class Commands:
    """Runs one program at a time; `stop` ends the one that runs, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        command: Sequence[str],
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program by its full path to its end; return what it printed.

        It may leave others running in the background, which is how a lock is held. Its output
        goes to memory: a file could be on what is frozen. `CommandFailed` on any exit code but
        0 and where the deadline passes: then it, and what it has started, is ended.
        """
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={**foreign_environment(), **(environment or {})},
                    start_new_session=True,
                )
            except OSError as error:
                raise CommandFailed(command, f"cannot be run ({error.strerror})", "") from error
            with self._lock:
                self._process = process
            try:
                in_time = _wait(process, deadline.left)
            finally:
                with self._lock:
                    self._process = None
            if not in_time:
                _end(process)
                reason = f"took longer than {deadline.limit:g} s"
                raise CommandFailed(command, reason, _tail(output))
            if process.returncode:
                reason = f"failed with exit code {process.returncode}"
                raise CommandFailed(command, reason, _tail(output))
            return _tail(output)
        finally:
            os.close(output)

    def stop(self) -> None:
        """End the program that runs, and what it has started; `run` then fails."""
        with self._lock:
            process = self._process
        if process is not None:
            _signal(process, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Step:
    """A program that holds something, and the one that lets it go."""

    hold: tuple[str, ...]
    release: tuple[str, ...]


class Steps:
    """Holds several things in their order, and lets them go in the reverse one.

    A step that fails has begun, and is let go like the others: what it did is not known.
    """

    def __init__(self, steps: Sequence[Step], limit: float) -> None:
        """`limit` in seconds, for letting each go."""
        self._steps = tuple(steps)
        self._limit = limit
        self._commands = Commands()
        self._lock = threading.Lock()
        self._begun: list[Step] = []
        #: Counts the calls of `release`, so that `hold` notices one.
        self._releases = 0

    def hold(self, deadline: Deadline) -> None:
        """Do all steps. `CommandFailed`; also where `release` is called meanwhile."""
        with self._lock:
            before = self._releases
        for step in self._steps:
            with self._lock:
                if self._releases != before:
                    raise CommandFailed(step.hold, "was called off", "")
                self._begun.append(step)
            try:
                self._commands.run(step.hold, deadline)
            finally:
                with self._lock:
                    late = self._releases != before
                if late:
                    # It was let go before it held; now it may hold.
                    with contextlib.suppress(CommandFailed):
                        Commands().run(step.release, Deadline.after(self._limit))

    def release(self) -> list[CommandFailed]:
        """Let go what was begun, the last first; from any thread. Return what failed."""
        with self._lock:
            self._releases += 1
            begun, self._begun = self._begun, []
        if begun:
            self._commands.stop()
        failed = []
        for step in reversed(begun):
            try:
                Commands().run(step.release, Deadline.after(self._limit))
            except CommandFailed as error:
                failed.append(error)
        return failed

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return the programs that let everything go, in their order."""
        return tuple(step.release for step in reversed(self._steps))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process without looking again and again; tell whether it came."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            if not waiting.poll(seconds * 1000):
                return False
        finally:
            os.close(descriptor)
        process.wait()
        return True
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    if not _wait(process, _PATIENCE):
        _signal(process, signal.SIGKILL)
        _wait(process, _PATIENCE)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # It leads a session of its own, so its group is what it has started.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(descriptor: int) -> str:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, max(0, size - _MOST), os.SEEK_SET)
    return os.read(descriptor, _MOST).decode(errors="replace")
