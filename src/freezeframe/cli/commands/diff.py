"""`freezeframe diff`."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import RenderableType
from rich.table import Table

from freezeframe.app.diff import DiskChange, RegionChange, compare_images
from freezeframe.app.session import opened_images
from freezeframe.cli.options import Session, common
from freezeframe.cli.output import plain
from freezeframe.core.units import human_size
from freezeframe.image.manifest import RegionRecord


@click.command("diff")
@click.argument("old", metavar="IMAGE")
@click.argument("new", metavar="IMAGE")
@click.option("--disk", default="", help="Only this disk, where they hold several.")
@click.option("--exact", is_flag=True, help="Read what is stored in different pieces, and compare.")
@click.option("--ranges", is_flag=True, help="List the bytes that differ.")
@common
def command(session: Session, old: str, new: str, disk: str, exact: bool, ranges: bool) -> None:
    """Show what changed from one image to another, by disk and region.

    Compares what the images are made of and reads no data, unless --exact is given.
    """
    output = session.output
    repository = session.settings.repository()
    with opened_images(repository, (old, new), output) as (first, second):
        changes = compare_images(first, second, output, disk=disk, exact=exact)
        output.finish()
    for change in changes:
        _show(session, change, ranges=ranges)
    changed = [region for change in changes for region in change.regions]
    fields = _totals(changed)
    same = all(change.same for change in changes)
    output.record("summary", {"same": same, **fields})
    if same:
        output.show("the images hold the same")
        return
    maybe = f", {human_size(fields['unclear_bytes'])} may differ" if fields["unclear_bytes"] else ""
    output.show(
        f"{human_size(fields['changed_bytes'])} differ{maybe}, in {fields['chunks']} chunks;"
        f" {human_size(fields['gained_bytes'])} came into use,"
        f" {human_size(fields['freed_bytes'])} were freed"
    )
    if fields["unclear_bytes"] and not exact:
        output.show("what may differ is stored in different pieces: --exact reads and compares it")


def _totals(regions: Sequence[RegionChange]) -> dict[str, int]:
    return {
        "changed_bytes": sum(region.changed.total for region in regions),
        "unclear_bytes": sum(region.unclear.total for region in regions),
        "chunks": sum(region.chunks for region in regions),
        "gained_bytes": sum(region.gained for region in regions),
        "freed_bytes": sum(region.freed for region in regions),
    }


def _show(session: Session, change: DiskChange, *, ranges: bool) -> None:
    output, record = session.output, change.record
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
        **_totals((change,)),
    }
    if ranges:
        fields["changed"] = list(change.changed)
        fields["unclear"] = list(change.unclear)
    return fields
