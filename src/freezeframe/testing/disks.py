"""Fixture disks: real partition tables and filesystems, made with the real tools.

The content is real files and hard cases (see `filling`); where things lie is asked of
sfdisk and blkid (see `volumes`).
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.units import GIB, MIB, SECTOR
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing import filling
from freezeframe.testing.volumes import (
    Survey,
    Volume,
    lvm,
    mounted,
    part_attached,
    survey,
)

#: sfdisk's words for what a partition is for.
_GPT_TYPES = {
    "vfat": "U",
    "swap": "S",
    "LVM2_member": "V",
    "ntfs": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "bios": "21686148-6449-6E6F-744E-656564454649",
}
_MBR_TYPES = {"vfat": "ef", "swap": "82", "LVM2_member": "8e", "ntfs": "7", "bios": "da"}
#: MBR: the first three partitions are primary, the rest logical ones in an extended one.
_PRIMARY = 3


@dataclass(frozen=True, slots=True)
class Part:
    """One partition to be made: `size` bytes, `files` bytes of real files in it."""

    #: As blkid says it, or `bios` for boot code that no tool knows a name for.
    kind: str
    size: int
    files: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A disk to be made."""

    parts: tuple[Part, ...]
    #: `gpt` or `dos`.
    table: str = "gpt"
    sector: int = SECTOR
    seed: int = 1

    @property
    def size(self) -> int:
        """Bytes of the disk: its partitions and the room a table takes."""
        return sum(part.size for part in self.parts) + (2 + len(self.parts)) * MIB


def _parts(scale: int, esp: int = 64 * MIB) -> tuple[Part, ...]:
    """One of each, with about `scale` bytes of files in the larger ones."""
    return (
        Part("bios", MIB),
        Part("vfat", esp, scale // 4),
        Part("ext4", max(96 * MIB, 3 * scale), scale),
        Part("xfs", max(320 * MIB, 3 * scale), scale),
        # btrfs makes no filesystem below 109 MiB.
        Part("btrfs", max(160 * MIB, 3 * scale), scale),
        Part("ntfs", max(96 * MIB, 3 * scale), scale),
        Part("swap", 32 * MIB),
        Part("LVM2_member", max(192 * MIB, 3 * scale), scale),
    )


#: About 1 GiB, holes mostly.
SMALL_GPT = Recipe(_parts(12 * MIB))
SMALL_MBR = Recipe(_parts(8 * MIB), table="dos", seed=2)
#: FAT32 in sectors of 4096 bytes needs 256 MiB at least.
SMALL_4K = Recipe(_parts(8 * MIB, esp=264 * MIB), sector=4096, seed=3)
#: One quick filesystem: for tests that make many images.
TINY = Recipe((Part("bios", MIB), Part("ext4", 64 * MIB, 20 * MIB)), seed=4)
#: About 4 GiB with about 1 GiB of files.
DEMO = Recipe(_parts(220 * MIB, esp=128 * MIB), seed=5)


def make_disk(
    path: Path, recipe: Recipe, tell: Callable[[str], None] = lambda _text: None
) -> Survey:
    """Make a disk in a new raw file and fill it; return what lies on it.

    Needs root. Attaches loop devices and mounts, and leaves none behind. `tell` gets a
    line about each step. Raises `ToolMissing`, `ToolFailed`.
    """
    rng = random.Random(recipe.seed)
    with path.open("xb") as file:
        file.truncate(recipe.size)
    _partition(path, recipe)
    _boot_code(path, recipe, rng)
    made = survey(path, recipe.sector)
    for number, (volume, part) in enumerate(zip(made.volumes, recipe.parts, strict=True)):
        tell(f"{part.kind}: {volume.length // MIB} MiB at {volume.start // MIB} MiB")
        fill_from = filling.SOURCES[number % 3 :] + filling.SOURCES[: number % 3]
        _make_volume(made, volume, part, fill_from, rng)
    return survey(path, recipe.sector)


def _partition(path: Path, recipe: Recipe) -> None:
    script = [f"label: {recipe.table}"]
    types = _GPT_TYPES if recipe.table == "gpt" else _MBR_TYPES
    for number, part in enumerate(recipe.parts):
        if recipe.table == "dos" and number == _PRIMARY:
            script.append("type=5")
        name = f", name={part.kind}" if recipe.table == "gpt" else ""
        script.append(f"size={part.size // MIB}MiB, type={types.get(part.kind, 'L')}{name}")
    with attached(path, sector=recipe.sector) as device:
        run(
            ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device),
            stdin="\n".join(script).encode(),
        )


def _boot_code(path: Path, recipe: Recipe, rng: random.Random) -> None:
    """Write what a boot loader would: into the first sector, and the gap after an MBR."""
    with path.open("r+b") as file:
        file.write(rng.randbytes(440))
        if recipe.table == "dos":
            file.seek(recipe.sector)
            file.write(rng.randbytes(40_000))


