"""Suspending device-mapper volumes for a moment, and never longer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeError
from freezeframe.shadow import resumer_process
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.watchdog import Watchdog
from freezeframe.system.devmapper import DeviceMapper

#: The package lies in this folder: all that the process needs of it is the standard library's.
_PLACE = str(Path(resumer_process.__file__).parents[2])
_PROGRAM = (
    f"import sys; sys.path.insert(0, {_PLACE!r});"
    f" from {resumer_process.__name__} import main; main(sys.argv[1:])"
)
#: Seconds the process gives the program beyond its own deadline.
_GRACE = 1.0


class Resumer(Watchdog):
    """A process that resumes what this one has suspended when this one cannot."""

    what = "the process that resumes volumes in an emergency"

    def __init__(self, names: Sequence[str], limit: float) -> None:
        super().__init__([], names, limit)
        self._command = [repr(limit), *names]

    def command(self, channel: int, process: int) -> list[str]:
        """Return its command line."""
        return [
            sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(channel), str(process),
            *self._command,
        ]  # fmt: skip


class Suspension(Closing):
    """Suspends some volumes and resumes them; a process beside this one does if it cannot.

    `names` are device-mapper's; a volume is spoken of by its index. What is frozen on them
    stays frozen, what is not is not frozen by this. `suspend` and `resume` may be called from
    any thread. `FreezeError` where the process beside cannot be started, `OSError` where the
    kernel has no device-mapper.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self.mapper = DeviceMapper()
        self._resumer = Resumer(names, 60.0)
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._armed = False
        try:
            self._resumer.ensure()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Resume what is suspended, and end the process beside."""
        self.resume()
        self._resumer.close()
        self.mapper.close()

    def arm(self, deadline: Deadline) -> None:
        """Say until when everything must be resumed. `FreezeError` if nobody would see to it."""
        with self._lock:
            if not self._armed:
                self._resumer.ensure()
                self._resumer.arm(deadline.left + _GRACE)
                self._armed = True

    def suspend(self, index: int) -> None:
        """Hold back reads and writes of one; nothing happens where that is done."""
        with self._lock:
            if index in self._held:
                return
            self._resumer.about(index)
            # Counted before the call: it may suspend and yet fail, or hang.
            self._held.add(index)
            self.mapper.suspend(self._names[index])
            self._resumer.frozen(index)

    def suspended(self, index: int) -> bool:
        """Whether it is held by us."""
        return index in self._held

    def resume_one(self, index: int) -> None:
        """Let reads and writes of one through, with the table that was loaded, if any."""
        with self._lock:
            self._resume(index)

    def _resume(self, index: int) -> None:
        if index in self._held:
            self.mapper.resume(self._names[index])
            self._held.discard(index)
            self._resumer.thawed(index)

    def resume(self) -> str:
        """Resume all; return why it was no point in time, or nothing.

        Every one is tried; `FreezeError` where the kernel refuses one.
        """
        refused: list[OSError] = []
        with self._lock:
            for index in sorted(self._held):
                try:
                    self._resume(index)
                except OSError as error:
                    refused.append(error)
            early = self._resumer.disarm() if self._armed else ()
            self._armed = False
        if refused:
            raise FreezeError(
                f"a suspended volume cannot be resumed: {refused[0]}",
                hint="resume it with `dmsetup resume`; `dmsetup info` lists what is suspended",
            )
        if early:
            names = ", ".join(self._names[index] for index in early)
            return f"{names} was suspended too long, and was resumed before the copy was complete"
        return ""
