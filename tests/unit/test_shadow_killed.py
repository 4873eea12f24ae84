"""The coordinator's program ends in the midst of a step: what it held is let go, then cleaned."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.shadow import journal, providers
from freezeframe.shadow.leftovers import clean_leftovers
from freezeframe.testing.frozen import eventually

_SCRIPT = """
import pathlib, sys
from freezeframe.shadow import journal
from freezeframe.shadow.coordinator import Coordinator, new_name
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.timeline import Limits
from freezeframe.system.interrupt import orderly_stop
from freezeframe.testing.shadow_faults import Fault, FaultyWriter, Stage, toy_provider
folder, place, limit, undoes = sys.argv[1:]
who, step = place.split(": ")
journal.RUNNING = pathlib.Path(folder, "running")
stage, name, faults = Stage(pathlib.Path(folder, "stage")), new_name(), {step: Fault.STAY}
writer = FaultyWriter("w", stage, faults if who == "writer" else {}, undoes=undoes == "undoes")
provider = toy_provider(name, stage, faults if who == "provider" else {})
limits = Limits(writers=float(limit), commit=float(limit))
with orderly_stop(), Freezer(()) as freezer, Coordinator(
    nothing(), [FaultyWriter("first", stage), writer], [provider], limits, name
) as coordinator:
    coordinator.prepare()
    coordinator.take(freezer)
    coordinator.finish()
    coordinator.check()
    coordinator.release()
"""

STEPS = [
    *(f"writer: {step}" for step in ("prepare", "freeze", "thaw", "finish")),
    *(f"provider: {s}" for s in ("prepare", "hold", "commit", "resume", "check", "release")),
]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(journal, "KEPT", tmp_path / "kept")
    own = {"toy": "freezeframe.testing.shadow_faults:FaultyProvider"}
    monkeypatch.setattr(providers, "_OWN", own)
    (tmp_path / "stage").mkdir()


@contextlib.contextmanager
def staying_at(
    folder: Path, place: str, *, limit: float = 60, undoes: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a coordinator until it is in a step, where it stays."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, folder, place, str(limit), "undoes" if undoes else "not"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def held(folder: Path) -> list[str]:
    return [
        each.name
        for each in (folder / "stage").iterdir()
        if each.name.endswith((".frozen", ".held"))
    ]


def clean(folder: Path) -> None:
    """Nothing is held; what else is left, the next program removes."""
    eventually(lambda: not held(folder))
    for found in journal.running():
        if found.entry.state == "window":
            eventually(found.path.with_suffix(journal.UNDONE).exists)
    cleaned = list(clean_leftovers())
    assert not any(each.trouble for each in cleaned)
    # What the guard has let go is not let go once more.
    assert not any("thawed" in each.what for each in cleaned)
    assert list((folder / "stage").iterdir()) == []
    assert list((folder / "running").iterdir()) == []


@pytest.mark.parametrize("place", STEPS)
def test_killed_in_a_step(tmp_path: Path, place: str) -> None:
    with staying_at(tmp_path, place) as process:
        # One that runs is left alone.
        assert list(clean_leftovers()) == []
        process.kill()
        process.wait()
        clean(tmp_path)


@pytest.mark.parametrize("place", ["writer: freeze", "provider: commit"])
def test_ended_in_a_step(tmp_path: Path, place: str) -> None:
    """By SIGTERM: it cleans up by itself; where volumes are held, when they are let go."""
    with staying_at(tmp_path, place, limit=60 if "writer" in place else 1) as process:
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert not held(tmp_path)
        left = [each.name for each in (tmp_path / "stage").iterdir()]
        assert left == []


@pytest.mark.parametrize("place", ["writer: freeze", "provider: commit"])
def test_stopped_in_a_step(tmp_path: Path, place: str) -> None:
    """Who does nothing any more is helped when the time is up."""
    with staying_at(tmp_path, place, limit=1) as process:
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: not held(tmp_path))
        assert process.poll() is None
        process.kill()
        process.wait()
        clean(tmp_path)


def test_stopped_with_what_ends_only_with_it(tmp_path: Path) -> None:
    """A lock that only this program's end releases: then it has to end."""
    with staying_at(tmp_path, "writer: freeze", limit=0.5, undoes=False) as process:
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGKILL


def test_the_guard_died_as_well(tmp_path: Path) -> None:
    """Then the next program lets go what is held."""
    with staying_at(tmp_path, "provider: commit") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.wait()
        assert held(tmp_path)
        assert not any(each.trouble for each in clean_leftovers())
        assert not held(tmp_path)
