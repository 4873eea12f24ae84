"""The files of an image as one tree: the filesystems where the machine had them.

Which belongs where is told by the `/etc/fstab` of the root filesystem. A volume that was
named is a tree by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from freezeframe.access.files import fstab
from freezeframe.access.files.base import (
    Content,
    Entry,
    Filesystem,
    Node,
    Stat,
    read_range,
    stream,
    understood,
)
from freezeframe.access.files.btrfs import Btrfs
from freezeframe.access.files.volumes import Volume, listed
from freezeframe.core.errors import FreezeframeError, NotUnderstood

#: As Linux: more links than this on the way are taken for a circle.
_MOST_LINKS = 40
_LARGEST_FSTAB = 1 << 20
#: Folders at the top of a btrfs that are looked at for a root filesystem.
_MOST_SUBVOLUMES = 64

Names: TypeAlias = tuple[bytes, ...]
Item = TypeVar("Item")


class NoSuchFile(FreezeframeError):
    """Nothing has that name in the image."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file in the tree, and the way to it.

    Whatever a crafted filesystem makes of a reader comes out as `NotUnderstood`; errors else as
    of `Node`.
    """

    volume: Volume
    filesystem: Filesystem
    node: Node
    #: Names from the tree's root on.
    names: Names
    #: Where its filesystem is mounted: one may be in several places.
    mount: Names

    @property
    def path(self) -> bytes:
        """The path from the tree's root."""
        return b"/" + b"/".join(self.names)

    @property
    def key(self) -> tuple[str, Hashable]:
        """What tells the file from all others of the image."""
        return self.volume.name, self.node.key

    def stat(self) -> Stat:
        """Tell its owner, times and size."""
        with understood():
            return self.node.stat()

    def read_link(self) -> bytes:
        """Return where a symbolic link leads."""
        with understood():
            return self.node.read_link()

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return extended attributes."""
        with understood():
            return self.node.xattrs()

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        with understood():
            found = iter(self.node.entries())
        yield from _guarded(found)

    def lookup(self, name: bytes) -> Node | None:
        """Return what a folder has under a name."""
        with understood():
            return self.node.lookup(name)

    def size(self) -> int:
        """Return how many bytes a regular file has."""
        with understood():
            return self.node.content().size

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Give a regular file's data as (offset, bytes), ascending; the rest is zeros."""
        with understood():
            found = stream(self.node.content())
        yield from _guarded(found)


@dataclass(frozen=True, slots=True)
class Broken:
    """In the place of a filesystem that cannot be read: says why, whatever is asked."""

    key: Hashable
    error: FreezeframeError

    def stat(self) -> Stat:
        """Raise the error."""
        raise self.error

    def entries(self) -> Iterator[Entry]:
        """Raise the error."""
        raise self.error

    def lookup(self, name: bytes) -> Node | None:  # noqa: ARG002 Node's form
        """Raise the error."""
        raise self.error

    def read_link(self) -> bytes:
        """Raise the error."""
        raise self.error

    def content(self) -> Content:
        """Raise the error."""
        raise self.error

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Raise the error."""
        raise self.error


def _guarded(items: Iterator[Item]) -> Iterator[Item]:
    while True:
        with understood():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@dataclass(frozen=True, slots=True)
class _Mount:
    volume: Volume
    #: Subvolume to begin at: `/@home`; empty for what is mounted where none is named.
    subvolume: str = ""


class Tree:
    """Finds files by path."""

    def __init__(self, mounts: Mapping[Names, _Mount]) -> None:
        """Take what is mounted where; the root is at `()`."""
        self._mounts = dict(mounts)
        self._opened: dict[Names, Place] = {}

    @property
    def volumes(self) -> dict[bytes, Volume]:
        """The volumes by the path they have in the tree."""
        return {b"/" + b"/".join(names): mount.volume for names, mount in self._mounts.items()}

    def notes(self) -> list[str]:
        """Return what to know of the filesystems that were read."""
        found = {place.volume.name: place for place in self._opened.values()}
        return [
            f"{name} ({place.filesystem.kind}): {note}"
            for name, place in found.items()
            for note in place.volume.notes()
        ]

    def root(self) -> Place:
        """Return the folder at the top."""
        return self._mounted(())

    def _mounted(self, names: Names) -> Place:
        if names not in self._opened:
            mount = self._mounts[names]
            filesystem = mount.volume.filesystem()
            with understood():
                node = _start(filesystem, mount.subvolume)
            self._opened[names] = Place(mount.volume, filesystem, node, names, names)
        return self._opened[names]

    def _child(self, place: Place, entry: Entry) -> Place:
        """Return a folder's entry as a place: what is mounted there, where something is."""
        names = (*place.names, entry.name)
        if names in self._mounts:
            return self._mounted(names)
        return Place(place.volume, place.filesystem, entry.node, names, place.mount)

    def entries(self, place: Place) -> Iterator[Place]:
        """Give what a folder holds."""
        for entry in place.entries():
            try:
                yield self._child(place, entry)
            except FreezeframeError as error:
                # What is mounted there cannot be read: that is no fault of the folder's.
                names = (*place.names, entry.name)
                broken = Broken(names, error)
                yield Place(place.volume, place.filesystem, broken, names, names)

    def resolve(self, path: bytes, *, follow: bool = False) -> Place:
        """Find a file by its path from the root; links on the way are followed, inside the tree.

        `follow` is for the last one too. Raises `NoSuchFile`.
        """
        waiting = [name for name in path.split(b"/") if name not in (b"", b".")][::-1]
        # A slash at the end asks for the folder a link leads to.
        follow = follow or path.endswith(b"/")
        stack = [self.root()]
        links = 0
        while waiting:
            name = waiting.pop()
            if name == b"..":
                stack = stack[:-1] or stack
                continue
            here = stack[-1]
            place = self._step(here, name, path)
            if (waiting or follow) and place.stat().is_link:
                links += 1
                if links > _MOST_LINKS:
                    raise NoSuchFile(f"{_shown(path)}: too many symbolic links on the way")
                target = place.read_link()
                if target.startswith(b"/"):
                    stack = stack[:1]
                waiting += [part for part in target.split(b"/") if part not in (b"", b".")][::-1]
                continue
            stack.append(place)
        return stack[-1]

    def _step(self, here: Place, name: bytes, path: bytes) -> Place:
        names = (*here.names, name)
        if names in self._mounts:
            return self._mounted(names)
        if not here.stat().is_folder:
            raise NoSuchFile(f"{_shown(path)}: {_shown(here.path)} is no folder")
        node = here.lookup(name)
        if node is None:
            raise NoSuchFile(
                f"{_shown(path)}: there is no {_shown(name)} in {_shown(here.path)}"
                f" ({here.volume.name})"
            )
        return Place(here.volume, here.filesystem, node, names, here.mount)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def volume_tree(volume: Volume) -> Tree:
    """Return one volume as a tree; of a btrfs all subvolumes are seen."""
    return Tree({(): _Mount(volume, "/")})


