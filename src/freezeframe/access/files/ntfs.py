"""Files of NTFS. Source: as `ntfs_structs`. The log is not replayed."""

from __future__ import annotations

import stat as modes
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from freezeframe.access.files.base import (
    LARGEST_XATTR,
    LONGEST_LINK,
    Content,
    Entry,
    Held,
    Node,
    OnDisk,
    Piece,
    SearchedByAnyCase,
    Stat,
    no_folder,
    read_small,
)
from freezeframe.access.files.ntfs_structs import (
    FOLDER_INDEX,
    INDEX_BITMAP,
    IS_REPARSE_POINT,
    READ_ONLY,
    RECORD_IS_FOLDER,
    REPARSE_POINT,
    STANDARD_INFORMATION,
    SYSTEM,
    UNIX_BLOCK,
    UNIX_CHARACTER,
    UNIX_LINK,
    index_names,
    link_target,
    moment,
    unpack,
    utf_8,
)
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ntfs.clean import check_clean
from freezeframe.fs.ntfs.structs import (
    BOOT_SIZE,
    DATA,
    FILE_NAME,
    FLAG_COMPRESSED,
    FLAG_ENCRYPTED,
    INDEX_ALLOCATION,
    INDEX_ROOT,
    ROOT,
    FileRecord,
    Run,
    parse_boot,
    unprotect,
)
from freezeframe.fs.ntfs.volume import Stream, Volume
from freezeframe.fs.probe import little

#: Records below are the filesystem's own files.
_FIRST_USER_RECORD = 16
#: Clusters that are packed together.
_UNIT = 16
_LARGEST_REPARSE_POINT = 16 * 1024
_SHORT_NAME = 2


class Ntfs:
    """An NTFS, opened."""

    kind = "ntfs"

    def __init__(self, reader: Reader) -> None:
        geometry = parse_boot(reader.read_at(0, BOOT_SIZE))
        self.reader = reader
        self.span = geometry.clusters * geometry.cluster
        if self.span > reader.size:
            raise NotUnderstood("NTFS that is larger than its partition")
        self.volume = Volume(reader, geometry)
        self.notes: tuple[str, ...] = ()
        try:
            check_clean(self.volume)
        except NotUnderstood as error:
            self.notes = (f"its log was not replayed: {error.message}",)
        self.root: Node = NtfsNode(self, ROOT)


@dataclass(frozen=True, slots=True)
class Packed:
    """A compressed unit: runs of its packed bytes."""

    filesystem: Ntfs
    runs: tuple[tuple[int, int], ...]
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Unpack it, and cut the bytes out."""
        reader = self.filesystem.reader
        data = b"".join(reader.read_at(at, size) for at, size in self.runs)
        return unpack(data, self.size)[offset : offset + length]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A stream that lies in clusters."""

    filesystem: Ntfs
    stream: Stream

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.stream.size

    def pieces(self) -> Iterator[Piece]:
        """Give what was written."""
        cluster = self.filesystem.volume.geometry.cluster
        # What lies behind was never written.
        stop = min(self.stream.size, self.stream.initialized)
        packed = self.stream.flags & FLAG_COMPRESSED
        if sum(run.length for run in self.stream.runs if run.lcn >= 0) * cluster > (
            self.filesystem.span
        ):
            raise NotUnderstood("a file with more clusters than there are")
        for piece in self._units() if packed else self._runs(self.stream.runs, cluster):
            length = min(piece.length, stop - piece.start)
            if length > 0:
                yield Piece(piece.start, length, piece.source)

    def _runs(self, runs: tuple[Run, ...], cluster: int) -> Iterator[Piece]:
        for run in runs:
            if run.lcn >= 0:
                source = OnDisk(self.filesystem.reader, run.lcn * cluster)
                yield Piece(run.vcn * cluster, run.length * cluster, source)

    def _units(self) -> Iterator[Piece]:
        cluster = self.filesystem.volume.geometry.cluster
        for first, runs in _by_unit(self.stream.runs):
            there = [run for run in runs if run.lcn >= 0]
            count = sum(run.length for run in there)
            if count % _UNIT == 0:
                # All of it, kept as it is, or nothing.
                yield from self._runs(tuple(there), cluster)
            else:
                places = tuple((run.lcn * cluster, run.length * cluster) for run in there)
                size = _UNIT * cluster
                yield Piece(first * cluster, size, Packed(self.filesystem, places, size))


