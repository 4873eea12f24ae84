"""Parts of the shadow room: who takes part, what is written down, what kinds there are."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeError, FreezeframeError, UsageError
from freezeframe.shadow import journal, registry, results
from freezeframe.shadow.crew import Crew
from freezeframe.shadow.deadline import Deadline, TimedOut
from freezeframe.shadow.discover import WriterChoice, choose_writers, find_writers
from freezeframe.shadow.journal import Journal, SetEntry
from freezeframe.shadow.registry import load
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.stack import Stack
from freezeframe.shadow.votes import Vote, WriterVote
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterResult
from freezeframe.testing.shadow_faults import FaultyWriter, Stage


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(journal, "KEPT", tmp_path / "kept")


@dataclass(frozen=True)
class In(Scope):
    """A scope that holds what lies in one folder; `volumes` are of no interest."""

    folder: Path = Path("/in")
    _stack: Stack = field(default_factory=lambda: Stack(()), compare=False, repr=False)

    def covers(self, path: str | Path) -> bool:
        return Path(path).is_relative_to(self.folder)

    def touches(self, path: str | Path) -> bool:
        return self.covers(path)


class Kind(WriterKind):
    kind = "toy"

    def __init__(self, writers: Sequence[Writer] = ()) -> None:
        self.writers = writers

    def find(self) -> Sequence[Writer]:
        return self.writers


class Broken(Kind):
    def find(self) -> Sequence[Writer]:
        raise FreezeError("it cannot be asked")


class Hanging(Kind):
    def find(self) -> Sequence[Writer]:
        threading.Event().wait()
        return ()


def writer(tmp_path: Path, name: str, *paths: str) -> FaultyWriter:
    return FaultyWriter(name, Stage(tmp_path), paths=[Path(path) for path in paths])


def test_only_writers_that_lie_whole_in_the_image_take_part(tmp_path: Path) -> None:
    kind = Kind([
        writer(tmp_path, "whole", "/in/data", "/in/log"),
        writer(tmp_path, "half", "/in/data", "/out/log"),
        writer(tmp_path, "elsewhere", "/out/data"),
        writer(tmp_path, "script"),
    ])  # fmt: skip
    found = find_writers({"toy": kind})
    scope = In(())
    cast = choose_writers(found, scope, WriterChoice())
    assert [each.name for each in cast.chosen] == ["whole", "script"]
    assert list(cast.left_out) == ["half"]
    assert "/out/log" in cast.left_out["half"]
    cast = choose_writers(found, scope, WriterChoice.of(["none"]))
    assert cast.chosen == ()
    assert set(cast.left_out) == {"whole", "half"}
    cast = choose_writers(found, scope, WriterChoice.of(["whole"]))
    assert [each.name for each in cast.chosen] == ["whole"]
    with pytest.raises(UsageError, match="do not all lie in the image: /out/log"):
        choose_writers(found, scope, WriterChoice.of(["half"]))
    with pytest.raises(UsageError, match="no writer named nobody"):
        choose_writers(found, scope, WriterChoice.of(["nobody"]))


def test_choices() -> None:
    assert WriterChoice.of([]) == WriterChoice.of(["auto"]) == WriterChoice()
    with pytest.raises(UsageError, match="`auto`, `none`, or names"):
        WriterChoice.of(["auto", "redis"])


def test_a_kind_that_fails_or_hangs_keeps_no_other_from_being_found(tmp_path: Path) -> None:
    kinds = {"bad": Broken(), "slow": Hanging(), "good": Kind([writer(tmp_path, "one")])}
    found = find_writers(kinds, patience=0.5)
    assert [each.name for each in found.found] == ["one"]
    assert found.broken["bad"] == "it cannot be asked"
    assert "no answer" in found.broken["slow"]


def test_kinds_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ff_other_kinds.py").write_text(
        "from freezeframe.shadow.writers.base import WriterKind\n"
        "class Good(WriterKind):\n    kind = 'good'\n    def find(self): return []\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint(name, value, "group")
        for name, value in {
            "good": "ff_other_kinds:Good",
            "number": "ff_other_kinds:number",
            "gone": "ff_other_kinds:Gone",
            "absent": "ff_no_such_module:Kind",
            "text": "builtins:str",
            "own": "ff_no_such_module:Kind",
        }.items()
    ]
    monkeypatch.setattr(registry, "_installed", lambda _: points)
    own = {"own": "freezeframe.testing.shadow_faults:FaultyProvider"}
    found = load("group", own, WriterKind)  # type: ignore[type-abstract]
    assert list(found.kinds) == ["good"]
    # Ours is no writer here, and nobody else gets its name.
    assert set(found.broken) == {"own", "number", "gone", "absent", "text"}
    assert "is no WriterKind" in found.broken["own"]
    sys.modules.pop("ff_other_kinds")


def test_a_set_is_alive_while_its_program_holds_the_lock() -> None:
    with Journal("ff-1") as one:
        one.write(SetEntry(name="ff-1", state="window"))
        (found,) = journal.running()
        assert found.alive
        with journal.taken_over(found) as ours:
            assert not ours
        with pytest.raises(UsageError, match="is being made"):
            Journal("ff-1")
    (found,) = journal.running()
    assert not found.alive
    with journal.taken_over(found) as ours:
        assert ours
        found.path.unlink()
    assert list(journal.RUNNING.iterdir()) == []


def test_what_is_no_set_is_left_alone() -> None:
    with Journal("ff-1") as one:
        one.write(SetEntry(name="ff-1"))
        (journal.RUNNING / "nonsense.json").write_bytes(b"{")
        (journal.RUNNING / "renamed.json").write_bytes(b'{"name": "ff-1"}')
        (journal.RUNNING / "newer.json").write_bytes(b'{"name": "newer", "format": 2}')
        assert [found.entry.name for found in journal.running()] == ["ff-1"]
    for name in ("", "A", "-a", "a/b", "a" * 40):
        with pytest.raises(UsageError):
            Journal(name)


def test_a_folder_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "link")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FreezeframeError, match="own folder"):
        Journal("ff-1")


def test_last_results_are_kept() -> None:
    vote = WriterVote("db", "toy", vote=Vote.YES, freeze=0.1, held=0.2)
    vote.result = WriterResult("application")
    results.remember_results([vote], "2026-01-01")
    results.remember_results([WriterVote("b", "toy", vote=Vote.VETO, reason="no")], "2026-01-02")
    last = results.last_results()
    assert last["db"].held_ms == 300
    assert last["db"].consistency == "application"
    assert last["b"].reason == "no"


def test_a_crew_gets_round_a_call_that_hangs() -> None:
    crew, done, event = Crew(1), threading.Event(), threading.Event()
    (late,) = crew.run([event.wait], Deadline.after(0.05))
    assert late.late
    assert not late.good
    (good,) = crew.run([done.set], Deadline.after(20))
    assert good.good
    event.set()
    crew.close()


def test_deadlines() -> None:
    deadline = Deadline.after(0)
    assert deadline.passed
    assert deadline.left == 0
    with pytest.raises(TimedOut, match="the thing took longer than 0 s"):
        deadline.check("the thing")
    assert Deadline.after(100).within(1).limit == 1
    assert Deadline.after(1).within(100).limit == 1
