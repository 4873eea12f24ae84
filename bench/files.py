"""Measure reading one file out of an image, in a repository with an index of a TiB.

Usage: python bench/files.py FOLDER [--chunks 1000000] [--rounds 5]

Makes a disk with an ext4 of real files, an image of it, and an index of so many chunks beside
it. Then the whole program is timed, from its start to its end: one small file to standard
output, a folder listed, a large file copied out. Prints a table; nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import index
from freezeframe.core.units import GIB, MIB
from measure import Usage, measure

_PASSWORD = "bench"
_PROGRAM = [sys.executable, "-c", "from freezeframe.cli.main import main; main()"]
_LARGE = 256 * MIB


def main() -> None:
    """Read the arguments, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True)
    env = {"FREEZEFRAME_REPOSITORY": str(folder / "repo"), "FREEZEFRAME_PASSWORD": _PASSWORD}
    disk = make_disk(folder)
    for command in (("init",), ("backup", "--offline", str(disk))):
        subprocess.run([*_PROGRAM, *command], env={**os.environ, **env}, check=True)
    index.add_index(folder / "repo", options.chunks, _PASSWORD)
    steps = {
        "one small file": ("cat", "latest:/etc/small"),
        "a folder listed": ("ls", "latest:/etc"),
        f"a file of {_LARGE // MIB} MiB": ("get", "latest:/large", "-o", str(folder / "copy")),
    }
    print(f"index of {options.chunks:,} chunks, {options.rounds} rounds, median (least-most)")
    for name, command in steps.items():
        found = []
        for _ in range(options.rounds):
            (folder / "copy").unlink(missing_ok=True)
            found.append(measure([*_PROGRAM, "files", *command], env=env, cwd=folder))
        print(line(name, found))


def line(name: str, found: list[Usage]) -> str:
    """Return one step's figures."""
    walls = [usage.wall for usage in found]
    return (
        f"{name:20} {statistics.median(walls):6.2f} s ({min(walls):.2f}-{max(walls):.2f})"
        f"  cpu {statistics.median(usage.cpu for usage in found):5.2f} s"
        f"  peak {max(usage.peak for usage in found) // MIB:4} MiB"
    )


def make_disk(folder: Path) -> Path:
    """Make an ext4 filled by its own mkfs."""
    files = folder / "files"
    (files / "etc").mkdir(parents=True)
    (files / "etc/fstab").write_text("/dev/sda1 / ext4 defaults 0 1\n")
    (files / "etc/small").write_text("hello\n")
    some = random.Random(1)
    for number in range(300):
        (files / "etc" / f"file{number}").write_bytes(some.randbytes(some.randrange(50_000)))
    with (files / "large").open("wb") as file:
        for _ in range(_LARGE // MIB):
            # Half of it can be compressed.
            file.write(some.randbytes(MIB // 2) + bytes([some.randrange(256)]) * (MIB // 2))
    disk = folder / "disk.raw"
    disk.touch()
    os.truncate(disk, GIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", files, disk], check=True)
    return disk


if __name__ == "__main__":
    main()
