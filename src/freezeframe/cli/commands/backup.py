"""`freezeframe backup`."""

from __future__ import annotations

import click
import msgspec

from freezeframe.app.backup import BackupResult, backup_offline
from freezeframe.cli.options import Session, common
from freezeframe.core.errors import UsageError
from freezeframe.core.units import human_size, human_time
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY

UNREADABLE = 3


@click.command("backup")
@click.argument("sources", nargs=-1, metavar="[SOURCE]…")
@click.option("--offline", is_flag=True, help="Exclusive access: nothing else may use the disks.")
@click.option("--online", is_flag=True, help="While the machine works on (not in this version).")
@click.option("--everything", is_flag=True, help="Take every byte, not only what filesystems use.")
@click.option(
    "--check-all",
    is_flag=True,
    help="Decompress every block again before it counts, not one in sixteen.",
)
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

    Exit code 3: the image was made, but some of the source could not be read.
    """
    if online:
        raise UsageError(
            "online images are not in this version",
            hint="unmount the disk, or start a rescue system, and use --offline",
        )
    if offline is False and sources:
        session.output.note("mode: offline (the only one in this version)")
    repository = session.settings.repository()
    result = backup_offline(
        repository,
        sources,
        session.output,
        everything=everything,
        decompress_every=1 if check_all else DECOMPRESS_EVERY,
        threads=threads,
    )
    session.output.finish()
    _report(session, result)
    if result.unreadable:
        click.get_current_context().exit(UNREADABLE)


def _report(session: Session, result: BackupResult) -> None:
    proof, output = result.manifest.proof, session.output
    output.record(
        "summary",
        {
            "image": result.snapshot.id,
            "disks": [disk.name for disk in result.manifest.disks],
            "proof": msgspec.to_builtins(proof),
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
    for disk in result.manifest.disks:
        for start, stop in disk.unreadable:
            output.show(f"unreadable, zeros in the image: {disk.name} bytes {start}-{stop - 1}")
