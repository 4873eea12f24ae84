"""Finding the kinds there are: the program's own, and those other packages bring.

Another package names its own in its entry points; one that cannot be loaded is told, and
never keeps the others from working.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Registered(Generic[Kind]):
    """Kinds by name, and what could not be loaded."""

    kinds: Mapping[str, Kind]
    #: Name → why not.
    broken: Mapping[str, str] = field(default_factory=dict)


def load(group: str, own: Mapping[str, str], wanted: type[Kind]) -> Registered[type[Kind]]:
    """Return the classes of a group: `own` are `name: module:Class`, the rest entry points.

    A name of `own` cannot be taken by others.
    """
    points = [EntryPoint(name, value, group) for name, value in own.items()]
    points += [point for point in _installed(group) if point.name not in own]
    kinds: dict[str, type[Kind]] = {}
    broken: dict[str, str] = {}
    for point in points:
        try:
            found = _class_of(point)
            if not issubclass(found, wanted):
                raise TypeError(f"{point.value} is no {wanted.__name__}")
        except Exception as error:  # another package's mistake, whatever it is
            broken[point.name] = f"{point.value}: {type(error).__name__}: {error}"
        else:
            kinds[point.name] = found
    return Registered(kinds, broken)


def _class_of(point: EntryPoint) -> type:
    found: object = getattr(importlib.import_module(point.module), point.attr)
    if not isinstance(found, type):
        raise TypeError(f"{point.value} is no class")
    return found


@functools.cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
