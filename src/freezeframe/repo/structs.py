"""The JSON of a restic repository, format 2, as typed structs. No behaviour here.

Field order is the order they are written in, and follows restic's own structs; what restic
omits when empty has a default here and is omitted too.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

HexId = Annotated[str, Meta(min_length=64, max_length=64)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Moment = Annotated[dt.datetime, Meta(tz=True)]


class ConfigFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """`config`."""

    version: int
    id: str
    chunker_polynomial: str


class VersionOnly(msgspec.Struct, frozen=True):
    """What of a `config` says whether we can read the rest."""

    version: int


class KeyFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """`keys/<id>`: the only object that is not sealed. `bytes` are base64 in JSON."""

    created: Moment
    username: str
    hostname: str
    kdf: str
    N: int
    r: int
    p: int
    salt: bytes
    #: A sealed `MasterKeyFile`.
    data: bytes


class MacKey(msgspec.Struct, frozen=True):
    """The key of the message authentication code."""

    k: bytes
    r: bytes


class MasterKeyFile(msgspec.Struct, frozen=True):
    """What a key file wraps."""

    mac: MacKey
    encrypt: bytes


class IndexBlob(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One blob of a pack. `uncompressed_length` is absent for a blob stored raw."""

    id: HexId
    type: Literal["data", "tree"]
    offset: UInt32
    length: UInt32
    uncompressed_length: UInt32 = 0


class IndexPack(msgspec.Struct, frozen=True):
    """One pack of an index file."""

    id: HexId
    blobs: list[IndexBlob]


class DeadPack(msgspec.Struct, frozen=True):
    """A pack that rustic will delete: nothing in it may be counted on."""

    id: HexId


class IndexFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """`index/<id>`."""

    packs: list[IndexPack] | None
    packs_to_delete: list[DeadPack] = []


class LockFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """`locks/<id>`."""

    time: Moment
    exclusive: bool
    hostname: str = ""
    username: str = ""
    pid: int = 0
    uid: int = 0
    gid: int = 0
