"""A hot image is the disk as it was in the freeze, whatever is written at the worst moments."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from freezeframe.app.backup import disk_record, new_manifest, pieces
from freezeframe.backup import plan as plan_module
from freezeframe.backup.hot import disk as disk_module
from freezeframe.backup.hot import engine as engine_module
from freezeframe.backup.hot import maps as maps_module
from freezeframe.backup.hot import world as world_module
from freezeframe.backup.hot.copying import copy_needed, store_overlays
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.engine import HotEngine
from freezeframe.backup.hot.freezing import Freezing, make_room, rates
from freezeframe.backup.hot.pace import Pace
from freezeframe.backup.hot.settings import HotSettings, IfBusy, NotConverging
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.hot.world import World as Underway
from freezeframe.backup.plan import Source
from freezeframe.block.base import Reader
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import RememberingReader
from freezeframe.core.errors import (
    FreezeBroken,
    FreezeError,
    FreezeframeError,
    WritesLeftOut,
)
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, GRANULE, KIB, MIB
from freezeframe.fs.base import State
from freezeframe.image.manifest import Consistency, Mode, PassRecord, Proof
from freezeframe.image.parent import ParentDisk, parent_disk
from freezeframe.image.reader import ImageReader
from freezeframe.image.writer import ImageWriter
from freezeframe.layout.base import DiskLayout
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.writer import BlobWriter
from freezeframe.shadow import journal
from freezeframe.shadow.coordinator import Coordinator, new_name
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Wishes
from freezeframe.shadow.scope import nothing
from freezeframe.shadow.timeline import Limits
from freezeframe.system.sysfs import Node
from freezeframe.testing.hotworld import (
    BLOCK,
    ToyFreezer,
    ToyTracked,
    World,
    differing,
    image_bytes,
    toy_map,
)
from freezeframe.testing.repositories import memory_repository
from freezeframe.testing.shadow_faults import FaultyProvider, FaultyWriter, toy_volume

#: Five chunks and a bit that is no whole granule.
SIZE = 5 * MIB + 3 * GRANULE + 20 * KIB
NODE = Node("toy", "0:0", Path("/nonexistent"), 0)
PACE = Pace([], back_off=False)


@pytest.fixture(scope="module")
def repository() -> Repository:
    return memory_repository()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "used_map", toy_map)
    # One, so that what a seed does it does again.
    monkeypatch.setattr(world_module, "_READERS", 1)


def hot_disk(world: World, number: int, memory: int, parent: ParentDisk | None) -> HotDisk:
    return HotDisk(
        number=number,
        path=f"/dev/toy{number}",
        node=NODE,
        reader=world,
        memory=RememberingReader(world),
        overlay=GranuleOverlay(world.size, min(memory, 8 * GRANULE)),
        parent=parent,
    )


@dataclass
class ToyFilesystems:
    """Stands for what the program knows of mounts; `answers` are to whether they changed."""

    freezer: ToyFreezer
    answers: list[bool]
    renewed: int = 0

    def unchanged(self) -> bool:
        return self.answers.pop(0) if self.answers else True

    def renew(self) -> None:
        self.renewed += 1

    def states(self, disk: HotDisk, layout: DiskLayout) -> dict[int, RegionState]:
        return {r.start: RegionState(State.FROZEN, Consistency.FROZEN) for r in layout.regions}


@dataclass
class Images:
    """Images of the same worlds, one after the other, as the program makes them."""

    repository: Repository
    worlds: list[World]
    parents: list[ParentDisk] = field(default_factory=list)
    freezer: ToyFreezer = field(init=False)
    reasons: tuple[str, ...] = ()
    memory: int = 4 * MIB
    windows: int = 0
    answers: tuple[bool, ...] = ()
    filesystems: ToyFilesystems | None = None
    notes: tuple[str, ...] = ()
    bad: list[Extents] = field(default_factory=list)
    counted: int = 0
    company: Coordinator | None = None

    def __post_init__(self) -> None:
        self.freezer = ToyFreezer(self.worlds)

    def make(self, choices: HotSettings | None = None) -> ImageReader:
        choices = choices or HotSettings(
            max_pause=5, threads=1, residual_memory=self.memory, back_off=False
        )
        index = self.repository.load_index()
        tracked = ToyTracked(self.worlds, (), self.reasons, self.counted)
        if tracked.left_out():
            # As where a tracker is in doubt: another one, and no base.
            self.parents = []
            tracked.count_anew()
        parents: list[ParentDisk | None] = list(self.parents) or [None] * len(self.worlds)
        disks = [
            hot_disk(world, number, choices.residual_memory, parent)
            for number, (world, parent) in enumerate(zip(self.worlds, parents, strict=True))
        ]
        blobs = BlobReader(self.repository, index)
        with BlobWriter(self.repository, index) as writer:
            image = ImageWriter(self.repository, writer, [d.size for d in disks], parents)
            for world, disk in zip(self.worlds, disks, strict=True):
                if disk.parent is not None:
                    world.harvest()
                    granules = np.flatnonzero(world.pending).astype(np.int64)
                    changed = Extents.from_blocks(granules, GRANULE).clip(0, disk.size)
                    image.take_over(disk.number, disk.take_from_parent(changed))
            tracked.disks = disks
            self.filesystems = ToyFilesystems(self.freezer, list(self.answers))
            engine = HotEngine(
                Underway(
                    disks=disks,
                    sources=[Source(disk.memory, disk.path) for disk in disks],
                    tracked=[tracked],  # type: ignore[list-item]
                    filesystems=self.filesystems,  # type: ignore[arg-type]
                    image=image,
                    progress=Silent(),
                    settings=choices,
                    content=lambda blob_id: blobs.read(BlobKind.DATA, blob_id),
                    flush=writer.flush,
                    now=lambda: dt.datetime.now().astimezone(),
                    company=self.company,
                )
            )
            result = engine.run()
            self.windows, self.notes = result.proof.windows, result.proof.notes
            self.bad = [disk.unreadable for disk in disks]
            writer.flush()
            records = tuple(
                disk_record(plan, disk.unreadable)
                for plan, disk in zip(result.plans, disks, strict=True)
            )
            snapshot, _ = image.commit(
                new_manifest(Mode.ONLINE, dt.datetime.now().astimezone(), records, Proof()),
                [plan.used for plan in result.plans],
                {plan.name: pieces(plan) for plan in result.plans},
            )
        for world in self.worlds:
            world.settle()
        reader = ImageReader(self.repository, self.repository.load_index(), snapshot)
        untold: list[FreezeframeError] = []
        self.parents = [
            parent_disk(reader, record, untold.append) for record in reader.manifest.disks
        ]
        self.counted = tracked.counted
        return reader

    def check(self, image: ImageReader) -> None:
        for number, (frozen, used) in enumerate(
            zip(self.freezer.copies, self.freezer.used, strict=True)
        ):
            data, held = image_bytes(image, number)
            # What is in use, and the table's places besides.
            assert not used - held
            assert differing(data, frozen, used) == Extents.empty()


# -- the engine -----------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    busy=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    memory=st.sampled_from([12 * GRANULE, 40 * GRANULE, 8 * MIB]),
    count=st.integers(1, 2),
)
def test_images_are_the_frozen_disks(
    repository: Repository, seed: int, busy: float, memory: int, count: int
) -> None:
    """Images in a row, each built on the one before, of one disk or two at one moment."""
    worlds = [World(SIZE, seed + n, busy=busy) for n in range(count)]
    images = Images(repository, worlds, memory=memory * count)
    for _ in range(3):
        for world in worlds:
            world._maybe()
        try:
            image = images.make()
        except NotConverging:
            # With so little memory that may be; it is no image then.
            assert memory < 8 * MIB
            assert busy
            continue
        images.check(image)
    assert not any(world.frozen for world in worlds)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), deaf=st.sampled_from([0.001, 0.01, 0.1]))
def test_a_kernel_that_tells_not_everything(repository: Repository, seed: int, deaf: float) -> None:
    """No image, or a right one: what left no mark is read with all the rest."""
    world = World(SIZE, seed, busy=0.05)
    world.deaf = deaf
    images = Images(repository, [world])
    for _ in range(4):
        before = world.untold
        try:
            image = images.make()
        except (WritesLeftOut, NotConverging):
            assert world.untold > before
            # Whatever it was: it is another tracker from now on.
            images.parents, images.counted = [], world.untold
            continue
        images.check(image)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    pause=st.sampled_from([0.0, 0.0005, 0.01]),
    choice=st.sampled_from(list(IfBusy)),
)
def test_too_little_time(repository: Repository, seed: int, pause: float, choice: IfBusy) -> None:
    """Windows that end before all is read: no image, or a right one."""
    images = Images(repository, [World(SIZE, seed, busy=0.1)])
    choices = HotSettings(
        max_pause=pause, if_busy=choice, threads=1, residual_memory=4 * MIB, back_off=False
    )
    for _ in range(2):
        try:
            image = images.make(choices)
        except NotConverging:
            continue
        images.check(image)


class Copying(FaultyProvider):
    """Copies the worlds where it is told to make its copies."""

    worlds: Sequence[World] = ()
    copies: Sequence[NDArray[np.uint8]] = ()

    def commit(self, deadline: Deadline) -> None:
        super().commit(deadline)
        assert all(world.frozen for world in self.worlds)
        assert self.stage.file("w.frozen").exists()
        self.copies = [world.data.copy() for world in self.worlds]


@settings(max_examples=12, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pause=st.sampled_from([0.0005, 0.01, 5]),
    lacking=st.lists(st.booleans(), max_size=3),
)
def test_company_shares_the_freeze_that_counts(
    repository: Repository, tmp_path: Path, seed: int, pause: float, lacking: list[bool]
) -> None:
    """Whatever freezes come before it: for short ones, or because something was lacking."""
    folder = tmp_path / str(seed)
    folder.mkdir(exist_ok=True)
    worlds = [World(SIZE, seed, busy=0.08)]
    name = new_name()
    provider = Copying(name, [toy_volume()], Wishes(store=str(folder)))
    provider.worlds = worlds
    writer = FaultyWriter("w", provider.stage)
    images = Images(repository, worlds, answers=tuple(lacking))
    choices = HotSettings(
        max_pause=pause, if_busy=IfBusy.SLOW_WRITERS, threads=1, residual_memory=8 * MIB,
        back_off=False,
    )  # fmt: skip
    with (
        mock.patch.object(journal, "RUNNING", tmp_path / "running"),
        Coordinator(
            nothing(), [writer], [provider], Limits(writers=60, commit=60), name
        ) as images.company,
    ):
        try:
            images.check(images.make(choices))
        except NotConverging:
            return
        assert np.array_equal(provider.copies[0], images.freezer.copies[0])
        images.company.finish()
        images.company.release()
    done = provider.stage.done
    # What did not count was removed before the next was made, and nobody was asked in vain.
    assert done.count("provider a: commit") == done.count("provider a: release")
    assert done.count("writer w: freeze") <= done.count("writer w: thaw")
    assert provider.stage.left() == []


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), memory=st.sampled_from([12 * GRANULE, 8 * MIB]))
def test_maps_read_inside_the_freeze(repository: Repository, seed: int, memory: int) -> None:
    views = engine_module._VIEWS
    engine_module._VIEWS = 0
    try:
        images = Images(repository, [World(SIZE, seed, busy=0.05)], memory=memory)
        for _ in range(2):
            try:
                images.check(images.make())
            except NotConverging:
                assert memory < 8 * MIB
    finally:
        engine_module._VIEWS = views


def test_a_quiet_disk_takes_one_freeze(repository: Repository) -> None:
    images = Images(repository, [World(SIZE, 1, busy=0.0)])
    for _ in range(3):
        images.check(images.make())
        assert images.windows == 1


def test_what_is_freed_leaves_the_image(repository: Repository) -> None:
    """Chunks taken over from the image before are zeros once nobody uses them."""
    world = World(SIZE, 1, busy=0.0)
    world.bits[-2 * CHUNK // BLOCK :] = True
    world.write(SIZE - 2 * CHUNK, 2 * CHUNK)
    images = Images(repository, [world])
    first, _ = image_bytes(images.make(), 0)
    assert first[-CHUNK:].any()
    world.bits[3 * CHUNK // BLOCK :] = False
    image = images.make()
    images.check(image)
    second, used = image_bytes(image, 0)
    assert not used.touches(4 * CHUNK, SIZE - GRANULE)
    assert not second[4 * CHUNK : 5 * CHUNK].any()


def test_bad_sectors_are_named_in_every_image(repository: Repository) -> None:
    """Also in the one that is built upon an image of which they are missing."""
    world = World(SIZE, 1, busy=0.0)
    place = 2 * MIB + 3 * GRANULE
    world.bits[place // BLOCK : place // BLOCK + 64] = True
    world.write(place, 64 * BLOCK)
    world.bad = Extents.single(place + BLOCK, place + BLOCK + 512)
    images = Images(repository, [world])
    for number in range(3):
        image = images.make()
        assert images.bad == [world.bad]
        data, _ = image_bytes(image, 0)
        assert not data[place + BLOCK : place + BLOCK + 512].any()
        good = world.used() - world.bad.aligned(BLOCK)
        assert not differing(data, images.freezer.copies[0], good)
        # Written to, so that it is read in the freeze, granule by granule.
        if number == 1:
            world.write(place, BLOCK)
    world.bad = Extents.empty()
    image = images.make()
    assert images.bad == [Extents.empty()]
    images.check(image)


def test_in_the_freeze_bad_sectors_are_salvaged() -> None:
    world = World(SIZE, 1, busy=0.0)
    world.bad = Extents.single(3 * GRANULE + 512, 3 * GRANULE + 1024)
    disk = hot_disk(world, 0, MIB, None)
    disk.overlay = GranuleOverlay(SIZE, 4 * GRANULE)
    disk.marked(np.array([1, 3, 4, 7, 9], np.int64))
    assert not disk.read_owed(None)
    assert disk.owed.tolist() == [9]
    assert disk.overlay.granules().tolist() == [1, 3, 4, 7]
    assert disk.unreadable == world.bad
    view = np.frombuffer(disk.overlay.view(3), np.uint8)
    assert not view[512:1024].any()
    whole = world.data[3 * GRANULE : 4 * GRANULE].copy()
    whole[512:1024] = 0
    assert np.array_equal(view, whole)


def test_what_has_no_room_is_still_owed() -> None:
    """New granules before such as are there already: the room is for one of the new."""
    for bad in (Extents.empty(), Extents.single(0, 512)):
        world = World(SIZE, 1, busy=0.0)
        world.bad = bad
        disk = hot_disk(world, 0, 4 * GRANULE, None)
        disk.overlay = GranuleOverlay(SIZE, 3 * GRANULE)
        disk.marked(np.array([7, 8], np.int64))
        assert disk.read_owed(None)
        disk.marked(np.array([0, 1, 7, 8], np.int64))
        assert not disk.read_owed(None)
        # A failed read gives up all of its granules; then the first ones come first.
        assert disk.owed.tolist() == ([8] if bad else [1])
        assert len(disk.overlay) == 3
        assert disk.has_room(4 * GRANULE)
        assert disk.read_owed(None)
        assert disk.overlay.granules().tolist() == [0, 1, 7, 8]


@pytest.mark.parametrize("first", ["small", "large"])
def test_memory_goes_first_to_what_is_owed(first: str) -> None:
    """One disk's spare room is never what another one lacks, whichever comes first."""
    owed = {"small": 20, "large": 500}
    names = list(owed) if first == "small" else list(owed)[::-1]
    disks = []
    for number, name in enumerate(names):
        disk = hot_disk(World(600 * GRANULE, 1, busy=0.0), number, GRANULE, None)
        disk.marked(np.arange(owed[name], dtype=np.int64))
        disks.append(disk)
    assert not make_room(disks, 519 * GRANULE)
    for memory, spare in ((520, 0), (700, 90), (5000, 100)):
        assert make_room(disks, memory * GRANULE)
        assert sum(disk.overlay.capacity for disk in disks) <= memory
        for disk, name in zip(disks, names, strict=True):
            assert disk.overlay.free >= owed[name] + spare
    assert all(disk.read_owed(None) for disk in disks)
    assert make_room(disks, GRANULE)


