"""Copy-on-write under a mounted device-mapper volume: what is put beneath it, and taken away.

    volume          snapshot-origin ──┐
    <name>-real-N   the volume's own table, as it was
    <name>-N        snapshot of it, read-only: the shadow copy ── store

The volume keeps its device number, so that nobody who has it open notices: only its table is
exchanged, while it is suspended for some milliseconds. Before it writes to a stretch for the
first time, the kernel copies that to the store. A second copy of the same volume stands on
the same `-real`, and who removes the last one gives the volume its own table back.

Source: Documentation/admin-guide/device-mapper/snapshot.rst and drivers/md/dm-snap.c of Linux.
Read-only copies keep their list of exceptions in memory (`N`), so that the store need not be
zeroed before: a persistent one that was not has been seen to serve old data, silently.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.shadow.providers.base import ProviderFailed, ShadowLost
from freezeframe.system import sysfs
from freezeframe.system.devmapper import DeviceMapper, Target, dm_name
from freezeframe.system.sysfs import Node

#: Sectors that are copied at once: 8 KiB. A database's page, and no more than needed of others.
CHUNK = 16
#: Targets of which a second table over the same devices is the same volume. Those that keep
#: something of their own beside it (raid, cache, thin, integrity) are not.
COPIED = frozenset({"linear", "striped", "crypt"})
#: What our devices' identities begin with.
UUID = "FREEZEFRAME-"

_ORIGIN, _SNAPSHOT = "snapshot-origin", "snapshot"
_LOCK = Path("/run/freezeframe/layers.lock")
#: A daemon may look at a device for a moment after it appeared; seconds.
_PATIENCE = 5.0
_USED = re.compile(r"^(\d+)/(\d+)\b")


@contextlib.contextmanager
def layers_changing() -> Iterator[None]:
    """Within, no other freezeframe puts anything beneath a volume or takes it away."""
    _LOCK.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unsuitable(mapper: DeviceMapper, name: str) -> str:
    """Say why no layer can be put beneath a volume, or nothing."""
    for target in mapper.table(name):
        if target.kind not in COPIED and not _is_layered((target,)):
            return f"the kernel's `{target.kind}` cannot be there twice"
        if target.kind == "crypt" and target.parameters.split()[1:2][0].startswith(":"):
            # cryptsetup takes the key away again when the volume is open.
            return "its key was only lent to the kernel's keyring"
    return ""


@dataclass(frozen=True, slots=True)
class Layer:
    """The names of what belongs to one volume of one set."""

    #: The volume, as device-mapper names it.
    origin: str
    #: Of the set.
    name: str
    index: int

    @property
    def shadow(self) -> str:
        """The shadow copy's device."""
        return f"{self.name}-{self.index}"

    @property
    def own_real(self) -> str:
        """What is put beneath the volume, unless something is there already."""
        return f"{self.name}-real-{self.index}"

    def build(self, mapper: DeviceMapper, store: str) -> str:
        """Make what is needed without touching the volume; return what is beneath it.

        `store` is the path of a device. Raises `OSError`, `ProviderFailed`.
        """
        table = mapper.table(self.origin)
        real = _beneath(table)
        if not real:
            reason = unsuitable(mapper, self.origin)
            if reason:
                raise ProviderFailed(
                    f"no copy-on-write can be put beneath {self.origin}: {reason}",
                    hint="image it with --provider hot",
                )
            real = self.own_real
            mapper.create(real, UUID + real)
            mapper.load(real, table)
            mapper.resume(real, ours=True)
        below, above = _node(mapper, real), _length(table)
        parameters = f"{below.number} {_number(store)} N {CHUNK}"
        mapper.create(self.shadow, UUID + self.shadow)
        snapshot = Target(0, above, _SNAPSHOT, parameters)
        mapper.load(self.shadow, (snapshot,), read_only=True)
        return real

    def ready(self, mapper: DeviceMapper, real: str) -> None:
        """Give the volume the table that lies over `real`, for its next resume."""
        table = mapper.table(self.origin)
        if _is_layered(table):
            if _beneath(table) != real:
                raise _changed(self.origin)
            return
        if table != mapper.table(real):
            raise _changed(self.origin)
        number = _node(mapper, real).number
        mapper.load(self.origin, (Target(0, _length(table), _ORIGIN, number),))

    def check(self, mapper: DeviceMapper) -> float:
        """Return how much of the store is used, up to 1; `ShadowLost` if the copy is not whole."""
        status = mapper.status(self.shadow)
        text = status[0].parameters if status else ""
        found = _USED.match(text)
        if found is None:
            reason = "its store is full" if text == "Invalid" else f"the kernel says `{text}`"
            raise ShadowLost(
                f"the shadow copy of {self.origin} is lost: {reason}",
                hint="give it a larger store (--store-size), image when the machine writes less, "
                "or use --provider hot",
            )
        # Any tool may have given the volume another table (`lvchange --refresh` does): since
        # then the copy has changed with it, and looks as good as ever.
        copied = mapper.table(self.shadow)[0].parameters.split()[0]
        table = mapper.table(self.origin)
        if not _is_layered(table) or table[0].parameters.split()[0] != copied:
            raise ShadowLost(
                f"the shadow copy of {self.origin} is lost: another program changed the volume",
                hint="leave the volume alone (lvchange, lvextend, dmsetup) while it is imaged",
            )
        return int(found[1]) / max(int(found[2]), 1)

    def remove(self, mapper: DeviceMapper) -> None:
        """Take everything away, whatever of it is there; the volume is as before.

        Raises `OSError`; `ProviderFailed` where the copy is in use, then all stays.
        """
        real = ""
        origin, shadow = mapper.info(self.origin), mapper.info(self.shadow)
        if origin is not None:
            if origin.suspended and shadow is not None:
                # By who made the copy, and died.
                mapper.clear(self.origin)
                mapper.resume(self.origin)
            real = _beneath(mapper.table(self.origin))
        if shadow is not None:
            remove_device(mapper, self.shadow)
        if real and _is_ours(mapper, real) and self._holds_alone(mapper, real):
            mapper.load(self.origin, mapper.table(real))
            mapper.resume(self.origin)
            remove_device(mapper, real)
        if mapper.info(self.own_real) is not None and real != self.own_real:
            # Made and not put beneath, or no longer there.
            if origin is not None and origin.inactive:
                mapper.clear(self.origin)
            if not _node(mapper, self.own_real).holders():
                remove_device(mapper, self.own_real)

    def _holds_alone(self, mapper: DeviceMapper, real: str) -> bool:
        return [dm_name(node) for node in _node(mapper, real).holders()] == [self.origin]


