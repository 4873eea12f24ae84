"""What was written since the last image: the one place that decides whether it is known.

An increment reads only what was marked since its base. It may do so if, and only if, every
write since then is certain to have left a mark: the same boot, the same disk, the same
program attached without a break, nothing it could not follow, and a base whose pending set
has been kept from that image on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.tracking.record import read_base
from freezeframe.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The image that an increment stands on, and what was written since."""

    image_id: str
    #: int64, ascending: every granule of which a byte may differ from the image.
    granules: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Distrust:
    """Why everything has to be read."""

    reasons: tuple[str, ...]


def remember_base(tracker: Tracker, repository_id: str, image_id: str) -> None:
    """Make an image the base of the repository's next increment, once it is durable.

    All that was harvested up to now must be in the image: the last harvest was the one in
    its freeze. Marks that came after it are kept by the kernel. Does nothing where the
    tracker is in doubt; then there is no base, and the next image is read in full. Killed at
    any moment, either the old base stands with the old set, or the new one with an empty set.
    """
    tracker.trust_again()
    if tracker.doubts():
        forget_base(tracker, repository_id)
        return
    tracker.settle(repository_id, image_id)


def forget_base(tracker: Tracker, repository_id: str) -> None:
    """Have the repository's next image read in full."""
    tracker.places.base(repository_id).unlink(missing_ok=True)


def changed_since(tracker: Tracker, repository_id: str) -> Base | Distrust:
    """Return what was written since the repository's last image, or why that is not known.

    Harvests: the marks of now go into every pending set, this repository's included, and
    are cleared in the kernel.
    """
    doubts = tracker.doubts()
    if doubts:
        return Distrust(doubts)
    tracker.harvest()
    # What broke between the first look and the harvest.
    if doubts := tracker.doubts():
        return Distrust(doubts)
    base = read_base(tracker.places, repository_id)
    pending = tracker.pending(repository_id)
    if base is None or pending is None:
        return Distrust((_no_base(tracker),))
    if base.generation != tracker.generation:
        return Distrust(("the last image was made under another tracker",))
    return Base(base.image, pending.granules())


def _no_base(tracker: Tracker) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(tracker.record.started))
    why = f" anew, because {tracker.record.replaced}" if tracker.record.replaced else ""
    return (
        f"this repository has no image of {tracker.disk.name} "
        f"since it began to be tracked{why} ({since})"
    )
