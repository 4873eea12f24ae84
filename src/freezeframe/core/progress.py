"""How work under way is reported: one small interface, no terminal in sight."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of work done; shows it or not. Thread-safe: workers call `advance` at once."""

    def start(self, label: str, total: int) -> None:
        """Begin a stage named `label` of `total` bytes (0: unknown). Ends the stage before."""

    def advance(self, amount: int) -> None:
        """Another `amount` bytes of the stage are done."""

    def note(self, text: str) -> None:
        """Something the user should read now: a line of its own."""


class Silent:
    """Shows nothing."""

    def start(self, label: str, total: int) -> None:
        """Ignore the stage."""

    def advance(self, amount: int) -> None:
        """Ignore the amount."""

    def note(self, text: str) -> None:
        """Ignore the text."""
