"""What idle tracking costs: random writes with it and without, in pairs.

Usage: python bench/tracking.py [--rounds 7] [--seconds 8] [--size 1024]

fio writes 4 KiB at random places, queue depth 16, on a loop device over a file in memory: no
real disk is as fast, so the share of the marking is as large as it can be. Once with at most
20,000 writes a second, once with as many as there can be. Which of a pair comes first takes
turns. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from freezeframe.core.units import MIB
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.tracking import ensure_mounts, tracked

CAP = 20_000
#: The least that the writes with tracking may be of those without, at 20,000 a second.
TARGET = 0.95


def fio(device: str, seconds: int, cap: int) -> tuple[float, float]:
    """Return writes a second, and the 99th percentile of their time in microseconds."""
    command = [
        "fio", "--name=idle", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--direct=1",
        "--ioengine=libaio", "--iodepth=16", "--time_based", f"--runtime={seconds}",
        "--ramp_time=1", "--randrepeat=0", "--output-format=json",
    ]  # fmt: skip
    if cap:
        command.append(f"--rate_iops=,{cap}")
    written = json.loads(run(command).stdout)["jobs"][0]["write"]
    return written["iops"], written["clat_ns"]["percentile"]["99.000000"] / 1000


def measured(device: str, seconds: int, cap: int, *, tracking: bool) -> tuple[float, float]:
    """Measure once."""
    if not tracking:
        return fio(device, seconds, cap)
    with tracked(device) as tracker:
        found = fio(device, seconds, cap)
        if not tracker.count() or tracker.broken():
            sys.exit(f"nothing was marked, or not all: {tracker.broken()}")
    return found


def main() -> int:
    """Measure, print the rows; 0 if the target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024, help="of the disk, MiB")
    options = parser.parse_args()
    ensure_mounts()
    met = True
    print("| writes a second | without | with | ratio (median) | ratios | p99 without | p99 with |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-") as folder:
        path = Path(folder) / "disk"
        path.touch()
        os.truncate(path, options.size * MIB)
        with attached(path) as device:
            # So that no write has to find memory first.
            run(["blkdiscard", "-z", device])
            fio(device, 2, 0)
            for cap in (CAP, 0):
                rows: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
                for number in range(options.rounds):
                    for tracking in (False, True) if number % 2 else (True, False):
                        rows[tracking].append(
                            measured(device, options.seconds, cap, tracking=tracking)
                        )
                ratios = [
                    with_it[0] / without[0]
                    for with_it, without in zip(rows[True], rows[False], strict=True)
                ]
                middle = statistics.median(ratios)
                met = met and (not cap or middle >= TARGET)
                without, with_it = (
                    [statistics.median(column) for column in zip(*rows[key], strict=True)]
                    for key in (False, True)
                )
                print(
                    f"| {f'{cap:,} at most' if cap else 'no limit'} | {without[0]:,.0f} | "
                    f"{with_it[0]:,.0f} | {middle:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | "
                    f"{without[1]:.0f} µs | {with_it[1]:.0f} µs |",
                    flush=True,
                )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
