"""Measure reading images against qemu-nbd and restic mount, and write docs/benchmarks-access.md.

Usage: python bench/access.py [--rounds 3] [--size 2] [--reads 20000] [--only WORD,WORD]
       [--work DIR] [--report FILE]

Words of --only: sequential, random, and programs (mount, nbd, qemu-nbd, restic). The disk and
its images are in the page cache, as in bench/run.py; what programs and the kernel keep of what
they have opened is dropped before each step. Needs root. The report is written to
docs/benchmarks-access.md only if everything was run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk import Disk, make_disk
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GIB, MIB, human_size
from measure import StepFailed, warm
from peers import FREEZEFRAME, environment
from report import machine_lines

_DOCS = Path(__file__).parent.parent / "docs" / "benchmarks-access.md"
_BLOCK = 4096
_STEP = MIB
#: What is measured, the peer, and how many times its speed ours must be.
_TARGETS = (
    ("sequential", "mount", "qemu-nbd", 1.0),
    ("sequential", "mount", "restic", 2.0),
    ("random", "mount", "qemu-nbd", 0.7),
)
_SHOWN = {
    "mount": "`freezeframe mount`, read from the file",
    "nbd": "`freezeframe serve-nbd`, read by libnbd",
    "qemu-nbd": "`qemu-nbd` on qcow2 (zstd), read by libnbd",
    "restic": "`restic mount` of the same repository, `cat data`",
}


@dataclass(slots=True)
class Results:
    """Rates by (stage, tool), one a round: MiB a second, or reads a second."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What is read, and where its copies are."""

    disk: Disk
    outputs: Path
    env: dict[str, str]
    reads: int

    @property
    def repo(self) -> Path:
        return self.outputs / "repo"

    @property
    def qcow2(self) -> Path:
        return self.outputs / "disk.qcow2"


def main() -> int:
    """Measure, print, write; 0 if all targets are met, 1 if not."""
    options = _options()
    words = set(options.only.split(",")) if options.only else set()
    with (
        tempfile.TemporaryDirectory(dir=options.work, prefix="bench-") as name,
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-") as made,
    ):
        outputs = Path(name)
        disk = make_disk((options.work or Path(made)) / "access.raw", int(options.size * GIB))
        world = World(disk, outputs, environment(outputs), options.reads)
        _prepare(world)
        results = _measure(world, words, options.rounds)
        text = _markdown(world, results, options.rounds)
    print(f"\n{text}")
    report = options.report or (_DOCS if not words and options.size == 2 else None)
    if report:
        report.write_text(text)
    return 0 if all(met for *_, met in _verdicts(results)) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure reading images.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=2, help="of the disk, in GiB")
    parser.add_argument(
        "--reads", type=int, default=20_000, help="random reads of 4 KiB, each time"
    )
    parser.add_argument("--only", default="", help="stages and programs, with commas between")
    parser.add_argument("--work", type=Path, help="folder where the disk is made, and kept")
    parser.add_argument("--report", type=Path)
    return parser.parse_args()


def _prepare(world: World) -> None:
    """Make the repository and the qcow2 file."""
    print("making a repository and a qcow2 file", flush=True)
    for arguments in (("init",), ("backup", "--offline", str(world.disk.path))):
        _check(world, str(FREEZEFRAME), "-r", str(world.repo), *arguments)
    _check(
        world, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
        "compression_type=zstd", str(world.disk.path), str(world.qcow2),
    )  # fmt: skip


def _check(world: World, *command: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, **world.env}, capture_output=True, check=False
    )
    if done.returncode:
        raise StepFailed(f"{' '.join(command)}: {done.stdout.decode()}{done.stderr.decode()}")


# -- the programs -----------------------------------------------------------------------


