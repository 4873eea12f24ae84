"""What fixture filesystems are filled with: real files of the machine, and hard cases."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import KIB, MIB
from freezeframe.system.run import run

#: Every Linux machine has these; read only, never written.
SOURCES = ("/usr/share", "/usr/lib", "/usr/bin", "/usr/sbin", "/usr/include")
#: A larger file than this part of a volume's share would leave no room for others.
_LARGEST = 8

#: XFS keeps long values in blocks of their own; ext4 has one block (1 KiB on a small disk)
#: for all of a file's attributes.
_LONG_ATTRIBUTE = {"ext4": 700, "xfs": 60_000, "btrfs": 3000}

#: Hard for those who count characters: as long as can be, and beyond ASCII.
_NAMES = (b"x" * 255, "größe-日本語-🧊".encode())


def copy_real_files(
    target: Path, sources: Iterable[str], budget: int, *, links: bool = True
) -> int:
    """Copy files of the machine below `target`, `budget` bytes at most; return the bytes.

    Always the same choice on the same machine: folders in order of name. Modes, owners,
    times, extended attributes and hard links are kept; without `links` only plain files
    are taken, as FAT can hold no more.
    """
    copied = 0
    largest = budget // _LARGEST
    seen: dict[tuple[int, int], Path] = {}
    for source in sources:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if path.lstat().st_size <= largest:
                        copied += _copy(path, target / path.relative_to("/"), seen, links)
                if copied >= budget:
                    return copied
    return copied


def _copy(path: Path, target: Path, seen: dict[tuple[int, int], Path], links: bool) -> int:
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode) and links:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.readlink())
        return 0
    if not stat.S_ISREG(info.st_mode) or not (links or path.name.isascii()):
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    key = (info.st_dev, info.st_ino)
    if links and key in seen:
        target.hardlink_to(seen[key])
        return 0
    shutil.copy2(path, target)
    if links:
        seen[key] = target
        os.chown(target, info.st_uid, info.st_gid)
        # chown clears the set-user-id bits.
        target.chmod(stat.S_IMODE(info.st_mode))
    return info.st_size


def add_hard_cases(root: Path, kind: str, rng: random.Random) -> None:
    """Add what filesystems store in ways of their own, as far as `kind` can hold it."""
    folder = root / "hard cases"
    folder.mkdir()
    _files(folder, rng)
    _links(folder)
    if kind == "ntfs":
        _names(folder, [*_NAMES, b"[brackets]&;"])
        _attributes(folder, {"user.stream": b"a named stream", "user.long": rng.randbytes(60_000)})
        return
    _names(
        folder,
        [b"x" * 255, "größe-日本語-🧊".encode(), b"not-utf8-\xff\xfe", b"new\nline", b"-rf *"],
    )
    _nodes(folder)
    _attributes(folder, _posix_attributes(kind, rng))
    if kind in ("ext4", "xfs"):
        with (folder / "unwritten").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * MIB)
            file.seek(MIB)
            file.write(rng.randbytes(4 * KIB))
    if kind == "btrfs":
        _btrfs(root, folder, rng)


def _files(folder: Path, rng: random.Random) -> None:
    (folder / "empty").touch()
    (folder / "one byte").write_bytes(b"1")
    (folder / "inline").write_bytes(rng.randbytes(100))
    (folder / "odd size").write_bytes(rng.randbytes(123_457))
    many = folder / "many"
    many.mkdir()
    for number in range(400):
        (many / f"{number:04d}-{rng.getrandbits(64):016x}").write_bytes(rng.randbytes(number))
    deep = folder
    for level in range(30):
        deep /= f"level {level}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"reached\n")
    with (folder / "sparse").open("wb") as file:
        for offset in (0, 5 * MIB + 1, 17 * MIB, 40 * MIB - 3):
            file.seek(offset)
            file.write(rng.randbytes(5000))
        file.truncate(48 * MIB)
    _fragmented(folder, rng)


def _fragmented(folder: Path, rng: random.Random) -> None:
    """Write two files in turns, each piece on disk before the next, and remove one."""
    with (folder / "fragmented").open("wb") as kept, (folder / "gone").open("wb") as gone:
        for _ in range(40):
            for file in (kept, gone):
                file.write(rng.randbytes(8 * KIB))
                file.flush()
                os.fdatasync(file.fileno())
    (folder / "gone").unlink()


def _links(folder: Path) -> None:
    (folder / "hard link").hardlink_to(folder / "odd size")
    (folder / "many" / "another hard link").hardlink_to(folder / "odd size")
    (folder / "symlink").symlink_to("odd size")
    (folder / "dangling").symlink_to("/nowhere/at all")
    # Too long to lie in the inode.
    (folder / "long symlink").symlink_to("/".join(["far"] * 250))


def _names(folder: Path, names: list[bytes]) -> None:
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)


def _nodes(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    owned = folder / "owned"
    owned.write_bytes(b"by nobody\n")
    os.chown(owned, 65534, 12345)
    owned.chmod(0o4751)


def _attributes(folder: Path, attributes: dict[str, bytes]) -> None:
    file = folder / "with attributes"
    file.write_bytes(b"see my attributes\n")
    for name, value in attributes.items():
        os.setxattr(file, name, value)


def _posix_attributes(kind: str, rng: random.Random) -> dict[str, bytes]:
    return {
        "user.comment": "größer".encode(),
        "user.empty": b"",
        "trusted.of.root": b"\x00\x01\x02",
        # cap_net_raw+ep, as ping has it.
        "security.capability": bytes.fromhex("0100000200200000000000000000000000000000"),
        "user.long": rng.randbytes(_LONG_ATTRIBUTE[kind]),
    }


def _btrfs(root: Path, folder: Path, rng: random.Random) -> None:
    """Subvolume, snapshot, reflink and compression: what only btrfs has."""
    volume = root / "subvolume"
    run(("btrfs", "subvolume", "create", str(volume)))
    (volume / "file").write_bytes(rng.randbytes(100_000))
    run(("btrfs", "subvolume", "snapshot", "-r", str(volume), str(root / "snapshot")))
    (volume / "file").write_bytes(rng.randbytes(90_000))
    packed = folder / "compressed"
    packed.touch()
    # Kernels without zstd in btrfs keep it uncompressed.
    with contextlib.suppress(ToolFailed):
        run(("btrfs", "property", "set", str(packed), "compression", "zstd"))
    packed.write_bytes(b"the same line again and again\n" * 50_000)
    run(("cp", "--reflink=always", str(folder / "odd size"), str(folder / "reflink")))


def change_files(root: Path, seed: int) -> int:
    """Delete, add, rename and change some files; return how many. The same for the same seed."""
    rng = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in files if "snapshot" not in path.parts]
    chosen = rng.sample(files, min(len(files), 60))
    for number, path in enumerate(chosen):
        match number % 4:
            case 0:
                path.unlink()
            case 1:
                path.rename(path.with_name(f"renamed {number}"))
            case 2:
                with path.open("r+b") as file:
                    file.seek(rng.randrange(max(1, path.stat().st_size)))
                    file.write(rng.randbytes(3000))
            case _:
                with path.open("ab") as file:
                    file.write(rng.randbytes(20_000))
    added = root / f"added {seed}"
    added.mkdir()
    for number in range(20):
        (added / f"file {number}").write_bytes(rng.randbytes(number * 9000))
    return len(chosen) + 20
