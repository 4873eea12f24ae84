r"""Boot entries for UEFI firmware that has never seen the machine.

A machine's own entries lie in its motherboard. Without them firmware only tries
`\EFI\BOOT\BOOTX64.EFI`, which many systems do not install. So the usual places of loaders on the
machine's EFI system partition become entries: those that are not there fail at once, and the
next is tried.

Source: UEFI specification 2.10, 3.1.3 (load options) and 10.3 (device paths); the variable store
is EDK2's, `MdeModulePkg/Include/Guid/VariableFormat.h`.
"""

from __future__ import annotations

import struct
import uuid

from freezeframe.core.errors import NotUnderstood
from freezeframe.image.manifest import DiskRecord, RegionRecord

_VOLUME_SIGNATURE, _VOLUME_SIGNATURE_AT = b"_FVH", 40
_HEADER_LENGTH_AT = 48
_STORE = struct.Struct("<16sIBBHI")
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_FORMATTED, _HEALTHY = 0x5A, 0xFE
#: start, state, reserved, attributes, count, time, key, bytes of name and data, vendor.
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_START, _ADDED = 0x55AA, 0x3F
#: Kept, and there while firmware and system run.
_ATTRIBUTES = 1 | 2 | 4
_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_EMPTY = 0xFF

_HARD_DRIVE = struct.Struct("<BBHIQQ16sBB")
_FILE = struct.Struct("<BBH")
_END = b"\x7f\xff\x04\x00"
_ACTIVE = 1

#: Where loaders lie, most asked for first; shim before what it would start.
_LOADERS = (
    r"\EFI\debian\shimx64.efi",
    r"\EFI\debian\grubx64.efi",
    r"\EFI\ubuntu\shimx64.efi",
    r"\EFI\ubuntu\grubx64.efi",
    r"\EFI\redhat\shimx64.efi",
    r"\EFI\centos\shimx64.efi",
    r"\EFI\rocky\shimx64.efi",
    r"\EFI\almalinux\shimx64.efi",
    r"\EFI\fedora\shimx64.efi",
    r"\EFI\opensuse\shim.efi",
    r"\EFI\opensuse\grubx64.efi",
    r"\EFI\sles\shim.efi",
    r"\EFI\proxmox\grubx64.efi",
    r"\EFI\arch\grubx64.efi",
    r"\EFI\GRUB\grubx64.efi",
    r"\EFI\systemd\systemd-bootx64.efi",
    r"\EFI\Microsoft\Boot\bootmgfw.efi",
)
FALLBACK = r"\EFI\BOOT\BOOTX64.EFI"


def with_boot_entries(store: bytes, disk: DiskRecord, system: RegionRecord) -> bytes:
    """Return an empty variable store with entries for the loaders of an EFI system partition.

    Raises `NotUnderstood` where it is no such store, or not an empty one.
    """
    start = _free_space(store)
    entries = [FALLBACK, *_LOADERS]
    order = b"".join(struct.pack("<H", number) for number in range(len(entries)))
    added = b"".join(
        _variable(f"Boot{number:04X}", _load_option(path, disk, system))
        for number, path in enumerate(entries)
    )
    added += _variable("BootOrder", order)
    if any(byte != _EMPTY for byte in store[start : start + len(added)]):
        raise NotUnderstood("the firmware's variables are not empty")
    return store[:start] + added + store[start + len(added) :]


def _free_space(store: bytes) -> int:
    """Return where the first variable goes."""
    at = _VOLUME_SIGNATURE_AT
    if store[at : at + 4] != _VOLUME_SIGNATURE:
        raise NotUnderstood("the firmware's variables are no firmware volume")
    (header,) = struct.unpack_from("<H", store, _HEADER_LENGTH_AT)
    kind, _, formatted, state, _, _ = _STORE.unpack_from(store, header)
    if (kind, formatted, state) != (_AUTHENTICATED, _FORMATTED, _HEALTHY):
        raise NotUnderstood("the firmware's variables are of another kind")
    return int(header) + _STORE.size


def _variable(name: str, data: bytes) -> bytes:
    encoded = _utf16(name)
    header = _VARIABLE.pack(
        _START, _ADDED, 0, _ATTRIBUTES, 0, bytes(16), 0, len(encoded), len(data), _GLOBAL
    )
    whole = header + encoded + data
    return whole + bytes([_EMPTY]) * (-len(whole) % 4)


def _load_option(path: str, disk: DiskRecord, system: RegionRecord) -> bytes:
    place = _partition(disk, system) + _file(path) + _END
    return struct.pack("<IH", _ACTIVE, len(place)) + _utf16(path) + place


def _partition(disk: DiskRecord, system: RegionRecord) -> bytes:
    if disk.table in ("gpt", "hybrid"):
        signature, kind = uuid.UUID(system.uuid).bytes_le, 2
    else:
        signature, kind = int(disk.disk_id or "0", 16).to_bytes(4, "little").ljust(16, b"\0"), 1
    return _HARD_DRIVE.pack(
        4,
        1,
        _HARD_DRIVE.size,
        system.number,
        system.start // disk.sector,
        system.length // disk.sector,
        signature,
        kind,
        kind,
    )


def _file(path: str) -> bytes:
    name = _utf16(path)
    return _FILE.pack(4, 4, _FILE.size + len(name)) + name


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"
