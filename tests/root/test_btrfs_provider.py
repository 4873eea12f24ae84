"""Snapshots of btrfs subvolumes as shadow copies, on loop devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.providers.base import Provider, Wishes
from freezeframe.shadow.providers.btrfs import BtrfsProvider
from freezeframe.system import btrfs
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


def test_all_subvolumes_at_one_instant(subvolumes: tuple[Path, ...]) -> None:
    """They are made in one transaction; the kernel's own numbers say so, and the records."""
    top, one, _, inside = subvolumes
    with pairs_written((one, inside)) as writer:
        for turn in range(5):
            provider = BtrfsProvider("ff-test", [volume_at(top)], Wishes())
            assert provider.one_instant
            try:
                provider.prepare(deadline())
                writer.wait_for_more()
                with window(provider, (top,)):
                    provider.commit(deadline())
                (shadow,) = provider.shadows()
                assert not shadow.is_device
                made = {path.parent.name: path for path in Path(shadow.path).glob("*/*")}
                names = sorted(path.name for path in made.values())
                assert names == ["inside", "one", "top", "two"], names
                numbers = set()
                for path in made.values():
                    descriptor = os.open(path, os.O_RDONLY)
                    numbers.add(btrfs.made_in(descriptor))
                    os.close(descriptor)
                    shown = run(("btrfs", "subvolume", "show", str(path))).stdout.decode()
                    assert "Flags: \t\t\treadonly" in shown
                    assert f"{next(iter(numbers))}" in shown
                assert len(numbers) == 1
                by_name = {path.name: records_in(path / "records")
                           for path in made.values() if path.name in ("one", "inside")}  # fmt: skip
                print(turn, by_name)
                assert by_name["one"] - 1 <= by_name["inside"] <= by_name["one"], by_name
                writer.wait_for_more()
            finally:
                provider.release()
    assert not (top / ".freezeframe").exists()


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
