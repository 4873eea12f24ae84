"""`lvm-thin`: snapshots of thin volumes. They share blocks, so nothing is copied beforehand.

`lvcreate --snapshot` takes one volume at a time and freezes it itself. It fails with EBUSY
where the filesystem is frozen, and with ENODATA where the volume is suspended already. One
attempt of each left LVM's transaction number two ahead of the pool's, after which LVM made no
more volumes in the pool and refused to activate it (`transaction_id is 1, while expected 3`;
LVM 2.03.16 on Linux 6.1).

So LVM makes the snapshot's volume beforehand, empty: that gives it a number in the pool and a
place in LVM's metadata. In the commit, while the origin is suspended, the pool is told to put
a snapshot in the place of that number: `delete N`, `create_snap N ORIGIN`. Neither LVM's
metadata nor the pool's transaction change by it, and LVM removes the volume as any other.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freezeframe.core.errors import FreezeframeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers import lvmtools
from freezeframe.shadow.providers.base import (
    Fit,
    ProviderFailed,
    Shadow,
    ShadowLost,
    Volume,
    Wishes,
)
from freezeframe.shadow.providers.layers import UUID, remove_device
from freezeframe.shadow.providers.lvmtools import LogicalVolume
from freezeframe.shadow.providers.mapped import MappedProvider, told
from freezeframe.system import sysfs
from freezeframe.system.devmapper import DeviceMapper, Target, dm_name, dm_uuid
from freezeframe.system.run import which

#: `<transaction> <used>/<all metadata> <used>/<all data> <held root> rw|ro|out_of_data_space …`;
#: Documentation/admin-guide/device-mapper/thin-provisioning.rst of Linux.
_STATUS = re.compile(r"^\d+ (\d+)/(\d+) (\d+)/(\d+) \S+ (\S+)")
#: A pool that is fuller than that is not burdened with a snapshot, nor a fuller one any longer.
_FULL, _TOO_FULL = 0.85, 0.95
_MADE = re.compile(r"^(?P<name>.+)-thin-\d+$")


@dataclass(frozen=True, slots=True)
class _Pool:
    """Where a thin volume lies."""

    #: The pool's device, and its name.
    number: str
    name: str
    #: The volume's number in it.
    volume: int

    @classmethod
    def of(cls, mapper: DeviceMapper, origin: str) -> _Pool | None:
        """Return a thin volume's; None for other volumes, and those over an external origin."""
        table = mapper.table(origin)
        if len(table) != 1 or table[0].kind != "thin":
            return None
        fields = table[0].parameters.split()
        node = sysfs.node_of_number(fields[0])
        if len(fields) != 2 or node is None:
            return None
        return cls(fields[0], dm_name(node), int(fields[1]))

    def full(self, mapper: DeviceMapper) -> tuple[float, str]:
        """Return how full the pool is, data or metadata, and its mode (`rw`)."""
        status = mapper.status(self.name)
        found = _STATUS.match(status[0].parameters) if status else None
        if found is None:
            return 1.0, status[0].parameters if status else "gone"
        metadata, data = (int(found[n]) / max(int(found[n + 1]), 1) for n in (1, 3))
        return max(metadata, data), found[5]


