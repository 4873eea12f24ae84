"""Opening what is imaged, or restored to, with nobody else using it.

A device is opened O_EXCL, which the kernel refuses while anybody else holds it so: mounted
filesystems, swap, LVM, md, dm-crypt, others of our kind. Then processes and loop devices,
which hold nothing exclusively, are looked for (`system.holders`). A filesystem mounted
read-only may be read: then the rest of its disk is held, and the mount is watched.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from freezeframe.block.base import Reader, Writer
from freezeframe.block.descriptor import Descriptor
from freezeframe.block.device import Device, DeviceFacts, open_descriptor
from freezeframe.block.faults import Fault, denied, source_fault, target_fault
from freezeframe.block.file import empty_target, open_reader, open_writer
from freezeframe.core.errors import SourceBusy, TargetUnsuitable
from freezeframe.core.units import SECTOR
from freezeframe.system import sysfs
from freezeframe.system.holders import Use, openers, read_only_users, uses_of

__all__ = ["open_shared", "open_source", "open_target", "probe_target"]

Opened = TypeVar("Opened", bound=Descriptor)


def open_source(path: str | Path) -> Reader:
    """Open a device or a disk image file for reading, while nobody may write to it.

    Raises `SourceBusy` with everybody who uses it, `SourceError` where it is nothing that
    can be imaged. Reading raises `SourceError` where somebody writes to it in spite of all:
    a file's modification time changes, a read-only mount becomes read-write.
    """
    name = os.fspath(path)
    if _kind(name, source_fault) == "file":
        reader = open_reader(name)
        return _refuse_used(reader, name, [use for use in uses_of(name) if use.writes])
    return _open_source_device(name)


def open_shared(path: str | Path) -> Reader:
    """Open a device or file to look at it, whoever uses it. What it reads may be changing."""
    name = os.fspath(path)
    if _kind(name, source_fault) == "file":
        return open_reader(name, lock=False)
    descriptor, direct = _open_device(name, os.O_RDONLY, source_fault)
    return _device(descriptor, name, direct, source_fault)


def open_target(path: str | Path, *, size: int | None = None) -> Writer:
    """Open a device or an existing file to be overwritten; with `size`, make a new file.

    A new file has `size` bytes, all hole, and must not exist. Nobody else may use the
    target, not even to read a filesystem on it. Raises `TargetUnsuitable` or `SourceBusy`.
    """
    name = os.fspath(path)
    if size is not None:
        return open_writer(name, size=size, create=True)
    if _kind(name, target_fault) == "file":
        writer = open_writer(name)
        return _refuse_used(writer, name, uses_of(name))
    return _open_target_device(name, os.O_RDWR)


def probe_target(path: str | Path) -> tuple[int, int]:
    """Return (size, sector) in bytes of a target that exists, having written nothing.

    Raises what `open_target` would.
    """
    name = os.fspath(path)
    if _kind(name, target_fault) == "file":
        return _probe_file(name), SECTOR
    with _open_target_device(name, os.O_RDONLY) as device:
        return device.size, device.sector


def _probe_file(path: str) -> int:
    """Return the size of a file that could be overwritten."""
    size = Path(path).stat().st_size
    if not size:
        raise empty_target(path)
    if not os.access(path, os.W_OK):
        raise denied(path, PermissionError(errno.EACCES, ""), target_fault)
    with open_reader(path) as reader:
        _refuse_used(reader, path, uses_of(path))
        return reader.size


# -- what a path is -------------------------------------------------------------------


def _kind(path: str, fault: Fault) -> str:
    """Return `device` or `file`. Raises where it is neither, or nothing."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise denied(path, error, fault) from error
    if stat.S_ISBLK(mode):
        return "device"
    if stat.S_ISREG(mode):
        return "file"
    what = (
        "a folder"
        if stat.S_ISDIR(mode)
        else "a character device"
        if stat.S_ISCHR(mode)
        else "neither a block device nor a file"
    )
    raise fault(f"{path} is {what}", "name a disk, a partition or a disk image file")


