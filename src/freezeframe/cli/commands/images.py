"""`freezeframe images` and `freezeframe show`."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec
from rich.table import Table

from freezeframe.app.drills import Drill, DrillEntry, all_drills, drills_of
from freezeframe.app.session import listed_images, opened_images
from freezeframe.cli.options import Session, common
from freezeframe.cli.picture import disk_picture
from freezeframe.cli.proof import (
    consistency_lines,
    detail_lines,
    drill_line,
    hot_lines,
    shadow_detail_lines,
    shadow_lines,
)
from freezeframe.cli.terminal import plain
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import CHUNK, human_size, human_time
from freezeframe.image import chunklist
from freezeframe.image.reader import ImageReader


@click.command("images")
@common
def images(session: Session) -> None:
    """List the images of a repository, oldest first."""
    repository = session.settings.repository()
    table = Table(box=None, pad_edge=False)
    drills = all_drills(repository)
    headings = ["image", "time", "host", "mode", "size", "used", "disks"]
    # A column only for those who hold drills.
    headings += ["last drill"] if drills else []
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("size", "used") else "left")
    with listed_images(repository, progress=session.output) as found:
        for snapshot, image in found:
            if isinstance(image, FreezeframeError):
                session.output.record("damaged", {"id": snapshot.id, "text": image.message})
                table.add_row(snapshot.short_id, "", "", "damaged", "", "", plain(image.message))
                continue
            manifest = image.manifest
            size = sum(disk.size for disk in manifest.disks)
            used = sum(disk.used for disk in manifest.disks)
            held = drills.get(snapshot.tree, [])
            fields = [{"time": drill.time, "passed": drill.passed} for drill in held]
            session.output.record("image", {**_fields(image), "drills": fields})
            table.add_row(
                image.snapshot.short_id,
                f"{manifest.created:%Y-%m-%d %H:%M:%S}",
                plain(manifest.host.name),
                manifest.mode.value,
                human_size(size),
                human_size(used),
                plain(", ".join(disk.path for disk in manifest.disks)),
                *([_last(held)] if drills else []),
            )
    if table.row_count:
        session.output.show(table)
    else:
        session.output.show("no images yet")


def _last(drills: Sequence[DrillEntry]) -> str:
    if not drills:
        return ""
    return f"{'came up' if drills[-1].passed else 'failed'} {drills[-1].time:%Y-%m-%d}"


@click.command("show")
@click.argument("image")
@common
def show(session: Session, image: str) -> None:
    """Show one image: its disks drawn, what each region is, and how it was taken."""
    repository = session.settings.repository()
    with opened_images(repository, (image,), session.output) as (found,):
        drills = drills_of(found)
        known = [msgspec.to_builtins(drill) for drill in drills if isinstance(drill, Drill)]
        session.output.record("image", {**_fields(found), "drills": known})
        manifest, output = found.manifest, session.output
        proof = manifest.proof
        output.show(
            plain(
                f"image {found.snapshot.id}\n{manifest.created:%Y-%m-%d %H:%M:%S %z}"
                f" · {manifest.mode.value} · {manifest.host.name}"
                f" · {manifest.host.system} · {manifest.program}"
            )
        )
        for disk in manifest.disks:
            output.show("")
            output.show(disk_picture(disk))
            for start, stop in disk.unreadable:
                output.show(f"! bytes {start}-{stop - 1} could not be read and are zeros")
            if fine := chunklist.decode(disk.fine).total:
                output.show(
                    f"· {fine} of {-(-disk.size // CHUNK)} chunks of 1 MiB changed between images"
                    " and are stored in pieces of 64 KiB"
                )
            for line in (*consistency_lines(manifest, disk), *disk.notes):
                output.show(plain(f"· {line}"))
            for region in disk.regions:
                for note in region.notes:
                    output.show(plain(f"· {region.role} {region.number or ''}: {note}"))
        output.show("")
        output.show(
            f"proof: read {human_size(proof.bytes_read)} in {human_time(proof.seconds)};"
            f" {human_size(proof.bytes_new)} were new, stored as {human_size(proof.bytes_stored)};"
            f" unreadable: {human_size(proof.unreadable_bytes)}"
        )
        for drill in drills:
            output.show(plain(drill_line(drill)))
        if manifest.hot is not None:
            for line in hot_lines(manifest.hot):
                output.show(line)
            for line in detail_lines(manifest.hot):
                output.show(plain(f"· {line}"))
        if manifest.shadow is not None:
            for line in shadow_lines(manifest.shadow):
                output.show(line)
            for line in shadow_detail_lines(manifest.shadow):
                output.show(plain(f"· {line}"))


def _fields(image: ImageReader) -> dict[str, object]:
    manifest: object = msgspec.to_builtins(image.manifest)
    return {"id": image.snapshot.id, "tree": image.snapshot.tree, "manifest": manifest}
