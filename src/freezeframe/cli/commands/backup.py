"""`freezeframe backup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from freezeframe.cli.hot_options import hot_options, hot_settings
from freezeframe.cli.options import Session, common
from freezeframe.cli.shadow_options import refuse_offline, shadow_options, shadow_settings
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
@hot_options
@shadow_options
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads read and compress.")
@common
def command(
    session: Session,
    sources: tuple[str, ...],
    offline: bool,
    online: bool,
    everything: bool,
    check_all: bool,
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
        refuse_offline()
        result = backup_offline(
            repository,
            choice.paths,
            session.output,
            everything=everything,
            decompress_every=every,
            threads=threads,
        )
    else:
        shadow = shadow_settings()
        result = backup_online(
            repository,
            choice.paths,
            session.output,
            hot_settings(shadow.limits.commit, threads),
            shadow=shadow,
            decompress_every=every,
        )
    session.output.finish()
    _report(session, result)
    if result.unreadable:
        click.get_current_context().exit(UNREADABLE)


def _report(session: Session, result: BackupResult) -> None:
    from freezeframe.cli.proof import hot_lines, shadow_lines

    proof, output = result.manifest.proof, session.output
    output.record(
        "summary",
        {
            "image": result.snapshot.id,
            "mode": result.manifest.mode.value,
            "disks": [disk.name for disk in result.manifest.disks],
            "proof": msgspec.to_builtins(proof),
            "hot": msgspec.to_builtins(result.manifest.hot),
            "shadow": msgspec.to_builtins(result.manifest.shadow),
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
    if result.manifest.shadow is not None:
        for line in shadow_lines(result.manifest.shadow):
            output.show(line)
    for disk in result.manifest.disks:
        for start, stop in disk.unreadable:
            output.show(f"unreadable, zeros in the image: {disk.name} bytes {start}-{stop - 1}")
