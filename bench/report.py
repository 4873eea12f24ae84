"""The tables: what each step took, and the ratios against their targets."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disk import Disk
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GIB, MIB, human_size
from freezeframe.system.run import run
from measure import Usage
from peers import FREEZEFRAME, STEPS, Step, megabytes

OURS = "freezeframe"
_STAGES = {"first": "first image", "again": "second image, unchanged", "restore": "restore"}

#: Stage, peer, and the most that our time may be of the peer's.
_TARGETS = (
    ("first", "partclone", 0.40),
    ("first", "restic", 0.35),
    ("first", "borg", 0.65),
    ("first", "qemu-img", 0.55),
    ("again", "restic", 0.25),
    ("restore", "partclone", 0.30),
)
_STORED_TARGET = 1.05
_PEAK_TARGET = 400 * MIB
_INDEX_PEAK_TARGET = 600 * MIB


@dataclass(slots=True)
class Results:
    """All that was measured: by (stage, tool), one value a round."""

    usages: dict[tuple[str, str], list[Usage]] = field(default_factory=dict)
    stored: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Entries of the made-up index, and the backup's peak with it; 0: not measured.
    index_chunks: int = 0
    index_peak: int = 0
    #: What the checks of the results said, one line each.
    checks: list[str] = field(default_factory=list)

    def add(self, step: Step, usage: Usage, size: int) -> None:
        """Take one round's value of a step."""
        self.usages.setdefault((step.stage, step.tool), []).append(usage)
        if size:
            self.stored[step.stage, step.tool] = size

    def walls(self, stage: str, tool: str) -> list[float]:
        """Return the seconds of each round."""
        return [usage.wall for usage in self.usages.get((stage, tool), [])]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, as words: what, ours against it, the range the noise allows, whether met."""

    what: str
    got: str
    span: str
    target: str
    met: bool


def verdicts(results: Results) -> list[Verdict]:
    """Hold what was measured against the targets; what was not measured is left out."""
    found = []
    for stage, peer, most in _TARGETS:
        mine, theirs = results.walls(stage, OURS), results.walls(stage, peer)
        if not mine or not theirs:
            continue
        ratio = statistics.median(mine) / statistics.median(theirs)
        span = f"{min(mine) / max(theirs):.2f}-{max(mine) / min(theirs):.2f}"
        name = f"{_STAGES[stage]}, time / {peer}"
        found.append(Verdict(name, f"{ratio:.2f}", span, f"{most:.2f}", ratio <= most))
    sizes = results.stored.get(("first", OURS)), results.stored.get(("first", "restic"))
    if sizes[0] and sizes[1]:
        ratio = sizes[0] / sizes[1]
        met = ratio <= _STORED_TARGET
        found.append(Verdict("stored / restic", f"{ratio:.3f}", "", f"{_STORED_TARGET}", met))
    peaks = [usage.peak for (_, tool), all_ in results.usages.items() if tool == OURS
             for usage in all_]  # fmt: skip
    if peaks:
        found.append(_memory("peak memory, MiB", max(peaks), _PEAK_TARGET))
    if results.index_peak:
        name = f"peak memory, MiB, with an index of {results.index_chunks:,} chunks"
        found.append(_memory(name, results.index_peak, _INDEX_PEAK_TARGET))
    return found


def _memory(name: str, peak: int, most: int) -> Verdict:
    return Verdict(name, megabytes(peak), "", megabytes(most), peak <= most)


# -- as text ------------------------------------------------------------------------


def markdown(results: Results, disk: Disk, rounds: int, outputs: Path) -> str:
    """Write the whole report."""
    parts = [
        "# Benchmarks",
        "Made by `make bench`; what is measured stands in `bench/`.",
        _table(
            ["what", "ratio or value", "noise", "at most", "met"],
            [[v.what, v.got, v.span, v.target, "yes" if v.met else "**no**"]
             for v in verdicts(results)],
        ),
        "Ratios are of medians, wall time of the whole process; *noise* is the lowest and the"
        " highest ratio that single rounds would give.",
        "## Each step",
        _table(
            ["stage", "command", "wall s", "min-max", "cpu s", "peak MiB", "stored MiB"],
            [_row(step, results) for step in STEPS if results.walls(step.stage, step.tool)],
        ),
        f"The median of {rounds} rounds; in each round the programs take turns, in this order."
        " *cpu* is user and system time of all processes of a step, *peak* the largest resident"
        " set of any one of them, the most of all rounds (40 MiB or less is the bench's own).",
        *(["## Checked afterwards", "\n".join(f"- {line}" for line in results.checks)]
          if results.checks else []),
        "## The disk and the machine",
        "\n".join(f"- {line}" for line in _circumstances(disk, outputs)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _row(step: Step, results: Results) -> list[str]:
    usages = results.usages[step.stage, step.tool]
    walls = [usage.wall for usage in usages]
    size = results.stored.get((step.stage, step.tool))
    return [
        _STAGES[step.stage],
        f"`{step.shown}`",
        f"{statistics.median(walls):.1f}",
        f"{min(walls):.1f}-{max(walls):.1f}",
        f"{statistics.median(usage.cpu for usage in usages):.1f}",
        megabytes(max(usage.peak for usage in usages)),
        megabytes(size) if size else "",
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [heads, *rows]]
    widths = [max(3, *(len(row[n]) for row in cells)) for n in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _circumstances(disk: Disk, outputs: Path) -> list[str]:
    return [
        f"disk: {human_size(disk.size)}, GPT, one ext4 filesystem with {human_size(disk.files)}"
        f" of real files ({human_size(disk.used)} in use by dumpe2fs's count), read from the page"
        " cache, its holes too",
        f"outputs: all on one {_filesystem(outputs)} filesystem; `sync` after each step, outside"
        " of the time that is measured, unless a program does it itself",
        "partclone reads the partition through a loop device, and restores to a new raw file of"
        " the partition (`--restore_raw_file`); restic and freezeframe restore to a new raw file"
        " of the disk; partclone and freezeframe end with their data on stable storage",
        "borg: encrypted with repokey, the faster of its two modes here; the disk on stdin",
        *machine_lines(),
    ]


def machine_lines() -> list[str]:
    """Say what it was measured on, and with which versions."""
    return [
        f"machine: {len(os.sched_getaffinity(0))} cores ({_processor()}),"
        f" {human_size(_memory_size())} of memory, Linux {platform.release()}",
        "versions: " + ", ".join(_versions()),
    ]


def _filesystem(path: Path) -> str:
    return run(["findmnt", "-n", "-o", "FSTYPE", "-T", str(path)]).stdout.decode().strip()


def _memory_size() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1].strip() if match else platform.machine()


def _versions() -> list[str]:
    commands = {
        OURS: [str(FREEZEFRAME), "--version"],
        "partclone": ["partclone.ext4", "-v"],
        "restic": ["restic", "version"],
        "borg": ["borg", "--version"],
        "qemu-img": ["qemu-img", "--version"],
        "zstd": ["zstd", "--version"],
    }
    found = [f"Python {platform.python_version()}"]
    for name, command in commands.items():
        try:
            done = run(command, ok=(0, 1))
        except FreezeframeError:
            continue
        number = re.search(r"\d+(\.\d+)+", (done.stdout + done.stderr).decode(errors="replace"))
        found.append(f"{name} {number[0] if number else '?'}")
    return found


def room_needed(size: int) -> int:
    """Return about how many bytes a bench on a disk of `size` bytes writes at most at a time."""
    return int(size * 2.5) + GIB
