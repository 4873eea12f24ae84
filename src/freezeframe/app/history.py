"""One file through all images: where it is new, changed, gone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from freezeframe.access.files.base import Stat
from freezeframe.access.files.tree import NoSuchFile, Place
from freezeframe.app.files import View, Where, all_views, zeros
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository

#: The content of files up to this size is compared; of larger ones, size and times.
COMPARED = 64 * MIB


@dataclass(frozen=True, slots=True)
class Version:
    """A file in one image."""

    image: ImageReader | None
    #: `new`, `same`, `changed`, `gone`, `absent`, `unreadable`.
    state: str
    stat: Stat | None = None
    #: SHA-256 of the content, or of where a link leads; empty where it was not read.
    digest: str = ""
    reason: str = ""
    #: Of an image that cannot even be opened.
    image_id: str = ""


def history(
    repository: Repository,
    path: bytes,
    volume: str,
    names: Sequence[str],
    progress: Progress,
    *,
    content: bool = False,
) -> Iterator[Version]:
    """Follow a path through the images, oldest first, each machine's by themselves.

    What is called changed differs from the version before it in content; where that was not
    read (files over 64 MiB, unless `content`), in size or time of change.
    """
    # Each machine has a history of its own.
    last: dict[str, Version] = {}
    with all_views(repository, names, progress) as views:
        for short, view in views:
            if isinstance(view, FreezeframeError):
                yield Version(None, "unreadable", reason=view.message, image_id=short)
                continue
            host = view.image.manifest.host.name
            version = _version(view, path, volume, last.get(host), content=content)
            yield version
            if version.stat is not None or version.state == "gone":
                last[host] = version


def _version(
    view: View, path: bytes, volume: str, last: Version | None, *, content: bool
) -> Version:
    image, short = view.image, view.image.snapshot.short_id
    known = last is not None and last.stat is not None
    try:
        tree = replace(view, where=Where(short, volume, path)).tree()
        place = tree.resolve(path)
        stat = place.stat()
        digest = _digest(place, stat, content=content)
    except NoSuchFile:
        return Version(image, "gone" if known else "absent", image_id=short)
    except FreezeframeError as error:
        return Version(image, "unreadable", reason=error.message, image_id=short)
    state = "new"
    if known and last is not None and last.stat is not None:
        state = "same" if _same(last, stat, digest) else "changed"
    return Version(image, state, stat, digest, image_id=short)


def _same(last: Version, stat: Stat, digest: str) -> bool:
    before = last.stat
    if before is None or (before.mode, before.uid, before.gid) != (stat.mode, stat.uid, stat.gid):
        return False
    if digest and last.digest:
        return digest == last.digest
    return (before.size, before.mtime) == (stat.size, stat.mtime)


def _digest(place: Place, stat: Stat, *, content: bool) -> str:
    if stat.is_link:
        return hashlib.sha256(place.read_link()).hexdigest()
    if not stat.is_file or (stat.size > COMPARED and not content):
        return ""
    digest, reached = hashlib.sha256(), 0
    for offset, data in place.data():
        for part in zeros(offset - reached):
            digest.update(part)
        digest.update(data)
        reached = offset + len(data)
    for part in zeros(stat.size - reached):
        digest.update(part)
    return digest.hexdigest()
