"""Sealed JSON: how config, indexes, snapshots and locks are kept.

Plain bytes are either bare JSON (its first byte is `{` or `[`), or 0x02 and one zstandard
frame of it. We read both and write the second; the config is always bare.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from freezeframe.core.errors import RepositoryDamaged
from freezeframe.core.units import MIB
from freezeframe.repo.compress import NotCompressed, compress_text, decompress, decompressor
from freezeframe.repo.crypto import Buffer, SealBroken, Sealer

_COMPRESSED = b"\x02"
#: Larger than any such file of 50,000 blobs; a bomb stops here.
_LARGEST = 256 * MIB

Document = TypeVar("Document")


def refuse_huge(kind: str, name: str, size: int) -> None:
    """Raise `RepositoryDamaged` for an object (not a pack) too large to be read into memory."""
    if size > _LARGEST:
        raise RepositoryDamaged(kind, name, f"{size} bytes are too many for what it should be")


def seal_text(sealer: Sealer, text: bytes, *, compress: bool = True) -> bytes:
    """Return the sealed form of a JSON text."""
    return b"".join(sealer.seal(_COMPRESSED + compress_text(text) if compress else text))


def open_text(sealer: Sealer, sealed: Buffer, kind: str, name: str) -> bytes:
    """Return the JSON text of a sealed object. Raises `RepositoryDamaged`."""
    try:
        plain = sealer.open(sealed)
        if plain[:1] in (b"{", b"["):
            return plain
        if plain[:1] == _COMPRESSED:
            return decompress(decompressor(), memoryview(plain)[1:], _LARGEST)
    except (SealBroken, NotCompressed) as error:
        raise RepositoryDamaged(kind, name, str(error)) from error
    raise RepositoryDamaged(kind, name, "it is encoded in an unknown way")


def decode(text: bytes, shape: type[Document], kind: str, name: str) -> Document:
    """Return a JSON text as the struct it must be. Raises `RepositoryDamaged`."""
    try:
        return msgspec.json.decode(text, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryDamaged(kind, name, f"its content is not as it must be: {error}") from error
