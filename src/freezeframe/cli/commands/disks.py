"""`freezeframe disks`."""

from __future__ import annotations

import click
import msgspec

from freezeframe.app.disks import examine_disks
from freezeframe.app.providers import Chosen
from freezeframe.cli.options import Session, common
from freezeframe.cli.picture import disk_picture
from freezeframe.cli.terminal import plain


@click.command("disks")
@click.argument("paths", nargs=-1, metavar="[DISK]…")
@common
def command(session: Session, paths: tuple[str, ...]) -> None:
    """Draw the machine's disks (or those named): regions, use, and how each would be taken."""
    output = session.output
    first, failed = True, False
    for disk in examine_disks(paths, session.settings.place()):
        output.record(
            "disk",
            {
                "path": disk.path,
                "state": disk.state,
                "mode": disk.mode or None,
                "holders": list(disk.holders),
                "disk": msgspec.to_builtins(disk.record) if disk.record else None,
                "providers": [_provider(each) for each in disk.providers],
            },
        )
        if not first:
            output.show("")
        first = False
        if disk.record is not None:
            output.show(disk_picture(disk.record, taken=disk.state))
        else:
            failed = True
            output.show(plain(f"{disk.path}  {disk.state}"))
        for holder in disk.holders:
            output.show(plain(f"  in use: {holder}"))
        for each in disk.providers:
            path, kind = each.volume.path, each.kind or "no provider"
            output.show(plain(f"  online, {path} by {kind}: {each.reason}"))
    if first:
        output.show("no disks were found")
    if failed and paths:
        click.get_current_context().exit(1)


def _provider(chosen: Chosen) -> dict[str, object]:
    return {
        "volume": chosen.volume.path,
        "provider": chosen.kind or None,
        "reason": chosen.reason,
        "fits": msgspec.to_builtins(dict(chosen.fits or {})),
    }
