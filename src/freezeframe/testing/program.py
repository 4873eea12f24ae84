"""The installed program and a repository for it, as a user has them, for tests and the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system.run import search_path

#: The program as it is installed beside this interpreter.
PROGRAM = Path(sys.executable).with_name("freezeframe")
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All it printed."""
        return self.stdout + self.stderr


@dataclass(frozen=True, slots=True)
class Client:
    """Runs freezeframe, and restic, on one repository."""

    repository: Path

    def environment(self) -> dict[str, str]:
        """Return the environment both programs find the repository in."""
        ours = {
            f"{prefix}_{name}": value
            for prefix in ("FREEZEFRAME", "RESTIC")
            for name, value in (("REPOSITORY", str(self.repository)), ("PASSWORD", PASSWORD))
        }
        return dict(os.environ, **ours, PATH=search_path(), LC_ALL="C.UTF-8")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start freezeframe and return it running."""
        return subprocess.Popen(
            [str(PROGRAM), *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0) -> Ended:
        """Run freezeframe to its end; `AssertionError` with all it said for another exit code."""
        return self._end(self.start(*arguments), arguments, code)

    def restic(self, *arguments: str, code: int = 0) -> Ended:
        """Run restic on the same repository."""
        command = ["restic", "--no-cache", *arguments]
        process = subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return self._end(process, command, code)

    def _end(self, process: subprocess.Popen[bytes], line: Sequence[str], code: int) -> Ended:
        ended = finish(process)
        if ended.code != code:
            raise AssertionError(f"{' '.join(line)} ended with {ended.code}:\n{ended.output}")
        return ended

    def images(self) -> list[str]:
        """Return the ids of all images, oldest first."""
        lines = self.run("images", "--json").stdout.splitlines()
        return [record["id"] for record in map(json.loads, lines) if "id" in record]

    def manifest(self, image: str) -> dict[str, object]:
        """Return the manifest of an image."""
        lines = self.run("show", image, "--json").stdout.splitlines()
        found: dict[str, object] = json.loads(lines[0])["manifest"]
        return found


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a program and return what it printed."""
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
