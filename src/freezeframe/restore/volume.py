"""A logical volume inside an image's disks, back onto a device: plan, then just that.

Its bytes lie scattered over the physical volumes, so it is read piece by piece through them and
not blob by blob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from freezeframe.block.base import Reader, Writer
from freezeframe.core.errors import TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK, human_size
from freezeframe.restore.plan import Target
from freezeframe.restore.shrink import SIGNATURES
from freezeframe.restore.survey import Survey
from freezeframe.system.workers import run_workers

Piece = tuple[int, int]


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """All that the restore of a logical volume writes. Bytes of the volume and of the target."""

    image: str
    #: `group/volume`.
    name: str
    target: Target
    write: Extents
    #: Made zeros besides.
    zero: Extents
    #: Given back to the device first, where it can.
    discard: Extents
    #: What the target was found to hold already; None where nobody looked.
    survey: Survey | None = None

    def describe(self) -> list[str]:
        """Say in sentences what is going to happen, in order."""
        state = "a new file" if self.target.blank else "everything on it now is lost"
        if self.survey is not None:
            state = "what differs on it now is lost"
        lines = [
            f"restore logical volume {self.name} from image {self.image}",
            f"to {self.target.path} ({human_size(self.target.size)}; {state})",
        ]
        if self.discard:
            lines.append("discard the target's old content where the device can")
        if self.survey is None:
            lines.append(f"write {human_size(self.write.total)} of used data")
        else:
            lines.append(
                f"{self.survey.differ} of {self.survey.chunks} chunks in use differ from the"
                f" target's: write {human_size(self.write.total)} of"
                f" {human_size(self.survey.compared)}"
            )
        if self.zero:
            lines.append(f"write zeros over {human_size(self.zero.total)} besides")
        return lines


def plan_volume(
    image: str,
    name: str,
    size: int,
    used: Extents,
    target: Target,
    *,
    zero_unused: bool = False,
    discard: bool = True,
) -> VolumePlan:
    """Decide what the restore of a volume of `size` bytes writes, of which `used` are in use.

    Raises `TargetUnsuitable` where the target is too small.
    """
    if target.size < size:
        raise TargetUnsuitable(
            f"{target.path} has {human_size(target.size)}, volume {name} has {human_size(size)}",
            hint="choose a target of at least that size",
        )
    rest = used.complement(target.size)
    edges = Extents.of(
        [(0, min(SIGNATURES, target.size)), (max(target.size - SIGNATURES, 0), target.size)]
    )
    return VolumePlan(
        image=image,
        name=name,
        target=target,
        write=used,
        zero=Extents.empty() if target.blank else rest if zero_unused else rest & edges,
        discard=Extents.empty()
        if target.blank or zero_unused or not discard
        else Extents.single(0, target.size),
    )


def survey_volume(
    plan: VolumePlan, volume: Reader, target: Reader, progress: Progress, *, threads: int | None
) -> VolumePlan:
    """Compare a target with a volume; return the plan that writes only what differs."""
    progress.start("compare with the target", plan.write.total + plan.zero.total)
    differing: list[Piece] = []
    dirty: list[Piece] = []

    def look(piece: Piece) -> None:
        start, stop = piece
        held = _read(target, start, stop)
        if held is None or held != volume.read_at(start, stop - start):
            differing.append(piece)
        progress.advance(stop - start)

    def look_for_zeros(piece: Piece) -> None:
        held = _read(target, *piece)
        if held is None or np.frombuffer(held, np.bool_).any():
            dirty.append(piece)
        progress.advance(piece[1] - piece[0])

    _each(_pieces(plan.write), look, threads)
    _each(_pieces(plan.zero), look_for_zeros, threads)
    write, zero = Extents.of(differing), Extents.of(dirty)
    found = Survey(
        compared=plan.write.total,
        chunks=len(plan.write.units(CHUNK)),
        write=write,
        differ=len(write.units(CHUNK)),
        zero=zero,
    )
    return VolumePlan(
        plan.image, plan.name, plan.target, write, zero, Extents.empty(), survey=found
    )


def execute_volume(
    plan: VolumePlan, volume: Reader, target: Writer, progress: Progress, *, threads: int | None
) -> int:
    """Write the plan's data to an open target and make it durable; return how many bytes.

    Raises `UnreadableRange` where the image is damaged: the target is then incomplete.
    """
    for start, stop in plan.discard:
        target.discard(start, stop - start)
    progress.start("restore", plan.write.total)

    def write(piece: Piece) -> None:
        start, stop = piece
        data = volume.read_at(start, stop - start)
        if np.frombuffer(data, np.bool_).any():
            target.write_at(start, data)
        elif not plan.target.blank:
            target.zero(start, stop - start)
        progress.advance(stop - start)

    _each(_pieces(plan.write), write, threads)
    for start, stop in plan.zero:
        target.zero(start, stop - start)
    target.flush()
    return plan.write.total


def _each(pieces: Iterator[Piece], work: Callable[[Piece], None], threads: int | None) -> None:
    run_workers(pieces, lambda: work, threads=threads)


def _pieces(extents: Extents) -> Iterator[Piece]:
    """Cut extents at the borders of chunks."""
    for start, stop in extents:
        at = start
        while at < stop:
            end = min((at // CHUNK + 1) * CHUNK, stop)
            yield at, end
            at = end


def _read(target: Reader, start: int, stop: int) -> bytes | None:
    try:
        return target.read_at(start, stop - start)
    except UnreadableRange:
        return None
