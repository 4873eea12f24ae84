"""What client and server agree on before anything is read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from freezeframe.access.nbd import wire
from freezeframe.access.nbd.wire import Gone, Option, Reply, receive
from freezeframe.block.base import Reader
from freezeframe.core.units import MIB

#: Bytes of one request, at most: what the protocol bids clients to keep to, unless told more.
LARGEST_REQUEST = 32 * MIB
_LONGEST_OPTION = 64 * 1024


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a client reads, and how it is answered."""

    reader: Reader
    #: Whether replies are in chunks that say what they are.
    structured: bool
    #: Whether it may ask which stretches are there.
    allocation: bool


class Negotiation:
    """One client, before it reads."""

    def __init__(self, connection: socket.socket, exports: Mapping[str, Reader]) -> None:
        self._connection = connection
        self._exports = exports
        self._structured = False
        self._allocation: Reader | None = None

    def run(self) -> Agreed | None:
        """Agree on an export; None where the client only wanted to know something."""
        self._connection.sendall(
            wire.GREETING.pack(wire.MAGIC, wire.OPTIONS_MAGIC, wire.FIXED_NEWSTYLE | wire.NO_ZEROES)
        )
        (flags,) = struct.unpack(">I", receive(self._connection, 4))
        while True:
            magic, option, length = wire.OPTION.unpack(receive(self._connection, wire.OPTION.size))
            if magic != wire.OPTIONS_MAGIC or length > _LONGEST_OPTION:
                raise Gone("it does not speak the protocol")
            data = receive(self._connection, length)
            if option == Option.ABORT:
                self._reply(option, Reply.ACK)
                return None
            if option == Option.EXPORT_NAME:
                return self._agreed(self._export_name(data, bool(flags & wire.NO_ZEROES)))
            if option in (Option.INFO, Option.GO):
                reader = self._info(option, data)
                if reader is not None and option == Option.GO:
                    return self._agreed(reader)
            else:
                self._other(option, data)

    def _agreed(self, reader: Reader) -> Agreed:
        return Agreed(reader, self._structured, self._allocation is reader)

    def _reply(self, option: int, kind: Reply, data: bytes = b"") -> None:
        header = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data))
        self._connection.sendall(header + data)

    def _named(self, name: bytes) -> Reader | None:
        text = name.decode(errors="replace")
        return self._exports.get(text) if text else next(iter(self._exports.values()))

    def _export_name(self, name: bytes, no_zeroes: bool) -> Reader:
        reader = self._named(name)
        if reader is None:
            raise Gone("it asked for an export there is not")
        pad = b"" if no_zeroes else bytes(124)
        self._connection.sendall(wire.EXPORT.pack(reader.size, wire.EXPORT_FLAGS) + pad)
        return reader

    def _info(self, option: int, data: bytes) -> Reader | None:
        name, _ = _text(data)
        if name is None:
            self._reply(option, Reply.INVALID)
            return None
        reader = self._named(name)
        if reader is None:
            self._reply(option, Reply.UNKNOWN)
            return None
        told = wire.INFO_EXPORT.pack(wire.INFO_IS_EXPORT, reader.size, wire.EXPORT_FLAGS)
        self._reply(option, Reply.INFO, told)
        # Any byte may be asked for; whole pages are what is cheap.
        sizes = wire.INFO_SIZES.pack(wire.INFO_IS_SIZES, 1, 4096, LARGEST_REQUEST)
        self._reply(option, Reply.INFO, sizes)
        self._reply(option, Reply.ACK)
        return reader

    def _other(self, option: int, data: bytes) -> None:
        if option == Option.LIST:
            for name in self._exports:
                encoded = name.encode()
                self._reply(option, Reply.SERVER, struct.pack(">I", len(encoded)) + encoded)
            self._reply(option, Reply.ACK)
        elif option == Option.STRUCTURED_REPLY:
            self._structured = True
            self._reply(option, Reply.ACK)
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._contexts(option, data)
        else:
            self._reply(option, Reply.UNSUPPORTED)

    def _contexts(self, option: int, data: bytes) -> None:
        """Answer which facts of stretches a client may ask for: whether anything is there."""
        name, rest = _text(data)
        queries = _queries(rest)
        setting = option == Option.SET_META_CONTEXT
        if name is None or queries is None or (setting and not self._structured):
            self._reply(option, Reply.INVALID)
            return
        reader = self._named(name)
        if reader is None:
            self._reply(option, Reply.UNKNOWN)
            return
        known = wire.ALLOCATION.encode()
        wanted = known in queries or (not setting and (not queries or b"base:" in queries))
        if setting:
            self._allocation = reader if wanted else None
        if wanted:
            told = struct.pack(">I", wire.ALLOCATION_ID if setting else 0) + known
            self._reply(option, Reply.META_CONTEXT, told)
        self._reply(option, Reply.ACK)


def _text(data: bytes) -> tuple[bytes | None, bytes]:
    """Take a text with its length before it off some data; None where it is not there."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length or len(data) < 6:
        return None, b""
    return data[4 : 4 + length], data[4 + length :]


def _queries(data: bytes) -> list[bytes] | None:
    """Return a list of texts; None where it is none."""
    count, rest = int.from_bytes(data[:4], "big"), data[4:]
    found: list[bytes] = []
    if len(data) < 4:
        return None
    while rest and len(found) < count:
        length = int.from_bytes(rest[:4], "big")
        if len(rest) < 4 + length:
            return None
        found.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return found if len(found) == count and not rest else None
