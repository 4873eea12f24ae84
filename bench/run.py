"""Measure freezeframe side by side with its peers, and write docs/benchmarks.md.

Usage: python bench/run.py [--rounds 3] [--size 8] [--only WORD,WORD] [--work DIR]
       [--outputs DIR] [--report FILE]

Words of --only are stages (first, again, restore, index) and programs (partclone, restic,
borg, qemu-img, freezeframe); steps that a chosen one needs are run too. Needs root, for a
loop device. The report is written to docs/benchmarks.md only if everything was run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import index
from disk import make_disk
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GIB, human_size
from measure import StepFailed
from peers import (
    FREEZEFRAME,
    STEPS,
    Bench,
    Step,
    drop,
    environment,
    megabytes,
    one_step,
    ours,
    remove,
)
from report import Results, markdown, room_needed, verdicts

_DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_STAGES = ("first", "again", "restore")
_INDEX = "index"


def main() -> int:
    """Measure, print, write; 0 if all targets are met, 1 if not."""
    options = _options()
    words = set(options.only.split(",")) if options.only else set()
    known = {*_STAGES, _INDEX, *(step.tool for step in STEPS)}
    if words - known:
        print(f"unknown: {', '.join(sorted(words - known))}; known: {', '.join(sorted(known))}")
        return 2
    if not FREEZEFRAME.exists():
        print("freezeframe is not installed beside this Python: run `make setup`")
        return 2
    with tempfile.TemporaryDirectory(dir=options.outputs or options.work, prefix="bench-") as name:
        outputs = Path(name)
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-") as made:
            work = options.work or Path(made)
            size = int(options.size * GIB)
            print(
                f"needs some {human_size(room_needed(size))} of room; making the disk", flush=True
            )
            bench = Bench(make_disk(work / "disk.raw", size), outputs, environment(outputs))
            results = _measure(bench, words, options)
            text = markdown(results, bench.disk, options.rounds, outputs)
    print(f"\n{text}")
    report = options.report or (_DOCS if not words and options.size == 8 else None)
    if report:
        report.parent.mkdir(exist_ok=True)
        report.write_text(text)
    return 0 if all(verdict.met for verdict in verdicts(results)) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure freezeframe side by side with its peers.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is run")
    parser.add_argument("--size", type=float, default=8, help="of the disk, in GiB")
    parser.add_argument("--only", default="", help="stages and programs, with commas between")
    parser.add_argument("--work", type=Path, help="folder where the disk is made, and kept")
    parser.add_argument("--outputs", type=Path, help="folder for all that is written (--work)")
    parser.add_argument("--report", type=Path, help="write the report there in any case")
    parser.add_argument("--chunks", type=int, default=1_000_000, help="of the made-up index")
    return parser.parse_args()


def _measure(bench: Bench, words: set[str], options: argparse.Namespace) -> Results:
    results = Results()
    steps = chosen(words)
    for number in range(options.rounds if steps else 0):
        print(f"round {number + 1} of {options.rounds}", flush=True)
        for step in steps:
            usage, size = one_step(step, bench)
            results.add(step, usage, size)
            if step.proof and number == options.rounds - 1:
                results.checks.append(step.proof(bench))
            drop(step, bench)
            print(
                f"  {step.stage:8} {step.tool:12} {usage.wall:7.1f} s  cpu {usage.cpu:7.1f} s"
                f"  peak {megabytes(usage.peak):>6} MiB  stored {megabytes(size):>6} MiB",
                flush=True,
            )
        for leftover in bench.outputs.iterdir():
            remove(leftover)
    if not words or _INDEX in words:
        _with_large_index(bench, results, options.chunks)
    return results


def chosen(words: set[str]) -> list[Step]:
    """Return the steps that the words of --only mean, and those they stand on, in order."""
    if words == {_INDEX}:
        return []
    tools = {step.tool for step in STEPS}
    tools, stages = words & tools or tools, words.intersection(_STAGES) or set(_STAGES)
    wanted = [step for step in STEPS if step.stage in stages and step.tool in tools]
    based = {step.tool for step in wanted}
    return [
        step for step in STEPS if step in wanted or (step.stage == "first" and step.tool in based)
    ]


def _with_large_index(bench: Bench, results: Results, chunks: int) -> None:
    """Measure a first image into a repository that lists very many chunks already."""
    print(f"making an index of {chunks:,} chunks", flush=True)
    repo = bench.place("large")
    ours(bench, repo, "init")
    index.add_index(repo, chunks, bench.env["FREEZEFRAME_PASSWORD"])
    usage = ours(bench, repo, "backup", "--offline", str(bench.disk.path))
    results.index_chunks, results.index_peak = chunks, usage.peak
    print(f"  {usage.wall:.1f} s  peak {megabytes(usage.peak)} MiB", flush=True)
    remove(repo)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StepFailed, FreezeframeError) as error:
        sys.exit(str(error))
