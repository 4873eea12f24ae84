"""Options about writers and providers, of every command that makes a point in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec

import click

from freezeframe.cli.kept import keep, keep_size, kept, number
from freezeframe.core.errors import UsageError

if TYPE_CHECKING:
    from freezeframe.app.company import ShadowSettings

Parameters = ParamSpec("Parameters")


def shadow_options(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Give a command these options; `shadow_settings` returns what they said."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--writers",
        multiple=True,
        metavar="auto|none|NAME",
        callback=keep,
        expose_value=False,
        help="Applications to make consistent: all whose data lie in the image (auto), or these.",
    ),
    click.option(
        "--provider",
        "providers",
        multiple=True,
        metavar="VOLUME=KIND",
        callback=keep,
        expose_value=False,
        help="Which provider takes a volume (the best that suits; `freezeframe disks` tells).",
    ),
    click.option(
        "--writer-limit",
        type=click.FloatRange(0.1, 3600),
        default=60,
        show_default=True,
        metavar="SECONDS",
        callback=keep,
        expose_value=False,
        help="How long applications may be held still, at most.",
    ),
    click.option(
        "--commit-limit",
        type=click.FloatRange(0.1, 600),
        default=10,
        show_default=True,
        metavar="SECONDS",
        callback=keep,
        expose_value=False,
        help="How long volumes and filesystems may be held still, at most.",
    ),
    click.option(
        "--store-size",
        metavar="SIZE",
        callback=keep_size,
        expose_value=False,
        help="Copy-on-write providers: room for what is overwritten meanwhile, each volume.",
    ),
    click.option(
        "--store",
        default="",
        metavar="PLACE",
        callback=keep,
        expose_value=False,
        help="Copy-on-write providers: where that goes; a device, a folder, or `memory`.",
    ),
)


def shadow_settings() -> ShadowSettings:
    """Return what the options of the running command said. Raises `UsageError`."""
    # Here, not above: `--help` needs none of it.
    from freezeframe.app.company import ShadowSettings
    from freezeframe.shadow.discover import WriterChoice
    from freezeframe.shadow.providers.base import Wishes
    from freezeframe.shadow.timeline import Limits

    return ShadowSettings(
        writers=WriterChoice.of(_words("writers")),
        providers=dict(map(_pair, _words("providers"))),
        limits=Limits(
            writers=number("writer_limit", 60),
            commit=number("commit_limit", 10),
        ),
        wishes=Wishes(
            store_size=int(number("store_size", 0)), store=str(kept().get("store") or "")
        ),
    )


def refuse_offline() -> None:
    """Raise `UsageError` where they ask for what an image of disks nobody uses cannot have."""
    for name, option in (("writers", "--writers"), ("providers", "--provider")):
        if any(word not in ("auto", "none") for word in _words(name)):
            raise UsageError(
                f"{option} is for images of disks in use, and this one is made offline",
                hint="leave it out; or make the image online, of devices",
            )


def _words(name: str) -> Sequence[str]:
    """Return an option that may be repeated; commas divide as well."""
    value = kept().get(name)
    words = value if isinstance(value, tuple) else ()
    return [part for word in words for part in str(word).split(",") if part]


def _pair(word: str) -> tuple[str, str]:
    volume, equals, kind = word.rpartition("=")
    if not equals or not volume or not kind:
        raise UsageError(f"--provider {word} names no volume and kind", hint="VOLUME=KIND")
    return volume, kind
