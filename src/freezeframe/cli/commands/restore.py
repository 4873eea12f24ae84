"""`freezeframe restore`."""

from __future__ import annotations

import sys
import time

import click

from freezeframe.app.restore import RestoreOptions, execute, prepare_restore
from freezeframe.app.session import opened_images
from freezeframe.cli.options import Session, common
from freezeframe.cli.sizes import size_in_bytes
from freezeframe.core.errors import FreezeframeError, UsageError
from freezeframe.core.units import human_size, human_time


@click.command("restore")
@click.argument("image")
@click.option("--to", required=True, metavar="TARGET", help="A device, or a raw or qcow2 file.")
@click.option("--disk", default="", help="Which disk of the image, where it holds several.")
@click.option("--partition", type=click.IntRange(1), help="Only this partition of the disk.")
@click.option("--grow", is_flag=True, help="Extend the last partition and its filesystem.")
@click.option("--zero-unused", is_flag=True, help="Write zeros where the image holds nothing.")
@click.option("--no-discard", is_flag=True, help="Leave the target's unused sectors as they are.")
@click.option("--size", callback=size_in_bytes, help="Size of a new file, e.g. 64G.")
@click.option("--format", "form", type=click.Choice(["raw", "qcow2"]), help="Of a new file.")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads work.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@common
def command(
    session: Session,
    image: str,
    to: str,
    disk: str,
    partition: int | None,
    grow: bool,
    zero_unused: bool,
    no_discard: bool,
    size: int,
    form: str | None,
    threads: int | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Bring a disk, or one partition of it, back from an image.

    Shows what it will do and asks. Restores onto the same, a larger, or (where everything
    fits) a smaller disk.
    """
    options = RestoreOptions(
        to=to,
        disk=disk,
        partition=partition,
        grow=grow,
        zero_unused=zero_unused,
        discard=not no_discard,
        size=size,
        format=form or "",
        threads=threads,
    )
    output = session.output
    repository = session.settings.repository()
    with opened_images(repository, (image,), session.output) as (found,):
        prepared = prepare_restore(found, options)
        steps = prepared.plan.describe()
        output.record("plan", {"steps": steps, "bytes": prepared.plan.write.total})
        if not yes or not session.settings.quiet:
            output.show("\n".join(f"  {step}" for step in steps))
        if dry_run:
            return
        if not yes:
            if session.settings.json:
                raise UsageError("a restore in --json cannot ask", hint="add --yes")
            _ask()
        begun = time.monotonic()
        execute(prepared, output)
        seconds = time.monotonic() - begun
    output.finish()
    written = prepared.plan.write.total
    output.record("summary", {"target": to, "bytes": written, "seconds": round(seconds, 3)})
    rate = human_size(written / seconds if seconds else 0)
    output.show(f"restored {human_size(written)} to {to} in {human_time(seconds)} ({rate}/s)")


def _ask() -> None:
    """Return where the user agrees."""
    try:
        agreed = click.confirm("go on?", err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise UsageError("nobody answered", hint="add --yes, or run it in a terminal") from None
    if not agreed:
        raise FreezeframeError("nothing was restored, and nothing written")
