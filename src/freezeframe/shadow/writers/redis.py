"""Redis and Valkey, by way of their own client program.

With an append-only file every change is written to it before the client has its answer, or,
with `appendfsync everysec` and a slow disk, up to two seconds later. So to hold it means: no
new changes (`CLIENT PAUSE … WRITE`, 6.2 and later; reading goes on), then wait until the
buffer of that file is empty. The freeze of the filesystem puts the file's pages on the disk;
an fsync of its own (WAITAOF) would add nothing to that.

The pause has a limit of its own: it ends by itself should this program die.

Without an append-only file only snapshots (`save`) survive a restart; one is made beforehand,
and what is written after it is not in the image: which is said.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline, TimedOut
from freezeframe.shadow.writers.base import Scope, Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.shadow.writers.links import resolved
from freezeframe.system.run import which
from freezeframe.system.servers import Server, servers

#: Server → its client program; each speaks with the other too.
_CLIENTS = {
    "redis-server": ("redis-cli", "valkey-cli"),
    "valkey-server": ("valkey-cli", "redis-cli"),
}
_SETTINGS = (Path("/etc/redis"), Path("/etc/valkey"))
_PASSWORD = re.compile(r"""^\s*requirepass\s+["']?([^"'\s]+)""", re.MULTILINE)
#: CLIENT PAUSE … WRITE and CLIENT UNPAUSE.
_OLDEST = (6, 2)
_QUICK = 5.0
#: Seconds a pause outlasts the time allowed for freezing: the copy is made in them.
_AFTER = 15.0
_MOST = 60.0
#: Seconds between looks at the buffer.
_BETWEEN = 0.002


class Redis(Writer):
    """One server and its data folder."""

    kind = "redis"

    def __init__(self, server: Server) -> None:
        """`server` works in its data folder."""
        self._server = server
        self._folder = server.folder
        ports, sockets = server.tcp_ports(), server.unix_sockets()
        self._name = str(ports[0][1] if ports else sockets[0] if sockets else server.folder)
        self._client: Client | None = None
        self._lock = threading.Lock()
        #: Moment at which the pause ends by itself; 0 where there is none.
        self._until = 0.0
        self._freezing = False
        self._broken = ""
        self._password: str | None = None
        self._facts: dict[str, str] = {}
        self._notes: list[str] = []
        self._appends = False
        self._pauses = False

    @property
    def name(self) -> str:
        """`redis:6379`, or by its socket."""
        return f"redis:{self._name}"

    def about(self) -> str:
        """Say what it is and where its data lie."""
        product = "Valkey" if self._server.name.startswith("valkey") else "Redis"
        return f"{product}, data in {self._folder}"

    def paths(self) -> tuple[Path, ...]:
        """Return its folder, and where links in it lead."""
        return resolved(self._folder, inside=("", "appendonlydir"))

    # -- the time line ------------------------------------------------------------------

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Connect; save a snapshot where there is no append-only file."""
        del scope
        client = self._connected(deadline)
        try:
            info = _info(client, "everything", deadline.within(_QUICK))
            self._facts = {
                "version": info.get("redis_version", ""),
                "run_id": info.get("run_id", ""),
                "role": info.get("role", ""),
                "append_only": "yes" if info.get("aof_enabled") == "1" else "no",
            }
            self._appends = info.get("aof_enabled") == "1"
            self._pauses = _numbers(info.get("redis_version", "")) >= _OLDEST
            if not self._appends:
                self._save(client, deadline)
        except (ClientFailed, TimedOut) as error:
            raise self._veto(error) from error

    def _save(self, client: Client, deadline: Deadline) -> None:
        if not "".join(client.ask("CONFIG GET save", deadline.within(_QUICK))[1:]).strip():
            self._notes.append("it keeps nothing on disk (neither append-only file nor snapshots)")
            return
        client.ask("BGSAVE", deadline.within(_QUICK))
        while _info(client, "persistence", deadline).get("rdb_bgsave_in_progress") == "1":
            deadline.check(f"{self.name}: saving a snapshot")
            time.sleep(0.1)
        info = _info(client, "persistence", deadline.within(_QUICK))
        if info.get("rdb_last_bgsave_status") != "ok":
            raise ClientFailed("redis-cli", "saving a snapshot failed")
        at = time.strftime("%H:%M:%S", time.localtime(int(info.get("rdb_last_save_time", "0"))))
        self._notes.append(
            f"it keeps snapshots only: what was written after {at} is not in the image"
        )

    def freeze(self, deadline: Deadline) -> None:
        """Hold writes, and wait until all of them are in the append-only file."""
        client = self._connected(deadline)
        self._broken = ""
        seconds = min(deadline.left, _MOST) + _AFTER
        with self._lock:
            self._until = until = time.monotonic() + seconds if self._pauses else 0.0
            self._freezing = True
        try:
            if self._pauses:
                answer = client.ask(f"CLIENT PAUSE {int(seconds * 1000)} WRITE", deadline)
                if answer != ["OK"]:
                    raise ClientFailed("redis-cli", " ".join(answer) or "no answer")
            if self._appends:
                self._wait_for_file(client, deadline)
        except (ClientFailed, TimedOut) as error:
            raise self._veto(error) from error
        finally:
            with self._lock:
                self._freezing = False
                called_off = self._until != until
            if called_off:
                # `thaw` came meanwhile; what was under way may have paused it after that.
                self._unpause_anew(until)

    def _wait_for_file(self, client: Client, deadline: Deadline) -> None:
        while True:
            info = _info(client, "persistence", deadline)
            if info.get("aof_last_write_status") != "ok":
                raise ClientFailed("redis-cli", "its last write to the append-only file failed")
            if info.get("aof_buffer_length") == "0":
                return
            deadline.check(f"{self.name}: writing the append-only file")
            time.sleep(_BETWEEN)

    def thaw(self) -> None:
        """Let writes go on."""
        with self._lock:
            until, self._until = self._until, 0.0
            client, freezing = self._client, self._freezing
        if not until:
            return
        if client is None or freezing or not client.alive:
            # `freeze` is at work in another thread, or the client ended: with a new one.
            self._unpause_anew(until)
            return
        try:
            now = time.monotonic()
            answer = client.ask("CLIENT UNPAUSE", Deadline.after(_QUICK))
            if answer != ["OK"]:
                raise ClientFailed("redis-cli", " ".join(answer))
            if now >= until:
                self._broken = "the pause had ended by itself"
        except ClientFailed as error:
            self._broken = str(error)
            self._unpause_anew(until)

    def _unpause_anew(self, until: float) -> None:
        self._broken = self._broken or "its client was lost"
        with self._lock:
            client = self._client
        if client is not None:
            # Closed by who may still wait for its answer, or at the end.
            client.kill()
        try:
            with self._connect(Deadline.after(_QUICK)) as other:
                other.ask("CLIENT UNPAUSE", Deadline.after(_QUICK))
        except FreezeError as error:
            if self._server.runs and time.monotonic() < until:
                raise FreezeError(
                    f"{self.name} could not be told to go on: {error}",
                    hint=f"it does in {until - time.monotonic():.0f} s by itself; or: redis-cli"
                    " CLIENT UNPAUSE",
                ) from error

    def finish(self, taken: bool) -> WriterResult:
        """Make sure that it is the same server still, and tell what the image holds."""
        self.thaw()
        with self._lock:
            client, self._client = self._client, None
        if client is None:
            if taken:
                raise self._veto(ClientFailed("redis-cli", self._broken or "it was not prepared"))
            return WriterResult("crash", tuple(self._notes), self._facts)
        with client:
            if taken and not self._broken:
                self._check_same(client)
        if taken and self._broken:
            raise self._veto(ClientFailed("redis-cli", self._broken))
        notes = list(self._notes)
        whole = self._appends and self._pauses
        if self._facts.get("role") != "master":
            whole = False
            notes.append("a replica: what its primary sends is not held")
        if not self._pauses:
            notes.append("writes were not held: that needs version 6.2")
        return WriterResult(
            "application" if whole and taken else "crash", tuple(notes), self._facts
        )

    def _check_same(self, client: Client) -> None:
        try:
            info = _info(client, "server", Deadline.after(_QUICK))
        except ClientFailed as error:
            self._broken = str(error)
            return
        if info.get("run_id") != self._facts.get("run_id"):
            self._broken = "it was started anew meanwhile"

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return what ends the pause before it ends by itself, where no password is needed."""
        if not self._pauses or self._password is not None:
            return ()
        try:
            return ((*self._command(), "CLIENT", "UNPAUSE"),)
        except FreezeError:
            return ()

    # -- the connection -----------------------------------------------------------------

    def _connected(self, deadline: Deadline) -> Client:
        with self._lock:
            client = self._client
        if client is not None and client.alive:
            return client
        if client is not None:
            client.close()
        try:
            client = self._connect(deadline)
        except ClientFailed as error:
            raise self._veto(error) from error
        with self._lock:
            self._client = client
        return client

    def _connect(self, deadline: Deadline) -> Client:
        """Try without a password, then those in the settings; never one on a command line."""
        reason = ""
        for password in (None, *_passwords()):
            client = Client(
                self._command(),
                ending=lambda word: f"ECHO {word}",
                failure=_failure,
                # Without the password not even the word that ends an answer comes back.
                refusal="NOAUTH",
                environment={} if password is None else {"REDISCLI_AUTH": password},
            )
            try:
                answer = client.ask("PING", deadline.within(_QUICK))
            except ClientFailed as error:
                reason = error.reason
                client.close()
                continue
            if answer[-1:] == ["PONG"]:
                self._password = password
                return client
            reason = " ".join(answer)
            client.close()
        raise ClientFailed("redis-cli", reason or "no answer", gone=True)

    def _command(self) -> tuple[str, ...]:
        names = _CLIENTS[self._server.name]
        program = next((path for name in names if (path := which(name))), None)
        if program is None:
            raise WriterVeto(
                f"{self.name}: redis-cli is needed and is not installed",
                hint="install it: apt-get install redis-tools",
            )
        if not self._server.runs:
            raise ClientFailed("redis-cli", "the server has ended", gone=True)
        for path in self._server.unix_sockets():
            full = self._folder / path
            if full.is_socket():
                return (program, "-s", str(full))
        for address, port in self._server.tcp_ports():
            local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
            return (program, "-h", local, "-p", str(port))
        raise ClientFailed("redis-cli", "it listens nowhere", gone=True)

    def _veto(self, error: Exception) -> WriterVeto:
        return WriterVeto(
            f"{self.name}: {error}",
            hint="a password is looked for as `requirepass` in /etc/redis; the account must be"
            " allowed INFO, CONFIG GET and CLIENT",
        )


class RedisKind(WriterKind):
    """Servers that run here."""

    kind = "redis"

    def find(self) -> Sequence[Redis]:
        """Return them by their ports."""
        return sorted(map(Redis, servers(_CLIENTS.keys())), key=lambda writer: writer.name)

    def unavailable(self) -> str:
        """Say that the client program is missing, or nothing."""
        names = {name for names in _CLIENTS.values() for name in names}
        return "" if any(map(which, names)) else "redis-cli is not installed"


def _info(client: Client, section: str, deadline: Deadline) -> dict[str, str]:
    lines = client.ask(f"INFO {section}", deadline)
    pairs = (line.strip().partition(":") for line in lines)
    return {key: value for key, found, value in pairs if found}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _passwords() -> list[str]:
    found = []
    for folder in _SETTINGS:
        for file in sorted(folder.glob("*.conf")):
            try:
                found += _PASSWORD.findall(file.read_text(errors="replace"))
            except OSError:
                continue
    return list(dict.fromkeys(found))


def _failure(text: str) -> str:
    lines = [line for line in text.splitlines() if "rror" in line or "NOAUTH" in line]
    return lines[0] if lines else ""
