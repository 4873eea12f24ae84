"""Whether this machine really runs virtual machines in hardware: tried, not assumed.

`/dev/kvm` is there in many places where it fails half-way: nested machines that hang as soon
as a guest runs real code. So a guest of 512 bytes is started: it waits for timer interrupts,
enters long mode with paging on, as every kernel does, and says so. What does not end in
time counts as not working.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.boot.trial import BOOT_SECTOR, EXIT_CODE, WORD
from freezeframe.core.errors import ToolMissing, UsageError
from freezeframe.system.run import which

KVM, EMULATION = "kvm", "emulation"
_DEVICE = Path("/dev/kvm")
#: The guest takes a fifth of a second where all is well.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How a virtual machine is run, and why so."""

    #: `kvm` or `emulation`.
    name: str
    why: str

    @property
    def options(self) -> list[str]:
        """Return QEMU's options."""
        if self.name == KVM:
            return ["-accel", "kvm", "-cpu", "host"]
        return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def choose_accelerator(qemu: str, wanted: str) -> Accelerator:
    """Return what is `wanted` (`kvm`, `emulation`), or with `auto` the fastest that works.

    `qemu` is the emulator's path. Raises `UsageError` where `kvm` is wanted and does not work.
    """
    if wanted == EMULATION:
        return Accelerator(EMULATION, "as was asked for")
    reason = why_no_kvm(qemu)
    if not reason:
        return Accelerator(KVM, "a trial guest ran")
    if wanted == KVM:
        raise UsageError(f"KVM does not work here: {reason}", hint="leave --accelerator out")
    return Accelerator(EMULATION, f"KVM does not work here: {reason}")


@functools.cache
def why_no_kvm(qemu: str) -> str:
    """Start a small guest under KVM; return why it did not work, nothing where it did."""
    if not _DEVICE.exists():
        return f"there is no {_DEVICE}"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"{_DEVICE} may not be opened"
    return try_guest(qemu, ["-accel", "kvm", "-cpu", "host"], patience=_PATIENCE)


def try_guest(qemu: str, options: list[str], *, patience: float) -> str:
    """Run the trial guest with some options of QEMU; return what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="freezeframe-trial-") as folder:
        disk = Path(folder) / "disk"
        disk.write_bytes(BOOT_SECTOR)
        said = Path(folder) / "said"
        command = [
            qemu, *options, "-nodefaults", "-display", "none", "-m", "64", "-no-reboot",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-serial", f"file:{said}",
            "-drive", f"file={disk},format=raw,if=ide,snapshot=on",
        ]  # fmt: skip
        try:
            # A process that hangs in the kernel cannot be waited for: it is killed, and left.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a trial guest hung for {patience:.0f} s"
        if done.returncode == EXIT_CODE and WORD in said.read_bytes():
            return ""
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"a trial guest ended with {done.returncode}"


def emulator() -> str:
    """Return the path of QEMU. Raises `ToolMissing`."""
    found = which("qemu-system-x86_64")
    if found is None:
        raise ToolMissing("qemu-system-x86_64", "qemu-system-x86", "to start machines")
    return found
