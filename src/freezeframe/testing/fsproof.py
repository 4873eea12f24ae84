"""Proof that a used map leaves nothing out: keep what it names, spoil the rest, and look.

The checkers and drivers that look are the filesystems' own; nothing here asks our parsers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from freezeframe.block.base import verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB, SECTOR
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.volumes import unmount

_USED, _FREE = "+", "?"
#: FUSE drivers write their last blocks after the unmount has returned.
_RELEASE_TRIES = 600
_RELEASE_PAUSE = 0.05


class PlainFile(Closing):
    """The plainest reader there is over a raw file: `pread`, nothing else."""

    sector = SECTOR

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self._file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`; `SourceError` past the end."""
        verify_inside(self.name, self.size, offset, length)
        data = os.pread(self._file, length, offset)
        if len(data) != length:
            raise SourceError(f"{self.name}: shrank")
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self.read_at(offset, len(buffer))

    def data_extents(self) -> Extents:
        """Return everything: holes are not looked for."""
        return Extents.single(0, self.size)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def scatter_used(source: Path, used: Extents, target: Path, *, filler: int = 0xA5) -> None:
    """Write a file of the same size whose bytes outside `used` are `filler`.

    `used` is in bytes from the file's start; what lies past the file's end is left out.
    With `filler=0` the target is sparse.
    """
    size = source.stat().st_size
    with source.open("rb") as read, target.open("wb") as write:
        write.truncate(size)
        if filler:
            for start, stop in used.complement(size):
                _fill(write.fileno(), start, stop, bytes([filler]) * min(MIB, stop - start))
        for start, stop in used.clip(0, size):
            for offset in range(start, stop, MIB):
                data = os.pread(read.fileno(), min(MIB, stop - offset), offset)
                os.pwrite(write.fileno(), data, offset)


def _fill(file: int, start: int, stop: int, pattern: bytes) -> None:
    for offset in range(start, stop, len(pattern)):
        os.pwrite(file, pattern[: stop - offset], offset)


# -- trees of files -----------------------------------------------------------------


def make_tree(
    root: Path,
    *,
    seed: int = 1,
    budget: int = 4 * MIB,
    links: bool = True,
    sparse: bool = True,
    names: bool = True,
) -> None:
    """Fill `root` with files of `budget` bytes or a little less, the same for the same seed.

    Nested folders, small and large files, fragments; a third is deleted again. Options for
    what the filesystem cannot hold: `links` (hard and symbolic), `sparse`, `names` (long
    ones and beyond ASCII). All is on disk before some of it is deleted.
    """
    rng = random.Random(seed)
    sizes = [0, 1, 100, 700, 5 * KIB, 40 * KIB, 130 * KIB + 7, 600 * KIB]
    gone: list[Path] = []
    written = 0
    number = 0
    while written < budget:
        folder = root / f"folder {number % 5}" / f"nested {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = min(sizes[number % len(sizes)], budget // 6)
        path = folder / f"file {number:04d}"
        path.write_bytes(rng.randbytes(size))
        if number % 3 == 1:
            gone.append(path)
        written += size
        number += 1
    if links:
        kept = root / "folder 0" / "nested 0" / "file 0000"
        (root / "hard link").hardlink_to(kept)
        (root / "symbolic link").symlink_to("folder 0/nested 0/file 0000")
    if sparse:
        with (root / "sparse").open("wb") as file:
            for offset in (0, 300 * KIB + 1, 900 * KIB):
                file.seek(offset)
                file.write(rng.randbytes(3000))
    if names:
        (root / ("long " * 40)).with_suffix(".txt").write_bytes(rng.randbytes(1234))
        (root / "größe-日本語-🧊").write_bytes(rng.randbytes(4321))
    # Or a filesystem that allocates late would never have had the deleted ones.
    run(("sync", "-f", str(root)))
    for path in gone:
        path.unlink()
    # Into the holes the deleted ones left, and beyond: fragmented.
    (root / "late").write_bytes(rng.randbytes(budget // 8))


def tree_checksums(root: Path) -> dict[str, str]:
    """Return what each path below `root` holds: a SHA-256, a link's target, or `folder`.

    `lost+found` and what NTFS calls `System Volume Information` are left out.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in ("lost+found", "System Volume Information"):
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"link to {path.readlink()}"
        elif stat.S_ISDIR(mode):
            found[name] = "folder"
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found[name] = f"node {mode:o}"
    return found


# -- mounting -----------------------------------------------------------------------


@contextlib.contextmanager
def loop_mounted(
    image: Path, folder: Path, *, kind: str = "", options: str = "", read_only: bool = False
) -> Iterator[Path]:
    """Mount an image by the kernel; unmount and detach in the end, whatever happens.

    `folder` is made where it is missing. Read-only goes through a read-only loop device.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount"]
    command += ["-t", kind] if kind else []
    flags = [*(("ro",) if read_only else ()), *((options,) if options else ())]
    command += ["-o", ",".join(flags)] if flags else []
    with attached(image, read_only=read_only) as device:
        try:
            run((*command, device, str(folder)))
            yield folder
        finally:
            if folder.is_mount():
                unmount(folder)


@contextlib.contextmanager
def fuse_mounted(command: Sequence[str], image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image by a FUSE program (`command image folder`); unmount it in the end.

    Returns only after the program has let go of the image: it writes until then.
    """
    folder.mkdir(exist_ok=True)
    try:
        run((*command, str(image), str(folder)))
        yield folder
    finally:
        if folder.is_mount():
            unmount(folder)
        _wait_released(image)


def _wait_released(image: Path) -> None:
    ours = os.getpid()
    for _ in range(_RELEASE_TRIES):
        if not any(process != ours for process in _holders(image)):
            return
        time.sleep(_RELEASE_PAUSE)
    raise SourceError(f"{image} is still open")


def _holders(image: Path) -> Iterator[int]:
    wanted = image.stat()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found = link.stat()
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        yield int(process.name)


# -- an independent opinion ---------------------------------------------------------


def partclone_used(kind: str, image: Path) -> Extents:
    """Return what `partclone.<kind>` (`extfs`, `xfs`, `ntfs`, …) counts as used, in bytes.

    Read from its map in the format of GNU ddrescue; blocks are not copied.
    """
    folder = image.parent
    map_file, log = folder / f"{image.name}.map", folder / f"{image.name}.log"
    map_file.unlink(missing_ok=True)
    run(
        (f"partclone.{kind}", "-D", "-F", "-s", str(image), "-o", str(map_file), "-L", str(log)),
        purpose="to compare used maps",
    )
    rows = [line.split() for line in map_file.read_text().splitlines() if line[:1] != "#"]
    used = [(int(row[0], 16), int(row[1], 16)) for row in rows if row[2:] == [_USED]]
    if not any(row[2:] in ([_USED], [_FREE]) for row in rows):
        raise SourceError(f"{map_file}: no map")
    return Extents.of((start, start + length) for start, length in used)
