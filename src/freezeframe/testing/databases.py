"""Real database servers for tests: as ordinary processes, on folders of their own, no service.

Each runs as an unprivileged user, listens on a socket in a folder of its own and on no
port, and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.client import Client
from freezeframe.system.run import run, which
from freezeframe.testing.frozen import eventually

#: Whom servers run as: they refuse to be root. PostgreSQL's own, for it has to have a name.
_POSTGRES = "postgres"
_NOBODY = "nobody"
#: Seconds a server may take to end.
_PATIENCE = 60.0


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that any user can pass through, as a test's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="freezeframe-db-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass
class Running:
    """A server that runs: its process, its data folder and its socket."""

    process: subprocess.Popen[bytes]
    folder: Path
    socket: Path
    log: Path
    settings: Sequence[str] = field(default=())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal; wait until it has, and whoever works in its folder for it.

        A server that is killed leaves such: Redis one that writes its log anew.
        """
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(_PATIENCE)
        eventually(lambda: not _works_in(self.folder))


def _works_in(folder: Path) -> bool:
    """Whether there is a process with that working directory."""
    for each in Path("/proc").glob("[0-9]*/cwd"):
        # It may have ended, or may be about to.
        with contextlib.suppress(OSError):
            if each.readlink() == folder:
                return True
    return False


def _start(
    command: Sequence[str], user: str, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    entry = pwd.getpwnam(user)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "HOME": "/", **(environment or {})},
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=(),
        )


