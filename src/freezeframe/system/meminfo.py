"""How much memory the machine has to spare."""

from __future__ import annotations

import re
from pathlib import Path


def available_memory() -> int:
    """Return the bytes that can be used without swapping (MemAvailable); 0 where unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
