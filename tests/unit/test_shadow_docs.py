"""The writer that docs/shadow-copies.md shows is one: the coordinator works with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from freezeframe.shadow import journal
from freezeframe.shadow.coordinator import Coordinator
from freezeframe.shadow.deadline import TimedOut
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.timeline import Limits
from freezeframe.testing.documented import documented_module

PAGE = Path(__file__).parents[2] / "docs" / "shadow-copies.md"


@pytest.fixture
def mailer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    with documented_module(PAGE, "mailer", tmp_path) as module:
        spool = tmp_path / "spool"
        (spool / "queue").mkdir(parents=True)
        monkeypatch.setattr(module, "SPOOL", spool)
        yield module


@pytest.fixture
def running(mailer: ModuleType) -> Iterator[None]:
    """The program itself, as far as anybody can tell."""
    ended = threading.Event()
    hold, idle = mailer.SPOOL / "hold", mailer.SPOOL / "idle"

    def run() -> None:
        while not ended.wait(0.01):
            if hold.exists():
                idle.touch()
            else:
                idle.unlink(missing_ok=True)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.usefixtures("running")
def test_the_writer_holds_still(mailer: ModuleType) -> None:
    (writer,) = mailer.MailerKind().find()
    with Coordinator(nothing(), [writer]) as coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
        coordinator.finish()
        coordinator.release()
    (vote,) = coordinator.record.writers
    assert vote.vote.value == "yes"
    assert vote.result is not None
    assert vote.result.consistency == "application"
    assert not (mailer.SPOOL / "hold").exists()


def test_one_that_does_not_answer_ends_it(mailer: ModuleType) -> None:
    (writer,) = mailer.MailerKind().find()
    coordinator = Coordinator(nothing(), [writer], limits=Limits(writers=0.2))
    with pytest.raises(Exception, match="mailer") as caught:  # noqa: PT012, SIM117
        with coordinator, Freezer(()) as freezer:
            coordinator.prepare()
            coordinator.take(freezer)
    assert isinstance(caught.value, TimedOut) or "longer" in str(caught.value)
    assert not (mailer.SPOOL / "hold").exists()


def test_both_take_about_thirty_lines() -> None:
    for block in PAGE.read_text().split("```python\n")[1:]:
        lines = [line for line in block.split("```")[0].splitlines() if line.strip()]
        assert len(lines) <= 36
