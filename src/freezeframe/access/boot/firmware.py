"""Which firmware a machine of an image starts with, and where UEFI firmware lies here.

An image of a running machine says what that had been started by. Else the layout decides;
where the disk can be started by both, UEFI is taken, as most machines are set that have an EFI
partition.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.boot.nvram import with_boot_entries
from freezeframe.core.errors import NotUnderstood, ToolMissing
from freezeframe.image.manifest import DiskRecord, Manifest, Mode

log = logging.getLogger("freezeframe.access")

_EFI_SYSTEM = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
_EFI_SYSTEM_MBR = "0xef"
#: Code of a boot sector ends where the disk's id begins.
_BOOT_CODE_END = 440

#: Folders and names of UEFI firmware for x86-64 and its variables: Debian, Fedora, Arch, SUSE.
_UEFI_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
)


class Firmware(enum.StrEnum):
    """What starts a machine."""

    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A firmware, and why it is that."""

    firmware: Firmware
    why: str


def choose_firmware(manifest: Manifest, disk: DiskRecord, boot_sector: bytes) -> Chosen:
    """Decide by what an image says of its machine, or a disk's partitions and first 512 bytes."""
    if manifest.mode is Mode.ONLINE and manifest.host.firmware in list(Firmware):
        return Chosen(Firmware(manifest.host.firmware), "as the running machine had been started")
    types = {region.type_code for region in disk.regions}
    efi = bool(types & {_EFI_SYSTEM, _EFI_SYSTEM_MBR})
    code = any(boot_sector[:_BOOT_CODE_END])
    if not efi:
        return Chosen(Firmware.BIOS, "it has no EFI system partition")
    if _BIOS_BOOT in types and code:
        return Chosen(Firmware.UEFI, "it can be started both ways")
    return Chosen(Firmware.UEFI, "it has an EFI system partition")


def uefi_options(folder: Path, disk: DiskRecord) -> list[str]:
    """Return QEMU's options for UEFI firmware whose variables, fresh ones, lie in `folder`.

    They name the usual loaders of `disk`, which is started from. Raises `ToolMissing` where
    this machine has no such firmware.
    """
    found = uefi_firmware()
    if found is None:
        raise ToolMissing("OVMF", "ovmf", "to start machines with UEFI")
    code, variables = found
    own = folder / "variables"
    own.write_bytes(_prepared(Path(variables).read_bytes(), disk))
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format=raw,file={own}",
    ]  # fmt: skip


def uefi_firmware() -> tuple[str, str] | None:
    """Return the files of UEFI firmware and its empty variables; None where there are none."""
    for code, variables in _UEFI_FIRMWARE:
        if Path(code).exists() and Path(variables).exists():
            return code, variables
    return None


def _prepared(store: bytes, disk: DiskRecord) -> bytes:
    system = next((r for r in disk.regions if r.type_code in (_EFI_SYSTEM, _EFI_SYSTEM_MBR)), None)
    if system is None:
        return store
    try:
        return with_boot_entries(store, disk, system)
    except (NotUnderstood, ValueError) as error:
        # The firmware still finds what lies where it looks by itself.
        log.warning("no boot entries are made: %s", error)
        return store
