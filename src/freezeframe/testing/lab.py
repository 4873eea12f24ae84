"""A Debian machine that runs a Python script of the tests as root, with blank disks to use.

For what the kernel of the testing machine lacks: device-mapper, md, FAT; and for what must
not be done to it: freezing the root filesystem. Booted straight into its kernel, under
software emulation, from a disk that no run writes to.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import freezeframe
from freezeframe.core.errors import ToolFailed, ToolMissing
from freezeframe.core.units import GIB, MIB
from freezeframe.system.mounts import own_mounts
from freezeframe.system.run import run, search_path, which
from freezeframe.testing import machine

_PACKAGES = (
    "systemd-sysv,udev,kmod,initramfs-tools,linux-image-cloud-amd64,python3,util-linux,fdisk,"
    "e2fsprogs,xfsprogs,btrfs-progs,dosfstools,lvm2,thin-provisioning-tools,cryptsetup-bin,mdadm,"
    "libbpf1"
)
_SIZE = 2 * GIB

Bus = Literal["virtio", "nvme", "scsi"]


@dataclass(frozen=True, slots=True)
class LabDisk:
    """A disk of the machine's, found by its serial number, `disk0` and so on."""

    #: In bytes; counts where there is no file yet.
    size: int
    #: How it is attached: /dev/disk/by-id/virtio-…, nvme-QEMU_NVMe_Ctrl_…, scsi-0QEMU_…
    bus: Bus = "virtio"
    #: Where it lies and stays; thrown away in the end where that is not told.
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """What the machine is booted from."""

    disk: Path
    kernel: Path
    initrd: Path


def lab_system(cache: Path | None = None) -> Lab:
    """Return the machine's system disk, made at the first call, which takes a minute or two.

    Kept like `machine.system_disk`. Needs root. Raises `ToolMissing`, `ToolFailed`.
    """
    folder = cache or machine._default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256(
        f"{_PACKAGES} {machine.SCRIPT_SERVICE} {_SIZE} {machine._suite()}".encode()
    ).hexdigest()
    place = folder / f"lab-{recipe[:16]}"
    with machine._locked(folder / "lab.lock"):
        if not place.exists():
            for old in folder.glob("lab-*"):
                _remove(old)
            unfinished = place.with_suffix(".part")
            unfinished.mkdir()
            _build(unfinished)
            unfinished.rename(place)
    return Lab(place / "disk.raw", place / "vmlinuz", place / "initrd.img")


def _remove(folder: Path) -> None:
    """Remove a folder; what a build that was killed has mounted in it is unmounted before."""
    mounted = [mount.point for mount in own_mounts() if Path(mount.point).is_relative_to(folder)]
    for point in reversed(mounted):
        run(("umount", point))
    shutil.rmtree(folder)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="rootfs-") as temporary:
        root = Path(temporary) / "root"
        included = f"--include={_PACKAGES}"
        run(("mmdebstrap", "--quiet", "--variant=minbase", included, *machine._apt_options(),
             machine._suite(), str(root), *machine._apt_sources()))  # fmt: skip
        (root / "etc/hostname").write_text("lab\n")
        machine.run_scripts(root)
        shutil.copyfile(root / "vmlinuz", folder / "vmlinuz")
        shutil.copyfile(root / "initrd.img", folder / "initrd.img")
        _make_disk(folder / "disk.raw", root, _SIZE, "lab-root")


def _make_disk(disk: Path, root: Path, size: int, label: str) -> None:
    with disk.open("xb") as file:
        file.truncate(size)
    run(("mke2fs", "-q", "-t", "ext4", "-L", label, "-d", str(root), str(disk)))


