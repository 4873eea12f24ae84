"""A store in a local folder, laid out as restic lays it out.

Durable means: the file's bytes are synchronised, then its name appears, then the folder is
synchronised. A file under its final name is therefore always whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from freezeframe.core.errors import ObjectMissing, RepositoryDamaged, StoreError
from freezeframe.core.units import MIB
from freezeframe.store.base import CONFIG_NAME, Kind, Listing, Parts, is_object_name
from freezeframe.system.direct import open_direct, write_direct

#: In names of files that are not finished; such a name is never an object's.
_UNFINISHED = ".freezeframe-unfinished-"
#: writev takes no more pieces than this (IOV_MAX of Linux).
_PIECES = 1024
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: From so many bytes on an object is not kept in the page cache.
_LARGE = MIB
#: What filesystems without hard links say to link(2).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
#: What filesystems that cannot synchronise a folder, or change modes, say.
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)


class LocalStore:
    """Objects as files below one folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = Path(path).absolute()

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self._root)

    def create(self) -> None:
        """Make the folders, with access for their owner only."""
        try:
            for kind in Kind:
                if kind is not Kind.CONFIG:
                    (self._root / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
            # All 256 at once, as restic does: a folder made later would have to be
            # synchronised in its parent, too.
            for number in range(256):
                (self._root / Kind.DATA / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            for folder in (self._root / Kind.DATA, self._root, self._root.parent):
                _sync_folder(folder)
        except OSError as error:
            raise self._failed("be created", error) from error

    # -- writing --------------------------------------------------------------------

    def put(self, kind: Kind, name: str, parts: Parts) -> None:
        """Write a file beside its final place, synchronise it, then give it its name."""
        path = self._path(kind, name)
        unfinished = path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
        try:
            handle = self._create_file(unfinished)
        except OSError as error:
            raise self._failed(f"take {kind}/{name}", error) from error
        try:
            try:
                if not _write_large(handle, parts):
                    _write_all(handle, parts)
                with _where_possible():
                    os.fchmod(handle, 0o400)
                os.fsync(handle)
            finally:
                os.close(handle)
            _give_name(unfinished, path)
        except FileExistsError as error:
            unfinished.unlink(missing_ok=True)
            raise StoreError(f"{kind}/{name} exists already, and is never replaced") from error
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise self._failed(f"take {kind}/{name}", error) from error
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        try:
            _sync_folder(path.parent)
        except OSError as error:
            raise self._failed(f"take {kind}/{name}", error) from error

    def _create_file(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            # Copying a repository may drop empty folders. Where even the config is gone it is
            # not a lost folder but an unmounted disk, and writing there fills another one.
            if not (self._root / CONFIG_NAME).exists():
                raise
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(path.parent.parent)
            return os.open(path, flags, 0o600)

    def remove(self, kind: Kind, name: str) -> None:
        """Unlink the file."""
        try:
            self._path(kind, name).unlink()
        except FileNotFoundError:
            raise ObjectMissing(kind, name) from None
        except OSError as error:
            raise self._failed(f"remove {kind}/{name}", error) from error

    def tidy(self, older_than: float) -> int:
        """Unlink unfinished files; those that cannot be are left."""
        limit = time.time() - older_than
        removed = 0
        for folder in (self._root, *(found for kind in Kind for found in self._folders(kind))):
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(_UNFINISHED):
                        continue
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime < limit:
                            Path(entry.path).unlink()
                            removed += 1
        return removed

    # -- reading --------------------------------------------------------------------

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a part of a file."""
        try:
            handle = os.open(self._path(kind, name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ObjectMissing(kind, name) from None
        except OSError as error:
            raise self._failed(f"read {kind}/{name}", error) from error
        try:
            size = os.fstat(handle).st_size
            wanted = max(size - offset, 0) if length is None else length
            # Asked first: a length out of a damaged index must not be allocated.
            if offset + wanted > size:
                raise RepositoryDamaged(kind, name, f"it ends at {size} bytes")
            data = _read_all(handle, offset, wanted)
        except OSError as error:
            raise self._failed(f"read {kind}/{name}", error) from error
        finally:
            os.close(handle)
        if len(data) != wanted:
            raise RepositoryDamaged(kind, name, f"it ends at {offset + len(data)} bytes")
        return data

    def list(self, kind: Kind) -> Listing:
        """Return names and sizes of the files."""
        found: Listing = []
        for folder in self._folders(kind):
            prefix = folder.name if kind is Kind.DATA else ""
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        name = entry.name
                        if not is_object_name(kind, name) or not name.startswith(prefix):
                            continue
                        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                            found.append((name, entry.stat().st_size))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._failed(f"list {kind}", error) from error
        return found

    def exists(self, kind: Kind, name: str) -> bool:
        """Whether the file is there."""
        try:
            self._path(kind, name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._failed(f"read {kind}/{name}", error) from error
        return True

    # -- places ---------------------------------------------------------------------

    def _path(self, kind: Kind, name: str) -> Path:
        if not is_object_name(kind, name):
            raise StoreError(f"{name!r} is no name of an object of kind {kind}")
        if kind is Kind.CONFIG:
            return self._root / CONFIG_NAME
        if kind is Kind.DATA:
            return self._root / kind / name[:2] / name
        return self._root / kind / name

    def _folders(self, kind: Kind) -> Iterator[Path]:
        if kind is Kind.CONFIG:
            yield self._root
        elif kind is Kind.DATA:
            for number in range(256):
                yield self._root / kind / f"{number:02x}"
        else:
            yield self._root / kind

    def _failed(self, what: str, error: OSError) -> StoreError:
        if error.errno in _NO_ROOM:
            return StoreError(
                f"{self._root} cannot {what}: no room is left on that filesystem",
                hint="make room and run it again: finished images are whole, and what was stored"
                " of this one is found again",
            )
        hint = ""
        if error.errno == errno.ENOENT:
            hint = "is the disk it lies on mounted?"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "is the folder writable, and are you its owner?"
        return StoreError(f"{self._root} cannot {what}: {error.strerror}", hint=hint)


@contextlib.contextmanager
def _where_possible() -> Iterator[None]:
    """Let pass what some filesystems cannot do and nothing depends on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def _write_large(handle: int, parts: Parts) -> bool:
    """Write a large object past the page cache; False where it is small or that cannot be."""
    total = sum(map(len, parts))
    direct = open_direct(handle) if total >= _LARGE else None
    if direct is None:
        return False
    try:
        if write_direct(direct, 0, parts):
            os.ftruncate(handle, total)
            return True
    finally:
        os.close(direct)
    os.ftruncate(handle, 0)
    return False


def _write_all(handle: int, parts: Parts) -> None:
    """Write every byte of every part, in as few calls as may be."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    first = 0
    while first < len(views):
        batch = views[first : first + _PIECES]
        written = os.writev(handle, batch)
        for view in batch:
            if written < len(view):
                views[first] = view[written:]
                break
            written -= len(view)
            first += 1


def _read_all(handle: int, offset: int, length: int) -> bytes:
    data = os.pread(handle, length, offset)
    if len(data) == length or not data:
        return data
    pieces = [data]
    total = len(data)
    # One read returns at most 2 GiB less a page, and less where a signal came between.
    while total < length and (data := os.pread(handle, length - total, offset + total)):
        pieces.append(data)
        total += len(data)
    return b"".join(pieces)


def _give_name(unfinished: Path, path: Path) -> None:
    """Name a finished file without ever replacing one."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        unfinished.rename(path)
        return
    unfinished.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _where_possible():
            os.fsync(handle)
    finally:
        os.close(handle)
