"""`freezeframe diff`."""

from __future__ import annotations

import os

import click

from freezeframe.app.diff import compare_images
from freezeframe.app.diff_files import changed_files
from freezeframe.app.files import Where, opened_views
from freezeframe.app.session import opened_images
from freezeframe.cli.differences import show_change, totals
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.repo.repository import Repository


@click.command("diff")
@click.argument("old", metavar="IMAGE")
@click.argument("new", metavar="IMAGE")
@click.option("--disk", default="", help="Only this disk, where they hold several.")
@click.option("--exact", is_flag=True, help="Read what is stored in different pieces, and compare.")
@click.option("--files", is_flag=True, help="List the files that changed, too.")
@click.option("--ranges", is_flag=True, help="List the bytes that differ.")
@common
def command(
    session: Session, old: str, new: str, disk: str, exact: bool, files: bool, ranges: bool
) -> None:
    """Show what changed from one image to another, by disk and region.

    Compares what the images are made of and reads no data, unless --exact is given.
    """
    output = session.output
    repository = session.settings.repository()
    with opened_images(repository, (old, new), output) as (first, second):
        changes = compare_images(first, second, output, disk=disk, exact=exact)
        output.finish()
    for change in changes:
        show_change(output, change, ranges=ranges)
    if files:
        _show_files(session, repository, old, new)
    changed = [region for change in changes for region in change.regions]
    fields = totals(changed)
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


def _show_files(session: Session, repository: Repository, old: str, new: str) -> None:
    output = session.output

    def tell(place: str, why: str) -> None:
        output.note(f"{place}: {why}")

    wheres = [Where(name, "", None) for name in (old, new)]
    with opened_views(repository, wheres, output) as (first, second):
        for change in changed_files(first, second, tell):
            path = os.fsdecode(change.path)
            output.record(
                "file",
                {
                    "change": change.mark,
                    "volume": change.volume,
                    "path": path,
                    "what": change.what,
                    "size_before": change.old.size if change.old else None,
                    "size": change.new.size if change.new else None,
                },
            )
            where = f"{change.volume}:" if change.volume else ""
            what = f" ({', '.join(change.what)})" if change.mark == "U" else ""
            output.show(plain(f"{change.mark} {where}{path}{what}"))
