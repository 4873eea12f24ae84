"""Swap, LUKS and md members, against mkswap, cryptsetup, mdadm and blkid."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs import md
from freezeframe.fs.base import UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import check_kind, check_map
from freezeframe.testing.fsproof import PlainFile, scatter_used

UUID = "12345678-9abc-def0-0fed-cba987654321"


def read_map(image: Path) -> UsedMap:
    with PlainFile(image) as reader:
        result = used_map(reader)
        check_map(result, reader.size)
    return result


def blank(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    path.chmod(0o600)
    return path


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def blkid(path: Path) -> dict[str, str]:
    text = run(("blkid", "-p", "-o", "export", str(path)), ok=(0, 2, 8)).stdout.decode()
    return dict(line.split("=", 1) for line in text.splitlines())


# -- swap ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", [4 * KIB, 16 * KIB, 64 * KIB])
@pytest.mark.parametrize("order", ["little", "big"])
def test_swap(page: int, order: str, tmp_path: Path) -> None:
    image = blank(tmp_path / "swap", 4 * MIB)
    run(("mkswap", "-p", str(page), "-L", "spare", "-U", UUID, str(image)))
    if order == "big":
        words = struct.unpack("<3I", image.read_bytes()[1024:1036])
        write(image, 1024, struct.pack(">3I", *words))
    result = read_map(image)
    assert result.understood
    assert (result.kind, result.label, result.uuid) == ("swap", "spare", UUID)
    assert (result.block_size, result.span) == (page, 4 * MIB)
    assert result.used == Extents.single(0, 64 * KIB)
    # What is kept is swap as it was, to those who look.
    kept = tmp_path / "kept"
    scatter_used(image, result.used, kept)
    facts = blkid(kept)
    assert (facts["TYPE"], facts["LABEL"], facts["UUID"]) == ("swap", "spare", UUID)


@pytest.mark.parametrize("offset", [4086, 16374, 65526])
@pytest.mark.parametrize("mark", [b"S1SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"])
def test_swap_of_a_hibernated_machine(offset: int, mark: bytes, tmp_path: Path) -> None:
    image = blank(tmp_path / "swap", 4 * MIB)
    run(("mkswap", "-p", str(offset + 10), str(image)))
    write(image, offset, mark)
    if offset == 4086:
        assert blkid(image)["TYPE"] == "swsuspend"
    result = read_map(image)
    assert not result.understood
    assert "hibernated" in result.notes[0]
    assert result.used.total == 4 * MIB


def test_swap_of_the_first_version_and_of_none(tmp_path: Path) -> None:
    image = blank(tmp_path / "swap", MIB)
    write(image, 4086, b"SWAP-SPACE")
    assert blkid(image)["TYPE"] == "swap"
    assert read_map(image).used.total == 64 * KIB
    write(image, 4086, b"SWAPSPACE2")
    write(image, 1024, (7).to_bytes(4, "little"))
    assert "unknown version" in read_map(image).notes[0]


def test_swap_of_tux_on_ice(tmp_path: Path) -> None:
    image = blank(tmp_path / "swap", MIB)
    write(image, 0, b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c")
    assert read_map(image).used.total == MIB


# -- LUKS ---------------------------------------------------------------------------

QUICK = {
    "luks1": ("--pbkdf-force-iterations", "1000"),
    "luks2": ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--label", "safe"),
}


def luks(path: Path, version: str, *options: str) -> Path:
    image = blank(path, 24 * MIB)
    line = ("cryptsetup", "luksFormat", "-q", "--type", version, "--uuid", UUID)
    run((*line, *QUICK[version], *options, str(image), "-"), stdin=b"secret")
    return image


@pytest.mark.parametrize(
    ("version", "options"),
    [("luks1", ()), ("luks2", ()), ("luks2", ("--luks2-metadata-size", "64k"))],
)
def test_luks(version: str, options: tuple[str, ...], tmp_path: Path) -> None:
    image = luks(tmp_path / "luks", version, *options)
    result = read_map(image)
    assert result.understood
    assert (result.kind, result.uuid) == (version, UUID)
    assert result.label == ("safe" if version == "luks2" else "")
    assert result.used.total == 24 * MIB
    # The piece is the very file cryptsetup makes, and takes back.
    backup = tmp_path / "backup"
    run(("cryptsetup", "luksHeaderBackup", str(image), "--header-backup-file", str(backup)))
    kept, theirs = result.pieces["luks-header.bin"], backup.read_bytes()
    # Of LUKS1 all before the payload, which is a little more.
    assert kept.startswith(theirs)
    assert len(kept) - len(theirs) < (64 * KIB if version == "luks1" else 1)
    piece = tmp_path / "luks-header.bin"
    piece.write_bytes(result.pieces["luks-header.bin"])
    write(image, 0, bytes(64 * KIB))
    restore = ("cryptsetup", "luksHeaderRestore", "-q", str(image))
    run((*restore, "--header-backup-file", str(piece)))
    run(("cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(image)), stdin=b"secret")


def test_luks_with_a_damaged_header(tmp_path: Path) -> None:
    image = luks(tmp_path / "luks", "luks2")
    write(image, 5000, b"\x01\x02\x03")
    result = read_map(image)
    assert (result.kind, result.understood) == ("luks", False)
    assert "checksum" in result.notes[0]
    write(image, 0, bytes(4096))
    result = read_map(image)
    assert (result.kind, result.understood) == ("luks", False)
    assert "first header" in result.notes[0]
    assert blkid(image)["TYPE"] == "crypto_LUKS"


# -- md -----------------------------------------------------------------------------


def superblock_1(offset: int, sectors: int) -> bytes:
    """Make a superblock of version 1, as `md_p.h` lays it out, its checksum included."""
    data = bytearray(256 + 4)
    struct.pack_into("<IIII", data, 0, 0xA92B4EFC, 1, 0, 0)
    data[16:32] = uuid.UUID(UUID).bytes
    data[32:39] = b"host:r1"
    struct.pack_into("<QiIQIIII", data, 64, 0, 1, 0, sectors, 0, 2, 0, 0)
    start = 0 if offset >= MIB else 2048
    struct.pack_into("<QQQ", data, 128, start, sectors, offset // 512)
    struct.pack_into("<I", data, 220, 2)
    data[256:260] = b"\0\0\1\0"
    total = sum(struct.unpack("<65I", data))
    struct.pack_into("<I", data, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    return bytes(data)


def superblock_090(order: str) -> bytes:
    """Make a superblock of version 0.90 for a mirror of two."""
    words = [0] * 1024
    words[0:3] = [0xA92B4EFC, 0, 90]
    numbers = struct.unpack(">4I", uuid.UUID(UUID).bytes)
    words[5], words[13:16] = numbers[0], list(numbers[1:])
    words[7:11] = [1, 2048, 2, 2]
    words[38] = 0
    total = sum(words)
    words[38] = (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF
    return struct.pack(f"{order}1024I", *words)


SIZE = 8 * MIB + 512
PLACES = {"1.0": (SIZE // 512 - 16) // 8 * 8 * 512, "1.1": 0, "1.2": 4096, "0.90": 8 * MIB - 65536}


@pytest.mark.parametrize("version", PLACES)
@pytest.mark.parametrize("inside", [False, True])
def test_md(version: str, inside: bool, tmp_path: Path) -> None:
    image = blank(tmp_path / "member", SIZE)
    if inside:
        # A mirror's filesystem shines through where the superblock lies at the end.
        run(("mkfs.ext4", "-q", str(image), "4M"))
    offset = PLACES[version]
    data = superblock_090("<") if version == "0.90" else superblock_1(offset, 8192)
    write(image, offset, data)
    shown = run(("mdadm", "--examine", str(image))).stdout.decode()
    assert f"Version : {version}" in shown
    assert "- correct" in shown
    facts = blkid(image)
    if not inside or version in ("1.0", "0.90"):
        assert (facts["TYPE"], facts["UUID"]) == ("linux_raid_member", UUID)
    result = read_map(image)
    assert (result.kind, result.uuid) == ("md", UUID)
    assert result.understood
    assert result.used.total == SIZE
    assert f"RAID1 of 2, version {version}" in result.notes[0]
    assert result.label == ("host:r1" if version != "0.90" else "")
    if not inside:
        check_kind(md.KIND, image, rounds=50)


def test_md_of_a_machine_with_the_other_byte_order(tmp_path: Path) -> None:
    image = blank(tmp_path / "member", SIZE)
    write(image, PLACES["0.90"], superblock_090(">"))
    facts, result = blkid(image), read_map(image)
    assert (facts["TYPE"], facts["UUID"]) == ("linux_raid_member", UUID)
    assert (result.kind, result.uuid) == ("md", UUID)


def test_md_in_the_wrong_place(tmp_path: Path) -> None:
    """A superblock that says it lies elsewhere belongs to something inside."""
    image = blank(tmp_path / "member", SIZE)
    write(image, 4096, superblock_1(0, 8192))
    assert read_map(image).kind == "unknown"
