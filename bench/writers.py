"""Measure how long databases are held for an image, and what an image costs their throughput.

Usage: python bench/writers.py [--runs 20] [--pairs 5] [--only WORD,WORD] [--report FILE]

Words of --only: postgresql, mariadb, redis, sqlite, throughput. Needs root, for loop devices.
Nothing else should run meanwhile. Each database works on ext4 on a loop device of its own
(PostgreSQL's log and MariaDB's binary log on a second one, XFS) under sessions of small durable
transactions, without a rest, and its disks are imaged online by the program, a process of its
own, again and again. Held is what the image says of the window that counted: from asking the
writer to freeze until it has thawed, the freeze of the filesystems in between. The longest
transaction is what an application saw, of all that comes with an image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.app.online import backup_online
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.progress import Silent
from freezeframe.core.units import GIB, MIB
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Writer, WriterKind
from freezeframe.shadow.writers.client import Client
from freezeframe.shadow.writers.mariadb import MariaDBKind
from freezeframe.shadow.writers.postgresql import PostgreSQLKind
from freezeframe.shadow.writers.redis import RedisKind
from freezeframe.shadow.writers.sqlite import SQLite
from freezeframe.testing import databases
from freezeframe.testing.databases import Running, as_postgres, postgres_tool
from freezeframe.testing.frozen import MountedDisk, mounted_disk
from freezeframe.testing.hot import untrack
from freezeframe.testing.inprocess import PASSWORD
from freezeframe.testing.ledger import load
from freezeframe.testing.repositories import local_repository
from peers import FREEZEFRAME

_DOCS = Path(__file__).parent.parent / "docs" / "benchmarks-writers.md"
_HELD = ("postgresql", "mariadb", "redis", "sqlite")
#: What is asked for, in milliseconds, of these.
_LIMITS = {"postgresql": 200.0, "mariadb": 200.0}
_SIZE = 640 * MIB
_PROGRESS = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps")

Load = tuple[Writer, Callable[[], Client], Callable[[int, int], str], list[MountedDisk]]


@dataclass(frozen=True, slots=True)
class Held:
    """One writer's figures, in milliseconds."""

    name: str
    held: list[float]
    longest: list[float]
    rate: float

    @property
    def met(self) -> bool:
        """Whether the median is what was asked for."""
        limit = _LIMITS.get(self.name)
        return limit is None or statistics.median(self.held) <= limit


def main() -> int:
    """Measure, print, write; 0 if all aims are met, 1 if not."""
    options = _options()
    words = set(options.only.split(",")) if options.only else {*_HELD, "throughput"}
    lines = ["# Benchmarks of writers", "", "Made by `bench/writers.py`.", ""]
    held = [_held(name, options.runs) for name in _HELD if name in words]
    if held:
        lines += _table(held)
    if "throughput" in words:
        lines += _throughput(options.pairs)
    text = "\n".join([*lines, ""])
    print(f"\n{text}")
    report = options.report or (_DOCS if words == {*_HELD, "throughput"} else None)
    if report:
        report.write_text(text)
    return 0 if all(each.met for each in held) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure writers.")
    parser.add_argument("--runs", type=int, default=20, help="freezes of each writer")
    parser.add_argument("--pairs", type=int, default=5, help="images under pgbench")
    parser.add_argument("--only", default="", help="stages, with commas between")
    parser.add_argument("--report", type=Path)
    return parser.parse_args()


