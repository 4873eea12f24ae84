"""`freezeframe writers`."""

from __future__ import annotations

import click
import msgspec
from rich.table import Table

from freezeframe.app.writers import WriterView, examine_writers
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain


@click.command("writers")
@common
def command(session: Session) -> None:
    """List the applications that make themselves consistent for an image, and their volumes."""
    output, found = session.output, examine_writers()
    table = Table(box=None, pad_edge=False)
    for heading in ("writer", "state", "volumes", "last result"):
        table.add_column(heading)
    for each in found.writers:
        output.record("writer", msgspec.to_builtins(each))
        table.add_row(
            plain(each.name), plain(each.about), plain(", ".join(each.volumes)), plain(_last(each))
        )
    output.show(table if found.writers else "no application that can be asked was found")
    for kind, reason in found.unavailable:
        output.record("unavailable", {"kind": kind, "reason": reason})
        output.show(plain(f"· {kind}: {reason}"))


def _last(writer: WriterView) -> str:
    last = writer.last
    if last is None:
        return "never asked"
    said = f"{last.when}: {last.vote}"
    if last.reason:
        return f"{said}, {last.reason}"
    return f"{said}, {last.consistency}-consistent, held for {last.held_ms:.1f} ms"
