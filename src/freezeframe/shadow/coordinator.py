"""The coordinator: writers and providers brought to one point in time, step by step.

    NEW → PREPARED → WRITERS FROZEN → HELD → COMMITTED → RESUMED → THAWED → FINISHED → RELEASED
                          ↑              └───────────────↗            │
                          └── another window ─────────────────────────┘

Filesystems are frozen by their own `Freezer`, between the freeze of the writers and `held`.
A veto, a failure, a time-out or a signal at any step undoes in reverse order what was done:
volumes resume, filesystems thaw (whoever froze them sees to that), writers thaw, copies go.
What this program cannot do any more because it died, the guard does; what is left lying, the
journal tells the next one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeBroken
from freezeframe.shadow.crew import Crew, Outcome
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.freezer import Freezer, Window
from freezeframe.shadow.guard import Guard, Hold
from freezeframe.shadow.journal import Journal, ProviderEntry, SetEntry, ShadowEntry, WriterEntry
from freezeframe.shadow.providers.base import Provider, ProviderFailed, Shadow
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.timeline import NEXT, Limits, State
from freezeframe.shadow.votes import (
    ProviderVote,
    ShadowFailed,
    ShadowRecord,
    Vote,
    WriterVote,
    judge_writers,
    provider_failed,
)
from freezeframe.shadow.writers.base import Writer

#: Seconds a thaw, a resume or a release is waited for before the others' turn comes.
_LETTING_GO = 20.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def new_name() -> str:
    """Return a name that no other set has; all that providers make begins with it."""
    return f"ff-{secrets.token_hex(4)}"


@dataclass(slots=True)
class _Part:
    """One writer or provider with its vote, and what lets it go if this program dies."""

    key: str
    undo: tuple[tuple[str, ...], ...] = ()
    #: Whether it has been asked to hold still, and was not let go since.
    held: bool = False
    #: Counts freezes and thaws: who comes back from one and finds another number was too late.
    turn: int = 0
    #: Whether a call of it never came back.
    hangs: bool = False
    #: When its freeze was asked for, and when that was done, monotonic.
    asked: float = 0.0
    since: float = 0.0


@dataclass(eq=False)
class Coordinator(Closing):
    """One set of shadow copies, or the window of one image, under way.

    As a context manager it lets everything go at its end, unless `keep` was called. For one
    thread: the main one, so that a signal ends it in an orderly way.
    """

    scope: Scope
    writers: Sequence[Writer] = ()
    providers: Sequence[Provider] = ()
    limits: Limits = field(default_factory=Limits)
    name: str = field(default_factory=new_name)
    state: State = State.NEW
    record: ShadowRecord = field(default_factory=ShadowRecord)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._writers = [_Part(f"writer {writer.name}") for writer in self.writers]
        self._providers = [_Part(f"provider {p.kind} {n}") for n, p in enumerate(self.providers)]
        alone = [n for n, writer in enumerate(self.writers) if writer.stops_others]
        rest = [n for n in range(len(self.writers)) if n not in alone]
        #: Numbers of the writers that are frozen at once, in the order of freezing.
        self._groups = [*([n] for n in alone), *([rest] if rest else [])]
        self._until = Deadline.after(self.limits.writers)
        self._hold_until = Deadline.after(self.limits.commit)
        #: Whether the providers hold copies.
        self._copied = False
        self._journal: Journal | None = None
        self._created = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        for writer in self.writers:
            self.record.writers.append(WriterVote(writer.name, writer.kind))
        for provider in self.providers:
            volumes = tuple(volume.path for volume in provider.volumes)
            self.record.providers.append(ProviderVote(provider.kind, volumes))
            provider.journal = partial(self._write, "prepare")

    def __enter__(self) -> Self:
        """Start the guard and the threads. `FreezeError`; some 50 ms."""
        with self._stack as stack:
            self._crew = Crew(len(self.writers) + len(self.providers) + 1)
            stack.callback(self._crew.close)
            if self.providers or self.writers:
                self._journal = stack.enter_context(Journal(self.name))
                self._guard = Guard(self._journal.undone)
                stack.callback(self._guard.close)
                self._guard.ensure()
            self._stack = stack.pop_all()
        return self

    # -- the steps ----------------------------------------------------------------------

    def prepare(self) -> None:
        """Have writers and providers prepare. Nothing is held by that.

        Raises `WriterVeto`, `ShadowFailed`, `TimedOut`; so do all steps.
        """
        self._move(State.PREPARED)
        with self._step("prepare writers"):
            self._write("prepare")
            deadline = Deadline.after(self.limits.prepare)
            calls = [partial(writer.prepare, self.scope, deadline) for writer in self.writers]
            outcomes = self._crew.run(calls, deadline)
            for vote, writer, outcome in zip(
                self.record.writers, self.writers, outcomes, strict=True
            ):
                vote.prepare = outcome.seconds
                vote.about = _about(writer)
            judge_writers(self.record.writers, "prepare writers", outcomes, deadline)
        self._prepare_providers()

    def ready(self) -> None:
        """Make another window possible, outside of it: here things may take their time."""
        if self._copied:
            # The copies are of a window that did not count.
            with self._step("prepare providers"):
                self._each_provider("release", [p.release for p in self.providers], _LETTING_GO)
            self._prepare_providers()
            self._copied = False
        deadline = Deadline.after(_LETTING_GO)
        (outcome,) = self._crew.run([self._ask_undo], deadline)
        if not outcome.good:
            raise ShadowFailed(
                f"it is not known how to let go what is to be held: {outcome.why}",
                hint=outcome.hint or "this is a mistake of a writer or provider: leave it out",
            ) from outcome.error
        self._write("window")

    def _ask_undo(self) -> None:
        for part, writer in zip(self._writers, self.writers, strict=True):
            part.undo = writer.undo()
        for part, provider in zip(self._providers, self.providers, strict=True):
            part.undo = provider.undo()

    def freeze_writers(self) -> None:
        """Ask the writers to hold still, and raise where one does not.

        One after the other those that stop programs which may use others; then all others at
        once, so that a database is held for a short time however long a service takes to stop.
        """
        self._move(State.WRITERS_FROZEN)
        with self._step("freeze writers"):
            self._until = Deadline.after(self.limits.writers)
            self._tell_guard(self._writers, self.limits.writers)
            for group in self._groups:
                self._freeze_group(group)

    def _freeze_group(self, group: Sequence[int]) -> None:
        votes = [self.record.writers[number] for number in group]
        now = time.monotonic()
        for number in group:
            part = self._writers[number]
            part.held, part.asked, part.turn = True, now, part.turn + 1
        outcomes = self._crew.run(
            [partial(self._freeze_one, number, self._writers[number].turn) for number in group],
            self._until,
        )
        for number, vote, outcome in zip(group, votes, outcomes, strict=True):
            self._writers[number].since = outcome.ended
            vote.freeze = outcome.seconds
            vote.freezes += 1
        judge_writers(votes, "freeze writers", outcomes, self._until)

    def _freeze_one(self, number: int, turn: int) -> None:
        """Freeze one; where its thaw came before it was frozen, thaw it again."""
        try:
            self.writers[number].freeze(self._until)
        finally:
            if self._writers[number].turn != turn:
                self.writers[number].thaw()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the volumes of all providers stand still; call `commit` there."""
        self._move(State.HELD)
        try:
            with self._step("hold"):
                self._hold_until = Deadline.after(self.limits.commit).within(self._until.left)
                self._tell_guard(self._providers, self.limits.commit)
                for part in self._providers:
                    part.held = True
                calls = [partial(p.hold, self._hold_until) for p in self.providers]
                outcomes = self._each_provider("hold", calls, self._hold_until.left)
                for vote, outcome in zip(self.record.providers, outcomes, strict=True):
                    vote.hold = outcome.seconds
            yield
        except BaseException as error:
            _note(error, self._resume())
            raise
        if trouble := self._resume():
            raise FreezeBroken(trouble[0], hint="no image was made: run it again")

    def commit(self) -> None:
        """Make the copies, all of this moment."""
        self._move(State.COMMITTED)
        self._copied = bool(self.providers)
        with self._step("commit"):
            calls = [partial(p.commit, self._hold_until) for p in self.providers]
            outcomes = self._each_provider("commit", calls, self._hold_until.left)
            for vote, outcome in zip(self.record.providers, outcomes, strict=True):
                vote.commit, vote.vote = outcome.seconds, Vote.YES
            self._hold_until.check("making the shadow copies")

    @contextmanager
    def thawing(self) -> Iterator[None]:
        """Thaw the writers at the end, whatever happens within.

        Raises `FreezeBroken` where that was not the end of what was held: it was let go before.
        """
        try:
            yield
        except BaseException as error:
            _note(error, self._thaw())
            raise
        if trouble := self._thaw():
            raise FreezeBroken(trouble[0], hint="no image was made: run it again")

    def take(self, freezer: Freezer) -> Window:
        """Do all of a window by itself: writers, filesystems, volumes, and back."""
        self.ready()
        with self.thawing(), freezer.window(last=self.freeze_writers) as window, self.held():
            self.commit()
        self.note_window(window)
        return window

    def finish(self, taken: bool = True) -> None:
        """Have the writers end what they prepared, and say what may be claimed."""
        self._move(State.FINISHED)
        with self._step("finish"):
            deadline = Deadline.after(self.limits.prepare)
            judge_writers(self.record.writers, "finish", self._finish(taken, deadline), deadline)

    def shadows(self) -> tuple[Shadow, ...]:
        """Return the copies of all providers."""
        return tuple(shadow for provider in self.providers for shadow in provider.shadows())

    def check(self) -> None:
        """Raise `ShadowLost` where a copy is no longer whole."""
        for provider in self.providers:
            provider.check()

    def release(self) -> None:
        """Remove the copies. Raises `ProviderFailed` where something stays."""
        self._move(State.RELEASED)
        if trouble := self._release():
            raise ProviderFailed(trouble[0], hint="freezeframe shadow cleanup")

    def keep(self) -> SetEntry:
        """Let the copies stay; return what is to be written down of them."""
        self._move(State.RELEASED)
        return self._entry("kept", [
            ShadowEntry(
                volume=shadow.volume.path,
                number=shadow.volume.node.number,
                size=shadow.volume.size,
                path=shadow.path,
                provider=provider.kind,
                is_device=shadow.is_device,
            )
            for provider in self.providers
            for shadow in provider.shadows()
        ])  # fmt: skip

    def close(self) -> None:
        """Let everything go that still is held, and end the guard."""
        try:
            if self.state not in (State.RELEASED, State.ABORTED):
                self._abort()
        finally:
            self._stack.close()

    def forget(self) -> None:
        """Take the set out of the journal of those under way."""
        if self._journal is not None:
            self._journal.remove()

    # -- letting go ---------------------------------------------------------------------

    def _abort(self) -> None:
        """Undo what was done, in reverse order; what cannot be undone is left to the journal."""
        before, self.state = self.state, State.ABORTED
        self._resume()
        self._thaw()
        if before not in (State.NEW, State.FINISHED):
            self._finish(False, Deadline.after(_LETTING_GO))
        self._release()

    def _resume(self) -> list[str]:
        """Resume the volumes; return what went wrong."""
        begun = time.monotonic()
        if self.state in (State.HELD, State.COMMITTED):
            self._move(State.RESUMED)
        trouble: list[str] = []
        held = [n for n, part in enumerate(self._providers) if part.held]
        for number in reversed(held):
            provider, vote = self.providers[number], self.record.providers[number]
            (outcome,) = self._crew.run([provider.resume], Deadline.after(_LETTING_GO))
            vote.resume = outcome.seconds
            if not outcome.good:
                trouble.append(f"{_who(provider)} could not resume: {outcome.why}")
        if held:
            trouble += self._free([self._providers[number] for number in held])
            self.record.steps["resume"] = time.monotonic() - begun
        return trouble

    def _thaw(self) -> list[str]:
        """Thaw the writers, in reverse order; return what went wrong."""
        begun = time.monotonic()
        if self.state in (State.WRITERS_FROZEN, State.RESUMED):
            self._move(State.THAWED)
        late = self._until.passed
        trouble: list[str] = []
        groups = [[n for n in group if self._writers[n].held] for group in reversed(self._groups)]
        for group in filter(None, groups):
            trouble += self._thaw_group(group)
        if any(groups):
            self.record.steps["thaw writers"] = time.monotonic() - begun
            if late and not trouble:
                trouble.append(f"writers were held for longer than {self.limits.writers:g} s")
        if self.state is State.THAWED:
            # From here on nobody has to let anything go for us.
            with contextlib.suppress(OSError):
                self._write("taken")
        return trouble

    def _thaw_group(self, group: Sequence[int]) -> list[str]:
        trouble: list[str] = []
        for number in group:
            self._writers[number].turn += 1
        outcomes = self._crew.run(
            [self.writers[number].thaw for number in group], Deadline.after(_LETTING_GO)
        )
        for number, outcome in zip(group, outcomes, strict=True):
            part, vote = self._writers[number], self.record.writers[number]
            if not outcome.good:
                trouble.append(f"{vote.name} could not be thawed: {outcome.why}")
            vote.thaw = outcome.seconds
            vote.held = max(outcome.begun - part.since, 0.0) if part.since else 0.0
            vote.total += outcome.begun + outcome.seconds - part.asked
        return trouble + self._free([self._writers[number] for number in group])

    def _free(self, parts: Sequence[_Part]) -> list[str]:
        for part in parts:
            part.held = False
        undone = self._guard.free([part.key for part in parts])
        return [f"{key} was held for too long, and let go by the guard" for key in undone]

    def _finish(self, taken: bool, deadline: Deadline) -> list[Outcome]:
        def body(writer: Writer, vote: WriterVote) -> None:
            vote.result = writer.finish(taken)

        calls = [
            partial(body, writer, vote)
            for writer, vote in zip(self.writers, self.record.writers, strict=True)
        ]
        return self._crew.run(calls, deadline)

    def _release(self) -> list[str]:
        trouble: list[str] = []
        parts = reversed(list(zip(self.providers, self._providers, strict=True)))
        for provider, part in parts:
            (outcome,) = self._crew.run([provider.release], Deadline.after(_LETTING_GO * 3))
            if not outcome.good:
                trouble.append(f"{_who(provider)} could not be released: {outcome.why}")
            elif part.hangs:
                # What it makes when it comes back, nobody else would know of.
                trouble.append(f"{_who(provider)} may still be at work")
        # Whatever stays is for the next run, or `shadow cleanup`, which the journal tells.
        if not trouble:
            self.forget()
        return trouble

    # -- asking -------------------------------------------------------------------------

    def _prepare_providers(self) -> None:
        with self._step("prepare providers"):
            self._write("prepare")
            deadline = Deadline.after(self.limits.prepare)
            calls = [partial(provider.prepare, deadline) for provider in self.providers]
            outcomes = self._each_provider("prepare", calls, deadline.left)
            for vote, outcome in zip(self.record.providers, outcomes, strict=True):
                vote.prepare = outcome.seconds

    def _each_provider(
        self, what: str, calls: Sequence[Callable[[], None]], seconds: float
    ) -> list[Outcome]:
        """Call one provider after the other; the first that fails ends it."""
        deadline = Deadline.after(seconds)
        outcomes: list[Outcome] = []
        for part, vote, call in zip(self._providers, self.record.providers, calls, strict=True):
            (outcome,) = self._crew.run([call], deadline)
            outcomes.append(outcome)
            part.hangs = part.hangs or outcome.late
            if not outcome.good:
                raise provider_failed(vote, what, outcome)
        return outcomes

    def _tell_guard(self, parts: Sequence[_Part], seconds: float) -> None:
        if parts:
            self._guard.ensure()
            self._guard.hold(Hold(part.key, seconds, part.undo) for part in parts)

    # -- writing down -------------------------------------------------------------------

    def note_window(self, window: Window) -> None:
        """Take note of how long the filesystems took in the window that counts."""
        if window.times:
            asked = min(each.asked for each in window.times)
            ended = max(each.asked + each.blocked for each in window.times)
            self.record.steps["freeze filesystems"] = window.since - asked
            self.record.steps["thaw filesystems"] = ended - window.until

    def _move(self, to: State) -> None:
        if to not in NEXT.get(self.state, ()):
            raise RuntimeError(f"a set of shadow copies goes from {self.state} to {to}")
        self.state = to

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Measure a step, and note which one failed."""
        begun = time.monotonic()
        try:
            yield
        except BaseException as error:
            if not self.record.failed:
                self.record.failed = name
                self.record.reason = str(error) or type(error).__name__
            raise
        finally:
            self.record.steps[name] = time.monotonic() - begun

    def _write(self, state: str) -> None:
        if self._journal is not None:
            self._journal.write(self._entry(state, ()))

    def _entry(self, state: str, shadows: Sequence[ShadowEntry]) -> SetEntry:
        boot = ""
        with contextlib.suppress(OSError):
            boot = _BOOT.read_text(encoding="ascii").strip()
        return SetEntry(
            name=self.name,
            created=self._created,
            boot=boot,
            pid=os.getpid(),
            state=state,
            providers=tuple(
                ProviderEntry(kind=p.kind, record=dict(p.record()), undo=part.undo)
                for p, part in zip(self.providers, self._providers, strict=True)
            ),
            writers=tuple(
                WriterEntry(name=w.name, undo=part.undo)
                for w, part in zip(self.writers, self._writers, strict=True)
            ),
            shadows=tuple(shadows),
        )


def _about(writer: Writer) -> str:
    try:
        return writer.about()
    except Exception as error:  # no more than a few words, whatever is wrong with them
        return str(error)


def _who(provider: Provider) -> str:
    return f"{provider.kind} ({', '.join(volume.path for volume in provider.volumes)})"


def _note(error: BaseException, trouble: Sequence[str]) -> None:
    for text in trouble:
        error.add_note(text)
