"""The NBD protocol as it goes over the wire. Source: `proto.md` of the NBD project."""

from __future__ import annotations

import enum
import socket
import struct

GREETING = struct.Struct(">8s8sH")
OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT = struct.Struct(">QH")
INFO_EXPORT = struct.Struct(">HQH")
INFO_SIZES = struct.Struct(">HIII")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
#: magic, flags, kind, cookie, length of what follows.
CHUNK_HEADER = struct.Struct(">IHHQI")
HOLE = struct.Struct(">QI")
STRETCH = struct.Struct(">II")
ERROR_HEADER = struct.Struct(">IH")

MAGIC, OPTIONS_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
#: Of an export: flags are there, read only, flush is known, several connections see the same.
EXPORT_FLAGS = 1 | 1 << 1 | 1 << 2 | 1 << 8


class Option(enum.IntEnum):
    """What a client may ask before it reads."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """What it is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = (1 << 31) + 1
    INVALID = (1 << 31) + 3
    UNKNOWN = (1 << 31) + 6


INFO_IS_EXPORT, INFO_IS_SIZES = 0, 3


class Command(enum.IntEnum):
    """What a client wants of an export."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


REQUEST_ONE = 1 << 3


class Kind(enum.IntEnum):
    """Kinds of chunks of a structured reply."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


DONE = 1
#: The one thing told of stretches: whether anything is there.
ALLOCATION = "base:allocation"
ALLOCATION_ID = 1
#: A stretch that is not there and reads as zeros.
IS_HOLE = 1 | 2

EPERM, EIO, EINVAL, EOVERFLOW = 1, 5, 22, 75


class Gone(Exception):
    """The client went away, or does not speak the protocol: the connection ends."""


def receive(connection: socket.socket, length: int) -> bytes:
    """Take just so many bytes. Raises `Gone` where the client hangs up before."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise Gone("it hung up")
        view = view[got:]
    return bytes(data)
