"""What is said of the evidence for one moment, word by word."""

from __future__ import annotations

import msgspec

from freezeframe.cli.proof import consistency_lines, detail_lines, hot_lines
from freezeframe.core.clock import SystemClock
from freezeframe.core.units import MIB, SEGMENT
from freezeframe.image.manifest import (
    Consistency,
    DiskRecord,
    FreezeRecord,
    Host,
    HotProof,
    Manifest,
    Mode,
    PassRecord,
    RegionRecord,
    TrackRecord,
)

HOT = HotProof(
    pause_ms=41.2,
    longest_pause_ms=60.0,
    all_pauses_ms=140.5,
    residual_bytes=3 * MIB,
    passes=(
        PassRecord(bytes=600 * MIB, seconds=2.5, marks=0),
        PassRecord(bytes=40 * MIB, seconds=0.25, marks=640),
    ),
    freezes=(
        FreezeRecord(point="/srv", kind="xfs", freeze_ms=20.14, held_ms=9.0, thaw_ms=0.4),
        FreezeRecord(point="/", kind="ext4", freeze_ms=11.0, held_ms=8.5, thaw_ms=1.0),
    ),
    disks=(
        TrackRecord(disk="/dev/sda", marks=700, bytes_read=643 * MIB, distrust=("it is new",)),
        TrackRecord(disk="/dev/sdb", marks=9, bytes_read=2 * MIB, base="0123456789ab", changed=MIB),
    ),
    unfrozen=("/boot/efi",),
)


def test_three_lines() -> None:
    assert hot_lines(HOT) == [
        "paused for 41.2 ms (freeze + held + thaw: /srv 20.1 + 9.0 + 0.4, / 11.0 + 8.5 + 1.0);"
        " not frozen: /boot/efi",
        "copied ahead: 600.0 MiB, 40.0 MiB; in the freeze: 3.0 MiB; 709 marks",
        "/dev/sda: read in full, it is new;"
        " /dev/sdb: 1.0 MiB marked since image 01234567, 2.0 MiB read",
    ]


def test_more_than_one_freeze_is_not_hidden() -> None:
    busy = msgspec.structs.replace(HOT, windows=7, slowed_writers=True, passes=(), freezes=())
    first, second, _ = hot_lines(busy)
    assert first.startswith("paused for 41.2 ms, the last of 7 freezes, writers held down (")
    assert "nothing mounted" in first
    assert second.startswith("copied ahead: nothing;")


def test_the_details() -> None:
    noted = msgspec.structs.replace(HOT, memory_locked=False, notes=("done again",))
    assert list(detail_lines(noted)) == [
        "pass 1: 600.0 MiB in 2.5s, 0 marks before it",
        "pass 2: 40.0 MiB in 0.2s, 640 marks before it",
        "/srv (xfs): freeze 20.1 ms, held 9.0 ms, thaw 0.4 ms",
        "/ (ext4): freeze 11.0 ms, held 8.5 ms, thaw 1.0 ms",
        "longest of all freezes: 60.0 ms; all together, flushes included: 140.5 ms",
        "/boot/efi: cannot be frozen, synced and read until nothing was written meanwhile",
        "/dev/sda: 700 granules of 64.0 KiB marked, 643.0 MiB read",
        "/dev/sda: no earlier marks were trusted, so it was read in full: it is new",
        "/dev/sdb: 9 granules of 64.0 KiB marked, 2.0 MiB read",
        "/dev/sdb: the marks since image 01234567 were trusted, 1.0 MiB of them;"
        " all else was taken over from it",
        "the program's memory could not be locked",
        "done again",
    ]


def _region(number: int, content: str, consistency: Consistency) -> RegionRecord:
    return RegionRecord(
        role="partition", start=number * MIB, length=MIB, number=number, content=content,
        consistency=consistency,
    )  # fmt: skip


def test_what_may_be_said_of_each_region() -> None:
    disk = DiskRecord(
        name="sda", path="/dev/sda", size=8 * MIB, sector=512, table="gpt", segment=SEGMENT,
        used=MIB,
        regions=(
            RegionRecord(role="table", start=0, length=MIB, consistency=Consistency.FROZEN),
            _region(1, "vfat", Consistency.CRASH),
            _region(2, "ext4", Consistency.FROZEN),
            _region(3, "", Consistency.EXCLUSIVE),
        ),
    )  # fmt: skip
    made = Manifest(
        format=1, program="freezeframe", created=SystemClock().now(), mode=Mode.ONLINE,
        host=Host(name="here"), disks=(disk,),
    )  # fmt: skip
    assert list(consistency_lines(made, disk)) == [
        "partition 1 (vfat): crash-consistent, as after a power cut",
        "partition 2 (ext4): frozen",
    ]
    offline = msgspec.structs.replace(made, mode=Mode.OFFLINE)
    assert list(consistency_lines(offline, disk)) == []
