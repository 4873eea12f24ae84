"""A volume group as its text describes it: physical volumes, logical volumes, segments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import SECTOR
from freezeframe.fs.lvm import text
from freezeframe.fs.lvm.text import Section

_NAME = re.compile(r"[A-Za-z0-9+_.-]{1,127}")
#: Segment types as LVM 2.03 has them. Of one that is not known it is not known either
#: where it keeps what.
_KINDS = frozenset(
    """
    striped linear mirror snapshot error zero free thin thin-pool cache cache-pool writecache
    vdo vdo-pool integrity raid0 raid0_meta raid1 raid4 raid5 raid5_n raid5_ls raid5_la raid5_rs
    raid5_ra raid6 raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_ls_6 raid6_rs_6 raid6_la_6
    raid6_ra_6 raid10 raid10_near
    """.split()  # noqa: SIM905 - a list of words
)
#: Settings of segments whose strings never name a volume: one may be called `striped`.
_NO_REFERENCES = ("type", "tags")
_PLAIN_KINDS = ("striped", "linear")
#: What a volume may say of itself and still be just its segments. Anything else (hidden,
#: locked, moving, merging, …) and all its extents count as used.
_PLAIN_STATUS = frozenset(("READ", "WRITE", "VISIBLE", "FIXED_MINOR"))
_PLAIN_FLAGS = frozenset(("ACTIVATION_SKIP", "NOAUTOACTIVATE"))
#: What says who may use a group, and nothing of where its volumes lie. `NOAUTOACTIVATE` is
#: what `vgcreate --setautoactivation n` sets.
_GROUP_STATUS = frozenset(
    ("RESIZEABLE", "READ", "WRITE", "WRITE_LOCKED", "SHARED", "NOAUTOACTIVATE")
)


@dataclass(frozen=True, slots=True)
class Physical:
    """A physical volume of a group; bytes of its device."""

    name: str
    uuid: str
    #: Where its first extent begins, and how many there are.
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Stripe:
    """Where a stripe of a segment begins: which physical volume, which extent of it."""

    physical: str
    first: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Some extents of a logical volume, one after the other."""

    first: int
    count: int
    kind: str
    stripes: tuple[Stripe, ...]
    #: In bytes; 0 where there is one stripe only.
    stripe_size: int

    @property
    def stripe_extents(self) -> int:
        """How many extents each stripe takes: what is not plain striping may take all."""
        return self.count // len(self.stripes) if self.kind in _PLAIN_KINDS else self.count


