"""What databases acknowledged before the freeze is in the image, and nothing is torn.

Real servers under load on filesystems of their own, which are imaged and restored; the server
is started on what came back, runs its own checks, and is compared with the ledger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow import journal
from freezeframe.shadow.coordinator import Coordinator
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterResult
from freezeframe.shadow.writers.mariadb import MariaDBKind
from freezeframe.shadow.writers.postgresql import PostgreSQLKind
from freezeframe.shadow.writers.redis import RedisKind
from freezeframe.system.run import run
from freezeframe.testing import databases
from freezeframe.testing.databases import (
    Running,
    as_postgres,
    open_folder,
    postgres_tool,
    psql,
    sql,
)
from freezeframe.testing.frozen import mounted_disk
from freezeframe.testing.hot import untrack
from freezeframe.testing.inprocess import PASSWORD, Program
from freezeframe.testing.ledger import Ledger, load
from freezeframe.testing.moment import Moment, seen_again, take_apart
from freezeframe.testing.tracking import ensure_mounts

pytestmark = pytest.mark.root


@pytest.fixture
def place() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def rows(lines: list[str], separator: str) -> dict[int, list[int]]:
    """Read lines of session and number, in the order of numbers."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in lines:
        session, number = line.split(separator)
        found[int(session)].append(int(number))
    return found


@dataclass
class Loaded:
    """A database at work, its ledger, and how a restored one is compared with that."""

    kind: WriterKind
    folder: Path
    ledger: Ledger
    #: Takes what was acknowledged before the freeze, and the writer's facts; returns how many
    #: transactions are in the image.
    check: Callable[[list[int], Mapping[str, str]], int]

    @property
    def writer(self) -> Writer:
        (found,) = [each for each in self.kind.find() if self.folder in each.paths()]
        return found


# -- PostgreSQL: data on one volume, log on another ---------------------------------------------


@contextlib.contextmanager
def pgbench(server: Running) -> Iterator[None]:
    connection = ("-h", str(server.socket), "-p", "5499", "postgres")
    as_postgres(postgres_tool("pgbench"), "-i", "-q", "-s", "1", *connection)
    with (
        (server.socket / "pgbench").open("wb") as log,
        subprocess.Popen(
            ["runuser", "-u", "postgres", "--", postgres_tool("pgbench"), "-n", "-c", "2",
             "-T", "600", *connection],
            stdout=log,
            stderr=log,
            cwd="/",
        ) as process,
    ):  # fmt: skip
        try:
            yield
            assert process.poll() is None, (server.socket / "pgbench").read_text()
        finally:
            process.terminate()


@contextlib.contextmanager
def loaded_postgres(run_folder: Path, data: Path, wal: Path) -> Iterator[Loaded]:
    """A cluster under pgbench and our own load."""
    databases.make_postgres(data, wal)
    with (
        databases.postgres(data, run_folder, end=signal.SIGQUIT) as server,
        pgbench(server),
    ):
        psql(server, "CREATE TABLE one (s int, n int); CREATE TABLE two (s int, n int)")
        with load(
            lambda: databases.psql_session(server),
            lambda s, n: (
                f"BEGIN; INSERT INTO one VALUES ({s}, {n});"
                f" INSERT INTO two VALUES ({s}, {n}); COMMIT;"
            ),
        ) as ledger:
            yield Loaded(
                PostgreSQLKind(),
                data,
                ledger,
                lambda before, facts: check_postgres(run_folder, data, ledger, before, facts),
            )