def _open_device(path: str, flags: int, fault: Fault) -> tuple[int, bool]:
    """Open a device. Raises the fault, but `OSError` where it is held exclusively (EBUSY)."""
    try:
        return open_descriptor(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
        raise denied(path, error, fault) from error


def _device(
    descriptor: int,
    path: str,
    direct: bool,
    fault: Fault,
    *,
    also: tuple[int, ...] = (),
    watch: Callable[[], None] | None = None,
) -> Device:
    """Make a device of an open descriptor, which is closed where that fails."""
    try:
        facts = DeviceFacts.of(descriptor)
        if not facts.size:
            raise fault(f"{path} is empty: it has no medium", "list the disks: freezeframe disks")
        return Device(descriptor, path, direct=direct, facts=facts, also=also, watch=watch)
    except BaseException as error:
        _close(descriptor, *also)
        if isinstance(error, OSError):
            raise denied(path, error, fault) from error
        raise


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


# -- nobody else ----------------------------------------------------------------------


def _busy(path: str, uses: Sequence[Use]) -> SourceBusy:
    remedies = dict.fromkeys(step for use in uses for step in use.remedy.split("; ") if step)
    texts = tuple(dict.fromkeys(use.text for use in uses))
    hint = f"free it first: {'; '.join(remedies)}" if remedies else "free it first"
    return SourceBusy(path, texts, hint=hint)


def _refuse_used(opened: Opened, path: str, uses: Sequence[Use]) -> Opened:
    """Close and refuse what is in use."""
    if uses:
        opened.close()
        raise _busy(path, uses)
    return opened


def _held(path: str) -> SourceBusy:
    """Return the refusal for what is held exclusively, and nothing tells by whom."""
    found = openers(path)
    who = tuple(f"held exclusively, maybe by {one}" for one in found)
    return SourceBusy(
        path,
        who or ("held exclusively by the kernel or a program that is not to be seen",),
        hint="stop what holds it, or start the machine from another medium",
    )


def _open_target_device(path: str, access: int) -> Device:
    """Open a device that is to be overwritten, for reading or for both."""
    try:
        descriptor, direct = _open_device(path, access | os.O_EXCL, target_fault)
    except OSError as error:
        uses = uses_of(path)
        raise _busy(path, uses) if uses else _held(path) from error
    device = _refuse_used(_device(descriptor, path, direct, target_fault), path, uses_of(path))
    if device.facts.read_only:
        device.close()
        raise TargetUnsuitable(f"{path} is read-only", hint="choose another")
    return device


def _open_source_device(path: str) -> Reader:
    try:
        descriptor, direct = _open_device(path, os.O_RDONLY | os.O_EXCL, source_fault)
    except OSError:
        return _open_read_only_mounted(path)
    reader = _device(descriptor, path, direct, source_fault)
    return _refuse_used(reader, path, [use for use in uses_of(path) if use.writes])


def _open_read_only_mounted(path: str) -> Reader:
    """Open a device that somebody holds, if all that hold it are read-only mounts."""

    def refuse_writers() -> None:
        writing = [use for use in uses_of(path) if use.writes]
        if writing:
            raise _busy(path, writing)

    refuse_writers()
    claims = _claim_the_rest(path)
    try:
        descriptor, direct = _open_device(path, os.O_RDONLY, source_fault)
    except OSError as error:
        _close(*claims)
        raise _held(path) from error
    except BaseException:
        _close(*claims)
        raise
    reader = _device(descriptor, path, direct, source_fault, also=claims, watch=refuse_writers)
    # Between the first look and the claims somebody may have come.
    return _refuse_used(reader, path, [use for use in uses_of(path) if use.writes])


def _claim_the_rest(path: str) -> tuple[int, ...]:
    """Hold every partition of a disk that is not mounted read-only.

    Raises `SourceBusy` where one is held by what nothing tells of: the reason why the disk
    could not be had is then not (only) a read-only mount.
    """
    node = sysfs.node_of(path)
    if node is None:
        raise _held(path)
    claims: list[int] = []
    explained = read_only_users(node)
    try:
        for part in node.partitions():
            if read_only_users(part):
                explained = True
                continue
            try:
                claims.append(os.open(part.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                raise _held(part.path) from error
        if not explained:
            raise _held(path)
    except BaseException:
        _close(*claims)
        raise
    return tuple(claims)
