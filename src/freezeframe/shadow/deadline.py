"""A moment until which something must be done."""

from __future__ import annotations

import time
from dataclasses import dataclass

from freezeframe.core.errors import FreezeError


class TimedOut(FreezeError):
    """Something took longer than it may: what was held for it is let go."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock; may be asked from any thread."""

    #: `time.monotonic()` of that moment.
    at: float
    #: Seconds there were in all, for messages.
    limit: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the moment that is so many seconds from now."""
        return cls(time.monotonic() + seconds, seconds)

    def within(self, seconds: float) -> Deadline:
        """Return the earlier of this moment and the one so many seconds from now."""
        other = Deadline.after(seconds)
        return other if other.at < self.at else self

    @property
    def left(self) -> float:
        """Seconds until then; 0 where it has passed. Good as the time-out of a call."""
        return max(self.at - time.monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at

    def check(self, what: str) -> None:
        """Raise `TimedOut` where it has passed; `what` took too long."""
        if self.passed:
            raise TimedOut(
                f"{what} took longer than {self.limit:g} s",
                hint="try again when the machine is less busy, or allow a longer time",
            )
