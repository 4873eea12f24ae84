"""Proof that two disks hold the same: file sums, and each filesystem's own checker.

Nothing of ours is used to read the disks, and nothing is written to them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import KIB, SECTOR
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.disks import mtools
from freezeframe.testing.volumes import (
    LVM_OPTIONS,
    Survey,
    Volume,
    lvm,
    mounted,
    part_attached,
    survey,
)

#: Differences of one volume shown in full; the rest is counted.
_SHOWN = 5


class Entry(NamedTuple):
    """One file of whatever type. Two that are equal are the same in all a user can see."""

    #: `file`, `folder`, `symlink`, `fifo`, `socket`, `block`, `char`, `bytes`.
    type: str
    mode: int
    #: User and group id.
    owner: tuple[int, int]
    size: int
    #: SHA-256 of a file's bytes, a link's target, a device's numbers.
    content: str
    #: Name and SHA-256 of the value, in order of name.
    xattrs: tuple[tuple[str, str], ...] = ()
    #: Same inode: hard links of one file.
    inode: int = 0
    mtime_ns: int = 0


#: Path within the volume → entry.
Sums = dict[str, Entry]


class Check(NamedTuple):
    """What a filesystem's own checker says of a volume."""

    name: str
    checker: str
    #: `clean`, or what it complains about.
    result: str

    @property
    def clean(self) -> bool:
        """Whether it found nothing wrong."""
        return self.result == "clean"


def checksum_tree(root: Path, *, posix: bool = True) -> Sums:
    """Sum up every entry below `root`, by path relative to it (surrogateescape for odd bytes).

    Without `posix` only names, sizes and content count: all that FAT read by mtools has.
    """
    sums = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder, name)
            entry = _entry(path)
            if not posix:
                entry = Entry(entry.type, 0, (0, 0), entry.size, entry.content)
            if not posix and entry.type == "folder":
                entry = entry._replace(size=0)
            sums[str(path.relative_to(root))] = entry
    if posix:
        sums["."] = _entry(root)
    return sums


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}


def _entry(path: Path) -> Entry:
    info = path.lstat()
    kind = _TYPES[stat.S_IFMT(info.st_mode)]
    content = ""
    if kind == "file":
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == "symlink":
        content = os.fsdecode(path.readlink())
    elif kind in ("block", "char"):
        content = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    return Entry(
        kind,
        stat.S_IMODE(info.st_mode),
        (info.st_uid, info.st_gid),
        info.st_size,
        content,
        _xattrs(path),
        info.st_ino,
        info.st_mtime_ns,
    )


def _xattrs(path: Path) -> tuple[tuple[str, str], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple(
        (name, hashlib.sha256(os.getxattr(path, name, follow_symlinks=False)).hexdigest())
        for name in names
    )


def collect(path: Path, sector: int = SECTOR) -> dict[str, Sums]:
    """Sum up all a disk or raw image holds: by volume name, every file in it.

    The partition table, boot code and ids have a volume of their own, `table`. Needs root.
    Raises `ToolFailed` where a filesystem cannot be mounted.
    """
    disk = survey(path, sector)
    found = {"table": _table_sums(disk)}
    for volume in disk.volumes:
        found[volume.name] = _volume_sums(disk, volume)
    return found


def _bytes_entry(data: bytes) -> Entry:
    return Entry("bytes", 0, (0, 0), len(data), hashlib.sha256(data).hexdigest())


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _table_sums(disk: Survey) -> Sums:
    sums = {f"line {line}": Entry("bytes", 0, (0, 0), 0, "") for line in disk.lines}
    for volume in disk.volumes:
        sums[f"volume {volume}"] = Entry("bytes", 0, (0, 0), 0, "")
    sums["boot code"] = _bytes_entry(_read(disk.path, 0, 440))
    if disk.table == "dos":
        gap = min(v.start for v in disk.volumes) - disk.sector
        sums["gap"] = _bytes_entry(_read(disk.path, disk.sector, gap))
    return sums


def _volume_sums(disk: Survey, volume: Volume) -> Sums:
    if volume.kind == "vfat":
        with tempfile.TemporaryDirectory(prefix="freezeframe-fat-") as name:
            run(mtools(disk, volume, "mcopy", "-s", "-n", "::/", name))
            return checksum_tree(Path(name), posix=False)
    if volume.mountable:
        with mounted(disk.path, disk.sector, volume) as root:
            return checksum_tree(root)
    if volume.kind == "LVM2_member":
        with part_attached(disk.path, disk.sector, volume) as device:
            fields = "vg_name,vg_uuid,pv_uuid,pv_size,lv_name,lv_uuid,lv_size"
            return {"lvm": _bytes_entry(lvm("pvs", device, "--noheadings", "-o", fields))}
    # Of swap only the header means anything; of the rest, everything.
    length = 4 * KIB if volume.kind == "swap" else volume.length
    return {"bytes": _bytes_entry(_read(disk.path, volume.start, length))}


def differences(before: Mapping[str, Sums], after: Mapping[str, Sums]) -> list[str]:
    """Say what differs between two disks, one line each; empty: all is the same."""
    lines = []
    for volume in sorted(before.keys() | after.keys()):
        if volume not in before or volume not in after:
            lines.append(f"{volume}: only on the {'second' if volume in after else 'first'} disk")
            continue
        ours, theirs = before[volume], after[volume]
        changed = sorted(
            path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)
        )
        lines += [
            f"{volume}: {path!a}: {_what(ours.get(path), theirs.get(path))}"
            for path in changed[:_SHOWN]
        ]
        if len(changed) > _SHOWN:
            lines.append(f"{volume}: and {len(changed) - _SHOWN} more")
    return lines


