"""The manifest: what an image says of itself, `freezeframe.json` at its root.

Format 1. A reader accepts its own format and older ones, and refuses newer ones with a
clear word; unknown fields are ignored, so that a newer program may add some without a new
format. All offsets and lengths are bytes from the start of the disk.
"""

from __future__ import annotations

import datetime as dt
import enum
import math

import msgspec

from freezeframe.core.errors import FreezeframeError, NotUnderstood, RepositoryDamaged
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, MIB, SEGMENT
from freezeframe.image import chunklist
from freezeframe.layout.base import Role, Table

FORMAT = 1
_SECTORS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_LARGEST_NUMBER = (1 << 63) - 1
NAME = "freezeframe.json"
#: Every image's snapshot carries it; that is how images are told from other snapshots.
TAG = "freezeframe"
#: Bytes of a manifest, at most; a disk with a million unreadable ranges needs a tenth.
LARGEST = 256 * MIB
#: Bytes of a disk, at most: segments are numbered with five digits, so that a shell lists
#: them in order of offset.
LARGEST_DISK = 100_000 * SEGMENT


class Mode(enum.StrEnum):
    """How an image was taken."""

    OFFLINE = "offline"
    ONLINE = "online"


class Consistency(enum.StrEnum):
    """What may be said of a region's content."""

    #: Nothing else could write while it was read.
    EXCLUSIVE = "exclusive"
    FROZEN = "frozen"
    APPLICATION = "application-consistent"
    CRASH = "crash-consistent"
    #: Written to while it was read: parts of it may be of different moments.
    MOVING = "moving"


class RegionRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One region of a disk, and what was known of it."""

    role: str
    start: int
    length: int
    number: int = 0
    type_code: str = ""
    type_name: str = ""
    name: str = ""
    uuid: str = ""
    bootable: bool = False
    #: What is in it: `ext4`, `swap`, `unknown`; empty for tables and gaps.
    content: str = ""
    label: str = ""
    content_uuid: str = ""
    block_size: int = 0
    #: Bytes the filesystem itself spans; 0 where it does not say.
    span: int = 0
    #: Bytes of it that the image holds.
    used: int = 0
    #: False: the structures were not understood, so all of it was taken as used.
    understood: bool = True
    consistency: Consistency = Consistency.EXCLUSIVE
    notes: tuple[str, ...] = ()
    #: Volumes inside (LVM), for display.
    volumes: tuple[VolumeRecord, ...] = ()


class VolumeRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One volume inside a region."""

    name: str
    content: str
    size: int = 0
    used: int = 0
    label: str = ""
    content_uuid: str = ""
    understood: bool = True
    notes: tuple[str, ...] = ()


class DiskRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One disk of an image."""

    #: Its folder in the image: `disks/<name>`.
    name: str
    #: The device or file it was read from.
    path: str
    size: int
    #: Where a partition that was imaged by itself, online, begins on its whole disk.
    start: int = 0
    sector: int
    table: str
    disk_id: str = ""
    model: str = ""
    serial: str = ""
    #: Bytes of a segment (one file `disks/<name>/<number>/data`).
    segment: int
    #: Bytes the image holds; the rest reads as zeros.
    used: int
    regions: tuple[RegionRecord, ...]
    #: [start, stop) of what could not be read, and reads as zeros.
    unreadable: tuple[tuple[int, int], ...] = ()
    #: Chunks (1 MiB, numbered from the disk's start) stored as blobs of 64 KiB: `3,7-9`.
    #: For people: a reader takes the lengths of blobs from the index.
    fine: str = ""
    notes: tuple[str, ...] = ()

    def region_at(self, offset: int) -> RegionRecord | None:
        """Return the region a byte lies in."""
        for region in self.regions:
            if region.start <= offset < region.start + region.length:
                return region
        return None

    def partition(self, number: int) -> RegionRecord | None:
        """Return the partition with that number."""
        for region in self.regions:
            if region.role == "partition" and region.number == number:
                return region
        return None


class Host(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The machine an image was made on."""

    name: str
    kernel: str = ""
    system: str = ""
    machine_id: str = ""
    #: What it had been started by: `uefi` or `bios`; empty where that is not known.
    firmware: str = ""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence: what was read and how long it took."""

    bytes_read: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0
    seconds: float = 0.0
    unreadable_bytes: int = 0
    #: Every new block was decrypted again before it counted; one in so many decompressed, too.
    decompressed_one_in: int = 1


class FreezeRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How long one filesystem was held still. Milliseconds."""

    point: str
    kind: str
    #: The call that freezes; writers wait from then on.
    freeze_ms: float
    #: Nothing was written, and what was left was read.
    held_ms: float
    thaw_ms: float


class PassRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One pass over a disk in use."""

    bytes: int
    seconds: float
    #: Granules that were marked when it began.
    marks: int = 0


class TrackRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the writes to one disk were followed, and what that was good for."""

    disk: str
    #: Granules of 64 KiB found marked, all passes together.
    marks: int = 0
    bytes_read: int = 0
    #: Image whose unmarked chunks were taken over without reading; empty: all was read.
    base: str = ""
    #: Why not; empty where they were.
    distrust: tuple[str, ...] = ()
    #: Bytes marked since that image.
    changed: int = 0


class HotProof(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The evidence for one point in time of disks in use."""

    #: The freeze of the image's moment, from asking for it to the end of the last thaw.
    pause_ms: float = 0.0
    #: The longest of all freezes of this image, and all of them together: the one above, those
    #: that did not settle it, and those that only flushed a filesystem.
    longest_pause_ms: float = 0.0
    all_pauses_ms: float = 0.0
    #: Read while nothing could be written.
    residual_bytes: int = 0
    #: Freezes of all filesystems together: more than one where the first did not settle it.
    windows: int = 1
    passes: tuple[PassRecord, ...] = ()
    freezes: tuple[FreezeRecord, ...] = ()
    disks: tuple[TrackRecord, ...] = ()
    #: Filesystems that cannot be frozen, and went on.
    unfrozen: tuple[str, ...] = ()
    memory_locked: bool = True
    #: Whether writers were held down by short freezes until copying caught up.
    slowed_writers: bool = False
    notes: tuple[str, ...] = ()


class WriterRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one application (a writer) said when it was to hold still. Milliseconds."""

    name: str
    kind: str
    about: str = ""
    #: `yes`, or `left out`: with any other vote there is no image.
    vote: str
    #: Why it was left out.
    reason: str = ""
    #: `application` or `crash`: what it says of its data in this image.
    consistency: str = ""
    prepare_ms: float = 0.0
    #: From asking it to hold still until it did; from then on until it was let go; letting go.
    freeze_ms: float = 0.0
    held_ms: float = 0.0
    thaw_ms: float = 0.0
    #: How often it was asked, and all of these together.
    freezes: int = 0
    total_ms: float = 0.0
    notes: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    #: Its folder `writers/<folder>` in the image, and the files there.
    folder: str = ""
    pieces: tuple[str, ...] = ()


class ProviderRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the moment of some volumes was kept, where not by the engine itself. Milliseconds."""

    kind: str
    volumes: tuple[str, ...]
    prepare_ms: float = 0.0
    hold_ms: float = 0.0
    commit_ms: float = 0.0
    resume_ms: float = 0.0


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the way to the moment of an image."""

    name: str
    ms: float


class ShadowProof(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Who took part in the moment of an image, what each said, and how long each step took."""

    #: Seconds that writers, and the commit of the volumes, might have taken.
    writer_limit: float
    commit_limit: float
    writers: tuple[WriterRecord, ...] = ()
    providers: tuple[ProviderRecord, ...] = ()
    #: In the order of the time line; of the window that counted.
    steps: tuple[StepRecord, ...] = ()
    #: Kinds of writers that could not be looked for, and why.
    unknown: tuple[str, ...] = ()


class Origin(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where an image that was not made from a disk came from."""

    #: `raw`, `qcow2`, `vmdk`, `vhdx`, …, `partclone`, `clonezilla`.
    format: str
    #: The files or folder it was imported from, as they were called.
    paths: tuple[str, ...]
    #: When they were last changed: the image's moment, as far as anybody knows.
    modified: dt.datetime | None = None


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All of an image but its bytes."""

    format: int
    program: str
    created: dt.datetime
    mode: Mode
    host: Host
    disks: tuple[DiskRecord, ...]
    proof: Proof = Proof()
    #: Of online images only.
    hot: HotProof | None = None
    #: Of images with writers, or with other providers than the hot engine.
    shadow: ShadowProof | None = None
    #: Of imported images only.
    origin: Origin | None = None

    def disk(self, name: str) -> DiskRecord | None:
        """Return the disk with that name, or that was read from that path."""
        for disk in self.disks:
            if name in (disk.name, disk.path):
                return disk
        return None


class _Version(msgspec.Struct):
    format: int


def encode(manifest: Manifest) -> bytes:
    """Write a manifest as indented JSON, so that people may read it without us.

    Raises `FreezeframeError` for one that `decode` would refuse.
    """
    if wrong := _nonsense(manifest):
        raise FreezeframeError(f"the manifest of the image would make no sense: {wrong}")
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes, image: str) -> Manifest:
    """Read a manifest.

    Raises `RepositoryDamaged` where it is no manifest or one that makes no sense,
    `FreezeframeError` where its format is newer than this program.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT:
            raise FreezeframeError(
                f"image {image} has format {version}; this program reads up to {FORMAT}",
                hint="use a newer freezeframe",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryDamaged("image", image, f"its {NAME} is not a manifest: {error}") from error
    if wrong := _nonsense(manifest):
        raise RepositoryDamaged("image", image, f"its {NAME} makes no sense: {wrong}")
    return manifest


def _nonsense(manifest: Manifest) -> str:
    """Return what of a manifest cannot be true; nothing where all can.

    Only what others count on, once it has been read: plans are made of these numbers.
    """
    names = [disk.name for disk in manifest.disks]
    if not names or len(set(names)) < len(names):
        return "it has no disk, or two of one name"
    if not math.isfinite(manifest.proof.seconds):
        return "it took no number of seconds"
    return next(filter(None, map(_nonsense_of_disk, manifest.disks)), "")


def _nonsense_of_disk(disk: DiskRecord) -> str:
    if not 0 < disk.size <= LARGEST_DISK:
        return f"disk {disk.name} has {disk.size} bytes"
    if not 0 <= disk.start <= _LARGEST_NUMBER:
        return f"disk {disk.name} begins at byte {disk.start} of another"
    if disk.sector not in _SECTORS:
        return f"disk {disk.name} has sectors of {disk.sector} bytes"
    if disk.segment != SEGMENT:
        return f"disk {disk.name} lies in segments of {disk.segment} bytes, not {SEGMENT}"
    if disk.table not in list(Table):
        return f"disk {disk.name} has a table of kind {disk.table!r}"
    for region in disk.regions:
        if region.role not in list(Role):
            return f"disk {disk.name} has a region of kind {region.role!r}"
        if not 0 <= region.start <= region.start + region.length <= disk.size:
            return f"a region of disk {disk.name} begins or ends outside of it"
        if region.number < 0 or not 0 <= region.span <= _LARGEST_NUMBER:
            return f"a region of disk {disk.name} has impossible numbers"
    for start, stop in disk.unreadable:
        if not 0 <= start <= stop <= disk.size:
            return f"an unreadable range of disk {disk.name} lies outside of it"
    try:
        fine = chunklist.decode(disk.fine)
    except NotUnderstood as error:
        return f"disk {disk.name} has {error.message}"
    if fine.end > -(-disk.size // CHUNK):
        return f"a fine chunk of disk {disk.name} lies outside of it"
    return ""


def pairs(extents: Extents) -> tuple[tuple[int, int], ...]:
    """Write extents as they stand in the manifest."""
    return tuple(extents)


def schema() -> bytes:
    """Return the JSON schema of the manifest, as docs/manifest.schema.json holds it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Manifest)), indent=2) + b"\n"
