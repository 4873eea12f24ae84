"""The program run in this process, and a small disk for it that needs no root."""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from freezeframe.cli.main import run

PASSWORD = "correct horse"
MIB = 1 << 20


@dataclass
class Result:
    """How a run of the program ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, object]]:
        """Everything it printed in JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    def record(self, message_type: str) -> dict[str, object]:
        """Return the first object of that type."""
        return next(r for r in self.records if r["message_type"] == message_type)


class Program:
    """Runs the command line in this process, on one repository."""

    def __init__(self, capfd: pytest.CaptureFixture[str], repo: Path) -> None:
        self._capfd = capfd
        self.repo = repo

    def __call__(self, *arguments: str | Path, code: int = 0) -> Result:
        """Run it; fail unless it ends with `code` and without a traceback."""
        self._capfd.readouterr()
        got = run([str(a) for a in arguments])
        out, err = self._capfd.readouterr()
        assert got == code, f"exit code {got}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err
        return Result(got, out, err)

    def restic(self, *arguments: str) -> str:
        """Run restic on the same repository; return what it printed."""
        env = dict(os.environ, RESTIC_PASSWORD=PASSWORD, RESTIC_REPOSITORY=str(self.repo))
        env["RESTIC_CACHE_DIR"] = str(self.repo.parent / "cache")
        done = subprocess.run(
            ["restic", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def make_disk(path: Path, files: Path, *, seed: int = 1) -> Path:
    """Make a 48 MiB GPT disk: ext4 with the files (32 MiB), swap (8 MiB)."""
    part = path.with_suffix(".part")
    part.touch()
    os.truncate(part, 32 * MIB)
    subprocess.run(
        [
            "mkfs.ext4",
            "-q",
            "-d",
            str(files),
            "-U",
            f"{seed:08d}-0000-4000-8000-000000000000",
            part,
        ],
        check=True,
    )
    path.touch()
    os.truncate(path, 48 * MIB)
    table = "label: gpt\nstart=2048, size=65536, name=root\nsize=16384, type=swap\n"
    subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True)
    with path.open("r+b") as disk:
        disk.seek(MIB)
        disk.write(part.read_bytes())
    part.write_bytes(b"")
    os.truncate(part, 8 * MIB)
    subprocess.run(["mkswap", "-q", part], check=True, capture_output=True)
    with path.open("r+b") as disk:
        disk.seek(33 * MIB)
        disk.write(part.read_bytes())
    part.unlink()
    return path


def make_files(folder: Path, *, seed: int = 1, count: int = 12) -> Path:
    """Fill a folder with files that compress and files that do not."""
    folder.mkdir()
    dice = random.Random(seed)
    for number in range(count):
        body = dice.randbytes(400_000) if number % 2 else b"line %d\n" % number * 40_000
        (folder / f"file{number}").write_bytes(body)
    return folder


def extract_ext4(disk: Path, into: Path) -> Path:
    """Check partition 1 of such a disk, and take its files out, with e2fsprogs alone."""
    part = into.with_suffix(".ext4")
    with disk.open("rb") as source:
        source.seek(MIB)
        part.write_bytes(source.read(32 * MIB))
    subprocess.run(["e2fsck", "-fn", part], check=True, capture_output=True)
    into.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {into}", part], check=True, capture_output=True)
    return into
