"""A program that writes like a busy database, and measures how long it has to wait.

Usage: python bench/writer.py FILE RATE EVERY SEED

Writes 4 KiB at random places of FILE, RATE times a second (0: as fast as it can), with an
fdatasync every EVERY writes, until its standard input ends. Each line it reads makes it print
what happened since the last: seconds, writes, the longest time one write or sync took, and
the longest time without a write done (milliseconds).
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time

_BLOCK = 4096


def main() -> None:
    """Write, and answer."""
    path, rate, every, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    file = os.open(path, os.O_RDWR)
    blocks = os.fstat(file).st_size // _BLOCK
    chosen = random.Random(seed)
    data = chosen.randbytes(_BLOCK * 64)
    begun = last = time.monotonic()
    writes = total = 0
    longest = 0.0
    due = begun
    while True:
        number = chosen.randrange(64) * _BLOCK
        before = time.monotonic()
        os.pwrite(file, data[number : number + _BLOCK], chosen.randrange(blocks) * _BLOCK)
        total += 1
        writes += 1
        if total % every == 0:
            os.fdatasync(file)
            if select.select([sys.stdin], [], [], 0)[0]:
                if not sys.stdin.readline():
                    return
                now = time.monotonic()
                print(
                    json.dumps(
                        {
                            "seconds": now - begun,
                            "writes": writes,
                            "longest_ms": longest * 1000,
                        }
                    ),
                    flush=True,
                )
                begun, writes, longest = now, 0, 0.0
        last = time.monotonic()
        longest = max(longest, last - before)
        if rate:
            due = max(due + 1 / rate, last - 0.05)
            if due > last:
                time.sleep(due - last)


if __name__ == "__main__":
    main()
