"""Marks, pending sets and trust, without the kernel."""

from __future__ import annotations

import multiprocessing
import re
import struct
import tempfile
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood, TrackingUnavailable
from freezeframe.core.units import GRANULE
from freezeframe.system.mounts import Mount
from freezeframe.tracking import classic, program, record, shared
from freezeframe.tracking.disk import TrackedDisk, differences
from freezeframe.tracking.harvest import HarvestOverflow, harvest
from freezeframe.tracking.pending import PendingSet, create

BPF = Path(shared.__file__).parent / "bpf"
DISK = TrackedDisk("loop0", "7:0", 10 * GRANULE + 1, 5, "serial", "wwn", bio_based=False)


# -- what both sides agree on -----------------------------------------------------------


def header() -> dict[str, int]:
    text = (BPF / "tracker.h").read_text()
    plain = {k: int(v) for k, v in re.findall(r"#define (\w+) (\d+)\n", text)}
    return plain | {"PAGE_GRANULES": 1 << plain["PAGE_SHIFT"]}


def test_the_two_sides_have_the_same_constants() -> None:
    told = header()
    assert 512 << told["GRANULE_SHIFT"] == GRANULE
    assert told["PAGE_GRANULES"] == shared.PAGE_GRANULES
    assert told["MOST_UNDER_WAY"] == shared.MOST_UNDER_WAY
    for driver in ("DRIVER_OTHER", "DRIVER_VIRTIO_BLK", "DRIVER_SCSI"):
        assert told[driver] == getattr(shared, driver)
    assert told["STATE_SIZE"] == shared.STATE_SIZE
    assert told["STATE_GENERATION"] == shared.STATE_GENERATION


def test_every_counter_is_read_from_its_place() -> None:
    told = header()
    names = {k: v for k, v in told.items() if k.startswith("STATE_")}
    del names["STATE_SIZE"], names["STATE_GENERATION"]
    data = bytearray(shared.STATE_SIZE)
    struct.pack_into("=3Q", data, names.pop("STATE_SECTORS"), 1, 2, 3)
    assert shared.parse_state(data).sectors == (1, 2, 3)
    assert len(shared.parse_state(data).sectors) == told["LISTENERS"]
    for name, offset in names.items():
        data = bytearray(shared.STATE_SIZE)
        data[offset] = 7
        state = shared.parse_state(data)
        assert getattr(state, name.removeprefix("STATE_").lower()) == 7, name
        harmless = name in ("STATE_EVENTS", "STATE_HARMLESS", "STATE_LAST_UNKNOWN")
        assert (state.broken() == ()) == harmless, name
    assert shared.parse_state(bytes(range(16)) + bytes(96)).generation == bytes(range(16)).hex()


# -- the classic tracepoint -------------------------------------------------------------

FORMAT = """\
name: block_rq_complete
ID: 1234
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;
\tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;
\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:int error;\toffset:28;\tsize:4;\tsigned:1;
{rwbs}
\tfield:__data_loc char[] cmd;\toffset:44;\tsize:4;\tsigned:0;
"""
SECTOR = "offset:16;\tsize:8;"
OLD = "\tfield:char rwbs[8];\toffset:32;\tsize:8;\tsigned:0;"
PRIORITY = "\tfield:unsigned short ioprio;\toffset:32;\tsize:2;\tsigned:0;\n"
NEW = PRIORITY + "\tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;"


@pytest.mark.parametrize(("rwbs", "offset"), [(OLD, 32), (NEW, 34)])
def test_the_record_of_older_and_newer_kernels(rwbs: str, offset: int) -> None:
    found = classic.parse_format(FORMAT.format(rwbs=rwbs))
    assert found == classic.Offsets(dev=8, sector=16, nr_sector=24, rwbs=offset)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (FORMAT.format(rwbs=""), "rwbs"),
        ("", "dev"),
        (FORMAT.format(rwbs=OLD).replace(SECTOR, SECTOR.replace("8;", "4;")), "sector"),
    ],
)
def test_another_record_is_refused(text: str, what: str) -> None:
    with pytest.raises(NotUnderstood, match=what):
        classic.parse_format(text)


# -- harvests ---------------------------------------------------------------------------


def pending_of(granules: int) -> PendingSet:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pending"
        create(path, granules)
        return PendingSet(path, granules)


@given(
    size=st.sampled_from([1, 7, 65536, 65537, 200_000]),
    rounds=st.lists(st.sets(st.integers(0, 199_999), max_size=40), max_size=6),
    room=st.integers(0, 60),
)
def test_nothing_is_lost_between_harvests(size: int, rounds: list[set[int]], room: int) -> None:
    flags, copy = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    into = np.empty(room, np.int64)
    left: set[int] = set()
    taken: set[int] = set()
    with pending_of(size) as pending:
        for marks in rounds:
            left |= {mark for mark in marks if mark < size}
            flags[sorted(left)] = 1
            if len(left) > room:
                with pytest.raises(HarvestOverflow) as caught:
                    harvest(flags, copy, [pending], into)
                assert (caught.value.marked, caught.value.room) == (len(left), room)
                assert set(np.flatnonzero(flags)) == left
                assert set(pending.granules()) == taken
                continue
            found = harvest(flags, copy, [pending], into)
            assert found.dtype == np.int64
            assert found.tolist() == sorted(left)
            assert found.base is into or not found.size
            taken |= left
            left = set()
            assert not flags.any()
            assert pending.granules().tolist() == sorted(taken)
        assert harvest(flags, copy, [pending]).tolist() == sorted(left)
        assert pending.granules().tolist() == sorted(taken | left)


