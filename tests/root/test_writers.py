"""Every writer passes the contract, with its real application."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.writers import redis, writer_kinds
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterVeto
from freezeframe.shadow.writers.client import Client
from freezeframe.shadow.writers.mariadb import MariaDBKind
from freezeframe.shadow.writers.postgresql import PostgreSQLKind
from freezeframe.shadow.writers.redis import RedisKind
from freezeframe.shadow.writers.sqlite import SQLiteKind
from freezeframe.system.run import run
from freezeframe.testing import databases
from freezeframe.testing.databases import Running
from freezeframe.testing.writer_contract import Application, WriterContract

pytestmark = pytest.mark.root


class Served(Application):
    """An application that is a server, with a session of our own to it."""

    def __init__(
        self,
        folder: Path,
        run: Callable[[], AbstractContextManager[Running]],
        session: Callable[[Running], Client],
        write: str,
    ) -> None:
        self.folder = folder
        self._run = run
        self._session = session
        self._statement = write
        self._stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self.server = self._stack.enter_context(self._run())
        self.client = self._stack.enter_context(self._session(self.server))

    def stop(self) -> None:
        self.client.close()
        self.server.end(signal.SIGKILL)
        self._stack.close()

    def write(self) -> None:
        answer = self.client.ask(self._statement, Deadline.after(60))
        assert not any("ERR" in line for line in answer), answer


class TestPostgreSQL(WriterContract):
    """Nothing is held: its consistency is that of one moment."""

    holds = False
    consistency = "crash"
    cut_matters = False

    def make_kind(self) -> WriterKind:
        return PostgreSQLKind()

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        databases.make_postgres(folder / "data", folder / "wal")
        application = Served(
            folder / "data",
            lambda: databases.postgres(folder / "data", folder / "run", end=signal.SIGQUIT),
            databases.psql_session,
            "CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1);",
        )
        yield application
        application.stop()

    def test_its_paths_are_all_it_lies_on(self, application: Application) -> None:
        """The log's folder and tablespaces, wherever links lead."""
        assert isinstance(application, Served)
        outside = application.folder.parent / "space"
        databases._own(outside, "postgres")
        client = application.client
        client.ask(f"CREATE TABLESPACE space LOCATION '{outside}';", Deadline.after(60))
        try:
            paths = self.find(application).paths()
            assert {application.folder, application.folder.parent / "wal", outside} <= set(paths)
        finally:
            client.ask("DROP TABLESPACE space;", Deadline.after(60))


class MariaDBApplication(Served):
    """With a table that knows no transactions, which a statement can keep from being held."""

    def cut(self) -> None:
        kill = (
            "SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist"
            " WHERE id <> CONNECTION_ID() AND command = 'Sleep';"
        )
        # A session may be about to sleep, and one that is killed takes a moment to be gone.
        deadline, cut = Deadline.after(60), False
        while (lines := list(self.client.ask(kill, deadline))) or not cut:
            for line in lines:
                self.client.ask(line, deadline)
                cut = True
            deadline.check("cutting the connection")
            time.sleep(0.05)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        with databases.mariadb_session(self.server) as other:
            other.ask("LOCK TABLES test.m WRITE;", Deadline.after(60))
            yield
            other.ask("UNLOCK TABLES;", Deadline.after(60))


class TestMariaDB(WriterContract):
    def make_kind(self) -> WriterKind:
        return MariaDBKind()

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        databases.make_mariadb(folder / "data")
        application = MariaDBApplication(
            folder / "data",
            lambda: databases.mariadb(
                folder / "data", folder / "run", binlog=folder / "binlog", end=signal.SIGKILL
            ),
            databases.mariadb_session,
            "INSERT INTO test.t VALUES (1); INSERT INTO test.m VALUES (1);",
        )
        application.client.ask(
            "CREATE DATABASE test; CREATE TABLE test.t (n int) ENGINE=InnoDB;"
            "CREATE TABLE test.m (n int) ENGINE=MyISAM;",
            Deadline.after(60),
        )
        yield application
        application.stop()

    def test_its_paths_are_all_it_lies_on(self, application: Application) -> None:
        """The binary log too, and tables with folders of their own."""
        assert isinstance(application, Served)
        outside = application.folder.parent / "space"
        databases._own(outside, "nobody")
        application.client.ask(
            f"CREATE TABLE test.far (n int) ENGINE=InnoDB DATA DIRECTORY='{outside}';",
            Deadline.after(60),
        )
        paths = set(self.find(application).paths())
        assert {application.folder, application.folder.parent / "binlog"} <= paths
        assert any(path.is_relative_to(outside) for path in paths)

    def test_a_session_that_was_cut_off_before_is_made_anew(
        self, application: Application, writer: Writer
    ) -> None:
        """Copying ahead may take hours, and the server be started anew meanwhile."""
        writer.prepare(self.scope(), Deadline.after(60))
        application.cut()
        writer.freeze(Deadline.after(60))
        writer.thaw()
        assert writer.finish(True).consistency == "application"

    def test_the_position_is_that_of_the_moment(self, application: Application) -> None:
        """As the server itself shows it while it is held."""
        assert isinstance(application, Served)
        writer = self.find(application)
        writer.prepare(self.scope(), Deadline.after(60))
        writer.freeze(Deadline.after(60))
        shown = application.client.ask("SHOW MASTER STATUS;", Deadline.after(60))[0].split("\t")
        writer.thaw()
        application.write()
        result = writer.finish(True)
        assert result.pieces["binlog_position"].decode().split("\t")[:2] == shown[:2]
        assert result.facts["binlog_position"] == shown[1]


