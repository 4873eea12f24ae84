"""Whether a tracker's marks can be believed: everything that is looked at on every use.

Any doubt costs a full read; marks believed wrongly cost data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from freezeframe.system import sysfs
from freezeframe.tracking import counting, pinned
from freezeframe.tracking.counting import Counted
from freezeframe.tracking.disk import boot_id, describe, differences
from freezeframe.tracking.record import Places, Record
from freezeframe.tracking.shared import State


@dataclass(frozen=True, slots=True)
class Look:
    """All that a tracker and the kernel tell at one moment."""

    #: Sectors ever written, as the kernel counts them: read before `state`.
    written: int | None
    state: State
    #: Of each program that is attached, how often the kernel left it out: read last.
    misses: dict[str, int]
    #: Why its programs are not those that were attached.
    detached: tuple[str, ...]

    def broken(self, record: Record) -> tuple[str, ...]:
        """Return what the program was told of and could not follow, or was not there for."""
        found = []
        if self.state.generation != record.generation:
            found.append("the marks are those of another tracker")
        return (*found, *self.detached, *self.state.broken())

    def left_out(self, record: Record, counted: Counted) -> tuple[str, ...]:
        """Return what it was not told of since counting began."""
        return counting.left_out(counted, record.mode, self.written, self.state, self.misses)


def look(record: Record, places: Places, read_state: Callable[[], State]) -> Look:
    """Look at a tracker. Raises `OSError` where `read_state` does."""
    written = counting.written(record.disk.number)
    state = read_state()
    misses, detached = {}, []
    for noted in record.links:
        try:
            link = pinned.link_at(places.link(noted.name))
        except OSError as error:
            detached.append(f"the program {noted.name} is no longer attached: {error.strerror}")
            continue
        misses[noted.name] = link.misses
        if link.link != noted.link:
            detached.append(f"the program {noted.name} was attached anew")
        if link.tag != noted.tag:
            detached.append(f"the program {noted.name} is another one")
    return Look(written, state, misses, tuple(detached))


def doubts(record: Record, seen: Look) -> tuple[str, ...]:
    """Return why marks are not to be believed from one image to the next; empty: they are."""
    lost = seen.left_out(record, record.counted)
    return (*identity_doubts(record), *seen.broken(record), *lost)


def identity_doubts(record: Record) -> tuple[str, ...]:
    """Return why the disk may not be the one that tracking started on."""
    if record.boot != boot_id():
        return ("the machine was started anew since, and marks do not outlive that",)
    node = sysfs.node_of_number(record.disk.number)
    if node is None:
        return (f"{record.disk.name} is gone",)
    return differences(record.disk, describe(node))


def lasting_doubts(record: Record) -> tuple[str, ...]:
    """Return why marks of this kind hold within one image only."""
    if record.mode == "classic":
        # trace_call_bpf() skips where any such program runs on the processor, and counts
        # that since "bpf: Count missed stats in trace_call_bpf" (dd8657894c11) only.
        return (
            "this kernel has no BTF: its classic tracepoint may leave out a write while another "
            "program is at work",
        )
    node = sysfs.node_of_number(record.disk.number)
    if record.mode == "bios" or (node is not None and node.slaves()):
        # dm gets another table, a snapshot is merged, zram is reset: other content, no write.
        return (
            f"the content of {record.disk.name} may be exchanged beneath it without a write to it: "
            "only the disks it is made of are trusted",
        )
    return ()
