"""Disk images in files: holes, locks, and files that change while they are read."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.open import open_shared, open_source, open_target, probe_target
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import (
    SourceBusy,
    SourceError,
    TargetUnsuitable,
)
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.system.run import run
from freezeframe.testing.filetree import seen_by_filefrag


def sparse(path: Path, size: int, parts: list[tuple[int, int]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for start, stop in parts:
            file.seek(start)
            file.write(random.Random(start).randbytes(stop - start))
    return path


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 900_000), st.integers(1, 90_000)).map(lambda r: (r[0], sum(r))),
        max_size=6,
    ),
    punched=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 90_000)), max_size=3),
)
def test_what_is_a_hole_is_zeros(
    tmp_path: Path, parts: list[tuple[int, int]], punched: list[tuple[int, int]]
) -> None:
    for folder in (tmp_path, Path("/dev/shm")):
        path = sparse(folder / f"holes-{os.getpid()}.raw", MIB, parts)
        try:
            with open_target(path) as target:
                for start, length in punched:
                    target.zero(start, length)
            plain = path.read_bytes()
            with open_source(path) as reader:
                data = reader.data_extents()
            for start, stop in data.complement(MIB):
                assert not any(plain[start:stop])
            for start, length in punched:
                assert not any(plain[start : start + length])
            blocks = path.stat().st_blocks * 512
            assert data.total <= max(blocks, 1) + 64 * KIB
        finally:
            path.unlink()


def test_holes_are_where_filefrag_sees_them(tmp_path: Path) -> None:
    parts = [(0, 4096), (MIB, MIB + 64 * KIB), (3 * MIB - 4096, 3 * MIB)]
    path = sparse(tmp_path / "disk.raw", 4 * MIB, parts)
    run(["sync", str(path)])
    with open_source(path) as reader:
        assert reader.data_extents() == Extents.of(parts)
    data, _ = seen_by_filefrag(path)
    assert data == Extents.of(parts)


def test_no_hole_at_all_and_nothing_but_hole(tmp_path: Path) -> None:
    with open_source(sparse(tmp_path / "full", MIB, [(0, MIB)])) as reader:
        assert reader.data_extents() == Extents.single(0, MIB)
    with open_source(sparse(tmp_path / "hole", MIB, [])) as reader:
        assert not reader.data_extents()


def test_a_hole_gives_its_room_back(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, MIB)])
    with open_target(path) as target:
        assert target.discard(0, MIB // 2)
        target.zero(MIB // 2, MIB // 4)
        target.flush()
    assert path.stat().st_blocks * 512 <= MIB // 4 + 64 * KIB
    assert path.read_bytes()[: 3 * MIB // 4] == bytes(3 * MIB // 4)
    assert path.stat().st_size == MIB


# -- files that change ----------------------------------------------------------------


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, MIB)])
    with open_source(path) as reader:
        reader.read_at(0, MIB)
        os.truncate(path, 300_000)
        with pytest.raises(SourceError, match="shrank from 1048576 to 300000"):
            reader.read_at(0, MIB)
        # Even where what is read is still there.
        with pytest.raises(SourceError, match="shrank"):
            read_salvaging(reader, 0, memoryview(bytearray(4096)))


def test_a_file_that_is_written_to(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, MIB)])
    with open_source(path) as reader, open_shared(path) as shared:
        reader.read_at(0, 4096)
        with path.open("r+b") as file:
            file.write(b"hello")
        with pytest.raises(SourceError, match="written to"):
            reader.read_at(8192, 4096)
        assert shared.read_at(0, 5) == b"hello"


# -- locks ----------------------------------------------------------------------------


@contextmanager
def other(code: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code on the path in another process, until the block ends."""
    script = f"import fcntl,os,sys\npath=sys.argv[1]\n{code}\nprint(flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_locked_by_another(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, 4096)])
    with other("f=open(path); fcntl.flock(f, fcntl.LOCK_EX)", path) as process:
        for open_it in (open_source, open_target, probe_target):
            with pytest.raises(SourceBusy) as caught:
                open_it(path)
            assert caught.value.holders == (f"locked by pid {process.pid} ({name_of(process)})",)
        with open_shared(path) as reader:
            assert reader.size == MIB
    with other("f=open(path); fcntl.flock(f, fcntl.LOCK_SH)", path):
        with open_source(path) as reader:
            assert reader.size == MIB
        with pytest.raises(SourceBusy):
            open_target(path)


