"""What folders of Clonezilla say of their disks."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from freezeframe.backup.foreign import partclone
from freezeframe.core.errors import NotUnderstood

_GPT = """label: gpt
label-id: 0D0BD1E1-7B3A-4F3B-9C6B-1E2D3C4B5A69
device: /dev/nvme0n1
unit: sectors
first-lba: 34
last-lba: 41943006
sector-size: 512

/dev/nvme0n1p1 : start=        2048, size=     1048576, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
/dev/nvme0n1p2 : start=     1050624, size=    40892383, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
"""
_MBR = """label: dos
label-id: 0x1234abcd
device: /dev/sda
unit: sectors

/dev/sda1 : start=        2048, size=      204800, type=83, bootable
/dev/sda2 : start=      206848, size=      409600, type=5
/dev/sda5 : start=      208896, size=      100000, type=82
"""


def _folder(path: Path, name: str, table: str, parts: str, **files: bytes) -> Path:
    (path / f"{name}-pt.sf").write_text(table)
    (path / "parts").write_text(parts + "\n")
    for part in parts.split():
        if f"swappt-{part}.info" not in files:
            (path / f"{part}.ext4-ptcl-img.gz.aa").touch()
            (path / f"{part}.ext4-ptcl-img.gz.ab").touch()
    for key, data in files.items():
        (path / key).write_bytes(data)
    return path


def test_a_gpt_of_an_nvme_drive(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "nvme0n1", _GPT, "nvme0n1p1 nvme0n1p2")
    assert partclone.is_clonezilla(folder)
    (disk,) = partclone.disks_of(folder)
    assert disk.size == (41943006 + 1 + 33) * 512
    assert [(s.name, s.start, s.length) for s in disk.streams] == [
        ("nvme0n1p1", 2048 * 512, 1048576 * 512),
        ("nvme0n1p2", 1050624 * 512, 40892383 * 512),
    ]
    assert [file.suffix for file in disk.streams[0].files] == [".aa", ".ab"]


def test_an_mbr_with_swap_and_boot_code(tmp_path: Path) -> None:
    info = b'UUID="11111111-2222-3333-4444-555555555555"\nLABEL=""\n'
    files = {
        "swappt-sda5.info": info,
        "sda-mbr": bytes(range(256)) * 2,
        "sda-hidden-data-after-mbr": b"grub" * 300_000,
        "sda-pt.parted": b"Model: x\nDisk /dev/sda: 700000s\nSector size (logical/physical): 512B",
    }
    (disk,) = partclone.disks_of(_folder(tmp_path, "sda", _MBR, "sda1 sda5", **files))
    assert disk.size == 700_000 * 512
    uuid = "11111111-2222-3333-4444-555555555555"
    assert disk.swaps == ((208896 * 512, 100_000 * 512, uuid, ""),)
    (code, gap) = disk.boot
    assert (code[0], len(code[1])) == (0, 440)
    # Never into the first partition.
    assert (gap[0], len(gap[1])) == (512, 2047 * 512)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "sda", _MBR, "sda1")
    table = folder / "sda-pt.sf"
    table.write_text(_MBR.replace("unit:", "sector-size: 4096\nunit:"))
    with pytest.raises(NotUnderstood, match="4096"):
        partclone.disks_of(folder)
    table.write_text(_MBR.replace("sda1", "sda9"))
    with pytest.raises(NotUnderstood, match="not in the table"):
        partclone.disks_of(folder)
    table.write_text(_MBR)
    for path in folder.glob("sda1.*"):
        path.unlink()
    with pytest.raises(NotUnderstood, match="no image of partition sda1"):
        partclone.disks_of(folder)
    (folder / "lvm_vg_dev.list").touch()
    with pytest.raises(NotUnderstood, match="LVM"):
        partclone.disks_of(folder)


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
)
def test_streams_in_pieces_whatever_they_are_compressed_with(
    tmp_path: Path, compress: object
) -> None:
    assert callable(compress)
    data = partclone.MAGIC + bytes(range(256)) * 5000
    # Two frames: what parallel compressors write.
    packed = compress(data[:70_000]) + compress(data[70_000:])
    pieces = []
    for number, at in enumerate(range(0, len(packed), max(1, len(packed) // 3))):
        pieces.append(tmp_path / f"piece.{number}")
        pieces[-1].write_bytes(packed[at : at + max(1, len(packed) // 3)])
    with partclone._opened(pieces) as file:
        assert file.read() == data
    whole = tmp_path / "whole"
    whole.write_bytes(packed)
    assert partclone.is_partclone(whole)


def test_a_compressor_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x04\x22\x4d\x18 and more")
    with pytest.raises(NotUnderstood, match="lz4"):
        partclone._opened([path])
    assert not partclone.is_partclone(path)
    path.write_bytes(b"")
    assert not partclone.is_partclone(path)