@contextlib.contextmanager
def _started(world: World, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, env={**os.environ, **world.env}, stdout=errors, stderr=errors
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@contextlib.contextmanager
def _mount(world: World) -> Iterator[tuple[int, Path]]:
    folder = world.outputs / "mount"
    folder.mkdir(exist_ok=True)
    command = (str(FREEZEFRAME), "-r", str(world.repo), "mount", "--no-files", "latest")
    with _started(world, *command, str(folder)) as process:
        raw = folder / world.disk.path.name / "disk.img"
        _wait_for(raw, process)
        yield process.pid, raw


@contextlib.contextmanager
def _served(world: World, *command: str) -> Iterator[tuple[int, str]]:
    socket = world.outputs / "nbd.sock"
    with _started(world, *command, str(socket)) as process:
        _wait_for(socket, process)
        yield process.pid, f"nbd+unix:///?socket={socket}"
    socket.unlink(missing_ok=True)


def _nbd(world: World) -> contextlib.AbstractContextManager[tuple[int, str]]:
    program = (str(FREEZEFRAME), "-r", str(world.repo), "serve-nbd", "latest", "--socket")
    return _served(world, *program)


def _qemu_nbd(world: World) -> contextlib.AbstractContextManager[tuple[int, str]]:
    return _served(
        world, "qemu-nbd", "--read-only", "--persistent", "--shared=8", "--format=qcow2",
        str(world.qcow2), "--socket",
    )  # fmt: skip


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise StepFailed(f"{process.args} did not get ready")
        time.sleep(0.02)
    time.sleep(0.2)


# -- what is measured -------------------------------------------------------------------


def _read_file(path: Path) -> int:
    """Read a file to its end in steps of 1 MiB, as dd and cat do; return its bytes."""
    buffer = bytearray(_STEP)
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done


def _sequential_mount(world: World) -> tuple[float, int]:
    with _mount(world) as (pid, raw):
        begun = time.perf_counter()
        size = _read_file(raw)
        return size / MIB / (time.perf_counter() - begun), _peak(pid)


def _sequential_nbd(
    world: World, serve: Callable[[World], contextlib.AbstractContextManager[tuple[int, str]]]
) -> tuple[float, int]:
    with serve(world) as (pid, uri):
        begun = time.perf_counter()
        # No holes asked for: every byte is read, as a file's reader does.
        _check(world, "nbdcopy", "--no-extents", uri, "null:")
        return world.disk.size / MIB / (time.perf_counter() - begun), _peak(pid)


def _sequential_restic(world: World) -> tuple[float, int]:
    folder = world.outputs / "restic"
    folder.mkdir(exist_ok=True)
    command = ("restic", "--no-lock", "--no-cache", "-r", str(world.repo), "mount", str(folder))
    with _started(world, *command) as process:
        _wait_for(folder / "snapshots", process)
        segments = sorted((folder / "snapshots" / "latest" / "disks").glob("*/*/data"))
        begun = time.perf_counter()
        size = sum(map(_read_file, segments))
        seconds, peak = time.perf_counter() - begun, _peak(process.pid)
    return size / MIB / seconds, peak


def _offsets(world: World) -> list[int]:
    """Choose blocks anywhere on the disk where the file has data, always the same ones."""
    chosen = random.Random(7)
    extents = []
    with world.disk.path.open("rb") as file:
        offset = 0
        while offset < world.disk.size:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            extents.append((start, offset - start))
    sizes = [size for _, size in extents]
    return [
        (start + chosen.randrange(max(1, size // _BLOCK)) * _BLOCK)
        for start, size in chosen.choices(extents, sizes, k=world.reads)
    ]


def _random_mount(world: World) -> tuple[float, int]:
    offsets = _offsets(world)
    with _mount(world) as (pid, raw), raw.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        begun = time.perf_counter()
        for offset in offsets:
            os.pread(file.fileno(), _BLOCK, offset)
        return len(offsets) / (time.perf_counter() - begun), _peak(pid)


_NBD_READER = """
import json, sys, time, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
offsets = json.load(sys.stdin)
begun = time.perf_counter()
for offset in offsets:
    handle.pread(4096, offset)
print(len(offsets) / (time.perf_counter() - begun))
"""


def _random_nbd(
    world: World, serve: Callable[[World], contextlib.AbstractContextManager[tuple[int, str]]]
) -> tuple[float, int]:
    offsets = json.dumps(_offsets(world)).encode()
    with serve(world) as (pid, uri):
        # Debian's own Python has libnbd's module; one request at a time, as pread has.
        line = ["/usr/bin/python3", "-c", _NBD_READER, uri]
        done = subprocess.run(line, input=offsets, capture_output=True, check=False)
        if done.returncode:
            raise StepFailed(done.stderr.decode())
        return float(done.stdout), _peak(pid)


def _peak(pid: int) -> int:
    """Return the most memory a process has had resident, in bytes."""
    status = Path("/proc", str(pid), "status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


_STEPS: dict[tuple[str, str], Callable[[World], tuple[float, int]]] = {
    ("sequential", "mount"): _sequential_mount,
    ("sequential", "nbd"): lambda world: _sequential_nbd(world, _nbd),
    ("sequential", "qemu-nbd"): lambda world: _sequential_nbd(world, _qemu_nbd),
    ("sequential", "restic"): _sequential_restic,
    ("random", "mount"): _random_mount,
    ("random", "nbd"): lambda world: _random_nbd(world, _nbd),
    ("random", "qemu-nbd"): lambda world: _random_nbd(world, _qemu_nbd),
}


def _measure(world: World, words: set[str], rounds: int) -> Results:
    stages = words & {stage for stage, _ in _STEPS} or {stage for stage, _ in _STEPS}
    tools = words & {tool for _, tool in _STEPS} or {tool for _, tool in _STEPS}
    results = Results()
    for path in (*world.repo.rglob("*"), world.qcow2):
        if path.is_file():
            warm(path, path)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for (stage, tool), step in _STEPS.items():
            if stage not in stages or tool not in tools:
                continue
            rate, peak = step(world)
            results.rates.setdefault((stage, tool), []).append(rate)
            results.peaks[stage, tool] = max(peak, results.peaks.get((stage, tool), 0))
            unit = "MiB/s" if stage == "sequential" else "reads/s"
            print(
                f"  {stage:10} {tool:9} {rate:10,.0f} {unit}  peak {human_size(peak)}", flush=True
            )
    return results


# -- the report -------------------------------------------------------------------------


def _verdicts(results: Results) -> Iterator[tuple[str, float, float, bool]]:
    for stage, ours, peer, least in _TARGETS:
        if (stage, ours) in results.rates and (stage, peer) in results.rates:
            mine, theirs = (statistics.median(results.rates[stage, t]) for t in (ours, peer))
            yield (
                f"{stage} reads, speed / {_NAMES[peer]}",
                mine / theirs,
                least,
                mine / theirs >= least,
            )


_NAMES = {"qemu-nbd": "qemu-nbd", "restic": "restic mount"}


def _markdown(world: World, results: Results, rounds: int) -> str:
    lines = [
        "# Benchmarks: reading images",
        "",
        "Made by `python bench/access.py`.",
        "",
        "| what | ratio | at least | met |",
        "| --- | --- | --- | --- |",
    ]
    for what, got, least, met in _verdicts(results):
        lines.append(f"| {what} | {got:.2f} | {least:.1f} | {'yes' if met else '**no**'} |")
    lines += [
        "",
        "| stage | how | rate (median) | min-max | peak MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (stage, tool), rates in results.rates.items():
        unit = "MiB/s" if stage == "sequential" else "reads/s"
        peak = results.peaks[stage, tool] // MIB
        lines.append(
            f"| {stage} | {_SHOWN[tool]} | {statistics.median(rates):,.0f} {unit} |"
            f" {min(rates):,.0f}-{max(rates):,.0f} | {peak} |"
        )
    lines += [
        "",
        f"{rounds} rounds, in each the programs take turns. The disk is of"
        f" {human_size(world.disk.size)} with {human_size(world.disk.files)} of real files in ext4;"
        " all of it is read, holes too."
        f" Random: {world.reads:,} reads of 4 KiB of what is not a hole, one at a time, the same"
        " places for all, with nothing kept from before. A mount has the page cache above it and an"
        " NBD client has none: the first reads of a mount are its slowest, and later ones far"
        " faster. Repository and qcow2 file are in the page cache.",
        "",
        *(f"- {line}" for line in machine_lines()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StepFailed, FreezeframeError) as error:
        sys.exit(str(error))
