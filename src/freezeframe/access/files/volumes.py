"""The volumes of an image that may hold files: partitions, whole disks, logical volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from freezeframe.access.files.base import Filesystem
from freezeframe.access.files.kinds import open_filesystem, readable
from freezeframe.block.base import Reader
from freezeframe.block.window import Window
from freezeframe.core.errors import FreezeframeError, NotUnderstood
from freezeframe.fs.base import PeerList
from freezeframe.fs.lvm.members import find_group, open_device
from freezeframe.fs.lvm.volume import LogicalVolume
from freezeframe.image.manifest import Consistency, DiskRecord, RegionRecord, VolumeRecord
from freezeframe.layout.base import Role

_FROZEN = (Consistency.FROZEN, Consistency.APPLICATION)


@dataclass(eq=False)
class Volume:
    """A volume, opened when somebody wants its files. Not to be shared between threads."""

    #: What it is called: `sda/p2`, `sdb` (a whole disk), `vg0/root` (a logical volume).
    name: str
    #: As the manifest says it: `ext4`, `ntfs`, `luks2`, `unknown`, …
    content: str
    size: int
    label: str
    uuid: str
    #: Other names: device nodes and the ids of partitions, as `/etc/fstab` has them.
    aliases: frozenset[str]
    _reader: Callable[[], Reader] = field(repr=False)
    _peers: Callable[[], PeerList] = field(repr=False)
    #: Whether it was frozen when it was imaged: then what its log holds is in its place, too.
    frozen: bool = False
    _opened: Filesystem | FreezeframeError | None = None

    @property
    def readable(self) -> bool:
        """Whether files of such a volume can be read at all."""
        return readable(self.content)

    def filesystem(self) -> Filesystem:
        """Open it, the first time; raises `NotUnderstood` where that cannot be."""
        if self._opened is None:
            try:
                self._opened = self._open()
            except FreezeframeError as error:
                self._opened = error
        if isinstance(self._opened, FreezeframeError):
            raise self._opened
        return self._opened

    def notes(self) -> tuple[str, ...]:
        """Return what somebody who reads it should know."""
        filesystem = self.filesystem()
        return () if self.frozen and filesystem.kind == "xfs" else filesystem.notes

    def _open(self) -> Filesystem:
        if not self.readable:
            raise NotUnderstood(
                f"{self.name} holds {self.content}: files in it cannot be read from the image",
                hint="restore the partition, or attach the image, and open it with its own tools",
            )
        return open_filesystem(self.content, self._reader(), self._peers())

    def known_as(self, name: str) -> bool:
        """Whether a name means it, in any of the ways of `/etc/fstab`, or by label or UUID."""
        kind, equals, value = name.partition("=")
        value = value.strip('"')
        if equals and kind == "UUID":
            return bool(self.uuid) and self.uuid.lower() == value.lower()
        if equals and kind == "LABEL":
            return bool(self.label) and self.label == value
        return (
            name == self.name
            or name in self.aliases
            or (bool(self.label) and name == self.label)
            or (bool(self.uuid) and name.lower() == self.uuid.lower())
        )


def find_volumes(disks: Sequence[tuple[DiskRecord, Reader]]) -> list[Volume]:
    """Return all volumes of an image's disks, from its manifest: nothing is read yet."""
    regions = [
        (disk, region, Window(reader, region.start, region.length, name=_region_name(disk, region)))
        for disk, reader in disks
        for region in disk.regions
        if region.role in (Role.PARTITION, Role.WHOLE)
    ]
    windows = tuple(window for _, _, window in regions)
    found: list[Volume] = []
    logical: dict[str, Volume] = {}
    groups = _Groups(windows)
    for disk, region, window in regions:
        for volume in region.volumes:
            name = f"{region.label}/{volume.name}"
            if name not in logical:
                logical[name] = _logical(region, volume, window, groups)
                found.append(logical[name])
        if not region.volumes:
            found.append(_plain(disk, region, window, groups))
    return found


