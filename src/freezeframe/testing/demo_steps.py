"""What each part of the demo uses: steps that are said, timed and written down."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import human_time
from freezeframe.system.run import run
from freezeframe.testing import disks, proof
from freezeframe.testing.program import PROGRAM


class Different(FreezeframeError):
    """What came back is not what went in."""


@dataclass
class Row:
    """One line of the closing table."""

    step: str
    seconds: float = 0.0
    size: str = ""
    result: str = ""


@dataclass
class Demo:
    """One run: where it happens, what was done so far."""

    folder: Path
    recipe: disks.Recipe
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    rows: list[Row] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line in plain words."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def step(self, words: str, name: str) -> Iterator[Row]:
        """Say what comes, time it, and write it down."""
        self.say(f"\n── {words}")
        row = Row(name)
        begun = time.monotonic()
        try:
            yield row
        except BaseException:
            row.result = "FAILED"
            raise
        finally:
            row.seconds = time.monotonic() - begun
            self.rows.append(row)

    def program(self, *arguments: str) -> None:
        """Run freezeframe as a user would, its output to be seen as it comes."""
        self.say("$ " + shlex.join(("freezeframe", *arguments)))
        # Not through system.run: that keeps the output for itself.
        code = subprocess.run([str(PROGRAM), *arguments], check=False).returncode
        if code:
            raise Different(f"freezeframe {arguments[0]} ended with exit code {code}")

    def table(self) -> Table:
        """Draw what was done."""
        table = Table(title="What the demo did")
        table.add_column("step")
        table.add_column("time", justify="right")
        table.add_column("bytes", justify="right")
        table.add_column("result")
        for row in self.rows:
            table.add_row(row.step, human_time(row.seconds), row.size, row.result)
        return table


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(demo: Demo, path: Path) -> int:
    """Run every checker over a disk; return how many. Raises `Different` where one complains."""
    found = proof.check_filesystems(path)
    for each in found:
        demo.say(f"  {each.name:16} {each.checker:24} {each.result}")
    dirty = [each for each in found if not each.clean]
    if dirty:
        raise Different(f"{dirty[0].checker} is not content with {dirty[0].name} of {path}")
    return len(found)


def image_ids() -> list[str]:
    """Return the ids of all images, oldest first, as `images --json` tells them."""
    lines = run((str(PROGRAM), "images", "--json")).stdout.decode().splitlines()
    return [record["id"] for record in map(json.loads, lines) if "id" in record]
