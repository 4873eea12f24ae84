"""Every writer passes the contract, with its real application."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.writers import redis, writer_kinds
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterVeto
from freezeframe.shadow.writers.client import Client
from freezeframe.shadow.writers.containers import ContainerKind
from freezeframe.shadow.writers.hooks import HooksKind
from freezeframe.shadow.writers.mariadb import MariaDBKind
from freezeframe.shadow.writers.postgresql import PostgreSQLKind
from freezeframe.shadow.writers.redis import RedisKind
from freezeframe.shadow.writers.sqlite import SQLiteKind
from freezeframe.shadow.writers.systemd import SystemdKind
from freezeframe.system.run import run
from freezeframe.testing import databases
from freezeframe.testing.databases import Running
from freezeframe.testing.frozen import eventually
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
        for line in self.client.ask(kill, Deadline.after(60)):
            self.client.ask(line, Deadline.after(60))

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


# -- what is held by programs -------------------------------------------------------------------

_HOOK = """#!/bin/sh
cd {state} || exit 1
echo "$(basename "$0") $1" >>log
case $1 in
freeze)
    [ ! -e down ] || {{ echo "it is down" >&2; exit 1; }}
    touch held
    while [ -e hang ]; do sleep 0.05; done ;;
thaw)
    rm -f held
    [ ! -e cut ] ;;
esac
"""


class Hooked(Application):
    """Writes to a file unless a script has said to hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hooks.d"
        self.state = folder / "state"
        self.folder.mkdir()
        self.state.mkdir()
        for name in ("20-first", "30-second"):
            self.add(name)

    def add(self, name: str, text: str = _HOOK, mode: int = 0o755) -> Path:
        script = self.folder / name
        script.write_text(text.format(state=self.state))
        script.chmod(mode)
        return script

    def log(self) -> list[str]:
        path = self.state / "log"
        return path.read_text().splitlines() if path.exists() else []

    def write(self) -> None:
        eventually(lambda: not (self.state / "held").exists())
        (self.state / "data").touch()

    def stop(self) -> None:
        (self.state / "down").touch()

    def start(self) -> None:
        for name in ("down", "cut"):
            (self.state / name).unlink(missing_ok=True)

    def cut(self) -> None:
        (self.state / "cut").touch()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        (self.state / "hang").touch()
        yield
        (self.state / "hang").unlink()


class TestHooks(WriterContract):
    cut_matters = False
    folder: Path

    def make_kind(self) -> WriterKind:
        return HooksKind(type(self).folder)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Hooked(folder)
        type(self).folder = application.folder
        type(
            self
        ).imports = (
            "from pathlib import Path; from freezeframe.shadow.writers.hooks import HooksKind"
        )
        type(self).kind_expression = f"HooksKind(Path({str(application.folder)!r}))"
        yield application

    @pytest.fixture(autouse=True)
    def afresh(self, application: Hooked) -> None:
        application.start()

    def test_in_order_and_back(self, application: Hooked) -> None:
        """Names order them; leftovers and what is not executable do not count."""
        for name in ("40-editor~", "50-old.dpkg-old", ".hidden"):
            application.add(name)
        application.add("60-plain", mode=0o644)
        (application.state / "log").unlink(missing_ok=True)
        writer = self.find(application)
        writer.freeze(Deadline.after(60))
        writer.thaw()
        assert application.log() == [
            "20-first freeze", "30-second freeze", "30-second thaw", "20-first thaw",
        ]  # fmt: skip

    def test_one_that_fails_is_thawed_with_those_before_it(self, application: Hooked) -> None:
        """Not those after it: they were not called."""
        broken = application.add("25-broken", "#!/bin/sh\n[ $1 = thaw ] || exit 3\n")
        (application.state / "log").unlink(missing_ok=True)
        writer = self.find(application)
        try:
            with pytest.raises(WriterVeto, match=r"25-broken freeze.* exit code 3"):
                writer.freeze(Deadline.after(60))
            writer.thaw()
            assert application.log() == ["20-first freeze", "20-first thaw"]
        finally:
            broken.unlink()

    def test_what_others_could_change_is_not_run(self, application: Hooked) -> None:
        """They would be root."""
        loose = application.add("10-loose", mode=0o777)
        try:
            with pytest.raises(WriterVeto, match="changed by others"):
                self.find(application).freeze(Deadline.after(60))
        finally:
            loose.unlink()

    def test_what_it_leaves_running_is_not_waited_for(self, application: Hooked) -> None:
        """A lock is held by something in the background, with the output open."""
        holder = application.add("10-holder", "#!/bin/sh\n[ $1 = thaw ] || sleep 60 &\n")
        try:
            writer = self.find(application)
            writer.freeze(Deadline.after(30))
            writer.thaw()
        finally:
            holder.unlink()


# -- containers and units: programs that behave as docker and systemctl do ----------------------

_APPENDS = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(file, b"x")
    time.sleep(0.01)
"""

_DOCKER = """#!/bin/sh
cd {state} || exit 1
runs() {{ kill -0 "$(cat pid)" 2>/dev/null; }}
case $1 in
ps)
    case "$*" in
    *label=*) [ ! -e label ] || echo {number} ;;
    *) ! runs || printf '{number}\\tweb\\n' ;;
    esac ;;
