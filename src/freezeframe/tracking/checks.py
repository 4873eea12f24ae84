"""Whether a tracker's marks can be believed: everything that is looked at on every use.

Any doubt costs a full read; marks believed wrongly cost data.
"""

from __future__ import annotations

from freezeframe.system import sysfs
from freezeframe.tracking import pinned
from freezeframe.tracking.disk import boot_id, describe, differences
from freezeframe.tracking.record import Places, Record
from freezeframe.tracking.shared import State

#: Programs that listen alone: what the kernel left out of one of these is lost.
_ALONE = ("classic", "bio_queued")


def doubts(record: Record, places: Places, state: State) -> tuple[str, ...]:
    """Return why marks are not to be believed from one image to the next; empty: they are."""
    return (*identity_doubts(record), *program_doubts(record, places, state), *state.broken())


def identity_doubts(record: Record) -> tuple[str, ...]:
    """Return why the disk may not be the one that tracking started on."""
    if record.boot != boot_id():
        return ("the machine was started anew since, and marks do not outlive that",)
    node = sysfs.node_of_number(record.disk.number)
    if node is None:
        return (f"{record.disk.name} is gone",)
    return differences(record.disk, describe(node))


def program_doubts(record: Record, places: Places, state: State) -> tuple[str, ...]:
    """Return why marks may have been missed, besides what the program itself counted."""
    found = []
    if state.generation != record.generation:
        found.append("the marks are those of another tracker")
    for noted in record.links:
        try:
            link = pinned.link_at(places.link(noted.name))
        except OSError as error:
            found.append(f"the program {noted.name} is no longer attached: {error.strerror}")
            continue
        if link.link != noted.link:
            found.append(f"the program {noted.name} was attached anew")
        if link.tag != noted.tag:
            found.append(f"the program {noted.name} is another one")
        if link.misses and noted.name in _ALONE:
            found.append(f"the kernel left {noted.name} out {link.misses} times")
    return tuple(found)


def lasting_doubts(record: Record) -> tuple[str, ...]:
    """Return why marks of this kind hold within one image only."""
    if record.mode == "classic":
        # trace_call_bpf() skips where any such program runs on the processor, and counts
        # that since "bpf: Count missed stats in trace_call_bpf" (dd8657894c11) only.
        return (
            "this kernel has no BTF: its classic tracepoint may leave out a write while another "
            "program is at work, and older kernels do not count that",
        )
    node = sysfs.node_of_number(record.disk.number)
    if record.mode == "bios" or (node is not None and node.slaves()):
        # dm gets another table, a snapshot is merged, zram is reset: other content, no write.
        return (
            f"the content of {record.disk.name} may be exchanged beneath it without a write to it: "
            "only the disks it is made of are trusted",
        )
    return ()
