"""The writers of a set: asked, held and let go, with a vote and the time of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from freezeframe.shadow.crew import Crew
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.guard import Guard
from freezeframe.shadow.holding import LETTING_GO, Holding
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.votes import WriterVote, judge_writers
from freezeframe.shadow.writers.base import Writer


class WriterSide(Holding):
    """All writers. Those that stop others are held first, one after the other."""

    def __init__(
        self, writers: Sequence[Writer], votes: Sequence[WriterVote], crew: Crew, guard: Guard
    ) -> None:
        super().__init__(crew, guard, [f"writer {writer.name}" for writer in writers])
        self._writers = writers
        self._votes = votes
        alone = [n for n, writer in enumerate(writers) if writer.stops_others]
        rest = [n for n in range(len(writers)) if n not in alone]
        #: Numbers of those that are frozen at once, in the order of freezing.
        self._groups = [*([n] for n in alone), *([rest] if rest else [])]
        self._until = Deadline.after(0)

    @property
    def until(self) -> Deadline:
        """When all of them must go on, of the last freeze."""
        return self._until

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Have all of them prepare, at once. Raises as `judge_writers`."""
        calls = [partial(writer.prepare, scope, deadline) for writer in self._writers]
        outcomes = self.crew.run(calls, deadline)
        for vote, writer, outcome in zip(self._votes, self._writers, outcomes, strict=True):
            vote.prepare = outcome.seconds
            vote.about = _about(writer)
        judge_writers(self._votes, "prepare writers", outcomes, deadline)

    def ask_undo(self) -> None:
        """Ask how each is let go if this program dies."""
        for part, writer in zip(self.parts, self._writers, strict=True):
            part.undo = writer.undo()

    def freeze(self, seconds: float) -> None:
        """Have all of them hold still, for so long at most. Raises as `judge_writers`."""
        self._until = Deadline.after(seconds)
        self.tell_guard(seconds)
        for group in self._groups:
            self._freeze_group(group)

    def _freeze_group(self, group: Sequence[int]) -> None:
        votes = [self._votes[number] for number in group]
        now = time.monotonic()
        for number in group:
            part = self.parts[number]
            part.held, part.asked, part.turn = True, now, part.turn + 1
        calls = [partial(self._freeze_one, number, self.parts[number].turn) for number in group]
        outcomes = self.crew.run(calls, self._until)
        for number, vote, outcome in zip(group, votes, outcomes, strict=True):
            self.parts[number].since = outcome.ended
            vote.freeze = outcome.seconds
            vote.freezes += 1
        judge_writers(votes, "freeze writers", outcomes, self._until)

    def _freeze_one(self, number: int, turn: int) -> None:
        """Freeze one; where its thaw came before it was frozen, thaw it again."""
        try:
            self._writers[number].freeze(self._until)
        finally:
            if self.parts[number].turn != turn:
                self._writers[number].thaw()

    def thaw(self) -> list[str] | None:
        """Let all go that are held, in reverse order; return what went wrong.

        None where none was held.
        """
        late = self._until.passed
        groups = [[n for n in group if self.parts[n].held] for group in reversed(self._groups)]
        if not any(groups):
            return None
        trouble = [text for group in filter(None, groups) for text in self._thaw_group(group)]
        if late and not trouble:
            trouble.append(f"writers were held for longer than {self._until.limit:g} s")
        return trouble

    def _thaw_group(self, group: Sequence[int]) -> list[str]:
        trouble: list[str] = []
        for number in group:
            self.parts[number].turn += 1
        outcomes = self.crew.run(
            [self._writers[number].thaw for number in group], Deadline.after(LETTING_GO)
        )
        for number, outcome in zip(group, outcomes, strict=True):
            part, vote = self.parts[number], self._votes[number]
            if not outcome.good:
                trouble.append(f"{vote.name} could not be thawed: {outcome.why}")
            vote.thaw = outcome.seconds
            vote.held = max(outcome.begun - part.since, 0.0) if part.since else 0.0
            vote.total += outcome.begun + outcome.seconds - part.asked
        return trouble + self.free(group)

    def finish(self, taken: bool, deadline: Deadline, *, judge: bool = True) -> None:
        """Have all of them end what they prepared. Raises as `judge_writers`, where asked to."""

        def body(writer: Writer, vote: WriterVote) -> None:
            vote.result = writer.finish(taken)

        pairs = zip(self._writers, self._votes, strict=True)
        outcomes = self.crew.run([partial(body, *pair) for pair in pairs], deadline)
        if judge:
            judge_writers(self._votes, "finish", outcomes, deadline)


def _about(writer: Writer) -> str:
    try:
        return writer.about()
    except Exception as error:  # no more than a few words, whatever is wrong with them
        return str(error)
