"""What writers said the last time they were asked, for `freezeframe writers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from freezeframe.shadow import journal
from freezeframe.shadow.votes import WriterVote

_NAME = "writers.last"


class LastResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one writer said last."""

    #: ISO 8601.
    when: str
    vote: str
    reason: str = ""
    consistency: str = ""
    #: From asking it to freeze to the end of its thaw.
    held_ms: float = 0.0


def last_results() -> dict[str, LastResult]:
    """Return what each writer said last, by its name."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        data = (journal.KEPT / _NAME).read_bytes()
        return msgspec.json.decode(data, type=dict[str, LastResult])
    return {}


def remember_results(votes: Iterable[WriterVote], when: str) -> None:
    """Write down what they said. What cannot be written is not: nothing depends on it."""
    said = {
        vote.name: LastResult(
            when=when,
            vote=vote.vote.value,
            reason=vote.reason,
            consistency=vote.result.consistency if vote.result is not None else "",
            held_ms=round((vote.freeze + vote.held + vote.thaw) * 1000, 1),
        )
        for vote in votes
    }
    if not said:
        return
    with contextlib.suppress(OSError):
        folder: Path = journal.KEPT
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = folder / f"{_NAME}.new"
        new.write_bytes(msgspec.json.encode(last_results() | said))
        new.replace(folder / _NAME)