def _table(held: list[Held]) -> list[str]:
    lines = [
        "| writer | held, median | worst | at most | met | longest transaction, median | worst"
        " | transactions a second |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in held:
        limit = _LIMITS.get(each.name)
        lines.append(
            f"| {each.name} | {statistics.median(each.held):.0f} ms | {max(each.held):.0f} ms |"
            f" {f'{limit:.0f} ms' if limit else ''} |"
            f" {('yes' if each.met else '**no**') if limit else ''} |"
            f" {statistics.median(each.longest):.0f} ms | {max(each.longest):.0f} ms |"
            f" {each.rate:.0f} |"
        )
    return [*lines, ""]


# -- how long each is held --------------------------------------------------------------


def _held(name: str, runs: int) -> Held:
    print(name, flush=True)
    held: list[float] = []
    longest: list[float] = []
    with (
        databases.open_folder() as place,
        _LOADS[name](place) as (writer, session, one, disks),
        # SQLite has one writer at a time, and lets others starve.
        load(session, one, sessions=1 if name == "sqlite" else 3) as ledger,
    ):
        program = _Program(place / "repository")
        program("init")
        begun, before = time.monotonic(), sum(ledger.so_far())
        time.sleep(3)
        rate = (sum(ledger.so_far()) - before) / (time.monotonic() - begun)
        devices = [disk.device for disk in disks]
        try:
            for _ in range(runs):
                time.sleep(1)
                ledger.longest = 0.0
                program("backup", *devices, "--writers", writer.name)
                ledger.wait_for_more(3)
                longest.append(ledger.longest * 1000)
                held.append(program.held(writer.name))
                print(f"  held {held[-1]:.0f} ms, longest {longest[-1]:.0f} ms", flush=True)
        finally:
            untrack(*devices)
    return Held(name, held, longest, rate)


class _Program:
    """The program, as a process of its own, on one repository."""

    def __init__(self, repository: Path) -> None:
        self._env = {
            **os.environ,
            "FREEZEFRAME_REPOSITORY": str(repository),
            "FREEZEFRAME_PASSWORD": PASSWORD,
        }

    def __call__(self, *arguments: str) -> list[dict[str, object]]:
        """Run it; return what it prints in JSON."""
        command = [str(FREEZEFRAME), "--json", *arguments]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def held(self, name: str) -> float:
        """Return how long a writer was held for the latest image, in milliseconds."""
        (image,) = [each for each in self("show", "latest") if each["message_type"] == "image"]
        manifest = json.loads(json.dumps(image["manifest"]))
        (vote,) = [each for each in manifest["shadow"]["writers"] if each["name"] == name]
        return float(vote["freeze_ms"] + vote["held_ms"] + vote["thaw_ms"])


def _writer_of(kind: WriterKind, folder: Path) -> Writer:
    (found,) = [writer for writer in kind.find() if folder in writer.paths()]
    return found


@contextlib.contextmanager
def _disks(place: Path) -> Iterator[list[MountedDisk]]:
    with (
        mounted_disk(place, "ext4", "data", size=_SIZE) as data,
        mounted_disk(place, "xfs", "log", size=_SIZE) as log,
    ):
        yield [data, log]


@contextlib.contextmanager
def _postgresql(place: Path) -> Iterator[Load]:
    with _disks(place) as disks:
        data, wal = disks[0].point / "main", disks[1].point / "wal"
        databases.make_postgres(data, wal)
        with databases.postgres(data, place / "run", end=signal.SIGQUIT) as server:
            databases.psql(server, "CREATE TABLE t (s int, n int)")
            yield (
                _writer_of(PostgreSQLKind(), data),
                lambda: databases.psql_session(server),
                lambda s, n: f"INSERT INTO t VALUES ({s}, {n});",
                disks,
            )


@contextlib.contextmanager
def _mariadb(place: Path) -> Iterator[Load]:
    with _disks(place) as disks:
        data, binlog = disks[0].point / "mysql", disks[1].point / "binlog"
        databases.make_mariadb(data)
        with databases.mariadb(data, place / "run", binlog=binlog, end=signal.SIGKILL) as server:
            databases.sql(
                server, "CREATE DATABASE l; CREATE TABLE l.t (s int, n int) ENGINE=InnoDB;"
            )
            yield (
                _writer_of(MariaDBKind(), data),
                lambda: databases.mariadb_session(server),
                lambda s, n: f"INSERT INTO l.t VALUES ({s}, {n});",
                disks,
            )


@contextlib.contextmanager
def _redis(place: Path) -> Iterator[Load]:
    with mounted_disk(place, "ext4", "data", size=_SIZE) as disk:
        data = disk.point / "redis"
        with databases.redis(data, place / "run", end=signal.SIGKILL) as server:
            yield (
                _writer_of(RedisKind(), data),
                lambda: databases.redis_session(server),
                lambda s, n: f"RPUSH list:{s} {n}",
                [disk],
            )


@contextlib.contextmanager
def _sqlite(place: Path) -> Iterator[Load]:
    program = (
        "import sqlite3, sys\n"
        "d = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n"
        "for line in sys.stdin:\n"
        "    print(line[4:], end='', flush=True) if line.startswith('say ') else d.execute(line)\n"
    )
    with mounted_disk(place, "ext4", "data", size=_SIZE) as disk:
        path = disk.point / "app.db"

        def session() -> Client:
            return Client(
                (sys.executable, "-c", program, str(path)),
                ending=lambda word: f"say {word}",
                failure=lambda text: text.strip(),
            )

        with session() as first:
            for line in ("PRAGMA journal_mode = WAL", "CREATE TABLE t (s, n)"):
                first.ask(line, Deadline.after(60))
            yield SQLite(path), session, lambda s, n: f"INSERT INTO t VALUES ({s}, {n})", [disk]


_LOADS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Load]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "redis": _redis,
    "sqlite": _sqlite,
}


