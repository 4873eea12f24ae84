"""Whether the tracker was told of every write: its own count against the kernel's.

The kernel adds what a request has written to the statistics of its disk right after the
tracepoint (blk_update_request, block/blk-mq.c), so what the listeners have counted and what
/sys/dev/block/…/stat tells grow alike. Where the statistics grow by more, a write was left
out, and nobody can say which. Seen on a Linux 6.18: it ran no BPF program in a soft interrupt
that came while its init was on the processor (one write in 40,000), and counted none of
these as missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system import sysfs
from freezeframe.tracking.shared import State

#: Programs that count, in the order of their counters, by the way of marking.
COUNTERS = {"requests": ("request_1", "request_2", "request_3"), "classic": ("classic",)}
#: Programs that listen alone: what the kernel left out of one of these is lost.
_ALONE = ("classic", "bio_queued")
#: Looks for a moment in which nothing is written, when counting begins.
_LOOKS = 50
#: Columns of a disk's statistics (Documentation/block/stat.rst): sectors written, discarded.
_WRITTEN, _DISCARDED = 6, 13


@dataclass(frozen=True, slots=True)
class Counted:
    """Where counting began."""

    #: Sectors that the kernel was ahead of each counter; empty where it keeps no statistics.
    ahead: tuple[int, ...]
    #: How often each program had been left out, as far as the kernel says.
    misses: dict[str, int]


def written(number: str) -> int | None:
    """Return how many sectors of 512 bytes were ever written to a disk (`8:0`), and discarded.

    None where the kernel does not keep count of just these.
    """
    folder = Path("/sys/dev/block") / number
    queue = folder / "queue"
    columns = sysfs.read_text(folder / "stat").split()
    if len(columns) <= _WRITTEN or not sysfs.read_number(queue / "iostats"):
        return None
    if sysfs.read_number(queue / "iostats_passthrough"):
        return None
    return sum(int(columns[n]) for n in (_WRITTEN, _DISCARDED) if n < len(columns))


def begin(
    number: str, mode: str, sectors: Callable[[], tuple[int, ...]], misses: dict[str, int]
) -> Counted:
    """Note where counting begins; `sectors` gives the counters of now."""
    names = COUNTERS.get(mode, ())
    ahead: list[int] = []
    for _ in range(_LOOKS):
        before, theirs, after = sectors(), written(number), sectors()
        if theirs is None or not names:
            return Counted((), misses)
        # What is written between the two makes it too large, never too small.
        found = [theirs - ours for ours, _ in zip(before, names, strict=False)]
        ahead = [min(pair) for pair in zip(ahead or found, found, strict=True)]
        if before == after:
            return Counted(tuple(found), misses)
    return Counted(tuple(ahead), misses)


def left_out(
    counted: Counted, mode: str, theirs: int | None, state: State, misses: Mapping[str, int]
) -> tuple[str, ...]:
    """Return what the kernel did not tell since counting began; empty: it told everything.

    `theirs` is what `written` gave before `state` was read, and `misses` were read last. A
    listener that was left out because it was at work already counts too little, while another
    one has seen the write: only one that never was can tell.
    """
    found = [
        f"the kernel left {name} out {misses[name] - counted.misses.get(name, 0)} times"
        for name in _ALONE
        if misses.get(name, 0) > counted.misses.get(name, 0)
    ]
    if theirs is None or not counted.ahead:
        return tuple(found)
    lacking = [
        theirs - ours - ahead
        for name, ours, ahead in zip(COUNTERS[mode], state.sectors, counted.ahead, strict=False)
        if name in _ALONE or misses.get(name, 0) == counted.misses.get(name, 0)
    ]
    lost = min(lacking, default=0)
    if lost > 0:
        found.append(f"the kernel did not tell of {lost} sectors that were written to it")
    return tuple(found)
