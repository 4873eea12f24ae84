"""Snapshots of btrfs subvolumes as shadow copies, on loop devices."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.providers.base import Provider, ProviderFailed, Wishes
from freezeframe.shadow.providers.btrfs import BtrfsProvider
from freezeframe.system.run import run
from freezeframe.testing.frozen import mounted_at, mounted_disk
from freezeframe.testing.provider_contract import (
    Ground,
    ProviderContract,
    deadline,
    pairs_written,
    records_in,
    volume_at,
    window,
)

pytestmark = pytest.mark.root


class TestBtrfs(ProviderContract):
    """One btrfs, and a plain ext4 that is frozen meanwhile."""

    provider = BtrfsProvider

    @contextlib.contextmanager
    def ground(self, folder: Path) -> Iterator[Ground]:
        with (
            mounted_disk(folder, "btrfs", "copied") as copied,
            mounted_disk(folder, "ext4", "plain", size=64 * MIB) as plain,
        ):
            yield Ground((copied.point, plain.point), (volume_at(copied.point),))

    def break_commit(self, provider: Provider) -> None:
        (folder,) = Path("/run/freezeframe/btrfs").glob("ff-test-0/.freezeframe/ff-test-0/5")
        folder.rmdir()


@pytest.fixture
def subvolumes(tmp_path: Path) -> Iterator[tuple[Path, ...]]:
    """Three subvolumes of one filesystem, each mounted, one inside another; one is read-only."""
    with mounted_disk(tmp_path, "btrfs") as disk, contextlib.ExitStack() as stack:
        points = []
        for name in ("one", "two", "two/inside", "fixed"):
            run(("btrfs", "subvolume", "create", str(disk.point / name)))
            if name != "fixed":
                at = tmp_path / f"at-{name.replace('/', '-')}"
                stack.enter_context(mounted_at(disk.device, at, "-o", f"subvol={name}"))
                points.append(at)
        run(("btrfs", "property", "set", str(disk.point / "fixed"), "ro", "true"))
        yield disk.point, *points


def copies(provider: Provider) -> dict[str, Path]:
    """Return the snapshots by the names of their subvolumes; all are read-only."""
    (shadow,) = provider.shadows()
    assert not shadow.is_device
    found = {path.name: path for path in Path(shadow.path).glob("*/*")}
    for path in found.values():
        shown = run(("btrfs", "subvolume", "show", str(path))).stdout.decode()
        assert re.search(r"Flags:\s+readonly", shown), shown
    return found


def test_all_subvolumes_at_one_instant(subvolumes: tuple[Path, ...]) -> None:
    """Who writes record n to one and then to another, with moments in between."""
    top, one, _, inside = subvolumes
    with pairs_written((one, inside), 0.05) as writer:
        for _ in range(5):
            provider = BtrfsProvider("ff-test", [volume_at(top)], Wishes())
            assert provider.one_instant
            try:
                provider.prepare(deadline())
                writer.wait_for_more()
                with window(provider, (top,)):
                    provider.commit(deadline())
                made = copies(provider)
                assert sorted(made) == ["inside", "one", "top", "two"]
                first, second = (records_in(made[n] / "records") for n in ("one", "inside"))
                print("records on the copies:", first, second)
                assert first - 1 <= second <= first, (first, second)
                writer.wait_for_more()
            finally:
                provider.release()
    assert not (top / ".freezeframe").exists()


def test_no_instant_is_claimed_that_there_was_not(subvolumes: tuple[Path, ...]) -> None:
    """Two that are written to without a pause: either it fails, or the records agree."""
    top, one, _, inside = subvolumes
    told = 0
    with pairs_written((one, inside)) as writer:
        for _ in range(3):
            provider = BtrfsProvider("ff-test", [volume_at(top)], Wishes())
            try:
                provider.prepare(deadline())
                provider.commit(deadline())
                made = copies(provider)
                first, second = (records_in(made[n] / "records") for n in ("one", "inside"))
                assert first - 1 <= second <= first, (first, second)
            except ProviderFailed as error:
                told += "no common instant" in error.message
                if not told:
                    raise
            finally:
                provider.release()
            writer.wait_for_more()
    print("no common instant:", told, "of 3")


def test_snapshots_are_found_by_their_names(subvolumes: tuple[Path, ...]) -> None:
    """After a reboot, which leaves them, but neither journal nor mount."""
    top = subvolumes[0]
    assert BtrfsProvider.strays() == []
    provider = BtrfsProvider("ff-test", [volume_at(top)], Wishes())
    provider.prepare(deadline())
    provider.commit(deadline())
    run(("umount", "-l", "/run/freezeframe/btrfs/ff-test-0"))
    (record,) = BtrfsProvider.strays()
    assert record["name"] == "ff-test"
    assert BtrfsProvider.trouble(record)
    BtrfsProvider.clean(record)
    assert BtrfsProvider.strays() == []
    provider.release()
    assert not (top / ".freezeframe").exists()