def _what(first: Entry | None, second: Entry | None) -> str:
    if first is None:
        return "only on the second disk"
    if second is None:
        return "only on the first disk"
    fields = [
        f"{name} {old} → {new}"
        for name, old, new in zip(Entry._fields, first, second, strict=True)
        if old != new
    ]
    return ", ".join(fields)


#: Each filesystem's own checker, told to write nothing.
_CHECKERS = {
    "vfat": ("fsck.fat", "-n"),
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
    "ntfs": ("ntfsfix", "-n"),
    "swap": ("swaplabel",),
}
#: sgdisk and sfdisk mend a broken copy of a GPT in memory, say so, and then find no problems.
_ALARMS = ("corrupt", "Caution", "CRCs don't match")


def check_filesystems(path: Path, sector: int = SECTOR) -> list[Check]:
    """Run every checker there is over a disk or raw image; nothing is written.

    The partition table is checked by sfdisk, a GPT by sgdisk too. Needs root.
    """
    disk = survey(path, sector)
    checks = _check_table(disk)
    for volume in disk.volumes:
        with part_attached(disk.path, disk.sector, volume) as device:
            if volume.kind == "LVM2_member":
                checks += _check_lvm(volume, device)
            elif volume.kind in _CHECKERS:
                checker = _CHECKERS[volume.kind]
                checks.append(_check(volume.name, (*checker, device)))
    return checks


def _check(name: str, command: tuple[str, ...], wanted: str = "") -> Check:
    """Run a checker; it is content if it exits with 0, says `wanted` and warns of nothing."""
    checker = " ".join(word for word in command[:-1] if word not in LVM_OPTIONS)
    try:
        done = run(command)
    except ToolFailed as error:
        return Check(name, checker, f"exit code {error.returncode}: {error.output.strip()}")
    said = (done.stdout + done.stderr).decode(errors="replace")
    if wanted not in said or any(word in said for word in _ALARMS):
        return Check(name, checker, said.strip())
    return Check(name, checker, "clean")


def _check_table(disk: Survey) -> list[Check]:
    if disk.table == "none":
        return []
    with attached(disk.path, sector=disk.sector, read_only=True) as device:
        checks = [_check("table", ("sfdisk", "--verify", device), "No errors detected")]
        if disk.table == "gpt":
            checks.append(_check("table", ("sgdisk", "--verify", device), "No problems found"))
    return checks


def _check_lvm(volume: Volume, device: str) -> list[Check]:
    # With `--devices` pvck looks at nothing and is content.
    headers = ("lvm", "pvck", *LVM_OPTIONS, device)
    checks = [_check(volume.name, headers, "Found text metadata area")]
    try:
        group = lvm("pvs", device, "--noheadings", "-o", "vg_name", device).decode().strip()
        lvm("vgck", device, group)
    except ToolFailed as error:
        return [*checks, Check(volume.name, "lvm vgck", error.output.strip())]
    return [*checks, Check(volume.name, "lvm vgck", "clean")]


def total_bytes(sums: Mapping[str, Sums]) -> int:
    """Bytes of all files summed up, hard links once."""
    count = 0
    for volume in sums.values():
        seen = set()
        for path, entry in volume.items():
            key = (entry.inode or path, entry.content)
            if entry.type == "file" and key not in seen:
                seen.add(key)
                count += entry.size
    return count


def total_files(sums: Mapping[str, Sums]) -> int:
    """How many entries were summed up."""
    return sum(len(volume) for volume in sums.values())