def check_postgres(
    run_folder: Path, data: Path, ledger: Ledger, before: list[int], facts: Mapping[str, str]
) -> int:
    """Start the restored server; compare with the ledger, and run its own checks."""
    with databases.postgres(data, run_folder) as server:
        # What was noted in the moment is an end that the restored log reaches.
        position = facts["wal_position"]
        reached = f"SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '{position}') >= 0"
        assert psql(server, reached) == "t"
        count = 0
        for table in ("one", "two"):
            found = psql(server, f"SELECT s, n FROM {table} ORDER BY n").splitlines()
            count = ledger.check(rows(found, "|"), before, name=table)
        sums = psql(
            server,
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM"
            " pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        ).split("|")
        assert len(set(sums)) == 1, sums
        amcheck = (postgres_tool("pg_amcheck"), "--install-missing", "--heapallindexed")
        as_postgres(*amcheck, "-h", str(server.socket), "-p", "5499", "-d", "postgres")
    as_postgres(postgres_tool("pg_checksums"), "--check", "-D", str(data))
    return count


def test_postgresql_of_different_moments(place: Path) -> None:
    """Each disk at a moment of its own: backup mode, and its pieces make it whole."""
    with (
        mounted_disk(place, "ext4", "data") as data,
        mounted_disk(place, "xfs", "wal") as wal,
        loaded_postgres(place / "run", data.point / "main", wal.point / "wal") as loaded,
    ):
        before = loaded.ledger.so_far()
        moment = take_apart([loaded.writer], [data, wal], place, 0.5)
        loaded.ledger.wait_for_more()
    (result,) = moment.results.values()
    assert result.consistency == "application"
    with seen_again(moment):
        lay_pieces(result, loaded.folder)
        assert loaded.check(before, result.facts) > sum(before)


def lay_pieces(result: WriterResult, data: Path) -> None:
    """Do what the result's note says has to be done before the start."""
    assert "backup_label" in result.pieces
    for name, content in result.pieces.items():
        log = name.removeprefix("pg_wal-")
        target = data / "pg_wal" / log if log != name else data / name
        target.write_bytes(content)
        owner = data.stat()
        os.chown(target, owner.st_uid, owner.st_gid)


# -- MariaDB ------------------------------------------------------------------------------------


@contextlib.contextmanager
def loaded_mariadb(run_folder: Path, data: Path, binlog: Path) -> Iterator[Loaded]:
    """A server that does not flush at each commit, and has a table without transactions."""
    databases.make_mariadb(data)
    with databases.mariadb(
        data, run_folder, "--innodb-flush-log-at-trx-commit=2", binlog=binlog, end=signal.SIGKILL
    ) as server:
        sql(
            server,
            "CREATE DATABASE l; CREATE TABLE l.one (s int, n int, KEY (s, n)) ENGINE=InnoDB;"
            "CREATE TABLE l.two (s int, n int, KEY (s, n)) ENGINE=InnoDB;"
            "CREATE TABLE l.old (s int, n int, KEY (s, n)) ENGINE=MyISAM;",
        )
        with load(
            lambda: databases.mariadb_session(server),
            lambda s, n: (
                f"INSERT INTO l.old VALUES ({s}, {n}); BEGIN; INSERT INTO l.one VALUES"
                f" ({s}, {n}); INSERT INTO l.two VALUES ({s}, {n}); COMMIT;"
            ),
        ) as ledger:
            yield Loaded(
                MariaDBKind(),
                data,
                ledger,
                lambda before, facts: check_mariadb(
                    run_folder, data, binlog, ledger, before, facts
                ),
            )


def check_mariadb(
    run_folder: Path,
    data: Path,
    binlog: Path,
    ledger: Ledger,
    before: list[int],
    facts: Mapping[str, str],
) -> int:
    # What the position names is where the log ends: nothing was committed past it.
    end = (binlog / facts["binlog_file"]).stat().st_size
    assert end == int(facts["binlog_position"])
    count = 0
    with databases.mariadb(data, run_folder, binlog=binlog) as server:
        for table in ("one", "two"):
            found = sql(server, f"SELECT s, n FROM l.{table} ORDER BY n;")
            count = ledger.check(rows(found, "\t"), before, name=table)
        old = rows(sql(server, "SELECT s, n FROM l.old ORDER BY n;"), "\t")
        for session, numbers in old.items():
            # Its row is written before the transaction: one more may be there.
            assert numbers == list(range(1, len(numbers) + 1))
            assert before[session] <= len(numbers)
        check = ("mariadb-check", "--no-defaults", f"--socket={server.socket}")
        printed = run((*check, "--all-databases", "--extended", "--check")).stdout.decode()
        assert "l.one" in printed
        bad = [line for line in printed.splitlines() if line and not line.endswith("OK")]
        assert not bad, bad
    return count


# -- Redis --------------------------------------------------------------------------------------


@contextlib.contextmanager
def loaded_redis(run_folder: Path, data: Path) -> Iterator[Loaded]:
    """A server with an append-only file, under redis-benchmark; pairs of keys change together."""
    with databases.redis(data, run_folder, end=signal.SIGKILL) as server:
        command = ("redis-benchmark", "-s", str(server.socket), "-q", "-l", "-r", "10000",
                   "-t", "set,incr,lpush", "-c", "1")  # fmt: skip
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL) as benchmark,
            load(
                lambda: databases.redis_session(server),
                lambda s, n: f"MULTI\nRPUSH one:{s} {n}\nRPUSH two:{s} {n}\nEXEC",
            ) as ledger,
        ):
            try:
                yield Loaded(
                    RedisKind(),
                    data,
                    ledger,
                    lambda before, _facts: check_redis(run_folder, data, ledger, before),
                )
            finally:
                benchmark.kill()


