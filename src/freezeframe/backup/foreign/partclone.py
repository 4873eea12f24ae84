"""Images of partclone and folders of Clonezilla, restored into a sparse raw file.

A folder of Clonezilla holds, of each disk `sda`: its table as sfdisk dumps it (`sda-pt.sf`),
its size as parted prints it (`sda-pt.parted`), the first sector (`sda-mbr`), what lies behind
it (`sda-hidden-data-after-mbr`), and of each partition `sda1` a stream of partclone
(`sda1.ext4-ptcl-img.gz.aa`, …), of dd (`sda3.dd-img.zst.aa`), or for swap just its ids
(`swappt-sda2.info`). `disk` and `parts` name them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard

from freezeframe.core.errors import FreezeframeError, NotUnderstood, ToolFailed, ToolMissing
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB, SECTOR, align_up
from freezeframe.system.run import run, search_path, which

MAGIC = b"partclone-image"
_STEP = 4 * MIB
#: Behind the last partition of a GPT: its second copy, in sectors.
_BACKUP_GPT = 33
_START = re.compile(r"^\S*?(\d+)\s*:.*?start=\s*(\d+),\s*size=\s*(\d+)", re.MULTILINE)
_SIZE = re.compile(r"^Disk /dev/\S+: (\d+)s", re.MULTILINE)
_SECTOR_SIZE = re.compile(
    r"^(?:sector-size: |Sector size \(logical/physical\): )(\d+)", re.MULTILINE
)
_LAST_LBA = re.compile(r"^last-lba: (\d+)", re.MULTILINE)
#: Boot code in the first sector ends where the table begins.
_BOOT_CODE = 440


@dataclass(frozen=True, slots=True)
class Stream:
    """The content of one partition: a compressed stream in one file or several."""

    name: str
    #: `partclone` or `dd`.
    kind: str
    #: Bytes of the disk.
    start: int
    length: int
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ClonezillaDisk:
    """One disk of a folder."""

    name: str
    size: int
    table: bytes
    #: What lies in front of the first partition: (offset, bytes).
    boot: tuple[tuple[int, bytes], ...]
    streams: tuple[Stream, ...]
    #: Swap partitions: start, length, uuid, label.
    swaps: tuple[tuple[int, int, str, str], ...]


def is_clonezilla(path: Path) -> bool:
    """Whether a folder is an image of Clonezilla."""
    return path.is_dir() and (path / "parts").is_file()


def is_partclone(path: Path) -> bool:
    """Whether a file is an image of partclone, compressed or not."""
    try:
        with _opened([path]) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, EOFError, FreezeframeError, lzma.LZMAError, zstandard.ZstdError):
        return False


# -- reading a folder -------------------------------------------------------------------


def disks_of(folder: Path) -> list[ClonezillaDisk]:
    """Read what a folder says of its disks. Raises `NotUnderstood` for what is not supported."""
    if any(folder.glob("lvm_*")):
        raise NotUnderstood(
            f"{folder} holds LVM volumes, which cannot be imported yet",
            hint="restore it with Clonezilla to a disk, and image that",
        )
    partitions = (folder / "parts").read_text(encoding="utf-8").split()
    names = sorted({re.sub(r"p?\d+$", "", name) for name in partitions})
    return [_disk(folder, name, partitions) for name in names]


def _disk(folder: Path, name: str, partitions: Sequence[str]) -> ClonezillaDisk:
    try:
        table = (folder / f"{name}-pt.sf").read_bytes()
    except OSError as error:
        raise NotUnderstood(f"{folder} has no table of its disk {name}") from error
    text = table.decode("utf-8", "replace")
    parted = _text(folder / f"{name}-pt.parted")
    found = _SECTOR_SIZE.search(text) or _SECTOR_SIZE.search(parted)
    sector = int(found[1]) if found else SECTOR
    if sector != SECTOR:
        raise NotUnderstood(f"disk {name} has sectors of {sector} bytes: not supported yet")
    places = {
        int(n): (int(start) * sector, int(size) * sector) for n, start, size in _START.findall(text)
    }
    mine = [part for part in partitions if re.fullmatch(rf"{re.escape(name)}p?\d+", part)]
    streams, swaps = [], []
    for part in mine:
        number = int(re.search(r"\d+$", part)[0])  # type: ignore[index]
        if number not in places:
            raise NotUnderstood(f"{part} is not in the table of {name}")
        start, length = places[number]
        swap = _text(folder / f"swappt-{part}.info")
        if swap:
            facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', swap, re.MULTILINE))
            swaps.append((start, length, facts.get("UUID", ""), facts.get("LABEL", "")))
            continue
        streams.append(_stream(folder, part, start, length))
    return ClonezillaDisk(
        name,
        _disk_size(text, parted, sector, places),
        table,
        _boot(folder, name, min((start for start, _ in places.values()), default=MIB)),
        tuple(streams),
        tuple(swaps),
    )


def _disk_size(table: str, parted: str, sector: int, places: Mapping[int, tuple[int, int]]) -> int:
    """Return a disk's size: as parted says, else what its table needs."""
    if found := _SIZE.search(parted):
        return int(found[1]) * sector
    if found := _LAST_LBA.search(table):
        return (int(found[1]) + 1 + _BACKUP_GPT) * sector
    return align_up(max((start + length for start, length in places.values()), default=0), MIB)


def _boot(folder: Path, name: str, first: int) -> tuple[tuple[int, bytes], ...]:
    found = []
    record = folder / f"{name}-mbr"
    if record.is_file():
        found.append((0, record.read_bytes()[:_BOOT_CODE]))
    hidden = folder / f"{name}-hidden-data-after-mbr"
    if hidden.is_file():
        found.append((SECTOR, hidden.read_bytes()[: max(first - SECTOR, 0)]))
    return tuple(found)


