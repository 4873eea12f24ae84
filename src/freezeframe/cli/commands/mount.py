"""`freezeframe mount`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from freezeframe.access.cache import CACHE_BYTES
from freezeframe.access.mount import MountedImages
from freezeframe.app.mount import MountOptions, mounted
from freezeframe.cli.options import Session, common
from freezeframe.cli.sizes import size_in_bytes
from freezeframe.core.errors import UsageError
from freezeframe.system.background import Backgrounded, fork_until_ready


@click.command("mount")
@click.argument("words", nargs=-1, required=True, metavar="[IMAGE] DIR")
@click.option(
    "--files/--no-files",
    default=None,
    help="Mount the filesystems inside, too (default: root does, of one image).",
)
@click.option("--allow-other", is_flag=True, help="Let other users look, too.")
@click.option("--background", is_flag=True, help="Return once it is mounted.")
@click.option("--cache", callback=size_in_bytes, help="Memory for opened data (default: 128M).")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads read ahead.")
@common
def command(
    session: Session,
    words: tuple[str, ...],
    files: bool | None,
    allow_other: bool,
    background: bool,
    cache: int,
    threads: int | None,
) -> None:
    """Show an image, or all of them, as read-only files in a folder.

    Each disk, partition and logical volume is a raw file (DIR/<disk>/disk.img, p1.img), and
    root sees the filesystems as folders beside them (DIR/<disk>/p1). Without IMAGE there is
    DIR/<host>/<time>/… for each image. Ends with Ctrl-C, or when it is unmounted:
    `umount -R DIR`.
    """
    if len(words) > 2:
        raise UsageError("mount takes an image and a folder", hint="freezeframe mount IMAGE DIR")
    options = MountOptions(
        folder=Path(words[-1]).absolute(),
        image=words[0] if len(words) == 2 else "",
        files=files,
        shared=allow_other,
        cache=cache or CACHE_BYTES,
        threads=threads,
    )
    try:
        ready = fork_until_ready() if background else None
    except Backgrounded:
        return
    with mounted(session.settings.opening(), options, session.output) as shown:
        session.output.finish()
        _tell(session, options, shown)
        if ready is not None:
            ready()
        # Ctrl-C and SIGTERM are how it ends.
        with contextlib.suppress(KeyboardInterrupt):
            shown.wait()
    session.output.show(f"unmounted {options.folder}")


def _tell(session: Session, options: MountOptions, shown: MountedImages) -> None:
    filesystems = [
        {"name": each.name, "kind": each.kind, "folder": str(each.folder)}
        for each in shown.filesystems
    ]
    session.output.record(
        "mounted",
        {"folder": str(options.folder), "image": options.image, "filesystems": filesystems},
    )
    what = f"image {options.image}" if options.image else "all images"
    session.output.show(f"{what} at {options.folder}, read-only")
    for each in shown.filesystems:
        session.output.show(f"  {each.folder}  {each.kind}")
    way = "umount -R" if os.geteuid() == 0 else "fusermount3 -u"
    session.output.show(f"ends with Ctrl-C, or: {way} {options.folder}")