def _by_unit(runs: tuple[Run, ...]) -> Iterator[tuple[int, list[Run]]]:
    """Cut runs at the borders of units; units that are whole stay together. Holes are left out."""
    held: list[Run] = []
    unit = -1
    for run in runs:
        vcn, stop = run.vcn, run.vcn + run.length
        if run.lcn < 0:
            continue
        while vcn < stop:
            number = vcn // _UNIT
            if number != unit and held:
                yield unit * _UNIT, held
                held = []
            unit = number
            if vcn % _UNIT == 0 and stop - vcn >= _UNIT:
                whole = (stop - vcn) // _UNIT * _UNIT
                yield vcn, [Run(vcn, run.lcn + vcn - run.vcn, whole)]
                vcn += whole
                continue
            upto = min(stop, (number + 1) * _UNIT)
            held.append(Run(vcn, run.lcn + vcn - run.vcn, upto - vcn))
            vcn = upto
    if held:
        yield unit * _UNIT, held


@dataclass(frozen=True, slots=True)
class NtfsNode(SearchedByAnyCase):
    """A file of an NTFS, by the number of its record."""

    filesystem: Ntfs
    number: int

    @property
    def key(self) -> Hashable:
        """The record's number."""
        return self.number

    # -- facts --------------------------------------------------------------------------

    def stat(self) -> Stat:
        """Tell its times and size; its owners mean nothing to Linux."""
        record = self._record()
        facts = self._facts(record)
        attributes = little(facts, 32, 4)
        kind, device, size = self._kind(record, attributes)
        mode = kind | (0o777 if kind == modes.S_IFLNK else 0o644)
        if kind == modes.S_IFDIR:
            mode = kind | 0o755
        elif kind == modes.S_IFREG and attributes & READ_ONLY:
            mode = kind | 0o444
        return Stat(
            mode=mode,
            size=size,
            born=moment(little(facts, 0, 8)),
            mtime=moment(little(facts, 8, 8)),
            ctime=moment(little(facts, 16, 8)),
            atime=moment(little(facts, 24, 8)),
            links=self._links(record),
            device=device,
        )

    def _record(self) -> FileRecord:
        record = self.filesystem.volume.record(self.number)
        if record.base:
            raise NotUnderstood(f"NTFS record {self.number} belongs to another file")
        return record

    def _facts(self, record: FileRecord) -> bytes:
        for attribute in record.attributes:
            if attribute.kind == STANDARD_INFORMATION and len(attribute.value) >= 36:
                return attribute.value
        raise NotUnderstood(f"NTFS record {record.number} has no facts")

    def _links(self, record: FileRecord) -> int:
        names = [each.value for each in record.attributes if each.kind == FILE_NAME]
        short = sum(len(name) > 65 and name[65] == _SHORT_NAME for name in names)
        return max(record.links - short, 1)

    def _kind(self, record: FileRecord, attributes: int) -> tuple[int, tuple[int, int], int]:
        """Return the kind of file, the numbers of a device, and the size."""
        if attributes & IS_REPARSE_POINT:
            target = self._reparse_target()
            if target is not None:
                return modes.S_IFLNK, (0, 0), len(target)
        if record.flags & RECORD_IS_FOLDER:
            return modes.S_IFDIR, (0, 0), 0
        stream = self._data()
        size = stream.size if stream else 0
        if attributes & SYSTEM and 8 < size <= 8 + 2 * LONGEST_LINK:
            start = self._start(24)
            if start[:8] == UNIX_LINK:
                return modes.S_IFLNK, (0, 0), len(self.read_link())
            if start[:8] in (UNIX_CHARACTER, UNIX_BLOCK) and len(start) == 24:
                kind = modes.S_IFCHR if start[:8] == UNIX_CHARACTER else modes.S_IFBLK
                return kind, (little(start, 8, 8), little(start, 16, 8)), 0
        return modes.S_IFREG, (0, 0), size

    def _reparse_target(self) -> bytes | None:
        data = self._small(REPARSE_POINT, "", _LARGEST_REPARSE_POINT)
        return None if data is None else link_target(data)

    # -- content ------------------------------------------------------------------------

    def _data(self) -> Stream | None:
        return self.filesystem.volume.stream(self.number, DATA)

    def _content(self, stream: Stream | None) -> Content:
        if stream is None:
            return Held(b"", 0)
        if stream.flags & FLAG_ENCRYPTED:
            raise NotUnderstood("it is encrypted: only its own system can read it")
        if stream.resident:
            return Held(stream.value, len(stream.value))
        return Mapped(self.filesystem, stream)

    def _small(self, kind: int, name: str, most: int) -> bytes | None:
        stream = self.filesystem.volume.stream(self.number, kind, name)
        return None if stream is None else read_small(self._content(stream), most, "an attribute")

    def _start(self, length: int) -> bytes:
        content = self._content(self._data())
        for piece in content.pieces():
            return piece.source.read(0, min(length, piece.length))
        return b""

    def content(self) -> Content:
        """Return a regular file's bytes."""
        record = self._record()
        attributes = little(self._facts(record), 32, 4)
        if self._kind(record, attributes)[0] != modes.S_IFREG:
            raise NotUnderstood("it is no regular file")
        if attributes & IS_REPARSE_POINT:
            data = self._small(REPARSE_POINT, "", _LARGEST_REPARSE_POINT) or b""
            raise NotUnderstood(
                f"Windows keeps its content in a way of its own ({little(data, 0, 4):#x}): packed"
                " by the system, deduplicated or in a cloud"
            )
        return self._content(self._data())

    def read_link(self) -> bytes:
        """Return where a symbolic link or junction leads; Windows' paths as they are."""
        if little(self._facts(self._record()), 32, 4) & IS_REPARSE_POINT:
            target = self._reparse_target()
            if target is not None:
                return target
        raw = read_small(self._content(self._data()), 8 + 2 * LONGEST_LINK, "a symbolic link")
        if raw[:8] != UNIX_LINK:
            raise NotUnderstood("it is no symbolic link")
        return utf_8(raw[8:])

    # -- folders ------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds, but for the filesystem's own files."""
        volume = self.filesystem.volume
        if not self._record().flags & RECORD_IS_FOLDER:
            raise no_folder("ntfs")
        root = volume.stream(self.number, INDEX_ROOT, FOLDER_INDEX)
        if root is None or len(root.value) < 32:
            raise NotUnderstood("a folder without an index")
        for data, header in self._nodes(root.value):
            for record, name in index_names(data, header):
                if record >= _FIRST_USER_RECORD:
                    yield Entry(name, NtfsNode(self.filesystem, record))

    def _nodes(self, root: bytes) -> Iterator[tuple[bytes, int]]:
        """Give the nodes of a folder's index, and where the header of each lies."""
        yield root, 16
        volume = self.filesystem.volume
        blocks = volume.stream(self.number, INDEX_ALLOCATION, FOLDER_INDEX)
        if blocks is None:
            return
        size = little(root, 8, 4)
        if size < 512 or size > 1 << 16 or blocks.size > self.filesystem.span:
            raise NotUnderstood("a folder with an index that makes no sense")
        used = self._small(INDEX_BITMAP, FOLDER_INDEX, max(self.filesystem.span // 4096, 1 << 16))
        for number in range(blocks.size // size):
            if used is not None and number // 8 < len(used) and used[number // 8] >> number % 8 & 1:
                yield unprotect(volume.read(blocks, number * size, size), b"INDX"), 24

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return alternate streams up to 64 KiB as `user.NAME`, as ntfs-3g shows them."""
        found = {}
        for name in sorted(self.filesystem.volume.names(self.number, DATA) - {""}):
            stream = self.filesystem.volume.stream(self.number, DATA, name)
            if stream is not None and stream.size <= LARGEST_XATTR:
                value = read_small(self._content(stream), LARGEST_XATTR, "a stream")
                found[b"user." + name.encode("utf-8", "surrogatepass")] = value
        return found
