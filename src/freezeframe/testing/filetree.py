"""A tree of files with all that is hard to keep, and the comparison of two such trees.

What is compared is asked of the kernel: `lstat`, `getxattr`, `readlink`, and holes by
`SEEK_DATA`.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat as modes
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path

from freezeframe.access.files.base import Entry, Filesystem, Node, read_range, stream
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.system.run import run

_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF
_ACCESS = "system.posix_acl_access"
_DEFAULT = "system.posix_acl_default"
_BLOCK = 4096


def acl(user: int, permissions: int) -> bytes:
    """Return an access control list that gives one more user something."""
    entries = (
        (0x01, 6, _NO_ID),
        (0x02, permissions, user),
        (0x04, 4, _NO_ID),
        (0x10, 6, _NO_ID),
        (0x20, 4, _NO_ID),
    )
    return _ACL_VERSION.pack(2) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def make_tree(
    top: Path, *, seed: int = 1, names: int = 1500, unix: bool = True, xattr: int = 400
) -> None:
    """Fill a folder. `unix` False: only what FAT, exFAT and NTFS keep. Needs root if True.

    `xattr`: bytes of the largest extended attribute; ext keeps few.
    """
    some = random.Random(seed)
    (top / "empty").touch()
    (top / "small").write_bytes(b"hello\n")
    (top / "one block").write_bytes(some.randbytes(_BLOCK))
    (top / "large").write_bytes(some.randbytes(3_000_001))
    words = [some.randbytes(some.randint(2, 9)).hex() for _ in range(300)]
    (top / "text").write_text(" ".join(some.choice(words) for _ in range(80_000)))
    folder = top / "folder" / "in a folder"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(some.randbytes(10_000))
    many = top / "many"
    many.mkdir()
    for number in range(names):
        (many / f"{number:05} a name that is rather long {some.random()}").write_bytes(
            b"%d" % number
        )
    for number in some.sample(range(names), names // 10):
        next(many.glob(f"{number:05} *")).unlink()
    (top / "\N{GREEK SMALL LETTER ALPHA}\N{GRINNING FACE} ü").write_bytes(b"unicode")
    _interleaved(top / "first", top / "second", some)
    if unix:
        _make_unix(top, some, xattr)


def _interleaved(first: Path, second: Path, some: random.Random) -> None:
    """Write two files by turns, so that both lie in many pieces."""
    with first.open("wb") as one, second.open("wb") as other:
        for _ in range(40):
            for file in (one, other):
                file.write(some.randbytes(3 * _BLOCK))
                file.flush()
                os.fsync(file.fileno())


def _make_unix(top: Path, some: random.Random, xattr: int) -> None:
    here = os.fsencode(top)
    with open(here + b"/not \xff\xfe utf-8", "wb") as file:  # noqa: PTH123 - bytes
        file.write(b"name")
    os.link(top / "small", top / "folder" / "small again")
    os.link(top / "small", top / "small once more")
    for name, target in {
        "link": "folder/in a folder/file",
        "absolute": "/etc/passwd",
        "up": "../../../../../../etc/passwd",
        "dangling": "nowhere",
        "long link": "x" * 900,
        "medium link": "y" * 120,
    }.items():
        (top / name).symlink_to(target)
    os.symlink(b"bytes \xff", here + b"/link of bytes")  # noqa: PTH211 - bytes
    _holes(top, some)
    (top / "attributes").write_bytes(b"attributes")
    for name, value in {
        "user.short": b"v",
        "user.empty": b"",
        "user.longer": b"w" * 200,
        "user.longest": b"u" * xattr,
        "trusted.thing": b"\0\1\2",
        "security.thing": b"secret",
        _ACCESS: acl(1234, 6),
    }.items():
        os.setxattr(top / "attributes", name, value)
    os.setxattr(top / "folder", _DEFAULT, acl(4321, 4))
    os.setxattr(top / "folder", "user.folder", b"of a folder")
    os.mknod(top / "null", modes.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", modes.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        here_fd = os.open(top, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here_fd}/socket")
        finally:
            os.close(here_fd)
    os.chown(top / "large", 70_000, 80_000)
    (top / "large").chmod(0o4711)
    (top / "one block").chmod(0o600)
    (top / "many").chmod(0o1777)
    for name, seconds in {
        "small": 1_000_000_000,
        "empty": -300_000_000,
        "large": 2_500_000_000,
    }.items():
        os.utime(top / name, ns=(seconds * 10**9 + 123_456_789, seconds * 10**9 + 987_654_321))
    os.utime(top / "link", ns=(10**18, 10**18 + 1), follow_symlinks=False)


def _holes(top: Path, some: random.Random) -> None:
    with (top / "holes").open("wb") as file:
        for at in (0, 100, 1_000, 5_000):
            file.seek(at * _BLOCK)
            file.write(some.randbytes(2 * _BLOCK))
        file.truncate(6_000 * _BLOCK + 17)
    with (top / "only a hole").open("wb") as file:
        file.truncate(50_000_000)
    with (top / "never written").open("wb") as file:
        # Allocated far behind its start, of which little is written: the rest reads as zeros.
        os.posix_fallocate(file.fileno(), 64 * _BLOCK, 64 * _BLOCK)
        file.seek(70 * _BLOCK)
        file.write(some.randbytes(_BLOCK))


def plain_times(top: Path) -> None:
    """Give all files times of whole seconds, of 32 bits: mke2fs keeps no more."""
    for path in sorted(_below(os.fsencode(top)), reverse=True):
        stat = os.lstat(path)
        seconds = min(max(stat.st_mtime_ns // 10**9, 0), 2**31 - 1) * 10**9
        os.utime(path, ns=(seconds, seconds), follow_symlinks=False)


def facts(top: bytes, *, unix: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Return what the kernel says of each file below a folder, by its path."""
    first_names: dict[tuple[int, int], bytes] = {}
    found: dict[bytes, tuple[object, ...]] = {}
    for path in sorted(_below(top)):
        stat = os.lstat(path)
        name = path[len(top) + 1 :]
        row: list[object] = [modes.S_IFMT(stat.st_mode)]
        if modes.S_ISREG(stat.st_mode):
            row += [stat.st_size, digest(path)]
        if unix:
            row += [stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_rdev]
            row.append(
                {key: os.getxattr(path, key, follow_symlinks=False) for key in _xattrs(path)}
            )
            if modes.S_ISLNK(stat.st_mode):
                row.append(os.readlink(path))  # noqa: PTH115 - bytes
            elif not modes.S_ISDIR(stat.st_mode) and stat.st_nlink > 1:
                row.append(first_names.setdefault((stat.st_dev, stat.st_ino), name))
        found[name] = tuple(row)
    return found


