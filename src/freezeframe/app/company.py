"""Who shares the moment of an image: its writers, and the providers of its volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from freezeframe.app.providers import Chosen
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.plan import safe_name
from freezeframe.core.clock import Clock
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.progress import Progress
from freezeframe.fs.base import State
from freezeframe.image.manifest import (
    Consistency,
    ProviderRecord,
    ShadowProof,
    StepRecord,
    WriterRecord,
)
from freezeframe.layout.base import DiskLayout, Role
from freezeframe.shadow.coordinator import Coordinator, new_name
from freezeframe.shadow.discover import (
    Cast,
    FoundWriter,
    WriterChoice,
    Writers,
    choose_writers,
    find_writers,
)
from freezeframe.shadow.leftovers import clean_leftovers
from freezeframe.shadow.providers.base import Provider, Wishes
from freezeframe.shadow.results import remember_results
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.stack import Stack
from freezeframe.shadow.timeline import Limits
from freezeframe.shadow.votes import Vote, WriterVote
from freezeframe.system.sysfs import Node

#: The time line.
_STEPS = (
    "prepare writers", "prepare providers", "freeze writers", "freeze filesystems", "hold",
    "commit", "resume", "thaw filesystems", "thaw writers", "finish",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """What a user may decide about writers and providers."""

    writers: WriterChoice = field(default_factory=WriterChoice)
    #: `VOLUME=KIND`.
    providers: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    wishes: Wishes = field(default_factory=Wishes)


class Company:
    """The writers and providers of one image, and what is said of them afterwards."""

    def __init__(
        self, coordinator: Coordinator, cast: Cast, writers: Writers, stack: Stack
    ) -> None:
        self.coordinator = coordinator
        self.cast = cast
        self._kinds = {each.name: each.writer.kind for each in writers.found}
        self._unknown = tuple(f"{kind}: {why}" for kind, why in writers.broken.items())
        #: Writer → numbers of the devices its data stand on.
        self._beneath = {each.name: _beneath(each, stack) for each in writers.found}

    @property
    def empty(self) -> bool:
        """Whether nobody takes part."""
        return not self.coordinator.writers and not self.coordinator.providers

    def remember(self, clock: Clock) -> None:
        """Keep what the writers said for `freezeframe writers`, however it ended."""
        remember_results(self.coordinator.record.writers, clock.now().isoformat(timespec="seconds"))

    def states(
        self, states: Mapping[int, RegionState], layout: DiskLayout, node: Node
    ) -> dict[int, RegionState]:
        """Return the states of a disk's regions with what the writers say of them.

        Application-consistent is a frozen region whose writers all took part, and all say so.
        """
        parts = {part.start - node.start: part for part in node.partitions()}
        said = {
            vote.name: vote.vote is Vote.YES
            and vote.result is not None
            and vote.result.consistency == "application"
            for vote in self.coordinator.record.writers
        }
        found = dict(states)
        for region in layout.regions:
            here = node if region.role is Role.WHOLE else parts.get(region.start)
            state = found.get(region.start)
            if here is None or state is None or state.state is not State.FROZEN:
                continue
            names = [name for name, numbers in self._beneath.items() if here.number in numbers]
            if (
                names
                and state.consistency is Consistency.FROZEN
                and all(said.get(name, False) for name in names)
            ):
                found[region.start] = replace(state, consistency=Consistency.APPLICATION)
        return found

    def proof(self) -> ShadowProof | None:
        """Return what the manifest holds of it; nothing where nobody took part or was left out."""
        record, limits = self.coordinator.record, self.coordinator.limits
        if self.empty and not self.cast.left_out and not self._unknown:
            return None
        folders = self._folders()
        left_out = tuple(
            WriterRecord(
                name=name,
                kind=self._kinds[name],
                vote=Vote.LEFT_OUT.value,
                reason=reason,
            )
            for name, reason in self.cast.left_out.items()
        )
        return ShadowProof(
            writer_limit=limits.writers,
            commit_limit=limits.commit,
            writers=(
                *(_writer_record(vote, folders.get(vote.name, "")) for vote in record.writers),
                *left_out,
            ),
            providers=tuple(
                ProviderRecord(
                    kind=vote.kind,
                    volumes=vote.volumes,
                    prepare_ms=_ms(vote.prepare),
                    hold_ms=_ms(vote.hold),
                    commit_ms=_ms(vote.commit),
                    resume_ms=_ms(vote.resume),
                )
                for vote in record.providers
            ),
            steps=tuple(
                StepRecord(name=name, ms=_ms(record.steps[name]))
                for name in _STEPS
                if name in record.steps
            ),
            unknown=self._unknown,
        )

    def pieces(self) -> dict[str, dict[str, bytes]]:
        """Return the files that the writers want kept, by folder and name."""
        folders = self._folders()
        return {
            folders[vote.name]: {safe_name(name): data for name, data in vote.result.pieces.items()}
            for vote in self.coordinator.record.writers
            if vote.result is not None and vote.result.pieces
        }

    def _folders(self) -> dict[str, str]:
        """Give each writer with pieces a folder, no two the same."""
        taken: dict[str, str] = {}
        for vote in self.coordinator.record.writers:
            if vote.result is None or not vote.result.pieces:
                continue
            plain = safe_name(vote.name).strip(".-") or "writer"
            name, count = plain, 1
            while name in taken.values():
                count += 1
                name = f"{plain}-{count}"
            taken[vote.name] = name
        return taken


def gather(
    nodes: Sequence[Node], chosen: Sequence[Chosen], settings: ShadowSettings, progress: Progress
) -> Company:
    """Find who takes part in an image of these volumes, and make their coordinator.

    `chosen` are the volumes that a provider takes. What dead programs left is cleaned first.
    """
    clean_up(progress)
    stack = Stack()
    name = new_name()
    providers = _providers(name, chosen, settings.wishes)
    atomic = all(each.one_instant for each in providers)
    if not atomic:
        progress.note("the copies are not all of one moment: each filesystem's is of its own")
    scope = Scope.of(nodes, stack, atomic=atomic)
    writers = Writers(())
    if settings.writers.auto or settings.writers.names:
        writers = find_writers()
    cast = choose_writers(writers, scope, settings.writers)
    for name, reason in cast.left_out.items():
        progress.note(f"{name} is left out: {reason}")
    for kind, reason in writers.broken.items():
        progress.note(f"writers of kind {kind} could not be looked for: {reason}")
    coordinator = Coordinator(
        scope,
        writers=[each.writer for each in cast.chosen],
        providers=providers,
        limits=settings.limits,
        name=name,
    )
    return Company(coordinator, cast, writers, stack)


def clean_up(progress: Progress) -> None:
    """Remove what programs left that died; say what it was."""
    try:
        for each in clean_leftovers():
            trouble = f"could not be removed: {each.trouble}" if each.trouble else "removed"
            progress.note(f"left by a program that died: {each.name} ({each.what}): {trouble}")
    except FreezeframeError as error:
        progress.note(f"leftovers of programs that died could not be looked for: {error.message}")


def _providers(name: str, chosen: Sequence[Chosen], wishes: Wishes) -> list[Provider]:
    """Make one provider of each kind, for all of its volumes; none names things as another does."""
    kinds = {each.kind: each.provider for each in chosen if each.provider is not None}
    return [
        kind(f"{name}-{word}", [each.volume for each in chosen if each.kind == word], wishes)
        for word, kind in kinds.items()
    ]


def _beneath(found: FoundWriter, stack: Stack) -> set[str]:
    return {number for path in found.paths for number in stack.below_path(path).nodes}


def _writer_record(vote: WriterVote, folder: str) -> WriterRecord:
    result = vote.result
    return WriterRecord(
        name=vote.name,
        kind=vote.kind,
        about=vote.about,
        vote=vote.vote.value,
        reason=vote.reason,
        consistency=result.consistency if result is not None else "",
        prepare_ms=_ms(vote.prepare),
        freeze_ms=_ms(vote.freeze),
        held_ms=_ms(vote.held),
        thaw_ms=_ms(vote.thaw),
        freezes=vote.freezes,
        total_ms=_ms(vote.total),
        notes=result.notes if result is not None else (),
        facts=dict(result.facts) if result is not None else {},
        folder=folder,
        pieces=tuple(map(safe_name, result.pieces)) if result is not None else (),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
