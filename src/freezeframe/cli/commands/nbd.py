"""`freezeframe serve-nbd`."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import click

from freezeframe.app.nbd import served_by_nbd
from freezeframe.cli.options import Session, common
from freezeframe.core.errors import UsageError
from freezeframe.core.units import human_size


@click.command("serve-nbd")
@click.argument("image")
@click.option(
    "--socket", type=click.Path(path_type=Path), help="Unix socket (default: nbd.sock here)."
)
@click.option("--port", type=click.IntRange(1, 65535), help="A TCP port of this machine instead.")
@common
def command(session: Session, image: str, socket: Path | None, port: int | None) -> None:
    """Serve the disks, partitions and volumes of an image by NBD, read only, until Ctrl-C.

    For QEMU, nbdcopy, nbd-client and others. The export without a name is the first disk;
    the others are named as they are listed. TCP listens on 127.0.0.1 only: whoever may
    connect may read.
    """
    if socket is not None and port is not None:
        raise UsageError("a unix socket and a TCP port are two places", hint="name one")
    address = (
        ("127.0.0.1", port) if port is not None else str((socket or Path("nbd.sock")).absolute())
    )
    with served_by_nbd(session.settings.opening(), image, address, session.output) as served:
        session.output.finish()
        for name, size, uri in served:
            session.output.record("export", {"name": name, "bytes": size, "uri": uri})
            session.output.show(f"{uri}  {human_size(size)}")
        session.output.show("ends with Ctrl-C")
        # Ctrl-C and SIGTERM are how it ends.
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
