"""The process that thaws when the program that froze cannot: killed, hanging, too slow.

Started by `shadow.watchdog` as a program of its own, with nothing but the standard library,
because it has to be small, single-threaded, and wholly in memory: it runs while the disk
with its own code is frozen. A fork of the program would do none of that, and a fork of a
process with threads may hang.

It thaws only what the program said it is about to freeze. Each thaw is done by a forked
child: a thaw may hang (on a suspended volume, on a filesystem beneath that somebody else
froze), and must not keep the others from being thawed.

Messages, one a packet; N is the index of a filesystem:
    in   `arm` or `arm MILLISECONDS`, `about N` to freeze, `frozen N`, `failed N`, `thawed N`,
         `disarm`, `ask`, `hurried 0|1` (what to set rcu_expedited back to), `calmed`
    out  `ready 0|1` (memory locked), and to `disarm` and `ask`: `thawed N …`, since `arm`
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import Protocol

#: Seconds between two tries to thaw what is only about to be frozen.
_AGAIN = 0.01
#: Seconds a thaw is waited for before the next filesystem's turn comes.
_ONE_THAW = 1.0
#: Seconds a thaw that hangs is waited for before the process ends; its child goes on trying.
_LAST_WAIT = 30.0
_MESSAGE = 64

#: How a child that thaws ends.
_THAWED, _NOT_FROZEN, _FAILED = 0, 1, 2


class Watch:
    """What is frozen, and thawing it.

    `descriptors` are of the filesystems, `names` for the kernel log, `limit` in seconds from
    `arm`, `request` the number of the ioctl that thaws.
    """

    def __init__(
        self, descriptors: list[int], names: list[str], limit: float, request: int
    ) -> None:
        self._descriptors = descriptors
        self._names = names
        self._limit = limit
        self._request = request
        #: Index → whether the freeze call has returned; in the order of freezing.
        self._announced: dict[int, bool] = {}
        self._thawed: list[int] = []
        self._children: dict[int, int] = {}
        self._deadline: float | None = None
        #: What to set `rcu_expedited` back to; nothing where the program did not change it.
        self._calm = ""
        self._why = ""
        self._log = -1
        with contextlib.suppress(OSError):
            self._log = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)

    def wait(self) -> float | None:
        """Return how many seconds may pass before `expire` is due; None for ever."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left > 0:
            return left
        return _AGAIN if self._announced or self._children else None

    def expire(self) -> None:
        """Thaw everything if the time is up."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.thaw_all("the time was up")

    def message(self, text: str) -> str:
        """Take note of what the program does; return the answer, if any."""
        word, _, number = text.partition(" ")
        index = int(number) if number else -1
        if word == "arm":
            self._announced.clear()
            self._thawed.clear()
            limit = index / 1000 if number else self._limit
            self._deadline = time.monotonic() + limit
        elif word == "about":
            self._announced[index] = False
        elif word == "frozen":
            # Unless it was thawed the moment its call returned, before this message came.
            if index not in self._thawed:
                self._announced[index] = True
        elif word in ("failed", "thawed"):
            self._announced.pop(index, None)
        elif word == "hurried":
            self._calm = number
        elif word == "calmed":
            self._calm = ""
        elif word in ("disarm", "ask"):
            self._reap()
            if word == "disarm":
                self._deadline = None
            return " ".join(["thawed", *map(str, self._thawed)])
        return ""

    def thaw_all(self, why: str) -> None:
        """Thaw what is announced: what is frozen for certain first, last frozen first.

        What is only about to be frozen may wait for just those. It is tried again and again,
        by whoever calls this, until the program tells how the call ended.
        """
        self._why = why
        self._reap()
        announced = list(self._announced.items())
        certain = [index for index, returned in reversed(announced) if returned]
        for index in [*certain, *(index for index, returned in announced if not returned)]:
            if index in self._children:
                continue  # its thaw is still under way
            self._children[index] = self._start(index)
            patience = time.monotonic() + _ONE_THAW
            while index in self._children and time.monotonic() < patience:
                time.sleep(0.0005)
                self._reap()

    def finish(self) -> None:
        """Thaw what the program left frozen: it is gone, and with it every freeze call."""
        if self._calm:
            with contextlib.suppress(OSError):
                switch = os.open("/sys/kernel/rcu_expedited", os.O_WRONLY | os.O_CLOEXEC)
                os.write(switch, self._calm.encode())
                os.close(switch)
        patience = time.monotonic() + _LAST_WAIT
        self.thaw_all("the program that froze it is gone")
        while self._children or any(self._announced.values()):
            if time.monotonic() > patience:
                return
            time.sleep(_AGAIN)
            self.thaw_all("the program that froze it is gone")

    def rehearse(self) -> None:
        """Do once what thawing takes, so that nothing of it has to be read from a disk."""
        pid = self._start(-1)
        os.waitpid(pid, 0)
        self._reap()

    def let_go(self, index: int) -> None:
        """Thaw one, in a child of its own. `OSError`: EINVAL where it is not frozen."""
        # The rehearsal's descriptor is none.
        fcntl.ioctl(self._descriptors[index] if index >= 0 else -1, self._request, 0)

    def _start(self, index: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = _FAILED
        try:
            self.let_go(index)
            code = _THAWED
        except OSError as error:
            code = _NOT_FROZEN if error.errno == errno.EINVAL else _FAILED
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for index, pid in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._children[index]
            code = os.waitstatus_to_exitcode(status)
            if code == _THAWED:
                self._thawed.append(index)
                self._say(f"{self._names[index]} was thawed: {self._why}")
                self._announced.pop(index, None)
            elif code == _NOT_FROZEN and self._announced.get(index):
                # It was frozen, and is not: somebody thawed it before us.
                self._announced.pop(index, None)

    def _say(self, text: str) -> None:
        if self._log >= 0:
            with contextlib.suppress(OSError):
                os.write(self._log, f"<4>freezeframe watchdog: {text}\n".encode())


def settle_down() -> bool:
    """Make this process one that stays: in memory, undisturbed. Return whether it is locked."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    with contextlib.suppress(OSError):
        adjustment = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(adjustment, b"-1000")
        os.close(adjustment)
    powers = os.uname().machine.startswith(("ppc", "sparc", "alpha"))
    everything = 0x6000 if powers else 3  # MCL_CURRENT | MCL_FUTURE
    return bool(ctypes.CDLL(None).mlockall(everything) == 0)