@dataclass(frozen=True, slots=True)
class Logical:
    """A logical volume."""

    name: str
    segments: tuple[Segment, ...]
    #: Just its segments, seen by all and used by no other volume: a filesystem may be read
    #: through them, and what that does not use nobody does.
    plain: bool

    @property
    def extents(self) -> int:
        """How many extents it has."""
        return max(s.first + s.count for s in self.segments)


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group."""

    name: str
    uuid: str
    sequence: int
    extent_size: int
    #: By the name they have inside the group: `pv0`.
    physical: Mapping[str, Physical]
    logical: tuple[Logical, ...]
    #: The section itself, to tell whether two texts say the same.
    section: Section

    def member(self, uuid: str) -> Physical | None:
        """Return the physical volume with a UUID (32 characters), if it is one of them."""
        return next((p for p in self.physical.values() if p.uuid == uuid), None)

    def place(self, physical: Physical, first: int, count: int) -> tuple[int, int]:
        """Return start and stop of some extents of a physical volume, in bytes."""
        start = physical.start + first * self.extent_size
        return start, start + count * self.extent_size

    def allocated(self, physical: Physical, volume: Logical) -> Extents:
        """Return all that a logical volume takes of a physical one, in bytes of that."""
        return Extents.of(
            self.place(physical, stripe.first, segment.stripe_extents)
            for segment in volume.segments
            for stripe in segment.stripes
            if stripe.physical == physical.name
        )


def _unclear(reason: str) -> NotUnderstood:
    return NotUnderstood(f"LVM metadata that {reason}")


def parse_group(content: str) -> Group:
    """Read the text of a volume group.

    Raises `NotUnderstood` where it is damaged, exported, partial, of another format, or
    has segments of unknown types.
    """
    top = text.parse(content)
    if top.get("contents") != "Text Format Volume Group" or top.get("version") != 1:
        raise _unclear("is not of format 1")
    found = [(name, value) for name, value in top.items() if isinstance(value, dict)]
    if len(found) != 1 or not _NAME.fullmatch(found[0][0]):
        raise _unclear("describes no group, or several")
    name, section = found[0]
    if section.get("format", "lvm2") != "lvm2":
        raise _unclear("is of an old format")
    status = text.strings(section, "status") | text.strings(section, "flags")
    if not status <= _GROUP_STATUS:
        raise _unclear(f"is of a group in an unusual state: {' '.join(sorted(status))}")
    physical = {p.name: p for p in _physical_volumes(section)}
    if len({p.uuid for p in physical.values()}) != len(physical):
        raise _unclear("has one physical volume twice")
    group = Group(
        name=name,
        uuid=text.string(section, "id"),
        sequence=text.integer(section, "seqno"),
        extent_size=text.integer(section, "extent_size") * SECTOR,
        physical=physical,
        logical=tuple(_logical_volumes(section, physical)),
        section=section,
    )
    _check(group)
    return group


def _physical_volumes(section: Section) -> Iterator[Physical]:
    volumes = text.section(section, "physical_volumes")
    for name in volumes:
        one = text.section(volumes, name)
        if "MISSING" in text.strings(one, "status") | text.strings(one, "flags"):
            raise _unclear("is of a partial group: a physical volume is missing")
        yield Physical(
            name,
            text.string(one, "id").replace("-", ""),
            text.integer(one, "pe_start") * SECTOR,
            text.integer(one, "pe_count"),
        )


def _logical_volumes(section: Section, physical: Mapping[str, Physical]) -> Iterator[Logical]:
    volumes = text.section(section, "logical_volumes")
    inner = {name: text.section(volumes, name) for name in volumes}
    used = _used_by_others(inner)
    for name, one in inner.items():
        segments = tuple(_segments(one, physical))
        if not segments or not _NAME.fullmatch(name):
            raise _unclear(f"has the odd volume {name}")
        plain = (
            name not in used
            and "VISIBLE" in text.strings(one, "status")
            and text.strings(one, "status") <= _PLAIN_STATUS
            and text.strings(one, "flags") <= _PLAIN_FLAGS
            and _tiles(segments)
        )
        yield Logical(name, segments, plain)


def _used_by_others(volumes: Mapping[str, Section]) -> set[str]:
    """Return volumes that any segment names, whatever for: origins, pools, parts of others."""
    found: set[str] = set()
    open_sections = [v for one in volumes.values() for v in one.values() if isinstance(v, dict)]
    while open_sections:
        for key, value in open_sections.pop().items():
            if isinstance(value, dict):
                open_sections.append(value)
            elif key in _NO_REFERENCES:
                continue
            elif isinstance(value, list):
                found.update(item for item in value if isinstance(item, str))
            elif isinstance(value, str):
                found.add(value)
    return found & volumes.keys()


def _segments(volume: Section, physical: Mapping[str, Physical]) -> Iterator[Segment]:
    names = [name for name, value in volume.items() if isinstance(value, dict)]
    if text.integer(volume, "segment_count") != len(names):
        raise _unclear("lacks segments")
    for name in names:
        one = text.section(volume, name)
        # Newer types carry their settings behind a plus sign.
        kind = text.string(one, "type").split("+")[0]
        if kind not in _KINDS:
            raise _unclear(f"has segments of the unknown type {kind}")
        segment = Segment(
            text.integer(one, "start_extent"),
            text.integer(one, "extent_count"),
            kind,
            tuple(_stripes(one, physical)),
            text.integer(one, "stripe_size", default=0) * SECTOR,
        )
        if not segment.count:
            raise _unclear("has an empty segment")
        if kind in _PLAIN_KINDS:
            _check_stripes(segment, one)
        yield segment


def _stripes(segment: Section, physical: Mapping[str, Physical]) -> Iterator[Stripe]:
    """Give every (physical volume, extent) pair of any list, whatever the list is for."""
    for name, value in segment.items():
        if not isinstance(value, list) or name in _NO_REFERENCES:
            continue
        for item, follows in zip(value, [*value[1:], None], strict=True):
            if isinstance(item, str) and item in physical:
                if not isinstance(follows, int) or follows < 0:
                    raise _unclear("names a physical volume and no extent of it")
                yield Stripe(item, follows)


def _check_stripes(segment: Segment, section: Section) -> None:
    count = text.integer(section, "stripe_count")
    listed = len(text.scalars(section, "stripes"))
    if not count or listed != 2 * count or segment.count % count:
        raise _unclear("has stripes that do not add up")
    if segment.stripes and len(segment.stripes) != count:
        raise _unclear("has stripes both on disks and in other volumes")
    if count > 1 and not segment.stripe_size:
        raise _unclear("has stripes of no size")


def _tiles(segments: tuple[Segment, ...]) -> bool:
    """Whether a volume is plain segments on disks, one after the other from its start."""
    reached = 0
    for segment in sorted(segments, key=lambda segment: segment.first):
        if segment.kind not in _PLAIN_KINDS or not segment.stripes or segment.first != reached:
            return False
        reached += segment.count
    return True


def _check(group: Group) -> None:
    """Extents exist, and no two plain segments share one."""
    if not 0 < group.extent_size < 1 << 50:
        raise _unclear("has extents of no size")
    for physical in group.physical.values():
        if group.place(physical, 0, physical.count)[1] >= 1 << 62:
            raise _unclear("has a physical volume larger than any disk")
        taken = [
            (stripe.first, stripe.first + segment.stripe_extents)
            for volume in group.logical
            for segment in volume.segments
            for stripe in segment.stripes
            if stripe.physical == physical.name
        ]
        if any(stop > physical.count for _, stop in taken):
            raise _unclear("has segments beyond the end of their physical volume")
        if Extents.of(taken).total != sum(stop - start for start, stop in taken):
            raise _unclear("gives an extent to two segments")
