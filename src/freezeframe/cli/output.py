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
from typing import TYPE_CHECKING, Self, TextIO

import msgspec

from freezeframe.core.units import human_size, human_time

if TYPE_CHECKING:
    # rich is loaded only for what plain text does not do: it takes a tenth of the program's start.
    from rich.console import RenderableType

    from freezeframe.cli.terminal import Bar

#: Seconds between progress lines where there is no terminal, and between JSON status objects.
_PLAIN_EVERY = 10.0
_JSON_EVERY = 1.0

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


def json_line(message_type: str, fields: Mapping[str, JsonValue]) -> bytes:
    """Return one JSON object and a newline."""
    record = {"message_type": message_type, **fields}
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:
        # A name of a file that is no text: JSON knows an escape for that.
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class Output:
    """Prints results, and shows progress (it is a `core.progress.Progress`). Thread-safe."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._lock = threading.Lock()
        self._stage: _Stage | None = None
        self._bar: Bar | None = None
        #: Nobody reads standard error any more.
        self._unheard = False
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
        if self.json:
            return
        self.finish()
        if isinstance(thing, str):
            _write(sys.stdout, printable(thing))
        else:
            from freezeframe.cli.terminal import show

            show(thing)

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
        if self.quiet or self.json or not sys.stderr.isatty():
            return
        from freezeframe.cli.terminal import Bar

        self._bar = Bar(label, total)

    def advance(self, amount: int) -> None:
        """Count work done; shown now and then."""
        with self._lock:
            stage = self._stage
            if stage is None:
                return
            stage.done += amount
            if self._bar is not None:
                self._bar.update(stage.done)
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
            self._say(f"{stage.label}: {human_size(stage.done)}{of}, {human_size(rate)}/s{rest}")

    def finish(self) -> None:
        """End the stage, and take its bar from the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        with self._lock:
            self._stage = None

    def note(self, text: str) -> None:
        """Print something to be read now."""
        if self.json:
            self.record("note", {"text": text})
        elif not self.quiet:
            self._say(printable(text))

    def _say(self, text: str) -> None:
        """Print a line on standard error, above the bar where there is one."""
        if self._bar is not None:
            self._bar.say(text)
            return
        if self._unheard:
            return
        try:
            _write(sys.stderr, text)
        except BrokenPipeError:
            # Without its results a command has failed; without its progress it has not.
            self._unheard = True


def _write(file: TextIO, text: str) -> None:
    file.write(f"{text}\n")
    file.flush()


class _Stage:
    """Work under way."""

    def __init__(self, label: str, total: int, begun: float) -> None:
        self.label = label
        self.total = total
        self.begun = begun
        self.shown = begun
        self.done = 0
