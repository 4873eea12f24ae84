"""Device-mapper by its own calls: devices, tables, suspending, messages.

Source: include/uapi/linux/dm-ioctl.h and drivers/md/dm-ioctl.c of Linux. The calls' numbers
carry a size and two directions, but come out the same on every architecture. `dmsetup` does
the same; but a program cannot be started while the root filesystem's volume is suspended,
and these calls touch no file. All raise `OSError` as the kernel says it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.closing import Closing
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node

_CONTROL = "/dev/mapper/control"
#: struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr,
#: padding, dev, name, uuid, and room up to its size.
_HEAD = struct.Struct("=3I3Ii3IQ128s129s7x")
#: struct dm_target_spec: start, length, status, next, type; the parameters follow.
_SPEC = struct.Struct("=QQiI16s")
#: struct dm_target_msg; the text follows.
_MESSAGE = struct.Struct("=Q")
#: The interface that all that is used here has been in (4.0.0); a newer kernel takes it.
_VERSION = (4, 0, 0)
#: Room for answers: a table of some thousand lines.
_ROOM = 256 * 1024

_CREATE, _REMOVE, _SUSPEND, _STATUS = 3, 4, 6, 7
_LOAD, _CLEAR, _TABLE, _TELL = 9, 10, 12, 14

_READ_ONLY = 1 << 0
_SUSPENDED = 1 << 1
_AS_TABLE = 1 << 4
_ACTIVE = 1 << 5
_INACTIVE = 1 << 6
_BUFFER_FULL = 1 << 8
_SKIP_LOCKFS = 1 << 10
_NO_FLUSH = 1 << 11
_OF_INACTIVE = 1 << 12
_SECURE = 1 << 15

#: What udev is to do with a device of ours, as its event's number tells (libdevmapper.h,
#: DM_UDEV_…): make a link in /dev/mapper, and nothing else. A shadow copy bears the same
#: identities as its volume; its links in /dev/disk would take the place of the volume's.
_UDEV_LINK_ONLY = (0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0040) << 16


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table. In sectors of 512 bytes."""

    start: int
    length: int
    #: `linear`, `snapshot-origin`.
    kind: str
    #: As the target writes them; of dm-crypt with its key.
    parameters: str


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a device is like now."""

    name: str
    uuid: str
    #: `253:3`.
    number: str
    open_count: int
    suspended: bool
    read_only: bool
    #: Whether there is a table at work, and one that the next resume takes.
    active: bool
    inactive: bool

    @property
    def path(self) -> str:
        """Its node, as the kernel itself names it: there before udev has done anything."""
        node = sysfs.node_of_number(self.number)
        return f"/dev/{node.name}" if node is not None else f"/dev/mapper/{self.name}"


class DeviceMapper(Closing):
    """The control device, held open: later calls open nothing. For any thread.

    Devices are told by name. Raises `OSError` where the kernel has no device-mapper.
    """

    def __init__(self) -> None:
        try:
            self._control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise OSError(errno.ENODEV, "the kernel has no device-mapper") from error
        if not stat.S_ISCHR(os.fstat(self._control).st_mode):
            self.close()
            raise OSError(errno.ENODEV, "the kernel has no device-mapper")

    def close(self) -> None:
        """Close the control device. Twice does no harm."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    # -- looking ------------------------------------------------------------------------

    def info(self, name: str) -> Mapped | None:
        """Return what a device is like; None where there is none."""
        try:
            return _mapped(self._call(_STATUS, name))
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENODEV):
                return None
            raise

    def table(self, name: str, *, inactive: bool = False) -> tuple[Target, ...]:
        """Return the table at work; with `inactive`, the one loaded beside it."""
        return self._targets(name, _AS_TABLE | (_OF_INACTIVE if inactive else 0))

    def status(self, name: str) -> tuple[Target, ...]:
        """Return what each target says of its state. Writes nothing out for that."""
        return self._targets(name, _NO_FLUSH)

    def _targets(self, name: str, flags: int) -> tuple[Target, ...]:
        answer = self._call(_TABLE, name, flags=flags | _SECURE, room=_ROOM)
        fields = _HEAD.unpack_from(answer)
        if fields[7] & _BUFFER_FULL:
            raise OSError(errno.EOVERFLOW, f"the table of {name} is too long")
        place, found = fields[4], []
        for _ in range(fields[5]):
            start, length, _, after, kind = _SPEC.unpack_from(answer, place)
            end = answer.index(0, place + _SPEC.size)
            text = answer[place + _SPEC.size : end].decode(errors="surrogateescape")
            found.append(Target(start, length, _text(kind), text))
            # Counted from the first one, not from this one.
            place = fields[4] + after
        return tuple(found)

    # -- making and removing ------------------------------------------------------------

    def create(self, name: str, uuid: str) -> Mapped:
        """Make a device without a table. EBUSY where the name or the uuid is taken."""
        return _mapped(self._call(_CREATE, name, uuid=uuid))

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> None:
        """Give a device a table that the next `resume` puts to work."""
        body = bytearray()
        for target in table:
            text = target.parameters.encode(errors="surrogateescape") + b"\0"
            padded = _SPEC.size + (len(text) + 7) // 8 * 8
            kind = target.kind.encode()
            # Counted from this one, other than in answers.
            body += _SPEC.pack(target.start, target.length, 0, padded, kind)
            body += text.ljust(padded - _SPEC.size, b"\0")
        flags = _SECURE | (_READ_ONLY if read_only else 0)
        self._call(_LOAD, name, flags=flags, count=len(table), body=bytes(body))

    def clear(self, name: str) -> None:
        """Drop the table that was loaded and not put to work."""
        self._call(_CLEAR, name)

    def remove(self, name: str) -> None:
        """Remove a device. EBUSY while anything has it open, ENXIO where there is none."""
        self._call(_REMOVE, name, event=_UDEV_LINK_ONLY)

    # -- holding still ------------------------------------------------------------------

    def suspend(self, name: str) -> None:
        """Hold back all reads and writes, and wait for those under way.

        The filesystem on it is not frozen by this (`dmsetup suspend --nolockfs`): somebody
        else may have done that, and before Linux 6.7 a suspend that freezes fails with EBUSY
        then.
        """
        self._call(_SUSPEND, name, flags=_SUSPENDED | _SKIP_LOCKFS)

    def resume(self, name: str, *, ours: bool = False) -> None:
        """Let reads and writes through, with the table that was loaded, if any.

        A device that is not suspended is for the moment of the change, its filesystem is not
        frozen. `ours` for devices that nobody but this program has to know.
        """
        self._call(_SUSPEND, name, flags=_SKIP_LOCKFS, event=_UDEV_LINK_ONLY if ours else 0)

    def message(self, name: str, text: str) -> None:
        """Send a target a message, to its first sector."""
        body = _MESSAGE.pack(0) + text.encode() + b"\0"
        self._call(_TELL, name, body=body)

    def _call(
        self,
        command: int,
        name: str,
        *,
        uuid: str = "",
        flags: int = 0,
        event: int = 0,
        count: int = 0,
        body: bytes = b"",
        room: int = 0,
    ) -> bytearray:
        size = max(_HEAD.size + len(body), _HEAD.size + room)
        head = _HEAD.pack(
            *_VERSION, size, _HEAD.size, count, 0, flags, event, 0, 0, name.encode(), uuid.encode()
        )
        buffer = bytearray(head + body).ljust(size, b"\0")
        while True:
            try:
                fcntl.ioctl(self._control, _request(command), buffer, True)
            except InterruptedError:
                # A suspend that waits for reads and writes under way gives up for a signal.
                buffer[: len(head)] = head
            else:
                return buffer


