"""The registry: which format a region holds, and what of it is in use.

The one place that knows all kinds. It never fails for what a region holds: whatever is
not understood counts as used, whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from freezeframe.block.base import Reader
from freezeframe.core.errors import FreezeframeError, NotUnderstood, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.fs import btrfs, exfat, ext, f2fs, fat, luks, lvm, md, ntfs, swap, xfs
from freezeframe.fs.base import FilesystemKind, PeerList, Peers, State, UsedMap
from freezeframe.fs.names import guessed, named

log = logging.getLogger("freezeframe.fs")

UNKNOWN = "unknown"


def _inside(reader: Reader, peers: Peers, *, state: State) -> UsedMap:
    """Tell what of a logical volume is in use, as of any other region."""
    return used_map(reader, peers, state=state)


@dataclass(frozen=True, slots=True)
class _EachInside:
    """Tells what of logical volumes is in use, each in a state of its own, by name."""

    states: Mapping[str, State]

    def __call__(self, reader: Reader, peers: Peers, *, state: State) -> UsedMap:
        del state
        return used_map(reader, peers, state=self.states.get(reader.name, State.AT_REST))


#: Kept whole whatever lies inside, which may shine through at the region's start.
CONTAINERS: tuple[FilesystemKind, ...] = (md.KIND, luks.KIND)
#: All that have a used map, in the order they are asked.
KINDS: tuple[FilesystemKind, ...] = (
    *CONTAINERS,
    lvm.LvmKind(identify=_inside),
    ext.KIND,
    xfs.KIND,
    btrfs.KIND,
    f2fs.KIND,
    ntfs.KIND,
    exfat.KIND,
    fat.KIND,
    swap.KIND,
)


def identify(reader: Reader) -> FilesystemKind | None:
    """Return the kind a region holds, the first in order where several recognise it.

    None where none does. Raises `UnreadableRange` where a place to look at is bad.
    """
    return next((kind for kind in KINDS if kind.recognise(reader)), None)


def used_map(
    reader: Reader,
    peers: Peers | None = None,
    *,
    state: State = State.AT_REST,
    volumes: Mapping[str, State] | None = None,
) -> UsedMap:
    """Tell what of a region is in use; never raises for what the region holds.

    `state` is that of the filesystem when the bytes are read, or were read: a map of `FROZEN`
    is exact, one of `LIVE` an estimate. `volumes` gives the states of logical volumes inside,
    by `group/volume`: those not named are at rest. Without it all are in `state`: right only
    where each of them is mounted, for an XFS that crashed and is not would be trusted as well.
    Where it is not understood (unknown, dirty, damaged, newer, unreadable, or two formats
    at once) the whole region is used, `understood` is False and `notes` gives the reason.
    """
    result = _map(reader, peers or PeerList((reader,)), state, volumes)
    return replace(result, state=state)


def _map(
    reader: Reader, peers: Peers, state: State, volumes: Mapping[str, State] | None
) -> UsedMap:
    try:
        found = _recognised(reader)
    except FreezeframeError as error:
        return _whole(reader, UNKNOWN, f"what it holds cannot be told: {error}")
    except Exception as error:
        log.exception("%s: recognising failed", reader.name)
        return _whole(reader, UNKNOWN, f"recognising it failed ({error!r}): please report it")
    names = [name for name, _ in found]
    if not found:
        return _unrecognised(reader)
    name, kind = found[0]
    if len(found) > 1 and kind not in CONTAINERS:
        both = " and ".join(names)
        return _whole(reader, name, f"it has the signatures of {both}: imaged whole")
    if kind is None:
        return _whole(reader, name, f"no used map for {name} yet: imaged whole")
    if isinstance(kind, lvm.LvmKind) and volumes is not None:
        kind = replace(kind, identify=_EachInside(volumes))
    return _understood(reader, kind, peers, state)


def _recognised(reader: Reader) -> list[tuple[str, FilesystemKind | None]]:
    """Return every format with a signature, by name; those without a used map last."""
    found: list[tuple[str, FilesystemKind | None]] = [
        (kind.name, kind) for kind in KINDS if kind.recognise(reader)
    ]
    other = named(reader)
    return [*found, (other, None)] if other else found


def _unrecognised(reader: Reader) -> UsedMap:
    try:
        name = guessed(reader)
    except FreezeframeError:
        name = ""
    if name:
        return _whole(reader, name, f"no used map for {name} yet: imaged whole")
    return _whole(reader, UNKNOWN, "no known signature: imaged whole")


def _understood(reader: Reader, kind: FilesystemKind, peers: Peers, state: State) -> UsedMap:
    """Ask a parser, and take the whole region where it does not come back with an answer."""
    try:
        result = kind.used_map(reader, peers, state=state)
    except NotUnderstood as error:
        return _whole(reader, kind.name, str(error))
    except UnreadableRange as error:
        return _whole(reader, kind.name, f"its structures cannot be read: {error}")
    except FreezeframeError as error:
        return _whole(reader, kind.name, f"its structures make no sense: {error}")
    except Exception as error:
        # A parser's own mistake: must not cost the image, must not go unseen.
        log.exception("%s: the parser for %s failed", reader.name, kind.name)
        return _whole(reader, kind.name, f"its parser failed ({error!r}): please report it")
    if result.used.end > reader.size or (result.used and int(result.used.starts[0]) < 0):
        return _whole(reader, result.kind, "its parser names what lies outside of the region")
    return result


def _whole(reader: Reader, name: str, reason: str) -> UsedMap:
    """Count everything as used."""
    return UsedMap(name, Extents.single(0, reader.size), False, notes=(reason,))
