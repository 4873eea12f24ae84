"""PostgreSQL, 14 and later, by way of `psql` as the user the cluster runs as.

Two ways, and which one is right depends on the image:

- All volumes at one instant (`Scope.atomic`). Such an image is what a power cut at that
  instant would have left: the server replays its log on its first start, and everything it
  had acknowledged is there. The manual calls it a consistent snapshot ("File System Level
  Backup"). Backup mode must *not* be used: with its label in the data folder the server
  insists on a record of the backup's end, which is written after the instant and is not in
  the image, and refuses to start. Nothing is held; a checkpoint beforehand keeps recovery
  short. Rolling forward from an archive works all the same: given a `recovery.signal`, the
  server first replays what it has, then goes on from the archive.
- Volumes at different moments. Then only the server's own backup mode gives something that
  starts (`pg_backup_start` … `pg_backup_stop`, non-exclusive), and everything is copied
  between the two. The label and the log from start to end are kept as pieces: they are laid
  into the restored folder before the start.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from freezeframe.core.units import MIB
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Scope, Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.shadow.writers.links import links_in, resolved
from freezeframe.system.run import which
from freezeframe.system.servers import Server, servers

_NAMES = frozenset({"postgres", "postmaster"})
#: Backup mode has these functions from 14 on (under other names there).
_OLDEST = 14
_RENAMED = 15
#: Seconds for what answers at once.
_QUICK = 10.0
#: What is kept of the log, at most; beyond that it has to come from the archive.
_MOST_LOG = 256 * MIB
_DEBIAN = re.compile(r"^/var/lib/postgresql/([^/]+/[^/]+)$")
_SEGMENT = re.compile(r"^[0-9A-F]{24}$")
_FAILURE = re.compile(r"(?:ERROR|FATAL|PANIC):\s+(.*)")

_FACTS = """SELECT json_build_object(
 'version', current_setting('server_version'),
 'standby', pg_is_in_recovery(),
 'system', (SELECT system_identifier::text FROM pg_control_system()),
 'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
 'archive', current_setting('archive_mode') <> 'off',
 'fsync', current_setting('fsync') = 'on',
 'superuser', current_setting('is_superuser') = 'on');"""
_POSITION = """SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
 ELSE pg_current_wal_flush_lsn() END;"""


class _Facts(msgspec.Struct, frozen=True):
    version: str
    standby: bool
    system: str
    timeline: int
    archive: bool
    fsync: bool
    superuser: bool


class _Stopped(msgspec.Struct, frozen=True):
    lsn: str
    label: str
    map: str
    last: str


class PostgreSQL(Writer):
    """One cluster: a data folder and the server that runs on it."""

    kind = "postgresql"

    def __init__(self, server: Server) -> None:
        """`server` is its postmaster, at work in its data folder."""
        self._server = server
        self._folder = server.folder
        self._client: Client | None = None
        self._facts: _Facts | None = None
        self._position = ""
        self._notes: list[str] = []
        #: Whether backup mode is on.
        self._started = False
        self._atomic = True

    @property
    def name(self) -> str:
        """`postgresql:15/main` as Debian names it, else by its data folder."""
        found = _DEBIAN.match(str(self._folder))
        return f"postgresql:{found[1] if found else self._folder}"

    @property
    def version(self) -> int:
        """Its main version; 0 where it cannot be read."""
        text = _read(self._folder / "PG_VERSION").strip()
        return int(text) if text.isdecimal() else 0

    def about(self) -> str:
        """Say version, port and state, as the server notes them in its folder."""
        lines = _read(self._folder / "postmaster.pid").splitlines()
        state = lines[7].strip() if len(lines) > 7 else "state not known"
        port = lines[3] if len(lines) > 3 else "?"
        return f"PostgreSQL {self.version or '?'}, port {port}, {state}"

    def paths(self) -> tuple[Path, ...]:
        """Return the data folder, and where its links lead: log, tablespaces."""
        # Links to files are certificates and settings: not what is written to.
        own = [link for link in links_in(self._folder) if link.is_dir()]
        return resolved(self._folder, inside=("pg_tblspc",), more=own)

    # -- the time line ------------------------------------------------------------------

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Connect; make a checkpoint, or begin a backup where the volumes are not of one moment."""
        if self.version < _OLDEST:
            raise WriterVeto(
                f"{self.name}: version {self.version} is not known to be safe",
                hint=f"{_OLDEST} is the oldest; leave this writer out, or stop the server",
            )
        self._atomic = scope.atomic
        try:
            self._client = self._connect(deadline)
            self._facts = msgspec.json.decode(
                self._one(self._client, _FACTS, deadline.within(_QUICK)), type=_Facts
            )
            if scope.atomic:
                self._checkpoint(self._client, deadline)
            else:
                self._start_backup(self._client, self._facts, deadline)
        except ClientFailed as error:
            raise self._veto(error) from error

    def _checkpoint(self, client: Client, deadline: Deadline) -> None:
        try:
            client.ask("CHECKPOINT;", deadline)
        except ClientFailed as error:
            if error.gone:
                raise
            self._notes.append(f"no checkpoint was made ({error.reason}): recovery takes longer")

    def _start_backup(self, client: Client, facts: _Facts, deadline: Deadline) -> None:
        if facts.standby:
            raise WriterVeto(
                f"{self.name}: a standby cannot be imaged from volumes of different moments",
                hint="image its volumes together, or the primary's",
            )
        # Keeps the log from being recycled; both end with the session.
        slot = f"freezeframe_{os.getpid()}_{self._server.pid}"
        try:
            call = f"SELECT pg_create_physical_replication_slot('{slot}', true, true);"
            client.ask(call, deadline)
        except ClientFailed as error:
            if error.gone:
                raise
            # Slots are off, or all taken: at the end it is seen whether the log is all there.
        function = "pg_backup_start" if self.version >= _RENAMED else "pg_start_backup"
        exclusive = "" if self.version >= _RENAMED else ", exclusive => false"
        client.ask(f"SELECT {function}('freezeframe', fast => true{exclusive});", deadline)
        self._started = True

    def freeze(self, deadline: Deadline) -> None:
        """Note how far its log is durable. Nothing has to be held: see the top of this file."""
        if self._client is None:
            raise WriterVeto(f"{self.name} is not prepared", hint="call prepare first")
        try:
            try:
                self._position = self._one(self._client, _POSITION, deadline)
            except ClientFailed:
                if self._started:
                    raise
                # Hours may have passed: the server was started anew, or has cut off who idles.
                self._client.close()
                self._client = self._connect(deadline)
                self._position = self._one(self._client, _POSITION, deadline)
        except ClientFailed as error:
            raise self._veto(error) from error

    def thaw(self) -> None:
        """Do nothing: nothing is held."""

    def finish(self, taken: bool) -> WriterResult:
        """End the backup where one was begun, and tell what the image holds."""
        client, self._client = self._client, None
        if client is None:
            return WriterResult("crash", ("it was not prepared",))
        with client:
            # A session that ends takes its unfinished backup with it.
            if not (self._started and taken):
                return self._result("crash", {})
            self._started = False
            try:
                pieces = self._stop_backup(client)
            except (ClientFailed, OSError) as error:
                raise self._veto(error) from error
        return self._result("application", pieces)

    def _stop_backup(self, client: Client) -> dict[str, bytes]:
        if self.version >= _RENAMED:
            call = "pg_backup_stop(wait_for_archive => false)"
        else:
            call = "pg_stop_backup(exclusive => false, wait_for_archive => false)"
        query = (
            "SELECT json_build_object('lsn', lsn, 'label', labelfile, 'map', spcmapfile,"
            f" 'last', pg_walfile_name(lsn)) FROM {call};"
        )
        stopped = msgspec.json.decode(self._one(client, query, Deadline.after(60.0)), type=_Stopped)
        pieces = {"backup_label": stopped.label.encode()}
        if stopped.map.strip():
            pieces["tablespace_map"] = stopped.map.encode()
        first = re.search(r"\(file ([0-9A-F]{24})\)", stopped.label)
        if first is None:
            raise ClientFailed("psql", "the backup label names no log file")
        self._position = stopped.lsn
        pieces |= self._log(first[1], stopped.last)
        return pieces

    def _log(self, first: str, last: str) -> dict[str, bytes]:
        """Return the segments of the log from the first to the last, by the names of pieces."""
        folder = self._folder / "pg_wal"
        names = sorted(
            entry.name
            for entry in folder.iterdir()
            if _SEGMENT.match(entry.name) and first <= entry.name <= last
        )
        if not names or names[0] != first or names[-1] != last:
            raise ClientFailed("psql", f"the log from {first} to {last} is not in {folder}")
        size = sum((folder / name).stat().st_size for name in names)
        span = f"the log from {first} to {last}"
        if size <= _MOST_LOG:
            self._notes.append(
                f"before the first start: backup_label (and tablespace_map) into the data"
                f" folder, and {span} into pg_wal; all are among the pieces"
            )
            return {f"pg_wal-{name}": (folder / name).read_bytes() for name in names}
        assert self._facts is not None
        if not self._facts.archive:
            raise ClientFailed(
                "psql", f"{span} is {size // MIB} MiB, too much to keep, and is not archived"
            )
        self._notes.append(
            f"before the first start: backup_label (and tablespace_map) into the data folder;"
            f" {span} comes from your archive (restore_command)"
        )
        return {}

    # -- the connection -----------------------------------------------------------------

    def _connect(self, deadline: Deadline) -> Client:
        lines = _read(self._folder / "postmaster.pid").splitlines()
        if len(lines) < 6 or not self._server.runs:
            raise ClientFailed("psql", "the server has ended", gone=True)
        port, folder, address = lines[3], lines[4], lines[5]
        host = folder or (address if address not in ("*", "") else "localhost")
        # The one that came with the server first: it understands it for certain.
        beside = str(Path(self._server.program).with_name("psql"))
        program = which(beside) or which("psql")
        if program is None:
            raise WriterVeto(
                f"{self.name}: psql is needed and is not installed",
                hint="install it: apt-get install postgresql-client",
            )
        client = Client(
            (program, "-X", "-q", "-A", "-t", "-w", "-h", host, "-p", port, "-d", "postgres"),
            ending=lambda word: f"\\echo {word}",
            failure=_failure,
            user=self._server.user,
            group=self._server.group,
            environment=_environment(self._server.user),
        )
        left = int(max(deadline.left, 1.0) * 1000)
        try:
            client.ask(
                f"SET statement_timeout = {left}; SET idle_session_timeout = 0;",
                deadline.within(_QUICK),
            )
        except ClientFailed:
            client.close()
            raise
        return client

    def _one(self, client: Client, query: str, deadline: Deadline) -> str:
        lines = client.ask(query, deadline)
        if not lines:
            raise ClientFailed("psql", "no answer came")
        return "\n".join(lines)

    def _veto(self, error: Exception) -> WriterVeto:
        return WriterVeto(
            f"{self.name}: {error}",
            hint="the user the server runs as must be able to connect by psql, without a password"
            " (peer authentication or ~/.pgpass) and as a superuser",
        )

    def _result(
        self, consistency: Literal["application", "crash"], pieces: dict[str, bytes]
    ) -> WriterResult:
        facts = self._facts
        known: dict[str, str] = {}
        notes = list(self._notes)
        if facts is not None:
            known = {
                "version": facts.version,
                "system_identifier": facts.system,
                "timeline": str(facts.timeline),
                "role": "standby" if facts.standby else "primary",
                "wal_position": self._position,
            }
            if not facts.fsync:
                notes.append("fsync is off: a crash of the machine itself may damage this cluster")
        if consistency == "crash" and self._atomic:
            notes.append(
                "all of it is of one moment: the server recovers on its first start, and"
                " everything it acknowledged before is there"
            )
        return WriterResult(consistency, tuple(notes), known, pieces)


class PostgreSQLKind(WriterKind):
    """Clusters whose postmaster runs here."""

    kind = "postgresql"

    def find(self) -> Sequence[PostgreSQL]:
        """Return them by their data folders; a server's own children are none."""
        found = (PostgreSQL(server) for server in servers(_NAMES) if _is_postmaster(server))
        return sorted(found, key=lambda writer: writer.name)

    def unavailable(self) -> str:
        """Say that psql is missing, or nothing."""
        if which("psql") is None and not any(Path("/usr/lib/postgresql").glob("*/bin/psql")):
            return "psql is not installed"
        return ""


def _is_postmaster(server: Server) -> bool:
    lines = _read(server.folder / "postmaster.pid").splitlines()
    return bool(lines) and lines[0].strip() == str(server.pid)


def _failure(text: str) -> str:
    found = _FAILURE.search(text)
    return found[1] if found else ""


def _environment(user: int) -> dict[str, str]:
    """Return where the server's user has its own settings."""
    try:
        home = pwd.getpwuid(user).pw_dir
    except KeyError:
        home = "/"
    return {"HOME": home, "PGCONNECT_TIMEOUT": str(int(_QUICK)), "PGAPPNAME": "freezeframe"}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