def _request(command: int) -> int:
    """Return the number of a call: _IOWR(0xfd, command, struct dm_ioctl)."""
    return 3 << 30 | _HEAD.size << 16 | 0xFD << 8 | command


def dm_name(node: Node) -> str:
    """Return the name device-mapper knows a device by; nothing for any other device."""
    return sysfs.read_text(node.folder / "dm/name")


def dm_uuid(node: Node) -> str:
    """Return its identity: `LVM-…`, `CRYPT-LUKS2-…`."""
    return sysfs.read_text(node.folder / "dm/uuid")


def named(prefix: str) -> list[Node]:
    """Return the devices whose identity begins so."""
    return [node for node in sysfs.disks() if dm_uuid(node).startswith(prefix)]


def has_device_mapper() -> bool:
    """Whether the kernel has device-mapper, or can load it when it is opened."""
    # The node may be there without a driver, from the list of modules; misc tells for certain.
    known = sysfs.read_text(Path("/proc/misc")).split()
    return "device-mapper" in known or Path("/sys/module/dm_mod").exists()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _mapped(answer: bytearray) -> Mapped:
    fields = _HEAD.unpack_from(answer)
    # As the kernel's huge encoding has it (new_encode_dev in the low 32 bits).
    device = fields[10]
    major, minor = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
    flags = fields[7]
    return Mapped(
        name=_text(fields[11]),
        uuid=_text(fields[12]),
        number=f"{major}:{minor}",
        open_count=fields[6],
        suspended=bool(flags & _SUSPENDED),
        read_only=bool(flags & _READ_ONLY),
        active=bool(flags & _ACTIVE),
        inactive=bool(flags & _INACTIVE),
    )
