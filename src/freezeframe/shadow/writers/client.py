"""A database's own client program, kept running and spoken to through pipes.

Nothing has to be installed besides the database, and credentials come from where its
administrator put them. The connection is another process's: a database that hangs hangs that
one, never us. When this program ends in any way, SIGKILL included, its end of the pipe closes;
the client then ends, its session with it, and so whatever the session holds.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.system.run import foreign_environment

_PIECE = 65536
#: Seconds a client may take to end by itself once its pipe is closed.
_PATIENCE = 1.0
#: Seconds an answer may take to end once there was an error: where the connection is lost, the
#: word that ends it never comes.
_GRACE = 2.0


class ClientFailed(FreezeError):
    """The database said no, or did not answer: `output` is what its client printed."""

    def __init__(self, program: str, reason: str, *, gone: bool = False) -> None:
        super().__init__(f"{program}: {reason}")
        self.reason = reason
        #: Whether the connection is lost, and so all that the session held.
        self.gone = gone


class Client(Closing):
    """One session of a client program.

    `command` reads statements from its standard input; `ending` makes, of a word, the
    statement that prints that word: it tells that the answers before it are complete.
    `failure` finds the database's own error in what came on standard error, or nothing. After
    an answer that begins with `refusal` nothing more is to be had. `user` and `group` are whom
    the program runs as. For several threads; one asks at a time.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ending: Callable[[str], str],
        failure: Callable[[str], str],
        refusal: str = "",
        user: int | None = None,
        group: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. `ClientFailed` where that is not possible."""
        self._name = Path(command[0]).name
        self._ending = ending
        self._failure = failure
        self._refusal = refusal
        self._lock = threading.Lock()
        self._count = 0
        #: The beginning of a line of an answer; what came on standard error since the last one.
        self._rest = self._complaints = b""
        #: Standard error is at its end.
        self._deaf = False
        other = user is not None and user != os.geteuid()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Not where we are: that may be a folder the other user cannot enter.
                cwd="/",
                env={**foreign_environment(), **(environment or {})},
                user=user if other else None,
                group=group if other else None,
                extra_groups=() if other else None,
                # Ctrl-C goes to a whole terminal: the thaw is ours to do.
                start_new_session=True,
            )
        except OSError as error:
            raise ClientFailed(self._name, f"it cannot be started: {error.strerror}") from error
        stdin, stdout, stderr = (
            self._process.stdin, self._process.stdout, self._process.stderr,
        )  # fmt: skip
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        for stream in (stdin, stdout, stderr):
            os.set_blocking(stream.fileno(), False)

    @property
    def alive(self) -> bool:
        """Whether the program still runs."""
        return self._process.poll() is None

    def ask(self, statement: str, deadline: Deadline) -> list[str]:
        """Send a statement, or several; return the lines of the answers.

        `ClientFailed` where the database refuses, the connection is lost, or there is no
        answer in time; then the client is of no more use, and is ended.
        """
        if not self._lock.acquire(timeout=deadline.left):
            raise ClientFailed(self._name, "it still waits for an earlier answer")
        try:
            return self._ask(statement, deadline)
        finally:
            self._lock.release()

    def _ask(self, statement: str, deadline: Deadline) -> list[str]:
        self._count += 1
        word = f"freezeframe-{self._count}-done"
        self._complaints = b""
        lines = self._exchange(f"{statement}\n{self._ending(word)}\n".encode(), word, deadline)
        self._hear()
        complaint = self._complaint()
        if complaint:
            raise ClientFailed(self._name, complaint, gone=not self.alive)
        return lines

    def _exchange(self, data: bytes, word: str, deadline: Deadline) -> list[str]:
        stdin, stdout = self._stdin.fileno(), self._stdout.fileno()
        lines: list[str] = []
        try:
            while True:
                if data:
                    with contextlib.suppress(BlockingIOError):
                        data = data[os.write(stdin, data) :]
                patience = deadline.within(_GRACE) if self._complaint() else deadline
                if not self._wait(writing=bool(data), deadline=patience):
                    self.kill()
                    late = f"no answer within {deadline.limit:g} s"
                    raise ClientFailed(self._name, self._complaint() or late, gone=True)
                self._hear()
                with contextlib.suppress(BlockingIOError):
                    more = os.read(stdout, _PIECE)
                    if not more:
                        raise self._lost()
                    self._rest += more
                *whole, self._rest = self._rest.split(b"\n")
                for line in whole:
                    text = line.decode(errors="replace")
                    if text == word:
                        return lines
                    if self._refusal and text.startswith(self._refusal):
                        self.kill()
                        raise ClientFailed(self._name, text, gone=True)
                    lines.append(text)
        except (OSError, ValueError) as error:
            raise self._lost() from error

    def _wait(self, *, writing: bool, deadline: Deadline) -> bool:
        """Wait until there is something to be read or written; whether that came in time."""
        waiting = select.poll()
        waiting.register(self._stdout.fileno(), select.POLLIN)
        if not self._deaf:
            waiting.register(self._stderr.fileno(), select.POLLIN)
        if writing:
            waiting.register(self._stdin.fileno(), select.POLLOUT)
        return bool(waiting.poll(deadline.left * 1000))

    def _hear(self) -> None:
        """Take what it has printed on standard error."""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._stderr.fileno(), _PIECE):
                self._complaints += more
            self._deaf = True

    def _complaint(self) -> str:
        return self._failure(self._complaints.decode(errors="replace"))

    def _lost(self) -> ClientFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        with contextlib.suppress(OSError, ValueError):
            self._hear()
        printed = self._complaints.decode(errors="replace").strip().splitlines()
        last = self._complaint() or (printed or ["the connection is lost"])[-1]
        return ClientFailed(self._name, last, gone=True)

    def kill(self) -> None:
        """End it at once, from any thread, whatever it does; its session ends with it."""
        self._process.kill()

    def close(self) -> None:
        """End the session, and wait for the client to end. Does nothing the second time."""
        process = self._process
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._stdout.close()
        self._stderr.close()
