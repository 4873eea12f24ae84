"""What `/etc/fstab` says of where filesystems belong. Source: fstab(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = re.compile(rb"\\([0-7]{3})")
#: No device, or none of this machine.
_NO_DEVICES = (b"swap", b"tmpfs", b"proc", b"sysfs", b"devpts", b"none", b"nfs", b"nfs4", b"cifs")


@dataclass(frozen=True, slots=True)
class Line:
    """One filesystem."""

    #: `UUID=…`, `LABEL=…`, `PARTUUID=…`, or the path of a device.
    device: str
    #: Names from the root on.
    point: tuple[bytes, ...]
    options: tuple[str, ...]

    def option(self, name: str) -> str:
        """Return the value of an option; empty where it is not there."""
        for option in self.options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return ""


def parse(content: bytes) -> Iterator[Line]:
    """Give the lines that put a device somewhere; what makes no sense is left out."""
    for raw in content.splitlines():
        fields = raw.split()
        if len(fields) < 3 or raw.lstrip().startswith(b"#") or fields[2] in _NO_DEVICES:
            continue
        device, point, _, options = [*fields, b"defaults"][:4]
        if not point.startswith(b"/") or b"bind" in options.split(b","):
            continue
        yield Line(
            _plain(device).decode("utf-8", "surrogateescape"),
            tuple(part for part in _plain(point).split(b"/") if part),
            tuple(options.decode("utf-8", "surrogateescape").split(",")),
        )


def _plain(field: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 8) & 0xFF,)), field)
