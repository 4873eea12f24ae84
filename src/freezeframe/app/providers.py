"""Which provider takes which volume: the best that suits, with the reason; or the one asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freezeframe.app.choose import machine_lacks, untrackable
from freezeframe.core.errors import FreezeframeError, UsageError
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.providers import provider_kinds
from freezeframe.shadow.providers.base import Fit, Provider, Volume
from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node
from freezeframe.tracking.disk import describe

#: The engine of online images: no provider of `shadow.providers`, and none of shadow devices.
HOT = "hot"


@dataclass(frozen=True, slots=True)
class Chosen:
    """How one volume is taken."""

    volume: Volume
    #: `hot`, or a provider's kind; nothing where none suits.
    kind: str
    #: Why.
    reason: str
    #: None for the hot engine.
    provider: type[Provider] | None = None
    #: What each of them said.
    fits: Mapping[str, Fit] | None = None


def volume_of(node: Node, stack: Stack | None = None) -> Volume:
    """Look at a device: what is mounted directly on it."""
    stack = stack or Stack()
    above = tuple(
        each
        for each in find_filesystems([node], stack).filesystems
        if node.number in {own.number for own in stack.devices_of(each.device)}
    )
    return Volume(node, node.size, above)


def choose_provider(
    node: Node,
    wanted: str = "",
    *,
    hot: bool = True,
    stack: Stack | None = None,
    lacks: Sequence[str] | None = None,
) -> Chosen:
    """Decide who takes a volume: the one `wanted`, or the one that fits best.

    Without `hot`, one that gives a shadow device. `lacks` is what `machine_lacks` says, where
    it was asked already. Raises `UsageError` where the one wanted
    does not exist or does not suit; where none suits, `kind` is empty.
    """
    volume = volume_of(node, stack)
    registered = provider_kinds()
    fits: dict[str, Fit] = {}
    if hot:
        fits[HOT] = hot_fit(node, machine_lacks() if lacks is None else lacks)
    for kind, provider in registered.kinds.items():
        if hot and not provider.gives_devices:
            # An image is made of devices.
            continue
        try:
            fits[kind] = provider.fit(volume)
        except FreezeframeError as error:
            fits[kind] = Fit(False, 0, error.message)
    if wanted:
        return _wanted(volume, wanted, fits, registered.kinds, registered.broken)
    suiting = [(fit.rank, kind) for kind, fit in fits.items() if fit.suits]
    if not suiting:
        reasons = "; ".join(f"{kind}: {fit.reason}" for kind, fit in fits.items())
        return Chosen(volume, "", reasons or "no provider is known", None, fits)
    # The first of equals, hot before all others.
    best = max(suiting, key=lambda each: each[0])[1]
    return Chosen(volume, best, fits[best].reason, registered.kinds.get(best), fits)


def _wanted(
    volume: Volume,
    wanted: str,
    fits: Mapping[str, Fit],
    kinds: Mapping[str, type[Provider]],
    broken: Mapping[str, str],
) -> Chosen:
    if wanted not in fits:
        why = f" ({broken[wanted]})" if wanted in broken else ""
        raise UsageError(
            f"there is no provider {wanted!r} for this{why}",
            hint=f"there are: {', '.join(fits) or 'none'}",
        )
    if not fits[wanted].suits:
        raise UsageError(
            f"{wanted} cannot take {volume.path}: {fits[wanted].reason}",
            hint="freezeframe disks tells which provider suits",
        )
    return Chosen(volume, wanted, fits[wanted].reason, kinds.get(wanted), fits)


def hot_fit(node: Node, lacks: Sequence[str]) -> Fit:
    """Say whether the hot engine can take a volume, and how well."""
    if lacks:
        return Fit(False, 0, f"this machine lacks {', '.join(lacks)}")
    if why := untrackable(node):
        return Fit(False, 0, why)
    if describe(node).bio_based:
        return Fit(True, 70, "no copy-on-write: nothing to fill up; read in full each time")
    return Fit(True, 90, "no copy-on-write; the next image reads only what changed")


def overrides(words: Mapping[str, str], nodes: Mapping[str, Node]) -> dict[str, str]:
    """Return the provider wanted for each device, by its number, from `VOLUME=KIND`."""
    numbers = {node.number for node in nodes.values()}
    found: dict[str, str] = {}
    for path, kind in words.items():
        node = sysfs.node_of(path)
        if node is None or node.number not in numbers:
            raise UsageError(
                f"--provider names {path}, which is not among what is imaged",
                hint="name the volume itself as a source, too: whole disks are taken by hot",
            )
        found[node.number] = kind
    return found
