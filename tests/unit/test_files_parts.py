"""Parts of reading files that need no filesystem."""

from __future__ import annotations

import zlib

import pytest
import zstandard

from freezeframe.access.files import fstab
from freezeframe.access.files.acl import from_ext, from_xfs
from freezeframe.access.files.base import Held, InMemory, Piece, read_range, stream
from freezeframe.access.files.ntfs_structs import unpack
from freezeframe.access.files.unpack import lzo1x, unlzo, unzlib, unzstd
from freezeframe.app.files import Where, parse_where
from freezeframe.core.errors import NotUnderstood, UsageError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("latest", Where("latest", "", None)),
        ("latest:/", Where("latest", "", b"/")),
        ("3f2a:/etc/a:b", Where("3f2a", "", b"/etc/a:b")),
        ("3f2a:sda/p2:/etc", Where("3f2a", "sda/p2", b"/etc")),
        ("3f2a:sda/p2", Where("3f2a", "sda/p2", b"/")),
        ("3f2a:sda/p2:", Where("3f2a", "sda/p2", b"/")),
        ("3f2a:LABEL=my disk:/a:/b", Where("3f2a", "LABEL=my disk", b"/a:/b")),
        ("3f2a:/dev/sda2:/etc", Where("3f2a", "/dev/sda2", b"/etc")),
        ("3f2a:/dev/null", Where("3f2a", "", b"/dev/null")),
        ("x:/\udcff", Where("x", "", b"/\xff")),
    ],
)
def test_where(text: str, wanted: Where) -> None:
    assert parse_where(text) == wanted


@pytest.mark.parametrize("text", ["", ":/x", "latest:", "latest::/x"])
def test_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse_where(text)


def test_fstab() -> None:
    lines = list(
        fstab.parse(
            b"# comment\n"
            b"UUID=1234 / ext4 errors=remount-ro 0 1\n"
            b"LABEL=a\\040b /mnt/with\\040space\tbtrfs\tsubvol=/@x,compress 0 0\n"
            b"/dev/sda3 none swap sw 0 0\n"
            b"tmpfs /tmp tmpfs\n"
            b"/srv /export none bind\n"
            b"host:/x /net nfs defaults\n"
            b"broken\n"
            b"\xff\xfe /bytes ext4\n"
        )
    )
    assert [(line.device, line.point) for line in lines] == [
        ("UUID=1234", ()),
        ("LABEL=a b", (b"mnt", b"with space")),
        ("\udcff\udcfe", (b"bytes",)),
    ]
    assert lines[1].option("subvol") == "/@x"
    assert lines[0].option("subvol") == ""


def test_lists_that_are_damaged() -> None:
    for raw in (b"", b"\2\0\0\0", b"\1\0\0\0\2\0\7\0", b"\1\0\0\0\1"):
        with pytest.raises(NotUnderstood):
            from_ext(raw)
    for raw in (b"", b"\0\0\0\2" + bytes(12)):
        with pytest.raises(NotUnderstood):
            from_xfs(raw)


def test_packed_data_that_are_damaged_or_too_much() -> None:
    bomb = bytes(50_000_000)
    assert unzlib(zlib.compress(bomb), 1000) == bytes(1000)
    assert unzstd(zstandard.ZstdCompressor().compress(bomb[:100_000]), 1000) == bytes(1000)
    for call in (
        lambda: unzlib(b"nonsense", 10),
        lambda: unzstd(b"nonsense", 10),
        lambda: unlzo(b"\x20\0\0\0\xff\0\0\0nonsense", 10, 4096),
        lambda: lzo1x(b"\x40", 10),
        lambda: lzo1x(b"\x40\0\0\0", 10),
        lambda: unpack(b"\xff\xbf" + b"\xff" * 10, 4096),
    ):
        with pytest.raises(NotUnderstood):
            call()


def test_lzo() -> None:
    # "a" eleven times, then the end: one literal, a match of ten bytes one byte back.
    assert lzo1x(b"\x12a\x28\0\0\x11\0\0", 11) == b"a" * 11
    assert lzo1x(b"\x12a\x28\0\0\x11\0\0", 5) == b"a" * 5


class Pieces:
    """A content of given pieces."""

    def __init__(self, size: int, *starts: int) -> None:
        self.size = size
        self.starts = starts

    def pieces(self):  # noqa: ANN201 - as Content
        return (Piece(start, 4, InMemory(b"abcd")) for start in self.starts)


def test_pieces() -> None:
    assert read_range(Pieces(20, 2, 10), 0, 20) == b"\0\0abcd\0\0\0\0abcd" + bytes(6)
    assert read_range(Pieces(20, 2, 10), 4, 7) == b"cd\0\0\0\0a"
    assert read_range(Pieces(20, 2, 10), 30, 7) == b""
    for wrong in (Pieces(20, 2, 4), Pieces(20, 10, 2), Pieces(20, 18)):
        with pytest.raises(NotUnderstood):
            list(stream(wrong))
    assert list(stream(Held(b"abc", 10))) == [(0, b"abc")]
    assert list(stream(Held(b"abc", 2))) == [(0, b"ab")]
