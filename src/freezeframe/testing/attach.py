"""Loop devices (until system.loop is there)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from freezeframe.system.run import run


@contextlib.contextmanager
def attached(
    path: Path | str,
    *,
    offset: int = 0,
    size: int = 0,
    sector: int = 512,
    read_only: bool = False,
) -> Iterator[str]:
    """Give a loop device over a stretch of a file."""
    command = ["losetup", "--show", "-f", "-o", str(offset), "-b", str(sector)]
    if size:
        command += ["--sizelimit", str(size)]
    if read_only:
        command.append("-r")
    device = run([*command, str(path)]).stdout.decode().strip()
    try:
        yield device
    finally:
        run(("losetup", "-d", device))
