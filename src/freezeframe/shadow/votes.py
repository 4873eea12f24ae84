"""Who took part in a point in time, what each said, and how long everything took."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.crew import Outcome
from freezeframe.shadow.deadline import Deadline, TimedOut
from freezeframe.shadow.writers.base import WriterResult, WriterVeto


class ShadowFailed(FreezeError):
    """A step of making shadow copies failed; everything was let go again."""


class Vote(enum.StrEnum):
    """What became of a participant."""

    NONE = "not asked"
    #: It held still when it was asked to.
    YES = "yes"
    #: It said no.
    VETO = "veto"
    #: It broke.
    FAILED = "failed"
    #: It did not answer in time.
    LATE = "too late"
    #: It was not to take part, or could not.
    LEFT_OUT = "left out"


@dataclass(slots=True)
class WriterVote:
    """What one writer said, and how long it took; seconds, of its last freeze."""

    name: str
    kind: str
    about: str = ""
    vote: Vote = Vote.NONE
    #: Why not, where it did not.
    reason: str = ""
    prepare: float = 0.0
    freeze: float = 0.0
    #: From the end of its freeze to the beginning of its thaw.
    held: float = 0.0
    thaw: float = 0.0
    #: How often it was frozen, and how long in all, from asking for it to the thaw's end.
    freezes: int = 0
    total: float = 0.0
    result: WriterResult | None = None


@dataclass(slots=True)
class ProviderVote:
    """What one provider did, and how long it took; seconds."""

    kind: str
    volumes: tuple[str, ...] = ()
    vote: Vote = Vote.NONE
    reason: str = ""
    prepare: float = 0.0
    hold: float = 0.0
    commit: float = 0.0
    resume: float = 0.0

    @property
    def who(self) -> str:
        """As messages name it."""
        return f"{self.kind} ({', '.join(self.volumes)})"


@dataclass(slots=True)
class ShadowRecord:
    """Everything that is to be told of one set."""

    writers: list[WriterVote] = field(default_factory=list)
    providers: list[ProviderVote] = field(default_factory=list)
    #: Name → seconds, in the order of the time line; of the last window.
    steps: dict[str, float] = field(default_factory=dict)
    #: The step that failed, and why; nothing where all went well.
    failed: str = ""
    reason: str = ""


def judge_writers(
    votes: Sequence[WriterVote], step: str, outcomes: Sequence[Outcome], deadline: Deadline
) -> None:
    """Count the votes of a step.

    Raises `WriterVeto`, `TimedOut` or `ShadowFailed` where one is not a yes, with a note for
    each other one.
    """
    errors: list[FreezeError] = []
    for vote, outcome in zip(votes, outcomes, strict=True):
        if outcome.good:
            vote.vote = Vote.YES
            continue
        vote.reason = outcome.why
        kind: type[FreezeError] = ShadowFailed
        vote.vote, verb = Vote.FAILED, "failed"
        if outcome.late:
            vote.reason = f"no answer within {deadline.limit:g} s"
            kind, vote.vote, verb = TimedOut, Vote.LATE, "was too late"
        elif isinstance(outcome.error, WriterVeto):
            kind, vote.vote, verb = WriterVeto, Vote.VETO, "vetoed"
        hint = outcome.hint or "image without it: --writers none, or name the others"
        errors.append(kind(f"{vote.name} {verb} ({step}): {vote.reason}", hint=hint))
    if errors:
        for other in errors[1:]:
            errors[0].add_note(other.message)
        raise errors[0]


def provider_failed(vote: ProviderVote, what: str, outcome: Outcome) -> FreezeError:
    """Note that a provider failed; return the error to raise."""
    vote.vote = Vote.LATE if outcome.late else Vote.FAILED
    vote.reason = outcome.why
    message = f"{vote.who} failed to {what}: {vote.reason}"
    if outcome.late:
        return TimedOut(message, hint="allow more time, or choose another provider")
    hint = outcome.hint or "the volume is as it was: try again, or choose another provider"
    error = ShadowFailed(message, hint=hint)
    error.__cause__ = outcome.error
    return error
