"""Measure `freezeframe boot --check` against the boot of the same disk as a raw file.

Usage: python bench/boot.py [--rounds 3] [--firmware bios|uefi] [--accelerator auto|kvm|emulation]

The same virtual machine in both cases, watched in the same way until it asks for a login; ours is
the whole process, the image's opening and the drill's storing included. Needs root for the Debian
system disk, which is made at the first call.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from freezeframe.access.boot.accelerator import Accelerator, choose_accelerator, emulator
from freezeframe.access.boot.firmware import Firmware
from freezeframe.access.boot.machine import Machine, MachineDisk, command
from freezeframe.access.boot.signs import watch, watch_options
from freezeframe.core.units import GIB
from freezeframe.image.manifest import DiskRecord
from freezeframe.system.run import run
from freezeframe.testing.machine import system_disk
from freezeframe.testing.program import Client

_TARGET = 1.3


def main() -> int:
    """Measure, print; 0 if the target is met, 1 if not."""
    parser = argparse.ArgumentParser(description="Measure restore drills.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--firmware", choices=["bios", "uefi"], default="bios")
    parser.add_argument("--accelerator", choices=["auto", "kvm", "emulation"], default="auto")
    options = parser.parse_args()
    disk = system_disk()
    accelerator = choose_accelerator(emulator(), options.accelerator)
    print(f"run by {accelerator.name}: {accelerator.why}", flush=True)
    raw, ours = [], []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-boot-") as name:
        folder = Path(name)
        client = Client(folder / "repository")
        client.run("init")
        client.run("backup", "--offline", str(disk))
        for number in range(options.rounds):
            raw.append(_raw(disk, Firmware(options.firmware), accelerator, folder))
            ours.append(_check(client, options.firmware, accelerator.name))
            print(f"round {number + 1}: raw {raw[-1]:.1f} s, image {ours[-1]:.1f} s", flush=True)
    ratio = statistics.median(ours) / statistics.median(raw)
    noise = f"{min(ours) / max(raw):.2f}-{max(ours) / min(raw):.2f}"
    print(
        f"\n| boot to a login ({options.firmware}, {accelerator.name}) | median s | min-max |\n"
        "| --- | --- | --- |\n"
        f"| raw file | {statistics.median(raw):.1f} | {min(raw):.1f}-{max(raw):.1f} |\n"
        f"| `freezeframe boot --check` | {statistics.median(ours):.1f} |"
        f" {min(ours):.1f}-{max(ours):.1f} |\n\n"
        f"ratio {ratio:.2f} (noise {noise}), at most {_TARGET}"
    )
    return 0 if ratio <= _TARGET else 1


def _raw(disk: Path, firmware: Firmware, accelerator: Accelerator, folder: Path) -> float:
    """Boot the raw file under a throw-away overlay; return the seconds to the prompt."""
    overlay = folder / "overlay"
    size = disk.stat().st_size
    run(("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k",
         "-F", "raw", "-b", str(disk), str(overlay)))  # fmt: skip
    record = DiskRecord(
        name="disk", path=str(disk), size=size, sector=512, table="gpt", segment=GIB,
        used=size, regions=(),
    )  # fmt: skip
    base = {"driver": "file", "filename": str(disk), "read-only": True}
    machine = Machine(
        disks=(MachineDisk(record, "virtio", overlay, base, fleeting=True),),
        firmware=firmware,
        accelerator=accelerator,
        memory=GIB,
        cpus=2,
    )
    own = folder / "raw"
    own.mkdir()
    line = command(emulator(), machine, own) + watch_options(own, screen=firmware is Firmware.BIOS)
    begun = time.perf_counter()
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    try:
        outcome = watch(process, own, 600, lambda: None)
    finally:
        process.kill()
        process.wait()
    seconds = time.perf_counter() - begun
    run(("rm", "-r", str(own), str(overlay)))
    if not outcome.sign:
        raise SystemExit(f"the raw disk did not come up: {outcome.reason}\n{outcome.text[-2000:]}")
    return seconds


def _check(client: Client, firmware: str, accelerator: str) -> float:
    begun = time.perf_counter()
    client.run("boot", "latest", "--check", "--memory", "1G", "--firmware", firmware,
               "--accelerator", accelerator)  # fmt: skip
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
