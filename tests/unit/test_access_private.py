"""The private layer, against a plain array of bytes; the tree, as FUSE asks for it."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.access.cache import BlobCache
from freezeframe.access.mount import ImageTree, tree_of_all
from freezeframe.access.operations import TreeOperations
from freezeframe.access.parts import file_name
from freezeframe.access.private import PrivateLayer
from freezeframe.access.tree import File, Folder, Link, small_file
from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK
from freezeframe.testing.images import SparseDisk, save_image
from freezeframe.testing.repositories import memory_repository

_SIZE = 50_001
_BASE = bytes((n * n + n // 251) % 251 for n in range(_SIZE))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, _SIZE), st.integers(0, 20_000)), max_size=20)
)
def test_a_layer_reads_what_was_written_and_harms_nothing(
    steps: list[tuple[bool, int, int]],
) -> None:
    base = MemoryBlocks(_BASE)
    model = bytearray(_BASE)
    with PrivateLayer(base) as layer:
        for number, (writing, offset, wanted) in enumerate(steps):
            length = min(wanted, _SIZE - offset)
            if writing:
                data = bytes([number + 1]) * length
                layer.write_at(offset, data)
                model[offset : offset + length] = data
            assert layer.read_at(offset, length) == model[offset : offset + length]
        assert layer.read_at(0, _SIZE) == model
        holes = layer.data_extents().complement(_SIZE)
        assert not any(any(model[start:stop]) for start, stop in holes)
    assert base.read_at(0, _SIZE) == _BASE


def test_a_layer_has_an_end() -> None:
    with PrivateLayer(MemoryBlocks(1 << 20), limit=16 * 4096) as layer:
        layer.write_at(0, bytes(16 * 4096))
        layer.write_at(100, b"again")
        with pytest.raises(TargetUnsuitable, match="takes no more"):
            layer.write_at(1 << 19, b"x")
        with pytest.raises(TargetUnsuitable, match="pass its end"):
            layer.write_at((1 << 20) - 1, b"xx")
        assert layer.written == 16 * 4096


# -- the tree ---------------------------------------------------------------------------


class _Damaged(MemoryBlocks):
    """Bytes of which 100 from 1000 on cannot be read; the third 100 is a hole."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < 1100 and offset + len(buffer) > 1000:
            raise UnreadableRange("disk", 1000, 100, "chunk 0: it is bad")
        super().read_into(offset, buffer)

    def data_extents(self) -> Extents:
        return Extents.of([(0, 200), (300, self.size)])


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def tree(told: list[str]) -> TreeOperations:
    disk = _Damaged(_BASE)
    root = Folder(
        lambda: {
            "disk.img": File(disk.size, 1.5, lambda: disk),
            "sub": Folder(lambda: {"note": small_file(b"hello", 2.0)}, 3.0, private=True),
            "latest": Link("sub", 4.0),
            "layer": File(disk.size, 0.0, lambda: disk, disk),
        },
        5.0,
    )
    return TreeOperations(root, told.append)


def _number(call: object) -> int:
    assert callable(call)
    with pytest.raises(OSError, match=r"^\[Errno") as caught:
        call()
    assert caught.value.errno is not None
    return caught.value.errno


def test_names_and_status(tree: TreeOperations) -> None:
    assert sorted(tree.readdir("/", 0)) == [".", "..", "disk.img", "latest", "layer", "sub"]
    assert stat.S_ISDIR(tree.getattr("/")["st_mode"])
    disk = tree.getattr("/disk.img")
    assert (disk["st_mode"], disk["st_size"]) == (stat.S_IFREG | 0o400, _SIZE)
    assert disk["st_mtime"] == 1_500_000_000
    assert tree.getattr("/layer")["st_mode"] == stat.S_IFREG | 0o600
    assert tree.readlink("/latest") == "sub"
    assert tree.getattr("/sub/note")["st_size"] == 5
    assert _number(lambda: tree.getattr("/nothing")) == errno.ENOENT
    assert _number(lambda: tree.getattr("/disk.img/x")) == errno.ENOENT
    assert _number(lambda: tree.readdir("/disk.img", 0)) == errno.ENOTDIR
    assert _number(lambda: tree.open("/sub", os.O_RDONLY)) == errno.EISDIR


