"""What goes wrong on real machines: bad sectors, kills, full disks, sources that shrink."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freezeframe.core.units import KIB, MIB
from freezeframe.image.manifest import Manifest
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing import disks, proof
from freezeframe.testing.program import Client, Ended, finish
from freezeframe.testing.volumes import Survey, mounted_device

pytestmark = pytest.mark.root

#: How often the program is killed; more by hand: FREEZEFRAME_KILLS=20.
KILLS = int(os.environ.get("FREEZEFRAME_KILLS", "5"))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    made = Client(tmp_path / "repository")
    made.run("init")
    return made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return disks.make_disk(tmp_path_factory.mktemp("tiny") / "disk.img", disks.TINY)


def random_disk(path: Path, size: int, seed: int) -> Path:
    """Nothing known, so all of it is used, and nothing of it can be compressed."""
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


@contextlib.contextmanager
def filesystem(image: Path, kind: str, size: int) -> Iterator[Path]:
    """A small filesystem in a file, mounted: one that may be filled and broken."""
    if not image.exists():
        with image.open("xb") as file:
            file.truncate(size)
        run((f"mkfs.{kind}", "-q", str(image)))
    folder = image.with_suffix(".mnt")
    folder.mkdir(exist_ok=True)
    with attached(image) as device, mounted_device(device, kind, folder, read_only=False):
        yield folder


def assert_clear(ended: Ended) -> None:
    """An error a person can read, and no traceback."""
    assert "Traceback" not in ended.output
    assert "freezeframe: " in ended.stderr


def assert_good(client: Client, images: list[str]) -> None:
    """These images and no others are there, restic has nothing to say, all reads back."""
    assert client.images() == images
    # Locks of killed programs may lie about: they are not what is looked at here.
    checked = client.restic("--no-lock", "check", "--read-data")
    assert "no errors were found" in checked.stdout
    client.run("check", "--read-data")
    if images:
        client.run("verify")


def wait_for_packs(client: Client, process: subprocess.Popen[bytes]) -> None:
    """Return when the first pack of a run is there, or the run has ended."""
    before = len(list((client.repository / "data").glob("*/*")))
    while process.poll() is None:
        if len(list((client.repository / "data").glob("*/*"))) > before:
            return
        time.sleep(0.002)


# -- unreadable sectors -----------------------------------------------------------------


@pytest.fixture
def bad_sector(tiny: Survey, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A copy of the tiny disk of which 4 KiB give an I/O error; yields its path and where.

    The copy lies on a btrfs of which one data block is changed from below, so that its
    checksum does not fit: reading it fails as a bad sector does, in the kernel.
    """
    image = tmp_path / "broken.btrfs"
    with filesystem(image, "btrfs", 300 * MIB) as folder:
        run(("cp", "--sparse=always", str(tiny.path), str(folder / "disk.img")))
    # In the partition that is all random bytes, so what is there is nowhere else.
    bad = tiny.volume("raw").start + 300 * KIB
    with tiny.path.open("rb") as file:
        file.seek(bad)
        content = file.read(4 * KIB)
    below = image.read_bytes()
    at = below.index(content)
    assert below.find(content, at + 1) < 0
    with image.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[0] ^ 1]))
    with filesystem(image, "btrfs", 0) as folder:
        yield folder / "disk.img", bad


@pytest.mark.parametrize("as_device", [False, True], ids=["file", "device"])
def test_unreadable_sectors(
    client: Client,
    tiny: Survey,
    bad_sector: tuple[Path, int],
    tmp_path: Path,
    as_device: bool,
) -> None:
    path, bad = bad_sector
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(attached(path)) if as_device else str(path)
        ended = client.run("backup", "--offline", source, code=3)
    assert "unreadable" in ended.output
    assert len(client.images()) == 1
    record = msgspec.convert(client.manifest("latest"), Manifest).disks[0]
    # Retried smaller until nothing good is given up.
    assert record.unreadable == ((bad, bad + 4 * KIB),)
    target = tmp_path / "new.img"
    client.run("restore", "latest", "--to", str(target), "--yes")
    wanted, found = proof.collect(tiny.path), proof.collect(target)
    assert {line.split(":")[0] for line in proof.differences(wanted, found)} == {"1 raw"}
    with tiny.path.open("rb") as one, target.open("rb") as two:
        start = tiny.volume("raw").start
        one.seek(start)
        two.seek(start)
        original, restored = one.read(MIB), two.read(MIB)
    hole = slice(300 * KIB, 304 * KIB)
    assert restored[hole] == bytes(4 * KIB)
    assert restored[: hole.start] == original[: hole.start]
    assert restored[hole.stop :] == original[hole.stop :]


