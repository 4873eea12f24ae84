"""`lvm`: copy-on-write into the free extents of a volume group.

LVM makes the store, an ordinary volume with a tag; the copy itself is made with the kernel's
calls (see `layers`), not by `lvcreate --snapshot`, because that

- takes one volume at a time and freezes its filesystem itself. Where that is frozen already
  it fails with EBUSY and leaves a table and a volume behind (`Manual intervention required`;
  LVM 2.03.16 on Linux 6.1). It works if the volume was suspended without a freeze
  (`dmsetup suspend --nolockfs`), but resumes it at once;
- is a program that reads and writes files: it must not run while the root filesystem is
  frozen, and cannot while the root's volume is suspended.

LVM does not know of the layer. `lvchange --refresh` or `lvextend` of the volume puts its own
table back and ends the copy, which is noticed (`ShadowLost`) and does not harm the volume. The
kernel asks for the size of a store whenever it needs more of it, so one that fills up is
extended while it is in use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import MIB, align_down, align_up, human_size
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers import lvmtools
from freezeframe.shadow.providers.base import Fit, ProviderFailed, Volume, Wishes
from freezeframe.shadow.providers.cow import CowProvider, store_size
from freezeframe.shadow.providers.layers import unsuitable
from freezeframe.shadow.providers.lvmtools import LogicalVolume
from freezeframe.system.devmapper import DeviceMapper, dm_name, dm_uuid
from freezeframe.system.run import which

#: A group with less free than this part of a volume is no place for its store.
_LEAST_PART = 0.01
_STORE = re.compile(r"^(?P<name>.+)-cow-\d+$")


class LvmProvider(CowProvider):
    """Stores in the groups of the volumes themselves.

    Each has a tenth of its volume, at least 64 MiB, or what the user wished, and the volumes
    of a group that has less free share that in proportion.
    """

    kind = "lvm"

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self._stores: list[str] = []

    @classmethod
    def unavailable(cls) -> str:
        """Say why it does not work on this machine, or nothing."""
        return super().unavailable() or ("" if which("lvm") else "lvm2 is not installed")

    @classmethod
    def fit(cls, volume: Volume) -> Fit:
        """Take a logical volume whose table may be there twice, in a group with free extents."""
        if not dm_uuid(volume.node).startswith("LVM-"):
            return Fit(False, 0, "not a logical volume")
        try:
            with DeviceMapper() as mapper:
                reason = unsuitable(mapper, dm_name(volume.node))
            found = lvmtools.volume_of(dm_name(volume.node), fresh=False)
        except OSError as error:
            return Fit(False, 0, f"device-mapper cannot be asked: {error.strerror}")
        except FreezeframeError as error:
            return Fit(False, 0, f"LVM cannot be asked: {error.message}")
        if reason or found is None:
            return Fit(False, 0, reason or "LVM does not list it")
        if found.free < max(volume.size * _LEAST_PART, found.extent):
            return Fit(False, 0, f"only {human_size(found.free)} free in group {found.vg_name}")
        return Fit(True, 40, f"{human_size(found.free)} free in group {found.vg_name}")

    def record(self) -> Mapping[str, str]:
        """Return the names of everything; stores are known from `prepare` on."""
        numbered = {f"lv.{n}": name for n, name in enumerate(self._stores)}
        return {**super().record(), **numbered}

    def _make_stores(self, deadline: Deadline) -> list[str]:
        found = [self._found(origin) for origin in self._origins]
        self._stores = [f"{v.vg_name}/{self.name}-cow-{n}" for n, v in enumerate(found)]
        self.journal()
        sizes = self._sizes(found)
        for name, size in zip(self._stores, sizes, strict=True):
            deadline.check("making stores")
            lvmtools.create(name, "-Zn", "-L", f"{size}b")
        return [f"/dev/{name}" for name in self._stores]

    @staticmethod
    def _found(origin: str) -> LogicalVolume:
        found = lvmtools.volume_of(origin)
        if found is None:
            raise ProviderFailed(f"LVM does not know {origin}", hint="`lvs` shows what it knows")
        return found

    def _sizes(self, found: list[LogicalVolume]) -> list[int]:
        """Return the bytes of each store: what is wished, scaled to what each group has."""
        wanted = [store_size(v.size, self.wishes.store_size) for v in self.volumes]
        sizes = []
        for volume, size in zip(found, wanted, strict=True):
            asked = sum(
                align_up(other, each.extent)
                for each, other in zip(found, wanted, strict=True)
                if each.vg_name == volume.vg_name
            )
            size = align_up(size, volume.extent)
            if asked > volume.free:
                size = align_down(size * volume.free // asked, volume.extent)
            if size < volume.extent:
                raise ProviderFailed(
                    f"group {volume.vg_name} has no room for a store: "
                    f"{human_size(volume.free)} are free",
                    hint="extend the group, or use --provider dm with --store",
                )
            sizes.append(size)
        return sizes

    def _grow_store(self, index: int) -> None:
        found = lvmtools.named(self._stores[index])
        most = self.volumes[index].size + MIB
        if found is None or found.free < found.extent or int(found.lv_size) >= most:
            return
        step = min(align_up(int(found.lv_size) // 2, found.extent), found.free)
        lvmtools.lvm("lvextend", "-y", "-L", f"+{step}b", found.name)

    @classmethod
    def _remove_stores(cls, record: Mapping[str, str]) -> None:
        for key, name in record.items():
            if key.startswith("lv."):
                lvmtools.remove(name)

    @classmethod
    def strays(cls) -> Sequence[Mapping[str, str]]:
        """Return records of stores that are there by their names: a reboot ends the copies."""
        found: dict[str, list[LogicalVolume]] = {}
        for volume in lvmtools.ours():
            match = _STORE.match(volume.lv_name)
            if match is not None:
                found.setdefault(match["name"], []).append(volume)
        return [
            lvmtools.record_of(volumes, {"name": name, "count": "0"})
            for name, volumes in found.items()
        ]
