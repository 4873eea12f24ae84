"""`freezeframe files`: ls, find, cat; `get` and `history` are in `files_get`."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable

import click

from freezeframe.app import files as app
from freezeframe.cli.commands.files_get import PARTLY, failed, get, history
from freezeframe.cli.filelines import file_fields, file_line, volume_fields, volume_table
from freezeframe.cli.options import Session, common
from freezeframe.core.errors import FreezeframeError

#: A folder of more files is printed as it lies there: sorting takes memory.
_SORTED = 100_000


@click.group("files")
def command() -> None:
    """Look at files of images and copy them, without mounting anything and without root.

    WHERE is IMAGE:/path, as the machine had it, or IMAGE:VOLUME:/path; `files ls IMAGE` tells
    the volumes.
    """


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
                failed(session, place, listed.stat.message)
                continue
            output.record("file", file_fields(listed, place))
            output.show(file_line(listed))
        app.tell_notes(tree, output)
    if damaged:
        click.get_current_context().exit(PARTLY)


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
        lambda place, error: failed(session, place, error),
    )
    if problems:
        click.get_current_context().exit(PARTLY)


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


command.add_command(get)
command.add_command(history)
