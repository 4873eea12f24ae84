"""Attach parts of images as read-only block devices, and detach them."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from freezeframe.access.attach import Attachment, Served, attached_part, attachments, clear_up
from freezeframe.access.cache import CACHE_BYTES, BlobCache
from freezeframe.access.fuse import load_binding
from freezeframe.access.parts import Part, choose_part
from freezeframe.app.session import opened_images
from freezeframe.core.errors import FreezeframeError, SourceBusy, UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.system import sysfs
from freezeframe.system.holders import uses_of

log = logging.getLogger("freezeframe.attach")

#: Seconds a process has to detach and end.
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class PartOptions:
    """Which part of which image, and what reading it may take."""

    image: str
    disk: str = ""
    partition: int | None = None
    volume: str = ""
    cache: int = CACHE_BYTES
    threads: int | None = None


@contextmanager
def chosen_part(
    repository: Repository, options: PartOptions, progress: Progress
) -> Iterator[tuple[ImageReader, Part]]:
    """Open the image and the part of it that was asked for. Raises `UsageError`."""
    with (
        opened_images(repository, (options.image,), progress) as (image,),
        BlobCache(options.cache, threads=options.threads) as cache,
    ):
        part = choose_part(
            image,
            cache,
            disk=options.disk,
            partition=options.partition,
            volume=options.volume,
        )
        yield image, part


@contextmanager
def attached_image(
    opening: Callable[[], Repository], options: PartOptions, progress: Progress
) -> Iterator[Served]:
    """Attach a part of an image; detach it in the end, whatever happens.

    Raises `UsageError` for a part that is not there, `ToolMissing` without FUSE,
    `FreezeframeError` for who is not root.
    """
    if os.geteuid():
        raise FreezeframeError("only root may attach block devices", hint="sudo freezeframe …")
    load_binding()

    def tell(text: str) -> None:
        log.info(text)
        progress.note(text)

    with (
        chosen_part(opening(), options, progress) as (image, part),
        attached_part(image.snapshot.short_id, part, tell) as served,
    ):
        yield served


def detach(device: str) -> Attachment:
    """Detach a device and end the process that serves it; return what it was.

    What is left of one that was killed is cleared up. Raises `UsageError` for a device that
    is not ours, `SourceBusy` where it is in use.
    """
    found = next((each for each in attachments() if _same(each.device, device)), None)
    if found is None:
        raise UsageError(
            f"{device} was not attached by freezeframe", hint="list what is: freezeframe attach"
        )
    if holders := tuple(use.text for use in uses_of(found.device)):
        hint = next((use.remedy for use in uses_of(found.device) if use.remedy), "")
        raise SourceBusy(found.device, holders, hint=hint)
    if found.alive():
        os.kill(found.pid, signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        while found.alive() and time.monotonic() < until:
            time.sleep(0.05)
        if found.alive():
            raise FreezeframeError(
                f"pid {found.pid}, which serves {found.device}, does not end",
                hint=f"see what it waits for; kill {found.pid} as a last resort",
            )
    clear_up(found)
    return found


def _same(one: str, other: str) -> bool:
    first, second = sysfs.node_of(one), sysfs.node_of(other)
    if first is None or second is None:
        return one == other
    return first.number == second.whole.number
