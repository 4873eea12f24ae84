"""`freezeframe doctor`."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from freezeframe.app.doctor import examine
from freezeframe.app.shadow_doctor import shadow_findings
from freezeframe.cli.options import Session, common

_COLOURS = {"ok": "green", "missing": "red", "limited": "yellow", "not verified": "yellow"}


@click.command("doctor")
@common
def command(session: Session) -> None:
    """Tell what works on this machine, and how to get what does not."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading)
    for finding in (*examine(), *shadow_findings()):
        session.output.record(
            "finding",
            {
                "name": finding.name,
                "state": finding.state,
                "detail": finding.detail,
                "advice": finding.advice,
            },
        )
        colour = _COLOURS.get(finding.state, "white")
        table.add_row(
            Text(finding.state, style=colour),
            Text(finding.name),
            Text(finding.detail),
            Text(finding.advice),
        )
    session.output.show(table)
