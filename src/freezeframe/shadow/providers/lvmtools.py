"""LVM's own tools, as far as providers need them: what volumes there are, making, removing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from freezeframe.core.errors import FreezeframeError, ToolFailed
from freezeframe.shadow.providers.base import ProviderFailed
from freezeframe.system.devmapper import has_device_mapper
from freezeframe.system.run import run, which

#: On every volume that is made here: so it can be told what is left over after a reboot.
TAG = "freezeframe"
_FIELDS = (
    "vg_name,lv_name,lv_dm_path,lv_size,lv_tags,vg_free,vg_extent_size,pool_lv,thin_id,lv_layout"
)
#: All volumes of a machine are asked after one by one, but LVM is run once; seconds.
_FRESH = 2.0


class LogicalVolume(msgspec.Struct, frozen=True):
    """One row of `lvs`, as text."""

    vg_name: str
    lv_name: str
    lv_dm_path: str = ""
    lv_size: str = "0"
    lv_tags: str = ""
    vg_free: str = "0"
    vg_extent_size: str = "0"
    pool_lv: str = ""
    thin_id: str = ""
    lv_layout: str = ""

    @property
    def name(self) -> str:
        """As LVM's commands take it: `group/volume`."""
        return f"{self.vg_name}/{self.lv_name}"

    @property
    def mapped(self) -> str:
        """As device-mapper calls it."""
        return Path(self.lv_dm_path).name

    @property
    def free(self) -> int:
        """Bytes in the group that belong to no volume."""
        return int(self.vg_free)

    @property
    def extent(self) -> int:
        """Bytes of an extent, the unit of volumes."""
        return int(self.vg_extent_size)


class _Rows(msgspec.Struct):
    lv: list[LogicalVolume]


class _Report(msgspec.Struct):
    report: list[_Rows]


_known: tuple[float, list[LogicalVolume]] | None = None


def volumes(*, fresh: bool = True) -> list[LogicalVolume]:
    """Return the logical volumes; with `fresh` false as they were two seconds ago, at most.

    Raises `ToolMissing`, `ToolFailed`.
    """
    global _known
    now = time.monotonic()
    if not fresh and _known is not None and now - _known[0] < _FRESH:
        return _known[1]
    done = run(
        ("lvm", "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS),
        purpose="to look at LVM volumes",
    )
    found = [row for rows in _decode(done.stdout).report for row in rows.lv]
    _known = now, found
    return found


def _decode(text: bytes) -> _Report:
    try:
        return msgspec.json.decode(text, type=_Report)
    except msgspec.DecodeError as error:
        raise ToolFailed("lvs", 0, f"its report cannot be read: {error}") from error


def volume_of(mapped: str, *, fresh: bool = True) -> LogicalVolume | None:
    """Return the logical volume that device-mapper calls so; None where it is none."""
    for volume in volumes(fresh=fresh):
        if volume.lv_dm_path and volume.mapped == mapped:
            return volume
    return None


def named(name: str) -> LogicalVolume | None:
    """Return the volume `group/volume`; None where there is none."""
    group = name.partition("/")[0]
    return next((v for v in volumes() if v.vg_name == group and v.name == name), None)


def ours() -> list[LogicalVolume]:
    """Return the volumes that were made here; none where LVM is not there, or cannot work."""
    if not has_device_mapper() or which("lvm") is None:
        return []
    try:
        return [volume for volume in volumes(fresh=False) if TAG in volume.lv_tags.split(",")]
    except FreezeframeError:
        return []


def create(name: str, *options: str) -> None:
    """Make a volume `group/volume`, neither zeroed nor searched for old signatures."""
    group, _, volume = name.partition("/")
    lvm("lvcreate", "-y", "-Wn", "--addtag", TAG, "-n", volume, *options, group)


def remove(name: str) -> None:
    """Remove a volume of ours, if it is there. Raises `ProviderFailed`."""
    found = named(name)
    if found is None:
        return
    if TAG not in found.lv_tags.split(","):
        raise ProviderFailed(
            f"{name} does not bear the tag {TAG}: it is not removed",
            hint=f"if it is a leftover, remove it: lvremove {name}",
        )
    lvm("lvremove", "-y", name)


def lvm(command: str, *arguments: str) -> str:
    """Run one of LVM's commands and return what it printed. Raises `ProviderFailed`."""
    global _known
    _known = None
    try:
        return run(("lvm", command, *arguments), purpose="to handle LVM").stdout.decode()
    except ToolFailed as error:
        raise ProviderFailed(
            error.message, hint="`vgs` and `lvs` show what room and which volumes there are"
        ) from error


def record_of(strays: list[LogicalVolume], fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return a record of leftover volumes, to be cleaned by their names."""
    numbered = {f"lv.{n}": volume.name for n, volume in enumerate(strays)}
    return {**fields, **numbered}
