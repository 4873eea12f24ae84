"""What imaging disks in use needs of this machine, each thing looked at for itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freezeframe.app.track import disks_in_use
from freezeframe.core.errors import TrackingUnavailable
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.system import sysfs
from freezeframe.system.sysfs import read_text
from freezeframe.tracking import libbpf
from freezeframe.tracking.program import BTF, object_path
from freezeframe.tracking.record import pins_folder, place_in_memory

State = Literal["ok", "missing", "limited", "not verified"]

_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    #: What was found, and what it is needed for.
    detail: str
    #: What to do; nothing where nothing needs doing.
    advice: str = ""


def hot_needs() -> list[Finding]:
    """Look at what imaging any disk in use needs, each for itself."""
    return [
        _looked_for("compiled tracker", object_path, "{}"),
        _library(),
        _looked_for("BPF filesystem", pins_folder, "keeps marks between images"),
        _looked_for("memory for marks", place_in_memory, "{}: what was written since each image"),
        _btf(),
        _disk_numbers(),
        _lockdown(),
        _hot_rights(),
    ]


def hot_lacks(needs: Iterable[Finding]) -> tuple[str, ...]:
    """Return the names of what keeps this machine from imaging disks in use."""
    return tuple(finding.name for finding in needs if finding.state == "missing")


def hot_processing() -> list[Finding]:
    """Say what comes of all that, and which of what is mounted can be frozen."""
    found = hot_needs()
    lacks = hot_lacks(found)
    if lacks:
        verdict = Finding(
            "hot processing",
            "missing",
            f"disks in use cannot be imaged here for lack of: {', '.join(lacks)}",
            "see to those, or image the disks offline",
        )
    else:
        verdict = Finding(
            "hot processing", "ok", "disks in use can be imaged: `freezeframe backup` does it"
        )
    return [*found, _freezing(), verdict]


def _looked_for(name: str, look: Callable[[], Path], told: str) -> Finding:
    """Say whether a thing is there; `told` of it, with its path where that has a place for one."""
    try:
        path = look()
    except TrackingUnavailable as error:
        return Finding(name, "missing", error.message, error.hint)
    return Finding(name, "ok", told.format(path))


def _library() -> Finding:
    use = "to load the tracker into the kernel"
    reason = libbpf.available()
    if reason:
        return Finding("libbpf1", "missing", reason, "apt-get install libbpf1")
    return Finding("libbpf1", "ok", use)


def _btf() -> Finding:
    if BTF.exists():
        return Finding("BTF", "ok", "the kernel describes its own structures")
    return Finding(
        "BTF",
        "limited",
        "the kernel does not describe its structures: images of disks in use are always read in "
        "full, a write may be missed while another BPF program runs, and disks without requests "
        "(md, zram) cannot be tracked",
        "use a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have",
    )


def _disk_numbers() -> Finding:
    if any(node.diskseq for node in sysfs.disks()):
        return Finding("disk numbers", "ok", "a disk that took another's place is told apart")
    return Finding(
        "disk numbers",
        "limited",
        "the kernel does not number its disks (diskseq): images of disks in use are always read "
        "in full",
        "use a newer kernel",
    )


def _lockdown() -> Finding:
    # security/security.c: reading kernel memory by BPF is refused in this mode only.
    if "[confidentiality]" in read_text(Path("/sys/kernel/security/lockdown")):
        return Finding(
            "lockdown",
            "missing",
            "the kernel is locked down for confidentiality: no program may look at its requests",
            "start it with lockdown=integrity, or image the disks offline",
        )
    return Finding("lockdown", "ok", "the kernel lets the tracker look at requests")


def _hot_rights() -> Finding:
    if os.geteuid() != 0 or not may_administer():
        return Finding(
            "rights to track and freeze",
            "missing",
            "loading the tracker and freezing filesystems need CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN",
            "run it as root, outside of containers",
        )
    return Finding("rights to track and freeze", "ok", "root")


def _freezing() -> Finding:
    """Tell which of what is mounted can be held still; that is asked of the kernel only then."""
    found = find_filesystems(disks_in_use()).filesystems
    writable = [each for each in found if not each.read_only]
    frozen = [f"{each.point} ({each.kind})" for each in writable if each.freezes]
    others = [f"{each.point} ({each.kind})" for each in writable if not each.freezes]
    detail = f"to be frozen in an image: {', '.join(frozen) or 'nothing'}"
    if others:
        return Finding(
            "freezing",
            "limited",
            f"{detail}; not {', '.join(others)}: these are crash-consistent in an image",
            "nothing for an EFI partition; unmount others, or mount them read-only",
        )
    return Finding("freezing", "ok", detail)


# -- looking --------------------------------------------------------------------------


def may_administer() -> bool:
    """Whether the kernel lets this process attach, mount and freeze (CAP_SYS_ADMIN)."""
    found = re.search(
        r"^CapEff:\s*([0-9a-f]+)$", read_text(Path("/proc/self/status")), re.MULTILINE
    )
    return found is None or bool(int(found[1], 16) >> _CAP_SYS_ADMIN & 1)
