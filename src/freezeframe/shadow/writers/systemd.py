"""Units that are stopped for the moment and started again, for what has no other way.

Named in the settings, never found: who stops a service decides that. Units that do not run
are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.commands import CommandFailed, Commands, Step, Steps
from freezeframe.shadow.writers.settings import load_settings
from freezeframe.system.run import which

#: What is there on a machine that systemd runs (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
_LOOK = 2.0
_START = 60.0


class Units(Writer):
    """Some units, in the order in which they are stopped. Part of every image."""

    kind = "systemd"
    stops_others = True

    def __init__(self, program: str, units: Sequence[str]) -> None:
        """`program` is systemctl by its full path; `units` run."""
        self._program = program
        self._units = tuple(units)
        self._steps = Steps(
            [Step((program, "stop", unit), (program, "start", unit)) for unit in units], _START
        )
        #: Whether all are stopped now; and whether they were until the thaw.
        self._whole = self._held = False
        #: Units that ran before they were started again.
        self._broken: list[str] = []

    @property
    def name(self) -> str:
        """`systemd`: there is one for all."""
        return "systemd"

    def about(self) -> str:
        """Name them."""
        return "stopped for the moment: " + ", ".join(self._units)

    def paths(self) -> tuple[Path, ...]:
        """Return nothing: a unit does not tell where its data lie."""
        return ()

    def freeze(self, deadline: Deadline) -> None:
        """Stop each."""
        self._whole = self._held = False
        self._broken = []
        try:
            self._steps.hold(deadline)
        except CommandFailed as error:
            raise WriterVeto(
                f"{self.name}: {error}", hint="see `systemctl status` of that unit"
            ) from error
        self._whole = True

    def thaw(self) -> None:
        """Start each again, the last first."""
        if self._whole:
            # A timer, a socket, or somebody.
            self._broken = [unit for unit in self._units if _runs(self._program, unit)]
            self._whole, self._held = False, not self._broken
        failed = [str(error) for error in self._steps.release()]
        if failed:
            raise FreezeError(
                f"{self.name}: {'; '.join(failed)}",
                hint="start it by hand; `systemctl status` tells why it did not",
            )

    def finish(self, taken: bool) -> WriterResult:
        """Tell that they were stopped."""
        with contextlib.suppress(FreezeError):
            self.thaw()
        if taken and self._broken:
            raise WriterVeto(
                f"{self.name}: started in the middle by something else: {', '.join(self._broken)}",
                hint="stop what starts it (a socket or timer) as well: name that in the settings",
            )
        whole = taken and self._held
        return WriterResult(
            "application" if whole else "crash", (), {"units": " ".join(self._units)}
        )

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return the commands that start them."""
        return self._steps.undo()


class SystemdKind(WriterKind):
    """The units that the settings name, as far as they run."""

    kind = "systemd"

    def __init__(
        self,
        units: Sequence[str] | None = None,
        program: str = "systemctl",
        *,
        booted: Path = _BOOTED,
    ) -> None:
        """`units` in place of the settings'; `booted` is there where systemd runs."""
        self._units = units
        self._booted = booted
        self._program = program

    def find(self) -> Sequence[Units]:
        """Return one writer for all of them: their order counts."""
        units = load_settings().systemd.stop if self._units is None else self._units
        program = which(self._program)
        if not units or program is None:
            return []
        running = [unit for unit in units if _runs(program, unit)]
        return [Units(program, running)] if running else []

    def unavailable(self) -> str:
        """Say that systemd does not run this machine, or nothing."""
        return (
            "" if _BOOTED.exists() or which(self._program) else "this machine is not run by systemd"
        )


def _runs(program: str, unit: str) -> bool:
    try:
        Commands().run((program, "is-active", "--quiet", unit), Deadline.after(_LOOK))
    except CommandFailed:
        return False
    return True
