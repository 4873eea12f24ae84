"""NTFS volumes of a kind that Windows makes over years and mkfs never does.

Written apart from the parser in `freezeframe.fs.ntfs`, so that a mistake there is not
made here again; the tests let ntfs-3g's tools read what comes out.
"""

from __future__ import annotations

from pathlib import Path

_BITMAP_RECORD = 6
#: Reserved and empty on a fresh volume.
_SPARE_RECORD = 15
_RECORD = 1024
_BLOCK = 512


def _number(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


class Image:
    """A fresh NTFS image with records of 1 KiB, changed in memory, written by `save`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data = bytearray(path.read_bytes())
        sector, per_cluster = _number(self.data, 11, 2), self.data[13]
        self.cluster = sector * (per_cluster if per_cluster <= 128 else 1 << 256 - per_cluster)
        self.clusters = _number(self.data, 40, 8) * sector // self.cluster
        self._mft = _number(self.data, 48, 8) * self.cluster

    def save(self) -> None:
        """Write it back."""
        self._path.write_bytes(self.data)

    def record(self, number: int) -> bytearray:
        """Return a file record with its blocks' last bytes put back."""
        start = self._mft + number * _RECORD
        raw = self.data[start : start + _RECORD]
        assert raw[:4] == b"FILE"
        usa = _number(raw, 4, 2)
        for block in (1, 2):
            raw[block * _BLOCK - 2 : block * _BLOCK] = raw[usa + 2 * block : usa + 2 * block + 2]
        return raw

    def store(self, number: int, raw: bytearray) -> None:
        """Protect a record again and put it in its place."""
        usa = _number(raw, 4, 2)
        for block in (1, 2):
            end = block * _BLOCK
            raw[usa + 2 * block : usa + 2 * block + 2] = raw[end - 2 : end]
            raw[end - 2 : end] = raw[usa : usa + 2]
        start = self._mft + number * _RECORD
        self.data[start : start + _RECORD] = raw

    def attributes(self, raw: bytearray) -> list[tuple[int, bytearray]]:
        """Return kind and bytes of each attribute of a record."""
        found = []
        offset = _number(raw, 20, 2)
        while (kind := _number(raw, offset, 4)) != 0xFFFFFFFF:
            length = _number(raw, offset + 4, 4)
            found.append((kind, raw[offset : offset + length]))
            offset += length
        return found

    def set_attributes(self, raw: bytearray, attributes: list[tuple[int, bytearray]]) -> None:
        """Replace all attributes of a record."""
        offset = _number(raw, 20, 2)
        body = b"".join(bytes(data) for _, data in attributes) + b"\xff\xff\xff\xff\0\0\0\0"
        assert offset + len(body) <= _RECORD, "does not fit"
        raw[offset:] = body.ljust(_RECORD - offset, b"\0")
        raw[24:28] = (offset + len(body)).to_bytes(4, "little")


def _encode_runs(places: list[int]) -> bytes:
    """Write a run list of single clusters, each with a difference of four bytes."""
    runs, last = b"", 0
    for place in places:
        runs += b"\x41\x01" + (place - last).to_bytes(4, "little", signed=True)
        last = place
    return runs + b"\0"


def _part(template: bytearray, lowest: int, places: list[int], sizes: bool) -> bytearray:
    """Make a non-resident $DATA that begins at cluster `lowest`."""
    data = bytearray(template[:64]) + _encode_runs(places)
    data += bytes(-len(data) % 8)
    data[4:8] = len(data).to_bytes(4, "little")
    data[16:24] = lowest.to_bytes(8, "little")
    data[24:32] = (lowest + len(places) - 1).to_bytes(8, "little")
    data[32:34] = (64).to_bytes(2, "little")
    if not sizes:
        data[40:64] = bytes(24)
    return data


def _list_attribute(entries: list[tuple[int, int, int, int]], instance: int) -> bytearray:
    """Make a resident attribute list of (kind, lowest cluster, record reference, instance)."""
    value = b"".join(
        kind.to_bytes(4, "little")
        + (32).to_bytes(2, "little")
        + b"\0\x1a"
        + lowest.to_bytes(8, "little")
        + reference.to_bytes(8, "little")
        + number.to_bytes(2, "little")
        + bytes(6)
        for kind, lowest, reference, number in entries
    )
    data = bytearray(24) + value
    data[0:4] = (0x20).to_bytes(4, "little")
    data[4:8] = len(data).to_bytes(4, "little")
    data[10:12] = (24).to_bytes(2, "little")
    data[14:16] = instance.to_bytes(2, "little")
    data[16:20] = len(value).to_bytes(4, "little")
    data[20:22] = (24).to_bytes(2, "little")
    return data


def fragment_bitmap(path: Path, *, in_two_records: bool) -> int:
    """Move $Bitmap to clusters none of which are neighbours; return how many runs it has.

    `in_two_records` puts half of the runs into a record of their own, by an attribute list.
    """
    image = Image(path)
    raw = image.record(_BITMAP_RECORD)
    attributes = image.attributes(raw)
    old = next(data for kind, data in attributes if kind == 0x80)
    runs = old[_number(old, 32, 2) :]
    size_length, size_place = runs[0] & 15, runs[0] >> 4
    assert not runs[1 + size_length + size_place], "not in one piece"
    length = _number(runs, 1, size_length)
    start = _number(runs, 1 + size_length, size_place)
    cluster = image.cluster
    content = image.data[start * cluster : (start + length) * cluster]

    def used(place: int) -> bool:
        return bool(content[place // 8] >> place % 8 & 1)

    free = [n for n in range(image.clusters // 2, image.clusters) if not used(n)]
    # Backwards, so that the differences are negative too.
    places = free[:: len(free) // (length + 1)][:length][::-1]
    for place in range(start, start + length):
        content[place // 8] &= ~(1 << place % 8)
    image.data[start * cluster : (start + length) * cluster] = b"\x5a" * (length * cluster)
    for place in places:
        content[place // 8] |= 1 << place % 8
    for number, place in enumerate(places):
        piece = content[number * cluster : (number + 1) * cluster]
        image.data[place * cluster : (place + 1) * cluster] = piece
    half = length // 2 if in_two_records else length
    first = _part(old, 0, places[:half], True)
    others = [item for item in attributes if item[0] < 0x80]
    if in_two_records:
        others = _split(image, raw, others, _part(old, half, places[half:], False), half)
    image.set_attributes(raw, sorted([*others, (0x80, first)], key=lambda item: item[0]))
    image.store(_BITMAP_RECORD, raw)
    image.save()
    return length


def _split(
    image: Image,
    raw: bytearray,
    others: list[tuple[int, bytearray]],
    second: bytearray,
    half: int,
) -> list[tuple[int, bytearray]]:
    """Put `second` into the spare record; return the attributes before $DATA with a list."""
    spare = image.record(_SPARE_RECORD)
    here = _BITMAP_RECORD | _number(raw, 16, 2) << 48
    there = _SPARE_RECORD | _number(spare, 16, 2) << 48
    spare[18:20] = bytes(2)
    spare[32:40] = here.to_bytes(8, "little")
    second[14:16] = bytes(2)
    spare[40:42] = (1).to_bytes(2, "little")
    image.set_attributes(spare, [(0x80, second)])
    image.store(_SPARE_RECORD, spare)
    entries = [(kind, 0, here, _number(data, 14, 2)) for kind, data in others]
    data_instance = next(_number(d, 14, 2) for k, d in image.attributes(raw) if k == 0x80)
    entries += [(0x80, 0, here, data_instance), (0x80, half, there, 0)]
    instance = _number(raw, 40, 2)
    raw[40:42] = (instance + 1).to_bytes(2, "little")
    return [*others, (0x20, _list_attribute(entries, instance))]