def run_in_lab(
    script: str,
    *,
    disks: Sequence[int | LabDisk] = (),
    packages: Sequence[str] = (),
    system: Path | None = None,
    memory: int = 1024,
    timeout: float = 300,
) -> str:
    """Run a script in a fresh machine and return what it printed.

    It finds freezeframe, and `packages` of the testing machine's own Python (`numpy`), in
    its path. With `system` the machine is that disk, as `machine.system_disk` makes them: it
    boots by its own loader and what it writes stays. `memory` in MiB. Blank disks of so many
    bytes each are found by `/dev/disk/by-id/virtio-disk0` and so on, or as `LabDisk` tells.
    All disks are thrown away in the end, its root too, except those that lie in a file of the
    caller's. Raises `ToolMissing`; `ToolFailed` with all it printed where the script fails, or
    has not ended after `timeout` seconds.
    """
    qemu = which("qemu-system-x86_64")
    if qemu is None:
        raise ToolMissing("qemu-system-x86_64", "qemu-system-x86", "to run a machine")
    root = (
        _lab_root(lab_system()) if system is None
        else _drive(system, "root", "cache=unsafe,discard=unmap")
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="freezeframe-lab-") as temporary:
        folder = Path(temporary)
        console, output = folder / "console", folder / "output"
        command = [
            qemu, *machine.EMULATED, "-m", str(memory),
            "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
            "-serial", f"file:{console}", "-serial", f"file:{output}",
            *root,
            *_drive(_sources(folder, script, packages), "sources", "snapshot=on"),
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            command += _test_disk(folder, number, disk)
        ended = _run_machine(command, folder, timeout)
        said, booting = (
            file.read_text(errors="replace").replace("\r", "") if file.exists() else ""
            for file in (output, console)
        )
    code = re.search(r"^lab: exit=(\d+)$", said, re.MULTILINE)
    if code is None or code[1] != "0":
        # What the script said last is what the error's one line shows; the rest stands below.
        told = f"{booting[-4000:]}\n{ended}\n{said[: code.start() if code else None]}"
        failure = ToolFailed("the script in the machine", int(code[1]) if code else -1, told)
        failure.add_note(told)
        raise failure
    return said[: code.start()]


def _lab_root(lab: Lab) -> list[str]:
    return [
        "-kernel", str(lab.kernel), "-initrd", str(lab.initrd),
        "-append", f"root=LABEL=lab-root rw panic=-1 quiet {machine.KERNEL_OPTIONS}",
        *_drive(lab.disk, "root", "snapshot=on"),
    ]  # fmt: skip


def _test_disk(folder: Path, number: int, disk: int | LabDisk) -> list[str]:
    """Make a blank disk where there is none, and return QEMU's options for it."""
    wanted = LabDisk(disk) if isinstance(disk, int) else disk
    path = wanted.file or folder / f"disk{number}"
    if not path.exists():
        path.touch()
        os.truncate(path, wanted.size)
    return _drive(path, f"disk{number}", "cache=unsafe,discard=unmap", wanted.bus)


#: The device of each kind of disk; SCSI has one host each.
_BUSES = {
    "virtio": ("virtio-blk-pci,drive={0},serial={0}",),
    "nvme": ("nvme,drive={0},serial={0}",),
    "scsi": ("virtio-scsi-pci,id=host-{0}", "scsi-hd,bus=host-{0}.0,drive={0},serial={0}"),
}


def _drive(path: Path, serial: str, options: str, bus: Bus = "virtio") -> list[str]:
    arguments = ["-drive", f"file={path},format=raw,if=none,id={serial},{options}"]
    for device in _BUSES[bus]:
        arguments += ["-device", device.format(serial)]
    return arguments


def _sources(folder: Path, script: str, packages: Sequence[str]) -> Path:
    """Make a disk with the script, this program, and packages of this Python."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "script.py").write_text(script)
    for name in ("freezeframe", *packages):
        if name == "freezeframe":
            place = Path(freezeframe.__file__).parent
        else:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            place = Path(spec.origin)
            if place.name != "__init__.py":
                # A module of one file.
                shutil.copy2(place, tree)
                continue
            place = place.parent
        # With what is compiled already: the same version of Python there need not do it again,
        # which takes it a minute, and could not keep it.
        ignored = shutil.ignore_patterns("tests")
        shutil.copytree(place, tree / name, ignore=ignored)
        # Wheels keep the libraries they bring beside the package.
        libraries = place.with_name(f"{name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, tree / libraries.name)
    used = sum(path.lstat().st_size + 4096 for path in tree.rglob("*"))
    disk = folder / "sources.raw"
    _make_disk(disk, tree, used * 5 // 4 // MIB * MIB + 32 * MIB, machine.SCRIPT_LABEL)
    shutil.rmtree(tree)
    return disk


def _run_machine(command: list[str], folder: Path, timeout: float) -> str:
    """Run the machine until it powers off; return why it did not, and what QEMU said."""
    with (folder / "errors").open("w+b") as errors:
        env = dict(os.environ, LC_ALL="C", PATH=search_path())
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=env
        )
        started = time.monotonic()
        try:
            process.wait(timeout)
            reason = ""
        except subprocess.TimeoutExpired:
            reason = f"no end after {time.monotonic() - started:.0f} s\n"
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        return errors.read().decode(errors="replace") + reason