# -- the program ends in mid-work -------------------------------------------------------


def test_killed_at_random_moments(client: Client, tmp_path: Path) -> None:
    rng = random.Random(5)
    source = tmp_path / "disk.img"
    random_disk(source, 64 * MIB, seed=0)
    begun = time.monotonic()
    client.run("backup", "--offline", str(source))
    usual = time.monotonic() - begun
    images = client.images()
    for number in range(KILLS):
        random_disk(source, 64 * MIB, seed=number + 1)
        process = client.start("backup", "--offline", str(source))
        time.sleep(rng.uniform(0.1, 1.0) * usual)
        process.kill()
        finish(process)
        seen = client.images()
        # Killed after its last deed, it leaves one more; never half of one.
        assert seen[: len(images)] == images
        assert len(seen) <= len(images) + 1
        images = seen
        checked = client.restic("--no-lock", "check", "--read-data")
        assert "no errors were found" in checked.stdout
    client.run("backup", "--offline", str(source))
    assert_good(client, [*images, client.images()[-1]])
    target = tmp_path / "new.img"
    client.run("restore", "latest", "--to", str(target), "--yes")
    run(("cmp", str(source), str(target)))
    # What dead programs left can be removed, and then even restic's own lock is free.
    client.run("unlock")
    client.restic("check")


def test_closed_terminal_does_not_stop_it(client: Client, tmp_path: Path) -> None:
    source = random_disk(tmp_path / "disk.img", 128 * MIB, seed=1)
    process = client.start("backup", "--offline", str(source))
    wait_for_packs(client, process)
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 0
    assert_good(client, client.images())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(client: Client, tmp_path: Path, number: signal.Signals) -> None:
    source = random_disk(tmp_path / "disk.img", 128 * MIB, seed=1)
    process = client.start("backup", "--offline", str(source))
    wait_for_packs(client, process)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == 130
    assert_clear(ended)
    assert list((client.repository / "locks").iterdir()) == []
    assert_good(client, [])
    client.run("backup", "--offline", str(source))
    assert len(client.images()) == 1


# -- the source goes away ---------------------------------------------------------------


def truncate_file(path: Path) -> None:
    os.truncate(path, 3 * MIB + 5)


def empty_file(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("spoil", [truncate_file, empty_file])
def test_source_shrinks_while_it_is_read(
    client: Client, tiny: Survey, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    client.run("backup", "--offline", str(tiny.path))
    images = client.images()
    source = random_disk(tmp_path / "disk.img", 192 * MIB, seed=2)
    process = client.start("backup", "--offline", str(source))
    wait_for_packs(client, process)
    spoil(source)
    ended = finish(process)
    assert ended.code == 1, ended.output
    assert_clear(ended)
    assert str(source) in ended.stderr
    assert_good(client, images)


# -- the repository's disk is full ------------------------------------------------------


def test_full_disk(tiny: Survey, tmp_path: Path) -> None:
    large = random_disk(tmp_path / "large.img", 96 * MIB, seed=3)
    with filesystem(tmp_path / "place.ext4", "ext4", 192 * MIB) as folder:
        client = Client(folder / "repository")
        client.run("init")
        client.run("backup", "--offline", str(tiny.path))
        images = client.images()
        ballast = folder / "ballast"
        free = os.statvfs(folder).f_bfree * os.statvfs(folder).f_frsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 48 * MIB)
        ended = client.run("backup", "--offline", str(large), code=1)
        assert_clear(ended)
        assert "make room" in ended.stderr
        assert_good(client, images)
        assert not list((client.repository / "locks").iterdir())
        # Room is made, and the next run goes on from what is there.
        ballast.unlink()
        client.run("backup", "--offline", str(large))
        assert_good(client, [*images, client.images()[-1]])
        target = tmp_path / "new.img"
        client.run("restore", "latest", "--to", str(target), "--yes")
        run(("cmp", str(large), str(target)))
