"""The process that lets go what the program holds when the program cannot: killed, or too slow.

Started by `shadow.guard`, with nothing but the standard library, as the watchdog of the
filesystems is and for the same reasons. It is told what is held before it is held, how long
that may last, and which command lines let it go (thaw a writer, resume a volume). They are
run when the program ends with something held, and when the time of one is up; those of
different holds at once, those of one in their order.

What ends with the program itself (a database connection that holds a lock) has no commands:
where the program outstays the time, stopped or hanging, it is killed.

Messages, one JSON object a packet:
    in   {"hold": [{"name", "seconds", "undo": [[…]], "ends": bool}, …]}, {"free": [name, …]}
    out  `ready 0|1` (memory locked), and to `free` a list of the names that were undone
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

from freezeframe.shadow.watchdog_process import serve, settle_down

#: Bytes of a message, at most.
LONGEST = 65536
#: Seconds one command may take before the next one's turn comes.
_ONE_COMMAND = 5.0
#: Seconds the program has, when its time is up, to let go what nobody else can.
_GRACE = 2.0
#: Seconds what was started is waited for at the end.
_LAST_WAIT = 30.0
_TICK = 0.02


class _Hold:
    """One thing that is held."""

    def __init__(self, name: str, seconds: float, undo: list[list[str]], ends: bool) -> None:
        self.name = name
        self.until = time.monotonic() + seconds
        self.undo = undo
        self.ends = ends
        self.undone = False


class Guard:
    """What is held, and letting it go.

    `process` is the program's pidfd, or -1; `done` a file to make when everything that a dead
    program held was let go.
    """

    def __init__(self, process: int, done: str) -> None:
        self._process = process
        self._done = done
        #: In the order of holding.
        self._holds: dict[str, _Hold] = {}
        self._children: set[int] = set()
        self._log = -1
        with contextlib.suppress(OSError):
            self._log = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)

    def wait(self) -> float | None:
        """Return how many seconds may pass before `expire` is due; None for ever."""
        due = [hold.until for hold in self._holds.values() if not hold.undone]
        due += [hold.until + _GRACE for hold in self._holds.values() if hold.ends]
        if self._children:
            due.append(time.monotonic() + _TICK)
        return max(min(due) - time.monotonic(), 0.0) if due else None

    def expire(self) -> None:
        """Let go everything whose time is up."""
        self._reap()
        now = time.monotonic()
        for hold in list(self._holds.values()):
            if now >= hold.until and not hold.undone:
                self._let_go(hold, "its time was up")
            if hold.ends and now >= hold.until + _GRACE:
                hold.ends = False
                self._say(f"{hold.name} is held too long: the program is killed")
                if self._process >= 0:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def message(self, text: str) -> str:
        """Take note of what the program holds and lets go; return the answer, if any."""
        told = json.loads(text)
        for each in told.get("hold", ()):
            # Anew at the end, where one of that name was held before.
            self._holds.pop(each["name"], None)
            self._holds[each["name"]] = _Hold(
                each["name"], each["seconds"], each["undo"], each["ends"]
            )
        if "free" not in told:
            return ""
        freed = [self._holds.pop(name, None) for name in told["free"]]
        return json.dumps([hold.name for hold in freed if hold is not None and hold.undone])

    def finish(self) -> None:
        """Let go what the program left: it is gone."""
        for hold in reversed(list(self._holds.values())):
            if not hold.undone:
                self._let_go(hold, "the program that held it is gone")
        patience = time.monotonic() + _LAST_WAIT
        while self._children and time.monotonic() < patience:
            time.sleep(_TICK)
            self._reap()
        if self._holds and not self._children:
            with contextlib.suppress(OSError):
                os.close(os.open(self._done, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _let_go(self, hold: _Hold, why: str) -> None:
        hold.undone = True
        if not hold.undo:
            return
        self._say(f"{hold.name} is let go: {why}")
        pid = os.fork()
        if pid:
            self._children.add(pid)
            return
        try:
            for command in hold.undo:
                _run(command)
        finally:
            os._exit(0)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                self._children.discard(pid)

    def _say(self, text: str) -> None:
        if self._log >= 0:
            with contextlib.suppress(OSError):
                os.write(self._log, f"<4>freezeframe guard: {text}\n".encode())


def _run(command: list[str]) -> None:
    """Run one command for so long as it may take; a failure keeps no other from its turn."""
    try:
        pid = os.posix_spawnp(command[0], command, os.environ)
    except OSError:
        return
    patience = time.monotonic() + _ONE_COMMAND
    while time.monotonic() < patience:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return
        time.sleep(_TICK)


def main(arguments: list[str]) -> None:
    """Serve one program: CHANNEL PIDFD DONE."""
    channel, process = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    guard = Guard(process, arguments[2])
    locked = settle_down()
    channel.send(f"ready {int(locked)}".encode())
    serve(channel, process, guard, LONGEST)
    guard.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