def _beneath(table: tuple[Target, ...]) -> str:
    """Return the name of what lies beneath a layered volume; nothing for others."""
    if not _is_layered(table):
        return ""
    node = sysfs.node_of_number(table[0].parameters.split()[0])
    return dm_name(node) if node is not None else ""


def _is_layered(table: tuple[Target, ...]) -> bool:
    return len(table) == 1 and table[0].kind == _ORIGIN


def _is_ours(mapper: DeviceMapper, name: str) -> bool:
    info = mapper.info(name)
    return info is not None and info.uuid.startswith(UUID)


def _length(table: tuple[Target, ...]) -> int:
    return sum(target.length for target in table)


def _node(mapper: DeviceMapper, name: str) -> Node:
    info = mapper.info(name)
    node = sysfs.node_of_number(info.number) if info is not None else None
    if node is None:
        raise OSError(errno.ENXIO, f"{name} is gone")
    return node


def _number(device: str) -> str:
    status = Path(device).stat()
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _changed(origin: str) -> ProviderFailed:
    return ProviderFailed(
        f"another program changed {origin} while its shadow copy was prepared",
        hint="leave the volume alone (lvextend, lvchange, dmsetup) while it is imaged",
    )


def remove_device(mapper: DeviceMapper, name: str) -> None:
    """Remove a device if it is there; wait a moment for who looks at it.

    Raises `OSError`; `ProviderFailed` where it is in use.
    """
    patience = time.monotonic() + _PATIENCE
    while True:
        try:
            mapper.remove(name)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EBUSY or time.monotonic() > patience:
                if error.errno != errno.EBUSY:
                    raise
                raise ProviderFailed(
                    f"/dev/mapper/{name} is in use and cannot be removed",
                    hint="unmount it, or end what has it open; `freezeframe shadow cleanup` "
                    "then removes it",
                ) from error
            time.sleep(0.02)
        else:
            return
