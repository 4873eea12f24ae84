"""File records and attributes of an NTFS volume, read through its own run lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ntfs.structs import (
    ATTRIBUTE_LIST,
    DATA,
    FLAG_COMPRESSED,
    FLAG_ENCRYPTED,
    FLAG_SPARSE,
    MFT,
    Attribute,
    FileRecord,
    Geometry,
    ListEntry,
    Run,
    parse_list,
    parse_record,
)

#: Windows keeps a list in 256 KiB at most.
_LARGEST_LIST = 256 << 10
#: Runs of one attribute: a list of the largest size cannot name more by far.
_MOST_RUNS = 1 << 20


@dataclass(frozen=True, slots=True)
class Stream:
    """The whole of one attribute, put together."""

    value: bytes
    resident: bool
    runs: tuple[Run, ...]
    #: Bytes: what it holds, and how much of that was ever written; the rest reads as zeros.
    size: int
    initialized: int
    flags: int

    @property
    def plain(self) -> bool:
        """Whether its clusters hold its bytes as they are, without holes."""
        coded = self.flags & (FLAG_COMPRESSED | FLAG_ENCRYPTED | FLAG_SPARSE)
        return not coded and all(run.lcn >= 0 for run in self.runs)


class Volume:
    """A volume whose boot sector was understood."""

    def __init__(self, reader: Reader, geometry: Geometry) -> None:
        """Find where the $MFT lies; raises `NotUnderstood`, `UnreadableRange`."""
        self.reader = reader
        self.geometry = geometry
        #: Of the $MFT. Grows while its own attribute list is read.
        self._mft: list[Run] = []
        for part in self._parts(MFT, DATA, ""):
            self._mft += part.runs
        self.mft_runs = tuple(self._mft)

    def record(self, number: int) -> FileRecord:
        """Read one record of the $MFT, fixups verified; raises `NotUnderstood`."""
        size = self.geometry.record
        if number == MFT:
            raw = self.reader.read_at(self.geometry.mft_cluster * self.geometry.cluster, size)
        else:
            raw = self.read_runs(self._mft, number * size, size)
        return parse_record(raw, number, self.geometry.clusters)

    def stream(self, number: int, kind: int, name: str = "") -> Stream | None:
        """Return one attribute of a file; None where it has none such.

        Raises `NotUnderstood` where a part is missing or its structures are damaged.
        """
        first: Attribute | None = None
        runs: list[Run] = []
        for part in self._parts(number, kind, name):
            first = first or part
            runs += part.runs
            if len(runs) > _MOST_RUNS:
                raise NotUnderstood("NTFS attribute with too many runs")
        if first is None:
            return None
        covered = sum(run.length for run in runs) * self.geometry.cluster
        if not first.resident and (first.allocated != covered or first.size > covered):
            raise NotUnderstood("NTFS attribute whose parts are not its size")
        return Stream(
            first.value, first.resident, tuple(runs), first.size, first.initialized, first.flags
        )

    def names(self, number: int, kind: int) -> set[str]:
        """Return the names of a file's attributes of a kind; raises `NotUnderstood`."""
        base = self.record(number)
        found = {each.name for each in base.attributes if each.kind == kind}
        for listed in self._listed(base):
            if listed.kind == kind:
                found.add(listed.name)
        return found

    def read(self, stream: Stream, offset: int, length: int) -> bytes:
        """Read bytes of a plain stream; `NotUnderstood` past its end and in unwritten parts."""
        if offset + length > min(stream.size, stream.initialized):
            raise NotUnderstood("NTFS attribute that is too short")
        if stream.resident:
            return stream.value[offset : offset + length]
        return self.read_runs(stream.runs, offset, length)

    def read_runs(self, runs: list[Run] | tuple[Run, ...], offset: int, length: int) -> bytes:
        """Read bytes by a run list, in clusters ascending without gaps."""
        cluster = self.geometry.cluster
        parts = []
        for run in runs:
            start, stop = run.vcn * cluster, (run.vcn + run.length) * cluster
            if stop <= offset:
                continue
            if start > offset or run.lcn < 0:
                break
            take = min(length, stop - offset)
            parts.append(self.reader.read_at(run.lcn * cluster + offset - start, take))
            offset += take
            length -= take
            if not length:
                return b"".join(parts)
        raise NotUnderstood("NTFS attribute with a hole where there must be none")

    def _parts(self, number: int, kind: int, name: str) -> Iterator[Attribute]:
        """Give the parts of an attribute in order, checked to be without gaps.

        Lazily: the $MFT's later parts are found by what the earlier ones map.
        """
        base = self.record(number)
        if base.base:
            raise NotUnderstood(f"NTFS record {number} belongs to another file")
        expected = 0
        for part in self._unchecked_parts(base, kind, name):
            if part.lowest != expected or (part.resident and expected):
                raise NotUnderstood(f"NTFS record {number} has an attribute with a gap")
            expected = part.highest + 1
            yield part

    def _unchecked_parts(self, base: FileRecord, kind: int, name: str) -> Iterator[Attribute]:
        entries = self._listed(base)
        if not entries:
            yield from (a for a in base.attributes if (a.kind, a.name) == (kind, name))
            return
        # The list is sorted by kind and name, and where those are the same by the cluster.
        for entry in entries:
            if (entry.kind, entry.name) != (kind, name):
                continue
            record = base
            if entry.record != base.number:
                record = self.record(entry.record)
                if record.base != base.number:
                    raise NotUnderstood(f"NTFS record {entry.record} belongs to another file")
            parts = [
                a
                for a in record.attributes
                if (a.kind, a.name, a.lowest) == (kind, name, entry.lowest)
            ]
            if len(parts) != 1:
                raise NotUnderstood(f"NTFS record {entry.record} lacks a part of an attribute")
            yield parts[0]

    def _listed(self, base: FileRecord) -> list[ListEntry]:
        """Read a file's list of attributes; empty where it has none."""
        lists = [a for a in base.attributes if a.kind == ATTRIBUTE_LIST]
        if not lists:
            return []
        if len(lists) > 1 or lists[0].size > _LARGEST_LIST:
            raise NotUnderstood(f"NTFS record {base.number} has an impossible attribute list")
        found = lists[0]
        return parse_list(
            found.value if found.resident else self.read_runs(found.runs, 0, found.size)
        )
