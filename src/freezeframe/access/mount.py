"""Images shown as folders: raw files of every part, and their filesystems as files."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from freezeframe.access.cache import BlobCache
from freezeframe.access.filesystems import Filesystems, Mounted, mountable
from freezeframe.access.fuse import FuseMount
from freezeframe.access.operations import TreeOperations
from freezeframe.access.parts import Level, Part, file_name, open_disks, parts_of
from freezeframe.access.private import PrivateLayer
from freezeframe.access.tree import Entry, File, Folder, Link, small_file
from freezeframe.block.base import Reader
from freezeframe.core.closing import Closing
from freezeframe.image.reader import ImageReader

#: Private layers, for the program itself.
_LAYERS = ".layers"


class ImageTree:
    """What is shown of one image.

    `<disk>/disk.img`, `<disk>/p1.img`, …, `volumes/<group>/<volume>.img`, `manifest.json`;
    and where filesystems are mounted the folders `<disk>/p1`, …, empty until they are.
    """

    def __init__(self, image: ImageReader, cache: BlobCache, *, files: bool = False) -> None:
        self.image = image
        self._cache = cache
        self._files = files
        self._lock = threading.Lock()
        self._parts: list[Part] | None = None
        self.layers: dict[str, PrivateLayer] = {}
        self.time = _seconds(image.manifest.created)

    @property
    def parts(self) -> list[Part]:
        """Its disks, partitions and volumes; opened when somebody looks."""
        with self._lock:
            if self._parts is None:
                self._parts = parts_of(open_disks(self.image, self._cache))
            return self._parts

    def root(self) -> Folder:
        """Return its folder."""
        return Folder(self._entries, self.time)

    def _entries(self) -> Mapping[str, Entry]:
        files: dict[str, Entry] = {}
        for part in self.parts:
            files[f"{raw_name(part)}.img"] = File(
                part.reader.size, self.time, _always(part.reader), taken=part.used
            )
            if self._files and mountable(part):
                files[folder_name(part)] = _empty(self.time)
                layer = PrivateLayer(part.reader)
                self.layers[part.name] = layer
                files[layer_name(part)] = File(layer.size, self.time, _always(layer), layer)
        manifest = msgspec.json.format(msgspec.json.encode(self.image.manifest), indent=1)
        files["manifest.json"] = small_file(manifest + b"\n", self.time)
        return _nested(files, self.time)


def raw_name(part: Part) -> str:
    """Return the path of a part's raw file in its image's folder, without `.img`."""
    if part.level is Level.VOLUME:
        return f"volumes/{part.name}"
    return f"{part.name}/disk" if part.level is Level.DISK else part.name


def folder_name(part: Part) -> str:
    """Return the path at which a part's filesystem is mounted."""
    return f"{part.name}/files" if part.level is Level.DISK else raw_name(part)


def layer_name(part: Part) -> str:
    """Return the path of the private layer over a part."""
    return f"{_LAYERS}/{part.name.replace('/', '-')}"


class MountedImages(Closing):
    """Images mounted at a folder, one or all; close it to unmount.

    Filesystems are shown as files where `files` is set, of a single image only. `tell` gets
    lines to be read: damage that somebody's read has met, filesystems that cannot be mounted.
    """

    def __init__(
        self,
        images: Sequence[ImageReader],
        folder: Path,
        cache: BlobCache,
        tell: Callable[[str], None],
        *,
        single: bool,
        files: bool = False,
        shared: bool = False,
    ) -> None:
        self.folder = folder
        self._filesystems = Filesystems()
        trees = [ImageTree(image, cache, files=files) for image in images]
        root = trees[0].root() if single else tree_of_all(trees)
        with ExitStack() as stack:
            stack.callback(self._drop_layers, trees)
            operations = TreeOperations(root, tell, folder=folder, shared=shared)
            self.fuse = stack.enter_context(FuseMount(operations, folder, shared=shared))
            stack.callback(self._unmount_filesystems, tell)
            if files and single:
                for part in trees[0].parts:
                    if mountable(part):
                        self._filesystems.mount(
                            part, folder / layer_name(part), folder / folder_name(part), tell
                        )
            self._stack = stack.pop_all()

    @property
    def filesystems(self) -> Sequence[Mounted]:
        """What is shown as files."""
        return self._filesystems.mounted

    def wait(self) -> None:
        """Wait until somebody unmounts it."""
        while not self.fuse.wait(3600):
            pass

    def close(self) -> None:
        """Unmount everything."""
        self._stack.close()

    def _unmount_filesystems(self, tell: Callable[[str], None]) -> None:
        for each in self._filesystems.unmount():
            tell(f"{each.folder} was in use: it is gone from there, and fails for who is in it")

    def _drop_layers(self, trees: Sequence[ImageTree]) -> None:
        for tree in trees:
            for layer in tree.layers.values():
                layer.close()


def tree_of_all(trees: Sequence[ImageTree]) -> Folder:
    """Return `<host>/<time>/…` of many images, oldest first, and `<host>/latest`."""
    hosts: dict[str, dict[str, Entry]] = {}
    newest: dict[str, str] = {}
    for tree in trees:
        manifest = tree.image.manifest
        host = file_name(manifest.host.name)
        images = hosts.setdefault(host, {})
        name = f"{manifest.created:%Y-%m-%dT%H-%M-%S}"
        if name in images:
            name = f"{name}-{tree.image.snapshot.short_id}"
        images[name] = tree.root()
        newest[host] = name
    time = max((tree.time for tree in trees), default=0.0)
    for host, name in newest.items():
        hosts[host]["latest"] = Link(name, time)
    folders = {host: _folder(images, time) for host, images in hosts.items()}
    return _folder(folders, time)


def _nested(files: Mapping[str, Entry], time: float) -> Mapping[str, Entry]:
    """Return folders made of paths with slashes."""
    entries: dict[str, Entry] = {}
    below: dict[str, dict[str, Entry]] = {}
    for path, entry in files.items():
        head, slash, rest = path.partition("/")
        if slash:
            below.setdefault(head, {})[rest] = entry
        else:
            entries[head] = entry
    for name, inner in below.items():
        entries[name] = _folder(_nested(inner, time), time, private=name == _LAYERS)
    return entries


def _folder(entries: Mapping[str, Entry], time: float, *, private: bool = False) -> Folder:
    return Folder(lambda: entries, time, private=private)


def _empty(time: float) -> Folder:
    return _folder({}, time)


def _always(reader: Reader) -> Callable[[], Reader]:
    return lambda: reader


def _seconds(moment: dt.datetime) -> float:
    return moment.timestamp()