class RedisApplication(Served):
    def cut(self) -> None:
        self.client.ask("CLIENT KILL TYPE normal SKIPME yes", Deadline.after(60))
        self.client.ask("CLIENT UNPAUSE", Deadline.after(60))
        self.stop()
        self.start()


class TestRedis(WriterContract):
    def make_kind(self) -> WriterKind:
        return RedisKind()

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = RedisApplication(
            folder / "data",
            lambda: databases.redis(folder / "data", folder / "run"),
            databases.redis_session,
            "INCR counter",
        )
        yield application
        application.stop()

    def test_without_an_append_only_file_less_is_claimed(self, application: Application) -> None:
        """A snapshot is saved beforehand, and what comes after it is not in the image."""
        assert isinstance(application, Served)
        application.client.ask("CONFIG SET appendonly no", Deadline.after(60))
        application.client.ask('CONFIG SET save "3600 1"', Deadline.after(60))
        try:
            (application.folder / "dump.rdb").unlink(missing_ok=True)
            writer = self.find(application)
            writer.prepare(self.scope(), Deadline.after(60))
            assert (application.folder / "dump.rdb").exists()
            writer.freeze(Deadline.after(60))
            writer.thaw()
            result = writer.finish(True)
            assert result.consistency == "crash"
            assert "what was written after" in result.notes[0]
        finally:
            application.client.ask("CONFIG SET appendonly yes", Deadline.after(60))


def test_a_password_is_found_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a command line nor in what is said; without it there is a veto."""
    settings = tmp_path / "redis.conf"
    settings.write_text('requirepass "open-sesame"\n# requirepass nothing\n')
    with (
        databases.open_folder() as folder,
        databases.redis(folder / "data", folder / "run") as server,
    ):
        run((*databases.redis_cli(server), "CONFIG", "SET", "requirepass", "open-sesame"))
        (writer,) = [each for each in RedisKind().find() if folder / "data" in each.paths()]
        with pytest.raises(WriterVeto, match="NOAUTH"):
            writer.prepare(nothing(), Deadline.after(60))
        monkeypatch.setattr(redis, "_SETTINGS", (tmp_path,))
        writer.prepare(nothing(), Deadline.after(60))
        writer.freeze(Deadline.after(60))
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
        assert not any(b"open-sesame" in command for command in commands)
        # It would have to be on the command line.
        assert not writer.undo()
        writer.thaw()
        assert "sesame" not in str(writer.finish(True))


_WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE IF NOT EXISTS t (n)")
print("ready", flush=True)
for line in sys.stdin:
    if line == "block\\n":
        database.execute("BEGIN IMMEDIATE")
    elif line == "go\\n":
        database.execute("ROLLBACK")
    else:
        database.execute("INSERT INTO t VALUES (1)")
    print("done", flush=True)
"""


class SQLiteApplication(Application):
    """A program that has a database open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "app.db"
        self._writer = ""
        self.start()

    def start(self) -> None:
        gone = self.folder.with_suffix(".gone")
        if gone.exists():
            self.folder.rmdir()
            gone.rename(self.folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        """A file cannot crash: it goes away."""
        self.end()
        self.folder.rename(self.folder.with_suffix(".gone"))
        self.folder.mkdir()

    def cut(self) -> None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = entry.read_bytes().decode(errors="replace").split("\0")
                if str(self.folder) in words and any("sqlite_process" in word for word in words):
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def write(self) -> None:
        self.tell("write")

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        self.tell("block")
        yield
        self.tell("go")


class TestSQLite(WriterContract):
    """A database that the settings name."""

    folder: Path

    def make_kind(self) -> WriterKind:
        return SQLiteKind([type(self).folder / "app.db"], find=False)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        type(self).folder = folder
        type(
            self
        ).imports = (
            "from pathlib import Path; from freezeframe.shadow.writers.sqlite import SQLiteKind"
        )
        type(self).kind_expression = f"SQLiteKind([Path({str(folder / 'app.db')!r})])"
        application = SQLiteApplication(folder)
        yield application
        application.end()

    def test_those_in_use_are_found(self, application: Application) -> None:
        """Without being named; and one that is locked all the time is no reason for a veto."""
        assert isinstance(application, SQLiteApplication)
        found = [writer for writer in SQLiteKind([]).find() if application.folder in writer.paths()]
        assert len(found) == 1
        found[0].prepare(self.scope(), Deadline.after(60))
        with application.blocked():
            found[0].freeze(Deadline.after(60))
        found[0].thaw()
        application.write()
        result = found[0].finish(True)
        assert result.consistency == "crash"
        assert "locked" in result.notes[0]


def test_every_kind_is_registered_and_answers() -> None:
    """Each looks about on a machine that may have nothing of it."""
    registered = writer_kinds()
    assert not registered.broken
    assert {"postgresql", "mariadb", "redis", "sqlite", "containers", "systemd", "hooks"} <= set(
        registered.kinds
    )
    for kind in registered.kinds.values():
        kind().find()