def name_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text().strip()


def test_open_for_writing_by_another(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, 4096)])
    os.link(path, tmp_path / "another-name")
    with other("f=open(path, 'r+b')", tmp_path / "another-name") as process:
        with pytest.raises(SourceBusy, match=f"open for writing by pid {process.pid} "):
            open_source(path)
        with pytest.raises(SourceBusy):
            open_target(path)
    with other("f=open(path, 'rb')", path), open_source(path):
        pass


def test_our_lock_keeps_others_out(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, 4096)])
    flock = ["flock", "--nonblock", "--conflict-exit-code", "9"]
    with open_source(path), open_source(path):
        run([*flock, "--shared", str(path), "true"])
        run([*flock, "--exclusive", str(path), "true"], ok=(9,))
        with pytest.raises(SourceBusy):
            open_target(path)
    with open_target(path):
        run([*flock, "--shared", str(path), "true"], ok=(9,))
        with pytest.raises(SourceBusy):
            open_source(path)
    run([*flock, "--exclusive", str(path), "true"])


def test_qemu_and_we_see_each_other(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, [(0, 4096)])
    qemu = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    try:
        qemu.stdin.write(b"read 0 512\n")
        qemu.stdin.flush()
        qemu.stdout.readline()
        with pytest.raises(SourceBusy, match=f"pid {qemu.pid} \\(qemu-io\\)"):
            open_source(path)
    finally:
        qemu.communicate(b"quit\n")
    read_only = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(path), f"{path}.copy"]
    writing = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(path)]
    with open_source(path):
        run(read_only)
        run(writing, ok=(1,))
    with open_target(path):
        run(read_only, ok=(1,))
    run(writing)


# -- what is no disk ------------------------------------------------------------------


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    cases = {
        tmp_path / "missing": "there is no",
        tmp_path / "dangling": "there is no",
        tmp_path: "a folder",
        tmp_path / "empty": "empty",
        tmp_path / "fifo": "neither a block device nor a file",
        Path("/dev/null"): "a character device",
        Path("/etc/passwd/x"): "cannot be opened: Not a directory",
    }
    for path, reason in cases.items():
        for open_it, error in (
            (open_source, SourceError),
            (open_shared, SourceError),
            (open_target, TargetUnsuitable),
            (probe_target, TargetUnsuitable),
        ):
            with pytest.raises(error, match=reason):
                open_it(path)


def test_a_new_file_is_new_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new.raw"
    with open_target(path, size=5 * MIB) as target:
        assert (target.size, target.sector) == (5 * MIB, 512)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks == 0
    assert probe_target(path) == (5 * MIB, 512)
    with pytest.raises(TargetUnsuitable, match="exists already"):
        open_target(path, size=5 * MIB)
    with pytest.raises(TargetUnsuitable, match="there is no"):
        open_target(tmp_path / "no" / "folder", size=MIB)
    with pytest.raises(TargetUnsuitable, match="cannot be made"):
        open_target(tmp_path / "huge.raw", size=1 << 62)
    assert not (tmp_path / "huge.raw").exists()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", 4 * MIB, [])
    code = """
import resource, signal, sys
from freezeframe.block.open import open_target
from freezeframe.core.errors import TargetUnsuitable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with open_target(sys.argv[1]) as target:
    target.write_at(0, bytes(1 << 20))
    try:
        target.write_at(1 << 20, b"x")
    except TargetUnsuitable as error:
        print(error.message)
"""
    said = run([sys.executable, "-c", code, str(path)]).stdout.decode()
    assert "cannot be written at 1048576: File too large" in said