class LvmThinProvider(MappedProvider):
    """Snapshots in the volumes' own pools.

    A pool that runs full stops the writers of all its volumes, and a snapshot makes it fill
    faster: `check` gives the snapshot up at 95 %, long before.
    """

    kind = "lvm-thin"

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self._made: list[str] = []
        self._pools: list[_Pool] = []
        #: Numbers of the snapshots in the pools.
        self._numbers: list[int] = []

    @classmethod
    def unavailable(cls) -> str:
        """Say why it does not work on this machine, or nothing."""
        return super().unavailable() or ("" if which("lvm") else "lvm2 is not installed")

    @classmethod
    def fit(cls, volume: Volume) -> Fit:
        """Take a thin logical volume in a pool with room."""
        if not dm_uuid(volume.node).startswith("LVM-"):
            return Fit(False, 0, "not a logical volume")
        try:
            with DeviceMapper() as mapper:
                pool = _Pool.of(mapper, dm_name(volume.node))
                if pool is None:
                    return Fit(False, 0, "not a thin volume of a pool")
                full, mode = pool.full(mapper)
            found = lvmtools.volume_of(dm_name(volume.node), fresh=False)
        except OSError as error:
            return Fit(False, 0, f"device-mapper cannot be asked: {error.strerror}")
        except FreezeframeError as error:
            return Fit(False, 0, f"LVM cannot be asked: {error.message}")
        if found is None:
            return Fit(False, 0, "LVM does not list it")
        where = f"thin pool {found.vg_name}/{found.pool_lv}"
        if mode != "rw" or full > _FULL:
            return Fit(False, 0, f"{where} is {full:.0%} full ({mode})")
        return Fit(True, 60, f"snapshot in {where}, {full:.0%} full")

    def record(self) -> Mapping[str, str]:
        """Return the names of everything; what LVM makes is known from `prepare` on."""
        numbered = {f"lv.{n}": name for n, name in enumerate(self._made)}
        numbered |= {f"pool.{n}": pool.name for n, pool in enumerate(self._pools)}
        numbered |= {f"number.{n}": str(each) for n, each in enumerate(self._numbers)}
        return {**super().record(), **numbered}

    # -- one point in time --------------------------------------------------------------

    def _build(self, mapper: DeviceMapper, deadline: Deadline) -> None:
        found = [self._found(origin) for origin in self._origins]
        pools = [_Pool.of(mapper, origin) for origin in self._origins]
        self._pools = [pool for pool in pools if pool is not None]
        if len(self._pools) < len(pools):
            raise ProviderFailed("not all are thin volumes", hint="choose another --provider")
        self._made = [f"{v.vg_name}/{self.name}-thin-{n}" for n, v in enumerate(found)]
        self._numbers = []
        self.journal()
        for name, volume in zip(self._made, found, strict=True):
            deadline.check("making thin volumes")
            pool = f"{volume.vg_name}/{volume.pool_lv}"
            # Neither active nor zeroed; `-ky`: not made active when the machine boots.
            size = ("-V", f"{volume.lv_size}b", "--thinpool", pool)
            lvmtools.create(name, "-an", "-ky", *size)
        for name in self._made:
            made = lvmtools.named(name)
            if made is None or not made.thin_id.isdecimal():
                raise ProviderFailed(f"LVM does not tell the number of {name}", hint="look at lvs")
            self._numbers.append(int(made.thin_id))
        self.journal()
        for index in range(len(self.volumes)):
            mapper.create(self._device(index), UUID + self._device(index))

    @staticmethod
    def _found(origin: str) -> LogicalVolume:
        found = lvmtools.volume_of(origin)
        if found is None:
            raise ProviderFailed(f"LVM does not know {origin}", hint="`lvs` shows what it knows")
        return found

    def _device(self, index: int) -> str:
        return f"{self.name}-{index}"

    def _ready(self, mapper: DeviceMapper) -> None:
        for origin, pool in zip(self._origins, self._pools, strict=True):
            if _Pool.of(mapper, origin) != pool:
                raise ProviderFailed(
                    f"another program changed {origin} while its shadow copy was prepared",
                    hint="leave the volume alone while it is imaged",
                )

    def _unready(self, mapper: DeviceMapper) -> None:
        """Nothing was loaded."""

    def _copy(self, mapper: DeviceMapper) -> None:
        for pool, number in zip(self._pools, self._numbers, strict=True):
            mapper.message(pool.name, f"delete {number}")
            mapper.message(pool.name, f"create_snap {number} {pool.volume}")
        for index, volume in enumerate(self.volumes):
            pool = self._pools[index]
            parameters = f"{pool.number} {self._numbers[index]}"
            table = (Target(0, volume.size // 512, "thin", parameters),)
            mapper.load(self._device(index), table, read_only=True)
            mapper.resume(self._device(index), ours=True)

    def shadows(self) -> tuple[Shadow, ...]:
        """Return the snapshots' devices."""
        found = []
        with DeviceMapper() as mapper:
            for index, volume in enumerate(self.volumes):
                info = mapper.info(self._device(index))
                if info is None:
                    raise ShadowLost(
                        f"the shadow copy of {volume.path} is gone", hint="make it again"
                    )
                found.append(Shadow(volume, info.path))
        return tuple(found)

    def check(self) -> None:
        """Raise `ShadowLost` where a pool is about to run full."""
        super().check()
        with told("looking at the copies"), DeviceMapper() as mapper:
            for index, pool in enumerate(self._pools):
                _check(mapper, pool, self._device(index))

    # -- afterwards ---------------------------------------------------------------------

    @classmethod
    def clean(cls, record: Mapping[str, str]) -> None:
        """Remove the snapshots; the origins are resumed where they are suspended."""
        with told("removing snapshots"), DeviceMapper() as mapper:
            for index in range(int(record.get("count", "0"))):
                origin = mapper.info(record[f"origin.{index}"])
                device = f"{record['name']}-{index}"
                if origin is not None and origin.suspended and mapper.info(device) is not None:
                    mapper.resume(origin.name)
                remove_device(mapper, device)
                pool, number = record.get(f"pool.{index}"), record.get(f"number.{index}")
                if pool and number and lvmtools.named(record[f"lv.{index}"]) is not None:
                    # Killed between `delete` and `create_snap`: LVM is given the number back.
                    _ensure(mapper, pool, number)
        for key, name in record.items():
            if key.startswith("lv."):
                lvmtools.remove(name)

    @classmethod
    def trouble(cls, record: Mapping[str, str]) -> str:
        """Say why a kept snapshot is not whole, or nothing."""
        try:
            with DeviceMapper() as mapper:
                for index in range(int(record.get("count", "0"))):
                    device = f"{record['name']}-{index}"
                    pool = _Pool.of(mapper, device) if mapper.info(device) else None
                    if pool is None:
                        return f"the copy of {record[f'origin.{index}']} is gone"
                    _check(mapper, pool, device)
        except ShadowLost as error:
            return error.message
        except OSError as error:
            return f"it cannot be looked at: {error.strerror}"
        return ""

    @classmethod
    def strays(cls) -> Sequence[Mapping[str, str]]:
        """Return records of snapshots that are there by their names: they outlive a reboot."""
        found: dict[str, list[LogicalVolume]] = {}
        for volume in lvmtools.ours():
            match = _MADE.match(volume.lv_name)
            if match is not None:
                found.setdefault(match["name"], []).append(volume)
        return [
            lvmtools.record_of(volumes, {"name": name, "count": "0"})
            for name, volumes in found.items()
        ]


def _check(mapper: DeviceMapper, pool: _Pool, device: str) -> None:
    full, mode = pool.full(mapper)
    status = mapper.status(device)
    text = status[0].parameters if status else "gone"
    if text in ("Fail", "Error", "gone"):
        raise ShadowLost(
            f"the shadow copy {device} is lost: the kernel says `{text}`",
            hint="look into the kernel log; the pool may need repair (lvconvert --repair)",
        )
    if mode != "rw" or full > _TOO_FULL:
        raise ShadowLost(
            f"the pool {pool.name} is {full:.0%} full ({mode}): the shadow copy is given up",
            hint="extend the pool (lvextend), or use --provider hot",
        )


def _ensure(mapper: DeviceMapper, pool: str, number: str) -> None:
    try:
        mapper.message(pool, f"create_thin {number}")
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
