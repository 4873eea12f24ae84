"""GRUB on a disk image: for BIOS and for UEFI, without a mount, a loop device or a chroot.

Followed: GRUB's own `boot.S`, `diskboot.S` and `include/grub/i386/pc/boot.h` for the places
in the boot sector that an installer patches, and the UEFI specification (3.5.1.1) for the
path a firmware takes on a disk it has no boot entry for.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from freezeframe.core.units import SECTOR
from freezeframe.system.run import run

#: Where the partition table's part of the first sector begins: the boot code stops before it.
_BOOT_CODE_END = 440
#: Where `boot.img` keeps the sector (u64) at which `core.img` begins.
_KERNEL_SECTOR = 0x5C
#: A jump that GRUB's installer turns into two no-ops for anything but a floppy disk, so that
#: a firmware which passes a wrong drive number is corrected.
_DRIVE_CHECK = 0x66
_NO_OPERATION = b"\x90\x90"
#: `core.img`'s first sector loads the rest: sector (u64), sectors (u16), load segment (u16).
_BLOCK_LIST = struct.Struct("<QHH")
_BLOCK_LIST_AT = SECTOR - _BLOCK_LIST.size

_MODULES = (
    "part_gpt", "part_msdos", "ext2", "fat", "search", "search_fs_uuid", "normal", "configfile",
    "linux", "serial", "terminal", "echo", "test", "minicmd", "reboot",
)  # fmt: skip


def write_bios_loader(disk: Path, partition: int, partition_size: int, root_uuid: str) -> None:
    """Put GRUB into the boot sector of `disk` and its BIOS boot partition.

    `partition` is where the BIOS boot partition starts, in bytes, `partition_size` its
    length. It loads `/boot/grub/grub.cfg` of the ext4 filesystem with that UUID. The
    partition table is left as it is. Raises `ToolMissing`, `ToolFailed`; `ValueError`
    where the loader does not fit.
    """
    core = bytearray(_image("i386-pc", ("biosdisk", *_MODULES), root_uuid))
    core.extend(bytes(-len(core) % SECTOR))
    if len(core) > partition_size:
        raise ValueError(f"GRUB's {len(core)} bytes do not fit into {partition_size}")
    first = partition // SECTOR
    _, _, segment = _BLOCK_LIST.unpack_from(core, _BLOCK_LIST_AT)
    _BLOCK_LIST.pack_into(core, _BLOCK_LIST_AT, first + 1, len(core) // SECTOR - 1, segment)
    boot = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, first)
    boot[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NO_OPERATION
    with disk.open("r+b") as file:
        file.write(boot[:_BOOT_CODE_END])
        file.seek(partition)
        file.write(core)


def write_uefi_loader(disk: Path, partition: int, root_uuid: str) -> None:
    r"""Put GRUB at `\EFI\BOOT\BOOTX64.EFI` of the FAT filesystem at `partition` bytes of `disk`.

    Raises `ToolMissing`, `ToolFailed`.
    """
    place = f"{disk}@@{partition}"
    with tempfile.TemporaryDirectory() as folder:
        loader = Path(folder) / "BOOTX64.EFI"
        loader.write_bytes(_image("x86_64-efi", _MODULES, root_uuid))
        run(["mmd", "-i", place, "::/EFI", "::/EFI/BOOT"])
        run(["mcopy", "-i", place, str(loader), "::/EFI/BOOT/BOOTX64.EFI"])


def _image(target: str, modules: tuple[str, ...], root_uuid: str) -> bytes:
    """Make GRUB's core with all it needs inside, so that nothing but `grub.cfg` is read later."""
    with tempfile.TemporaryDirectory() as folder:
        early, out = Path(folder) / "early.cfg", Path(folder) / "core"
        early.write_text(f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\n")
        command = ["grub-mkimage", "-O", target, "-p", "/boot/grub", "-c", str(early)]
        run([*command, "-o", str(out), *modules])
        return out.read_bytes()