def test_rates_are_of_passes_that_tell() -> None:
    first = PassRecord(bytes=100 * MIB, seconds=10, marks=7)
    second = PassRecord(bytes=10 * MIB, seconds=2, marks=1600)
    # Made only to have room: it was not counted what was written before it.
    room = PassRecord(bytes=30 * MIB, seconds=1)
    assert rates([]) == "nothing was copied ahead"
    assert rates([first]) == "copied: 10.0 MiB/s"
    assert rates([first, second]) == "written: 10.0 MiB/s, copied: 5.0 MiB/s"
    assert rates([first, second, room]) == "written: 10.0 MiB/s, copied: 30.0 MiB/s"


def test_a_tracker_in_doubt_is_no_image(repository: Repository) -> None:
    images = Images(repository, [World(SIZE, 1)], reasons=("a passthrough write",))
    before = len(repository.snapshots())
    with pytest.raises(FreezeBroken, match="a passthrough write"):
        images.make()
    assert len(repository.snapshots()) == before
    assert not images.worlds[0].frozen


# -- the algebra ------------------------------------------------------------------------------


class Clock:
    """Time that passes by one with each look."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


#: What is written, whether it is harvested, and what is done then: rounds of that.
OPERATIONS = st.lists(
    st.tuples(
        st.tuples(st.just("act"), st.integers(0, 8)),
        st.tuples(st.sampled_from(["harvest", "harvest", "nothing"]), st.just(0)),
        st.one_of(
            st.tuples(st.sampled_from(["nothing", "account", "grow"]), st.just(0)),
            # How many blocks of the estimate are wrong.
            st.tuples(st.just("estimate"), st.sampled_from([0, 5, 300, 2000])),
        ),
        st.one_of(
            st.tuples(st.sampled_from(["nothing", "copy", "copy", "store"]), st.just(0)),
            # How many looks at the clock there are.
            st.tuples(st.just("read"), st.integers(0, 30)),
            st.tuples(st.just("window"), st.integers(0, 30)),
        ),
    ),
    min_size=4,
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), memory=st.integers(10, 90), rounds=OPERATIONS)
def test_whatever_is_done_in_whatever_order(
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    memory: int,
    rounds: list[tuple[tuple[str, int], ...]],
) -> None:
    """If the sets say that an image is whole, then it is the disk."""
    monkeypatch.setattr(disk_module, "_BATCH", 4)
    world = World(SIZE, seed, busy=0.1)
    disk = hot_disk(world, 0, memory * GRANULE, None)
    disk.overlay = GranuleOverlay(SIZE, max(1, memory // 4) * GRANULE)
    index = repository.load_index()
    with BlobWriter(repository, index) as writer:
        image = ImageWriter(repository, writer, [SIZE])
        blobs = BlobReader(repository, index)

        def content(blob_id: bytes) -> bytes:
            return blobs.read(BlobKind.DATA, blob_id)

        def store() -> None:
            writer.flush()
            store_overlays([disk], image, Silent(), content=content, threads=1)

        def window(looks: int | None) -> None:
            world.sync()
            world.frozen = True
            disk.marked(world.harvest())
            clock = Clock()
            monkeypatch.setattr(disk_module, "time", clock)
            whole = disk.read_owed(None, looks)
            frozen, used = world.data.copy(), world.used()
            world.frozen = False
            for _ in range(5):
                world.act()
            disk.account()
            missing = used - disk.covered - disk.overlay.extents()
            if whole and not missing:
                store()
                assert not used - disk.covered
                data = _assembled(image, content)
                assert differing(data, frozen, used) == Extents.empty()
            else:
                disk.require(missing)
                store()

        actions: dict[str, Callable[[int], object]] = {
            "nothing": lambda _: None,
            "act": lambda count: [world.act() for _ in range(count)],
            "harvest": lambda _: disk.marked(world.harvest()),
            "account": lambda _: disk.account(),
            "estimate": lambda wrong: disk.estimate(_lie(world, wrong)),
            "copy": lambda _: copy_needed(
                [disk], image, Silent(), PACE, content=content, threads=1
            ),
            "read": lambda looks: _read(disk, monkeypatch, looks),
            "grow": lambda _: disk.has_room(memory * GRANULE),
            "store": lambda _: (disk.account(), store()),
            "window": window,
        }
        for name, number in chain([("estimate", 0), ("copy", 0)], *rounds):
            actions[name](number)
        # At last there is enough of everything.
        for _ in range(3):
            disk.account()
            disk.overlay.grow(SIZE + GRANULE)
            window(None)


def _read(disk: HotDisk, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    monkeypatch.setattr(disk_module, "time", Clock())
    asked = disk.owed.tolist()
    whole = disk.read_owed(None, looks)
    assert whole == (not len(disk.owed))
    # What was asked for is there, or is still asked for; never both.
    there, left = set(disk.overlay.granules().tolist()), set(disk.owed.tolist())
    assert set(asked) <= there | left
    assert not there & left


def _lie(world: World, wrong: int) -> Extents:
    """Return what is in use, but for so many blocks of which the contrary is said."""
    bits = world.bits.copy()
    for _ in range(wrong):
        place = world.random.randrange(len(bits))
        bits[place] = not bits[place]
    return Extents.from_bits(bits, BLOCK).clip(0, world.size)


def _assembled(image: ImageWriter, content: Callable[[bytes], bytes]) -> np.ndarray:
    """Return the bytes of an image that is not committed."""
    disk = image._disks[0]
    image._handle.put(BlobKind.DATA, bytes(CHUNK))
    image._handle.put(BlobKind.DATA, bytes(SIZE % CHUNK))
    image._writer.flush()
    parts = []
    for number in range(len(disk.ids)):
        fine = disk.fine.get(number)
        ids = [disk.ids[number]] if fine is None else list(fine)
        parts += [content(each.tobytes()) for each in ids]
    return np.frombuffer(b"".join(parts), np.uint8)


def test_a_failure_thaws(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(repository, [World(SIZE, 1)])

    def fail(*arguments: object) -> bool:
        raise FreezeframeError("as told")

    monkeypatch.setattr(Freezing, "read_frozen", fail)
    with pytest.raises(FreezeframeError, match="as told"):
        images.make()
    assert not images.worlds[0].frozen


@pytest.mark.parametrize(("answers", "windows"), [((False, True, True), 1), ((True, False), 2)])
def test_other_filesystems_than_before(
    repository: Repository, answers: tuple[bool, ...], windows: int
) -> None:
    """What was mounted meanwhile was not frozen: found anew, before a freeze and after one."""
    images = Images(repository, [World(SIZE, 1)], answers=answers)
    images.make()
    assert images.filesystems is not None
    assert (images.filesystems.renewed, images.windows) == (1, windows)
    assert any("mounted or unmounted" in note for note in images.notes)
    assert not images.worlds[0].frozen


def test_other_partitions_than_before(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(repository, [World(SIZE, 1)])
    real = plan_module.capture

    def changed(reader: Reader, *arguments: str, keep_gaps: bool) -> DiskLayout:
        layout = real(reader, *arguments, keep_gaps=keep_gaps)
        return replace(layout, regions=[replace(layout.regions[0], length=SIZE - BLOCK)])

    monkeypatch.setattr(plan_module, "capture", changed)
    with pytest.raises(FreezeError, match="partitions of /dev/toy0 were changed"):
        images.make()