def _make_volume(
    disk: Survey, volume: Volume, part: Part, sources: tuple[str, ...], rng: random.Random
) -> None:
    match part.kind:
        case "bios":
            _write_raw(disk, volume, rng.randbytes(volume.length))
        case "LVM2_member":
            _make_lvm(disk, volume, part, sources, rng)
        case _:
            with part_attached(disk.path, disk.sector, volume, read_only=False) as device:
                run(_mkfs(part.kind, device, disk.sector))
            fresh = Volume(volume.name, part.kind, volume.start, volume.length)
            _fill(disk, fresh, part.files, sources, rng)


def _write_raw(disk: Survey, volume: Volume, data: bytes) -> None:
    with disk.path.open("r+b") as file:
        file.seek(volume.start)
        file.write(data)


def _mkfs(kind: str, device: str, sector: int) -> tuple[str, ...]:
    # No discard: the holes of the file are kept that way, but a device's old content is not.
    return {
        "vfat": ("mkfs.vfat", "-F", "32", "-S", str(sector), "-n", "ESP", device),
        "ext4": ("mkfs.ext4", "-q", "-L", "ext", device),
        "xfs": ("mkfs.xfs", "-q", "-f", "-s", f"size={sector}", "-L", "xfs", device),
        "btrfs": ("mkfs.btrfs", "-q", "-f", "-L", "btrfs", device),
        "ntfs": ("mkfs.ntfs", "-Q", "-s", str(sector), "-L", "ntfs", device),
        "swap": ("mkswap", "-L", "swap", device),
    }[kind]


def _make_lvm(
    disk: Survey, volume: Volume, part: Part, sources: tuple[str, ...], rng: random.Random
) -> None:
    """Make a volume group of two logical volumes, 60 % of it, with a filesystem in each.

    No device-mapper is needed: LVM writes its metadata without it, and a linear volume is
    reached where it lies.
    """
    group = f"group{rng.getrandbits(32):08x}"
    with part_attached(disk.path, disk.sector, volume, read_only=False) as device:
        lvm("pvcreate", device, "--yes", device)
        # A machine with device-mapper must not take it for its own.
        lvm("vgcreate", device, "--setautoactivation", "n", group, device)
        for name, percent in (("root", 40), ("home", 20)):
            options = ("--activate", "n", "--zero", "n", "--wipesignatures", "n", "--yes")
            lvm("lvcreate", device, *options, "--name", name, "-l", f"{percent}%VG", group)
    for inner in survey(disk.path, disk.sector).volumes:
        if "lvm/" in inner.name:
            with part_attached(disk.path, disk.sector, inner, read_only=False) as device:
                run(_mkfs("ext4", device, disk.sector))
            fresh = Volume(inner.name, "ext4", inner.start, inner.length)
            _fill(disk, fresh, part.files * inner.length // volume.length, sources, rng)


def _fill(
    disk: Survey, volume: Volume, budget: int, sources: tuple[str, ...], rng: random.Random
) -> None:
    if volume.kind == "vfat":
        with tempfile.TemporaryDirectory(prefix="freezeframe-fill-") as name:
            folder = Path(name)
            filling.copy_real_files(folder, sources, budget, links=False)
            loader = folder / "EFI" / "BOOT" / "BOOTX64.EFI"
            loader.parent.mkdir(parents=True)
            loader.write_bytes(rng.randbytes(150_000))
            (folder / "A long name with spaces.txt").write_bytes(b"x" * 5000)
            run(mtools(disk, volume, "mcopy", "-s", "-p", "-Q", *_entries(folder), "::/"))
    elif volume.mountable:
        with mounted(disk.path, disk.sector, volume, read_only=False) as root:
            filling.copy_real_files(root, sources, budget)
            filling.add_hard_cases(root, volume.kind, rng)


def _entries(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir())


def mtools(disk: Survey, volume: Volume, command: str, *arguments: str) -> tuple[str, ...]:
    """Write the command line of an mtools program for a FAT volume of a disk or image."""
    return (command, "-i", f"{disk.path}@@{volume.start}", *arguments)


def change_disk(disk: Survey, seed: int) -> int:
    """Delete, add, rename and change files in every filesystem; return how many."""
    changed = 0
    for volume in disk.volumes:
        if volume.kind == "vfat":
            with tempfile.TemporaryDirectory(prefix="freezeframe-fill-") as name:
                added = Path(name, f"added {seed}.bin")
                added.write_bytes(random.Random(seed).randbytes(300_000))
                run(mtools(disk, volume, "mcopy", "-o", str(added), "::/"))
                run(mtools(disk, volume, "mdel", "::/EFI/BOOT/BOOTX64.EFI"))
                run(mtools(disk, volume, "mcopy", "-o", str(added), "::/EFI/BOOT/BOOTX64.EFI"))
            changed += 2
        elif volume.mountable:
            with mounted(disk.path, disk.sector, volume, read_only=False) as root:
                changed += filling.change_files(root, seed)
    os.sync()
    return changed


def room_needed(recipe: Recipe) -> int:
    """Bytes the demo wants free: the disk, its repository and two restored ones, rounded up."""
    return sum(part.files for part in recipe.parts) * 5 + GIB
