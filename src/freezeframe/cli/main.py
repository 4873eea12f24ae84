"""The program: its commands, and how errors end it.

Exit codes are restic's where restic has one: 0 done, 1 failed, 2 usage, 3 image made but
some of the source was unreadable, 10 no repository, 11 locked, 12 wrong password, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Sequence

import click

import freezeframe
from freezeframe.cli.options import common_options
from freezeframe.cli.output import json_line, printable
from freezeframe.core.errors import FreezeframeError
from freezeframe.system.interrupt import orderly_stop

INTERRUPTED = 130


class _Group(click.Group):
    """Commands whose modules are loaded when they are wanted.

    All of them together take longer to load than a small image takes to make.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's form
        """Return their names as help shows them."""
        return sorted(_COMMANDS)

    def get_command(  # click's form
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Load one command; None where there is none of that name."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found: object = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
        if not isinstance(found, click.Command):
            raise TypeError(f"{place} is no command")
        return found


_PACKAGE = "freezeframe.cli.commands"
#: Where each command is defined.
_COMMANDS = {
    "attach": "attach:attach",
    "backup": "backup:command",
    "boot": "boot:command",
    "check": "repository:check",
    "detach": "attach:detach_command",
    "diff": "diff:command",
    "disks": "disks:command",
    "doctor": "doctor:command",
    "export": "exchange:export",
    "files": "files:command",
    "images": "images:images",
    "import": "exchange:import_command",
    "init": "repository:init",
    "key": "keys:command",
    "mount": "mount:command",
    "restore": "restore:command",
    "serve-nbd": "nbd:command",
    "shadow": "shadow:command",
    "show": "images:show",
    "track": "track:command",
    "unlock": "repository:unlock",
    "verify": "verify:command",
    "writers": "writers:command",
}


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(freezeframe.__version__, prog_name="freezeframe")
def group() -> None:
    """Take a still of a machine: bare-metal images, and the way back."""


group.params += common_options()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    _start_quickly()
    _open_streams()
    code = run(sys.argv[1:] if arguments is None else list(arguments))
    # Python looks for garbage once more before it ends, though all memory goes then.
    gc.freeze()
    sys.exit(code)


def _start_quickly() -> None:
    """Do without what a short run pays for and never needs."""
    # numpy's library for linear algebra, of which nothing is used, starts a thread a core, and
    # each is busy for a while before it sleeps.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Loading the program makes a hundred thousand objects, none of them garbage; looked for
    # each 700, they are gone through again and again.
    gc.set_threshold(100_000, 20, 50)


def _open_streams() -> None:
    """Give the program somewhere to print to where its caller closed that: `>&-`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # For as long as the program runs.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def run(arguments: list[str]) -> int:
    """Run the program; return its exit code, having printed any error."""
    json = "--json" in arguments
    try:
        with orderly_stop():
            ended: object = group.main(
                args=arguments, prog_name="freezeframe", standalone_mode=False
            )
    except FreezeframeError as error:
        return _report([error], json=json)
    except click.ClickException as error:
        if json:
            _print_json(error.exit_code, error.format_message(), "")
        else:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click raises its own in the place of a KeyboardInterrupt.
        return _interrupted(error.__cause__ or error, json=json)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        return _report([_of_system(error)], json=json)
    except ExceptionGroup as errors:
        return _several(errors, json=json)
    # What a command gave to `Context.exit`; commands return nothing themselves.
    return ended if isinstance(ended, int) else 0


def _several(errors: ExceptionGroup[Exception], *, json: bool) -> int:
    """Report what several threads failed of. Raises what nobody foresaw."""
    flat = _flat(errors)
    known = [error for error in flat if isinstance(error, FreezeframeError)]
    known += [_of_system(error) for error in flat if isinstance(error, OSError)]
    if len(known) < len(flat):
        raise errors
    if any(isinstance(error, BrokenPipeError) for error in flat):
        return _nobody_reads()
    for note in getattr(errors, "__notes__", ()):
        known[0].add_note(note)
    return _report(known, json=json)


def _of_system(error: OSError) -> FreezeframeError:
    """Turn an error of the system that nobody explained into one that is printed."""
    place = f"{error.filename}: " if error.filename else ""
    told = FreezeframeError(f"{place}{error.strerror or error}")
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


def _nobody_reads() -> int:
    """End silently: whoever read our output has gone."""
    # What is still in its buffer would fail again when Python ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return 1


def _flat(errors: ExceptionGroup[Exception]) -> list[Exception]:
    found: list[Exception] = []
    for error in errors.exceptions:
        found += _flat(error) if isinstance(error, ExceptionGroup) else [error]
    return found


def _report(errors: Sequence[FreezeframeError], *, json: bool) -> int:
    """Print what went wrong and what to do next."""
    # The first of each, which has the notes.
    seen = list({error.message: error for error in reversed(errors)}.values())[::-1]
    for error in seen:
        notes: Sequence[str] = getattr(error, "__notes__", ())
        if json:
            _print_json(error.exit_code, error.message, error.hint, notes)
            continue
        for line in (f"freezeframe: {error.message}", *notes):
            click.echo(printable(line), err=True)
        if error.hint:
            click.echo(printable(f"  → {error.hint}"), err=True)
    return seen[0].exit_code


def _interrupted(error: BaseException, *, json: bool) -> int:
    notes: Sequence[str] = getattr(error, "__notes__", ())
    if json:
        _print_json(INTERRUPTED, "interrupted", "", notes)
    else:
        for line in ("freezeframe: interrupted", *notes):
            click.echo(printable(line), err=True)
    return INTERRUPTED


def _print_json(code: int, message: str, hint: str, notes: Sequence[str] = ()) -> None:
    """Print the last object of a stream. Nobody may be left to read it, or no room."""
    fields = {"code": code, "message": message, "hint": hint, "notes": list(notes)}
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(json_line("exit_error", fields))
        sys.stdout.buffer.flush()
