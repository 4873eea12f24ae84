"""The provider that `docs/shadow-copies.md` shows passes the contract suite."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.providers.base import Provider
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.documented import documented_module
from freezeframe.testing.frozen import mounted_at, mounted_disk
from freezeframe.testing.provider_contract import Ground, ProviderContract, volume_at

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs" / "shadow-copies.md"


class TestShown(ProviderContract):
    """Two filesystems in files of an XFS, which shares blocks between files."""

    @contextlib.contextmanager
    def ground(self, folder: Path) -> Iterator[Ground]:
        with (
            mounted_disk(folder, "xfs", "host") as host,
            documented_module(PAGE, "reflink", folder) as module,
            contextlib.ExitStack() as stack,
        ):
            type(self).provider = module.Reflink
            points = []
            for name in ("one", "two"):
                image = host.point / f"{name}.raw"
                image.touch()
                os.truncate(image, 24 * MIB)
                run(("mkfs.ext4", "-q", "-F", str(image)))
                device = stack.enter_context(attached(image))
                points.append(stack.enter_context(mounted_at(device, folder / name)))
            one, two = points
            yield Ground((one, two), (volume_at(one), volume_at(two)))

    def break_commit(self, provider: Provider) -> None:
        # A folder has the place of the first copy.
        first = Path(provider.record()["copies"].split("\n")[0])
        first.mkdir()
        self._in_the_way = first

    def test_a_commit_that_fails(self, place: Ground) -> None:
        """As for all; what was put in the way is taken away again."""
        with contextlib.suppress(IsADirectoryError, PermissionError):
            super().test_a_commit_that_fails(place)
        self._in_the_way.rmdir()
