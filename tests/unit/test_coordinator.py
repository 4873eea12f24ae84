"""The coordinator's steps, their order, and what is undone where one of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeBroken, FreezeError
from freezeframe.shadow import journal
from freezeframe.shadow.coordinator import Coordinator, new_name
from freezeframe.shadow.deadline import TimedOut
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.providers.base import ProviderFailed
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.timeline import Limits, State
from freezeframe.shadow.votes import ShadowFailed, Vote
from freezeframe.shadow.writers.base import WriterVeto
from freezeframe.testing.shadow_faults import Fault, FaultyWriter, Stage, toy_provider

#: Of what hangs; all else has time enough on any machine.
SHORT = Limits(prepare=0.5, writers=0.5, commit=0.5)
LONG = Limits(prepare=60, writers=60, commit=60)

WRITER_STEPS = ("prepare", "freeze", "thaw", "finish")
PROVIDER_STEPS = ("prepare", "hold", "commit", "resume", "check", "release")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(journal, "KEPT", tmp_path / "kept")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    folder = tmp_path / "stage"
    folder.mkdir()
    return Stage(folder)


def make(
    stage: Stage,
    writer: dict[str, Fault] | None = None,
    provider: dict[str, Fault] | None = None,
    limits: Limits = LONG,
) -> Coordinator:
    """Two of each; the second has the faults."""
    name = new_name()
    return Coordinator(
        nothing(),
        [FaultyWriter("a", stage), FaultyWriter("b", stage, writer)],
        [toy_provider(name, stage), toy_provider(name, stage, provider, label="b")],
        limits,
        name,
    )


def take_all(coordinator: Coordinator) -> None:
    with coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
        coordinator.finish()
        coordinator.check()
        coordinator.release()


def test_the_steps_come_in_order(stage: Stage) -> None:
    coordinator = make(stage)
    take_all(coordinator)
    told = list(dict.fromkeys(each.split(": ", 1)[1] for each in stage.done))
    assert told == [
        "prepare", "freeze", "hold", "commit", "resume", "thaw", "finish", "check", "release",
    ]  # fmt: skip
    assert stage.done.index("writer b: freeze") < stage.done.index("provider a: hold")
    assert stage.done.index("provider b: hold") < stage.done.index("provider a: commit")
    assert stage.done.index("provider a: resume") < stage.done.index("writer a: thaw")
    # The volumes in reverse order.
    assert stage.done.index("provider b: resume") < stage.done.index("provider a: resume")
    assert stage.left() == []
    assert journal.running() == []
    assert coordinator.state is State.RELEASED
    assert [vote.vote for vote in coordinator.record.writers] == [Vote.YES, Vote.YES]
    assert not coordinator.record.failed
    for name in ("prepare writers", "freeze writers", "hold", "commit", "resume", "thaw writers"):
        assert name in coordinator.record.steps


@pytest.mark.parametrize("step", ["prepare", "freeze", "finish"])
@pytest.mark.parametrize(
    ("fault", "error", "vote"),
    [
        (Fault.VETO, WriterVeto, Vote.VETO),
        (Fault.FAIL, ShadowFailed, Vote.FAILED),
        (Fault.BREAK, ShadowFailed, Vote.FAILED),
        (Fault.HANG, TimedOut, Vote.LATE),
    ],
)
def test_a_writer_that_fails(
    stage: Stage, step: str, fault: Fault, error: type[FreezeError], vote: Vote
) -> None:
    limits = SHORT if fault is Fault.HANG else LONG
    coordinator = make(stage, writer={step: fault}, limits=limits)
    with pytest.raises(error, match=r"^b ") as caught:
        take_all(coordinator)
    assert coordinator.state is State.ABORTED
    assert caught.value.hint
    assert coordinator.record.failed == {
        "prepare": "prepare writers", "freeze": "freeze writers", "finish": "finish",
    }[step]  # fmt: skip
    assert coordinator.record.writers[1].vote is vote
    # Nobody is left frozen, and what was prepared was ended.
    assert stage.left() == []
    assert journal.running() == []
    assert "writer a: finish, not taken" in stage.done or step == "finish"
    if step == "freeze":
        assert "provider a: hold" not in stage.done


@pytest.mark.parametrize("step", ["prepare", "hold", "commit"])
@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.BREAK, Fault.HANG])
def test_a_provider_that_fails(stage: Stage, step: str, fault: Fault) -> None:
    limits = SHORT if fault is Fault.HANG else LONG
    coordinator = make(stage, provider={step: fault}, limits=limits)
    error = TimedOut if fault is Fault.HANG else ShadowFailed
    with pytest.raises(error, match=f"toy .* failed to {step}"):
        take_all(coordinator)
    assert coordinator.state is State.ABORTED
    assert coordinator.record.reason
    assert stage.left() == []
    # What hangs may make something yet: it stays written down.
    assert len(journal.running()) == (fault is Fault.HANG)
    frozen = [each for each in stage.done if each.endswith(": freeze")]
    thawed = [each for each in stage.done if each.endswith(": thaw")]
    assert len(frozen) == len(thawed) == (0 if step == "prepare" else 2)


@pytest.mark.parametrize("who", ["writer", "provider"])
def test_one_that_cannot_be_let_go_fails_the_moment(stage: Stage, who: str) -> None:
    step = {"writer": "thaw", "provider": "resume"}[who]
    coordinator = make(stage, **{who: {step: Fault.FAIL}})  # type: ignore[arg-type]
    with pytest.raises(FreezeBroken, match="could not"):
        take_all(coordinator)
    # The others were let go all the same.
    assert f"{who} a: {step}" in stage.done
    assert not stage.file("a.frozen").exists()


def test_a_copy_that_is_lost_fails_the_image(stage: Stage) -> None:
    with pytest.raises(FreezeError, match="could not"):
        take_all(make(stage, provider={"check": Fault.FAIL}))
    assert stage.left() == []


def test_what_cannot_be_released_stays_in_the_journal(stage: Stage) -> None:
    with pytest.raises(ProviderFailed, match="could not be released") as caught:
        take_all(make(stage, provider={"release": Fault.FAIL}))
    assert "cleanup" in caught.value.hint
    (found,) = journal.running()
    assert not found.alive


def test_writers_that_stop_others_come_first(stage: Stage) -> None:
    class Stops(FaultyWriter):
        stops_others = True

    writers = [FaultyWriter("db", stage), Stops("one", stage), Stops("two", stage)]
    with Coordinator(nothing(), writers) as coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
    told = [each for each in stage.done if each.endswith(("freeze", "thaw"))]
    assert told == [
        "writer one: freeze", "writer two: freeze", "writer db: freeze",
        "writer db: thaw", "writer two: thaw", "writer one: thaw",
    ]  # fmt: skip


def test_a_window_that_did_not_count_is_done_again(stage: Stage) -> None:
    coordinator = make(stage)
    with coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
        coordinator.take(freezer)
        # One without a commit: what was read in it was not enough.
        coordinator.ready()
        with coordinator.thawing():
            coordinator.freeze_writers()
            with coordinator.held():
                pass
        coordinator.take(freezer)
        coordinator.finish()
        coordinator.release()
    assert stage.done.count("provider a: commit") == 3
    assert stage.done.count("provider a: release") == 3
    assert stage.done.count("writer a: freeze") == 4
    assert coordinator.record.writers[0].freezes == 4
    assert stage.left() == []


def test_an_error_in_the_window_lets_everything_go(stage: Stage) -> None:
    coordinator = make(stage)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117
        with coordinator:
            coordinator.prepare()
            coordinator.ready()
            with coordinator.thawing():
                coordinator.freeze_writers()
                with coordinator.held():
                    raise ZeroDivisionError
    assert stage.left() == []


def test_steps_out_of_order_are_a_mistake(stage: Stage) -> None:
    with make(stage) as coordinator, pytest.raises(RuntimeError, match="from new to committed"):
        coordinator.commit()


def test_kept_copies_stay(stage: Stage) -> None:
    coordinator = make(stage)
    with coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
        coordinator.finish()
        journal.keep(coordinator.keep())
        coordinator.forget()
    assert journal.running() == []
    (found,) = journal.kept()
    assert [each.provider for each in found.entry.shadows] == ["toy", "toy"]
    assert [name for name in stage.left() if name.endswith(".copy")]


def test_writers_are_held_no_longer_than_their_limit(stage: Stage) -> None:
    """The guard lets go what the program holds on to; then there is no moment."""
    coordinator = make(stage, limits=Limits(prepare=60, writers=0.2, commit=60))
    with coordinator, pytest.raises(FreezeBroken, match="too long"):  # noqa: PT012
        coordinator.prepare()
        coordinator.ready()
        with coordinator.thawing():
            coordinator.freeze_writers()
            for _ in _until(lambda: "a.frozen" not in stage.left()):
                pass
    assert stage.left() == []


def _until(done: object) -> Iterator[None]:
    import time

    patience = time.monotonic() + 20
    while not done():  # type: ignore[operator]
        assert time.monotonic() < patience
        time.sleep(0.01)
        yield
