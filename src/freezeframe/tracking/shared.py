"""What the kernel side and the user side agree on: the user side's copy of `bpf/tracker.h`."""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: Flags lie in array elements of one page; contiguous under mmap.
PAGE_GRANULES = 4096
#: Bios of a bio-based disk that may be under way at once.
MOST_UNDER_WAY = 65536
#: Whose passthrough requests can be told apart.
DRIVER_OTHER, DRIVER_VIRTIO_BLK, DRIVER_SCSI = range(3)
STATE_GENERATION = 0
STATE_SIZE = 112
#: Counters before those of each listener.
_SINGLE = 9
_COUNTERS = struct.Struct("=16s12Q")


@dataclass(frozen=True, slots=True)
class State:
    """The counters of one tracker at one moment.

    What breaks trust is counted by each of three listeners: zero or not is all it tells.
    """

    #: 32 hex digits: drawn anew each time tracking starts.
    generation: str
    #: Sectors written and discarded, as each listener to requests saw it.
    sectors: tuple[int, ...]
    #: About how many writes were marked.
    events: int
    #: Requests that tell no place: SG_IO, NVMe passthrough.
    passthrough: int
    #: Requests of that kind that are known to change nothing: udev's, smartd's, the driver's own.
    harmless: int
    #: Writes past the end the disk had when tracking started.
    beyond: int
    #: Operations nobody here knows.
    unknown: int
    #: Completions nested as deep as the program can listen.
    nested: int
    #: Bios that found no room in the table of those under way.
    queue_full: int
    #: Bios whose completion was never seen.
    unseen: int
    #: The operation's number that was last not understood, plus one; 0 for none.
    last_unknown: int

    def broken(self) -> tuple[str, ...]:
        """Return why the marks cannot be relied upon; empty where they can."""
        reasons = (
            (self.passthrough, "was written past the block layer (SG_IO or NVMe passthrough)"),
            (self.beyond, "was written past the end it had when tracking started"),
            (
                self.unknown,
                f"had an operation this program does not know (number {self.last_unknown - 1})",
            ),
            (self.nested, "completed writes nested deeper than the tracker can follow"),
            (self.queue_full, "had more writes under way than the tracker can follow"),
            (self.unseen, "completed writes where the tracker does not see them"),
        )
        return tuple(f"the disk {text}" for count, text in reasons if count)


def parse_state(data: bytes | bytearray | memoryview) -> State:
    """Read the state map's value, `STATE_SIZE` bytes."""
    generation, *numbers = _COUNTERS.unpack_from(data)
    return State(generation.hex(), tuple(numbers[_SINGLE:]), *numbers[:_SINGLE])