class Listener(Protocol):
    """What acts on the messages of a program, and on time that passes."""

    def wait(self) -> float | None:
        """Return how many seconds may pass before `expire` is due; None for ever."""

    def expire(self) -> None:
        """Do what is due."""

    def message(self, text: str) -> str:
        """Take a message; return the answer, if any."""


def serve(channel: socket.socket, process: int, watch: Listener, longest: int = _MESSAGE) -> None:
    """Listen until the program ends: its end of the channel closes, or its pidfd says so.

    `longest` message in bytes.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if process >= 0:
        poll.register(process, select.POLLIN)
    while True:
        left = watch.wait()
        ready = poll.poll(None if left is None else left * 1000 + 1)
        for descriptor, _ in ready:
            if descriptor != channel.fileno():
                continue
            try:
                text = channel.recv(longest).decode()
            except OSError:
                text = ""
            if not text or text == "quit":
                return
            answer = watch.message(text)
            if answer:
                with contextlib.suppress(OSError):
                    channel.send(answer.encode(), socket.MSG_DONTWAIT)
        # What it said before it ended comes first: its end of the channel is closed after.
        if [descriptor for descriptor, _ in ready] == [process]:
            return
        watch.expire()


def main(arguments: list[str]) -> None:
    """Serve one program: LIMIT REQUEST CHANNEL PIDFD, then DESCRIPTOR NAME for each."""
    channel = socket.socket(fileno=int(arguments[2]))
    process = int(arguments[3])
    descriptors = [int(text) for text in arguments[4::2]]
    watch = Watch(descriptors, arguments[5::2], float(arguments[0]), int(arguments[1]))
    locked = settle_down()
    watch.rehearse()
    channel.send(f"ready {int(locked)}".encode())
    serve(channel, process, watch)
    watch.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
