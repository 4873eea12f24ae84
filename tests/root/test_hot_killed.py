"""A hot image that is killed: nothing stays frozen, images stay whole, the next one works."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.repo.repository import Repository, open_repository
from freezeframe.store.open import open_store
from freezeframe.system.run import run
from freezeframe.testing.frozen import MountedDisk, eventually, is_frozen, mounted_disk
from freezeframe.testing.hot import check_filesystem, image_hot, storm, untrack
from freezeframe.testing.program import PASSWORD, Client

pytestmark = pytest.mark.root


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(tmp_path / "repository")
    client.run("init")
    return client


@contextlib.contextmanager
def busy_disk(folder: Path, kind: str) -> Iterator[MountedDisk]:
    with mounted_disk(folder, kind) as disk:
        try:
            for number in range(60):
                (disk.point / f"file{number}").write_bytes(os.urandom(MIB))
            with storm(disk.point / "storm"):
                yield disk
        finally:
            untrack(disk.device)


def goes_on(point: Path) -> bool:
    """Whether a filesystem takes writes, asked without waiting for it."""
    return not is_frozen(point)


def test_killed_at_any_moment(tmp_path: Path, client: Client) -> None:
    dice = random.Random()
    with busy_disk(tmp_path, "ext4") as disk:
        begun = time.monotonic()
        client.run("backup", "--online", disk.device)
        whole = time.monotonic() - begun
        for _ in range(6):
            process = client.start("backup", "--online", disk.device)
            time.sleep(dice.uniform(0.2, 1.0) * whole)
            process.kill()
            process.communicate()
            eventually(lambda: goes_on(disk.point))
            (disk.point / "after").write_bytes(bytes(4096))
        made = image_hot(
            open_repository(open_store(str(client.repository)), PASSWORD), [disk.device], tmp_path
        )
        path = disk.device
    check_filesystem("ext4", made.restored[path])
    client.restic("unlock")
    client.restic("check", "--read-data")


def opened(client: Client) -> Repository:
    return open_repository(open_store(str(client.repository)), PASSWORD)


#: Says when it is in the freeze, all of it read, and stays there.
_HELD = """
import os, sys, time
from freezeframe.app.online import backup_online
from freezeframe.repo.repository import open_repository
from freezeframe.store.open import open_store
from freezeframe.backup.hot.freezing import Freezing
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.core.progress import Silent
real = Freezing.read_frozen
def held(self, until):
    done = real(self, until)
    os.write(1, b"in\\n")
    time.sleep(600)
    return done
Freezing.read_frozen = held
settings = HotSettings(freeze_limit=float(sys.argv[4]))
repository = open_repository(open_store(sys.argv[1]), sys.argv[2])
backup_online(repository, [sys.argv[3]], Silent(), settings)
"""


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_killed_in_the_freeze(tmp_path: Path, client: Client, kind: str) -> None:
    with busy_disk(tmp_path, kind) as disk:
        client.run("backup", "--online", disk.device)
        for _ in range(2):
            process = _held(client, disk, limit=60)
            assert is_frozen(disk.point)
            process.kill()
            process.wait()
            # Long before the limit: its end is seen.
            eventually(lambda: goes_on(disk.point))
        assert len(client.images()) == 1
        image_hot(
            open_repository(open_store(str(client.repository)), PASSWORD), [disk.device], tmp_path
        )
    client.restic("unlock")
    client.restic("check", "--read-data")


def test_hung_in_the_freeze(tmp_path: Path, client: Client) -> None:
    """Who does not end is thawed when the limit is over, and makes no image."""
    with busy_disk(tmp_path, "ext4") as disk:
        process = _held(client, disk, limit=1)
        try:
            eventually(lambda: goes_on(disk.point))
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        assert client.images() == []
        client.run("backup", "--online", disk.device)
    client.restic("unlock")
    client.restic("check", "--read-data")


def _held(client: Client, disk: MountedDisk, *, limit: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _HELD, client.repository, PASSWORD, disk.device, str(limit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"in\n"
    return process


def test_modes_that_the_program_chooses(tmp_path: Path, client: Client) -> None:
    """In use: online; not in use: offline; and it says which, and why."""
    with mounted_disk(tmp_path, "ext4", size=48 * MIB) as disk:
        try:
            said = client.run("backup", disk.device).output
            assert (
                f"{disk.device}: online, because it is mounted read-write at {disk.point}" in said
            )
            assert "paused for" in said
            assert client.manifest("latest")["mode"] == "online"
            run(("umount", str(disk.point)))
            said = client.run("backup", disk.device).output
            assert f"{disk.device}: offline, nobody uses it" in said
            assert client.manifest("latest")["mode"] == "offline"
            both = client.run("backup", "--online", "--offline", disk.device, code=2)
            assert "exclude each other" in both.output
            file = client.run("backup", "--online", str(tmp_path / "disk.raw"), code=2)
            assert "only devices can be imaged while they are in use" in file.output
        finally:
            run(("mount", disk.device, str(disk.point)), ok=(0, 32))
            untrack(disk.device)
