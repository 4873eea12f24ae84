"""Files of images: list, find, read and copy them."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from freezeframe.access.cache import BlobCache
from freezeframe.access.disk import ImageDisk
from freezeframe.access.files.base import STEP, Stat
from freezeframe.access.files.tree import Place, Tree, machine_tree, volume_tree
from freezeframe.access.files.volumes import Volume, choose_volume, find_volumes
from freezeframe.access.files.walk import OnError, walk
from freezeframe.access.get import Copied, Copier
from freezeframe.app.session import listed_images, opened_images
from freezeframe.core.errors import FreezeframeError, NotUnderstood, TargetUnsuitable, UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Where:
    """`IMAGE:/path` or `IMAGE:VOLUME:/path`, taken apart."""

    image: str
    #: Empty: the tree the machine had.
    volume: str
    #: None where only an image was named.
    path: bytes | None

    def of(self, path: bytes) -> str:
        """Return how another path of the same tree is written."""
        volume = f":{self.volume}" if self.volume else ""
        return f"{self.image}{volume}:{os.fsdecode(path)}"


def parse_where(text: str) -> Where:
    """Take apart what a user wrote; raises `UsageError`."""
    image, colon, rest = text.partition(":")
    if not image:
        raise UsageError(
            f"{text!r} names no image", hint="write IMAGE:/path, as in latest:/etc/fstab"
        )
    if not colon:
        return Where(image, "", None)
    # `IMAGE:/dev/sda2:/path` names a device: no machine has files in `/dev/…:/`.
    if rest.startswith("/") and not (rest.startswith("/dev/") and ":/" in rest):
        return Where(image, "", os.fsencode(rest))
    volume, colon, path = rest.partition(":/")
    if not volume.rstrip(":"):
        raise UsageError(
            f"{text!r} names no path", hint="write IMAGE:/path, as in latest:/etc/fstab"
        )
    return Where(image, volume.rstrip(":"), os.fsencode(f"/{path}"))


#: Told of a place that cannot be read, and why.
OnProblem: TypeAlias = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class View:
    """An image whose files are looked at."""

    image: ImageReader
    where: Where
    volumes: tuple[Volume, ...]

    def tree(self) -> Tree:
        """Return the tree that was asked for; raises `NotUnderstood` where there is none."""
        short = self.image.snapshot.short_id
        if self.where.volume:
            return volume_tree(choose_volume(self.volumes, self.where.volume, short))
        return machine_tree(self.volumes, short)

    def trees(self, on_problem: OnProblem) -> Iterator[tuple[Where, Tree]]:
        """Give the tree that was asked for; where only an image was named, all of its trees.

        That is the machine's, and each volume by itself that is not in that one.
        """
        if self.where.path is not None:
            yield self.where, self.tree()
            return
        inside: set[Volume] = set()
        with suppress(NotUnderstood):
            tree = machine_tree(self.volumes, self.image.snapshot.short_id)
            inside = set(tree.volumes.values())
            yield self.where, tree
        for volume in self.volumes:
            if volume.readable and volume not in inside:
                where = Where(self.where.image, volume.name, None)
                try:
                    volume.filesystem()
                except FreezeframeError as error:
                    on_problem(where.of(b"/"), error.message)
                    continue
                yield where, volume_tree(volume)

    def paths_of(self, volume: Volume) -> list[str]:
        """Return where the machine had a volume, as far as that is known."""
        try:
            mounted = machine_tree(self.volumes, self.image.snapshot.short_id).volumes
        except FreezeframeError:
            return []
        return [os.fsdecode(path) for path, other in mounted.items() if other is volume]


@contextmanager
def opened_views(
    repository: Repository, wheres: Sequence[Where], progress: Progress
) -> Iterator[list[View]]:
    """Open the images that are named, all with one cache."""
    names = [where.image for where in wheres]
    with opened_images(repository, names, progress) as images, ExitStack() as stack:
        cache = stack.enter_context(BlobCache())
        yield [
            _view(image, where, cache, stack) for image, where in zip(images, wheres, strict=True)
        ]


def _view(image: ImageReader, where: Where, cache: BlobCache, stack: ExitStack) -> View:
    disks = [
        (record, stack.enter_context(ImageDisk(image, record, cache=cache)))
        for record in image.manifest.disks
    ]
    return View(image, where, tuple(find_volumes(disks)))


@contextmanager
def all_views(
    repository: Repository, names: Sequence[str], progress: Progress
) -> Iterator[Iterator[tuple[str, View | FreezeframeError]]]:
    """Give the named images, or all, oldest first; one that is damaged gives its error."""
    with listed_images(repository, names, progress) as found, BlobCache() as cache:

        def views() -> Iterator[tuple[str, View | FreezeframeError]]:
            for snapshot, image in found:
                if isinstance(image, FreezeframeError):
                    yield snapshot.short_id, image
                    continue
                with ExitStack() as stack:
                    where = Where(snapshot.short_id, "", None)
                    yield snapshot.short_id, _view(image, where, cache, stack)

        yield views()


def tell_notes(tree: Tree, progress: Progress) -> None:
    """Say what somebody should know of the filesystems that were read."""
    for note in tree.notes():
        progress.note(note)


# -- looking ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """One file, as it is shown."""

    place: Place
    #: Why nothing is known of it, where that is so.
    stat: Stat | FreezeframeError
    #: Where a symbolic link leads.
    target: bytes = b""


def describe(place: Place) -> Listed:
    """Tell what there is to say of a file; never raises for what it is."""
    try:
        stat = place.stat()
        return Listed(place, stat, place.read_link() if stat.is_link else b"")
    except FreezeframeError as error:
        return Listed(place, error)


def list_folder(tree: Tree, path: bytes) -> Iterator[Listed]:
    """Give what a folder holds, or the file itself; raises `NoSuchFile`, `NotUnderstood`."""
    place = tree.resolve(path)
    if not place.stat().is_folder:
        yield describe(place)
        return
    for child in tree.entries(place):
        yield describe(child)


def find_files(
    tree: Tree, start: Place, matches: Callable[[Place], bool], on_error: OnError
) -> Iterator[Place]:
    """Give a file and all below it, those that match."""
    for place in walk(tree, start, on_error):
        if matches(place):
            yield place


#: Told of a file that was found, and how its place is written.
OnFound: TypeAlias = Callable[[Listed, str], None]


def find_all(
    repository: Repository,
    wheres: Sequence[Where],
    matches: Callable[[Place], bool],
    progress: Progress,
    on_found: OnFound,
    on_problem: OnProblem,
) -> int:
    """Find files below some places, or in all images where there is none.

    Returns how many places could not be read.
    """
    problems = 0

    def tell(place: str, reason: str) -> None:
        nonlocal problems
        problems += 1
        on_problem(place, reason)

    def search(view: View) -> None:
        for where, tree in view.trees(tell):
            try:
                start = tree.resolve(where.path or b"/")
            except FreezeframeError as error:
                if where.path is not None:
                    raise
                tell(where.of(b"/"), error.message)
                continue

            def bad(place: Place, error: FreezeframeError, where: Where = where) -> None:
                tell(where.of(place.path), error.message)

            for place in find_files(tree, start, matches, bad):
                on_found(describe(place), where.of(place.path))
            tell_notes(tree, progress)

    if wheres:
        with opened_views(repository, wheres, progress) as found:
            for view in found:
                search(view)
        return problems
    with all_views(repository, (), progress) as views:
        for short, view_or_error in views:
            if isinstance(view_or_error, FreezeframeError):
                tell(short, view_or_error.message)
            else:
                search(view_or_error)
    return problems


def named(pattern: str) -> Callable[[Place], bool]:
    """Return what matches a pattern of a shell: the name, or with a slash in it the path."""
    whole = "/" in pattern

    def matches(place: Place) -> bool:
        name = place.path if whole else (place.names or (b"/",))[-1]
        return fnmatch.fnmatchcase(os.fsdecode(name), pattern)

    return matches


def read_file(tree: Tree, path: bytes) -> Iterator[bytes]:
    """Give a file's bytes in order, holes as zeros; links are followed."""
    place = tree.resolve(path, follow=True)
    if place.stat().is_folder:
        raise UsageError(f"{os.fsdecode(path)} is a folder", hint="`files get` copies folders")
    reached, size = 0, place.size()
    for offset, data in place.data():
        yield from zeros(offset - reached)
        yield data
        reached = offset + len(data)
    yield from zeros(size - reached)


