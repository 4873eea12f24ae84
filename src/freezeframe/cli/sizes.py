"""Sizes on the command line: `64G`, `512MiB`, `4096`."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_in_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """Return an option's value in bytes, 0 where it was not given (a callback for click)."""
    del context, parameter
    if value is None:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not 0 < size < 1 << 63:
        raise click.BadParameter(f"{value!r} is no size; write it as 64G or 512M")
    return size
