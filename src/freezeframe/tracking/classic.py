"""The record of the classic tracepoint, as tracefs tells it: for kernels without BTF."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import NotUnderstood, TrackingUnavailable

_EVENT = "events/block/block_rq_complete/format"
_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_FIELD = re.compile(
    r"^\s*field:(?P<type>.+?)\s*\b(?P<name>\w+)(\[(?P<count>\d+)\])?;"
    r"\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);",
    re.MULTILINE,
)
#: Field and its size in bytes; `rwbs` has grown, and four bytes of it are read.
_WANTED = {"dev": (4,), "sector": (8,), "nr_sector": (4,), "rwbs": tuple(range(4, 33))}


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where the fields lie in the record, in bytes."""

    dev: int
    sector: int
    nr_sector: int
    rwbs: int

    def constants(self) -> dict[str, int]:
        """Return them as the program's constants."""
        return {
            "at_dev": self.dev,
            "at_sector": self.sector,
            "at_nr_sector": self.nr_sector,
            "at_rwbs": self.rwbs,
        }


def parse_format(text: str) -> Offsets:
    """Read a `format` file. Raises `NotUnderstood` for a record that is not as expected."""
    found = {}
    for field in _FIELD.finditer(text):
        name, size = field["name"], int(field["size"])
        if name in _WANTED:
            if size not in _WANTED[name]:
                raise NotUnderstood(f"the field {name} of block_rq_complete is {size} bytes long")
            found[name] = int(field["offset"])
    missing = [name for name in _WANTED if name not in found]
    if missing:
        raise NotUnderstood(f"block_rq_complete has no field {', '.join(missing)}")
    return Offsets(**found)


def offsets() -> Offsets:
    """Ask this kernel. Raises `TrackingUnavailable`, `NotUnderstood`."""
    for folder in _TRACEFS:
        try:
            return parse_format((folder / _EVENT).read_text(encoding="ascii"))
        except OSError:
            continue
    raise TrackingUnavailable(
        "the kernel has no BTF, and its tracepoints cannot be looked up without tracefs",
        hint="mount it: mount -t tracefs tracefs /sys/kernel/tracing",
    )
