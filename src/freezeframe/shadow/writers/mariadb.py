"""MariaDB and MySQL, by way of their own client program.

MariaDB 10.4 and later has backup stages: the last, BLOCK_COMMIT, holds commits, the binary
log and writes to tables without transactions, and closes the files of the latter; changes to
InnoDB tables go on until they commit ("BACKUP STAGE", "Storage Snapshots and BACKUP STAGE
Commands"). Then the engines' logs are flushed, so that what was acknowledged is in the files
even where `innodb_flush_log_at_trx_commit` is not 1. MySQL has an instance lock against
changes of tables and a read lock over all of them ("LOCK INSTANCE FOR BACKUP", "FLUSH TABLES
WITH READ LOCK"); older ones the read lock alone.

The hold is a session's. It ends with its connection, and so with this program.
"""

from __future__ import annotations

import contextlib
import math
import os
import pwd
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Scope, Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.shadow.writers.links import links_in, resolved
from freezeframe.system.run import which
from freezeframe.system.servers import Server, servers

_NAMES = frozenset({"mariadbd", "mysqld"})
_PROGRAMS = ("mariadb", "mysql")
#: Where Debian keeps the administrator's credentials.
_DEBIAN_OPTIONS = Path("/etc/mysql/debian.cnf")
#: Seconds for what answers at once; for letting go before the connection is cut.
_QUICK = 10.0
_THAW = 5.0
#: Files a server always has open that a restore needs, wherever its settings put them.
_DATA = re.compile(
    r"/(?:ibdata\d+|ib_logfile\d+|#ib_redo\d+|undo_?\d+|aria_log[._].*"
    r"|[^/]+\.(?:ibd|MAI|MAD|MYI|MYD|\d{6}))$"
)
_VERSION = re.compile(r"(\d+)\.(\d+)")
_FAILURE = re.compile(r"^ERROR (\d+.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Way:
    """How one flavour is held and let go: statements."""

    words: str
    hold: tuple[str, ...]
    release: tuple[str, ...]
    #: What shows the position in the binary log: file, offset; then the ids.
    position: str
    ids: str


_FLUSH = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"
_STAGES = _Way(
    "backup stages",
    ("BACKUP STAGE START", "BACKUP STAGE FLUSH", "BACKUP STAGE BLOCK_DDL",
     "BACKUP STAGE BLOCK_COMMIT", _FLUSH),
    ("BACKUP STAGE END",),
    "SHOW MASTER STATUS",
    "SELECT @@GLOBAL.gtid_binlog_pos",
)  # fmt: skip


def way_of(version: str) -> _Way:
    """Return how a server of this version (`SELECT VERSION()`) is held."""
    found = _VERSION.match(version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if "MariaDB" in version:
        if number >= (10, 4):
            return _STAGES
        read_lock = ("FLUSH TABLES WITH READ LOCK", _FLUSH)
        return _Way("read lock", read_lock, ("UNLOCK TABLES",), _STAGES.position, _STAGES.ids)
    lock: tuple[str, ...] = ("LOCK INSTANCE FOR BACKUP",) if number >= (8, 0) else ()
    unlock: tuple[str, ...] = ("UNLOCK INSTANCE",) if lock else ()
    position = "SHOW BINARY LOG STATUS" if number >= (8, 2) else _STAGES.position
    return _Way(
        "instance lock and read lock" if lock else "read lock",
        (*lock, "FLUSH TABLES WITH READ LOCK", _FLUSH),
        ("UNLOCK TABLES", *unlock),
        position,
        "SELECT REPLACE(@@GLOBAL.gtid_executed, '\\n', '')",
    )


class MariaDB(Writer):
    """One server and its data folder."""

    kind = "mariadb"

    def __init__(self, server: Server) -> None:
        """`server` works in its data folder."""
        self._server = server
        self._folder = server.folder
        self._client: Client | None = None
        #: Guards the three below, never across a call to the server.
        self._lock = threading.Lock()
        self._held = False
        self._freezing = False
        self._way = _STAGES
        self._version = ""
        self._session = ""
        self._position: tuple[str, ...] = ()
        #: Why what was frozen last did not stay so.
        self._broken = ""

    @property
    def name(self) -> str:
        """`mariadb:/var/lib/mysql`."""
        return f"{'mysql' if self._server.name == 'mysqld' else 'mariadb'}:{self._folder}"

    def about(self) -> str:
        """Say its version, as it noted that in its folder, and where it listens."""
        version = ""
        for name in ("mariadb_upgrade_info", "mysql_upgrade_info"):
            with contextlib.suppress(OSError):
                version = version or (self._folder / name).read_text().strip("\0\n ")
        product = "MariaDB" if self._server.name == "mariadbd" else "MySQL or MariaDB"
        sockets = self._server.unix_sockets()
        where = f"socket {sockets[0]}" if sockets else "no socket"
        return f"{product} {version}".rstrip() + f", {where}"

    def paths(self) -> tuple[Path, ...]:
        """Return the data folder and where else its files lie: logs, undo, binary log, tables."""
        more = {path.parent for path in self._server.open_files() if _DATA.search(str(path))}
        inside = [""]
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            inside += [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in inside:
            # A link by InnoDB's own means: a file that holds the path.
            for file in (self._folder / name).glob("*.isl"):
                with contextlib.suppress(OSError):
                    more.add(Path(file.read_text().strip()).parent)
        links = {link.resolve() for name in inside for link in links_in(self._folder / name)}
        more |= {link if link.is_dir() else link.parent for link in links}
        return resolved(self._folder, more=sorted(more - {self._folder}))

    # -- the time line ------------------------------------------------------------------

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Connect, and see that the locks will be had: rights, nobody else's backup."""
        del scope
        client = self._connected(deadline)
        if self._way is not _STAGES:
            return
        try:
            self._set_patience(client, deadline.within(_QUICK))
            client.ask("BACKUP STAGE START; BACKUP STAGE END;", deadline.within(_QUICK))
        except ClientFailed as error:
            raise self._veto(error) from error

    def freeze(self, deadline: Deadline) -> None:
        """Hold commits, and note the position in the binary log."""
        self._broken = ""
        client = self._connected(deadline)
        with self._lock:
            self._held = self._freezing = True
        try:
            for statement in self._way.hold:
                client.ask(f"{statement};", deadline)
            rows = client.ask(f"{self._way.position}; {self._way.ids};", deadline)
        except ClientFailed as error:
            raise self._veto(error) from error
        finally:
            with self._lock:
                self._freezing = False
        # Without a binary log there is no row; the ids are the last line.
        first = rows[0].split("\t")[:2] if len(rows) > 1 else []
        self._position = (*first, rows[-1]) if first else ()

    def thaw(self) -> None:
        """Let commits go on: release the locks, or cut the connection where that hangs."""
        with self._lock:
            client, held, freezing = self._client, self._held, self._freezing
            self._held = False
            if freezing and client is not None:
                # `freeze` is at work in another thread: it asks nothing more of a dead client.
                client.kill()
        if client is None or not held:
            return
        if freezing:
            self._broken = "it was let go before it held"
            self._kill_session()
            return
        try:
            client.ask("; ".join(self._way.release) + ";", Deadline.after(_THAW))
        except ClientFailed as error:
            client.kill()
            self._broken = str(error)

    def finish(self, taken: bool) -> WriterResult:
        """Close the connection, and tell where in the binary log the image stands."""
        self.thaw()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
        if taken and self._broken:
            raise WriterVeto(
                f"{self.name}: the connection that held it was lost: {self._broken}",
                hint="see why in the server's log, and make the image again",
            )
        facts = {"version": self._version, "held_by": self._way.words}
        pieces: dict[str, bytes] = {}
        if self._position:
            file, offset, ids = self._position
            facts |= {"binlog_file": file, "binlog_position": offset, "gtid": ids}
            pieces["binlog_position"] = f"{file}\t{offset}\t{ids}\n".encode()
        if not (taken and client is not None):
            return WriterResult("crash", (), facts)
        return WriterResult("application", (), facts, pieces)

    # -- the connection -----------------------------------------------------------------

    def _connected(self, deadline: Deadline) -> Client:
        """Return a session that is there, and waits for locks no longer than the deadline."""
        with self._lock:
            client = self._client
        if client is not None:
            try:
                self._set_patience(client, deadline)
            except ClientFailed:
                # Hours may have passed: the server was started anew, or has cut off who idles.
                client.close()
            else:
                return client
        try:
            client = self._connect(deadline)
            version, session = client.ask(
                "SET SESSION wait_timeout = 31536000; SELECT VERSION(); SELECT CONNECTION_ID();",
                deadline.within(_QUICK),
            )
            self._set_patience(client, deadline)
        except ClientFailed as error:
            raise self._veto(error) from error
        self._version, self._way, self._session = version, way_of(version), session
        with self._lock:
            self._client = client
        return client

    def _connect(self, deadline: Deadline) -> Client:
        """Try the usual places for credentials, in their order."""
        reasons = []
        for command, user in self._commands():
            client = Client(
                command,
                ending=lambda word: f"SELECT '{word}';",
                failure=_failure,
                user=user,
                group=self._server.group if user is not None else None,
                environment=_environment(user),
            )
            try:
                client.ask("SELECT 1;", deadline.within(_QUICK))
            except ClientFailed as error:
                client.close()
                reasons.append(error.reason)
                if deadline.passed:
                    break
            else:
                return client
        raise ClientFailed("mariadb", "; ".join(dict.fromkeys(reasons)), gone=True)

    def _commands(self) -> list[tuple[tuple[str, ...], int | None]]:
        """Return command lines and whom to run them as: us, Debian's account, the server's user."""
        program = next((path for name in _PROGRAMS if (path := which(name))), None)
        if program is None:
            raise WriterVeto(
                f"{self.name}: its client program is needed and is not installed",
                hint="install it: apt-get install mariadb-client",
            )
        options = (
            "--batch", "--raw", "--skip-column-names", "--unbuffered", "--force",
            "--skip-reconnect", f"--connect-timeout={int(_QUICK)}", *self._address(),
        )  # fmt: skip
        ways: list[tuple[tuple[str, ...], int | None]] = [((program, *options), None)]
        if _DEBIAN_OPTIONS.exists():
            ways.append(((program, f"--defaults-file={_DEBIAN_OPTIONS}", *options), None))
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(self._server.user).pw_name
            ways.append(((program, *options, f"--user={name}"), self._server.user))
        return ways

    def _address(self) -> tuple[str, ...]:
        if not self._server.runs:
            raise ClientFailed("mariadb", "the server has ended", gone=True)
        for path in self._server.unix_sockets():
            full = self._folder / path
            # The other one speaks MySQL's X protocol.
            if full.is_socket() and "mysqlx" not in full.name:
                return ("--protocol=socket", f"--socket={full}")
        for address, port in self._server.tcp_ports():
            host = "127.0.0.1" if address in ("0.0.0.0", "::") else address
            return ("--protocol=tcp", f"--host={host}", f"--port={port}")
        raise ClientFailed("mariadb", "it listens nowhere", gone=True)

    def _set_patience(self, client: Client, deadline: Deadline) -> None:
        # The server's own limit: what waits for a lock holds up others.
        seconds = max(1, math.ceil(deadline.left))
        client.ask(f"SET SESSION lock_wait_timeout = {seconds};", deadline.within(_QUICK))

    def _kill_session(self) -> None:
        """End the session by another one: a server that waits does not see that its client went."""
        if not self._session.isdecimal():
            return
        with contextlib.suppress(ClientFailed, WriterVeto):
            deadline = Deadline.after(_THAW)
            with self._connect(deadline) as other:
                other.ask(f"KILL CONNECTION {self._session};", deadline)

    def _veto(self, error: Exception) -> WriterVeto:
        return WriterVeto(
            f"{self.name}: {error}",
            hint="an account that may RELOAD is looked for in root's option files, in"
            f" {_DEBIAN_OPTIONS}, and by socket as the server's own user; a lock that is not had"
            " in time is held by a long statement: SHOW PROCESSLIST",
        )


class MariaDBKind(WriterKind):
    """Servers that run here."""

    kind = "mariadb"

    def find(self) -> Sequence[MariaDB]:
        """Return them by their data folders."""
        return sorted(map(MariaDB, servers(_NAMES)), key=lambda writer: writer.name)

    def unavailable(self) -> str:
        """Say that the client program is missing, or nothing."""
        return "" if any(map(which, _PROGRAMS)) else "mariadb (the client) is not installed"


def _failure(text: str) -> str:
    found = _FAILURE.search(text)
    return found[1] if found else ""


def _environment(user: int | None) -> dict[str, str]:
    """Return where whoever runs the client has option files."""
    try:
        home = pwd.getpwuid(os.geteuid() if user is None else user).pw_dir
    except KeyError:
        home = "/"
    return {"HOME": home}
