"""The server: listens, and gives each client a thread.

Read only, on a unix socket or a TCP address. Each connection has a thread that takes requests;
the reads themselves are done by a few threads that all connections share, so that one slow
chunk does not hold up the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from freezeframe.access.nbd.negotiation import Negotiation
from freezeframe.access.nbd.transmission import Transmission
from freezeframe.access.nbd.wire import Gone
from freezeframe.block.base import Reader
from freezeframe.core.closing import Closing
from freezeframe.core.errors import UsageError
from freezeframe.core.extents import Extents

log = logging.getLogger("freezeframe.access")

#: A unix socket's path, or (host, port).
Address: TypeAlias = str | tuple[str, int]


class NbdServer(Closing):
    """Serves readers by name until it is closed. The readers stay open.

    `exports` maps names to readers; a client that asks for the empty name gets the first. An
    existing socket file is not replaced. Raises `UsageError` where the address cannot be had.
    """

    def __init__(
        self, exports: Mapping[str, Reader], address: Address, *, threads: int = 4
    ) -> None:
        if not exports:
            raise UsageError("there is nothing to serve")
        self._exports = dict(exports)
        #: What is there of each reader, by its identity: asked once, when a client wants to know.
        self._there: dict[int, Extents] = {}
        self._asking = threading.Lock()
        self._path = address if isinstance(address, str) else ""
        self._listener = _listen(address)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nbd")
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._accepting = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._accepting.start()

    @property
    def port(self) -> int:
        """The TCP port it listens at; 0 for a unix socket."""
        name: object = self._listener.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def close(self) -> None:
        """End all connections and threads, and remove the socket."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._path:
            Path(self._path).unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                agreed = Negotiation(connection, self._exports).run()
                if agreed is not None:
                    reader = agreed.reader
                    Transmission(
                        connection, agreed, self._pool, lambda: self._data_extents(reader)
                    ).run()
        except (Gone, OSError) as error:
            log.debug("an NBD client went away: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _data_extents(self, reader: Reader) -> Extents:
        with self._asking:
            found = self._there.get(id(reader))
            if found is None:
                found = self._there[id(reader)] = reader.data_extents()
            return found


def _listen(address: Address) -> socket.socket:
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM)
    try:
        if kind == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # For its owner alone, from the very beginning: it gives all that an image holds.
        mask = os.umask(0o077)
        try:
            listener.bind(address)
        finally:
            os.umask(mask)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"nothing can be served at {address}: {error.strerror or error}",
            hint="name another socket or port",
        ) from error
    return listener
