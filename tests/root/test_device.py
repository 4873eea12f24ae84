"""Block devices past the page cache: real loop devices of 512 and 4096-byte sectors."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.device import Device, aligned_buffer
from freezeframe.block.open import open_shared, open_source, open_target, probe_target
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import SourceError, TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.system.loop import attached
from freezeframe.system.run import run

pytestmark = pytest.mark.root

SIZE = 3 * MIB
LOOP_CHANGE_FD = 0x4C06
DATA = random.Random(5).randbytes(SIZE)
QUIET = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    with attached(path, sector=request.param) as name:
        yield name


def test_what_it_is_as_blockdev_says(device: str) -> None:
    told = run(["blockdev", "--getsize64", "--getss", "--getpbsz", device]).stdout.split()
    with open_source(device) as reader:
        assert isinstance(reader, Device)
        facts = reader.facts
        assert [facts.size, facts.logical_sector, facts.physical_sector] == [int(n) for n in told]
        assert reader.direct
    with open_shared(device) as shared:
        assert (shared.size, shared.sector) == (facts.size, facts.logical_sector)
    assert probe_target(device) == (facts.size, facts.logical_sector)


def test_reads_anywhere(device: str) -> None:
    with open_source(device) as reader:

        @QUIET
        @given(st.integers(0, SIZE), st.integers(0, 1_300_000), st.integers(0, 5000))
        def check(offset: int, length: int, skew: int) -> None:
            length = min(length, SIZE - offset)
            buffer = aligned_buffer(length + skew)[skew:]
            reader.read_into(offset, buffer)
            assert buffer == DATA[offset : offset + length]

        check()


def test_writes_anywhere(device: str) -> None:
    model = bytearray(DATA)
    with open_target(device) as target:

        @QUIET
        @given(
            st.integers(0, SIZE),
            st.integers(0, 300_000) | st.sampled_from([1, 511, 512, 4096, 8192]),
            st.sampled_from(["write", "zero", "aligned"]),
        )
        def check(offset: int, length: int, how: str) -> None:
            if how == "aligned":
                offset, length = offset // 4096 * 4096, length // 4096 * 4096
            length = min(length, SIZE - offset)
            data = bytes(length) if how == "zero" else random.Random(offset).randbytes(length)
            if how == "zero":
                target.zero(offset, length)
            else:
                target.write_at(offset, data)
            model[offset : offset + length] = data
            low, high = max(offset - 4096, 0), min(offset + length + 4096, SIZE)
            assert target.read_at(low, high - low) == model[low:high]

        check()
        target.flush()
    assert Path(device).read_bytes() == model


def test_the_callers_buffer_is_read_into_directly(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = aligned_buffer(MIB)
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 4096 == 0
    with open_source(device) as reader:

        def refuse(*_: object) -> None:
            raise AssertionError("copied")

        monkeypatch.setattr(reader, "_read_around", refuse)
        reader.read_into(MIB, buffer)
        assert buffer == DATA[MIB : 2 * MIB]
        reader.read_into(8192, buffer[4096:12288])
        assert buffer[4096:12288] == DATA[8192:16384]


def test_it_reads_the_disk_and_not_the_cache(device: str) -> None:
    # What somebody wrote through the cache just before is written out first.
    with Path(device).open("r+b", buffering=0) as other:
        other.seek(MIB)
        other.write(b"fresh" * 1000)
        with open_shared(device) as reader:
            assert reader.read_at(MIB, 5000) == b"fresh" * 1000


def test_discard(device: str) -> None:
    with open_target(device) as target:
        assert target.discard(MIB, MIB)
        assert not target.discard(5, 10)
        assert target.read_at(0, MIB) == DATA[:MIB]
        assert target.read_at(2 * MIB, MIB) == DATA[2 * MIB :]


def test_without_o_direct(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with open_target(device) as target:
        assert isinstance(target, Device)
        assert not target.direct
        assert target.read_at(7, 1000) == DATA[7:1007]
        target.write_at(1001, b"some")
        target.zero(2000, 3)
        target.flush()
    assert "O_DIRECT" in caplog.text
    monkeypatch.undo()
    with open_source(device) as reader:
        wanted = DATA[:1001] + b"some" + DATA[1005:2000] + bytes(3) + DATA[2003:4096]
        assert reader.read_at(0, 4096) == wanted


# -- media that fail ------------------------------------------------------------------


def test_a_medium_that_fails(device: str, tmp_path: Path) -> None:
    """The file beneath is cut, so that the kernel reports EIO from there on."""
    with open_source(device) as reader:
        os.truncate(tmp_path / "disk.raw", MIB + 4096)
        with pytest.raises(UnreadableRange):
            reader.read_at(MIB, 64 * KIB)
        buffer = aligned_buffer(2 * MIB)
        buffer[:] = b"\xaa" * len(buffer)
        bad = read_salvaging(reader, 0, buffer)
        assert bad == Extents.single(MIB + 4096, 2 * MIB)
        assert buffer[: MIB + 4096] == DATA[: MIB + 4096]
        assert not any(buffer[MIB + 4096 :])


def test_a_last_sector_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(DATA[: MIB + 512])
    with attached(path, sector=4096) as device, open_source(device) as reader:
        assert reader.size == MIB + 512
        assert reader.read_at(MIB - 5, 5) == DATA[MIB - 5 : MIB]
        buffer = memoryview(bytearray(8192 + 512))
        assert read_salvaging(reader, MIB - 8192, buffer) == Extents.single(MIB, MIB + 512)
        assert buffer[:8192] == DATA[MIB - 8192 : MIB]


def test_a_device_that_shrinks(device: str, tmp_path: Path) -> None:
    with open_source(device) as reader:
        os.truncate(tmp_path / "disk.raw", MIB)
        run(["losetup", "--set-capacity", device])
        assert reader.read_at(0, 4096) == DATA[:4096]
        with pytest.raises(SourceError, match="shrank from 3145728 to 1048576"):
            reader.read_at(2 * MIB, 4096)
        with pytest.raises(SourceError, match="shrank"):
            read_salvaging(reader, MIB - 4096, memoryview(bytearray(8192)))


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "reads on"])
def test_another_disk_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A disk that was pulled out and one put in under its number are not the same."""
    monkeypatch.setattr("freezeframe.block.device._WATCH_EVERY", 0.0)
    path, another = tmp_path / "disk.raw", tmp_path / "another.raw"
    path.write_bytes(DATA)
    another.write_bytes(DATA)
    with attached(path, read_only=True) as device, open_source(device) as reader:
        assert reader.read_at(2 * MIB, 4096) == DATA[2 * MIB :][:4096]
        loop, file = os.open(device, os.O_RDONLY), os.open(another, os.O_RDONLY)
        fcntl.ioctl(loop, LOOP_CHANGE_FD, file)
        os.close(loop)
        os.close(file)
        if fails:
            os.truncate(another, MIB)
        with pytest.raises(SourceError, match="has gone"):
            read_salvaging(reader, 2 * MIB, memoryview(bytearray(4096)))


def test_a_read_only_target(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    with attached(path, read_only=True) as device:
        for open_it in (open_target, probe_target):
            with pytest.raises(TargetUnsuitable, match="read-only"):
                open_it(device)
        with open_source(device) as reader:
            assert reader.read_at(0, 512) == DATA[:512]


def test_a_loop_device_with_no_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    with attached(path) as device:
        pass
    # Somebody else may have taken it by now: then it is busy, or theirs.
    if not Path(f"/sys/block/{Path(device).name}/loop/backing_file").exists():
        with pytest.raises(SourceError, match="no medium"):
            open_source(device)
