"""The time, as a parameter: tests give another."""

from __future__ import annotations

import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """Where the program takes its time from."""

    def now(self) -> dt.datetime:
        """Return the time of day, with a time zone."""

    def monotonic(self) -> float:
        """Seconds from some fixed moment; never goes back."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> dt.datetime:
        """Return the local time with its zone."""
        return dt.datetime.now().astimezone()

    def monotonic(self) -> float:
        """Seconds since some moment of this boot."""
        return time.monotonic()
