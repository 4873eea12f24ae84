"""Executables of a drop-in folder, called with `freeze` and `thaw`.

The convention of the QEMU guest agent (its `fsfreeze-hook`), so that scripts made for it
serve here: each is called in the order of names with `freeze`, in the reverse one with `thaw`;
names of editors' and package managers' leftovers do not count. Other than there, an exit code
that is not 0 at `freeze` is a veto; then `thaw` is called for it too, and for all before it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.commands import CommandFailed, Step, Steps
from freezeframe.shadow.writers.settings import load_settings

_LEFTOVERS = (
    "~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample", ".dpkg-old", ".dpkg-new",
    ".dpkg-tmp", ".dpkg-dist",
)  # fmt: skip
#: Seconds each may take to thaw.
_THAW = 10.0


class Hooks(Writer):
    """The executables of one folder. They say nothing of where data lie: part of every image."""

    kind = "hooks"
    stops_others = True

    def __init__(self, folder: Path, scripts: Sequence[Path]) -> None:
        """`scripts` in their order."""
        self._folder = folder
        self._scripts = tuple(scripts)
        self._steps = Steps(
            [Step((str(script), "freeze"), (str(script), "thaw")) for script in scripts], _THAW
        )
        self._notes: list[str] = []
        #: Whether every one held to the end.
        self._whole = False

    @property
    def name(self) -> str:
        """`hooks:/etc/freezeframe/hooks.d`."""
        return f"hooks:{self._folder}"

    def about(self) -> str:
        """Name them."""
        return "scripts: " + ", ".join(script.name for script in self._scripts)

    def paths(self) -> tuple[Path, ...]:
        """Return nothing: they take part in every image."""
        return ()

    def freeze(self, deadline: Deadline) -> None:
        """Call each with `freeze`."""
        self._whole = False
        for script in self._scripts:
            _check_owner(script)
        try:
            self._steps.hold(deadline)
        except CommandFailed as error:
            raise WriterVeto(
                f"{self.name}: {error}", hint="see to that script, or take it out of the folder"
            ) from error
        self._whole = True

    def thaw(self) -> None:
        """Call each that was called with `freeze`, the last first, with `thaw`."""
        failed = [str(error) for error in self._steps.release()]
        if failed:
            self._whole = False
            self._notes += failed
            raise FreezeError(
                f"{self.name}: {'; '.join(failed)}",
                hint="what that script holds may still be held: call it with `thaw` by hand",
            )

    def finish(self, taken: bool) -> WriterResult:
        """Tell whether all of them held."""
        with contextlib.suppress(FreezeError):
            self.thaw()
        whole = taken and self._whole
        facts = {"scripts": " ".join(script.name for script in self._scripts)}
        return WriterResult("application" if whole else "crash", tuple(self._notes), facts)

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return the calls with `thaw`, the last first."""
        return self._steps.undo()


class HooksKind(WriterKind):
    """The folder, where there is anything in it."""

    kind = "hooks"

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`, or the one the settings name."""
        self._folder = folder

    def find(self) -> Sequence[Hooks]:
        """Return one writer for all of them: their order counts."""
        folder = self._folder or Path(load_settings().hooks.folder)
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError:
            return []
        scripts = [folder / name for name in names if _counts(folder / name)]
        return [Hooks(folder, scripts)] if scripts else []


def _counts(path: Path) -> bool:
    return (
        not path.name.endswith(_LEFTOVERS)
        and not path.name.startswith(".")
        and path.is_file()
        and os.access(path, os.X_OK)
    )


def _check_owner(script: Path) -> None:
    """Raise `WriterVeto` for what somebody else than root, or than us, could have written."""
    for path in (script, script.parent):
        try:
            status = path.stat()
        except OSError as error:
            raise WriterVeto(f"{path}: {error.strerror}", hint="look into the folder") from error
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise WriterVeto(
                f"{path} may be changed by others than root, so it is not run",
                hint=f"chown root {path}; chmod go-w {path}",
            )
