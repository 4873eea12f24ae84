"""Draw a disk: a bar of its regions, and a table below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from freezeframe.cli.output import printable
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.image.manifest import DiskRecord, RegionRecord

_WIDTH = 72
_USED, _UNUSED = "█", "░"
_COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green")
_OTHER = "bright_black"


@dataclass(frozen=True, slots=True)
class Shown:
    """A region as it is drawn."""

    region: RegionRecord
    colour: str


def disk_picture(disk: DiskRecord, *, taken: str = "") -> Group:
    """Draw a disk with its regions: size, use, what is in them and how each is taken."""
    shown = _coloured(disk.regions)
    facts = [disk.path, human_size(disk.size), f"table: {disk.table}"]
    facts += [fact for fact in (disk.model, disk.serial, taken) if fact]
    title = Text(disk.name, style="bold")
    title.append(printable(f"  {' · '.join(facts)}"), style="not bold")
    return Group(title, _bar(shown, disk.size), _table(shown))


def _coloured(regions: Sequence[RegionRecord]) -> list[Shown]:
    colours = iter(range(len(regions)))
    return [
        Shown(
            region,
            _COLOURS[next(colours) % len(_COLOURS)]
            if region.role in ("partition", "whole")
            else _OTHER,
        )
        for region in regions
    ]


def _bar(shown: Sequence[Shown], size: int) -> Text:
    """Give each region a share of the width, one cell at least for those with content."""
    bar = Text()
    for item in shown:
        region = item.region
        cells = round(region.length / size * _WIDTH) if size else 0
        if region.role in ("partition", "whole"):
            cells = max(cells, 1)
        used = round(region.used / region.length * cells) if region.length else 0
        if region.used and cells:
            used = max(used, 1)
        bar.append(_USED * used + _UNUSED * (cells - used), style=item.colour)
    return bar


def _table(shown: Sequence[Shown]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "size", "used", "content", "label", "type", "taken"):
        right = heading in ("size", "used")
        table.add_column(heading, justify="right" if right else "left", style="")
    for item in shown:
        region = item.region
        if region.role == "table" or (region.role == "gap" and not region.used):
            continue
        number = f" {region.number}" if region.number else ""
        how = region.consistency.value if region.understood else "whole: not understood"
        table.add_row(
            Text("■", style=item.colour),
            f"{region.role}{number}",
            human_size(region.length),
            human_size(region.used),
            plain(region.content),
            plain(region.label or region.name),
            plain(region.type_name),
            how,
        )
        for volume in region.volumes:
            table.add_row(
                "",
                plain(f"  volume {volume.name}"),
                human_size(volume.size),
                human_size(volume.used),
                plain(volume.content),
                plain(volume.label),
            )
    return table
