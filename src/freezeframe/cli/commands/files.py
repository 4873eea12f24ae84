"""`freezeframe files`: ls, find, cat, get, history."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from rich.table import Table

from freezeframe.app import files as app
from freezeframe.cli.filelines import file_fields, file_line, moment, volume_fields, volume_table
from freezeframe.cli.options import Session, common
from freezeframe.cli.output import plain
from freezeframe.core.errors import FreezeframeError, UsageError
from freezeframe.core.units import human_size

_PARTLY = 3
#: A folder of more files is printed as it lies there: sorting takes memory.
_SORTED = 100_000


@click.group("files")
def command() -> None:
    """Look at files of images and copy them, without mounting anything and without root.

    WHERE is IMAGE:/path, as the machine had it, or IMAGE:VOLUME:/path; `files ls IMAGE` tells
    the volumes.
    """


def _failed(session: Session, place: str, error: str) -> None:
    session.output.record("error", {"path": place, "text": error})
    if not session.output.json:
        session.output.note(f"{place}: {error}")


@command.command("ls")
@click.argument("where")
@common
def ls(session: Session, where: str) -> None:
    """List a folder, or the volumes of an image where only that is named."""
    asked, output = app.parse_where(where), session.output
    damaged = False
    with app.opened_views(session.settings.repository(), (asked,), output) as (view,):
        if asked.path is None:
            for volume in view.volumes:
                output.record("volume", volume_fields(volume, view))
            output.show(volume_table(view))
            return
        tree = view.tree()
        for listed in _sorted(app.list_folder(tree, asked.path)):
            place = asked.of(listed.place.path)
            if isinstance(listed.stat, FreezeframeError):
                damaged = True
                _failed(session, place, listed.stat.message)
                continue
            output.record("file", file_fields(listed, place))
            output.show(file_line(listed))
        app.tell_notes(tree, output)
    if damaged:
        click.get_current_context().exit(_PARTLY)


def _sorted(found: Iterable[app.Listed]) -> Iterable[app.Listed]:
    first: list[app.Listed] = []
    rest = iter(found)
    for listed in rest:
        first.append(listed)
        if len(first) == _SORTED:
            break
    yield from sorted(first, key=lambda listed: listed.place.names)
    yield from rest


@command.command("find")
@click.argument("where", nargs=-1)
@click.option("--name", metavar="PATTERN", default="*", help="As a shell matches names: *.conf.")
@common
def find(session: Session, where: tuple[str, ...], name: str) -> None:
    """Find files by name: below WHERE, or in all images where none is named.

    A PATTERN with a slash is matched with whole paths.
    """
    wheres = [app.parse_where(each) for each in where]
    problems = app.find_all(
        session.settings.repository(),
        wheres,
        app.named(name),
        session.output,
        lambda listed, place: _found(session, listed, place),
        lambda place, error: _failed(session, place, error),
    )
    if problems:
        click.get_current_context().exit(_PARTLY)


def _found(session: Session, listed: app.Listed, place: str) -> None:
    session.output.record("file", file_fields(listed, place))
    session.output.show(place)


@command.command("cat")
@click.argument("where")
@common
def cat(session: Session, where: str) -> None:
    """Print the content of a file. With --json, in pieces of base64."""
    asked, output = app.parse_where(where), session.output
    with app.opened_views(session.settings.repository(), (asked,), output) as (view,):
        tree, reached = view.tree(), 0
        for data in app.read_file(tree, asked.path or b"/"):
            text = base64.b64encode(data).decode() if output.json else ""
            output.record("content", {"offset": reached, "base64": text})
            if not output.json:
                sys.stdout.buffer.write(data)
            reached += len(data)
        sys.stdout.buffer.flush()
        app.tell_notes(tree, output)


@command.command("get")
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
        _failed(session, os.fsdecode(path), reason)
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
        click.get_current_context().exit(_PARTLY)


@command.command("history")
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
    for heading in ("image", "time", "state", "size", "modified", "sha256"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    repository, output = session.settings.repository(), session.output
    damaged = False
    for version in app.history(
        repository, os.fsencode(f"/{rest}"), volume, images, output, content=content
    ):
        damaged |= version.state == "unreadable"
        made = f"{version.image.manifest.created:%Y-%m-%d %H:%M:%S}" if version.image else ""
        size = "" if version.stat is None else str(version.stat.size)
        changed = "" if version.stat is None else moment(version.stat.mtime)
        fields = {
            "image": version.image_id,
            "time": version.image.manifest.created.isoformat() if version.image else None,
            "state": version.state,
            "size": None if version.stat is None else version.stat.size,
            "mtime": changed or None,
            "sha256": version.digest or None,
            "reason": version.reason or None,
        }
        output.record("version", fields)
        shown = version.reason or version.digest[:16]
        table.add_row(version.image_id, made, version.state, size, changed, plain(shown))
    output.show(table)
    if damaged:
        click.get_current_context().exit(_PARTLY)
