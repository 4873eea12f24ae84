"""Say what an image proves: how long everything waited, what was read, what was trusted."""

from __future__ import annotations

from collections.abc import Iterator

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GRANULE, human_size, human_time
from freezeframe.image.drill import Drill
from freezeframe.image.manifest import (
    Consistency,
    DiskRecord,
    HotProof,
    Manifest,
    Mode,
    ShadowProof,
    TrackRecord,
    WriterRecord,
)

#: What the weaker claims mean, for people who have not read the documents.
_MEANING = {
    Consistency.CRASH: "crash-consistent, as after a power cut",
    Consistency.MOVING: "written to while it was read: not of one moment",
    Consistency.APPLICATION: "application-consistent",
}


def hot_lines(hot: HotProof) -> list[str]:
    """Return the evidence for a point in time in three lines."""
    again = f", the last of {hot.windows} freezes" if hot.windows > 1 else ""
    slowed = ", writers held down" if hot.slowed_writers else ""
    frozen = ", ".join(
        f"{each.point} {each.freeze_ms:.1f} + {each.held_ms:.1f} + {each.thaw_ms:.1f}"
        for each in hot.freezes
    )
    unfrozen = f"; not frozen: {', '.join(hot.unfrozen)}" if hot.unfrozen else ""
    passes = ", ".join(human_size(each.bytes) for each in hot.passes) or "nothing"
    marks = sum(disk.marks for disk in hot.disks)
    return [
        f"paused for {hot.pause_ms:.1f} ms{again}{slowed}"
        f" (freeze + held + thaw: {frozen or 'nothing mounted'}){unfrozen}",
        f"copied ahead: {passes}; in the freeze: {human_size(hot.residual_bytes)}; {marks} marks",
        *filter(None, ["; ".join(map(_trusted, hot.disks))]),
    ]


def _trusted(disk: TrackRecord) -> str:
    if disk.base:
        return (
            f"{disk.disk}: {human_size(disk.changed)} marked since image {disk.base[:8]},"
            f" {human_size(disk.bytes_read)} read"
        )
    return f"{disk.disk}: read in full, {'; '.join(disk.distrust) or 'no earlier image'}"


def detail_lines(hot: HotProof) -> Iterator[str]:
    """Give what lies behind the three lines: each filesystem, each pass, each disk's marks."""
    for number, each in enumerate(hot.passes, 1):
        yield (
            f"pass {number}: {human_size(each.bytes)} in {human_time(each.seconds)},"
            f" {each.marks} marks before it"
        )
    for frozen in hot.freezes:
        yield (
            f"{frozen.point} ({frozen.kind}): freeze {frozen.freeze_ms:.1f} ms,"
            f" held {frozen.held_ms:.1f} ms, thaw {frozen.thaw_ms:.1f} ms"
        )
    yield (
        f"longest of all freezes: {hot.longest_pause_ms:.1f} ms;"
        f" all together, flushes included: {hot.all_pauses_ms:.1f} ms"
    )
    for point in hot.unfrozen:
        yield f"{point}: cannot be frozen, synced and read until nothing was written meanwhile"
    for disk in hot.disks:
        yield (
            f"{disk.disk}: {disk.marks} granules of {human_size(GRANULE)} marked,"
            f" {human_size(disk.bytes_read)} read"
        )
        yield f"{disk.disk}: {_trust(disk)}"
    if not hot.memory_locked:
        yield "the program's memory could not be locked"
    yield from hot.notes


def _trust(disk: TrackRecord) -> str:
    if disk.base:
        return (
            f"the marks since image {disk.base[:8]} were trusted,"
            f" {human_size(disk.changed)} of them; all else was taken over from it"
        )
    why = "; ".join(disk.distrust) or "no earlier image"
    return f"no earlier marks were trusted, so it was read in full: {why}"


def consistency_lines(manifest: Manifest, disk: DiskRecord) -> Iterator[str]:
    """Give what may be said of each region of an online image that may hold something."""
    if manifest.mode is not Mode.ONLINE:
        return
    for region in disk.regions:
        if region.role not in ("partition", "whole"):
            continue
        claim = region.consistency
        if claim is not Consistency.EXCLUSIVE:
            number = f" {region.number}" if region.number else ""
            content = f" ({region.content})" if region.content else ""
            yield f"{region.role}{number}{content}: {_MEANING.get(claim, claim.value)}"


def shadow_lines(shadow: ShadowProof) -> Iterator[str]:
    """Give who shared the moment, in a line each for writers and providers."""
    if shadow.writers:
        yield f"writers: {'; '.join(map(_writer, shadow.writers))}"
    if shadow.providers:
        told = (
            f"{', '.join(each.volumes)} by {each.kind} (commit {each.commit_ms:.1f} ms)"
            for each in shadow.providers
        )
        yield f"shadow copies: {'; '.join(told)}"


def _writer(writer: WriterRecord) -> str:
    if writer.vote != "yes":
        return f"{writer.name} {writer.vote} ({writer.reason})"
    held = writer.freeze_ms + writer.held_ms + writer.thaw_ms
    return f"{writer.name} {writer.consistency}-consistent, held for {held:.1f} ms"


def shadow_detail_lines(shadow: ShadowProof) -> Iterator[str]:
    """Give what lies behind that: how long each step took, and what each writer said."""
    yield "steps: " + ", ".join(f"{step.name} {step.ms:.1f} ms" for step in shadow.steps)
    for writer in shadow.writers:
        if writer.vote != "yes":
            continue
        yield (
            f"{writer.name}: {writer.about}; prepare {writer.prepare_ms:.1f} ms,"
            f" freeze {writer.freeze_ms:.1f} ms, held {writer.held_ms:.1f} ms,"
            f" thaw {writer.thaw_ms:.1f} ms"
            + (f", the last of {writer.freezes}" if writer.freezes > 1 else "")
        )
        for name, fact in writer.facts.items():
            yield f"{writer.name}: {name}: {fact}"
        for note in writer.notes:
            yield f"{writer.name}: {note}"
        if writer.pieces:
            yield f"{writer.name}: kept in writers/{writer.folder}: {', '.join(writer.pieces)}"
    for each in shadow.providers:
        yield (
            f"{each.kind} ({', '.join(each.volumes)}): prepare {each.prepare_ms:.1f} ms,"
            f" hold {each.hold_ms:.1f} ms, commit {each.commit_ms:.1f} ms,"
            f" resume {each.resume_ms:.1f} ms"
        )
    for unknown in shadow.unknown:
        yield f"not looked for: {unknown}"


def drill_line(drill: Drill | FreezeframeError) -> str:
    """Say how a restore drill ended."""
    if isinstance(drill, FreezeframeError):
        return f"drill: {drill.message}"
    how = f"{drill.firmware}, {drill.accelerator}, on {drill.host}"
    end = f"came up ({drill.sign})" if drill.passed else f"did not come up ({drill.reason})"
    return f"drill {drill.started:%Y-%m-%d %H:%M}: {end} after {human_time(drill.seconds)}; {how}"
