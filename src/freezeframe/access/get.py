"""Copy files out of an image, with all that the target can keep, and never outside of it.

Every folder of the target is opened by its name in the one above, and never through a link:
no name and no link of an image leads out of the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.access.files.base import Stat
from freezeframe.access.files.tree import Place, Tree
from freezeframe.access.files.walk import Guard
from freezeframe.core.errors import FreezeframeError, TargetUnsuitable
from freezeframe.core.progress import Progress

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Errors after which no other file can be written either.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
_SET_ID = modes.S_ISUID | modes.S_ISGID

Names = tuple[bytes, ...]


@dataclass
class Copied:
    """What was copied, what was not, and what of it could not be kept."""

    files: int = 0
    folders: int = 0
    links: int = 0
    others: int = 0
    #: Bytes of data written; holes are none.
    data: int = 0
    #: Path in the image and reason.
    failed: list[tuple[bytes, str]] = field(default_factory=list)
    #: What could not be kept, and of how many files.
    lost: Counter[str] = field(default_factory=Counter)


@dataclass
class _Frame:
    """A folder that is being filled."""

    handle: int
    place: Place
    stat: Stat
    entries: Iterator[Place]
    names: Names
    #: Whether it gets the original's owner, mode and times when it is full.
    ours: bool


class Copier:
    """Copies into one target folder."""

    def __init__(self, target: int, progress: Progress, *, overwrite: bool = False) -> None:
        """Take a descriptor of the target folder, which stays open."""
        self._target = target
        self._progress = progress
        self._overwrite = overwrite
        self._root = os.geteuid() == 0
        self._guard = Guard()
        #: Where the files are that have several names.
        self._linked: dict[tuple[str, Hashable], Names] = {}
        self.copied = Copied()

    def copy(self, tree: Tree, start: Place, name: bytes) -> None:
        """Copy a file, or a folder and all below it; under `name`, or into the target (empty).

        What cannot be read is noted in `copied.failed`, and the rest goes on. Raises
        `TargetUnsuitable` where nothing more can be written.
        """
        frames: list[_Frame] = []
        try:
            if name:
                self._add(tree, start, self._target, (name,), frames)
            else:
                handle = os.dup(self._target)
                frames.append(
                    _Frame(handle, start, start.stat(), tree.entries(start), (), ours=False)
                )
                self._guard.enter(start, 0)
            while frames:
                self._go_on(tree, frames)
        finally:
            for frame in frames:
                os.close(frame.handle)

    def _go_on(self, tree: Tree, frames: list[_Frame]) -> None:
        frame = frames[-1]
        try:
            place = next(frame.entries, None)
            if place is not None:
                self._guard.count(place)
        except FreezeframeError as error:
            self._fail(frame.place, error.message)
            place = None
        if place is not None:
            self._add(tree, place, frame.handle, (*frame.names, place.names[-1]), frames)
            return
        if frame.ours:
            with self._noted(frame.place):
                self._describe(frame.handle, frame.stat, frame.place)
        os.close(frames.pop().handle)

    def _add(
        self, tree: Tree, place: Place, parent: int, names: Names, frames: list[_Frame]
    ) -> None:
        with self._noted(place):
            name = names[-1]
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise TargetUnsuitable("a name that no file may have")
            stat = place.stat()
            if stat.is_folder:
                self._guard.enter(place, len(frames))
                handle, ours = self._folder(parent, name)
                self.copied.folders += 1
                frames.append(_Frame(handle, place, stat, tree.entries(place), names, ours=ours))
                return
            if not self._link_to_known(place, stat, parent, names):
                self._make(place, stat, parent, name)
                if stat.links > 1:
                    self._linked[place.key] = names

    def _make(self, place: Place, stat: Stat, parent: int, name: bytes) -> None:
        if stat.is_file:
            self._file(place, stat, parent, name)
            self.copied.files += 1
        elif stat.is_link:
            target = place.read_link()
            self._make_way(parent, name)
            os.symlink(target, name, dir_fd=parent)
            self._describe_by_name(parent, name, stat, place)
            self.copied.links += 1
        else:
            self._special(place, stat, parent, name)

    # -- one of each --------------------------------------------------------------------

    def _folder(self, parent: int, name: bytes) -> tuple[int, bool]:
        """Make a folder and open it; whether it is new."""
        ours = True
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not self._overwrite:
                raise TargetUnsuitable(_EXISTS) from None
        return os.open(name, _FOLDER, dir_fd=parent), ours

    def _file(self, place: Place, stat: Stat, parent: int, name: bytes) -> None:
        # What is to be replaced stays until the new one is whole.
        there = self._is_there(parent, name)
        now = b".unfinished-%d-%d" % (os.getpid(), self.copied.files) if there else name
        handle = os.open(now, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            try:
                self.fill(place, handle)
                self._describe(handle, stat, place)
            finally:
                os.close(handle)
            if there:
                os.replace(now, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            # Half a file is worse than none: it would pass for the whole.
            with contextlib.suppress(OSError):
                os.unlink(now, dir_fd=parent)
            raise

    def fill(self, place: Place, handle: int) -> None:
        """Write a file's content to an empty file; holes stay holes."""
        os.ftruncate(handle, place.size())
        for offset, data in place.data():
            rest = memoryview(data)
            while rest:
                written = os.pwrite(handle, rest, offset)
                rest, offset = rest[written:], offset + written
            self.copied.data += len(data)
            self._progress.advance(len(data))

    def _special(self, place: Place, stat: Stat, parent: int, name: bytes) -> None:
        kind = modes.S_IFMT(stat.mode)
        if kind not in (modes.S_IFCHR, modes.S_IFBLK, modes.S_IFIFO, modes.S_IFSOCK):
            raise TargetUnsuitable("a file of no known kind")
        if kind in (modes.S_IFCHR, modes.S_IFBLK) and not self._root:
            self.copied.lost["device nodes (only root may make them)"] += 1
            return
        self._make_way(parent, name)
        os.mknod(name, kind | 0o600, os.makedev(*stat.device), dir_fd=parent)
        self._describe_by_name(parent, name, stat, place)
        self.copied.others += 1

    def _is_there(self, parent: int, name: bytes) -> bool:
        """Whether something has the name; raises `TargetUnsuitable` where it must not go."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not self._overwrite:
            raise TargetUnsuitable(_EXISTS)
        if modes.S_ISDIR(found.st_mode):
            raise TargetUnsuitable("there is a folder in its place in the target")
        return True

    def _make_way(self, parent: int, name: bytes) -> None:
        """Remove what has the name, where that was asked for; a folder stays."""
        if self._is_there(parent, name):
            os.unlink(name, dir_fd=parent)

    def _link_to_known(self, place: Place, stat: Stat, parent: int, names: Names) -> bool:
        """Give a file that was copied already another name; False where it was not."""
        known = self._linked.get(place.key) if stat.links > 1 else None
        if known is None:
            return False
        self._make_way(parent, names[-1])
        try:
            with self._folder_of(known) as other:
                os.link(
                    known[-1],
                    names[-1],
                    src_dir_fd=other,
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
        except OSError as error:
            if error.errno in _HOPELESS:
                raise
            self.copied.lost["hard links (copied once more instead)"] += 1
            return False
        self.copied.files += stat.is_file
        return True

    @contextlib.contextmanager
    def _folder_of(self, names: Names) -> Iterator[int]:
        handle = os.dup(self._target)
        try:
            for name in names[:-1]:
                below = os.open(name, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)

    # -- what is said of them -----------------------------------------------------------

    def _describe(self, handle: int, stat: Stat, place: Place) -> None:
        """Give a file or folder that is open its owner, attributes, mode and times."""
        mode = modes.S_IMODE(stat.mode)
        if not self._own(stat, handle):
            mode &= ~_SET_ID
        try:
            os.fchmod(handle, mode)
        except OSError as error:
            self._lose("modes", error)
        self._attributes(place, handle)
        self._times(stat, handle)

    def _describe_by_name(self, parent: int, name: bytes, stat: Stat, place: Place) -> None:
        """Give it to what cannot be opened: links, devices."""
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        owned = self._own(stat, path)
        if not stat.is_link:
            mode = modes.S_IMODE(stat.mode)
            try:
                self._set_mode(parent, name, mode if owned else mode & ~_SET_ID)
            except OSError as error:
                self._lose("modes", error)
        self._attributes(place, path)
        self._times(stat, path)

    def _set_mode(self, parent: int, name: bytes, mode: int) -> None:
        """Set the mode of what is no link, even if somebody puts one in its place meanwhile."""
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not modes.S_ISLNK(os.fstat(handle).st_mode):
                # Python has no fchmod for a descriptor that only names a file.
                Path(f"/proc/self/fd/{handle}").chmod(mode)
        finally:
            os.close(handle)

    def _own(self, stat: Stat, target: int | bytes) -> bool:
        """Set the owner; False where it is another one than in the image."""
        if stat.uid is None or stat.gid is None:
            return True
        if not self._root:
            if (stat.uid, stat.gid) == (os.geteuid(), os.getegid()):
                return True
            self.copied.lost["owners (only root may set them)"] += 1
            return False
        try:
            os.chown(target, stat.uid, stat.gid, follow_symlinks=isinstance(target, int))
        except OSError as error:
            self._lose("owners", error)
            return False
        return True

    def _lose(self, what: str, error: OSError) -> None:
        """Count what the target does not keep; raises what means that it takes nothing more."""
        # No room for an attribute is no full disk.
        if error.errno in _HOPELESS and error.errno != errno.ENOSPC:
            raise error
        self.copied.lost[f"{what} ({os.strerror(error.errno or 0)})"] += 1

    def _attributes(self, place: Place, target: int | bytes) -> None:
        attributes: Mapping[bytes, bytes] = place.xattrs()
        for name, value in attributes.items():
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                group = name.split(b".", 1)[0].decode("utf-8", "replace")
                self._lose(f"extended attributes of {group}", error)
            except ValueError:
                self.copied.lost["extended attributes (with names that cannot be)"] += 1

    def _times(self, stat: Stat, target: int | bytes) -> None:
        times = (stat.mtime if stat.atime is None else stat.atime, stat.mtime)
        try:
            if isinstance(target, int):
                os.utime(target, ns=times)
            else:
                os.utime(target, ns=times, follow_symlinks=False)
        except (OSError, OverflowError):
            self.copied.lost["times"] += 1

    # -- failures -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _noted(self, place: Place) -> Iterator[None]:
        """Within, what fails costs this file and no other, unless no other can go better."""
        try:
            yield
        except FreezeframeError as error:
            self._fail(place, error.message)
        except OSError as error:
            if error.errno in _HOPELESS:
                raise TargetUnsuitable(
                    f"the target cannot be written to: {error.strerror}",
                    hint="what was copied until then is there; make room and copy again"
                    " with --overwrite",
                ) from error
            self._fail(place, f"it cannot be written to the target: {error.strerror}")
        except (OverflowError, ValueError) as error:
            self._fail(place, f"it cannot be written to the target: {error}")

    def _fail(self, place: Place, reason: str) -> None:
        self.copied.failed.append((place.path, reason))


_EXISTS = "something has that name in the target already (--overwrite replaces it)"
