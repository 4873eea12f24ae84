"""Where commands print: a person's terminal, plain lines, or JSON, one object a line.

Results go to standard output; progress, notes and errors to standard error, except in JSON,
where everything is one stream of objects told apart by `message_type`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from freezeframe.core.units import human_size, human_time

#: Seconds between progress lines where there is no terminal, and between JSON status objects.
_PLAIN_EVERY = 10.0
_JSON_EVERY = 1.0
_PIPE_WIDTH = 160

JsonValue = object
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text that any terminal takes: no control characters, no bytes that are no text.

    Names of files and labels of filesystems may hold both.
    """
    try:
        shown = os.fsencode(text).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a character of UTF-16, by whatever way
        shown = text.encode(errors="backslashreplace").decode()
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", shown)


def plain(text: str) -> Text:
    """Return text to be shown as it is: brackets are no markup, control characters are seen."""
    return Text(printable(text))


def json_line(message_type: str, fields: Mapping[str, JsonValue]) -> bytes:
    """Return one JSON object and a newline."""
    record = {"message_type": message_type, **fields}
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:
        # A name of a file that is no text: JSON knows an escape for that.
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


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


class Output:
    """Prints results, and shows progress (it is a `core.progress.Progress`). Thread-safe."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        # A pipe or file has no width: wide enough that tables stay in one piece.
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self.console = _Console(width=width)
        self._errors = _Console(stderr=True)
        self._lock = threading.Lock()
        self._stage: _Stage | None = None
        self._live: Progress | None = None
        self._task = TaskID(0)
        if verbose:
            logging.basicConfig(stream=sys.stderr, level=logging.DEBUG, format="%(message)s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()

    # -- results --------------------------------------------------------------------

    def show(self, thing: RenderableType) -> None:
        """Print something for people; nothing in JSON."""
        if not self.json:
            self.finish()
            self.console.print(plain(thing) if isinstance(thing, str) else thing)

    def record(self, message_type: str, fields: Mapping[str, JsonValue]) -> None:
        """Print one JSON object; nothing for people."""
        if self.json:
            line = json_line(message_type, fields)
            with self._lock:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    # -- progress -------------------------------------------------------------------

    def start(self, label: str, total: int) -> None:
        """Begin a stage."""
        self.finish()
        with self._lock:
            self._stage = _Stage(label, total, time.monotonic())
        if self.quiet or self.json or not self._errors.is_terminal:
            return
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._errors,
            transient=True,
        )
        self._task = self._live.add_task(label, total=total or None)
        self._live.start()

    def advance(self, amount: int) -> None:
        """Count work done; shown now and then."""
        with self._lock:
            stage = self._stage
            if stage is None:
                return
            stage.done += amount
            if self._live is not None:
                self._live.update(self._task, completed=stage.done)
                return
            every = _JSON_EVERY if self.json else _PLAIN_EVERY
            now = time.monotonic()
            if now - stage.shown < every:
                return
            stage.shown = now
        self._status(stage, now)

    def _status(self, stage: _Stage, now: float) -> None:
        elapsed = now - stage.begun
        rate = stage.done / elapsed if elapsed > 0 else 0.0
        left = (stage.total - stage.done) / rate if rate and stage.total else None
        if self.json:
            self.record(
                "status",
                {
                    "stage": stage.label,
                    "bytes_done": stage.done,
                    "total_bytes": stage.total,
                    "percent_done": stage.done / stage.total if stage.total else None,
                    "bytes_per_second": round(rate),
                    "seconds_elapsed": round(elapsed, 1),
                    "seconds_remaining": None if left is None else round(left, 1),
                },
            )
        elif not self.quiet:
            of = f" of {human_size(stage.total)}" if stage.total else ""
            rest = f", {human_time(left)} left" if left is not None else ""
            self._errors.print(
                f"{stage.label}: {human_size(stage.done)}{of}, {human_size(rate)}/s{rest}",
                markup=False,
            )

    def finish(self) -> None:
        """End the stage, and take its bar from the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        with self._lock:
            self._stage = None

    def note(self, text: str) -> None:
        """Print something to be read now."""
        if self.json:
            self.record("note", {"text": text})
        elif not self.quiet:
            self._errors.print(printable(text), markup=False)


class _Stage:
    """Work under way."""

    def __init__(self, label: str, total: int, begun: float) -> None:
        self.label = label
        self.total = total
        self.begun = begun
        self.shown = begun
        self.done = 0
