"""`dm`: copy-on-write under any mounted device-mapper volume, stored wherever there is room.

For volumes without room beside them: a volume group that is full, LUKS on a partition, a
plain mapping. How, and what is put beneath the volume: `layers`.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from freezeframe.core.units import MIB
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Fit, ProviderFailed, Volume
from freezeframe.shadow.providers.cow import CowProvider, store_size
from freezeframe.shadow.providers.layers import unsuitable
from freezeframe.shadow.providers.stores import MEMORY, StoreFile, own_device, store_folder
from freezeframe.system.devmapper import DeviceMapper, dm_name


class DmProvider(CowProvider):
    """The store is a file in memory or in a folder, or a device of its own.

    In memory where it takes no more than a quarter of what is free, else in /var/tmp, if
    that lies on none of the volumes; `Wishes.store` names another folder, `memory` or a
    device, and `Wishes.store_size` its size.
    """

    kind = "dm"
    _folder: Path | None = None

    @classmethod
    def fit(cls, volume: Volume) -> Fit:
        """Take any volume of device-mapper whose table may be there twice."""
        name = dm_name(volume.node)
        if not name:
            return Fit(False, 0, "not a device-mapper volume")
        try:
            with DeviceMapper() as mapper:
                reason = unsuitable(mapper, name)
        except OSError as error:
            reason = f"device-mapper cannot be asked: {error.strerror}"
        if reason:
            return Fit(False, 0, reason)
        size = store_size(volume.size) // MIB
        return Fit(True, 10, f"copy-on-write into {size} MiB of memory or of another disk")

    def record(self) -> Mapping[str, str]:
        """Return the names of everything; a folder is known from `prepare` on."""
        return {**super().record(), "folder": str(self._folder or "")}

    def _make_stores(self, deadline: Deadline) -> list[str]:
        wish = self.wishes.store
        if wish != MEMORY and wish and stat.S_ISBLK(_mode(wish)):
            if len(self.volumes) > 1:
                raise ProviderFailed(
                    f"{wish} cannot be the store of {len(self.volumes)} volumes",
                    hint="name a folder: each volume gets a file there",
                )
            return [own_device(wish)]
        sizes = [store_size(volume.size, self.wishes.store_size) for volume in self.volumes]
        self._folder = store_folder(wish, self.volumes, sum(sizes))
        self.journal()
        devices = []
        for file, size in zip(_files(self.record()), sizes, strict=True):
            deadline.check("making room for copied blocks")
            devices.append(file.make(size))
        return devices

    def _grow_store(self, index: int) -> None:
        if self._folder is not None:
            _files(self.record())[index].grow()

    @classmethod
    def _remove_stores(cls, record: Mapping[str, str]) -> None:
        for file in _files(record):
            file.remove()


def _files(record: Mapping[str, str]) -> list[StoreFile]:
    folder, count = record.get("folder", ""), int(record.get("count", "0"))
    if not folder:
        return []
    return [StoreFile(Path(folder, f"{record['name']}-{n}.cow")) for n in range(count)]


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0
