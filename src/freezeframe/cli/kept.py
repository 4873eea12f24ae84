"""Options kept aside, for groups of them that a command's function need not name one by one."""

from __future__ import annotations

from collections.abc import Mapping

import click

from freezeframe.cli.sizes import size_in_bytes

_KEY = "freezeframe.kept"


def keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Keep an option's value (a callback for click; with `expose_value=False`)."""
    if parameter.name:
        context.meta.setdefault(_KEY, {})[parameter.name] = value


def keep_size(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Keep a size in bytes; 0 where it was not given."""
    keep(context, parameter, size_in_bytes(context, parameter, value))


def kept() -> Mapping[str, object]:
    """Return what the kept options of the running command said, by name."""
    found: dict[str, object] = click.get_current_context().meta.get(_KEY, {})
    return found


def number(name: str, otherwise: float) -> float:
    """Return a kept option that is a number."""
    value = kept().get(name)
    return float(value) if isinstance(value, int | float) else otherwise