def check_redis(run_folder: Path, data: Path, ledger: Ledger, before: list[int]) -> int:
    for part in sorted((data / "appendonlydir").glob("*.manifest")):
        run(("redis-check-aof", str(part)))
    count = 0
    # Nothing torn: it may not even cut off an unfinished end.
    with databases.redis(data, run_folder, "--aof-load-truncated", "no") as server:
        for table in ("one", "two"):
            found = {}
            for session in range(len(before)):
                ask = ("LRANGE", f"{table}:{session}", "0", "-1")
                printed = run((*databases.redis_cli(server), *ask)).stdout
                found[session] = [int(line) for line in printed.split()]
            count = ledger.check(found, before, name=table)
    return count


# -- one image of all three ---------------------------------------------------------------------


@contextlib.contextmanager
def noted(loads: Sequence[Loaded]) -> Iterator[list[list[int]]]:
    """Note what each has acknowledged just before the writers are frozen, the last time."""
    noted: list[list[int]] = []
    real = Coordinator.freeze_writers

    def freeze_writers(coordinator: Coordinator) -> None:
        noted[:] = [each.ledger.so_far() for each in loads]
        real(coordinator)

    with mock.patch.object(Coordinator, "freeze_writers", freeze_writers):
        yield noted


def test_one_image_of_three_databases(
    place: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL and MariaDB over two disks each, Redis on one, all at work: an online image."""
    ensure_mounts()
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    monkeypatch.setenv("FREEZEFRAME_REPOSITORY", str(tmp_path / "repository"))
    monkeypatch.setenv("FREEZEFRAME_PASSWORD", PASSWORD)
    program = Program(capfd, tmp_path / "repository")
    program("init")
    names = ["data", "logs", "more"]
    with ExitStack() as stack:
        disks = [
            stack.enter_context(mounted_disk(place, kind, name, size=512 * MIB))
            for name, kind in zip(names, ("ext4", "xfs", "ext4"), strict=True)
        ]
        stack.callback(untrack, *(disk.device for disk in disks))
        data, logs, more = (disk.point for disk in disks)
        loads = [
            stack.enter_context(loaded_postgres(place / "pg", data / "main", logs / "wal")),
            stack.enter_context(loaded_mariadb(place / "my", more / "mysql", logs / "binlog")),
            stack.enter_context(loaded_redis(place / "re", data / "redis")),
        ]
        listed = {
            each["name"]: each for each in program("--json", "writers").records if "name" in each
        }
        for loaded, its in zip(loads, ([0, 1], [1, 2], [0]), strict=True):
            volumes = {disks[number].device for number in its}
            assert set(listed[loaded.writer.name]["volumes"]) == volumes  # type: ignore[call-overload]
        with noted(loads) as before:
            devices = [disk.device for disk in disks]
            program("backup", *devices, "--if-busy", "longer-pause")
        for loaded in loads:
            loaded.ledger.wait_for_more(3)
        writers = [loaded.writer.name for loaded in loads]
    record = program("--json", "show", "latest").record("image")["manifest"]
    votes = {each["name"]: each for each in record["shadow"]["writers"]}  # type: ignore[index]
    moment = Moment()
    for name, device in zip(names, devices, strict=True):
        target = place / f"restored-{name}.raw"
        program("restore", "latest", "--disk", device, "--to", target, "--yes")
        moment.copies[place / name] = target
    with seen_again(moment):
        for loaded, noted_before, name in zip(loads, before, writers, strict=True):
            assert votes[name]["vote"] == "yes"
            assert loaded.check(noted_before, votes[name].get("facts", {})) >= sum(noted_before)
    assert [votes[name]["consistency"] for name in writers] == [
        "crash", "application", "application",
    ]  # fmt: skip
