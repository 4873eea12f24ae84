"""What is imaged, and whether a file lies wholly in it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class Scope:
    """The volumes of one image, as of one look at the machine."""

    #: The devices that are imaged, as they were named: disks, partitions, volumes.
    volumes: tuple[Node, ...]
    #: Whether all of them are taken at one instant.
    atomic: bool = True
    _stack: Stack = field(default_factory=Stack, compare=False, repr=False)

    @classmethod
    def of(
        cls, volumes: Sequence[Node], stack: Stack | None = None, *, atomic: bool = True
    ) -> Scope:
        """Make one of these volumes."""
        return cls(tuple(volumes), atomic, _stack=stack or Stack())

    def covers(self, path: str | Path) -> bool:
        """Whether all that a file or folder stands on is in the image; links are followed.

        Of what does not exist yet the folder counts. No for what is in memory or on the
        network, and where it cannot be found out.
        """
        return self._has_filesystem(self._stack.filesystem_of(path), frozenset())

    def touches(self, path: str | Path) -> bool:
        """Whether anything that a file or folder stands on is in the image."""
        below = self._stack.below_path(path)
        own = {node.number for volume in self.volumes for node in (volume, *volume.partitions())}
        return bool(own & set(below.nodes))

    def _has_filesystem(self, filesystem: str, seen: frozenset[str]) -> bool:
        if not filesystem or filesystem in seen:
            return False
        seen |= {filesystem}
        if folders := self._stack.overlaid(filesystem):
            inside = (self._stack.filesystem_of(folder) for folder in folders)
            return all(self._has_filesystem(each, seen) for each in inside)
        devices = self._stack.devices_of(filesystem)
        return bool(devices) and all(self._has_device(each, seen) for each in devices)

    def _has_device(self, node: Node, seen: frozenset[str]) -> bool:
        wanted = {volume.number for volume in self.volumes}
        if node.number in wanted or node.whole.number in wanted:
            return True
        if slaves := node.slaves():
            return all(self._has_device(each, seen) for each in slaves)
        if node.partition:
            return self._has_device(node.whole, seen)
        backing = sysfs.loop_backing_file(node)
        if not backing:
            return False
        device = sysfs.node_of(backing)
        if device is not None:
            return self._has_device(device, seen)
        # The stack alone knows whether that path still is the file beneath.
        below = self._stack.below_device(node)
        return not below.unknown and self._has_filesystem(self._stack.filesystem_of(backing), seen)


@functools.cache
def nothing() -> Scope:
    """Return the scope of no volume at all."""
    return Scope((), _stack=Stack(()))
