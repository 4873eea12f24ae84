"""Show images as folders, until somebody has seen enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.cache import CACHE_BYTES, BlobCache
from freezeframe.access.fuse import load_binding, verify_mount_point
from freezeframe.access.mount import MountedImages
from freezeframe.app.session import listed_images
from freezeframe.core.errors import FreezeframeError, NoSuchImage
from freezeframe.core.progress import Progress
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot

log = logging.getLogger("freezeframe.mount")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the user asked for."""

    folder: Path
    #: The image to show; empty for all of them.
    image: str = ""
    #: Filesystems as files; None: where one image is mounted by root.
    files: bool | None = None
    #: Let other users look, too.
    shared: bool = False
    cache: int = CACHE_BYTES
    threads: int | None = None


@contextmanager
def mounted(
    opening: Callable[[], Repository], options: MountOptions, progress: Progress
) -> Iterator[MountedImages]:
    """Mount images; unmount them in the end, whatever happens.

    Holds a shared lock meanwhile, so that nobody prunes what is shown. Raises `UsageError`
    for an unsuitable folder, `ToolMissing` without FUSE, before the repository is opened.
    """
    verify_mount_point(options.folder)
    load_binding()
    files = options.files
    if files is None:
        files = bool(options.image) and os.geteuid() == 0
    names = (options.image,) if options.image else ()
    with (
        listed_images(opening(), names, progress) as found,
        BlobCache(options.cache, threads=options.threads) as cache,
        MountedImages(
            _readable(found, progress, single=bool(options.image)),
            options.folder,
            cache,
            _teller(progress),
            single=bool(options.image),
            files=files,
            shared=options.shared,
        ) as shown,
    ):
        yield shown


def _teller(progress: Progress) -> Callable[[str], None]:
    """Say what must be read now on the terminal, or where there is none in the system's log."""

    def tell(text: str) -> None:
        log.info(text)
        progress.note(text)

    return tell


def _readable(
    found: list[tuple[Snapshot, ImageReader | FreezeframeError]],
    progress: Progress,
    *,
    single: bool,
) -> list[ImageReader]:
    """Return the images that can be read; of the others say why not."""
    images = []
    for snapshot, image in found:
        if isinstance(image, FreezeframeError):
            if single:
                raise image
            progress.note(f"image {snapshot.short_id} is not shown: {image.message}")
        else:
            images.append(image)
    if not images:
        raise NoSuchImage(
            "the repository holds no image yet", hint="make one: freezeframe backup SOURCE"
        )
    return images