def _xattrs(path: bytes) -> list[str]:
    # XFS shows its lists twice, once as they lie on disk.
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in names if not name.startswith("trusted.SGI_ACL"))


def _below(top: bytes) -> Iterator[bytes]:
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            if name != b"lost+found" or folder != top:
                yield folder + b"/" + name
        if folder == top and b"lost+found" in folders:
            folders.remove(b"lost+found")


def digest(path: bytes) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:  # noqa: PTH123 - bytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_bytes(path: str | Path) -> int:
    """Return how many bytes of a file are no holes."""
    with Path(path).open("rb") as file:
        handle, total, at = file.fileno(), 0, 0
        size = os.fstat(handle).st_size
        while at < size:
            try:
                start = os.lseek(handle, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(handle, start, os.SEEK_HOLE)
            total += at - start
        return total


# -- the same by a reader ----------------------------------------------------------------


def read_facts(filesystem: Filesystem, *, unix: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Return what a reader says of each file, in the rows of `facts`."""
    first_names: dict[Hashable, bytes] = {}
    found: dict[bytes, tuple[object, ...]] = {}
    for name, node in sorted(read_below(filesystem.root), key=lambda pair: pair[0]):
        stat = node.stat()
        row: list[object] = [modes.S_IFMT(stat.mode)]
        if stat.is_file:
            content = node.content()
            data = read_range(content, 0, content.size)
            row += [stat.size, hashlib.sha256(data).hexdigest()]
        if unix:
            row += [stat.mode, stat.uid, stat.gid, stat.mtime, os.makedev(*stat.device)]
            row.append({key.decode(): value for key, value in sorted(node.xattrs().items())})
            if stat.is_link:
                row.append(node.read_link())
            elif not stat.is_folder and stat.links > 1:
                row.append(first_names.setdefault(node.key, name))
        found[name] = tuple(row)
    return found


def read_below(folder: Node, above: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Give all below a folder by path, but for `lost+found`."""
    for entry in folder.entries():
        name = above + entry.name
        if name == b"lost+found":
            continue
        yield name, entry.node
        if entry.node.stat().is_folder:
            yield from read_below(entry.node, name + b"/")


def differences(
    wanted: Mapping[bytes, tuple[object, ...]], found: Mapping[bytes, tuple[object, ...]]
) -> list[str]:
    """Return what differs, a line each."""
    return [
        f"{name!r}: {wanted.get(name)} is {found.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def check_reader(
    filesystem: Filesystem, wanted: Mapping[bytes, tuple[object, ...]], *, unix: bool = True
) -> None:
    """Hold a reader to what the room promises: the contract every filesystem's reader passes.

    `wanted` is what the kernel said (`facts`) of the same files.
    """
    wrong = differences(wanted, read_facts(filesystem, unix=unix))
    if wrong:
        raise AssertionError("\n".join(wrong[:20]))
    some = random.Random(1)
    for name, node in read_below(filesystem.root):
        here = filesystem.root
        for part in name.split(b"/"):
            below = here.lookup(part)
            assert below is not None, name
            here = below
        assert here.key == node.key, name
        stat = node.stat()
        if stat.is_folder:
            assert node.lookup(b"there is no such") is None
        else:
            _refuses(partial(_all_of, node.entries))
        if stat.is_file:
            _check_content(node, some)
        else:
            _refuses(node.content)
        if not stat.is_link:
            _refuses(node.read_link)


def _all_of(make: Callable[[], Iterator[Entry]]) -> list[Entry]:
    return list(make())


def _refuses(action: Callable[[], object]) -> None:
    try:
        action()
    except NotUnderstood:
        return
    raise AssertionError("it does not refuse what cannot be")


def _check_content(node: Node, some: random.Random) -> None:
    content = node.content()
    assert content.size == node.stat().size
    whole = bytearray(content.size)
    for offset, data in stream(content):
        whole[offset : offset + len(data)] = data
    for _ in range(3):
        start, length = some.randrange(content.size + 1), some.randrange(20_000)
        assert read_range(content, start, length) == whole[start : start + length]


def seen_by_filefrag(path: Path) -> tuple[Extents, Extents]:
    """Return what of a file holds data, and where on its disk that lies, in bytes."""
    said = run(("filefrag", "-b4096", "-v", str(path))).stdout.decode()
    rows = [line.split(":") for line in said.splitlines() if line.strip()[:1].isdigit()]

    def column(number: int) -> Extents:
        pairs = [map(int, row[number].replace(".", " ").split()) for row in rows]
        return Extents.of((first * 4096, (last + 1) * 4096) for first, last in pairs)

    return column(1), column(2)
