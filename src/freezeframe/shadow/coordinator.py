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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeBroken
from freezeframe.shadow import journal
from freezeframe.shadow.crew import Crew
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.freezer import Freezer, Window
from freezeframe.shadow.guard import Guard
from freezeframe.shadow.holding import LETTING_GO
from freezeframe.shadow.journal import (
    UNDONE,
    Journal,
    ProviderEntry,
    SetEntry,
    ShadowEntry,
    WriterEntry,
)
from freezeframe.shadow.provider_side import ProviderSide
from freezeframe.shadow.providers.base import Provider, ProviderFailed, Shadow
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.timeline import NEXT, Limits, State
from freezeframe.shadow.votes import ProviderVote, ShadowFailed, ShadowRecord, WriterVote
from freezeframe.shadow.writer_side import WriterSide
from freezeframe.shadow.writers.base import Writer

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def new_name() -> str:
    """Return a name that no other set has; all that providers make begins with it."""
    return f"ff-{secrets.token_hex(4)}"


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
            guard = Guard(journal.RUNNING / f"{self.name}{UNDONE}")
            stack.callback(guard.close)
            if self.providers or self.writers:
                self._journal = stack.enter_context(Journal(self.name))
                guard.ensure()
            self._writing = WriterSide(self.writers, self.record.writers, self._crew, guard)
            self._providing = ProviderSide(self.providers, self.record.providers, self._crew, guard)
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
            self._writing.prepare(self.scope, Deadline.after(self.limits.prepare))
        with self._step("prepare providers"):
            self._providing.prepare(Deadline.after(self.limits.prepare))

    def ready(self) -> None:
        """Make another window possible, outside of it: here things may take their time."""
        if self._providing.copied:
            # The copies are of a window that did not count.
            with self._step("prepare providers"):
                self._providing.again()
                self._write("prepare")
                self._providing.prepare(Deadline.after(self.limits.prepare))
        (outcome,) = self._crew.run([self._ask_undo], Deadline.after(LETTING_GO))
        if not outcome.good:
            raise ShadowFailed(
                f"it is not known how to let go what is to be held: {outcome.why}",
                hint=outcome.hint or "this is a mistake of a writer or provider: leave it out",
            ) from outcome.error
        self._write("window")

    def _ask_undo(self) -> None:
        self._writing.ask_undo()
        self._providing.ask_undo()

    def freeze_writers(self) -> None:
        """Ask the writers to hold still, and raise where one does not.

        One after the other those that stop programs which may use others; then all others at
        once, so that a database is held for a short time however long a service takes to stop.
        """
        self._move(State.WRITERS_FROZEN)
        with self._step("freeze writers"):
            self._writing.freeze(self.limits.writers)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the volumes of all providers stand still; call `commit` there."""
        self._move(State.HELD)
        try:
            with self._step("hold"):
                within = self._writing.until.left
                self._providing.hold(Deadline.after(self.limits.commit).within(within))
            yield
        except BaseException as error:
            _note(error, self._resume())
            raise
        if trouble := self._resume():
            raise FreezeBroken(trouble[0], hint="no image was made: run it again")

    def commit(self) -> None:
        """Make the copies, all of this moment."""
        self._move(State.COMMITTED)
        with self._step("commit"):
            self._providing.commit()

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
            self._writing.finish(taken, Deadline.after(self.limits.prepare))

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
            self._writing.finish(False, Deadline.after(LETTING_GO), judge=False)
        self._release()

    def _resume(self) -> list[str]:
        """Resume the volumes; return what went wrong."""
        begun = time.monotonic()
        if self.state in (State.HELD, State.COMMITTED):
            self._move(State.RESUMED)
        trouble = self._providing.resume()
        if trouble is not None:
            self.record.steps["resume"] = time.monotonic() - begun
        return trouble or []

    def _thaw(self) -> list[str]:
        """Thaw the writers, in reverse order; return what went wrong."""
        begun = time.monotonic()
        if self.state in (State.WRITERS_FROZEN, State.RESUMED):
            self._move(State.THAWED)
        trouble = self._writing.thaw()
        if trouble is not None:
            self.record.steps["thaw writers"] = time.monotonic() - begun
        if self.state is State.THAWED:
            # From here on nobody has to let anything go for us.
            with contextlib.suppress(OSError):
                self._write("taken")
        return trouble or []

    def _release(self) -> list[str]:
        """Remove the copies; return what went wrong."""
        trouble = self._providing.release()
        # Whatever stays is for the next run, or `shadow cleanup`, which the journal tells.
        if not trouble:
            self.forget()
        return trouble

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
                for p, part in zip(self.providers, self._providing.parts, strict=True)
            ),
            writers=tuple(
                WriterEntry(name=w.name, undo=part.undo)
                for w, part in zip(self.writers, self._writing.parts, strict=True)
            ),
            shadows=tuple(shadows),
        )


def _note(error: BaseException, trouble: Sequence[str]) -> None:
    for text in trouble:
        error.add_note(text)
