"""What databases acknowledged before the freeze is in the image, and nothing is torn.

Real servers under load on filesystems of their own; the frozen disks are copied, mounted in
their place, and the server is started on them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
from freezeframe.testing.frozen import MountedDisk, mounted_disk
from freezeframe.testing.ledger import Ledger, load
from freezeframe.testing.moment import Moment, seen_again, take, take_apart

pytestmark = pytest.mark.root


@pytest.fixture
def place() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def the_writer(kind: WriterKind, folder: Path) -> Writer:
    (found,) = [writer for writer in kind.find() if folder in writer.paths()]
    return found


def rows(lines: list[str], separator: str) -> dict[int, list[int]]:
    """Read lines of session and number, in the order of numbers."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in lines:
        session, number = line.split(separator)
        found[int(session)].append(int(number))
    return found


# -- PostgreSQL: data on one volume, log on another ---------------------------------------------


@contextlib.contextmanager
def pgbench(server: Running) -> Iterator[None]:
    connection = ("-h", str(server.socket), "-p", "5499", "postgres")
    as_postgres(postgres_tool("pgbench"), "-i", "-q", "-s", "1", *connection)
    with (server.socket / "pgbench").open("wb") as log, subprocess.Popen(
        ["runuser", "-u", "postgres", "--", postgres_tool("pgbench"), "-n", "-c", "2", "-T", "600",
         *connection],
        stdout=log, stderr=log, cwd="/",
    ) as process:  # fmt: skip
        try:
            yield
            assert process.poll() is None, (server.socket / "pgbench").read_text()
        finally:
            process.terminate()


def postgres_taken(
    place: Path, how: Callable[[Writer, list[MountedDisk]], Moment]
) -> tuple[Moment, Ledger, list[int]]:
    """Take a cluster on two disks under pgbench and our own load."""
    with (
        mounted_disk(place, "ext4", "data") as data,
        mounted_disk(place, "xfs", "wal") as wal,
    ):
        databases.make_postgres(data.point / "main", wal.point / "wal")
        with (
            databases.postgres(data.point / "main", place / "run", end=signal.SIGQUIT) as server,
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
                writer = the_writer(PostgreSQLKind(), data.point / "main")
                before = ledger.so_far()
                moment = how(writer, [data, wal])
                ledger.wait_for_more()
    return moment, ledger, before


def check_postgres(place: Path, ledger: Ledger, before: list[int], position: str) -> int:
    """Start the restored server; compare with the ledger, and run its own checks."""
    data = place / "data" / "main"
    with databases.postgres(data, place / "run") as server:
        # What was noted in the moment is an end that the restored log reaches.
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


def test_postgresql_of_one_moment(place: Path) -> None:
    """Data and log on two filesystems, taken together: no label, no help, just a start."""
    moment, ledger, before = postgres_taken(
        place, lambda writer, disks: take([writer], disks, place)
    )
    (result,) = moment.results.values()
    assert result.consistency == "crash"
    assert not result.pieces
    assert "everything it acknowledged" in result.notes[-1]
    with seen_again(moment):
        assert not (place / "data" / "main" / "backup_label").exists()
        assert check_postgres(place, ledger, before, result.facts["wal_position"]) > sum(before)


def test_postgresql_of_different_moments(place: Path) -> None:
    """Each disk at a moment of its own: backup mode, and its pieces make it whole."""
    moment, ledger, before = postgres_taken(
        place, lambda writer, disks: take_apart([writer], disks, place, 0.5)
    )
    (result,) = moment.results.values()
    assert result.consistency == "application"
    with seen_again(moment):
        lay_pieces(result, place / "data" / "main")
        assert check_postgres(place, ledger, before, result.facts["wal_position"]) > sum(before)


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


def test_mariadb(place: Path) -> None:
    """Its data on one filesystem, the binary log on another; a table without transactions."""
    with (
        mounted_disk(place, "ext4", "data") as data,
        mounted_disk(place, "xfs", "log") as log,
    ):
        databases.make_mariadb(data.point / "mysql")
        with databases.mariadb(
            data.point / "mysql", place / "run", "--innodb-flush-log-at-trx-commit=2",
            binlog=log.point / "binlog", end=signal.SIGKILL,
        ) as server:  # fmt: skip
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
                writer = the_writer(MariaDBKind(), data.point / "mysql")
                before = ledger.so_far()
                moment = take([writer], [data, log], place)
                ledger.wait_for_more()
    (result,) = moment.results.values()
    assert result.consistency == "application"
    file, offset, _ = result.pieces["binlog_position"].decode().split("\t")
    with seen_again(moment):
        binlog = place / "log" / "binlog"
        # What the position names is where the log ends: nothing was committed past it.
        assert (binlog / file).stat().st_size == int(offset)
        with databases.mariadb(place / "data" / "mysql", place / "run", binlog=binlog) as server:
            for table in ("one", "two"):
                found = sql(server, f"SELECT s, n FROM l.{table} ORDER BY n;")
                assert ledger.check(rows(found, "\t"), before, name=table) > sum(before)
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


# -- Redis --------------------------------------------------------------------------------------


def test_redis(place: Path) -> None:
    """With an append-only file, under redis-benchmark; pairs of keys change together."""
    with (
        mounted_disk(place, "ext4", "data") as data,
        databases.redis(data.point / "redis", place / "run", end=signal.SIGKILL) as server,
    ):
        command = ("redis-benchmark", "-s", str(server.socket), "-q", "-l", "-r", "10000",
                   "-t", "set,incr,lpush", "-c", "8")  # fmt: skip
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL) as benchmark,
            load(
                lambda: databases.redis_session(server),
                lambda s, n: f"MULTI\nRPUSH one:{s} {n}\nRPUSH two:{s} {n}\nEXEC",
            ) as ledger,
        ):
            try:
                writer = the_writer(RedisKind(), data.point / "redis")
                before = ledger.so_far()
                moment = take([writer], [data], place)
                ledger.wait_for_more()
            finally:
                benchmark.kill()
    (result,) = moment.results.values()
    assert result.consistency == "application"
    with seen_again(moment):
        for part in sorted((place / "data" / "redis" / "appendonlydir").glob("*.manifest")):
            run(("redis-check-aof", str(part)))
        # Nothing torn: it may not even cut off an unfinished end.
        with databases.redis(
            place / "data" / "redis", place / "run", "--aof-load-truncated", "no"
        ) as server:
            for table in ("one", "two"):
                found = {
                    session: [
                        int(line)
                        for line in run(
                            (
                                *databases.redis_cli(server),
                                "LRANGE",
                                f"{table}:{session}",
                                "0",
                                "-1",
                            )
                        ).stdout.split()
                    ]
                    for session in range(len(before))
                }
                assert ledger.check(found, before, name=table) > sum(before)
