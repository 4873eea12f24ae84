"""Options about imaging disks in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

import click

from freezeframe.backup.hot.settings import HotSettings, IfBusy, memory_to_spare
from freezeframe.cli.kept import keep, keep_size, kept, number

Parameters = ParamSpec("Parameters")


def hot_options(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Give a command these options; `hot_settings` returns what they said."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--max-pause",
        type=click.FloatRange(5, 5000),
        default=100,
        show_default=True,
        metavar="MS",
        callback=keep,
        expose_value=False,
        help="Online: how long writers may have to wait, in milliseconds.",
    ),
    click.option(
        "--if-busy",
        type=click.Choice([each.value for each in IfBusy]),
        default=IfBusy.SLOW_WRITERS.value,
        show_default=True,
        callback=keep,
        expose_value=False,
        help="Online: what to do where disks are written to faster than they can be copied.",
    ),
    click.option(
        "--residual-memory",
        callback=keep_size,
        expose_value=False,
        metavar="SIZE",
        help="Online: memory for what is read around the freeze (an eighth of what is free).",
    ),
    click.option(
        "--limit-read",
        callback=keep_size,
        expose_value=False,
        metavar="SIZE",
        help="Online: bytes a second, at most.",
    ),
    click.option(
        "--no-back-off",
        is_flag=True,
        callback=keep,
        expose_value=False,
        help="Online: copy on, however slow the disk gets.",
    ),
)


def hot_settings(freeze_limit: float, threads: int | None) -> HotSettings:
    """Return what the options of the running command said; `freeze_limit` in seconds."""
    return HotSettings(
        max_pause=number("max_pause", 100) / 1000,
        residual_memory=int(number("residual_memory", 0)) or memory_to_spare(),
        if_busy=IfBusy(str(kept().get("if_busy"))),
        limit_read=int(number("limit_read", 0)) or None,
        back_off=not kept().get("no_back_off"),
        freeze_limit=freeze_limit,
        threads=threads,
    )