inspect)
    case $3 in
    *json*)
        echo '[{{"Type": "bind", "Source": "{state}"}}]'
        echo '{{"Name": "overlay2", "Data": null}}' ;;
    *) if [ -e paused ]; then echo true; else echo false; fi ;;
    esac ;;
pause)
    while [ -e hang ]; do sleep 0.05; done
    runs || {{ echo "Error: No such container: $2" >&2; exit 1; }}
    kill -STOP "$(cat pid)"
    touch paused ;;
unpause)
    [ -e paused ] || {{ echo "Error: Container $2 is not paused" >&2; exit 1; }}
    rm paused
    kill -CONT "$(cat pid)" ;;
esac
"""

_SYSTEMCTL = """#!/bin/sh
cd {state} || exit 1
runs() {{ grep -q '^State:.[^ZX]' "/proc/$(cat pid)/status" 2>/dev/null; }}
case $1 in
is-active) runs ;;
stop)
    [ ! -e down ] || {{ echo "Failed to stop" >&2; exit 1; }}
    while [ -e hang ]; do sleep 0.05; done
    kill -KILL "$(cat pid)"
    while runs; do sleep 0.01; done ;;
start)
    runs || {{ {python} {program} {state}/data >/dev/null 2>&1 & echo $! >pid; }} ;;
esac
"""


class Managed(Application):
    """A program that writes all the time, and what manages it."""

    def __init__(self, folder: Path, manager: str, text: str) -> None:
        self.folder = folder / "state"
        self.folder.mkdir()
        self.manager = folder / manager
        program = folder / "program.py"
        program.write_text(_APPENDS)
        self.manager.write_text(
            text.format(state=self.folder, number="c0ffee", python=sys.executable, program=program)
        )
        self.manager.chmod(0o755)
        self._program = program
        self.start()

    def start(self) -> None:
        process = subprocess.Popen([sys.executable, self._program, self.folder / "data"])
        (self.folder / "pid").write_text(str(process.pid))
        self._process = process
        self.write()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        (self.folder / "paused").unlink(missing_ok=True)

    def write(self) -> None:
        before = self._size()
        eventually(lambda: self._size() > before)

    def _size(self) -> int:
        path = self.folder / "data"
        return path.stat().st_size if path.exists() else 0

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        (self.folder / "hang").touch()
        yield
        (self.folder / "hang").unlink()


class TestContainers(WriterContract):
    consistency = "crash"
    program: Path

    def make_kind(self) -> WriterKind:
        program = type(self).program
        return ContainerKind(["web"], {str(program): (program,)})

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Managed(folder, "docker", _DOCKER)
        type(self).program = application.manager
        type(self).imports = (
            "from pathlib import Path\n"
            "from freezeframe.shadow.writers.containers import ContainerKind\n"
            f"place = {str(application.manager)!r}"
        )
        type(self).kind_expression = "ContainerKind(['web'], {place: (Path(place),)})"
        yield application
        application.stop()

    def test_a_label_or_a_name_is_asked_for(self, application: Application) -> None:
        """A container nobody named is left alone."""
        assert isinstance(application, Managed)
        kind = ContainerKind([], {str(application.manager): (application.manager,)})
        assert not kind.find()
        (application.folder / "label").touch()
        assert [each.name for each in kind.find()] == ["docker:web"]

    def test_one_that_somebody_paused_is_not_touched(self, application: Application) -> None:
        """It is not ours to let go."""
        assert isinstance(application, Managed)
        command = [str(application.manager), "pause", "c0ffee"]
        subprocess.run(command, check=True)
        writer = self.find(application)
        try:
            with pytest.raises(WriterVeto, match="paused already"):
                writer.freeze(Deadline.after(60))
            writer.thaw()
            assert (application.folder / "paused").exists()
        finally:
            subprocess.run([str(application.manager), "unpause", "c0ffee"], check=True)
        application.write()


class Unit(Managed):
    """One whose process is the manager's child."""

    def start(self) -> None:
        (self.folder / "down").unlink(missing_ok=True)
        subprocess.run([str(self.manager), "start", "app"], check=True)
        self.write()

    def stop(self) -> None:
        (self.folder / "down").touch()

    def cut(self) -> None:
        self.start()

    def end(self) -> None:
        self.start()
        subprocess.run([str(self.manager), "stop", "app"], check=True)


class TestSystemd(WriterContract):
    program: Path

    def make_kind(self) -> WriterKind:
        program = type(self).program
        return SystemdKind(["app"], str(program), booted=program)

    def find(self, application: Application) -> Writer:
        (found,) = self.make_kind().find()
        return found

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Unit(folder, "systemctl", _SYSTEMCTL)
        type(self).program = application.manager
        type(self).imports = "from freezeframe.shadow.writers.systemd import SystemdKind"
        type(self).kind_expression = f"SystemdKind(['app'], {str(application.manager)!r})"
        yield application
        application.end()


def test_every_kind_is_registered_and_answers() -> None:
    """Each looks about on a machine that may have nothing of it."""
    registered = writer_kinds()
    assert not registered.broken
    assert {"postgresql", "mariadb", "redis", "sqlite", "containers", "systemd", "hooks"} <= set(
        registered.kinds
    )
    for kind in registered.kinds.values():
        kind().find()
