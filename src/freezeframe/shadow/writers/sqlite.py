"""SQLite databases that programs have open, or that the settings name.

In the moment a lock is held that lets others read and none write (`BEGIN IMMEDIATE`): so no
transaction is under way, no journal is hot, and the write-ahead log ends with a whole one.
Without that a database is as safe in the image as it is from a power cut; with it, several
of them agree. The lock is a process's, which runs as the owner of the database, and ends with
this program (`sqlite_process`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Scope, Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.shadow.writers.settings import load_settings
from freezeframe.system.mounts import own_mounts
from freezeframe.system.servers import open_by_others

#: The program that holds a database; not imported: that would load SQLite as well.
_PROCESS = str(Path(__file__).with_name("sqlite_process.py"))
_SUFFIXES = (".db", ".db3", ".sqlite", ".sqlite3", ".s3db")
#: Beside a database that is in use; the name of its database is what comes before.
_BESIDE = ("-wal", "-shm", "-journal")
_MAGIC = b"SQLite format 3\0"
#: Asking these for a file may never come back.
_REMOTE = ("nfs", "cifs", "smb", "fuse", "ceph", "9p", "afs", "glusterfs")
#: More are left to their own journals: each takes a process.
_MOST = 16
_QUICK = 5.0
#: Seconds for one that was found: a program may keep it locked all the time.
_FOUND = 1.0


class SQLite(Writer):
    """One database file."""

    kind = "sqlite"

    def __init__(self, path: Path, *, named: bool = True) -> None:
        """`named`: it has to be held. Else it is left to its journal where that takes long."""
        self._path = path
        self._named = named
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._held = False
        self._freezing = False
        self._broken = ""
        self._missed = ""

    @property
    def name(self) -> str:
        """`sqlite:/srv/app.db`."""
        return f"sqlite:{self._path}"

    def about(self) -> str:
        """Say whether it was named or found."""
        return f"SQLite database, {'named in the settings' if self._named else 'in use'}"

    def paths(self) -> tuple[Path, ...]:
        """Return the file; its journals are beside it."""
        return (self._path.resolve(),)

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Open it, and move what is in its write-ahead log into it as far as that goes."""
        del scope
        self._try(lambda: self._connected(deadline).ask("checkpoint", deadline.within(_QUICK)))

    def freeze(self, deadline: Deadline) -> None:
        """Lock it against writing."""
        self._broken = self._missed = ""
        with self._lock:
            self._held = self._freezing = True
        try:
            if not self._named:
                deadline = deadline.within(_FOUND)
            # It gives up by itself, a little earlier than we do.
            limit = max(deadline.left * 0.9, 0.05)
            self._try(lambda: self._connected(deadline).ask(f"freeze {limit}", deadline))
        finally:
            with self._lock:
                self._freezing = False
            if self._missed:
                self.thaw()

    def thaw(self) -> None:
        """Unlock it."""
        with self._lock:
            client, held, freezing = self._client, self._held, self._freezing
            self._held = False
        if client is None or not held:
            return
        if freezing:
            client.kill()
            self._broken = "it was let go before it held"
            return
        try:
            client.ask("thaw", Deadline.after(_QUICK))
        except ClientFailed as error:
            client.kill()
            self._broken = str(error)

    def finish(self, taken: bool) -> WriterResult:
        """Tell whether it was held."""
        self.thaw()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
        missed = self._missed or self._broken
        if not missed and taken:
            return WriterResult("application")
        if taken and self._named:
            raise self._veto(missed)
        note = (f"not held: {missed}; it is as safe as from a power cut",) if missed else ()
        return WriterResult("crash", note)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except ClientFailed as error:
            self._missed = error.reason
            if self._named:
                raise self._veto(error.reason) from error

    def _veto(self, reason: str) -> WriterVeto:
        return WriterVeto(
            f"{self.name}: {reason}",
            hint="some program keeps it locked, or it is no database: see `fuser`",
        )

    def _connected(self, deadline: Deadline) -> Client:
        with self._lock:
            client = self._client
        if client is not None and client.alive:
            return client
        if client is not None:
            client.close()
        try:
            owner = self._path.stat()
        except OSError as error:
            raise ClientFailed("sqlite", error.strerror or str(error)) from error
        client = Client(
            # Isolated, without site: it needs neither the environment nor packages.
            (sys.executable, "-I", "-S", "-B", _PROCESS, os.fspath(self._path),
             str(owner.st_uid), str(owner.st_gid)),
            ending=lambda word: f"say {word}",
            failure=lambda text: text.strip().splitlines()[-1] if text.strip() else "",
        )  # fmt: skip
        with self._lock:
            self._client = client
        client.ask("open", deadline.within(_QUICK))
        return client


class SQLiteKind(WriterKind):
    """Databases that the settings name, and those in use."""

    kind = "sqlite"

    def __init__(self, databases: Sequence[Path] | None = None, *, find: bool = True) -> None:
        """`databases` in place of the settings'; `find` those in use."""
        self._databases = databases
        self._find = find

    def find(self) -> Sequence[SQLite]:
        """Return them by their paths; of those in use the first ones only."""
        settings = load_settings().sqlite
        named = [Path(path) for path in settings.databases]
        if self._databases is not None:
            named = list(self._databases)
        writers = {path.resolve(): SQLite(path) for path in named}
        if self._find and settings.find:
            found = sorted(path for path in _in_use() if path not in writers)
            writers |= {path: SQLite(path, named=False) for path in found[:_MOST]}
        return sorted(writers.values(), key=lambda writer: writer.name)


def _in_use() -> set[Path]:
    remote = [mount.point for mount in own_mounts() if mount.kind.startswith(_REMOTE)]
    found: set[Path] = set()
    for _, link in open_by_others():
        if not link.endswith((*_SUFFIXES, *_BESIDE)):
            continue
        path = Path(link)
        if any(path.is_relative_to(point) for point in remote):
            continue
        for suffix in _BESIDE:
            path = path.with_name(path.name.removesuffix(suffix))
        if path not in found and _is_database(path):
            found.add(path)
    return found


def _is_database(path: Path) -> bool:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            return os.read(descriptor, len(_MAGIC)) == _MAGIC
        finally:
            os.close(descriptor)
    return False
