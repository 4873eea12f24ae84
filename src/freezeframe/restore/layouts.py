"""The layout of an image's disk, as the code that adapts tables wants it."""

from __future__ import annotations

from freezeframe.core.extents import Extents
from freezeframe.image.manifest import DiskRecord
from freezeframe.layout.base import DiskLayout, Region, Role, Table


def layout_of(disk: DiskRecord) -> DiskLayout:
    """Turn a disk of a manifest back into the layout it was made from, without pieces."""
    regions = tuple(
        Region(
            role=Role(r.role),
            start=r.start,
            length=r.length,
            number=r.number,
            type_code=r.type_code,
            type_name=r.type_name,
            name=r.name,
            uuid=r.uuid,
            bootable=r.bootable,
        )
        for r in disk.regions
    )
    outside = Extents.of(
        (r.start, r.start + r.length) for r in disk.regions if r.role in (Role.TABLE, Role.GAP)
    )
    return DiskLayout(
        table=Table(disk.table),
        size=disk.size,
        sector=disk.sector,
        disk_id=disk.disk_id,
        regions=regions,
        used_outside=outside,
    )
