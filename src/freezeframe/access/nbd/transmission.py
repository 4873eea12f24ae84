"""One client reading one export."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from freezeframe.access.nbd import wire
from freezeframe.access.nbd.negotiation import LARGEST_REQUEST, Agreed
from freezeframe.access.nbd.wire import Command, Gone, Kind, receive
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB

log = logging.getLogger("freezeframe.access")

#: Requests of one connection under way at once; further ones are not even read.
_UNDER_WAY = 32
#: Stretches told in one answer, at most: the client asks again for what follows.
_STRETCHES = 4096
#: Longer data goes out by a call of its own: cheaper than to join it with its header.
_LARGE = 16 * KIB


class Transmission:
    """Answers requests, reads in the pool's threads, everything else at once."""

    def __init__(
        self,
        connection: socket.socket,
        agreed: Agreed,
        pool: ThreadPoolExecutor,
        data_extents: Callable[[], Extents],
    ) -> None:
        self._connection = connection
        self._agreed = agreed
        self._reader = agreed.reader
        self._pool = pool
        self._data_extents = data_extents
        self._sending = threading.Lock()
        self._free = threading.Semaphore(_UNDER_WAY)

    def run(self) -> None:
        """Serve until the client takes its leave. Raises `Gone` where it just goes."""
        while True:
            request = wire.REQUEST.unpack(receive(self._connection, wire.REQUEST.size))
            magic, flags, command, cookie, offset, length = request
            if magic != wire.REQUEST_MAGIC:
                raise Gone("it does not speak the protocol")
            if command == Command.DISCONNECT:
                self._settle()
                return
            if command == Command.READ:
                self._later(self._read, cookie, offset, length)
            elif command == Command.BLOCK_STATUS:
                one = bool(flags & wire.REQUEST_ONE)
                status = functools.partial(self._status, only_one=one)
                self._later(status, cookie, offset, length)
            elif command == Command.WRITE:
                self._swallow(length)
                self._plain(cookie, wire.EPERM)
            elif command in (Command.TRIM, Command.WRITE_ZEROES):
                self._plain(cookie, wire.EPERM)
            else:
                self._plain(cookie, 0 if command == Command.FLUSH else wire.EINVAL)

    def _settle(self) -> None:
        """Wait for what is under way: its answers still go out."""
        for _ in range(_UNDER_WAY):
            self._free.acquire()

    def _swallow(self, length: int) -> None:
        while length:
            length -= len(receive(self._connection, min(length, MIB)))

    def _later(
        self, answer: Callable[[int, int, int], None], cookie: int, offset: int, length: int
    ) -> None:
        self._free.acquire()

        def work() -> None:
            try:
                if offset + length > self._reader.size or not length:
                    self._failed(cookie, wire.EINVAL, "beyond the end")
                else:
                    answer(cookie, offset, length)
            except FreezeframeError as error:
                log.warning("%s", error.message)
                with contextlib.suppress(OSError):
                    self._failed(cookie, wire.EIO, error.message)
            except OSError:
                pass  # the client is gone; the thread that takes requests finds out as well
            except Exception:
                log.exception("a request for %s failed", self._reader.name)
                with contextlib.suppress(OSError):
                    self._failed(cookie, wire.EIO, "a mistake of the server")
            finally:
                self._free.release()

        try:
            self._pool.submit(work)
        except RuntimeError as error:
            raise Gone("the server ends") from error

    # -- answers ------------------------------------------------------------------------

    def _read(self, cookie: int, offset: int, length: int) -> None:
        if length > LARGEST_REQUEST:
            self._failed(cookie, wire.EOVERFLOW, "too much at once")
            return
        data = self._reader.read_at(offset, length)
        if self._agreed.structured:
            self._chunk(cookie, Kind.DATA, offset.to_bytes(8, "big"), data)
        else:
            self._send(wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, 0, cookie), data)

    def _status(self, cookie: int, offset: int, length: int, *, only_one: bool) -> None:
        """Tell which stretches are there."""
        if not self._agreed.allocation:
            self._failed(cookie, wire.EINVAL, "nothing was agreed on that")
            return
        stop = offset + length
        there = self._data_extents().clip(offset, stop)
        edges: list[tuple[int, int]] = []
        at = offset
        for first, last in there:
            if first > at:
                edges.append((first - at, wire.IS_HOLE))
            edges.append((last - first, 0))
            at = last
            if len(edges) >= _STRETCHES:
                break
        else:
            if at < stop:
                edges.append((stop - at, wire.IS_HOLE))
        told = edges[:1] if only_one else edges
        body = b"".join(wire.STRETCH.pack(*edge) for edge in told)
        self._chunk(cookie, Kind.BLOCK_STATUS, wire.ALLOCATION_ID.to_bytes(4, "big"), body)

    def _failed(self, cookie: int, error: int, why: str) -> None:
        if not self._agreed.structured:
            self._plain(cookie, error)
            return
        text = why.encode()[:1000]
        self._chunk(cookie, Kind.ERROR, wire.ERROR_HEADER.pack(error, len(text)), text)

    def _plain(self, cookie: int, error: int) -> None:
        self._send(wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, error, cookie), b"")

    def _chunk(self, cookie: int, kind: Kind, header: bytes, body: bytes) -> None:
        length = len(header) + len(body)
        start = wire.CHUNK_HEADER.pack(wire.CHUNK_MAGIC, wire.DONE, kind, cookie, length)
        self._send(start + header, body)

    def _send(self, header: bytes, body: bytes) -> None:
        with self._sending:
            if len(body) < _LARGE:
                self._connection.sendall(header + body)
            else:
                self._connection.sendall(header)
                self._connection.sendall(body)
