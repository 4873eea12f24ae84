"""Load, attach and pin the kernel side for one disk."""

from __future__ import annotations

import importlib.resources
import os
import time
from pathlib import Path

from freezeframe.core.errors import TrackingUnavailable
from freezeframe.system.sysfs import Node
from freezeframe.tracking import classic, counting, libbpf, pinned
from freezeframe.tracking.disk import TrackedDisk, boot_id, driver_of, merges_discards
from freezeframe.tracking.record import Places, Record, as_noted, write_note
from freezeframe.tracking.shared import (
    MOST_UNDER_WAY,
    PAGE_GRANULES,
    STATE_GENERATION,
    STATE_SIZE,
    parse_state,
)

BTF = Path("/sys/kernel/btf/vmlinux")
#: Three listeners each, for the kernel leaves out one that is at work already.
_PROGRAMS = {
    "requests": counting.COUNTERS["requests"],
    # The completion is listened for before the queue: no bio may be noted and never forgotten.
    "bios": ("bio_1", "bio_2", "bio_3", "bio_queued"),
    "classic": counting.COUNTERS["classic"],
}


def object_path() -> Path:
    """Return where the compiled program lies. Raises `TrackingUnavailable` where it is not."""
    path = Path(str(importlib.resources.files("freezeframe.tracking"))) / "bpf/tracker.bpf.o"
    if not path.is_file():
        raise TrackingUnavailable(
            f"the compiled tracker is missing: {path}",
            hint="build it with tools/build-bpf (needs clang and libbpf-dev), or install a wheel",
        )
    return path


def load(
    node: Node, disk: TrackedDisk, places: Places, *, force_classic: bool, replaced: str
) -> Record:
    """Start marking, and note it. Raises `TrackingUnavailable`; leaves nothing half-done.

    `force_classic` takes the way of kernels without BTF. The places must be empty.
    """
    mode = way_to_mark(disk, force_classic=force_classic)
    major, minor = (int(part) for part in disk.number.split(":"))
    constants = {
        "disk_major": major,
        "disk_minor": minor,
        "granules": disk.granules,
        "driver": driver_of(node),
    }
    if mode == "classic":
        constants |= classic.offsets().constants()
        constants["merges_discards"] = int(merges_discards(node))
    generation = os.urandom(16)
    try:
        with libbpf.opened(object_path()) as program:
            program.keep(_PROGRAMS[mode])
            program.set_constants(constants)
            program.resize("flags", -(-disk.granules // PAGE_GRANULES))
            if mode == "bios":
                program.resize("under_way", MOST_UNDER_WAY)
            program.load()
            with pinned.mapped(program.map_descriptor("state"), STATE_SIZE) as state:
                state[STATE_GENERATION : STATE_GENERATION + len(generation)] = generation
            places.pins.mkdir(mode=0o700, parents=True)
            places.notes.mkdir(mode=0o700, parents=True)
            program.pin_map("flags", places.flags)
            program.pin_map("state", places.state)
            for name in _PROGRAMS[mode]:
                program.attach_pinned(name, places.link(name))
        links = {name: pinned.link_at(places.link(name)) for name in _PROGRAMS[mode]}
        misses = {name: link.misses for name, link in links.items()}
        with pinned.map_memory(places.state, STATE_SIZE) as memory:
            counted = counting.begin(
                disk.number, mode, lambda: parse_state(memory[:STATE_SIZE]).sectors, misses
            )
        record = Record(
            disk=disk,
            boot=boot_id(),
            generation=generation.hex(),
            links=tuple(as_noted(name, link) for name, link in links.items()),
            started=time.time(),
            mode=mode,
            replaced=replaced,
            counted=counted,
        )
        write_note(places.record, record)
    except BaseException:
        places.remove()
        raise
    return record


def way_to_mark(disk: TrackedDisk, *, force_classic: bool = False) -> str:
    """Return which of the programs sees a disk's writes. Raises `TrackingUnavailable`."""
    if BTF.exists() and not force_classic:
        return "bios" if disk.bio_based else "requests"
    if disk.bio_based:
        raise TrackingUnavailable(
            f"{disk.name} has no requests, and the kernel has no BTF to see its bios by",
            hint="track the disks it is made of, or image it offline",
        )
    return "classic"
