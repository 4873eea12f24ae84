"""`freezeframe track`: note which parts of disks are written, so that the next image is short."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.table import Table

from freezeframe.app.track import Outcome, start_tracking, stop_tracking, tracked
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain
from freezeframe.core.units import GRANULE, human_size


@click.group("track")
def command() -> None:
    """Note which parts of disks are written, so that the next image reads only those."""


@command.command("start")
@click.argument("paths", nargs=-1, metavar="[DISK]…")
@common
def start(session: Session, paths: tuple[str, ...]) -> None:
    """Track the disks named, or all that hold a mounted filesystem, until the machine stops."""
    _report(session, start_tracking(paths))


@command.command("stop")
@click.argument("paths", nargs=-1, metavar="[DISK]…")
@common
def stop(session: Session, paths: tuple[str, ...]) -> None:
    """Stop tracking the disks named, or all: the next image of each is read in full."""
    _report(session, stop_tracking(paths))


def _report(session: Session, outcomes: Iterable[Outcome]) -> None:
    output = session.output
    nothing, failed = True, False
    for outcome in outcomes:
        nothing = False
        failed = failed or outcome.state == "failed"
        output.record(
            "track",
            {
                "path": outcome.path,
                "state": outcome.state,
                "reason": outcome.reason,
                "hint": outcome.hint,
            },
        )
        why = f": {outcome.reason}" if outcome.reason else ""
        output.show(plain(f"{outcome.path}  {outcome.state}{why}"))
        if outcome.hint:
            output.show(plain(f"  → {outcome.hint}"))
    if nothing:
        output.show("there is no disk to do this for")
    if failed:
        click.get_current_context().exit(1)


@command.command("status")
@common
def status(session: Session) -> None:
    """Tell which disks are tracked, what was written to them, and whether that can be trusted."""
    output = session.output
    found = tracked()
    table = Table(box=None, pad_edge=False)
    for heading in ("disk", "size", "marked", "writes", "images", "trusted"):
        table.add_column(heading)
    for one in found:
        output.record(
            "tracker",
            {
                "name": one.disk.name,
                "number": one.disk.number,
                "size": one.disk.size,
                "mode": one.mode,
                "generation": one.generation,
                "started": one.started,
                "marked": one.marked * GRANULE,
                "writes": one.state.events,
                "doubts": list(one.doubts),
                "bases": [{"repository": repo, "image": image} for repo, image in one.bases],
            },
        )
        table.add_row(
            plain(one.disk.name),
            human_size(one.disk.size),
            human_size(min(one.marked * GRANULE, one.disk.size)),
            str(one.state.events),
            plain(", ".join(image[:8] for _, image in one.bases) or "none"),
            plain(f"no: {'; '.join(one.doubts)}" if one.doubts else "yes"),
        )
    output.show(table if found else "no disk is tracked")