def test_nothing_is_written_but_layers(tree: TreeOperations) -> None:
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        assert _number(lambda flags=flags: tree.open("/disk.img", flags)) == errno.EROFS
    number = tree.open("/disk.img", os.O_RDONLY)
    assert _number(lambda: tree.write("/disk.img", b"x", 0, number)) == errno.EROFS
    assert _number(lambda: tree.truncate("/layer", 0)) == errno.EROFS
    assert _number(lambda: tree.unlink("/disk.img")) == errno.EROFS
    layer = tree.open("/layer", os.O_RDWR)
    assert tree.write("/layer", b"written", 5, layer) == 7
    assert tree.read("/layer", 7, 5, layer) == b"written"
    assert _number(lambda: tree.write("/layer", b"xx", _SIZE - 1, layer)) == errno.ENOSPC


def test_reading_to_the_end_and_after(tree: TreeOperations) -> None:
    number = tree.open("/disk.img", os.O_RDONLY)
    assert tree.read("/disk.img", 100, 0, number) == _BASE[:100]
    assert tree.read("/disk.img", 100, _SIZE - 7, number) == _BASE[-7:]
    assert tree.read("/disk.img", 100, _SIZE + 5, number) == b""
    tree.release("/disk.img", number)
    assert _number(lambda: tree.read("/disk.img", 1, 0, number)) == errno.EBADF


def test_damage_fails_its_reads_only_and_is_told_once(
    tree: TreeOperations, told: list[str]
) -> None:
    number = tree.open("/disk.img", os.O_RDONLY)
    for _ in range(3):
        assert _number(lambda: tree.read("/disk.img", 500, 700, number)) == errno.EIO
        assert tree.read("/disk.img", 500, 1100, number) == _BASE[1100:1600]
    assert len(told) == 1
    assert "chunk 0" in told[0]


def test_holes_are_found(tree: TreeOperations) -> None:
    number = tree.open("/disk.img", os.O_RDONLY)
    assert tree.seek(number, 0, os.SEEK_DATA) == 0
    assert tree.seek(number, 0, os.SEEK_HOLE) == 200
    assert tree.seek(number, 200, os.SEEK_HOLE) == 200
    assert tree.seek(number, 200, os.SEEK_DATA) == 300
    assert tree.seek(number, 300, os.SEEK_HOLE) == _SIZE
    assert _number(lambda: tree.seek(number, _SIZE, os.SEEK_DATA)) == errno.ENXIO


def test_all_images_have_a_place() -> None:
    repository = memory_repository()
    disks = [SparseDisk(3 * CHUNK, {n: bytes([n + 1]) * CHUNK}) for n in range(3)]
    images = [save_image(repository, disk)[0] for disk in disks]
    with BlobCache() as cache:
        tree = TreeOperations(tree_of_all([ImageTree(image, cache) for image in images]), print)
        (host,) = set(tree.readdir("/", 0)) - {".", ".."}
        names = sorted(set(tree.readdir(f"/{host}", 0)) - {".", "..", "latest"})
        assert host == "here"
        assert len(names) == 3
        assert tree.readlink(f"/{host}/latest") in names
        found = []
        for name in names:
            number = tree.open(f"/{host}/{name}/disk/disk.img", os.O_RDONLY)
            found.append(tree.read("", 3 * CHUNK, 0, number))
        expected = [b"".join(disk.chunks.get(n, bytes(CHUNK)) for n in range(3)) for disk in disks]
        assert sorted(found) == sorted(expected)


@given(st.text(max_size=300))
def test_names_of_an_image_never_leave_their_folder(text: str) -> None:
    name = file_name(text)
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert name.isascii()
    assert len(name) <= 201
