"""Partition tables made and read by other programs, to hold ours against."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.extents import Extents
from freezeframe.layout import structs
from freezeframe.layout.base import DiskLayout, Region, Role
from freezeframe.system.run import run


def make_table(path: Path, size: int, script: str) -> Path:
    """Make a sparse file of `size` bytes with the table an sfdisk script describes."""
    with path.open("wb") as file:
        file.truncate(size)
    run(
        ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", str(path)),
        stdin=script.encode(),
    )
    return path


def in_memory(path: Path) -> MemoryBlocks:
    """Take a whole file into memory."""
    return MemoryBlocks(path.read_bytes(), name=str(path))


def sfdisk_partitions(path: Path | str) -> list[dict[str, object]]:
    """Return what sfdisk says of each partition, as our regions would, by offset.

    Extended partitions are left out: they are no regions. Names as text.
    """
    table = json.loads(run(("sfdisk", "--json", str(path))).stdout)["partitiontable"]
    sector = table.get("sectorsize", 512)
    found = []
    for part in table.get("partitions", []):
        gpt = table["label"] == "gpt"
        code = part["type"].lower() if gpt else f"0x{int(part['type'], 16):02x}"
        if not gpt and int(part["type"], 16) in structs.MBR_TYPES_EXTENDED:
            continue
        number = int(part["node"].removeprefix(str(path)).lstrip("p"))
        own = part["uuid"].lower() if gpt else f"{int(table['id'], 16):08x}-{number:02x}"
        active = "LegacyBIOSBootable" in part.get("attrs", "") or part.get("bootable", False)
        found.append(
            {
                "number": number,
                "start": part["start"] * sector,
                "length": part["size"] * sector,
                "type_code": code,
                "name": part.get("name", ""),
                "uuid": own,
                "bootable": active,
            }
        )
    return sorted(found, key=lambda row: int(str(row["start"])))


def our_partitions(layout: DiskLayout) -> list[dict[str, object]]:
    """Return a layout's partitions in the same form."""
    return [
        {
            "number": part.number,
            "start": part.start,
            "length": part.length,
            "type_code": part.type_code,
            "name": part.name,
            "uuid": part.uuid,
            "bootable": part.bootable,
        }
        for part in layout.partitions
    ]


def check_tiling(layout: DiskLayout, disk: MemoryBlocks) -> None:
    """Assert what every layout promises, and that no byte of a small gap is lost."""
    cursor = 0
    for region in layout.regions:
        assert region.start == cursor
        assert region.length > 0
        cursor = region.stop
    assert cursor == layout.size == disk.size
    assert layout.used_outside.end <= layout.size
    for region in layout.regions:
        if region.role is Role.TABLE:
            assert layout.used_outside.covers(region.start, region.stop)
        if region.role is Role.GAP and region.length <= 64 << 20:
            kept = layout.used_outside.clip(region.start, region.stop)
            for start, stop in Extents.single(region.start, region.stop) - kept:
                assert disk.read_at(start, stop - start) == bytes(stop - start)


def region_at(layout: DiskLayout, offset: int) -> Region:
    """Return the region a byte of the disk lies in."""
    return next(r for r in layout.regions if r.start <= offset < r.stop)


def edit_gpt(
    disk: MemoryBlocks,
    *,
    lba: int = 1,
    sector: int = 512,
    header: dict[int, int] | None = None,
    entries: dict[int, bytes] | None = None,
) -> None:
    """Change one copy of a GPT and make its checksums right again.

    `header` maps indices of `structs.GPT_HEADER` to values, `entries` bytes into the entry
    array to what is written there. What the header then claims is not checked.
    """
    raw = bytearray(disk.read_at(lba * sector, sector))
    fields = list(structs.GPT_HEADER.unpack_from(raw))
    at, length = fields[10] * sector, fields[11] * fields[12]
    array = bytearray(disk.read_at(at, length))
    for place, data in (entries or {}).items():
        array[place : place + len(data)] = data
    disk.write_at(at, array)
    for index, value in (header or {}).items():
        fields[index] = value
    if not header or 13 not in header:
        fields[13] = zlib.crc32(array)
    fields[3] = 0
    structs.GPT_HEADER.pack_into(raw, 0, *fields)
    size = min(fields[2], sector)
    fields[3] = zlib.crc32(raw[:size])
    structs.GPT_HEADER.pack_into(raw, 0, *fields)
    disk.write_at(lba * sector, raw)


def gpt_entry(kind: bytes, first: int, last: int, own: bytes = b"\x01" * 16) -> bytes:
    """Make an entry of a GPT: type and own GUID as on disk, first and last sector."""
    return structs.GPT_ENTRY.pack(kind, own, first, last, 0, bytes(72))
