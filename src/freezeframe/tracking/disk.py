"""The disk that is tracked: what tells it from every other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import TrackingUnavailable
from freezeframe.core.units import GRANULE
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_source
from freezeframe.system.sysfs import Node
from freezeframe.tracking.shared import DRIVER_OTHER, DRIVER_SCSI, DRIVER_VIRTIO_BLK

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Granules are counted in 32 bits.
_MOST_GRANULES = 1 << 32


@dataclass(frozen=True, slots=True)
class TrackedDisk:
    """One whole disk, as it was when tracking started."""

    #: The kernel's name: `sda`, `loop0`.
    name: str
    #: `8:0`.
    number: str
    #: In bytes.
    size: int
    #: Number that no two disks of one boot share; 0 where the kernel has none.
    diskseq: int
    serial: str
    wwn: str
    #: Whether it takes bios as they come (dm, md, zram) and has no requests.
    bio_based: bool
    #: What a loop device shows: file, offset, length.
    shows: str = ""

    @property
    def granules(self) -> int:
        """How many granules of 64 KiB it has, the last one perhaps short."""
        return -(-self.size // GRANULE)


def describe(node: Node) -> TrackedDisk:
    """Return the whole disk a node is, or is a part of, as it is now."""
    whole = node.whole
    about = describe_source(whole.path)
    return TrackedDisk(
        name=whole.name,
        number=whole.number,
        size=whole.size,
        diskseq=whole.diskseq,
        serial=about.serial,
        wwn=about.wwn,
        bio_based=not (whole.folder / "mq").is_dir(),
        shows=_shows(whole),
    )


def _shows(node: Node) -> str:
    loop = node.folder / "loop"
    parts = (sysfs.read_text(loop / name) for name in ("backing_file", "offset", "sizelimit"))
    return " ".join(parts).strip()


def differences(before: TrackedDisk, now: TrackedDisk) -> tuple[str, ...]:
    """Return why two are not the same disk in the same state; empty where they are."""
    found = []
    if not before.diskseq or not now.diskseq:
        found.append("this kernel does not number its disks (diskseq), so none can be told apart")
    elif before.diskseq != now.diskseq:
        found.append(f"another disk has taken the place of {before.name}")
    if before.size != now.size:
        found.append(f"its size was {before.size} bytes and is {now.size}")
    if before.serial != now.serial:
        found.append(f"its serial number was {before.serial!r} and is {now.serial!r}")
    if before.wwn != now.wwn:
        found.append(f"its world-wide name was {before.wwn!r} and is {now.wwn!r}")
    if before.shows != now.shows:
        found.append(f"it showed {before.shows!r} and shows {now.shows!r}")
    if before.bio_based != now.bio_based:
        found.append("its driver is another one")
    return tuple(found)


def refuse_untrackable(node: Node, disk: TrackedDisk) -> None:
    """Raise `TrackingUnavailable` for a disk whose writes are not seen where we look."""
    if not disk.size:
        raise TrackingUnavailable(
            f"{node.path} holds nothing: no medium, or nothing attached",
            hint="name a disk that has a size",
        )
    if disk.granules > _MOST_GRANULES:
        raise TrackingUnavailable(
            f"{node.path} is too large to be tracked (256 TiB at most)",
            hint="image it offline",
        )
    for holder in node.holders():
        if holder.multipath:
            # A path completes its own requests only.
            raise TrackingUnavailable(
                f"{node.path} is one of several paths to {holder.path}: writes by the others"
                " cannot be seen on it",
                hint=f"name {holder.path}",
            )
    # The head of a multipath NVMe hands its bios to the paths, which complete them unseen.
    paths = node.folder.glob("device/*/nvme*c*n*")
    if disk.bio_based and node.name.startswith("nvme") and any(paths):
        raise TrackingUnavailable(
            f"{node.path} is reached by several NVMe paths, whose writes cannot be seen",
            hint="start the kernel with nvme_core.multipath=N, or image the disk offline",
        )


def driver_of(node: Node) -> int:
    """Return whose passthrough requests the disk gets, a `DRIVER_…` of `shared`.

    virtio_blk makes some itself, which change nothing (drivers/block/virtio_blk.c); those of
    SCSI disks (SATA ones too) are known by their commands.
    """
    device = node.folder / "device"
    if (device / "driver").resolve().name == "virtio_blk":
        return DRIVER_VIRTIO_BLK
    if (device / "subsystem").resolve().name == "scsi":
        return DRIVER_SCSI
    return DRIVER_OTHER


def merges_discards(node: Node) -> bool:
    """Whether one request may discard several ranges (queue/max_discard_segments)."""
    queue = node.folder / "queue"
    if not sysfs.read_number(queue / "discard_max_hw_bytes"):
        return False
    return sysfs.read_number(queue / "max_discard_segments") != 1


def boot_id() -> str:
    """Return what the kernel drew at boot."""
    return sysfs.read_text(_BOOT_ID)
