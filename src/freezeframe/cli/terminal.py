"""What is drawn: tables, and a bar that moves. Everything here is rich's.

Apart from `output`, which is loaded for every command: loading rich takes a tenth of the start.
"""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from freezeframe.cli.output import printable

_PIPE_WIDTH = 160


def plain(text: str) -> Text:
    """Return text to be shown as it is: brackets are no markup, control characters are seen."""
    return Text(printable(text))


def show(thing: RenderableType) -> None:
    """Print a table or the like on standard output."""
    # A pipe or file has no width: wide enough that tables stay in one piece.
    _Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(thing)


class Bar:
    """Progress on a terminal's standard error, until `stop`."""

    def __init__(self, label: str, total: int) -> None:
        """Show it; `total` in bytes, 0 where nobody knows."""
        self._console = _Console(stderr=True)
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._live.add_task(label, total=total or None)
        self._live.start()

    def update(self, done: int) -> None:
        """Show that so many bytes are done."""
        self._live.update(self._task, completed=done)

    def say(self, text: str) -> None:
        """Print a line above it."""
        self._console.print(text, markup=False)

    def stop(self) -> None:
        """Take it from the screen."""
        self._live.stop()


class _Console(Console):
    """A console that ends nothing but itself when nobody reads any more."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, width=width)

    def on_broken_pipe(self) -> None:
        """Say nothing more; rich would end the thread, and with it the work of that thread.

        Without its results a command has failed; without its progress it has not.
        """
        self.quiet = True
        if not self.stderr:
            raise BrokenPipeError
