"""Start the machine of an image, from the repository: to use it, or to see whether it would."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

import freezeframe
from freezeframe.access.boot.accelerator import KVM, choose_accelerator, emulator
from freezeframe.access.boot.firmware import Chosen, Firmware, choose_firmware
from freezeframe.access.boot.machine import (
    BUSES,
    Machine,
    MachineDisk,
    command,
    guess_bus,
    nbd_base,
)
from freezeframe.access.boot.signs import Outcome, watch, watch_options
from freezeframe.access.cache import BlobCache
from freezeframe.access.disk import ImageDisk
from freezeframe.access.nbd import NbdServer
from freezeframe.core.errors import FreezeframeError, TargetUnsuitable, ToolFailed, UsageError
from freezeframe.core.progress import Progress
from freezeframe.core.units import GIB, MIB
from freezeframe.image.drill import Drill, save_drill
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import ImageReader
from freezeframe.system.memory import available_memory
from freezeframe.system.run import run, search_path, which

#: Memory of a machine, if nobody says otherwise: enough for any system without a desktop.
_MEMORY = 2 * GIB
#: Opened blobs kept, in bytes: a machine that starts reads the same places again.
_CACHE = 256 * MIB
#: What takes a machine's writes may become as large as its disks: not a place in memory.
_SCRATCH = "/var/tmp"


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What the user asked for."""

    #: Only these disks, the one to start from first; empty: all of them.
    disks: tuple[str, ...] = ()
    #: `auto`, `bios` or `uefi`; `auto`, `kvm` or `emulation`; `auto` or a bus.
    firmware: str = "auto"
    accelerator: str = "auto"
    bus: str = "auto"
    #: In bytes; 0: 2 GiB, or half of what is free.
    memory: int = 0
    cpus: int = 2
    network: bool = False
    #: The file that keeps what the machine writes, and continues from it; empty: thrown away.
    keep: str = ""
    #: `auto`, `window` or `terminal`.
    screen: str = "auto"
    #: Of a check, in seconds.
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class PreparedBoot:
    """What is about to be started."""

    machine: Machine
    qemu: str
    firmware_why: str

    def describe(self) -> list[str]:
        """Say in sentences what is started."""
        machine = self.machine
        lines = [
            f"firmware: {machine.firmware.value} ({self.firmware_why})",
            f"run by {machine.accelerator.name} ({machine.accelerator.why})",
        ]
        for disk in machine.disks:
            what = "thrown away" if disk.fleeting else f"kept in {disk.overlay}"
            lines.append(f"disk {disk.record.name} ({disk.bus}): what it writes is {what}")
        return lines


@contextmanager
def prepared_boot(image: ImageReader, options: BootOptions) -> Iterator[PreparedBoot]:
    """Serve the image's disks to QEMU, and decide what machine is started.

    Raises `ToolMissing` where QEMU or the firmware is, `UsageError` for what makes no sense.
    """
    qemu = emulator()
    records = _records(image, options.disks)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(_private_folder()))
        cache = stack.enter_context(BlobCache(_CACHE))
        disks = [stack.enter_context(ImageDisk(image, record, cache=cache)) for record in records]
        accelerator = choose_accelerator(qemu, options.accelerator)
        chosen = _firmware(image, records[0], disks[0], options.firmware)
        exports = {_export(image, disk.record): disk for disk in disks}
        socket = folder / "nbd"
        stack.enter_context(NbdServer(exports, str(socket)))
        machine = Machine(
            disks=tuple(
                MachineDisk(
                    record=record,
                    bus=guess_bus(record) if options.bus == "auto" else options.bus,
                    overlay=_overlay(folder, options.keep, export, record, number, socket),
                    base=nbd_base(socket, export),
                    fleeting=not options.keep,
                )
                for number, (record, export) in enumerate(zip(records, exports, strict=True))
            ),
            firmware=chosen.firmware,
            accelerator=accelerator,
            memory=options.memory or min(_MEMORY, max(available_memory() // 2, 256 * MIB)),
            cpus=options.cpus,
            network=options.network,
        )
        yield PreparedBoot(machine, qemu, chosen.why)


@contextmanager
def _private_folder() -> Iterator[str]:
    """Give a folder for sockets and throw-away files; nobody else may look into it."""
    with tempfile.TemporaryDirectory(prefix="freezeframe-boot-", dir=_SCRATCH) as folder:
        yield folder


def _records(image: ImageReader, names: tuple[str, ...]) -> list[DiskRecord]:
    if not names:
        return list(image.manifest.disks)
    found = []
    for name in names:
        record = image.manifest.disk(name)
        if record is None:
            known = ", ".join(disk.name for disk in image.manifest.disks)
            raise UsageError(f"the image has no disk {name}", hint=f"it has: {known}")
        found.append(record)
    return found


def _firmware(image: ImageReader, record: DiskRecord, disk: ImageDisk, wanted: str) -> Chosen:
    if wanted != "auto":
        return Chosen(Firmware(wanted), "as was asked for")
    return choose_firmware(image.manifest, record, disk.read_at(0, min(512, disk.size)))


# -- what the machine writes --------------------------------------------------------------


def _export(image: ImageReader, record: DiskRecord) -> str:
    """Return the name of a disk's export: of this very content, so that kept writes fit it."""
    return f"{image.snapshot.tree[:16]}-{record.name}"


def _overlay(
    folder: Path, keep: str, export: str, record: DiskRecord, number: int, socket: Path
) -> Path:
    """Return the file that takes a disk's writes, made if it is not there yet.

    Its header names the image's export as what lies beneath, so that nobody takes the file for
    a whole disk. Raises `TargetUnsuitable` for a file that belongs to something else.
    """
    path = folder / f"writes{number}"
    if keep:
        path = Path(keep if not number else f"{keep}.{record.name}").absolute()
        if path.exists():
            _check_kept(path, export)
            return path
    _new_overlay(path, f"nbd+unix:///{export}?socket={socket}", record.size)
    return path


def _new_overlay(path: Path, beneath: str, size: int) -> None:
    # 4 KiB of a cluster at a time: a machine's writes are small, and what lies around them would
    # have to be read from the image each time.
    settings = "extended_l2=on,cluster_size=128k"
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", settings, "-u", "-F", "raw",
         "-b", beneath, str(path), str(size)],
        purpose="to keep what the machine writes",
    )  # fmt: skip


