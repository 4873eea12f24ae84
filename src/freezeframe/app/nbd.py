"""Serve an image to programs that speak NBD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from freezeframe.access.cache import BlobCache
from freezeframe.access.nbd import Address, NbdServer
from freezeframe.access.parts import open_disks, parts_of
from freezeframe.app.session import opened_images
from freezeframe.core.progress import Progress
from freezeframe.repo.repository import Repository


@contextmanager
def served_by_nbd(
    opening: Callable[[], Repository],
    image: str,
    address: Address,
    progress: Progress,
    *,
    threads: int | None = None,
) -> Iterator[list[tuple[str, int, str]]]:
    """Serve every part of an image; give (name, bytes, URI) of each.

    Raises `UsageError` for an address that cannot be had.
    """
    with (
        opened_images(opening(), (image,), progress) as (found,),
        BlobCache(threads=threads) as cache,
    ):
        parts = parts_of(open_disks(found, cache))
        exports = {part.name: part.reader for part in parts}
        with NbdServer(exports, address):
            yield [(name, reader.size, _uri(address, name)) for name, reader in exports.items()]


def _uri(address: Address, name: str) -> str:
    if isinstance(address, str):
        return f"nbd+unix:///{quote(name)}?socket={quote(address)}"
    host, port = address
    return f"nbd://{host}:{port}/{quote(name)}"