def _own(folder: Path, user: str, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entry = pwd.getpwnam(user)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    folder.chmod(mode)
    return folder


def _tool(name: str) -> str:
    path = which(name)
    assert path is not None, name
    return path


@contextlib.contextmanager
def _until_end(running: Running, is_up: Sequence[str], end: signal.Signals) -> Iterator[Running]:
    """Wait until it answers; end it whatever happens, and show its log if it never came up."""

    def up() -> bool:
        assert running.process.poll() is None, running.log.read_text()
        done = subprocess.run(is_up, capture_output=True, check=False, env={"LC_ALL": "C"}, cwd="/")
        return done.returncode == 0

    try:
        eventually(up)
        yield running
    finally:
        running.end(end)


# -- PostgreSQL -------------------------------------------------------------------------


def postgres_tool(name: str) -> str:
    """Return one of PostgreSQL's programs, of its newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found, f"{name} is not installed"
    return str(found[-1])


def as_postgres(*command: str) -> str:
    """Run a program as the server's user; return what it printed."""
    return run(("runuser", "-u", _POSTGRES, "--", *command), timeout=120).stdout.decode()


def make_postgres(data: Path, wal: Path | None = None, *extra: str) -> None:
    """Make a cluster with checksums in a folder, its log in another one."""
    _own(data, _POSTGRES, 0o700)
    options = ["-D", str(data), "--auth=peer", "-k", "-N", "--locale=C", *extra]
    if wal is not None:
        options += ["-X", str(_own(wal, _POSTGRES, 0o700))]
    as_postgres(postgres_tool("initdb"), *options)


@contextlib.contextmanager
def postgres(
    data: Path, sockets: Path, *settings: str, end: signal.Signals = signal.SIGINT
) -> Iterator[Running]:
    """Run a server on a cluster, its socket in a folder; end it fast."""
    _own(sockets, _POSTGRES)
    log = sockets / "log"
    options = (
        "listen_addresses=", "port=5499", f"unix_socket_directories={sockets}",
        "shared_buffers=32MB", "max_wal_size=64MB", "min_wal_size=32MB", *settings,
    )  # fmt: skip
    command = [postgres_tool("postgres"), "-D", str(data)]
    command += [text for option in options for text in ("-c", option)]
    running = Running(_start(command, _POSTGRES, log), data, sockets, log)
    ready = (postgres_tool("pg_isready"), "-q", "-h", str(sockets), "-p", "5499")
    with _until_end(running, ready, end):
        yield running


def psql(server: Running, query: str, database: str = "postgres") -> str:
    """Ask a server; return the answer, fields with `|` between."""
    command = (postgres_tool("psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1")
    return as_postgres(
        *command, "-h", str(server.socket), "-p", "5499", "-d", database, "-c", query
    ).strip()


def psql_session(server: Running, database: str = "postgres") -> Client:
    """Return a session that stays."""
    entry = pwd.getpwnam(_POSTGRES)
    return Client(
        (postgres_tool("psql"), "-X", "-A", "-t", "-q", "-h", str(server.socket), "-p", "5499",
         "-d", database),
        ending=lambda word: f"\\echo {word}",
        failure=lambda text: text.strip(),
        user=entry.pw_uid,
        group=entry.pw_gid,
        environment={"HOME": "/", "PGOPTIONS": "-c client_min_messages=error"},
    )  # fmt: skip


# -- MariaDB ----------------------------------------------------------------------------


def make_mariadb(data: Path) -> None:
    """Make a data folder."""
    _own(data, _NOBODY, 0o700)
    run(
        ("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={_NOBODY}",
         "--auth-root-authentication-method=socket", "--skip-test-db",
         "--innodb-log-file-size=16M"),
        timeout=120,
    )  # fmt: skip


@contextlib.contextmanager
def mariadb(
    data: Path,
    sockets: Path,
    *settings: str,
    binlog: Path | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[Running]:
    """Run a server on a data folder, its binary log in another one."""
    _own(sockets, _NOBODY)
    socket, log = sockets / "mariadb.sock", sockets / "log"
    command = [
        _tool("mariadbd"), "--no-defaults", f"--datadir={data}", f"--socket={socket}",
        "--skip-networking", f"--pid-file={sockets}/pid", "--innodb-buffer-pool-size=32M",
        "--innodb-log-file-size=16M", f"--tmpdir={sockets}", *settings,
    ]  # fmt: skip
    if binlog is not None:
        _own(binlog, _NOBODY)
        command += [f"--log-bin={binlog}/binlog", "--server-id=1"]
    running = Running(_start(command, _NOBODY, log), data, socket, log)
    ready = (_tool("mariadb"), "--no-defaults", f"--socket={socket}", "-e", "SELECT 1")
    with _until_end(running, ready, end):
        yield running


def mariadb_session(server: Running) -> Client:
    """Return a session that stays."""
    return Client(
        (_tool("mariadb"), "--no-defaults", f"--socket={server.socket}", "--batch", "--raw",
         "--skip-column-names", "--unbuffered"),
        ending=lambda word: f"SELECT '{word}';",
        failure=lambda text: text.strip(),
    )  # fmt: skip


def sql(server: Running, query: str) -> list[str]:
    """Ask a MariaDB server; return the lines, fields with tabs between."""
    with mariadb_session(server) as session:
        return session.ask(query, Deadline.after(60))


# -- Redis ------------------------------------------------------------------------------


@contextlib.contextmanager
def redis(
    data: Path, sockets: Path, *settings: str, end: signal.Signals = signal.SIGTERM
) -> Iterator[Running]:
    """Run a server on a folder, which is made; with an append-only file."""
    _own(data, _NOBODY)
    _own(sockets, _NOBODY)
    socket, log = sockets / "redis.sock", sockets / "log"
    command = [
        _tool("redis-server"), "--port", "0", "--unixsocket", str(socket), "--dir", str(data),
        "--appendonly", "yes", *settings,
    ]  # fmt: skip
    running = Running(_start(command, _NOBODY, log), data, socket, log, settings)
    with _until_end(running, (*redis_cli(running), "-e", "PING"), end):
        yield running


def redis_cli(server: Running) -> tuple[str, ...]:
    """Return the beginning of a command line for a server."""
    return (_tool("redis-cli"), "-s", str(server.socket))


def redis_session(server: Running) -> Client:
    """Return a session that stays."""
    return Client(
        redis_cli(server), ending=lambda word: f"ECHO {word}", failure=lambda text: text.strip()
    )
