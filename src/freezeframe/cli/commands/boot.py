"""`freezeframe boot`."""

from __future__ import annotations

import click
import msgspec

from freezeframe.app.boot import (
    BUSES,
    BootOptions,
    PreparedBoot,
    check_boot,
    keep_drill,
    prepared_boot,
    run_boot,
)
from freezeframe.app.session import opened_images
from freezeframe.cli.options import Session, common
from freezeframe.cli.sizes import size_in_bytes
from freezeframe.cli.terminal import plain
from freezeframe.core.errors import UsageError
from freezeframe.core.units import human_time
from freezeframe.image.reader import ImageReader

#: Lines of a console that are shown where a machine did not come up.
_TAIL = 15


@click.command("boot")
@click.argument("image")
@click.option("--check", is_flag=True, help="No screen: see whether it comes up, keep the result.")
@click.option("--timeout", default=600.0, metavar="SECONDS", help="Of --check, at most.")
@click.option("--keep", default="", metavar="FILE", help="Keep what it writes, or go on with it.")
@click.option("--disk", "disks", multiple=True, help="Only this disk; the first is started from.")
@click.option("--firmware", type=click.Choice(["auto", "bios", "uefi"]), default="auto")
@click.option("--accelerator", type=click.Choice(["auto", "kvm", "emulation"]), default="auto")
@click.option("--bus", type=click.Choice(["auto", *BUSES]), default="auto", help="Of its disks.")
@click.option("--memory", callback=size_in_bytes, help="Of the machine, e.g. 4G.")
@click.option("--cpus", type=click.IntRange(1, 64), default=2, help="Processors it has.")
@click.option("--network", is_flag=True, help="Let it into the network, behind this machine.")
@click.option("--screen", type=click.Choice(["auto", "window", "terminal"]), default="auto")
@common
def command(
    session: Session,
    image: str,
    check: bool,
    timeout: float,
    keep: str,
    disks: tuple[str, ...],
    firmware: str,
    accelerator: str,
    bus: str,
    memory: int,
    cpus: int,
    network: bool,
    screen: str,
) -> None:
    """Start the machine of an image in QEMU, straight from the repository.

    The image is never written: what the machine writes is thrown away in the end, or kept in
    a file of its own. With --check, a restore drill: nobody has to look, the exit code tells
    whether it came up, and the result is kept in the repository beside the image.
    """
    options = BootOptions(
        disks=disks,
        firmware=firmware,
        accelerator=accelerator,
        bus=bus,
        memory=memory,
        cpus=cpus,
        network=network,
        keep=keep,
        screen=screen,
        timeout=timeout,
    )
    if session.settings.json and not check:
        raise UsageError("a machine with a screen has nothing to say in --json", hint="add --check")
    output = session.output
    repository = session.settings.repository()
    with (
        opened_images(repository, (image,), output) as (found,),
        prepared_boot(found, options) as prepared,
    ):
        steps = prepared.describe()
        output.record("plan", {"image": found.snapshot.id, "steps": steps})
        if not session.settings.quiet:
            output.show(plain("\n".join(f"  {step}" for step in steps)))
        if check:
            _check(session, found, prepared, options)
        else:
            seconds = run_boot(prepared, options)
            output.show(f"the machine ran for {human_time(seconds)}")


def _check(
    session: Session, image: ImageReader, prepared: PreparedBoot, options: BootOptions
) -> None:
    output = session.output
    checked = check_boot(image, prepared, options, output)
    kept = keep_drill(image, checked, output)
    output.finish()
    drill = checked.drill
    fields: dict[str, object] = msgspec.to_builtins(drill)
    output.record("summary", {**fields, "drill": kept})
    after = human_time(drill.seconds)
    if drill.passed:
        output.show(plain(f"image {image.snapshot.short_id} came up: {drill.sign}, after {after}"))
        return
    tail = checked.console.rstrip().splitlines()[-_TAIL:]
    output.show(plain("\n".join(f"  | {line}" for line in tail)))
    output.show(plain(f"image {image.snapshot.short_id} did not come up: {drill.reason} ({after})"))
    click.get_current_context().exit(1)
