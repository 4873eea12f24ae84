"""Copies that the kernel keeps by copying what is about to be overwritten (dm-snapshot)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from freezeframe.core.units import MIB, align_up
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Shadow, ShadowLost, Volume, Wishes
from freezeframe.shadow.providers.layers import Layer, layers_changing
from freezeframe.shadow.providers.mapped import MappedProvider, told
from freezeframe.system.devmapper import DeviceMapper

#: A store of this size never overflows: all of a volume, and the kernel's own sector or two.
_SLACK = MIB
#: Where so much of a store is used, it is made larger if the user did not set its size.
_FULL_ENOUGH = 0.6
#: What a store is by default: this part of the volume, and no less than that.
_PART, _LEAST = 0.1, 64 * MIB


def store_size(volume_size: int, wish: int = 0) -> int:
    """Return the bytes of a store as they were wished, or a tenth of the volume.

    At least 64 MiB, at most what cannot overflow.
    """
    wanted = wish or max(int(volume_size * _PART), _LEAST)
    return align_up(min(wanted, volume_size + _SLACK), MIB)


class CowProvider(MappedProvider):
    """Copies of volumes over stores that a subclass makes."""

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self._layers = [Layer(o, name, n) for n, o in enumerate(self._origins)]
        self._reals: list[str] = []

    # -- for the kinds ------------------------------------------------------------------

    @abstractmethod
    def _make_stores(self, deadline: Deadline) -> list[str]:
        """Make a store for each volume; return their devices."""

    @classmethod
    @abstractmethod
    def _remove_stores(cls, record: Mapping[str, str]) -> None:
        """Remove what `_make_stores` made, as far as it is there."""

    def _grow_store(self, index: int) -> None:
        """Make a store larger, if that is possible."""

    # -- one point in time --------------------------------------------------------------

    def _build(self, mapper: DeviceMapper, deadline: Deadline) -> None:
        stores = self._make_stores(deadline)
        with layers_changing():
            self._reals = [
                layer.build(mapper, store)
                for layer, store in zip(self._layers, stores, strict=True)
            ]

    def _ready(self, mapper: DeviceMapper) -> None:
        for layer, real in zip(self._layers, self._reals, strict=True):
            layer.ready(mapper, real)

    def _copy(self, mapper: DeviceMapper) -> None:
        for layer in self._layers:
            mapper.resume(layer.shadow, ours=True)

    def shadows(self) -> tuple[Shadow, ...]:
        """Return the copies' devices."""
        found = []
        with DeviceMapper() as mapper:
            for volume, layer in zip(self.volumes, self._layers, strict=True):
                info = mapper.info(layer.shadow)
                if info is None:
                    raise ShadowLost(
                        f"the shadow copy of {volume.path} is gone", hint="make it again"
                    )
                found.append(Shadow(volume, info.path))
        return tuple(found)

    def check(self) -> None:
        """Raise `ShadowLost` where a copy is not whole; make stores larger that fill up."""
        super().check()
        with told("looking at the copies"), DeviceMapper() as mapper:
            for index, layer in enumerate(self._layers):
                if layer.check(mapper) > _FULL_ENOUGH and not self.wishes.store_size:
                    self._grow_store(index)

    # -- afterwards ---------------------------------------------------------------------

    @classmethod
    def clean(cls, record: Mapping[str, str]) -> None:
        """Remove copies and stores; the volumes get their own tables back."""
        with told("removing copies"):
            with layers_changing(), DeviceMapper() as mapper:
                for layer in _layers(record):
                    layer.remove(mapper)
            cls._remove_stores(record)

    @classmethod
    def trouble(cls, record: Mapping[str, str]) -> str:
        """Say why a kept copy is not whole, or nothing."""
        try:
            with DeviceMapper() as mapper:
                for layer in _layers(record):
                    if mapper.info(layer.shadow) is None:
                        return f"the copy of {layer.origin} is gone"
                    layer.check(mapper)
        except ShadowLost as error:
            return error.message
        except OSError as error:
            return f"it cannot be looked at: {error.strerror}"
        return ""


def _layers(record: Mapping[str, str]) -> list[Layer]:
    count = int(record.get("count", "0"))
    return [Layer(record[f"origin.{n}"], record["name"], n) for n in range(count)]
