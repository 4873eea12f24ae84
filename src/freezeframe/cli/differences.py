"""How the differences of two images are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from freezeframe.app.diff import DiskChange, RegionChange
from freezeframe.cli.output import Output
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.image.manifest import RegionRecord


def totals(regions: Sequence[RegionChange]) -> dict[str, int]:
    """Add up what of some regions differs, in bytes and chunks."""
    return {
        "changed_bytes": sum(region.changed.total for region in regions),
        "unclear_bytes": sum(region.unclear.total for region in regions),
        "chunks": sum(region.chunks for region in regions),
        "gained_bytes": sum(region.gained for region in regions),
        "freed_bytes": sum(region.freed for region in regions),
    }


def show_change(output: Output, change: DiskChange, *, ranges: bool) -> None:
    """Show what of one disk differs, region by region; with `ranges` byte by byte."""
    record = change.record
    only = "old" if change.new is None else "new" if change.old is None else ""
    output.record(
        "disk",
        {"disk": record.name, "path": record.path, "only_in": only, "notes": change.notes},
    )
    where = f" is only in the {only} image" if only else ""
    output.show(plain(f"disk {record.name} ({record.path}){where}"))
    for note in change.notes:
        output.show(plain(f"· {note}"))
    table = Table(box=None, pad_edge=False)
    for heading in ("region", "size", "differs", "may differ", "chunks", "in use", "freed"):
        table.add_column(heading, justify="left" if heading == "region" else "right")
    for region in change.regions:
        output.record("region", _fields(record.name, region, ranges=ranges))
        if not region.same:
            table.add_row(*_row(region))
    if table.row_count:
        output.show(table)
    for region in change.regions if ranges else ():
        for extents, word in ((region.changed, "differ"), (region.unclear, "may differ")):
            for start, stop in extents:
                output.show(f"bytes {start}-{stop - 1} {word}")


def _row(region: RegionChange) -> tuple[RenderableType, ...]:
    unclear = region.unclear.total
    return (
        plain(_title(region.region)),
        human_size(region.region.length),
        human_size(region.changed.total),
        human_size(unclear) if unclear else "",
        str(region.chunks),
        f"+{human_size(region.gained)}",
        f"-{human_size(region.freed)}",
    )


def _title(region: RegionRecord) -> str:
    number = f" {region.number}" if region.number else ""
    content = f" ({region.content})" if region.content else ""
    return f"{region.role}{number}{content} at {human_size(region.start)}"


def _fields(disk: str, change: RegionChange, *, ranges: bool) -> dict[str, object]:
    region = change.region
    fields: dict[str, object] = {
        "disk": disk,
        "role": region.role,
        "number": region.number,
        "content": region.content,
        "start": region.start,
        "length": region.length,
        **totals((change,)),
    }
    if ranges:
        fields["changed"] = list(change.changed)
        fields["unclear"] = list(change.unclear)
    return fields
