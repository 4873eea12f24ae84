"""Measure online images: the pause, what applications feel, and increments against restic.

Usage: python bench/hot.py [--rounds 3] [--images 20] [--size 8] [--only WORD,WORD]
       [--work DIR] [--report FILE]

Words of --only: pause, first, runs, pieces. Needs root, for loop devices. Nothing else should
run meanwhile. The report is written to docs/benchmarks-hot.md only if everything was run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk import make_disk
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GIB, KIB, MIB, human_size
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.tracking import ensure_mounts
from freezeframe.testing.volumes import mounted_device
from measure import StepFailed, measure, warm
from peers import FREEZEFRAME, environment, remove

_DOCS = Path(__file__).parent.parent / "docs" / "benchmarks-hot.md"
_STAGES = ("pause", "first", "runs", "pieces")
#: The writer of the pause: 4 KiB writes a second, and an fdatasync every so many.
_RATE, _EVERY = 4000, 32
_PAUSE_DISK = 2 * GIB
_PAUSE_FILE = 512 * MIB


@dataclass(slots=True)
class Row:
    """One line of the report."""

    what: str
    value: str
    at_most: str
    met: bool | None
    detail: str = ""


@dataclass(slots=True)
class Bench:
    """Where it happens, and what came out."""

    work: Path
    env: dict[str, str]
    rounds: int
    images: int
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, value: float, limit: float, *, least: bool = False, unit: str = "",
            detail: str = "") -> None:  # fmt: skip
        """Note a figure and whether it meets what was asked for."""
        met = value >= limit if least else value <= limit
        sign = "at least " if least else ""
        self.rows.append(Row(what, f"{value:.3g}{unit}", f"{sign}{limit:g}{unit}", met, detail))
        print(
            f"  {what}: {value:.3g}{unit} ({sign or 'at most '}{limit:g}{unit}) {detail}",
            flush=True,
        )


def main() -> int:
    """Measure, print, write; 0 if all aims are met, 1 if not."""
    options = _options()
    words = set(options.only.split(",")) if options.only else set(_STAGES)
    if words - set(_STAGES):
        print(f"known: {', '.join(_STAGES)}")
        return 2
    ensure_mounts()
    with tempfile.TemporaryDirectory(dir=options.work or "/var/tmp", prefix="hot-") as name:
        work = Path(name)
        bench = Bench(work, environment(work), options.rounds, options.images)
        if "pause" in words:
            _pause(bench)
        if words & {"first", "runs", "pieces"}:
            _increments(bench, int(options.size * GIB), words, options.disk)
    text = _markdown(bench)
    print(f"\n{text}")
    report = options.report or (_DOCS if words == set(_STAGES) and options.size == 8 else None)
    if report:
        report.write_text(text)
    return 0 if all(row.met is not False for row in bench.rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure online images.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20, help="for the pause")
    parser.add_argument("--size", type=float, default=8, help="of the disk, in GiB")
    parser.add_argument("--only", default="", help="stages, with commas between")
    parser.add_argument("--work", type=Path, help="folder for everything that is written")
    parser.add_argument("--disk", type=Path, help="a disk of bench/run.py's, to be copied")
    parser.add_argument("--report", type=Path)
    return parser.parse_args()


# -- the program ------------------------------------------------------------------------


def _ours(bench: Bench, repo: str, *arguments: str) -> tuple[float, dict[str, object]]:
    """Run freezeframe; return the wall time and the summary of a backup."""
    out = bench.work / "out.json"
    out.unlink(missing_ok=True)
    try:
        usage = measure(
            [str(FREEZEFRAME), "--json", "-r", str(bench.work / repo), *arguments],
            env=bench.env,
            cwd=bench.work,
            stdout=out,
        )
    except StepFailed as error:
        # What went wrong is in the stream of objects.
        raise StepFailed(f"{error}\n{out.read_text()[-2000:]}") from error
    summary: dict[str, object] = {}
    for line in out.read_text().splitlines():
        record = json.loads(line)
        if record["message_type"] == "summary":
            summary = record
    return usage.wall, summary


def _restic(bench: Bench, *arguments: str, stdin: Path | None = None) -> float:
    command = ["restic", "-q", "-r", str(bench.work / "restic"), *arguments]
    return measure(command, env=bench.env, cwd=bench.work, stdin=stdin).wall


def _hot(summary: dict[str, object]) -> dict[str, object]:
    found = summary["hot"]
    assert isinstance(found, dict)
    return found


# -- the pause ----------------------------------------------------------------------------


@contextlib.contextmanager
def _writer(path: Path, rate: float) -> Iterator[Callable[[], dict[str, float]]]:
    """Run the writer; gives a function that returns what happened since it was last called."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("writer.py")), str(path), str(rate),
         str(_EVERY), "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask() -> dict[str, float]:
        stdin.write("\n")
        stdin.flush()
        answer: dict[str, float] = json.loads(stdout.readline())
        return answer

    try:
        yield ask
    finally:
        stdin.close()
        process.wait(30)