MARKED = 65536


def mark(memory: str, go: Event, rounds: int) -> None:
    """What the kernel does: the data first, then a plain 1."""
    data, flags = shared_arrays(memory)
    generator = np.random.default_rng(1)
    go.wait()
    for number in range(1, rounds + 1):
        where = generator.permutation(MARKED)[: MARKED // 2] if number % 8 else np.arange(MARKED)
        data[where] = number
        flags[where] = 1


def shared_arrays(path: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    memory = np.memmap(path, np.uint8, "r+")
    return memory[MARKED:].view(np.int64), memory[:MARKED]


def test_no_mark_of_hundreds_of_millions_is_lost(tmp_path: Path) -> None:
    """A race for the memory alone: one process marks as fast as it can, the other harvests.

    Whatever is read of a granule after its last harvest must be what was written last.
    """
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(MARKED * 9))
    rounds = 6000  # of 36,864 marks on average: 221,184,000
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    data, flags = shared_arrays(str(memory))
    seen, copy = np.zeros(MARKED, np.int64), np.zeros(MARKED, np.uint8)
    other = context.Process(target=mark, args=(str(memory), go, rounds))
    other.start()
    harvests = 0
    try:
        go.set()
        with pending_of(MARKED) as pending:
            while other.exitcode is None:
                found = harvest(flags, copy, [pending])
                seen[found] = data[found]
                harvests += 1
            assert other.exitcode == 0
            found = harvest(flags, copy, [pending])
            seen[found] = data[found]
            assert pending.granules().size == MARKED
    finally:
        other.kill()
        other.join()
    assert harvests > 100
    assert np.array_equal(seen, data)


# -- pending sets -----------------------------------------------------------------------


def test_a_pending_set_outlives_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "pending"
    create(path, 100_000)
    flags = np.zeros(100_000, np.uint8)
    flags[[0, 99_999]] = 1
    with PendingSet(path, 100_000) as pending:
        pending.prepare()
        assert pending.granules().size == 0
        pending.add(flags)
    with PendingSet(path, 100_000) as pending:
        pending.prepare()
        assert pending.granules().tolist() == [0, 99_999]
    with pytest.raises(ValueError, match="not of 5 granules"):
        PendingSet(path, 5)
    with pytest.raises(FileExistsError):
        create(path, 5)


def test_no_memory_for_marks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match="no memory for"):
        create(tmp_path / "pending", 1 << 60)
    assert list(tmp_path.iterdir()) == []


# -- trust ------------------------------------------------------------------------------


def test_the_same_disk_is_the_same() -> None:
    assert differences(DISK, DISK) == ()
    assert DISK.granules == 11


@pytest.mark.parametrize(
    "other",
    [
        replace(DISK, diskseq=6),
        replace(DISK, diskseq=0),
        replace(DISK, size=DISK.size + 512),
        replace(DISK, serial=""),
        replace(DISK, wwn="another"),
        replace(DISK, bio_based=True),
        replace(DISK, shows="/another/file 0 0"),
    ],
)
def test_whatever_differs_is_said(other: TrackedDisk) -> None:
    assert len(differences(DISK, other)) == 1
    assert len(differences(other, DISK)) == 1


def test_a_kernel_that_does_not_number_disks_is_never_trusted() -> None:
    blind = replace(DISK, diskseq=0)
    assert differences(blind, blind) != ()


def test_notes_go_to_memory_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [Mount("0:1", "/", point, "ext4", "x", ("rw",)) for point in ("/run", "/dev/shm")]
    monkeypatch.setattr(record, "own_mounts", lambda: mounts)
    with pytest.raises(TrackingUnavailable, match="memory"):
        record.notes_folder()
    with pytest.raises(TrackingUnavailable, match="no BPF filesystem"):
        record.pins_folder()


def test_a_missing_object_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.importlib.resources, "files", lambda package: Path("/nonexistent"))
    with pytest.raises(TrackingUnavailable, match="compiled tracker is missing") as caught:
        program.object_path()
    assert "tools/build-bpf" in caught.value.hint


def test_notes_that_make_no_sense_are_none(tmp_path: Path) -> None:
    places = record.Places(tmp_path / "pins", tmp_path)
    assert record.read_record(places) is None
    places.record.write_text('{"disk": 1}')
    assert record.read_record(places) is None
    base = record.BaseRecord("repo", "image", "00", "pending")
    record.write_note(places.base("repo"), base)
    assert record.read_base(places, "repo") == base
    # Two repositories whose names are cut to the same would be told apart.
    record.write_note(places.base("other"), base)
    assert record.read_base(places, "other") is None
