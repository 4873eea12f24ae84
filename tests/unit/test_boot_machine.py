"""What a machine is started with: firmware, entries for it, disks."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from freezeframe.access.boot import nvram
from freezeframe.access.boot.firmware import Firmware, choose_firmware
from freezeframe.access.boot.machine import guess_bus
from freezeframe.access.boot.nvram import with_boot_entries
from freezeframe.access.boot.signs import _look
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import GIB, MIB
from freezeframe.image.manifest import DiskRecord, Host, Manifest, Mode, RegionRecord

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
STORE = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
CODE = b"\xeb\x63\x90" + bytes(509)


def disk(*types: str, path: str = "/dev/sda", table: str = "gpt") -> DiskRecord:
    regions = tuple(
        RegionRecord(
            role="partition",
            number=number,
            start=number * MIB,
            length=MIB,
            type_code=kind,
            uuid="f0f0a000-1111-4222-8333-444455556666",
        )
        for number, kind in enumerate(types, 1)
    )
    return DiskRecord(
        name="disk", path=path, size=GIB, sector=512, table=table, disk_id="12345678",
        segment=GIB, used=0, regions=regions,
    )  # fmt: skip


def manifest(record: DiskRecord, mode: Mode, firmware: str) -> Manifest:
    return Manifest(
        format=1,
        program="test",
        created=dt.datetime.now(dt.UTC),
        mode=mode,
        host=Host(name="here", firmware=firmware),
        disks=(record,),
    )


@pytest.mark.parametrize(
    ("types", "mode", "host", "wanted"),
    [
        (("0x83",), Mode.OFFLINE, "uefi", "bios"),
        ((ESP,), Mode.OFFLINE, "bios", "uefi"),
        (("0xef", "0x83"), Mode.OFFLINE, "", "uefi"),
        (("21686148-6449-6e6f-744e-656564454649", ESP), Mode.OFFLINE, "", "uefi"),
        (("21686148-6449-6e6f-744e-656564454649", ESP), Mode.ONLINE, "bios", "bios"),
        (("0x83",), Mode.ONLINE, "", "bios"),
    ],
)
def test_the_firmware(types: tuple[str, ...], mode: Mode, host: str, wanted: str) -> None:
    record = disk(*types)
    chosen = choose_firmware(manifest(record, mode, host), record, CODE)
    assert chosen.firmware == Firmware(wanted)
    assert chosen.why


@pytest.mark.parametrize(
    ("path", "bus"),
    [
        ("/dev/sda", "sata"),
        ("/dev/vdb", "virtio"),
        ("/dev/nvme0n1", "nvme"),
        ("/srv/disk.raw", "virtio"),
        ("/dev/mapper/vg-root", "virtio"),
    ],
)
def test_the_bus(path: str, bus: str) -> None:
    assert guess_bus(disk("0x83", path=path)) == bus


def test_entries_lie_where_firmware_looks_for_variables() -> None:
    record = disk(ESP)
    store = STORE.read_bytes()
    made = with_boot_entries(store, record, record.regions[0])
    assert len(made) == len(store)
    assert made[:100] == store[:100]
    assert "Boot0000".encode("utf-16-le") in made
    assert "BootOrder".encode("utf-16-le") in made
    assert nvram.FALLBACK.encode("utf-16-le") in made
    # Only where nothing was.
    with pytest.raises(NotUnderstood, match="not empty"):
        with_boot_entries(made, record, record.regions[0])
    with pytest.raises(NotUnderstood):
        with_boot_entries(bytes(len(store)), record, record.regions[0])
    with pytest.raises(NotUnderstood):
        with_boot_entries(b"", record, record.regions[0])


@pytest.mark.parametrize(
    ("text", "sign", "reason"),
    [
        ("Debian GNU/Linux 12 db1 ttyS0\n\ndb1 login: ", True, False),
        ("x\r\ndb1 login: ", True, False),
        ("[    3.1] systemd[1]: Starting login: service", False, False),
        ("Kernel panic - not syncing: VFS", False, True),
        ("You are in emergency mode. After logging in", False, True),
        ("error\n(initramfs) ", False, True),
        ("mounting (initramfs) files", False, False),
        ("", False, False),
    ],
)
def test_signs(text: str, sign: bool, reason: bool) -> None:
    found = _look(text, "the console")
    assert (bool(found[0]), bool(found[1])) == (sign, reason)
