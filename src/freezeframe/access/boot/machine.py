"""The command line of the virtual machine an image is started in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.boot.accelerator import Accelerator
from freezeframe.access.boot.firmware import Firmware, uefi_options
from freezeframe.core.units import MIB
from freezeframe.image.manifest import DiskRecord

BUSES = ("virtio", "sata", "nvme", "scsi")
#: What the kernel calls disks of each bus: what a machine was made on it finds again.
_NAMES = (("vd", "virtio"), ("nvme", "nvme"), ("sd", "sata"), ("hd", "sata"))
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """One disk of the machine."""

    record: DiskRecord
    bus: str
    #: The qcow2 file that takes what the machine writes.
    overlay: Path
    #: QEMU's block node of what lies beneath: an NBD export, a file.
    base: Mapping[str, object]
    #: Whether the overlay is thrown away: then nothing of it has to reach stable storage.
    fleeting: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """All that a virtual machine is made of."""

    disks: Sequence[MachineDisk]
    firmware: Firmware
    accelerator: Accelerator
    #: In bytes.
    memory: int
    cpus: int
    network: bool = False


def guess_bus(disk: DiskRecord) -> str:
    """Return the bus a machine most likely has the driver for: that of the disk's old name."""
    name = Path(disk.path).name
    return next((bus for prefix, bus in _NAMES if name.startswith(prefix)), "virtio")


def nbd_base(socket: Path, export: str) -> dict[str, object]:
    """Return the block node of an NBD export on a unix socket."""
    return {
        "driver": "nbd",
        "server": {"type": "unix", "path": str(socket)},
        "export": export,
        "read-only": True,
    }


def command(qemu: str, machine: Machine, folder: Path) -> list[str]:
    """Return the command line but for consoles and screens; `folder` takes its private files.

    Raises `ToolMissing` for UEFI where there is no such firmware.
    """
    uefi = machine.firmware is Firmware.UEFI
    line = [
        # BIOS on the newer one does not start with an ISA graphics adapter.
        qemu, "-machine", "q35" if uefi else "pc", *machine.accelerator.options,
        "-smp", str(machine.cpus), "-m", str(machine.memory // MIB),
        "-nodefaults", "-no-reboot", "-rtc", "base=utc",
        "-device", "virtio-rng-pci",
        *(uefi_options(folder, machine.disks[0].record) if uefi else ()),
        *(("-nic", "user,model=virtio-net-pci") if machine.network else ("-nic", "none")),
    ]  # fmt: skip
    for number, disk in enumerate(machine.disks):
        # UEFI has an order of its own, and drops from it what this one does not know.
        line += _disk_options(number, disk, "" if uefi else f",bootindex={number + 1}")
    return line


def _disk_options(number: int, disk: MachineDisk, order: str) -> list[str]:
    base, top = f"image{number}", f"disk{number}"
    cache = {"no-flush": disk.fleeting}
    overlay = {
        "driver": "qcow2",
        "node-name": top,
        "backing": base,
        "cache": cache,
        "file": {"driver": "file", "filename": str(disk.overlay), "cache": cache},
    }
    return [
        "-blockdev", json.dumps({**disk.base, "node-name": base}),
        "-blockdev", json.dumps(overlay),
        *_device(number, disk, f"drive={top}{order}"),
    ]  # fmt: skip


def _device(number: int, disk: MachineDisk, settings: str) -> list[str]:
    record = disk.record
    if _SERIAL.fullmatch(record.serial):
        settings += f",serial={record.serial}"
    elif disk.bus == "nvme":
        settings += f",serial=disk{number}"
    if record.sector != 512:
        settings += f",logical_block_size={record.sector},physical_block_size={record.sector}"
    if disk.bus == "virtio":
        return ["-device", f"virtio-blk-pci,{settings}"]
    if disk.bus == "nvme":
        return ["-device", f"nvme,{settings}"]
    if disk.bus == "scsi":
        # One controller for each: simpler than counting targets.
        return ["-device", f"virtio-scsi-pci,id=scsi{number}",
                "-device", f"scsi-hd,bus=scsi{number}.0,{settings}"]  # fmt: skip
    return ["-device", f"ich9-ahci,id=sata{number}",
            "-device", f"ide-hd,bus=sata{number}.0,{settings}"]  # fmt: skip
