"""What scripts and odd surroundings meet: JSON, pipes, names, streams, prompts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from freezeframe.system.loop import attached
from freezeframe.testing.inprocess import MIB, Program
from freezeframe.testing.program import PROGRAM, Client
from freezeframe.testing.volumes import mounted_device

#: Brackets are markup to some, and not all bytes are text.
ODD = 'we ird [bold] [x] "q" \'s \udcff\x1b[31m'


@pytest.fixture
def client(tmp_path: Path) -> Client:
    made = Client(tmp_path / "repository")
    made.run("init")
    return made


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("size", [1, 511, 513, 4097, MIB - 1, MIB + 1])
def test_any_length(program: Program, tmp_path: Path, size: int) -> None:
    source = random_file(tmp_path / "disk", size)
    program("init")
    program("backup", "--offline", source)
    old = random_file(tmp_path / "old", size)
    for target in (tmp_path / "new", old):
        program("restore", "latest", "--to", target, "--yes")
        assert target.read_bytes() == source.read_bytes()
        program("verify", "latest", "--against", target)


def test_names_that_are_no_text(program: Program, tmp_path: Path) -> None:
    source = random_file(tmp_path / ODD, 5000)
    target = tmp_path / f"{ODD}.new"
    program("init")
    for options in ((), ("--json",)):
        target.unlink(missing_ok=True)
        for command in (
            ("disks", source),
            ("backup", "--offline", source),
            ("images",),
            ("show", "latest"),
            ("restore", "latest", "--to", target, "--yes"),
            ("verify", "latest", "--against", target),
            ("verify", "latest", "--disk", tmp_path / "none", "--against", target),
            ("backup", "--offline", tmp_path / f"{ODD}.none"),
        ):
            code = {"none": 2, f"{ODD}.none": 1}.get(Path(command[-1]).name, 0)
            code = 2 if tmp_path / "none" in command else code
            result = program(*options, *command, code=code)
            assert "\x1b" not in result.out + result.err
            if options:
                assert all("message_type" in record for record in result.records)
        assert target.read_bytes() == source.read_bytes()
    assert "xff" in program.restic("ls", "latest")


def test_usage_errors_are_objects_too(program: Program) -> None:
    for arguments in ((), ("bogus",), ("restore", "latest"), ("backup", "--threads", "0", "x")):
        (record,) = program("--json", *arguments, code=2).records
        assert (record["message_type"], record["code"]) == ("exit_error", 2)
    for size in ("0", "-5", "1X", "99999999999T"):
        program("restore", "latest", "--to", "x", "--size", size, code=2)


def test_a_prompt_nobody_answers(client: Client, tmp_path: Path) -> None:
    source = random_file(tmp_path / "disk", 5000)
    client.run("backup", "--offline", str(source))
    target = tmp_path / "new"
    # Its standard input is /dev/null.
    assert "--yes" in client.run("restore", "latest", "--to", str(target), code=2).stderr
    client.run("restore", "latest", "--to", str(target), "--json", code=2)
    assert not target.exists()


def test_streams_that_are_closed_or_full(client: Client, tmp_path: Path) -> None:
    client.run("backup", "--offline", str(random_file(tmp_path / "disk", 5000)))
    for words, code in (
        ("images >&-", 0),
        ("images >&- 2>&-", 0),
        ("images >/dev/full", 1),
        ("--json images >/dev/full", 1),
        ("bogus 2>&-", 2),
        ("images | true; exit ${PIPESTATUS[0]}", None),
        ("--json images | true; exit ${PIPESTATUS[0]}", None),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{PROGRAM} {words}"],
            env=client.environment(),
            capture_output=True,
            check=False,
        )
        assert code is None or done.returncode == code, words
        assert b"Traceback" not in done.stderr, words


def test_a_reader_of_progress_that_leaves_ends_no_backup(client: Client, tmp_path: Path) -> None:
    source = random_file(tmp_path / "disk", 8 * MIB)
    reader, writer = os.pipe()
    process = subprocess.Popen(
        line("-v", "backup", "--offline", str(source), "--threads", "1"),
        env=client.environment(),
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(reader)
    os.close(writer)
    assert process.wait() == 0
    client.run("verify", "latest", "--against", str(source))


def line(*arguments: str) -> list[str]:
    return [str(PROGRAM), *arguments]


def test_targets_in_the_repository(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    pack = max(
        (path for path in (program.repo / "data").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    (tmp_path / "link").symlink_to(pack)
    for target in (pack, tmp_path / "link", program.repo / "new.raw", program.repo / "config"):
        told = program("restore", "latest", "--to", target, "--yes", code=1)
        assert "in the repository" in told.err
    program("check", "--read-data")


def test_a_file_that_came_meanwhile_is_kept(client: Client, tmp_path: Path) -> None:
    client.run("backup", "--offline", str(random_file(tmp_path / "disk", 5000)))
    target = tmp_path / "new"
    process = subprocess.Popen(
        line("restore", "latest", "--to", str(target)),
        env=client.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert b"restore disk" in process.stdout.readline()
    target.write_bytes(b"precious")
    _, err = process.communicate(b"y\n")
    assert process.returncode == 1
    assert b"somebody else" in err
    assert target.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.glob("new*")) == ["new"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    client.run("restore", "latest", "--to", str(tmp_path / "dangling"), "--yes", code=1)
    assert (tmp_path / "dangling").is_symlink()


@pytest.mark.parametrize("name", ["new.raw", "new.qcow2", "old.raw"])
def test_a_restore_that_is_stopped(client: Client, tmp_path: Path, name: str) -> None:
    source = random_file(tmp_path / "disk", 192 * MIB)
    client.run("backup", "--offline", str(source))
    target = tmp_path / name
    if name.startswith("old"):
        with target.open("wb") as file:
            file.write(b"x" * MIB)
            file.truncate(192 * MIB)
    process = client.start("restore", "latest", "--to", str(target), "--yes", "--threads", "1")
    begun = target if name.startswith("old") else next(iter(wait_for(tmp_path, f"{name}.unf*")))
    while first_byte(begun) in (b"x", b"\0"):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert (b"incomplete" in err) is name.startswith("old")
    assert [path.name for path in tmp_path.glob("new*")] == []
    assert list((client.repository / "locks").iterdir()) == []


def first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def wait_for(folder: Path, pattern: str) -> list[Path]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := list(folder.glob(pattern)):
            return found
        time.sleep(0.001)
    raise AssertionError(f"no {pattern} appeared")


def test_nothing_to_verify_is_no_success(program: Program) -> None:
    program("init")
    assert "no image" in program("verify", code=1).err


def test_a_damaged_snapshot_is_found_by_verify(program: Program, disk: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    program("backup", "--offline", disk)
    snapshot = next((program.repo / "snapshots").iterdir())
    snapshot.chmod(0o600)
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    hit = program("--json", "verify", code=1).records
    assert [r["where"] for r in hit if r["message_type"] == "damage"] == ["a snapshot"]


def test_a_huge_disk_that_is_mostly_hole(program: Program, disk: Path, tmp_path: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(3 << 40)
    subprocess.run(["sgdisk", "-e", disk], check=True, capture_output=True)
    program("init")
    program("backup", "--offline", disk)
    record = json.loads(program("--json", "show", "latest").out.splitlines()[0])
    assert record["manifest"]["disks"][0]["size"] == 3 << 40
    target = tmp_path / "new"
    program("restore", "latest", "--to", target, "--yes")
    program("verify", "latest", "--against", target)
    program("verify")
    assert target.stat().st_blocks * 512 < 64 * MIB


@pytest.mark.root
def test_the_same_bytes_twice_are_refused(program: Program, disk: Path) -> None:
    program("init")
    with attached(disk) as device:
        assert "beneath" in program("backup", "--offline", device, disk, code=2).err
        subprocess.run(["addpart", device, "1", "2048", "65536"], check=True)
        try:
            told = program("backup", "--offline", f"{device}p1", device, code=2).err
        finally:
            subprocess.run(["delpart", device, "1"], check=True)
    assert "is a partition of" in told
    assert "no images yet" in program("images").out


@pytest.mark.root
def test_full_and_read_only_places(client: Client, tmp_path: Path) -> None:
    client.run("backup", "--offline", str(random_file(tmp_path / "disk", 16 * MIB)))
    small, folder = tmp_path / "small", tmp_path / "mounted"
    with small.open("wb") as file:
        file.truncate(12 * MIB)
    subprocess.run(["mkfs.ext4", "-q", small], check=True)
    folder.mkdir()
    with attached(small) as device, mounted_device(device, "ext4", folder, read_only=False):
        for name in ("new.raw", "new.qcow2"):
            ended = client.run("restore", "latest", "--to", str(folder / name), "--yes", code=1)
            assert "no room" in ended.stderr
            assert [path.name for path in folder.iterdir()] == ["lost+found"]
        with (folder / "old").open("wb") as file:
            file.truncate(16 * MIB)
        ended = client.run("restore", "latest", "--to", str(folder / "old"), "--yes", code=1)
        assert "old is incomplete" in ended.stderr
        (folder / "old").unlink()
        random_file(tmp_path / "disk", 5000)
        inside = Client(folder / "repository")
        inside.run("init")
        inside.run("backup", "--offline", str(tmp_path / "disk"))
        for target in (device, str(small)):
            refused = inside.run("restore", "latest", "--to", target, "--yes", code=1)
            assert "holds the repository" in refused.stderr
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        inside.run("check", "--read-data")
        inside.run("restore", "latest", "--to", str(tmp_path / "new"), "--yes")
        inside.run("verify", "latest", "--against", str(tmp_path / "new"))