def _stream(folder: Path, part: str, start: int, length: int) -> Stream:
    for kind, word in (("partclone", "*-ptcl-img*"), ("dd", "dd-img*")):
        files = sorted(folder.glob(f"{part}.{word}"))
        if files:
            return Stream(part, kind, start, length, tuple(files))
    raise NotUnderstood(
        f"{folder} holds no image of partition {part} that can be read",
        hint="images of partclone and dd can be; those of ntfsclone and partimage cannot",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# -- restoring --------------------------------------------------------------------------


def rebuild_disk(disk: ClonezillaDisk, target: Path, progress: Progress) -> None:
    """Make a sparse raw file of a disk. Raises `ToolMissing`, `ToolFailed`, `NotUnderstood`."""
    with target.open("xb") as file:
        file.truncate(disk.size)
        for offset, data in disk.boot:
            file.seek(offset)
            file.write(data)
    run(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", os.fspath(target)],
        stdin=disk.table,
        purpose="to make the partition table",
    )
    for start, length, uuid, label in disk.swaps:
        _make_swap(target, start, length, uuid, label)
    for stream in disk.streams:
        progress.start(f"unpack {stream.name}", 0)
        if stream.kind == "partclone":
            restore_stream(stream.files, target, stream.start)
        else:
            _copy_raw(stream, target)


def restore_stream(files: Sequence[Path], target: Path, offset: int) -> None:
    """Restore a stream of partclone into a raw file that exists, from `offset` on.

    What partclone does not write stays a hole.
    """
    tool = which("partclone.restore")
    if tool is None:
        raise ToolMissing("partclone.restore", "partclone", "to read images of partclone")
    with tempfile.TemporaryDirectory(prefix="freezeframe-partclone-") as folder:
        command = [tool, "-s", "-", "-O", os.fspath(target), "-E", str(offset), "-C", "-q"]
        command += ["-L", f"{folder}/log"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C", TERM="dumb", PATH=search_path()),
        )
        try:
            with _opened(files) as source:
                _feed(source, process)
        finally:
            _, said = process.communicate()
        if process.returncode:
            raise ToolFailed(" ".join(command), process.returncode, said.decode(errors="replace"))


def partclone_size(path: Path) -> int:
    """Return the bytes of the filesystem an image of partclone holds, by its header.

    Source: IMAGE_FORMATS.md of partclone, formats 0001 and 0002.
    """
    with _opened([path]) as file:
        head = file.read(64)
    if head[30:34] == b"0002":
        return int.from_bytes(head[52:60], "little")
    if head[30:34] == b"0001":
        return int.from_bytes(head[40:48], "little")
    raise NotUnderstood(f"{path} is an image of partclone of an unknown version")


def _feed(source: IO[bytes], process: subprocess.Popen[bytes]) -> None:
    pipe = process.stdin
    if pipe is None:
        raise AssertionError("unreachable")
    try:
        while data := source.read(_STEP):
            pipe.write(data)
        pipe.flush()
    except BrokenPipeError:
        return  # its exit code and its words tell why


def _copy_raw(stream: Stream, target: Path) -> None:
    """Copy a plain stream to its place; zeros stay holes."""
    with _opened(stream.files) as source, target.open("r+b") as file:
        at, stop = stream.start, stream.start + stream.length
        while at < stop and (data := source.read(min(_STEP, stop - at))):
            if data.strip(b"\0"):
                file.seek(at)
                file.write(data)
            at += len(data)


def _make_swap(target: Path, start: int, length: int, uuid: str, label: str) -> None:
    with tempfile.TemporaryDirectory(prefix="freezeframe-swap-") as name:
        swap = Path(name, "swap")
        with swap.open("xb") as file:
            file.truncate(length)
        swap.chmod(0o600)
        options = [*(("-U", uuid) if uuid else ()), *(("-L", label) if label else ())]
        run(["mkswap", *options, os.fspath(swap)], purpose="to make swap partitions")
        with swap.open("rb") as source, target.open("r+b") as file:
            file.seek(start)
            file.write(source.read(64 * 1024))


# -- streams ----------------------------------------------------------------------------


class _Joined(io.RawIOBase):
    """Files one after the other, as one stream."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._left = list(files)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while True:
            if self._file is None:
                if not self._left:
                    return 0
                self._file = self._left.pop(0).open("rb", buffering=0)
            view = memoryview(buffer)
            data = self._file.read(len(view))
            if data:
                view[: len(data)] = data
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def _zstd(file: IO[bytes]) -> IO[bytes]:
    reader: IO[bytes] = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
        file, read_across_frames=True
    )
    return reader


def _xz(file: IO[bytes]) -> IO[bytes]:
    return lzma.LZMAFile(file)


def _gzip(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file))


#: By how a compressed stream begins.
_OPENERS: Mapping[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\xfd7zXZ\x00": _xz,
    b"BZh": lambda file: bz2.BZ2File(file),
}
#: Seen and not read: the command that turns them into something that is.
_OTHERS: Mapping[bytes, str] = {
    b"\x04\x22\x4d\x18": "lz4",
    b"\x89LZO": "lzop",
    b"LRZI": "lrzip",
    b"LZIP": "lzip",
}


def _opened(files: Sequence[Path]) -> IO[bytes]:
    """Open a stream, decompressed whatever it is compressed with."""
    joined = io.BufferedReader(cast("io.RawIOBase", _Joined(files)), _STEP)
    head = joined.peek(8)[:8]
    for magic, tool in _OTHERS.items():
        if head.startswith(magic):
            joined.close()
            raise NotUnderstood(
                f"{files[0]} is compressed by {tool}, which is not read here",
                hint=f"decompress it with {tool} first",
            )
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            return opener(joined)
    return joined
