"""The filesystems on the disks of an image, and their freezer, as of one look."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.states import RegionState, region_states
from freezeframe.layout.base import DiskLayout
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.outsiders import Outsider
from freezeframe.system.sysfs import Node


class Mounted:
    """The filesystems on the disks that are imaged, and their freezer, as of one look."""

    def __init__(self, nodes: Sequence[Node], outsiders: Sequence[Outsider], limit: float) -> None:
        self._nodes = nodes
        self._outsiders = outsiders
        self._limit = limit
        self._stack = ExitStack()
        self.renew()

    def renew(self) -> None:
        """Find those of now, and make a freezer of them."""
        self.close()
        self._found = find_filesystems(self._nodes)
        self.freezer = self._stack.enter_context(
            Freezer(self._found.filesystems, limit=self._limit)
        )

    def unchanged(self) -> bool:
        """Whether the same ones are mounted, as writable, as then."""
        return self._found.same_as(find_filesystems(self._nodes))

    def states(self, disk: HotDisk, layout: DiskLayout) -> dict[int, RegionState]:
        """Return the state of each region of a disk, by its start."""
        cannot = [each.device for each in self.freezer.unfreezable]
        return region_states(disk.node, layout, self._found.filesystems, cannot, self._outsiders)

    def close(self) -> None:
        """Let the filesystems go, and end the watchdog."""
        self._stack.close()
