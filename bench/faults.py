#!/usr/bin/env python3
"""The fault table of shadow copies: each fault, what happened, how long anything was held.

No root needed: writers and providers are doubles whose holds are files. Prints a table.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from freezeframe.core.errors import FreezeframeError
from freezeframe.shadow import journal, providers
from freezeframe.shadow.coordinator import Coordinator, new_name
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.leftovers import clean_leftovers
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.timeline import Limits
from freezeframe.testing.shadow_faults import Fault, FaultyWriter, Stage, toy_provider

#: Seconds; a user's are 60 and 10.
LIMITS = Limits(prepare=5, writers=2, commit=1)

FAULTS = [
    ("writer", "prepare", Fault.VETO),
    ("writer", "freeze", Fault.VETO),
    ("writer", "freeze", Fault.BREAK),
    ("writer", "freeze", Fault.HANG),
    ("writer", "finish", Fault.VETO),
    ("provider", "prepare", Fault.FAIL),
    ("provider", "hold", Fault.FAIL),
    ("provider", "commit", Fault.FAIL),
    ("provider", "commit", Fault.HANG),
    ("provider", "check", Fault.FAIL),
]
ENDS = [(who, step, number)
        for number in (signal.SIGKILL, signal.SIGSTOP)
        for who, step in [("writer", "freeze"), ("provider", "hold"), ("provider", "commit"),
                          ("writer", "thaw")]]  # fmt: skip


class Watch:
    """Sees how long holds are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def held(self) -> bool:
        return any(each.suffix in (".frozen", ".held") for each in self._folder.iterdir())


def build(folder: Path, who: str, step: str, fault: Fault) -> Coordinator:
    stage, name = Stage(folder), new_name()
    faults = {step: fault}
    writer = FaultyWriter("b", stage, faults if who == "writer" else {})
    provider = toy_provider(name, stage, faults if who == "provider" else {})
    return Coordinator(nothing(), [FaultyWriter("a", stage), writer], [provider], LIMITS, name)


def take(coordinator: Coordinator) -> None:
    with coordinator, Freezer(()) as freezer:
        coordinator.prepare()
        coordinator.take(freezer)
        coordinator.finish()
        coordinator.check()
        coordinator.release()


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def within(folder: Path, who: str, step: str, fault: Fault) -> None:
    """A fault that the program itself sees."""
    coordinator = build(folder, who, step, fault)
    try:
        take(coordinator)
        said = "nothing"
    except FreezeframeError as error:
        said = f"{type(error).__name__}: {error.message}"
    vote = coordinator.record.writers[0]
    left = "nothing left" if not any(folder.iterdir()) else "LEFT"
    row(f"{who}: {fault.name.lower()} at {step}", said, f"{vote.total * 1000:.1f} ms", left)
    for each in journal.running():
        each.path.unlink()


def ended(folder: Path, who: str, step: str, number: signal.Signals) -> None:
    """A program that is killed, or stopped for good."""
    command = [sys.executable, __file__, "stay", str(folder), who, step]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    os.kill(process.pid, number)
    watch = Watch(folder)
    while watch.held():
        time.sleep(0.001)
    seconds = time.monotonic() - begun
    process.kill()
    process.communicate()
    time.sleep(0.2)
    cleaned = ", ".join(dict.fromkeys(each.what for each in clean_leftovers())) or "nothing"
    left = "nothing left" if not any(folder.iterdir()) else "LEFT"
    row(
        f"{number.name} at {who}'s {step}",
        f"the guard let go; the next run removed: {cleaned}",
        f"{seconds * 1000:.1f} ms after it",
        left,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        journal.RUNNING = Path(temporary, "running")
        journal.KEPT = Path(temporary, "kept")
        own = {"toy": "freezeframe.testing.shadow_faults:FaultyProvider"}
        providers._OWN = own
        if sys.argv[1:2] == ["stay"]:
            _, _, folder, who, step = sys.argv
            journal.RUNNING = Path(folder).parent / "running"
            take(build(Path(folder), who, step, Fault.STAY))
            return
        folder = Path(temporary, "stage")
        folder.mkdir()
        print(f"limits: writers {LIMITS.writers:g} s, commit {LIMITS.commit:g} s\n")
        row("fault", "what happened", "held", "afterwards")
        row("---", "---", "---", "---")
        for who, step, fault in FAULTS:
            within(folder, who, step, fault)
        for who, step, number in ENDS:
            ended(folder, who, step, number)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
