"""`freezeframe export` and `freezeframe import`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from freezeframe.app.attach import PartOptions
from freezeframe.app.export import FORMATS, export_part
from freezeframe.app.importing import import_images
from freezeframe.cli.options import Session, common
from freezeframe.core.units import human_size, human_time


@click.command("export")
@click.argument("image")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="Else by FILE's name.")
@click.option("--disk", default="", help="Which disk of the image, where it holds several.")
@click.option("--partition", type=click.IntRange(1), help="Only this partition of the disk.")
@click.option("--volume", default="", metavar="GROUP/NAME", help="Only this logical volume.")
@click.option("--compress", is_flag=True, help="Compress a qcow2 file (zstd).")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads read ahead.")
@common
def export(
    session: Session,
    image: str,
    file: Path,
    form: str | None,
    disk: str,
    partition: int | None,
    volume: str,
    compress: bool,
    threads: int | None,
) -> None:
    """Write a disk of an image to a raw (sparse), qcow2, VMDK or VHDX file."""
    options = PartOptions(image, disk, partition, volume, threads=threads)
    begun = time.monotonic()
    done = export_part(
        session.settings.opening(),
        options,
        file,
        form or "",
        session.output,
        compress=compress,
    )
    seconds = time.monotonic() - begun
    session.output.finish()
    session.output.record(
        "summary",
        {
            "part": done.part,
            "target": str(file),
            "bytes": done.size,
            "stored": done.stored,
            "seconds": round(seconds, 3),
        },
    )
    session.output.show(
        f"exported {done.part} ({human_size(done.size)}) to {file}"
        f" ({human_size(done.stored)}) in {human_time(seconds)}"
    )


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="", help="The machine it is of (default: the file's name).")
@click.option("--format", "form", default="", help="raw, qcow2, … (default: recognised).")
@click.option("--work", type=click.Path(path_type=Path), help="Where Clonezilla is unpacked.")
@click.option("--threads", type=click.IntRange(1, 256), help="How many threads work.")
@common
def import_command(
    session: Session,
    files: tuple[Path, ...],
    host: str,
    form: str,
    work: Path | None,
    threads: int | None,
) -> None:
    """Make an image of what other programs made, each file a disk of it.

    Takes raw, qcow2, VMDK, VHDX, VHD and VDI files, images of partclone, and folders of
    Clonezilla.
    """
    begun = time.monotonic()
    result = import_images(
        session.settings.repository(),
        files,
        session.output,
        host=host,
        form=form,
        work=work,
        threads=threads,
    )
    seconds = time.monotonic() - begun
    session.output.finish()
    origin = result.manifest.origin
    session.output.record(
        "summary",
        {
            "image": result.snapshot.id,
            "format": origin.format if origin else "",
            "disks": [disk.path for disk in result.manifest.disks],
            "seconds": round(seconds, 3),
        },
    )
    session.output.show(
        f"image {result.snapshot.short_id}: {', '.join(map(str, files))}"
        f" ({origin.format if origin else ''}) in {human_time(seconds)}"
    )
