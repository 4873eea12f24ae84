"""What works on this machine: the kernel, the rights, the tools; and what to do about the rest."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from freezeframe.access.attach import attachments
from freezeframe.access.boot.accelerator import why_no_kvm
from freezeframe.access.boot.firmware import uefi_firmware
from freezeframe.access.fuse import SUBTYPE, load_binding
from freezeframe.app.hot_doctor import Finding, hot_processing, may_administer
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import MIB, human_size
from freezeframe.system.memory import available_memory
from freezeframe.system.mounting import answers
from freezeframe.system.mounts import own_mounts
from freezeframe.system.run import run, which
from freezeframe.system.sysfs import read_text
from freezeframe.system.tools import Package, packages

#: The bound the program keeps to, and as much again for everybody else.
_ENOUGH_MEMORY = 800 * MIB
#: Filesystems that are grown while mounted, by the kernel.
_GROWN_MOUNTED = ("xfs", "btrfs")
_FILESYSTEMS = ("ext4", "xfs", "btrfs", "vfat", "exfat", "ntfs3", "f2fs")


def examine() -> list[Finding]:
    """Look at everything the program relies on. Changes nothing, needs no rights."""
    return [
        _python(),
        _kernel(),
        _rights(),
        _memory(),
        _loop(),
        _device_mapper(),
        _fuse(),
        _filesystems(),
        *(_package(package) for package in packages() if _is_looked_for(package)),
        _uefi(),
        _accelerator(),
        _restic(),
        *hot_processing(),
        *images_in_use(),
        *_not_verified(),
    ]


# -- the machine ----------------------------------------------------------------------


def _python() -> Finding:
    # Older ones cannot even import the program.
    return Finding("Python", "ok", platform.python_version())


def _kernel() -> Finding:
    name = f"{platform.system()} {platform.release()}"
    if platform.system() != "Linux":
        return Finding("kernel", "missing", f"{name}; disks are read on Linux", "run it on Linux")
    return Finding("kernel", "ok", name)


def _rights() -> Finding:
    if os.geteuid() != 0:
        return Finding(
            "rights",
            "limited",
            "not root: disk image files only, no devices",
            "sudo freezeframe …",
        )
    if not may_administer():
        return Finding(
            "rights",
            "limited",
            "root without CAP_SYS_ADMIN (a container?): nothing can be attached or mounted",
            "run it outside of the container",
        )
    return Finding("rights", "ok", "root")


def _memory() -> Finding:
    free = available_memory()
    detail = f"{human_size(free)} available"
    if free < _ENOUGH_MEMORY:
        return Finding("memory", "limited", detail, "use fewer threads, or stop other programs")
    return Finding("memory", "ok", detail)


def _loop() -> Finding:
    use = "to grow filesystems in disk image files"
    if Path("/dev/loop-control").exists():
        return Finding("loop devices", "ok", use)
    return Finding("loop devices", "missing", f"needed {use}", "modprobe loop")


def _device_mapper() -> Finding:
    known = "device-mapper" in read_text(Path("/proc/misc"))
    if known:
        return Finding("device-mapper", "ok", "LVM and encrypted volumes can be used as sources")
    return Finding(
        "device-mapper",
        "limited",
        "LVM and encrypted volumes cannot be opened here; disks that hold them can be imaged",
        "modprobe dm-mod",
    )


def _fuse() -> Finding:
    use = "to show images as files and devices (mount, attach)"
    try:
        load_binding()
    except FreezeframeError as error:
        return Finding("FUSE", "limited", f"{error.message}; needed {use}", error.hint)
    return Finding("FUSE", "ok", use)


def _filesystems() -> Finding:
    known = [kind for kind in _FILESYSTEMS if _knows(kind)]
    unknown = [kind for kind in _FILESYSTEMS if kind not in known]
    detail = f"mounts {', '.join(known) or 'none'}"
    if unknown:
        detail += f"; not {', '.join(unknown)}"
    lost = [kind for kind in _GROWN_MOUNTED if kind in unknown]
    if lost:
        return Finding(
            "filesystems",
            "limited",
            f"{detail}. Images need none; restore --grow cannot grow {', '.join(lost)} here",
            f"modprobe {' '.join(lost)}",
        )
    return Finding("filesystems", "ok", f"{detail}. Images need none")


def _knows(kind: str) -> bool:
    """Whether the kernel has a filesystem, loaded or as a module it can load."""
    if kind in read_text(Path("/proc/filesystems")).split():
        return True
    folder = Path("/lib/modules", platform.release())
    listed = "\n".join(read_text(folder / name) for name in ("modules.dep", "modules.builtin"))
    return re.search(rf"/{kind}\.ko(\.\w+)?(:|$)", listed, re.MULTILINE) is not None


# -- tools ----------------------------------------------------------------------------


def _is_looked_for(package: Package) -> bool:
    """Whether a package is one of tools the program runs; libraries are looked for apart."""
    return package.needed_for == "run" and bool(package.tools)


def _package(package: Package) -> Finding:
    lost = [tool for tool in package.tools if which(tool) is None]
    if lost:
        detail = f"{', '.join(lost)} not found; needed {package.purpose}"
        return Finding(package.name, "missing", detail, f"apt-get install {package.name}")
    return Finding(package.name, "ok", f"{', '.join(package.tools)}: {package.purpose}")


def _uefi() -> Finding:
    use = "to start machines with UEFI"
    if uefi_firmware() is None:
        return Finding("ovmf", "limited", f"not found; needed {use}", "apt-get install ovmf")
    return Finding("ovmf", "ok", use)


def _accelerator() -> Finding:
    """Try KVM for real, where there is a QEMU to try it with."""
    qemu = which("qemu-system-x86_64")
    if qemu is None:
        return Finding(
            "KVM", "limited", "not tried: there is no QEMU", "apt-get install qemu-system-x86"
        )
    if reason := why_no_kvm(qemu):
        return Finding(
            "KVM",
            "limited",
            f"{reason}: machines are started by emulation, some ten times slower",
            "let this machine, if it is a virtual one itself, have nested virtualisation",
        )
    return Finding("KVM", "ok", "a trial guest ran: machines are started at full speed")


def _restic() -> Finding:
    use = "another program that reads the repositories; not needed"
    if which("restic") is None:
        return Finding("restic", "limited", f"not found: {use}", "apt-get install restic")
    try:
        said = run(["restic", "version"], timeout=10).stdout.decode(errors="replace")
    except FreezeframeError as error:
        return Finding("restic", "limited", f"{error.message}: {use}", "apt-get install restic")
    return Finding("restic", "ok", f"{' '.join(said.split()[:2])}: {use}")


# -- images that are mounted or attached ------------------------------------------------


def images_in_use() -> list[Finding]:
    """Name mounts and devices of ours; of those that nobody serves any more, the way out."""
    found = []
    attached = attachments()
    private = {each.folder for each in attached}
    for each in own_mounts():
        if each.kind != f"fuse.{SUBTYPE}" or each.point in private:
            continue
        if answers(Path(each.point)):
            found.append(Finding("mounted images", "ok", f"at {each.point}"))
            continue
        found.append(
            Finding(
                "mounted images",
                "limited",
                f"at {each.point} is a mount whose process died: all in it fails",
                f"umount -R -l {shlex.quote(each.point)}",
            )
        )
    for device in attached:
        what = f"{device.device}: {device.part} of image {device.image}"
        if device.alive():
            found.append(Finding("attached images", "ok", f"{what}, served by pid {device.pid}"))
        else:
            found.append(
                Finding(
                    "attached images",
                    "limited",
                    f"{what}, whose process died: it cannot be read any more",
                    f"freezeframe detach {device.device}",
                )
            )
    return found


# -- what nobody has seen work ----------------------------------------------------------


def _not_verified() -> Iterator[Finding]:
    yield Finding(
        "real drives",
        "not verified",
        "tested on loop devices and virtual disks with sectors of 512 and 4096 bytes only; "
        "not on NVMe, SATA, USB drives, firmware RAID or zoned disks",
        "compare an image with its disk: freezeframe verify IMAGE --against DEVICE",
    )
    yield Finding(
        "hot processing elsewhere",
        "not verified",
        "measured on Linux 6.18 and 6.1 only; NVMe with several paths is refused",
        "restore an image onto another disk and check it, before relying on it",
    )
