"""`freezeframe files get` and `freezeframe files history`."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from freezeframe.app import files as app
from freezeframe.app.history import Version
from freezeframe.app.history import history as follow
from freezeframe.cli.filelines import moment
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain
from freezeframe.core.errors import UsageError
from freezeframe.core.units import human_size

#: Some files could not be read or copied.
PARTLY = 3


def failed(session: Session, place: str, error: str) -> None:
    """Say that a file could not be read."""
    session.output.record("error", {"path": place, "text": error})
    if not session.output.json:
        session.output.note(f"{place}: {error}")


@click.command("get")
@click.argument("where", nargs=-1, required=True)
@click.option("--to", "target", metavar="FOLDER", help="Copy into this folder (the current one).")
@click.option("-o", "--output", "file", metavar="FILE", help="Write one file's content to FILE.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@common
def get(
    session: Session, where: tuple[str, ...], target: str | None, file: str | None, overwrite: bool
) -> None:
    """Copy files and folders out of an image, with owners, modes, times, attributes and links.

    What is not root cannot keep (owners, devices) is said at the end.
    """
    wheres = [app.parse_where(each) for each in where]
    if file is not None and (target is not None or len(wheres) > 1):
        raise UsageError("-o is for the content of one file", hint="use --to FOLDER for more")
    output = session.output
    with app.opened_views(session.settings.repository(), wheres, output) as views:
        if file is not None:
            copied = app.copy_content(views[0], Path(file), output, overwrite=overwrite)
        else:
            copied = app.copy_files(views, Path(target or "."), output, overwrite=overwrite)
    output.finish()
    for path, reason in copied.failed:
        failed(session, os.fsdecode(path), reason)
    for what, count in sorted(copied.lost.items()):
        output.note(f"not kept: {what}: {count}")
    fields = {
        "files": copied.files,
        "folders": copied.folders,
        "links": copied.links,
        "others": copied.others,
        "bytes": copied.data,
        "failed": len(copied.failed),
        "not_kept": dict(sorted(copied.lost.items())),
    }
    output.record("summary", fields)
    output.show(
        f"copied {copied.files} files, {copied.folders} folders, {copied.links} links"
        f" ({human_size(copied.data)})"
        + (f"; {len(copied.failed)} could not be copied" if copied.failed else "")
    )
    if copied.failed:
        click.get_current_context().exit(PARTLY)


@click.command("history")
@click.argument("path")
@click.argument("images", nargs=-1, metavar="[IMAGE]…")
@click.option("--content", is_flag=True, help="Compare large files by their content, too.")
@common
def history(session: Session, path: str, images: tuple[str, ...], content: bool) -> None:
    """Tell in which images a file is new, changed, or gone: all images where none is named.

    PATH is /path, or VOLUME:/path.
    """
    volume, _, rest = path.partition(":/") if not path.startswith("/") else ("", "", path[1:])
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "time", "host", "state", "size", "modified", "sha256"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    repository, output = session.settings.repository(), session.output
    damaged = False
    for version in follow(
        repository, os.fsencode(f"/{rest}"), volume, images, output, content=content
    ):
        damaged |= version.state == "unreadable"
        output.record("version", _fields(version))
        table.add_row(*_row(version))
    output.show(table)
    if damaged:
        click.get_current_context().exit(PARTLY)


def _fields(version: Version) -> dict[str, object]:
    stat, image = version.stat, version.image
    return {
        "image": version.image_id,
        "time": image.manifest.created.isoformat() if image else None,
        "host": image.manifest.host.name if image else None,
        "state": version.state,
        "size": None if stat is None else stat.size,
        "mtime_ns": None if stat is None else stat.mtime,
        "sha256": version.digest or None,
        "reason": version.reason or None,
    }


def _row(version: Version) -> tuple[str | Text, ...]:
    stat, image = version.stat, version.image
    return (
        version.image_id,
        f"{image.manifest.created:%Y-%m-%d %H:%M:%S}" if image else "",
        plain(image.manifest.host.name) if image else "",
        version.state,
        "" if stat is None else str(stat.size),
        "" if stat is None else moment(stat.mtime),
        plain(version.reason or version.digest[:16]),
    )
