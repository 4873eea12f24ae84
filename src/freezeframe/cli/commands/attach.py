"""`freezeframe attach` and `freezeframe detach`."""

from __future__ import annotations

import contextlib

import click
import msgspec
from rich.table import Table

from freezeframe.access.attach import Attachment, attachments
from freezeframe.app.attach import PartOptions, attached_image, detach
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.system.background import Backgrounded, fork_until_ready


@click.command("attach")
@click.argument("image", required=False)
@click.option("--disk", default="", help="Which disk of the image, where it holds several.")
@click.option("--partition", type=click.IntRange(1), help="Only this partition of the disk.")
@click.option("--volume", default="", metavar="GROUP/NAME", help="Only this logical volume.")
@click.option("--foreground", is_flag=True, help="Serve it until Ctrl-C.")
@common
def attach(
    session: Session,
    image: str | None,
    disk: str,
    partition: int | None,
    volume: str,
    foreground: bool,
) -> None:
    """Show a disk of an image as a read-only block device; without IMAGE list what is attached.

    The device is served in the background until `freezeframe detach`. Needs root.
    """
    if image is None:
        _list(session)
        return
    options = PartOptions(image, disk, partition, volume)
    try:
        ready = None if foreground else fork_until_ready()
    except Backgrounded:
        return
    with attached_image(session.settings.opening(), options, session.output) as served:
        session.output.finish()
        session.output.record("attached", _fields(served.attachment))
        session.output.show(served.attachment.device)
        if ready is not None:
            ready()
        # Ctrl-C and SIGTERM are how it ends.
        with contextlib.suppress(KeyboardInterrupt):
            served.wait()


@click.command("detach")
@click.argument("device")
@common
def detach_command(session: Session, device: str) -> None:
    """Detach a device that `attach` made."""
    gone = detach(device)
    session.output.record("detached", _fields(gone))
    session.output.show(f"detached {gone.device} ({gone.part} of image {gone.image})")


def _list(session: Session) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("device", "image", "part", "size", "served by"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    for each in attachments():
        session.output.record("attached", _fields(each))
        by = f"pid {each.pid}" if each.alive() else "nobody: detach it"
        table.add_row(each.device, each.image, plain(each.part), human_size(each.size), by)
    session.output.show(table if table.row_count else "nothing is attached")


def _fields(attachment: Attachment) -> dict[str, object]:
    fields: object = msgspec.to_builtins(attachment)
    return {**(fields if isinstance(fields, dict) else {}), "alive": attachment.alive()}
