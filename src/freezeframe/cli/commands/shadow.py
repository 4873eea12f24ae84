"""`freezeframe shadow`: read-only devices of volumes as they were at one moment."""

from __future__ import annotations

from collections.abc import Iterable

import click
import msgspec
from rich.table import Table

from freezeframe.app.shadow import clean_sets, create_set, delete_set, kept_sets
from freezeframe.cli.options import Session, common
from freezeframe.cli.proof import shadow_detail_lines, shadow_lines
from freezeframe.cli.shadow_options import shadow_options, shadow_settings
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.shadow.leftovers import Cleaned


@click.group("shadow")
def command() -> None:
    """Make read-only devices of volumes as they are at one moment, and remove them."""


@command.command("create")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME…")
@click.option("--name", default="", help="What to call the set (small letters, digits, -).")
@shadow_options
@common
def create(session: Session, volumes: tuple[str, ...], name: str) -> None:
    """Make a shadow copy of each volume, all of one moment; they stay until deleted.

    Each is a read-only device that can be mounted. Applications whose data lie wholly on the
    volumes are made consistent.
    """
    made = create_set(volumes, session.output, shadow_settings(), label=name)
    output, entry = session.output, made.entry
    output.record(
        "shadow_set",
        {"set": msgspec.to_builtins(entry), "proof": msgspec.to_builtins(made.proof)},
    )
    for shadow in entry.shadows:
        output.show(plain(f"{shadow.path}  {shadow.volume} by {shadow.provider}"))
    if made.proof is not None:
        for line in shadow_lines(made.proof):
            output.show(line)
        for line in shadow_detail_lines(made.proof):
            output.show(plain(f"· {line}"))
    output.show(f"remove: freezeframe shadow delete {entry.label or entry.name}")


@command.command("list")
@common
def list_sets(session: Session) -> None:
    """List the shadow copies that are kept."""
    output, found = session.output, kept_sets()
    table = Table(box=None, pad_edge=False)
    for heading in ("set", "made", "volume", "size", "by", "copy", "state"):
        table.add_column(heading)
    for each in found:
        entry = each.entry
        output.record("shadow_set", {"set": msgspec.to_builtins(entry), "trouble": each.trouble})
        for shadow in entry.shadows:
            table.add_row(
                plain(entry.label or entry.name),
                entry.created,
                plain(shadow.volume),
                human_size(shadow.size),
                shadow.provider,
                plain(shadow.path),
                plain(each.trouble or "good"),
            )
    output.show(table if found else "no shadow copies are kept")


@command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="SET…")
@common
def delete(session: Session, names: tuple[str, ...]) -> None:
    """Remove sets of shadow copies, by name or id. The volumes themselves are not touched."""
    _report(session, (each for name in names for each in delete_set(name)), "nothing was removed")


@command.command("cleanup")
@common
def cleanup(session: Session) -> None:
    """Remove what was left by programs that died: snapshots, tables, frozen applications.

    Every online image does that as well before it begins. Sets that are kept stay.
    """
    _report(session, clean_sets(), "nothing was left behind")


def _report(session: Session, cleaned: Iterable[Cleaned], nothing: str) -> None:
    output, failed, seen = session.output, False, False
    for each in cleaned:
        seen = True
        failed = failed or bool(each.trouble)
        output.record("cleaned", msgspec.to_builtins(each))
        state = f"not removed: {each.trouble}" if each.trouble else "removed"
        output.show(plain(f"{each.name}  {each.what}: {state}"))
        if each.hint:
            output.show(plain(f"  → {each.hint}"))
    if not seen:
        output.show(nothing)
    if failed:
        click.get_current_context().exit(1)
