"""The program's side of the watchdog: starting it, and telling it what is frozen."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from freezeframe.core.errors import FreezeError
from freezeframe.shadow import watchdog_process
from freezeframe.shadow.companion import Companion
from freezeframe.system.freeze import FITHAW


class Watchdog(Companion):
    """A process that thaws what this one has frozen when this one cannot.

    When this process ends in any way, SIGKILL included, and when `limit` seconds have
    passed since `arm`: then also what a freeze call that has not returned yet freezes.
    `descriptors` and `names` are of the filesystems, which are spoken of by their index.
    For one thread; not for a forked child.
    """

    what = "the watchdog that thaws in an emergency"

    def __init__(self, descriptors: Sequence[int], names: Sequence[str], limit: float) -> None:
        super().__init__()
        self._descriptors = list(descriptors)
        self._names = list(names)
        self._limit = limit

    def __enter__(self) -> Self:
        self.begin()
        return self

    def descriptors(self) -> Sequence[int]:
        """Return those of the filesystems."""
        return self._descriptors

    def command(self, channel: int, process: int) -> list[str]:
        """Return its command line."""
        filesystems = [
            text
            for descriptor, name in zip(self._descriptors, self._names, strict=True)
            for text in (str(descriptor), name)
        ]
        # Isolated, without site: it needs neither the environment nor packages.
        return [
            sys.executable, "-I", "-S", "-B", str(Path(watchdog_process.__file__)),
            repr(self._limit), str(FITHAW), str(channel), str(process), *filesystems,
        ]  # fmt: skip

    # -- what the program does ----------------------------------------------------------

    def arm(self, limit: float = 0) -> None:
        """Say that the time runs from now, or so many seconds instead of those agreed upon.

        `FreezeError` where the watchdog has ended.
        """
        self.tell(f"arm {int(limit * 1000)}" if limit else "arm")

    def about(self, index: int) -> None:
        """Say that the next call freezes this one. `FreezeError` as for `arm`."""
        self.tell(f"about {index}")

    def frozen(self, index: int) -> None:
        """Say that the call has frozen it."""
        self.tell(f"frozen {index}")

    def failed(self, index: int) -> None:
        """Say that the call has not frozen it."""
        self.tell(f"failed {index}")

    def thawed(self, index: int) -> None:
        """Say that it was thawed by us."""
        with contextlib.suppress(FreezeError):
            self.tell(f"thawed {index}")

    def hurried(self, before: str) -> None:
        """Say that the kernel is told to hurry, and what to set it back to if we die."""
        with contextlib.suppress(FreezeError):
            self.ensure()
            self.tell(f"hurried {int(before)}")

    def calmed(self) -> None:
        """Say that it was set back by us."""
        with contextlib.suppress(FreezeError):
            self.tell("calmed")

    def disarm(self) -> tuple[int, ...]:
        """Stop the clock; return what the watchdog thawed since `arm`.

        Empty also where it has ended: a watchdog that died thaws nothing.
        """
        return _numbers(self.ask("disarm"))

    def thawed_by_it(self) -> tuple[int, ...]:
        """Return what the watchdog thawed since `arm`; the clock runs on."""
        return _numbers(self.ask("ask"))


def _numbers(answer: str) -> tuple[int, ...]:
    return tuple(int(number) for number in answer.split()[1:])
