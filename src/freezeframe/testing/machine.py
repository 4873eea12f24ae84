"""A Debian system disk, and booting it in a virtual machine, with BIOS and with UEFI.

The disk is made by mmdebstrap from the machine's own package sources: a GPT with a BIOS boot
partition, an EFI system partition and an ext4 root, found by UUIDs all the way. It needs
root, no loop device, and neither FAT nor device-mapper in the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freezeframe.core.errors import ToolFailed, ToolMissing
from freezeframe.core.units import MIB, SECTOR
from freezeframe.system.run import run, search_path, which
from freezeframe.testing import bootloader

Firmware = Literal["bios", "uefi"]

DISK_SIZE = 1536 * MIB
BIOS_START, BIOS_SIZE = 1 * MIB, 1 * MIB
ESP_START, ESP_SIZE = 2 * MIB, 64 * MIB
ROOT_START = ESP_START + ESP_SIZE
#: The root partition's number, last on the disk so that it can be grown.
ROOT_NUMBER = 3
#: Room for the backup GPT, and whole MiB before it.
ROOT_SIZE = DISK_SIZE - ROOT_START - MIB
ROOT_UUID = "f0f0a000-1111-4222-8333-444455556666"
ESP_ID = "F0F0A001"

_PACKAGES = (
    "systemd-sysv,udev,kmod,e2fsprogs,initramfs-tools,linux-image-cloud-amd64,python3,libbpf1"
)
#: What nobody reads in a test: a seventh of all files' bytes.
_UNREAD = tuple(
    f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man")
)

_TABLE = f"""\
label: gpt
unit: sectors
start={BIOS_START // SECTOR}, size={BIOS_SIZE // SECTOR}, \
type=21686148-6449-6E6F-744E-656564454649, name="BIOS boot"
start={ESP_START // SECTOR}, size={ESP_SIZE // SECTOR}, \
type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI system"
start={ROOT_START // SECTOR}, size={ROOT_SIZE // SECTOR}, \
type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root"
"""

#: A processor without the wide vectors, which are slow to emulate, and a kernel that does not
#: guard against one that guesses: a fifth of a machine's time.
EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2")
KERNEL_OPTIONS = "console=ttyS0,115200n8 mitigations=off init_on_alloc=0"

_GRUB = f"""\
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB on $grub_platform"
linux /vmlinuz root=UUID={ROOT_UUID} ro panic=1 {KERNEL_OPTIONS}
initrd /initrd.img
boot
"""

# Both are mounted without `nofail`: a filesystem that is missing or broken ends in systemd's
# emergency shell, which never asks for a login.
_FSTAB = f"""\
UUID={ROOT_UUID} / ext4 defaults,errors=remount-ro 0 1
UUID={ESP_ID[:4]}-{ESP_ID[4:]} /boot/efi vfat umask=0077 0 0
"""

# Tells the test from inside what the machine sees, before it asks for a login. The EFI
# variables are there only if the firmware was UEFI.
_REPORT = """\
[Unit]
After=local-fs.target
Before=serial-getty@ttyS0.service
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'echo "report: firmware=$$([ -d /sys/firmware/efi ] && echo uefi || \
echo bios) root-blocks=$$(stat -f -c %%b /) block-size=$$(stat -f -c %%S /) \
esp=$$(stat -f -c %%T /boot/efi) failed=$$(systemctl list-units --failed --no-legend | wc -l)"'
[Install]
WantedBy=multi-user.target
"""

#: The label of a disk that brings a script to be run, where there is one.
SCRIPT_LABEL = "lab-sources"

# Runs a test's script as root, if a disk with one is there, and switches the machine off.
# Errors and all go to a serial port of their own: on the console the kernel and a login prompt
# write too. By the disk's label, because the order of disks is not to be relied upon.
SCRIPT_SERVICE = f"""\
[Unit]
After=multi-user.target
ConditionPathExists=/dev/disk/by-label/{SCRIPT_LABEL}
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec >/dev/ttyS1 2>&1; mkdir -p /run/lab; \
mount -o ro LABEL={SCRIPT_LABEL} /run/lab; cd /run; \
PYTHONPATH=/run/lab PYTHONUNBUFFERED=1 python3 /run/lab/script.py; \
echo "lab: exit=$$?"; systemctl --force --force poweroff'
[Install]
WantedBy=default.target
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """A machine that came up to its login prompt."""

    #: From the start of the virtual machine to the prompt.
    seconds: float
    #: All that it wrote to its serial console.
    log: str

    @property
    def report(self) -> dict[str, str]:
        """What the machine said of itself: firmware, root-blocks, block-size, esp, failed."""
        line = re.search(r"report: (.*?)\r?\n", self.log)
        return dict(pair.split("=", 1) for pair in line[1].split()) if line else {}


# -- making the disk ----------------------------------------------------------------


def system_disk(cache: Path | None = None) -> Path:
    """Return the Debian system disk (raw, 1.5 GiB, sparse), made at the first call: read only.

    Kept in `cache` (default: `freezeframe-tests` in the user's cache folder) under a name
    that changes with the recipe. Two processes may ask at once. Needs root and the
    package sources. Raises `ToolMissing`, `ToolFailed`.
    """
    folder = cache or _default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / f"system-{_recipe()}.raw"
    with _locked(folder / "lock"):
        if not disk.exists():
            for old in folder.glob("system-*.raw*"):
                old.unlink()
            unfinished = disk.with_suffix(".raw.part")
            build_system_disk(unfinished)
            unfinished.rename(disk)
    return disk


def build_system_disk(disk: Path) -> None:
    """Make the Debian system disk anew at `disk`. Raises `ToolMissing`, `ToolFailed`."""
    disk.unlink(missing_ok=True)
    with disk.open("xb") as file:
        file.truncate(DISK_SIZE)
    run(["sfdisk", "--quiet", str(disk)], stdin=_TABLE.encode())
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix="rootfs-") as folder:
        root = Path(folder) / "root"
        run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}",
             *_UNREAD, *_apt_options(), _suite(), str(root), *_apt_sources()])  # fmt: skip
        _configure(root)
        run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-U", ROOT_UUID, "-L", "root",
             "-d", str(root), "-E", f"offset={ROOT_START}", str(disk),
             f"{ROOT_SIZE // 1024}k"])  # fmt: skip
    # One sector a cluster: FAT32 with fewer than 65,525 clusters is read as FAT16 by some.
    run(["mkfs.vfat", "-F", "32", "-s", "1", "-i", ESP_ID, "-n", "ESP",
         "-h", str(ESP_START // SECTOR), "--offset", str(ESP_START // SECTOR),
         str(disk), str(ESP_SIZE // 1024)])  # fmt: skip
    bootloader.write_bios_loader(disk, BIOS_START, BIOS_SIZE, ROOT_UUID)
    bootloader.write_uefi_loader(disk, ESP_START, ROOT_UUID)


def _configure(root: Path) -> None:
    """Make what mmdebstrap left a machine that boots to a login on its serial console."""
    for name, text in {
        "etc/fstab": _FSTAB,
        "etc/hostname": "freezeframe\n",
        "boot/grub/grub.cfg": _GRUB,
        "etc/systemd/system/report.service": _REPORT,
    }.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (root / "boot/efi").mkdir()
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "report.service").symlink_to("/etc/systemd/system/report.service")
    run_scripts(root)


def run_scripts(root: Path) -> None:
    """Have the system in a folder run a script it is brought on a disk (`SCRIPT_SERVICE`)."""
    units = root / "etc/systemd/system"
    wants = units / "default.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (units / "lab.service").write_text(SCRIPT_SERVICE)
    (wants / "lab.service").symlink_to("/etc/systemd/system/lab.service")


def _suite() -> str:
    """Return the release to install: the machine's own where that is Debian."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", "stable") if release["ID"] == "debian" else "stable"


def _apt_sources() -> list[str]:
    """Return the machine's own package sources of Debian, as lines; none: mmdebstrap's own."""
    if which("apt-get") is None:
        return []
    shown = "$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = run(
        ["apt-get", "indextargets", "--format", shown, "Created-By: Packages", "Origin: Debian"]
    )
    lines = sorted(set(listed.stdout.decode().splitlines()))
    return [line.split(" ", 1)[1] for line in lines if line.startswith(_suite())]


def _apt_options() -> list[str]:
    """Return the machine's own proxy settings for mmdebstrap's apt."""
    if which("apt-config") is None:
        return []
    dumped = run(["apt-config", "dump", "Acquire"]).stdout.decode().splitlines()
    wanted = (line for line in dumped if re.match(r'Acquire::https?::Proxy\S* "."', line))
    return [f"--aptopt={line.rstrip(';')}" for line in wanted]


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freezeframe-tests"


def _recipe() -> str:
    """Return a name that changes with how the disk is made."""
    sources = Path(__file__).read_bytes() + Path(bootloader.__file__).read_bytes()
    return hashlib.sha256(sources + _suite().encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- booting it ---------------------------------------------------------------------


def boot_to_login(
    disk: Path,
    firmware: Firmware = "bios",
    timeout: float = 240,
    *,
    image_format: Literal["raw", "qcow2"] = "raw",
) -> Boot:
    """Boot `disk` in a virtual machine until it asks for a login, then end the machine.

    Always by software emulation: it is the same everywhere, while `/dev/kvm` is often there
    and fails half-way (nested machines that hang in the firmware or after GRUB).

    Nothing is written to `disk`. `timeout` in seconds; some 20 s are usual. Raises
    `ToolMissing`; `ToolFailed` with the console's text where the machine stops or does not
    get there in time.
    """
    qemu = which("qemu-system-x86_64")
    if qemu is None:
        raise ToolMissing("qemu-system-x86_64", "qemu-system-x86", "to boot disks")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "console"
        command = [
            qemu, *EMULATED, "-m", "1024", "-display", "none", "-monitor", "none", "-no-reboot",
            "-nic", "none", "-serial", f"file:{log}",
            "-drive", f"file={disk},format={image_format},if=virtio,snapshot=on",
            *(_uefi(Path(folder)) if firmware == "uefi" else ()),
        ]  # fmt: skip
        # Not `run`: this program is to be watched and ended, not waited for.
        with (Path(folder) / "errors").open("w+b") as errors:
            env = dict(os.environ, LC_ALL="C", PATH=search_path())
            machine = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=env
            )
            try:
                seconds, reason = _watch(machine, log, timeout)
            finally:
                machine.kill()
                machine.wait()
            text = _text(log)
            if reason:
                errors.seek(0)
                said = errors.read().decode(errors="replace")
                output = f"{said}\n{text[-4000:]}\n{reason}"
                raise ToolFailed(" ".join(command), machine.returncode, output)
    return Boot(seconds, text)


def _watch(machine: subprocess.Popen[bytes], log: Path, timeout: float) -> tuple[float, str]:
    """Wait for the prompt; return the seconds it took, and why it did not come, or nothing."""
    started = time.monotonic()
    while True:
        stopped = machine.poll() is not None
        passed = time.monotonic() - started
        text = _text(log)
        if re.search(r"^\S+ login: ", text, re.MULTILINE):
            return passed, ""
        if "emergency mode" in text or "Kernel panic" in text:
            return passed, "the machine did not come up: emergency mode or panic"
        if stopped:
            return passed, "the virtual machine stopped by itself"
        if passed > timeout:
            return passed, f"no login after {timeout:.0f} s"
        time.sleep(0.1)


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _uefi(folder: Path) -> tuple[str, ...]:
    """Return the options for UEFI firmware with fresh variables, so nothing is remembered."""
    for suffix in ("_4M", ""):
        code = Path(f"/usr/share/OVMF/OVMF_CODE{suffix}.fd")
        if code.exists():
            variables = folder / "variables"
            shutil.copyfile(f"/usr/share/OVMF/OVMF_VARS{suffix}.fd", variables)
            return (
                "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
                "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
            )  # fmt: skip
    raise ToolMissing("OVMF_CODE.fd", "ovmf", "to boot with UEFI")
