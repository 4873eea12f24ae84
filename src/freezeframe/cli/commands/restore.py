"""`freezeframe restore`."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from freezeframe.app.restore import RestoreOptions, execute, prepared_restore
from freezeframe.app.session import opened_images
from freezeframe.app.volume import execute_prepared, prepared_volume
from freezeframe.cli.options import Session, common
from freezeframe.cli.sizes import size_in_bytes
from freezeframe.core.errors import FreezeframeError, UsageError
from freezeframe.core.progress import Progress
from freezeframe.core.units import human_size, human_time
from freezeframe.image.reader import ImageReader
from freezeframe.restore.plan import RestorePlan
from freezeframe.restore.volume import VolumePlan


@click.command("restore")
@click.argument("image")
@click.option("--to", required=True, metavar="TARGET", help="A device, or a raw or qcow2 file.")
@click.option("--disk", default="", help="Which disk of the image, where it holds several.")
@click.option("--partition", type=click.IntRange(1), help="Only this partition of the disk.")
@click.option("--volume", default="", metavar="GROUP/NAME", help="Only this logical volume.")
@click.option("--grow", is_flag=True, help="Extend the last partition and its filesystem.")
@click.option("--shrink", is_flag=True, help="Make a filesystem smaller that does not fit.")
@click.option("--scratch", default="", metavar="FOLDER", help="Where --shrink works on a copy.")
@click.option("--changed-only", is_flag=True, help="Read the target, write only what differs.")
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
    volume: str,
    grow: bool,
    shrink: bool,
    scratch: str,
    changed_only: bool,
    zero_unused: bool,
    no_discard: bool,
    size: int,
    form: str | None,
    threads: int | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Bring a disk, or one partition or logical volume of it, back from an image.

    Shows what it will do and asks. Restores onto the same, a larger, or (where everything
    fits, or its filesystem can be made smaller) a smaller disk.
    """
    options = RestoreOptions(
        to=to,
        disk=disk,
        partition=partition,
        volume=volume,
        grow=grow,
        shrink=shrink,
        scratch=scratch,
        changed_only=changed_only,
        zero_unused=zero_unused,
        discard=not no_discard,
        size=size,
        format=form or "",
        threads=threads,
    )
    output = session.output
    repository = session.settings.repository()
    with (
        opened_images(repository, (image,), session.output) as (found,),
        _prepared(found, options, output) as (plan, execute),
    ):
        steps = plan.describe()
        output.record("plan", {"steps": steps, "bytes": plan.write.total, **_found(plan)})
        if not yes or not session.settings.quiet:
            output.show("\n".join(f"  {step}" for step in steps))
        if dry_run:
            return
        if not yes:
            if session.settings.json:
                raise UsageError("a restore in --json cannot ask", hint="add --yes")
            _ask()
        begun = time.monotonic()
        written = execute(output)
        seconds = time.monotonic() - begun
    output.finish()
    summary = {"target": to, "bytes": written, "seconds": round(seconds, 3), **_found(plan)}
    output.record("summary", summary)
    rate = human_size(written / seconds if seconds else 0)
    output.show(f"restored {human_size(written)} to {to} in {human_time(seconds)} ({rate}/s)")
    if plan.survey is not None:
        output.show(f"{plan.survey.differ} of {plan.survey.chunks} chunks differed")


@contextmanager
def _prepared(
    image: ImageReader, options: RestoreOptions, progress: Progress
) -> Iterator[tuple[RestorePlan | VolumePlan, Callable[[Progress], int]]]:
    """Give a plan, and what executes it and returns how many bytes were written."""
    if options.volume:
        with prepared_volume(image, options, progress) as volume:
            yield volume.plan, functools.partial(execute_prepared, volume)
    else:
        with prepared_restore(image, options, progress) as prepared:
            yield prepared.plan, functools.partial(execute, prepared)


def _found(plan: RestorePlan | VolumePlan) -> dict[str, int]:
    """Return what a look at the target found, for those who asked for one."""
    if plan.survey is None:
        return {}
    return {"chunks": plan.survey.chunks, "chunks_differ": plan.survey.differ}


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