def _plain(disk: DiskRecord, region: RegionRecord, window: Window, groups: _Groups) -> Volume:
    return Volume(
        name=_region_name(disk, region),
        content=region.content or "nothing",
        size=region.length,
        label=region.label,
        uuid=region.content_uuid,
        aliases=frozenset(_aliases(disk, region)),
        _reader=lambda: window,
        _peers=groups.peers,
        frozen=region.consistency in _FROZEN,
    )


def _logical(region: RegionRecord, volume: VolumeRecord, window: Window, groups: _Groups) -> Volume:
    group, name = region.label, volume.name
    mapped = f"{group.replace('-', '--')}-{name.replace('-', '--')}"
    return Volume(
        name=f"{group}/{name}",
        content=volume.content,
        size=volume.size,
        label=volume.label,
        uuid=volume.content_uuid,
        aliases=frozenset((f"/dev/{group}/{name}", f"/dev/mapper/{mapped}")),
        _reader=lambda: groups.open(window, name),
        _peers=groups.peers,
        frozen=region.consistency in _FROZEN,
    )


def _region_name(disk: DiskRecord, region: RegionRecord) -> str:
    return f"{disk.name}/p{region.number}" if region.number else disk.name


def _aliases(disk: DiskRecord, region: RegionRecord) -> Iterator[str]:
    if not region.number:
        yield disk.path
        return
    yield f"{disk.name}/{region.number}"
    yield f"{disk.path}{'p' if disk.path[-1:].isdigit() else ''}{region.number}"
    if region.uuid:
        for spelling in (region.uuid.lower(), region.uuid.upper()):
            yield f"PARTUUID={spelling}"
            yield f"/dev/disk/by-partuuid/{spelling}"
    if region.name:
        yield f"PARTLABEL={region.name}"
        yield f"/dev/disk/by-partlabel/{region.name}"
    if region.content_uuid:
        yield f"/dev/disk/by-uuid/{region.content_uuid}"
    if region.label:
        yield f"/dev/disk/by-label/{region.label}"


class _Groups:
    """Logical volumes as readers, opened when they are wanted."""

    def __init__(self, windows: tuple[Window, ...]) -> None:
        self._windows = windows

    def open(self, window: Window, name: str) -> LogicalVolume:
        """Open a volume of the group that a region belongs to; raises `NotUnderstood`."""
        found = find_group(open_device(window), self._windows)
        volume = next((v for v in found.group.logical if v.name == name), None) if found else None
        if found is None or volume is None:
            raise NotUnderstood(f"the volume group has no volume {name} any more")
        if not volume.plain:
            raise NotUnderstood(
                f"{name} is no plain volume (thin, snapshot, cache, RAID, …): files in it cannot be"
                " read from the image",
                hint="restore the disk, or attach the image, and use LVM's own tools",
            )
        needed = {stripe.physical for each in volume.segments for stripe in each.stripes}
        if not needed <= found.devices.keys():
            raise NotUnderstood(f"{name} lies on a physical volume that is not in this image")
        return LogicalVolume(found.group, volume, found.devices, window.sector)

    def peers(self) -> PeerList:
        """Return the regions among which members of a filesystem are looked for."""
        return PeerList(self._windows)


def choose_volume(volumes: Iterable[Volume], name: str, image: str) -> Volume:
    """Return the volume that a user named; raises `NotUnderstood` saying which there are."""
    known = list(volumes)
    matches = [volume for volume in known if volume.known_as(name)]
    if len(matches) == 1:
        return matches[0]
    problem = "several volumes are called" if matches else "there is no volume"
    raise NotUnderstood(f"{problem} {name!r} in image {image}", hint=listed(known, image))


def listed(volumes: Iterable[Volume], image: str) -> str:
    """Say which volumes there are, for a hint."""
    names = [
        f"{image}:{volume.name}:/ ({volume.content}{f', {volume.label}' if volume.label else ''})"
        for volume in volumes
        if volume.readable
    ]
    return f"it has {', '.join(names)}" if names else "none of its volumes has files to be read"