def _beneath(path: Path) -> str:
    """Return what an overlay says lies beneath it; nothing where it is none."""
    try:
        told = run(["qemu-img", "info", "--output=json", str(path)], purpose="to look at it")
        found = msgspec.json.decode(told.stdout, type=dict[str, object]).get("backing-filename")
    except (FreezeframeError, msgspec.MsgspecError):
        return ""
    return found if isinstance(found, str) else ""


def _check_kept(path: Path, export: str) -> None:
    if f"/{export}?" not in _beneath(path):
        raise TargetUnsuitable(
            f"{path} does not hold what a machine of this image wrote",
            hint="name a file that does not exist yet, or start the image it belongs to",
        )


# -- a restore drill ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a drill, and what the machine wrote to its consoles."""

    drill: Drill
    console: str


def check_boot(
    image: ImageReader, prepared: PreparedBoot, options: BootOptions, progress: Progress
) -> Checked:
    """Start the machine without a screen and wait for a sign that it is up.

    A machine that does not come up under KVM gets a second chance by emulation: so a failed
    drill is the image's fault, not that of the machine it was tried on.
    """
    started = dt.datetime.now().astimezone()
    progress.start("start the machine", 0)
    outcome = _run_watched(prepared, options.timeout)
    machine = prepared.machine
    if not outcome.sign and machine.accelerator.name == KVM and options.accelerator == "auto":
        progress.note(f"under KVM: {outcome.reason}; once more by emulation")
        slow = choose_accelerator(prepared.qemu, "emulation")
        machine = replace(machine, accelerator=slow)
        _forget_writes(machine)
        outcome = _run_watched(replace(prepared, machine=machine), options.timeout)
    drill = Drill(
        image=image.snapshot.id,
        tree=image.snapshot.tree,
        started=started,
        passed=bool(outcome.sign),
        sign=outcome.sign,
        reason=outcome.reason,
        seconds=round(outcome.seconds, 1),
        firmware=machine.firmware.value,
        accelerator=machine.accelerator.name,
        host=platform.node(),
        program=f"freezeframe {freezeframe.__version__}",
    )
    return Checked(drill, outcome.text)


def _forget_writes(machine: Machine) -> None:
    """Empty the overlays of a first try; those that are kept stay as they are."""
    for disk in machine.disks:
        if disk.fleeting:
            beneath = _beneath(disk.overlay)
            disk.overlay.unlink()
            _new_overlay(disk.overlay, beneath, disk.record.size)


def _run_watched(prepared: PreparedBoot, timeout: float) -> Outcome:
    bios = prepared.machine.firmware is Firmware.BIOS
    with _private_folder() as name:
        folder = Path(name)
        line = command(prepared.qemu, prepared.machine, folder)
        line += watch_options(folder, screen=bios)
        with (folder / "errors").open("w+b") as errors:
            machine = subprocess.Popen(
                _ended_with_us(line),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=_environment(),
            )
            try:
                outcome = watch(machine, folder, timeout, lambda: None)
            finally:
                machine.kill()
                machine.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
    if outcome.reason and said and not outcome.text:
        # It never ran: that says nothing about the image.
        raise ToolFailed("qemu-system-x86_64 …", machine.returncode, said)
    return outcome


def _ended_with_us(line: list[str]) -> list[str]:
    """Have a program end when this one is killed: without our disks it could do nothing more."""
    setpriv = which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *line] if setpriv else line


def _environment() -> Mapping[str, str]:
    return dict(os.environ, LC_ALL="C", PATH=search_path())


def keep_drill(image: ImageReader, checked: Checked, progress: Progress) -> str:
    """Keep a drill's result beside the image; return its id, nothing where that cannot be done."""
    try:
        return save_drill(
            image.repository, image.index, image.snapshot, checked.drill, checked.console
        ).id
    except FreezeframeError as error:
        progress.note(f"the result could not be kept in the repository: {error.message}")
        return ""


# -- to use it --------------------------------------------------------------------------------


def run_boot(prepared: PreparedBoot, options: BootOptions) -> float:
    """Start the machine with a screen, and wait until it is shut down; return the seconds.

    In a terminal its serial console is there (Ctrl-A X ends it). Raises `ToolFailed`.
    """
    windowed = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    screen = options.screen
    if screen == "auto":
        screen = "window" if windowed else "terminal"
    with _private_folder() as folder:
        line = command(prepared.qemu, prepared.machine, Path(folder))
        if screen == "window":
            line += ["-vga", "std", "-serial", "null"]
        else:
            line += ["-display", "none", "-vga", "std", "-serial", "mon:stdio"]
        begun = time.monotonic()
        # It has the terminal, Ctrl-C included, until it ends.
        machine = subprocess.Popen(_ended_with_us(line), env=_environment())
        try:
            code = machine.wait()
        finally:
            machine.kill()
            machine.wait()
    if code:
        raise ToolFailed("qemu-system-x86_64 …", code, "")
    return time.monotonic() - begun


__all__ = ["BUSES", "BootOptions", "check_boot", "keep_drill", "prepared_boot", "run_boot"]
