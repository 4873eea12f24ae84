"""Trees: folders, as restic writes them, byte by byte.

A tree is `{"nodes":[…]}` and a newline. Fields stand in the order of restic's struct and are
omitted as it omits them; `<`, `>`, `&` and a few more are escaped as Go's encoder escapes
them, so that a tree we write has the id restic would give it.
"""

from __future__ import annotations

import binascii
import hashlib
import itertools
import re
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged

#: All our nodes have it: with a real time an unchanged tree would get a new id.
FIXED_TIME = "1970-01-01T00:00:00Z"
_DIRECTORY = 0x80000000
#: restic unquotes names as Go strings: a bare `"` makes a whole tree unreadable.
_SAFE_NAME = re.compile(r"[ !#-.0-\[\]-~]+")


def _nothing() -> None:
    """Give `content` its default without it being omitted: restic always writes it."""


class Attribute(msgspec.Struct, frozen=True):
    """An extended attribute; the value is base64 in JSON."""

    name: str
    value: bytes | None = None


class Node(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of a folder. Times stay text, so that what was read is written the same."""

    name: str
    type: str
    mode: int = 0
    mtime: str = ""
    atime: str = ""
    ctime: str = ""
    uid: int | None = None
    gid: int | None = None
    user: str = ""
    group: str = ""
    inode: int = 0
    device_id: int = 0
    size: int = 0
    links: int = 0
    linktarget: str = ""
    linktarget_raw: bytes | None = None
    extended_attributes: list[Attribute] = []
    generic_attributes: msgspec.Raw = msgspec.Raw()
    device: int = 0
    #: Ids (64 hex digits) of a file's data blobs, in order; None for anything else.
    content: list[str] | None = msgspec.field(default_factory=_nothing)
    #: Id of a folder's tree.
    subtree: str | None = None
    error: str = ""


class _Tree(msgspec.Struct, frozen=True):
    nodes: list[Node] | None


def file_node(
    name: str,
    content: Sequence[str] | NDArray[np.uint8],
    size: int,
    mtime: str = FIXED_TIME,
    *,
    mode: int = 0o600,
) -> Node:
    """Return a file of `size` bytes.

    `content` is its blobs' ids: hex texts, or an array uint8 of shape (n, 32).
    Raises `FreezeframeError` for a name that restic could not read.
    """
    ids = _hex_ids(content) if isinstance(content, np.ndarray) else list(content)
    return Node(
        name=_checked(name),
        type="file",
        mode=mode,
        mtime=mtime,
        atime=mtime,
        ctime=mtime,
        uid=0,
        gid=0,
        size=size,
        content=ids,
    )


def dir_node(
    name: str, subtree: bytes | str, mtime: str = FIXED_TIME, *, mode: int = 0o700
) -> Node:
    """Return a folder; `subtree` is its tree's id, 32 bytes or 64 hex digits."""
    return Node(
        name=_checked(name),
        type="dir",
        mode=_DIRECTORY | mode,
        mtime=mtime,
        atime=mtime,
        ctime=mtime,
        uid=0,
        gid=0,
        subtree=subtree if isinstance(subtree, str) else subtree.hex(),
    )


def content_ids(node: Node) -> NDArray[np.uint8]:
    """Return a file's blob ids: uint8, shape (n, 32). Raises `RepositoryDamaged`."""
    content = node.content or []
    try:
        joined = binascii.unhexlify("".join(content))
    except ValueError:
        joined = b""
    if len(joined) != 32 * len(content):
        raise RepositoryDamaged("file", node.name, "its content is not a list of ids")
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def encode_tree(nodes: Sequence[Node]) -> bytes:
    """Return the plain bytes of a tree blob.

    Nodes must be in strictly ascending bytewise order of their names: `ValueError`.
    """
    names = [node.name.encode("utf-8", "surrogatepass") for node in nodes]
    if any(one >= other for one, other in itertools.pairwise(names)):
        raise ValueError("the nodes of a tree must be in ascending order of their names")
    return _as_go(msgspec.json.encode(_Tree(list(nodes)))) + b"\n"


def decode_tree(data: bytes) -> list[Node]:
    """Return the nodes of a tree blob. Raises `RepositoryDamaged`, naming it by its hash."""
    try:
        return msgspec.json.decode(data, type=_Tree).nodes or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        name = hashlib.sha256(data).hexdigest()
        raise RepositoryDamaged("blob", name, f"it is no tree: {error}") from error


def _checked(name: str) -> str:
    if name in (".", "..") or not _SAFE_NAME.fullmatch(name):
        raise FreezeframeError(f"{name!r} cannot be a name in an image")
    return name


def _hex_ids(ids: NDArray[np.uint8]) -> list[str]:
    text = ids.tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


#: What Go's JSON encoder (as of restic 0.14) writes otherwise than msgspec.
_ESCAPES = {
    b"<": rb"\u003c",
    b">": rb"\u003e",
    b"&": rb"\u0026",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
    rb"\b": rb"\u0008",
    rb"\f": rb"\u000c",
}
# A backslash is always taken together with what it escapes, so that `\\b` stays as it is.
_ESCAPED = re.compile(rb"\\.|[<>&]|\xe2\x80[\xa8\xa9]")


def _as_go(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[0], found[0]), text)
