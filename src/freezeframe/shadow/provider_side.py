"""The providers of a set: their volumes held, copied and let go, with the time of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from freezeframe.shadow.crew import Crew, Outcome
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.guard import Guard
from freezeframe.shadow.holding import LETTING_GO, Holding
from freezeframe.shadow.providers.base import Provider
from freezeframe.shadow.votes import ProviderVote, Vote, provider_failed


class ProviderSide(Holding):
    """All providers, one after the other: some cannot work at once, and each is quick."""

    def __init__(
        self, providers: Sequence[Provider], votes: Sequence[ProviderVote], crew: Crew, guard: Guard
    ) -> None:
        keys = [f"provider {each.kind} {number}" for number, each in enumerate(providers)]
        super().__init__(crew, guard, keys)
        self._providers = providers
        self._votes = votes
        self._until = Deadline.after(0)
        #: Whether there are copies, or may be.
        self.copied = False

    def prepare(self, deadline: Deadline) -> None:
        """Have all of them allocate what they need. Raises as `provider_failed`."""
        calls = [partial(provider.prepare, deadline) for provider in self._providers]
        for vote, outcome in zip(self._votes, self._each("prepare", calls, deadline), strict=True):
            vote.prepare = outcome.seconds

    def again(self) -> None:
        """Remove copies of a window that did not count."""
        calls = [provider.release for provider in self._providers]
        self._each("release", calls, Deadline.after(LETTING_GO * 3))
        self.copied = False

    def ask_undo(self) -> None:
        """Ask how each is let go if this program dies."""
        for part, provider in zip(self.parts, self._providers, strict=True):
            part.undo = provider.undo()

    def hold(self, deadline: Deadline) -> None:
        """Hold all volumes until then at most. Raises as `provider_failed`."""
        self._until = deadline
        self.tell_guard(deadline.left)
        for part in self.parts:
            part.held = True
        calls = [partial(provider.hold, deadline) for provider in self._providers]
        for vote, outcome in zip(self._votes, self._each("hold", calls, deadline), strict=True):
            vote.hold = outcome.seconds

    def commit(self) -> None:
        """Make all copies. Raises as `provider_failed`, and `TimedOut`."""
        self.copied = bool(self._providers)
        calls = [partial(provider.commit, self._until) for provider in self._providers]
        outcomes = self._each("commit", calls, self._until)
        for vote, outcome in zip(self._votes, outcomes, strict=True):
            vote.commit, vote.vote = outcome.seconds, Vote.YES
        self._until.check("making the shadow copies")

    def resume(self) -> list[str] | None:
        """Let all go that are held, in reverse order; return what went wrong.

        None where none was held.
        """
        held = [number for number, part in enumerate(self.parts) if part.held]
        if not held:
            return None
        trouble: list[str] = []
        for number in reversed(held):
            vote = self._votes[number]
            (outcome,) = self.crew.run([self._providers[number].resume], Deadline.after(LETTING_GO))
            vote.resume = outcome.seconds
            if not outcome.good:
                trouble.append(f"{vote.who} could not resume: {outcome.why}")
        return trouble + self.free(held)

    def release(self) -> list[str]:
        """Remove all copies, in reverse order; return what went wrong."""
        trouble: list[str] = []
        for number in reversed(range(len(self.parts))):
            vote = self._votes[number]
            (outcome,) = self.crew.run(
                [self._providers[number].release], Deadline.after(LETTING_GO * 3)
            )
            if not outcome.good:
                trouble.append(f"{vote.who} could not be released: {outcome.why}")
            elif self.parts[number].hangs:
                # What it makes when it comes back, nobody else would know of.
                trouble.append(f"{vote.who} may still be at work")
        return trouble

    def _each(
        self, what: str, calls: Sequence[Callable[[], None]], deadline: Deadline
    ) -> list[Outcome]:
        """Call one after the other; the first that fails ends it."""
        outcomes: list[Outcome] = []
        for part, vote, call in zip(self.parts, self._votes, calls, strict=True):
            (outcome,) = self.crew.run([call], deadline)
            outcomes.append(outcome)
            part.hangs = part.hangs or outcome.late
            if not outcome.good:
                raise provider_failed(vote, what, outcome)
        return outcomes