def zeros(length: int) -> Iterator[bytes]:
    """Give so many zeros, some at a time."""
    for done in range(0, length, STEP):
        yield bytes(min(STEP, length - done))


# -- copying ----------------------------------------------------------------------------


def copy_files(
    views: Sequence[View], target: Path, progress: Progress, *, overwrite: bool = False
) -> Copied:
    """Copy files and folders into a folder, which is made where it is not there.

    Each gets its own name there; of a whole tree (`/`), what it holds is copied.
    """
    # All must be there before anything is written.
    found = [(tree, tree.resolve(view.where.path or b"/")) for view, tree in _trees(views)]
    target.mkdir(parents=True, exist_ok=True)
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copier = Copier(handle, progress, overwrite=overwrite)
        progress.start("copying", 0)
        for tree, place in found:
            copier.copy(tree, place, place.names[-1] if place.names else b"")
            tell_notes(tree, progress)
    finally:
        os.close(handle)
    return copier.copied


def copy_content(
    view: View, target: Path, progress: Progress, *, overwrite: bool = False
) -> Copied:
    """Write the content of one file to a file; links are followed. Raises what hits it."""
    tree = view.tree()
    place = tree.resolve(view.where.path or b"/", follow=True)
    if not place.stat().is_file:
        raise UsageError(
            f"{os.fsdecode(place.path)} is no regular file", hint="leave -o out, and name a folder"
        )
    _refuse_existing(target, overwrite=overwrite)
    now = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    handle = os.open(now, _NEW_FILE, 0o666)
    copier = Copier(handle, progress)
    progress.start("copying", place.size())
    try:
        try:
            copier.fill(place, handle)
        finally:
            os.close(handle)
        _refuse_existing(target, overwrite=overwrite)
        now.replace(target)
    except BaseException:
        now.unlink(missing_ok=True)
        raise
    copier.copied.files = 1
    tell_notes(tree, progress)
    return copier.copied


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_file() or target.is_symlink():
        raise TargetUnsuitable(
            f"{target} is no regular file", hint="`files cat` prints a file's content"
        )
    if not overwrite:
        raise TargetUnsuitable(f"{target} is there already", hint="--overwrite replaces it")


def _trees(views: Sequence[View]) -> Iterator[tuple[View, Tree]]:
    known: dict[tuple[str, str], Tree] = {}
    for view in views:
        key = view.image.snapshot.id, view.where.volume
        if key not in known:
            known[key] = view.tree()
        yield view, known[key]
