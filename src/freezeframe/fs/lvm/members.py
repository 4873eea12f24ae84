"""The physical volumes of a group, found among the regions of an image, and its newest text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, SourceError, UnreadableRange
from freezeframe.core.units import SECTOR
from freezeframe.fs.lvm.group import Group, Physical, parse_group
from freezeframe.fs.lvm.structs import (
    LABEL_SECTORS,
    MDA_HEADER_SIZE,
    Area,
    Header,
    TextLocation,
    checksum,
    dashed,
    parse_header,
    parse_metadata_header,
    ring_size,
)
from freezeframe.fs.probe import peek


@dataclass(frozen=True, slots=True)
class Device:
    """A region that is a physical volume, and the texts its metadata areas hold."""

    reader: Reader
    header: Header
    #: Each once, exactly as on disk but for the zeros at the end.
    texts: tuple[bytes, ...]
    #: Areas LVM was told not to use.
    ignored: int
    #: What is wrong with areas that are damaged.
    problems: tuple[str, ...]


def open_device(reader: Reader) -> Device:
    """Read the header of a physical volume and its texts.

    Raises `NotUnderstood` where the header is damaged, or all metadata areas are.
    """
    header = parse_header(peek(reader, 0, LABEL_SECTORS * SECTOR), reader.size)
    texts: dict[bytes, None] = {}
    problems = []
    ignored = 0
    for area in header.metadata:
        try:
            raw = reader.read_at(area.start, MDA_HEADER_SIZE)
            location = parse_metadata_header(raw, area)
            if location is None:
                continue
            if location.ignored:
                ignored += 1
                continue
            texts[_read_text(reader, area, location, ring_size(raw))] = None
        except (NotUnderstood, UnreadableRange, SourceError) as error:
            problems.append(error.message)
    if header.metadata and len(problems) == len(header.metadata):
        raise NotUnderstood(problems[0])
    return Device(reader, header, tuple(texts), ignored, tuple(problems))


def _read_text(reader: Reader, area: Area, location: TextLocation, size: int) -> bytes:
    """Read a text out of the ring that begins after the area's header."""
    first = min(location.length, size - location.offset)
    data = reader.read_at(area.start + location.offset, first)
    if first < location.length:
        data += reader.read_at(area.start + MDA_HEADER_SIZE, location.length - first)
    if checksum(data) != location.checksum:
        raise NotUnderstood("an LVM text does not have the checksum it should have")
    return data.rstrip(b"\0")


@dataclass(frozen=True, slots=True)
class Membership:
    """A group one of whose physical volumes is the region that was asked about."""

    group: Group
    text: bytes
    physical: Physical
    #: Readers of the physical volumes that are there, by their names in the group.
    devices: Mapping[str, Reader]
    notes: tuple[str, ...]


def find_group(own: Device, regions: Iterable[Reader]) -> Membership | None:
    """Find the group of a physical volume: the newest text of all regions that names it.

    None where it belongs to no group. Raises `NotUnderstood` where that is not certain.
    """
    others = _other_devices(own, regions)
    groups = _groups(own, others)
    mine = [(group, text) for text, group in groups.items() if group.member(own.header.uuid)]
    if not mine:
        _check_orphan(own)
        return None
    group, text = max(mine, key=lambda pair: pair[0].sequence)
    _check_newest(group, own, list(groups.values()))
    physical = group.member(own.header.uuid)
    if physical is None:
        raise AssertionError("unreachable")
    readers, doubled = _by_uuid(others)
    readers[own.header.uuid] = own.reader
    devices = {
        name: readers[other.uuid]
        for name, other in group.physical.items()
        if other.uuid in readers and _fits(group, other, readers[other.uuid])
    }
    notes = [*own.problems]
    notes += [f"physical volume {dashed(uuid)} is there more than once" for uuid in doubled]
    return Membership(group, text, physical, devices, tuple(notes))


def _fits(group: Group, physical: Physical, reader: Reader) -> bool:
    return group.place(physical, 0, physical.count)[1] <= reader.size


def _check_orphan(own: Device) -> None:
    if own.header.in_group or own.ignored or not own.header.metadata or own.problems:
        raise NotUnderstood("an LVM physical volume whose group is described on other disks")


def _other_devices(own: Device, regions: Iterable[Reader]) -> list[Device]:
    found = []
    for region in regions:
        if region is own.reader:
            continue
        try:
            device = open_device(region)
        except (NotUnderstood, UnreadableRange, SourceError):
            continue
        # The same region by another reader, or a copy of it.
        if device.header.uuid != own.header.uuid:
            found.append(device)
    return found


def _groups(own: Device, others: list[Device]) -> dict[bytes, Group]:
    """Parse each text once; only the region's own must all be clear."""
    found = {text: _parsed(text) for text in own.texts}
    for device in others:
        for text in device.texts:
            if text not in found:
                try:
                    found[text] = _parsed(text)
                except NotUnderstood:
                    if own.header.uuid in text.decode("ascii", "replace").replace("-", ""):
                        raise
    return found


def _parsed(text: bytes) -> Group:
    try:
        return parse_group(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise NotUnderstood("LVM metadata that is not text") from error


def _check_newest(group: Group, own: Device, groups: list[Group]) -> None:
    """No text may contradict the one that was chosen."""
    for other in groups:
        if other.uuid != group.uuid:
            if other.member(own.header.uuid):
                raise NotUnderstood("an LVM physical volume that two groups claim")
        elif other.sequence > group.sequence:
            raise NotUnderstood("an LVM physical volume that its group no longer has")
        elif other.sequence == group.sequence and other.section != group.section:
            raise NotUnderstood("LVM metadata of one age that differ")


def _by_uuid(devices: list[Device]) -> tuple[dict[str, Reader], list[str]]:
    """Return readers by UUID; those that are there twice are left out, and named."""
    found: dict[str, Reader] = {}
    doubled = []
    for device in devices:
        if device.header.uuid in found:
            doubled.append(device.header.uuid)
        found[device.header.uuid] = device.reader
    for uuid in doubled:
        found.pop(uuid, None)
    return found, doubled
