"""Options every command takes, before or after its name, and where passwords come from."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from freezeframe.cli.output import Output
from freezeframe.core.errors import UsageError
from freezeframe.system.run import run

if TYPE_CHECKING:
    from freezeframe.repo.repository import Repository

Parameters = ParamSpec("Parameters")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the common options said."""

    repo: str | None = None
    password_file: str | None = None
    password_command: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def location(self) -> str:
        """Return where the repository is. Raises `UsageError` where nobody said."""
        place = self.place()
        if not place:
            raise UsageError(
                "no repository was named",
                hint="say where with -r, or set FREEZEFRAME_REPOSITORY",
            )
        return place

    def place(self) -> str:
        """Return where the repository is, if anybody said."""
        return self.repo or _environment("REPOSITORY") or ""

    def password(self, *, confirm: bool = False) -> str:
        """Return the password, from the first place that has one; ask where a person can answer.

        Order: options, FREEZEFRAME_PASSWORD, …_FILE, …_COMMAND, then restic's names for them.
        """
        if self.password_file:
            return from_file(self.password_file)
        if self.password_command:
            return _from_command(self.password_command)
        for prefix in ("FREEZEFRAME_", "RESTIC_"):
            if (value := os.environ.get(f"{prefix}PASSWORD")) is not None:
                return _password(os.fsencode(value), f"{prefix}PASSWORD")
            if place := os.environ.get(f"{prefix}PASSWORD_FILE"):
                return from_file(place)
            if command := os.environ.get(f"{prefix}PASSWORD_COMMAND"):
                return _from_command(command)
        if not sys.stdin.isatty() or self.json:
            raise UsageError(
                "no password was given",
                hint="set FREEZEFRAME_PASSWORD or …_FILE or …_COMMAND, or use --password-file",
            )
        answer: str = click.prompt(
            "password of the repository", hide_input=True, err=True, confirmation_prompt=confirm
        )
        return answer

    def repository(self) -> Repository:
        """Open the repository."""
        return self.opening()()

    def opening(self) -> Callable[[], Repository]:
        """Begin to open the repository, in a thread; returns what waits for it and gives it.

        A password takes a tenth of a second to try, which another core may do while the rest
        of the program is loaded. It is asked for before this returns.
        """
        location, password = self.location(), self.password()
        # Here, not above: `--version` and `--help` need none of it. And not in the thread, which
        # would wait there for what else is loaded meanwhile.
        from freezeframe.repo.unlock import unlock
        from freezeframe.store.open import open_store

        store = open_store(location)
        pool = ThreadPoolExecutor(1, thread_name_prefix="open")
        unlocked = pool.submit(unlock, store, password)
        pool.shutdown(wait=False)

        def opened() -> Repository:
            from freezeframe.repo.repository import Repository

            return Repository(unlocked.result())

        return opened


def _environment(name: str) -> str | None:
    """Return a variable of ours, or restic's where ours is unset."""
    return os.environ.get(f"FREEZEFRAME_{name}") or os.environ.get(f"RESTIC_{name}")


def from_file(path: str) -> str:
    """Return the password a file holds, without the end of its line. Raises `UsageError`."""
    try:
        return _password(Path(path).read_bytes(), f"the password file {path}")
    except OSError as error:
        raise UsageError(f"the password file {path} cannot be read: {error.strerror}") from error


def _from_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the password command makes no sense: {error}") from error
    if not words:
        raise UsageError("the password command is empty")
    return _password(run(words, purpose="to get the password").stdout, "the password command")


def _password(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} gives no text in UTF-8") from error


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with: its settings and where it prints."""

    settings: Settings
    output: Output


def _remember(context: click.Context, parameter: click.Parameter, value: str | bool | None) -> None:
    """Keep a common option; what stands after the command's name wins."""
    settings = context.obj if isinstance(context.obj, Settings) else Settings()
    if value and parameter.name:
        changed: dict[str, str | bool] = {parameter.name: value}
        settings = Settings(**{**asdict(settings), **changed})
    context.obj = settings


class _Common(click.Option):
    """An option of every command: remembered, not handed to the command's function."""

    def __init__(self, names: Sequence[str], text: str, *, metavar: str | None = None) -> None:
        super().__init__(
            names,
            help=text,
            metavar=metavar,
            is_flag=metavar is None,
            expose_value=False,
            callback=_remember,
        )


def common_options() -> list[click.Parameter]:
    """Return the options that all commands take, and the program itself."""
    return [
        _Common(("-r", "--repo"), "The repository (FREEZEFRAME_REPOSITORY).", metavar="PLACE"),
        _Common(("--password-file",), "Read the password from a file.", metavar="FILE"),
        _Common(("--password-command",), "Take what a command prints.", metavar="COMMAND"),
        _Common(("--json",), "Print one JSON object a line."),
        _Common(("-q", "--quiet"), "Print results and errors only."),
        _Common(("-v", "--verbose"), "Say which programs are run."),
    ]


def common(
    command: Callable[Concatenate[Session, Parameters], None],
) -> Callable[Parameters, None]:
    """Give a command a `Session` as its first parameter, and the common options."""

    @functools.wraps(command)
    def inner(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        context = click.get_current_context()
        settings = context.obj if isinstance(context.obj, Settings) else Settings()
        with Output(json=settings.json, quiet=settings.quiet, verbose=settings.verbose) as output:
            command(Session(settings, output), *args, **kwargs)

    # As click's own decorators leave their options: last first.
    inner.__dict__["__click_params__"] = common_options()[::-1]
    return inner
