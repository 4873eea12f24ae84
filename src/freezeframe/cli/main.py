"""The program: its commands, and how errors end it.

Exit codes are restic's where restic has one: 0 done, 1 failed, 2 usage, 3 image made but
some of the source was unreadable, 10 no repository, 11 locked, 12 wrong password, 130
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

import freezeframe
from freezeframe.cli.commands import (
    backup,
    disks,
    doctor,
    images,
    keys,
    repository,
    restore,
    verify,
)
from freezeframe.cli.options import common_options
from freezeframe.core.errors import FreezeframeError
from freezeframe.system.interrupt import orderly_stop

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(freezeframe.__version__, prog_name="freezeframe")
def group() -> None:
    """Take a still of a machine: bare-metal images, and the way back."""


group.params += common_options()


for _command in (
    doctor.command,
    disks.command,
    repository.init,
    backup.command,
    images.images,
    images.show,
    restore.command,
    verify.command,
    repository.check,
    repository.unlock,
    keys.command,
):
    group.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


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
    except ExceptionGroup as errors:
        known, unknown = errors.split(FreezeframeError)
        if unknown is not None:
            raise
        return _report([e for e in _flat(known) if isinstance(e, FreezeframeError)], json=json)
    except click.ClickException as error:
        if json:
            _print_json(error.exit_code, error.format_message(), "")
        else:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(json=json)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say to anybody.
        sys.stderr.close()
        return 1
    # What a command gave to `Context.exit`; commands return nothing themselves.
    return ended if isinstance(ended, int) else 0


def _flat(errors: BaseExceptionGroup[FreezeframeError] | None) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions if errors is not None else ():
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _report(errors: Sequence[FreezeframeError], *, json: bool) -> int:
    """Print what went wrong and what to do next."""
    seen = list({error.message: error for error in errors}.values())
    for error in seen:
        if json:
            _print_json(error.exit_code, error.message, error.hint)
            continue
        click.echo(f"freezeframe: {error.message}", err=True)
        if error.hint:
            click.echo(f"  → {error.hint}", err=True)
    return seen[0].exit_code


def _interrupted(*, json: bool) -> int:
    text = "interrupted; nothing half-made is left to be seen"
    if json:
        _print_json(INTERRUPTED, text, "")
    else:
        click.echo(f"freezeframe: {text}", err=True)
    return INTERRUPTED


def _print_json(code: int, message: str, hint: str) -> None:
    record = {"message_type": "exit_error", "code": code, "message": message, "hint": hint}
    click.echo(msgspec.json.encode(record).decode())
