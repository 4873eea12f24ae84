"""The disk that is imaged: a GPT with one ext4 filesystem full of the machine's own files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.units import MIB, SECTOR
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.filling import copy_real_files
from freezeframe.testing.volumes import mounted_device

PART_START = MIB
#: How full the disk is: 5.25 GiB of 8.
_FULL = 0.656
#: Read only, in this order, until there is enough.
_SOURCES = ("/usr", "/opt")


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw image file. All in bytes."""

    path: Path
    size: int
    part_size: int
    #: In files; and blocks in use as the filesystem counts them, its own structures included.
    files: int
    used: int


def make_disk(path: Path, size: int) -> Disk:
    """Make the disk of `size` bytes, or take the one of that size that is there already.

    Always the same choice of files on the same machine. Needs root.
    """
    part_size = size - 2 * MIB
    note = path.with_suffix(".files")
    if not (note.exists() and path.exists() and path.stat().st_size == size):
        note.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.truncate(size)
        table = f"label: gpt\nstart={PART_START // SECTOR}, size={part_size // SECTOR}\n"
        run(["sfdisk", "--quiet", str(path)], stdin=table.encode())
        note.write_text(str(_fill(path, part_size, int(size * _FULL))))
    return Disk(path, size, part_size, int(note.read_text()), _used(path, part_size))


def _fill(path: Path, part_size: int, budget: int) -> int:
    with (
        attached(path, offset=PART_START, size=part_size) as device,
        tempfile.TemporaryDirectory() as folder,
    ):
        # What the kernel would initialise later, mkfs does now: a disk that has been in use.
        run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device])
        with mounted_device(device, "ext4", Path(folder), read_only=False):
            copied = copy_real_files(Path(folder), _SOURCES, budget)
        run(["e2fsck", "-fn", device])
    return copied


def _used(path: Path, part_size: int) -> int:
    """Return what the filesystem's own tool counts as used, in bytes."""
    with attached(path, offset=PART_START, size=part_size, read_only=True) as device:
        text = run(["dumpe2fs", "-h", device]).stdout.decode()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    blocks = int(fields["Block count"]) - int(fields["Free blocks"])
    return blocks * int(fields["Block size"])