# -- pgbench before, during and after an image --------------------------------------------


def _throughput(pairs: int) -> list[str]:
    print("throughput", flush=True)
    rows = []
    with (
        databases.open_folder() as place,
        mounted_disk(place, "ext4", "data", size=2 * GIB) as disk,
    ):
        data = disk.point / "main"
        databases.make_postgres(data)
        try:
            with databases.postgres(data, place / "run", end=signal.SIGQUIT) as server:
                as_postgres(postgres_tool("pgbench"), "-i", "-q", "-s", "20", *_address(server))
                repository = local_repository(place / "repository")
                with _pgbench(server) as tps:
                    for number in range(pairs):
                        rows.append(_one_image(tps, lambda: backup_online(
                            repository, [disk.device], Silent())))  # fmt: skip
                        before, during, after, seconds = rows[-1]
                        print(
                            f"  image {number + 1}: {before:.0f}, {during:.0f}, {after:.0f} tps,"
                            f" {seconds:.1f} s",
                            flush=True,
                        )
        finally:
            untrack(disk.device)
    during = statistics.median(each[1] / each[0] for each in rows)
    after = statistics.median(each[2] / each[0] for each in rows)
    return [
        f"pgbench (scale 20, 2 clients) on the disk that is imaged hot, {pairs} images, each"
        f" against the 10 s before it: {during:.2f} of its throughput during the image (median;"
        f" {min(each[1] / each[0] for each in rows):.2f} to"
        f" {max(each[1] / each[0] for each in rows):.2f}), {after:.2f} in the 10 s after it.",
        "",
    ]


def _one_image(
    tps: Callable[[float, float], float], image: Callable[[], object]
) -> tuple[float, float, float, float]:
    start = time.time()
    time.sleep(10)
    begun = time.time()
    image()
    ended = time.time()
    time.sleep(11)
    return tps(start, begun), tps(begun, ended), tps(ended, ended + 10), ended - begun


def _address(server: Running) -> tuple[str, ...]:
    return ("-h", str(server.socket), "-p", "5499", "postgres")


@contextlib.contextmanager
def _pgbench(server: Running) -> Iterator[Callable[[float, float], float]]:
    """Run it; gives a function that returns the transactions a second between two moments."""
    path = server.socket / "pgbench"
    with path.open("wb") as log, subprocess.Popen(
        ["runuser", "-u", "postgres", "--", postgres_tool("pgbench"), "-n", "-c", "2", "-T", "3600",
         "-P", "1", "--progress-timestamp", *_address(server)],
        stdout=log, stderr=log, cwd="/",
    ) as process:  # fmt: skip

        def tps(start: float, stop: float) -> float:
            found = [(float(at), float(rate)) for at, rate in _PROGRESS.findall(path.read_text())]
            # Each line is of the second that ends there.
            within = [rate for at, rate in found if start + 1 <= at <= stop + 1]
            return statistics.mean(within or [0.0])

        try:
            yield tps
        finally:
            process.terminate()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FreezeframeError as error:
        sys.exit(str(error))
