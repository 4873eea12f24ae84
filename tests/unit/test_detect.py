"""The registry: what it names, and that nothing a region holds makes it fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from freezeframe.block.faulty import FaultyReader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.window import Window
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs import detect
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.names import SIGNATURES, Signature
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import Watched, check_map
from freezeframe.testing.fsproof import PlainFile

SIZE = 3 * MIB


def whole(result: UsedMap, size: int) -> str:
    """Check that all of a region is used, and return the reason."""
    check_map(result, size)
    assert not result.understood
    assert result.used == Extents.single(0, size)
    assert len(result.notes) == 1
    return result.notes[0]


@pytest.mark.parametrize("data", [b"", b"\0", bytes(511), bytes(SIZE), b"\xff" * SIZE])
def test_nothing_known(data: bytes) -> None:
    result = detect.used_map(MemoryBlocks(data))
    check_map(result, len(data))
    assert (result.kind, result.understood) == ("unknown", False)
    assert result.used.total == len(data)
    assert result.notes == ("no known signature: imaged whole",)
    assert detect.identify(MemoryBlocks(data)) is None


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: f"{s.name}-{s.offset}")
def test_known_by_name(signature: Signature) -> None:
    disk = MemoryBlocks(SIZE)
    disk.write_at(signature.offset % SIZE, signature.magic)
    result = detect.used_map(disk)
    assert result.kind == signature.name
    assert f"no used map for {signature.name} yet" in whole(result, SIZE)


def test_zfs_by_its_uberblocks() -> None:
    for magic in (b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"):
        disk = MemoryBlocks(SIZE)
        disk.write_at(128 * KIB + 17 * KIB, magic)
        assert detect.used_map(disk).kind == "zfs_member"


@pytest.mark.parametrize("options", [("-1",), ("-2",), ("-3",)])
def test_minix(options: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "minix"
    image.write_bytes(bytes(SIZE))
    run(("mkfs.minix", *options, str(image)))
    with PlainFile(image) as reader:
        result = detect.used_map(reader)
        assert result.kind == "minix"
        whole(result, SIZE)


def swap_at(disk: MemoryBlocks) -> None:
    disk.write_at(4086, b"SWAP-SPACE")


def test_two_at_once() -> None:
    """As after a mkfs that did not wipe what was there before: nobody can tell which is old."""
    disk = MemoryBlocks(SIZE)
    swap_at(disk)
    assert detect.used_map(disk).understood
    disk.write_at(64 * KIB + 52, b"ReIsEr3Fs")
    result = detect.used_map(disk)
    assert "swap and reiserfs" in whole(result, SIZE)


def test_old_fat_under_ext4(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(16 * MIB))
    run(("mkfs.fat", "-F", "16", "-s", "2", str(image)))
    boot = image.read_bytes()[:512]
    run(("mkfs.ext4", "-q", "-F", str(image)))
    # ext leaves the first KiB to boot code; so a boot sector may have come back.
    with image.open("r+b") as file:
        file.write(boot)
    with PlainFile(image) as reader:
        result = detect.used_map(reader)
    assert "ext and fat" in whole(result, 16 * MIB)
    shown = run(("blkid", "-p", str(image)), ok=(0, 8)).stderr.decode()
    assert "ambivalent" in shown


class Broken:
    """A parser with a mistake."""

    name = "broken"

    def __init__(self, error: Exception | None, used: Extents | None = None) -> None:
        self._error = error
        self._used = used or Extents.empty()

    def recognise(self, reader: object) -> bool:
        return True

    def used_map(self, reader: object, peers: Peers, *, state: State) -> UsedMap:
        if self._error:
            raise self._error
        return UsedMap(self.name, self._used, True)


@pytest.mark.parametrize(
    "error",
    [IndexError("x"), ZeroDivisionError(), MemoryError(), RecursionError(), OverflowError()],
)
def test_a_parser_that_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "KINDS", (Broken(error),))
    assert "parser failed" in whole(detect.used_map(MemoryBlocks(SIZE)), SIZE)


def test_recognising_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worse(Broken):
        def recognise(self, reader: object) -> bool:
            raise IndexError("x")

    monkeypatch.setattr(detect, "KINDS", (Worse(None),))
    assert "recognising it failed" in whole(detect.used_map(MemoryBlocks(SIZE)), SIZE)


def test_a_parser_that_goes_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "KINDS", (Broken(None, Extents.single(0, SIZE + 1)),))
    assert "outside" in whole(detect.used_map(MemoryBlocks(SIZE)), SIZE)


def test_unreadable_metadata(tmp_path: Path) -> None:
    image = tmp_path / "ntfs"
    image.write_bytes(bytes(4 * MIB))
    run(("mkfs.ntfs", "-F", "-q", "-c", "4096", "-p", "0", "-H", "0", "-S", "0", str(image)))
    with PlainFile(image) as reader:
        watched = Watched(reader)
        assert detect.used_map(watched).understood
        for offset, length in sorted(set(watched.reads)):
            bad = Extents.single(offset, offset + length)
            result = detect.used_map(FaultyReader(reader, bad=bad))
            assert "read" in whole(result, 4 * MIB)


def test_a_region_of_a_disk(tmp_path: Path) -> None:
    """Offsets count from the region, and nothing outside of it is looked at."""
    image = tmp_path / "fat"
    image.write_bytes(bytes(2 * MIB))
    run(("mkfs.fat", str(image)))
    rng = random.Random(3)
    noise = rng.randbytes(MIB)
    disk = MemoryBlocks(noise + image.read_bytes() + noise)
    with PlainFile(image) as reader:
        alone = detect.used_map(reader)
    assert alone.understood
    assert detect.used_map(Window(disk, MIB, 2 * MIB)) == alone
