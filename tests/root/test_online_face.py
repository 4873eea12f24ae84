"""What commands say of disks in use, before and after they are imaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.system.loop import attached
from freezeframe.testing.inprocess import PASSWORD, Program, make_disk, make_files
from freezeframe.testing.tracking import ensure_mounts, node_of
from freezeframe.testing.volumes import mounted_device
from freezeframe.tracking.tracker import stop_number

pytestmark = pytest.mark.root


@pytest.fixture
def program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Program:
    repo = tmp_path / "repo"
    monkeypatch.setenv("FREEZEFRAME_REPOSITORY", str(repo))
    monkeypatch.setenv("FREEZEFRAME_PASSWORD", PASSWORD)
    return Program(capfd, repo)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A disk with a GPT, its ext4 not mounted."""
    ensure_mounts()
    disk = make_disk(tmp_path / "disk.raw", make_files(tmp_path / "files"))
    with attached(disk, partitions=True) as found:
        try:
            yield found
        finally:
            stop_number(node_of(found).number)


def test_how_a_disk_would_be_taken_and_how_it_was(
    program: Program, device: str, tmp_path: Path
) -> None:
    point = tmp_path / "mounted"
    point.mkdir()
    program("init")
    assert "offline, exclusively" in program("disks", device).out
    with mounted_device(f"{device}p1", "ext4", point, read_only=False):
        told = program("disks", device).out
        assert f"online: {device}p1 is mounted read-write at {point}" in told
        assert "frozen" in told
        record = program("--json", "disks", device).record("disk")
        assert record["mode"] == "online"
        inside = program("-r", point / "repository", "--json", "disks", device).record("disk")
        assert inside["mode"] is None
        assert "the repository lies on it" in str(inside["state"])
        made = program("backup", device)
        assert "online, because it is" in made.err
        again = program("backup", device).out
    shown = program("show", "latest").out
    for line in again.splitlines()[2:]:
        assert line in shown
    assert "partition 1 (ext4): frozen" in shown
    assert f"{point} (ext4): freeze " in shown
    assert "were trusted" in shown
    (image, _) = program("--json", "images").records
    assert image["manifest"]["mode"] == "online"  # type: ignore[index]
    hot = program("--json", "show", "latest").record("image")["manifest"]["hot"]  # type: ignore[index]
    assert hot["disks"][0]["disk"] == device
