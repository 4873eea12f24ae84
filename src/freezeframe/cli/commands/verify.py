"""`freezeframe verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from freezeframe.app.verify import verify_device, verify_named
from freezeframe.cli.options import Session, common
from freezeframe.cli.terminal import plain
from freezeframe.core.units import human_size
from freezeframe.restore.verify import Damage

_SHOWN = 40


@click.command("verify")
@click.argument("images", nargs=-1, metavar="[IMAGE]…")
@click.option("--against", metavar="DEVICE", help="Compare with what a device or file holds.")
@click.option("--disk", default="", help="With --against: which disk of the image.")
@click.option("--partition", type=click.IntRange(1), help="With --against: only this partition.")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads work.")
@common
def command(
    session: Session,
    images: tuple[str, ...],
    against: str | None,
    disk: str,
    partition: int | None,
    threads: int | None,
) -> None:
    """Read images back through decryption and hashes; all of them where none is named.

    With --against, compare the used part of an image with a device, and name the regions
    that differ.
    """
    repository = session.settings.repository()
    if against is None:
        damage = verify_named(repository, images, session.output, threads=threads)
        good = "everything reads back as it was stored"
    else:
        damage = verify_device(
            repository,
            images,
            against,
            session.output,
            disk=disk,
            partition=partition,
            threads=threads,
        )
        good = f"all used bytes are the same on {against}"
    session.output.finish()
    _report(session, damage, good)
    if damage:
        click.get_current_context().exit(1)


def _report(session: Session, damage: Sequence[Damage], good: str) -> None:
    output = session.output
    for item in damage:
        output.record("damage", asdict(item))
    output.record("summary", {"ok": not damage, "damaged_ranges": len(damage)})
    if not damage:
        output.show(good)
    for item in damage[:_SHOWN]:
        what = f"image {item.image}, disk {item.disk}, {item.where}: "
        if item.stop > item.start:
            size = human_size(item.stop - item.start)
            what += f"bytes {item.start}-{item.stop - 1} ({size}): "
        output.show(plain(what + item.reason))
    if len(damage) > _SHOWN:
        output.show(f"… and {len(damage) - _SHOWN} more ranges (--json lists them all)")
