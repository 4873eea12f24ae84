"""`freezeframe key`: a repository may have several passwords."""

from __future__ import annotations

import click
from rich.table import Table

from freezeframe.cli.options import Session, common, from_file
from freezeframe.cli.terminal import plain
from freezeframe.core.errors import UsageError


@click.group("key")
def command() -> None:
    """List, add and remove passwords of a repository."""


@command.command("list")
@common
def list_keys(session: Session) -> None:
    """List the keys: who made each, when, and which one opened the repository now."""
    repository = session.settings.repository()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "key", "user", "host", "made"):
        table.add_column(heading)
    for key in repository.keys():
        session.output.record(
            "key",
            {
                "id": key.id,
                "current": key.current,
                "username": key.username,
                "hostname": key.hostname,
                "created": key.created,
            },
        )
        table.add_row(
            "*" if key.current else "",
            key.id[:8],
            plain(key.username),
            plain(key.hostname),
            f"{key.created:%Y-%m-%d %H:%M:%S}",
        )
    session.output.show(table)


@command.command("add")
@click.option("--new-password-file", metavar="FILE", help="Read the new password from a file.")
@common
def add_key(session: Session, new_password_file: str | None) -> None:
    """Add a password; the ones there are stay valid."""
    repository = session.settings.repository()
    if new_password_file:
        new = from_file(new_password_file)
    elif session.settings.json:
        raise UsageError("a command in --json cannot ask", hint="use --new-password-file")
    else:
        new = click.prompt("new password", hide_input=True, err=True, confirmation_prompt=True)
    key = repository.add_password(new)
    session.output.record("summary", {"id": key})
    session.output.show(f"added key {key[:8]}")


@command.command("remove")
@click.argument("key")
@common
def remove_key(session: Session, key: str) -> None:
    """Remove a password by its key's id; never the one in use now."""
    repository = session.settings.repository()
    matches = [found.id for found in repository.keys() if found.id.startswith(key)]
    if len(matches) != 1:
        raise UsageError(
            f"{'no key begins' if not matches else 'more than one key begins'} with {key!r}",
            hint="list them: freezeframe key list",
        )
    repository.remove_key(matches[0])
    session.output.record("summary", {"removed": matches[0]})
    session.output.show(f"removed key {matches[0][:8]}")
