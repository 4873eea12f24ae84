"""`freezeframe backup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from freezeframe.backup.hot.settings import HotSettings, IfBusy, memory_to_spare
from freezeframe.cli.options import Session, common
from freezeframe.cli.sizes import size_in_bytes
from freezeframe.core.units import human_size, human_time

if TYPE_CHECKING:
    from freezeframe.app.backup import BackupResult

UNREADABLE = 3


@click.command("backup")
@click.argument("sources", nargs=-1, metavar="[SOURCE]…")
@click.option("--offline", is_flag=True, help="Exclusive access: nothing else may use the disks.")
@click.option("--online", is_flag=True, help="While the machine works on, frozen for a moment.")
@click.option("--everything", is_flag=True, help="Take every byte, not only what is used. Offline.")
@click.option(
    "--check-all",
    is_flag=True,
    help="Decompress every block again before it counts, not one in sixteen.",
)
@click.option(
    "--max-pause",
    type=click.FloatRange(5, 5000),
    default=100,
    show_default=True,
    metavar="MS",
    help="Online: how long writers may have to wait, in milliseconds.",
)
@click.option(
    "--if-busy",
    type=click.Choice([each.value for each in IfBusy]),
    default=IfBusy.SLOW_WRITERS.value,
    show_default=True,
    help="Online: what to do where disks are written to faster than they can be copied.",
)
@click.option(
    "--residual-memory",
    callback=size_in_bytes,
    metavar="SIZE",
    help="Online: memory for what is read around the freeze (an eighth of what is free).",
)
@click.option(
    "--limit-read", callback=size_in_bytes, metavar="SIZE", help="Online: bytes a second, at most."
)
@click.option("--no-back-off", is_flag=True, help="Online: copy on, however slow the disk gets.")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads read and compress.")
@common
def command(
    session: Session,
    sources: tuple[str, ...],
    offline: bool,
    online: bool,
    everything: bool,
    check_all: bool,
    max_pause: float,
    if_busy: str,
    residual_memory: int,
    limit_read: int,
    no_back_off: bool,
    threads: int | None,
) -> None:
    """Image disks, partitions or disk image files: one image, one point in time.

    Without a source: every disk that holds a mounted filesystem of this machine, but for the
    repository's own and removable ones. Without a mode: disks in use are imaged online, others
    offline.

    Exit code 3: the image was made, but some of the source could not be read.
    """
    opening = session.settings.opening()
    # Loaded while the password is tried.
    from freezeframe.app.backup import backup_offline
    from freezeframe.app.choose import choose
    from freezeframe.app.online import backup_online
    from freezeframe.image.manifest import Mode
    from freezeframe.repo.seal_blob import DECOMPRESS_EVERY

    repository = opening()
    choice = choose(repository, sources, offline=offline or everything, online=online)
    for reason in choice.reasons:
        session.output.note(reason)
    every = 1 if check_all else DECOMPRESS_EVERY
    if choice.mode is Mode.OFFLINE:
        result = backup_offline(
            repository,
            choice.paths,
            session.output,
            everything=everything,
            decompress_every=every,
            threads=threads,
        )
    else:
        settings = HotSettings(
            max_pause=max_pause / 1000,
            residual_memory=residual_memory or memory_to_spare(),
            if_busy=IfBusy(if_busy),
            limit_read=limit_read or None,
            back_off=not no_back_off,
            threads=threads,
        )
        result = backup_online(
            repository, choice.paths, session.output, settings, decompress_every=every
        )
    session.output.finish()
    _report(session, result)
    if result.unreadable:
        click.get_current_context().exit(UNREADABLE)


def _report(session: Session, result: BackupResult) -> None:
    from freezeframe.cli.proof import hot_lines

    proof, output = result.manifest.proof, session.output
    output.record(
        "summary",
        {
            "image": result.snapshot.id,
            "mode": result.manifest.mode.value,
            "disks": [disk.name for disk in result.manifest.disks],
            "proof": msgspec.to_builtins(proof),
            "hot": msgspec.to_builtins(result.manifest.hot),
            "unreadable_bytes": result.unreadable,
        },
    )
    size = sum(disk.size for disk in result.manifest.disks)
    used = sum(disk.used for disk in result.manifest.disks)
    rate = proof.bytes_read / proof.seconds if proof.seconds else 0.0
    output.show(
        f"image {result.snapshot.short_id}: {human_size(size)} of disk, {human_size(used)} used\n"
        f"read {human_size(proof.bytes_read)} in {human_time(proof.seconds)}"
        f" ({human_size(rate)}/s); new: {human_size(proof.bytes_new)},"
        f" stored as {human_size(proof.bytes_stored)}"
    )
    if result.manifest.hot is not None:
        for line in hot_lines(result.manifest.hot):
            output.show(line)
    for disk in result.manifest.disks:
        for start, stop in disk.unreadable:
            output.show(f"unreadable, zeros in the image: {disk.name} bytes {start}-{stop - 1}")