def _pause(bench: Bench) -> None:
    print("pause", flush=True)
    raw = bench.work / "pause.raw"
    with raw.open("xb") as file:
        file.truncate(_PAUSE_DISK)
    pauses: list[float] = []
    stalls: list[float] = []
    ratios: list[float] = []
    refused = 0
    with (
        attached(raw) as device,
        tempfile.TemporaryDirectory(dir=bench.work) as folder,
    ):
        run(["mkfs.ext4", "-q", device])
        with mounted_device(device, "ext4", Path(folder), read_only=False):
            path = Path(folder) / "data"
            chosen = random.Random(1)
            with path.open("wb") as file:
                for _ in range(_PAUSE_FILE // MIB):
                    file.write(chosen.randbytes(MIB // 2) + bytes(MIB // 2))
            os.sync()
            _ours(bench, "pause", "init")
            with _writer(path, _RATE) as ask:
                _sleep(2)
                for number in range(bench.images):
                    ask()
                    _sleep(3)
                    before = ask()
                    try:
                        _, summary = _ours(bench, "pause", "backup", "--online", device)
                    except StepFailed as error:
                        # Some kernels leave writes out (docs/hot-processing.md): no image.
                        if "left no mark" not in str(error):
                            raise
                        refused += 1
                        print(f"  image {number + 1}: refused, a write left no mark", flush=True)
                        continue
                    during = ask()
                    pauses.append(float(str(_hot(summary)["pause_ms"])))
                    stalls.append(during["longest_ms"])
                    rate = [each["writes"] / each["seconds"] for each in (before, during)]
                    ratios.append(rate[1] / rate[0])
                    print(
                        f"  image {number + 1}: pause {pauses[-1]:.0f} ms, writer's stall"
                        f" {stalls[-1]:.0f} ms (before {before['longest_ms']:.0f}),"
                        f" writes {ratios[-1]:.2f}",
                        flush=True,
                    )
            run([str(FREEZEFRAME), "track", "stop", device])
    remove(bench.work / "pause")
    raw.unlink()
    load = f"{_RATE} writes of 4 KiB a second, fdatasync every {_EVERY}, {bench.images} images"
    ordered = sorted(pauses)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    bench.add("pause, 95th percentile", p95, 100, unit=" ms", detail=load)
    bench.add("pause, median", statistics.median(pauses), 50, unit=" ms")
    stall = f"{statistics.median(stalls):.0f} ms (median), {max(stalls):.0f} ms (longest)"
    refusals = f"{refused} of {bench.images}"
    bench.rows.append(Row("images refused, for the kernel left out a write", refusals, "", None))
    bench.rows.append(Row("the writer's own longest stall during an image", stall, "", None))
    bench.add(
        "the writer's throughput during the image / before", statistics.median(ratios), 0.8,
        least=True, detail=f"{min(ratios):.2f}-{max(ratios):.2f}",
    )  # fmt: skip


def _sleep(seconds: float) -> None:
    run(["sleep", str(seconds)])


# -- first images and increments ------------------------------------------------------------


def _increments(bench: Bench, size: int, words: set[str], kept: Path | None) -> None:
    raw = bench.work / "disk.raw"
    if kept is not None:
        run(["cp", "--sparse=always", str(kept), str(raw)])
        run(["cp", str(kept.with_suffix(".files")), str(raw.with_suffix(".files"))])
    make_disk(raw, size)
    with (
        attached(raw) as device,
        tempfile.TemporaryDirectory(dir=bench.work) as folder,
    ):
        run(["partx", "-a", device])
        try:
            part = f"{device}p1"
            with mounted_device(part, "ext4", Path(folder), read_only=False):
                data = _hot_file(Path(folder), size)
                if "first" in words:
                    _first(bench, device, raw, Path(folder), part)
                for word in ("runs", "pieces"):
                    if word in words:
                        _changed(bench, word, device, raw, data, size)
        finally:
            run([str(FREEZEFRAME), "track", "stop", device])
            run(["partx", "-d", device])


def _hot_file(folder: Path, size: int) -> Path:
    """Make a file of an eighth of the disk that is changed in place."""
    path = folder / "hot-data"
    chosen = random.Random(2)
    with path.open("wb") as file:
        for _ in range(size // 8 // MIB):
            half = MIB // 2
            file.write(chosen.randbytes(half) + bytes(64 * KIB) + chosen.randbytes(half - 64 * KIB))
    os.sync()
    return path


def _first(bench: Bench, device: str, raw: Path, folder: Path, part: str) -> None:
    """Compare a first online image of a quiet mounted disk with an offline one."""
    print("first", flush=True)
    online: list[float] = []
    offline: list[float] = []
    for _ in range(bench.rounds):
        warm(raw, raw)
        run([str(FREEZEFRAME), "track", "stop", device])
        _ours(bench, "online", "init")
        online.append(_ours(bench, "online", "backup", "--online", device)[0])
        remove(bench.work / "online")
        run(["mount", "-o", "remount,ro", str(folder)])
        try:
            warm(raw, raw)
            _ours(bench, "offline", "init")
            offline.append(_ours(bench, "offline", "backup", "--offline", device)[0])
        finally:
            run(["mount", "-o", "remount,rw", str(folder)])
        remove(bench.work / "offline")
        print(f"  online {online[-1]:.1f} s, offline {offline[-1]:.1f} s", flush=True)
    del part
    ratio = statistics.median(online) / statistics.median(offline)
    bench.add(
        "first online image of a quiet disk / offline image, time", ratio, 1.15,
        detail=f"{statistics.median(online):.1f} s / {statistics.median(offline):.1f} s",
    )  # fmt: skip


def _changed(bench: Bench, word: str, device: str, raw: Path, data: Path, size: int) -> None:
    """Change 1 % of the disk, image it, and let restic back it up again."""
    print(word, flush=True)
    piece = 4 * MIB if word == "runs" else 64 * KIB
    count = size // 100 // piece
    _ours(bench, "ours", "init")
    _ours(bench, "ours", "backup", "--online", device)
    os.sync()
    _restic(bench, "init", "--repository-version", "2")
    _restic(bench, "backup", "--stdin", "--stdin-filename", "disk", stdin=raw)
    ours: list[float] = []
    theirs: list[float] = []
    detail = ""
    chosen = random.Random(3)
    for _ in range(bench.rounds):
        places = chosen.sample(range(data.stat().st_size // piece), count)
        with data.open("r+b") as file:
            for place in places:
                file.seek(place * piece)
                file.write(chosen.randbytes(piece))
        os.sync()
        warm(raw, raw)
        wall, summary = _ours(bench, "ours", "backup", "--online", device)
        ours.append(wall)
        os.sync()
        before = _stored(bench.work / "restic")
        theirs.append(_restic(bench, "backup", "--stdin", "--stdin-filename", "disk", stdin=raw))
        grown = _stored(bench.work / "restic") - before
        proof = summary["proof"]
        assert isinstance(proof, dict)
        chunks = len({place * piece // MIB for place in places}) * max(piece, MIB)
        read, stored = int(proof["bytes_read"]), int(proof["bytes_stored"])
        detail = (
            f"read {human_size(read)}, {read / chunks:.2f} of the chunks concerned; stored"
            f" {human_size(stored)} for {human_size(count * piece)} changed, restic"
            f" {human_size(grown)}"
        )
        print(f"  ours {ours[-1]:.2f} s, restic {theirs[-1]:.1f} s; {detail}", flush=True)
        if read > 1.3 * chunks:
            bench.rows.append(
                Row(f"{word}: read / chunks concerned", f"{read / chunks:.2f}", "1.3", False)
            )
    limit = 0.05 if word == "runs" else 0.20
    ratio = statistics.median(ours) / statistics.median(theirs)
    shape = "runs of 4 MiB" if word == "runs" else "random pieces of 64 KiB"
    bench.add(
        f"1 % changed in {shape}, time / restic", ratio, limit,
        detail=f"{statistics.median(ours):.2f} s / {statistics.median(theirs):.1f} s; {detail}",
    )  # fmt: skip
    check = ["restic", "-q", "-r", str(bench.work / "ours"), "check"]
    measure(check, env=bench.env, cwd=bench.work)
    remove(bench.work / "restic")
    remove(bench.work / "ours")


def _stored(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _markdown(bench: Bench) -> str:
    lines = [
        "# Benchmarks of online images",
        "",
        "Made by `make bench`; what is measured stands in `bench/hot.py`.",
        "",
        "| what | value | asked for | met | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in bench.rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.value} | {row.at_most} | {met} | {row.detail} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StepFailed, FreezeframeError) as error:
        sys.exit(str(error))