def machine_tree(volumes: Sequence[Volume], image: str) -> Tree:
    """Return the tree the machine had; raises `NotUnderstood` where that is not certain."""
    candidates = [found for volume in volumes if volume.readable for found in _roots(volume)]
    # A root filesystem knows itself; another's may have been left from an older system.
    own = [found for found in candidates if found.itself] or candidates
    if len(own) == 1:
        return Tree(_mounts(own[0], volumes))
    files = [volume for volume in volumes if volume.readable]
    if not own and len(files) == 1:
        return volume_tree(files[0])
    if own:
        names = ", ".join(sorted({found.mount.volume.name for found in own}))
        problem = f"image {image} has several root filesystems: {names}"
    elif files:
        problem = f"image {image} has several filesystems, and none with an /etc/fstab"
    else:
        problem = f"image {image} has no filesystem whose files can be read"
    raise NotUnderstood(f"{problem}: name the volume", hint=listed(volumes, image))


@dataclass(frozen=True, slots=True)
class _Root:
    mount: _Mount
    lines: tuple[fstab.Line, ...]
    #: Whether its own table says that it is the root.
    itself: bool


def _roots(volume: Volume) -> Iterator[_Root]:
    """Give the root filesystems on a volume: a btrfs may hold several."""
    try:
        filesystem = volume.filesystem()
        with understood():
            starts = dict(_starts(filesystem))
    except FreezeframeError:
        return
    for subvolume, node in starts.items():
        try:
            with understood():
                content = _read_fstab(node)
        except FreezeframeError:
            continue
        if content is None:
            continue
        lines = tuple(fstab.parse(content))
        own = next((line for line in lines if not line.point), None)
        itself = own is not None and volume.known_as(own.device)
        named = own.option("subvol").strip("/") if own else ""
        if itself and named and subvolume.strip("/") not in ("", named):
            itself = False
        yield _Root(_Mount(volume, subvolume), lines, itself)


def _starts(filesystem: Filesystem) -> Iterator[tuple[str, Node]]:
    """Give folders that may be a system's root, by the subvolume they are."""
    if not isinstance(filesystem, Btrfs):
        yield "", filesystem.root
        return
    seen = {filesystem.default.key}
    yield "", filesystem.default
    for number, entry in enumerate(filesystem.root.entries()):
        if number >= _MOST_SUBVOLUMES:
            return
        if entry.node.key not in seen and filesystem.is_subvolume(entry.node):
            seen.add(entry.node.key)
            yield "/" + entry.name.decode("utf-8", "surrogateescape"), entry.node


def _read_fstab(root: Node) -> bytes | None:
    folder = root.lookup(b"etc")
    if folder is None or not folder.stat().is_folder:
        return None
    found = folder.lookup(b"fstab")
    if found is None or not found.stat().is_file:
        return None
    return read_range(found.content(), 0, _LARGEST_FSTAB)


def _mounts(root: _Root, volumes: Sequence[Volume]) -> dict[Names, _Mount]:
    mounts: dict[Names, _Mount] = {(): root.mount}
    for line in root.lines:
        found = [volume for volume in volumes if volume.known_as(line.device)]
        if line.point and len(found) == 1 and found[0].readable:
            mounts[line.point] = _Mount(found[0], line.option("subvol"))
    return mounts


def _start(filesystem: Filesystem, subvolume: str) -> Node:
    """Return the folder that is mounted."""
    if not isinstance(filesystem, Btrfs):
        return filesystem.root
    if not subvolume:
        return filesystem.default
    node = filesystem.root
    for name in subvolume.strip("/").split("/"):
        if name:
            below = node.lookup(name.encode("utf-8", "surrogateescape"))
            if below is None:
                raise NotUnderstood(f"btrfs without the subvolume {subvolume}")
            node = below
    return node
