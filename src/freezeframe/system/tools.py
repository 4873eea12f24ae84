"""The list of system packages the project uses (`tools.toml`), as values."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """One Debian package: what it is needed for, and the commands it brings."""

    name: str
    #: `run`, `build`, `test` or `bench`.
    needed_for: str
    tools: tuple[str, ...]
    purpose: str


@functools.cache
def packages() -> tuple[Package, ...]:
    """Return every package of the list, in its order."""
    text = importlib.resources.files("freezeframe.system").joinpath("tools.toml").read_text()
    return tuple(
        Package(row["name"], row["for"], tuple(row["tools"]), row["purpose"])
        for row in tomllib.loads(text)["package"]
    )


def package_of(tool: str) -> tuple[str, str]:
    """Return the (package, purpose) of a command; a guess, the command's own name, for others."""
    for package in packages():
        if tool in package.tools:
            return package.name, package.purpose
    return tool, "to go on"
