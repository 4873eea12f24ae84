"""Files of images by the command line: found, read, copied out, and never out of the target."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from freezeframe.access import get as copying
from freezeframe.testing.inprocess import MIB, Program, make_disk


def make_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "etc").mkdir()
    (folder / "etc/fstab").write_text("PARTLABEL=root / ext4 defaults 0 1\n")
    (folder / "etc/hosts").write_text("one\n")
    (folder / "absolute").symlink_to("/etc/hosts")
    (folder / "up").symlink_to("../../../etc/hosts")
    (folder / "circle").symlink_to("circle")
    for number in range(8):
        (folder / f"big{number}").write_bytes(os.urandom(2 * MIB))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return make_files(tmp_path / "files")


@pytest.fixture
def disk(tmp_path: Path, files: Path) -> Path:
    return make_disk(tmp_path / "disk.raw", files)


def test_looking(program: Program, disk: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    volumes = program("files", "ls", "latest").out
    assert "disk.raw/p1" in volumes
    assert "ext4" in volumes
    lines = program("files", "ls", "latest:/").out.splitlines()
    assert any(
        line.startswith("lrwxrwxrwx") and line.endswith("absolute -> /etc/hosts") for line in lines
    )
    assert len(program("files", "ls", "latest:/etc/hosts").out.splitlines()) == 1
    # Links lead to where they led on the machine: inside the image.
    for path in ("/etc/hosts", "/absolute", "/up", "/etc/../etc/./hosts"):
        assert program("files", "cat", f"latest:{path}").out == "one\n"
    pieces = program("files", "cat", "latest:/etc/hosts", "--json").records
    assert base64.b64decode(str(pieces[0]["base64"])) == b"one\n"
    found = program("files", "find", "--name", "h*st?").out.splitlines()
    assert [line.split(":", 1)[1] for line in found] == ["/etc/hosts"]
    assert program("files", "find", "latest:/etc").out.split() == [
        "latest:/etc",
        "latest:/etc/fstab",
        "latest:/etc/hosts",
    ]
    record = program("files", "ls", "latest:/etc/hosts", "--json").record("file")
    assert (record["type"], record["size"], record["mode"]) == ("file", 4, "0644")


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("latest:/nothing", 1, "there is no nothing in /"),
        ("latest:/etc/hosts/x", 1, "/etc/hosts is no folder"),
        ("latest:/circle", 1, "too many symbolic links"),
        ("latest:/etc", 2, "is a folder"),
        ("latest:sda9:/etc", 1, "there is no volume 'sda9'"),
        ("latest:disk.raw/2:/x", 1, "holds swap"),
        (":/x", 2, "names no image"),
        ("latest:", 2, "names no path"),
    ],
)
def test_what_is_not_there_is_said(
    program: Program, disk: Path, where: str, code: int, said: str
) -> None:
    program("init")
    program("backup", "--offline", disk)
    assert said in program("files", "cat", where, code=code).err


def test_copying(program: Program, disk: Path, files: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    out = tmp_path / "out"
    summary = program("files", "get", "latest:/", "--to", out, "--json").record("summary")
    assert summary["failed"] == 0
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", "--exclude=lost+found", files, out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert (out / "absolute").readlink() == Path("/etc/hosts")
    # Nothing is replaced unless that is asked for.
    (out / "etc/hosts").write_text("mine")
    assert "--overwrite" in program("files", "get", "latest:/etc", "--to", out, code=3).err
    assert (out / "etc/hosts").read_text() == "mine"
    program("files", "get", "latest:/etc", "latest:/big1", "--to", out, "--overwrite")
    assert (out / "etc/hosts").read_text() == "one\n"
    one = tmp_path / "one"
    program("files", "get", "latest:/up", "-o", one)
    assert one.read_text() == "one\n"
    program("files", "get", "latest:/up", "-o", one, code=1)
    program("files", "get", "latest:/etc/fstab", "-o", one, "--overwrite")
    assert one.read_text().startswith("PARTLABEL")
    program("files", "get", "latest:/etc", "-o", tmp_path / "two", code=2)
    assert (
        "no regular file"
        in program("files", "get", "latest:/up", "-o", "/dev/null", "--overwrite", code=1).err
    )
    program("files", "get", "latest:/nothing", "--to", tmp_path / "three", code=1)
    assert not (tmp_path / "three").exists()


def test_history(program: Program, files: Path, tmp_path: Path) -> None:
    program("init")
    disk = make_disk(tmp_path / "disk.raw", files)
    program("backup", "--offline", disk)
    program("backup", "--offline", disk)
    (files / "etc/hosts").write_text("two\n")
    disk.unlink()
    program("backup", "--offline", make_disk(disk, files))
    (files / "etc/hosts").unlink()
    disk.unlink()
    program("backup", "--offline", make_disk(disk, files))
    records = program("files", "history", "/etc/hosts", "--json").records
    assert [record["state"] for record in records] == ["new", "same", "changed", "gone"]
    sums = [record["sha256"] for record in records]
    assert sums[0] == sums[1] != sums[2]
    assert program("files", "history", "/etc/hosts").out.count("changed") == 1
    assert [r["state"] for r in program("files", "history", "/no", "--json").records] == [
        "absent"
    ] * 4
    by_volume = program("files", "history", "disk.raw/1:/etc/hosts", "--json").records
    assert [record["state"] for record in by_volume] == ["new", "same", "changed", "gone"]


# -- what must not happen -----------------------------------------------------------------


def patched(disk: Path, changes: dict[bytes, bytes]) -> Path:
    """Change names inside a filesystem, as whoever crafts one would."""
    data = disk.read_bytes()
    for old, new in changes.items():
        assert len(old) == len(new)
        assert old in data
        data = data.replace(old, new)
    disk.write_bytes(data)
    return disk


def test_no_name_and_no_link_leads_out_of_the_target(program: Program, tmp_path: Path) -> None:
    files, outside = tmp_path / "files", tmp_path / "outside"
    outside.mkdir()
    (files / "etc").mkdir(parents=True)
    (files / "etc/fstab").write_text("/dev/root / ext4 defaults 0 1\n")
    (files / "AAAAAAAAAAA").write_text("evil")
    (files / "BBBBBBBBB").symlink_to(outside)
    (files / "CCCCCCCCC").mkdir()
    (files / "CCCCCCCCC/file").write_text("evil")
    disk = make_disk(tmp_path / "disk.raw", files)
    # A name with a slash; a link and a folder of one name, the link first.
    patched(disk, {b"AAAAAAAAAAA": b"../outside!", b"CCCCCCCCC": b"BBBBBBBBB"})
    program("init")
    program("backup", "--offline", disk)
    out = tmp_path / "out"
    for options in ([], ["--overwrite"]):
        err = program("files", "get", "latest:/", "--to", out, *options, code=3).err
        assert "a name that no file may have" in err
        assert list(outside.iterdir()) == []
        assert not (tmp_path / "outside!").exists()
        shutil.rmtree(out)


def test_folders_in_circles_are_gone_through_once(program: Program, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "outer/FFFFFFFFFFF").mkdir(parents=True)
    (files / "outer/file").write_text("here")
    disk = make_disk(tmp_path / "disk.raw", files)
    data = bytearray(disk.read_bytes())
    # The number of the inode stands eight bytes before the name: the inner is the top one.
    at = data.index(b"FFFFFFFFFFF") - 8
    data[at : at + 4] = (2).to_bytes(4, "little")
    disk.write_bytes(data)
    program("init")
    program("backup", "--offline", disk)
    found = program("files", "find", "latest:/", "--name", "file", code=3)
    assert found.out.split() == ["latest:/outer/file"]
    assert "lies in several places" in found.err
    out = tmp_path / "out"
    program("files", "get", "latest:/", "--to", out, code=3)
    assert (out / "outer/file").read_text() == "here"
    assert list((out / "outer").iterdir()) == [out / "outer/file"]


def test_a_target_full_of_links_is_not_followed(
    program: Program, disk: Path, tmp_path: Path
) -> None:
    program("init")
    program("backup", "--offline", disk)
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (out / "etc").symlink_to(outside)
    (out / "big0").symlink_to(outside / "big")
    program("files", "get", "latest:/", "--to", out, "--overwrite", code=3)
    assert list(outside.iterdir()) == []
    assert (out / "big0").stat().st_size == 2 * MIB


def test_damage_costs_the_files_it_hits(
    program: Program, disk: Path, files: Path, tmp_path: Path
) -> None:
    program("init")
    program("backup", "--offline", disk)
    packs = [path for path in (program.repo / "data").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    out = tmp_path / "out"
    ended = program("files", "get", "latest:/", "--to", out, "--json", code=3)
    bad = {Path(str(r["path"])).name for r in ended.records if r["message_type"] == "error"}
    assert 1 <= len(bad) <= 2
    # What was there is not lost to a file that cannot be read.
    for name in bad:
        (out / name).write_text("mine")
    program("files", "get", "latest:/", "--to", out, "--overwrite", code=3)
    for name in bad:
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    assert not list(out.glob(".unfinished*"))
    # Half a file is not left behind; all others are whole.
    for path in files.glob("big*"):
        copy = out / path.name
        assert copy.exists() != (path.name in bad)
        assert path.name in bad or copy.read_bytes() == path.read_bytes()
    for name in bad:
        assert "damaged" in program("files", "cat", f"latest:/{name}", code=1).err
        record = program("files", "history", f"/{name}", "--json", code=3).record("version")
        assert record["state"] == "unreadable"


def test_an_interrupted_copy_leaves_no_half_file(
    program: Program, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("init")
    program("backup", "--offline", disk)
    real, calls = os.pwrite, 0

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(handle, data, offset)

    monkeypatch.setattr(copying.os, "pwrite", pwrite)
    out = tmp_path / "out"
    program("files", "get", "latest:/", "--to", out, code=130)
    sizes = {path.name: path.stat().st_size for path in out.glob("big*")}
    assert len(sizes) < 8
    assert set(sizes.values()) <= {2 * MIB}
