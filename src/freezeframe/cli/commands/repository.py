"""`freezeframe init`, `check` and `unlock`."""

from __future__ import annotations

import click

from freezeframe.app.session import reading_lock
from freezeframe.cli.options import Session, common
from freezeframe.repo.check import check as check_repository
from freezeframe.repo.repository import create_repository
from freezeframe.store.open import open_store


@click.command("init")
@common
def init(session: Session) -> None:
    """Make a repository."""
    place = session.settings.location()
    store = open_store(place)
    repository = create_repository(store, session.settings.password(confirm=True))
    session.output.record("initialized", {"id": repository.config.id, "repository": place})
    session.output.show(
        f"made repository {repository.config.id[:10]} at {place}\n"
        "Keep the password: without it nothing can be read, by anybody."
    )


@click.command("check")
@click.option("--read-data", is_flag=True, help="Read every pack, not only the structure.")
@common
def check(session: Session, read_data: bool) -> None:
    """Check the repository: indexes, packs, snapshots, trees; with --read-data every byte."""
    repository = session.settings.repository()
    output = session.output
    with reading_lock(repository, output):
        problems = check_repository(repository, read_data=read_data, progress=output)
    output.finish()
    damaged = [problem for problem in problems if problem.damage]
    for problem in problems:
        output.record(
            "problem", {"object": problem.object, "text": problem.text, "damage": problem.damage}
        )
        output.show(f"{'damaged' if problem.damage else 'note'}: {problem.object}: {problem.text}")
    output.record("summary", {"ok": not damaged, "problems": len(problems)})
    if damaged:
        output.show("`freezeframe verify` tells which regions of which images are hit")
        click.get_current_context().exit(1)
    output.show("no damage was found")


@click.command("unlock")
@click.option("--remove-all", is_flag=True, help="Remove locks that may be in use, too.")
@common
def unlock(session: Session, remove_all: bool) -> None:
    """Remove locks left by programs that died."""
    removed = session.settings.repository().unlock(remove_all=remove_all)
    session.output.record("summary", {"removed": removed})
    session.output.show(f"removed {removed} lock{'' if removed == 1 else 's'}")
