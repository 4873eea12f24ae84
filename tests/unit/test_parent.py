"""Images that build on earlier ones: what they hold, and what they take over."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import FreezeframeError, NotUnderstood, RepositoryDamaged
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, GRANULE, KIB, MIB, SEGMENT
from freezeframe.image import chunklist
from freezeframe.image import manifest as manifests
from freezeframe.image.manifest import RegionRecord
from freezeframe.image.parent import ParentDisk, matching, parent_disk
from freezeframe.image.reader import ImageReader
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.check import check
from freezeframe.repo.fingerprint import LENGTH, Fingerprinter
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, decode_tree, dir_node, encode_tree, file_node
from freezeframe.repo.writer import BlobHandle, BlobWriter
from freezeframe.restore.execute import execute_restore
from freezeframe.restore.plan import Target, plan_restore
from freezeframe.restore.verify import verify_against, verify_images
from freezeframe.store.base import Kind
from freezeframe.testing.images import (
    SparseDisk,
    divisions,
    read_image,
    record_of,
    save_image,
)
from freezeframe.testing.repositories import memory_repository

DATA = BlobKind.DATA
_unique = itertools.count(1)


def fresh(length: int = CHUNK) -> bytes:
    """Bytes that no test has seen before; they compress well, so that tests are quick."""
    return next(_unique).to_bytes(8, "big") * (length // 8) + bytes([1] * (length % 8))


def refuse(error: FreezeframeError) -> None:
    raise AssertionError(error.message)


def as_parent(image: ImageReader) -> ParentDisk:
    return parent_disk(image, image.manifest.disks[0], refuse)


def fine_of(image: ImageReader) -> list[int]:
    """The chunks stored by granules, as the manifest says, which must be as it is."""
    stated = chunklist.decode(image.manifest.disks[0].fine).units(1).tolist()
    assert stated == sorted(divisions(image))
    return [int(number) for number in stated]


@pytest.fixture
def repository() -> Repository:
    return memory_repository()


@pytest.fixture(scope="module")
def shared() -> Repository:
    return memory_repository()


# -- a disk that changes from image to image -----------------------------------------


@dataclass
class Taken:
    """An image, what the disk was, and which chunks must be fine in it."""

    image: ImageReader
    content: dict[int, bytes]
    fine: set[int]


CHUNKS = [0, 1, 2, 1022, 1023, 1024, 1025, 2047, 2048, 2049]
WAYS = ["granule", "whole", "zero", "zero granule", "as it was", "byte"]
changes = st.lists(
    st.tuples(st.sampled_from(CHUNKS), st.sampled_from(WAYS), st.integers(0, 15)), max_size=8
)
nights = st.lists(
    st.tuples(changes, st.sampled_from(["last", "last", "older", "none"]), st.booleans()),
    min_size=2,
    max_size=5,
)


def change(disk: SparseDisk, number: int, way: str, where: int, past: Sequence[Taken]) -> None:
    length = disk.length(number)
    chunk = bytearray(disk.chunks.get(number, bytes(length)))
    at = where * GRANULE % length
    part = chunk[at : at + GRANULE]
    match way:
        case "granule":
            chunk[at : at + len(part)] = fresh(len(part))
        case "whole":
            chunk[:] = fresh(length)
        case "zero":
            chunk[:] = bytes(length)
        case "zero granule":
            chunk[at : at + len(part)] = bytes(len(part))
        case "byte":
            chunk[at] ^= 1
        case _:
            chunk[:] = past[where % len(past)].content.get(number, bytes(length))
    disk.chunks[number] = bytes(chunk)


#: Chunks that `shared` holds whole.
WHOLE: set[bytes] = set()


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([0, 100, GRANULE, 70_000]), changes, nights)
def test_every_image_holds_what_the_disk_held(
    shared: Repository,
    tail: int,
    first: list[tuple[int, str, int]],
    later: list[tuple[list[tuple[int, str, int]], str, bool]],
) -> None:
    disk = SparseDisk(2 * SEGMENT + MIB + tail)
    numbers = CHUNKS if tail else CHUNKS[:-1]
    # Of examples before this one, too: a chunk of zeros with one other byte comes again.
    whole = WHOLE
    taken: list[Taken] = []
    for edits, base, take in [(first, "none", False), *later]:
        for number, way, where in edits:
            if number in numbers and (taken or way != "as it was"):
                change(disk, number, way, where, taken)
        under = {"last": taken[-1:], "older": taken[:1], "none": []}[base]
        parent = under[0] if under else None
        now = disk.nonzero()
        same = [n for n in range(-(-disk.size // CHUNK)) if parent and _same(n, now, parent)]
        image, _ = save_image(
            shared,
            disk,
            as_parent(parent.image) if parent else None,
            taken_over=same if take else (),
            threads=3,
        )
        fine = {n for n in now if parent and _is_fine(n, now[n], parent, whole)}
        assert read_image(image) == now
        assert fine_of(image) == sorted(fine)
        taken.append(Taken(image, now, fine))
        whole |= {now[n] for n in now.keys() - fine}
    for one in taken:
        assert read_image(one.image) == one.content
    assert verify_images([one.image for one in taken], Silent(), threads=1) == []


def _same(number: int, now: dict[int, bytes], parent: Taken) -> bool:
    return now.get(number) == parent.content.get(number)


def _is_fine(number: int, chunk: bytes, parent: Taken, whole: set[bytes]) -> bool:
    """The rule: fine from the first change on, and while it holds anything."""
    before = parent.content.get(number)
    if before is None or len(chunk) <= GRANULE:
        return False
    if before == chunk or number in parent.fine:
        return number in parent.fine
    return chunk not in whole


def test_the_repository_of_all_these_is_clean(shared: Repository) -> None:
    save_image(shared, SparseDisk(MIB, {0: fresh()}))
    assert check(shared, read_data=True, progress=Silent()) == []


# -- what it saves ----------------------------------------------------------------------


def changed(chunk: bytes, *granules: int) -> bytes:
    result = bytearray(chunk)
    for number in granules:
        result[number * GRANULE : (number + 1) * GRANULE] = fresh(GRANULE)
    return bytes(result)


def test_a_chunk_is_split_once_and_then_only_what_changes_is_stored(
    repository: Repository,
) -> None:
    rng = np.random.default_rng(1)
    disk = SparseDisk(3 * MIB, {n: rng.bytes(CHUNK) for n in range(3)})
    image, _ = save_image(repository, disk)
    assert fine_of(image) == []
    new = []
    for _ in range(3):
        disk.chunks[1] = changed(disk.chunks[1], 3)
        image, stats = save_image(repository, disk, as_parent(image))
        assert fine_of(image) == [1]
        assert divisions(image) == {1: [GRANULE] * 16}
        assert read_image(image) == disk.nonzero()
        new.append(stats.plain_bytes)
    little = 64 * KIB
    assert CHUNK < new[0] < CHUNK + little
    assert all(GRANULE < size < GRANULE + little for size in new[1:])
    image, stats = save_image(repository, disk, as_parent(image))
    assert stats.plain_bytes < little


def test_a_chunk_rewritten_all_over_stays_whole(repository: Repository) -> None:
    """Nothing of it is there already; but what became what it was before is taken over."""
    disk = SparseDisk(3 * MIB, {number: fresh() for number in range(3)})
    first, _ = save_image(repository, disk)
    disk.chunks |= {0: fresh(), 1: fresh()}
    second, stats = save_image(repository, disk, as_parent(first), rewritten=(0, 2))
    assert fine_of(second) == [1]
    assert CHUNK < stats.plain_bytes < 2 * CHUNK  # the granules of the other are all the same
    assert read_image(second) == disk.nonzero()
    assert second.disk_blobs(second.manifest.disks[0]).ids[-1].tobytes() == (
        first.disk_blobs(first.manifest.disks[0]).ids[-1].tobytes()
    )


def test_what_is_measured_against_stays_whole(repository: Repository) -> None:
    disk = SparseDisk(3 * MIB, {n: fresh() for n in range(3)})
    image, _ = save_image(repository, disk)
    disk.chunks[1] = changed(disk.chunks[1], 3)
    image, stats = save_image(repository, disk, as_parent(image), granular=False)
    assert fine_of(image) == []
    assert read_image(image) == disk.nonzero()
    assert stats.plain_bytes > CHUNK


def test_chunks_may_be_stored_finely_and_again_and_the_last_one_counts(
    repository: Repository,
) -> None:
    disk = SparseDisk(4 * MIB + 70_000, {n: fresh(CHUNK if n < 4 else 70_000) for n in range(5)})
    disk.chunks[3] = bytes(CHUNK)
    image, _ = save_image(repository, disk, fine=(0, 3, 4))
    assert divisions(image) == {0: [GRANULE] * 16, 4: [GRANULE, 70_000 - GRANULE]}
    assert fine_of(image) == [0, 4]
    parent = as_parent(image)
    latest = fresh()
    with BlobWriter(repository, repository.load_index()) as writer:
        again = ImageWriter(repository, writer, [disk.size], [parent])
        store = again.chunk_store()
        store.put_fine(0, 1, memoryview(fresh()))
        store.put_fine(0, 2, memoryview(fresh()))
        again.take_over(0, np.array([0, 1, 4]))
        store.put(0, 2, memoryview(bytes(CHUNK)))
        store.put(0, 3, memoryview(fresh()))
        store.put_fine(0, 3, memoryview(latest))
        snapshot, _ = again.commit(
            msgspec.structs.replace(image.manifest),
            [Extents.single(0, disk.size)],
            {"disk": {}},
        )
    image = ImageReader(repository, repository.load_index(), snapshot)
    assert fine_of(image) == [0, 3, 4]
    expected = {n: disk.chunks[n] for n in (0, 1, 4)} | {3: latest}
    assert read_image(image) == expected


# -- reading fine chunks ----------------------------------------------------------------


def fine_image(repository: Repository) -> tuple[ImageReader, SparseDisk]:
    """A fine chunk with holes, a whole one, a chunk of zeros, a fine one that is short."""
    rng = np.random.default_rng(2)
    disk = SparseDisk(3 * MIB + 100_000, {n: rng.bytes(CHUNK) for n in range(2)})
    disk.chunks[3] = rng.bytes(100_000)
    chunk = bytearray(disk.chunks[0])
    chunk[2 * GRANULE : 5 * GRANULE] = bytes(3 * GRANULE)
    chunk[9 * GRANULE : 10 * GRANULE] = chunk[:GRANULE]  # one blob, twice
    disk.chunks[0] = bytes(chunk)
    image, _ = save_image(repository, disk, fine=(0, 3), threads=2, pack_size=300_000)
    return image, disk


@pytest.mark.parametrize("zero_unused", [False, True])
def test_fine_chunks_are_restored_and_compared(repository: Repository, zero_unused: bool) -> None:
    image, disk = fine_image(repository)
    record = image.manifest.disks[0]
    blobs = image.disk_blobs(record)
    assert blobs.groups(np.flatnonzero(~blobs.zero)) == [
        (0, 2), (5, 16), (16, 17), (18, 20),
    ]  # fmt: skip
    assert blobs.groups(np.arange(len(blobs.ids))) == [(0, 16), (16, 17), (17, 18), (18, 20)]
    assert blobs.groups(np.empty(0, np.int64)) == []
    whole = b"".join(disk.chunks.get(n, bytes(CHUNK)) for n in range(4))
    target = MemoryBlocks(b"\xee" * disk.size)
    plan = plan_restore(
        "it", record, blobs, Target("t", disk.size, 512, blank=False), zero_unused=zero_unused
    )
    execute_restore(plan, image, blobs, target, Silent(), threads=2)
    assert target.read_at(0, disk.size) == whole
    assert verify_against(image, record, target, Silent(), threads=2) == []
    target.write_at(3 * GRANULE, b"x")
    target.write_at(3 * MIB + GRANULE, b"y")
    found = verify_against(image, record, target, Silent(), threads=2)
    assert [damage.start for damage in found] == [3 * GRANULE, 3 * MIB + GRANULE]


def test_one_bad_granule_is_named_alone_and_not_restored(repository: Repository) -> None:
    image, _ = fine_image(repository)
    record = image.manifest.disks[0]
    blobs = image.disk_blobs(record)
    location = image.index.find(DATA, blobs.ids[7].tobytes())
    assert location is not None
    name = location.pack.hex()
    data = bytearray(repository.store.get(Kind.DATA, name))
    data[location.offset + 30] ^= 1
    repository.store.remove(Kind.DATA, name)
    repository.store.put(Kind.DATA, name, [data])
    found = verify_images([image], Silent(), threads=2)
    assert [(bad.start, bad.stop) for bad in found] == [(7 * GRANULE, 8 * GRANULE)]
    with pytest.raises(RepositoryDamaged, match=blobs.ids[7].tobytes().hex()):
        image.read_group(blobs, 5, 16)
    assert len(image.read_group(blobs, 0, 7)) == 7 * GRANULE
    with pytest.raises(RepositoryDamaged, match="no index"):
        image.blobs.read_many(DATA, np.zeros((2, 32), np.uint8))


# -- segments ---------------------------------------------------------------------------


def segment_ids(image: ImageReader) -> list[str]:
    """The ids of the folders of the segments."""
    tree = image.snapshot.tree
    for name in ("disks", "disk"):
        nodes = {node.name: node for node in nodes_of(image, tree)}
        tree = nodes[name].subtree or ""
    return [node.subtree or "" for node in nodes_of(image, tree)]


def nodes_of(image: ImageReader, tree: str) -> list[Node]:
    return decode_tree(image.blobs.read(BlobKind.TREE, bytes.fromhex(tree)))


def test_only_changed_segments_get_new_folders(repository: Repository) -> None:
    disk = SparseDisk(3 * SEGMENT, {n: fresh() for n in (0, 5, 1024, 2500)})
    first, _ = save_image(repository, disk)
    second, _ = save_image(repository, disk, as_parent(first))
    assert segment_ids(second) == segment_ids(first)
    disk.chunks[1024] = changed(disk.chunks[1024], 0)
    third, _ = save_image(repository, disk, as_parent(second))
    same = [a == b for a, b in zip(segment_ids(third), segment_ids(second), strict=True)]
    assert same == [True, False, True]
    without_parent, _ = save_image(repository, SparseDisk(disk.size, dict(disk.chunks)))
    same = [a == b for a, b in zip(segment_ids(without_parent), segment_ids(third), strict=True)]
    assert same == [True, False, True]  # fine only where it is built on another


def test_a_segment_of_which_only_the_use_changed_is_written_anew(repository: Repository) -> None:
    disk = SparseDisk(2 * SEGMENT, {n: fresh() for n in (0, 1024)})
    first, _ = save_image(repository, disk, used=Extents.of([(0, MIB), (SEGMENT, SEGMENT + MIB)]))
    used = Extents.of([(0, MIB), (SEGMENT, SEGMENT + 2 * MIB)])
    second, stats = save_image(repository, disk, as_parent(first), used=used)
    assert segment_ids(second)[0] == segment_ids(first)[0]
    assert segment_ids(second)[1] != segment_ids(first)[1]
    assert second.disk_blobs(second.manifest.disks[0]).used == used
    assert read_image(second) == disk.nonzero()
    assert stats.plain_bytes < 256 * KIB


# -- parents that are not as they should be ---------------------------------------------

Edit = Callable[[BlobReader, dict[str, Node]], dict[str, Node]]


def rewritten(repository: Repository, image: ImageReader, edit: Edit) -> ImageReader:
    """Save an image again as another program might have: its segments' files edited."""
    with BlobWriter(repository, repository.load_index()) as writer:
        handle = writer.handle()

        def tree(nodes: Sequence[Node]) -> bytes:
            return handle.put(BlobKind.TREE, encode_tree(sorted(nodes, key=lambda n: n.name)))

        segments = []
        for number, old in enumerate(segment_ids(image)):
            files = edit(image.blobs, {node.name: node for node in nodes_of(image, old)})
            segments.append(dir_node(f"{number:05d}", tree(list(files.values()))))
        disks = tree([dir_node("disk", tree(segments))])
        root = [node for node in nodes_of(image, image.snapshot.tree) if node.name != "disks"]
        top = tree([*root, dir_node("disks", disks)])
        writer.flush()
        old_one = image.snapshot
        snapshot = repository.save_snapshot(
            Snapshot.new(
                time=old_one.time,
                tree=top.hex(),
                paths=old_one.paths,
                hostname=old_one.hostname,
                tags=old_one.tags or (),
            )
        )
    return ImageReader(repository, repository.load_index(), snapshot)


def without_sums(reader: BlobReader, files: dict[str, Node]) -> dict[str, Node]:
    del reader
    return {name: node for name, node in files.items() if name != "sums"}


def test_an_older_image_without_sums_is_built_upon_by_hashing(repository: Repository) -> None:
    disk = SparseDisk(4 * MIB, {n: fresh() for n in range(3)})
    first, _ = save_image(repository, disk, fine=(2,))
    old = rewritten(repository, first, without_sums)
    parent = as_parent(old)
    assert not parent.sums.any()
    assert parent.usable.all()
    disk.chunks[1] = changed(disk.chunks[1], 7)
    second, stats = save_image(repository, disk, parent)
    assert read_image(second) == disk.nonzero()
    assert fine_of(second) == [1, 2]
    assert stats.plain_bytes < CHUNK + 64 * KIB
    assert as_parent(second).sums[:3].any(axis=1).all()


def test_sums_that_do_not_fit_are_as_if_there_were_none(repository: Repository) -> None:
    disk = SparseDisk(2 * MIB, {n: fresh() for n in range(2)})
    first, _ = save_image(repository, disk)

    def cut(reader: BlobReader, files: dict[str, Node]) -> dict[str, Node]:
        return files | {"sums": file_node("sums", files["used"].content or [], 8)}

    parent = as_parent(rewritten(repository, first, cut))
    assert not parent.sums.any()
    assert parent.segments == [None]
    second, _ = save_image(repository, disk, parent)
    assert read_image(second) == disk.nonzero()


ODD = {
    "halves": [[512 * KIB, 512 * KIB], [CHUNK], [CHUNK]],
    "two at once": [[2 * MIB], [], [CHUNK]],
    "the last granule is too long": [[GRANULE] * 15 + [2 * GRANULE], [CHUNK - GRANULE], [CHUNK]],
    "granules and a rest": [[GRANULE] * 8 + [512 * KIB], [CHUNK], [CHUNK]],
}


@pytest.mark.parametrize("division", ODD.values(), ids=ODD)
def test_chunks_that_are_divided_otherwise_are_stored_anew(
    repository: Repository, division: list[list[int]]
) -> None:
    disk = SparseDisk(3 * MIB, {n: np.random.default_rng(n).bytes(CHUNK) for n in range(3)})
    first, _ = save_image(repository, disk)
    whole = b"".join(disk.chunks[n] for n in range(3))
    lengths = list(itertools.chain.from_iterable(division))
    assert sum(lengths) == len(whole)
    ends = list(itertools.accumulate(lengths))
    with BlobWriter(repository, repository.load_index()) as writer:
        put = writer.handle().put
        parts = zip([0, *ends], ends, strict=False)
        ids = [put(DATA, whole[a:b]).hex() for a, b in parts]
        ids.append(put(DATA, b"").hex())

    def divide(reader: BlobReader, files: dict[str, Node]) -> dict[str, Node]:
        return files | {"data": file_node("data", ids, len(whole))}

    odd = rewritten(repository, first, divide)
    parent = as_parent(odd)
    assert parent.fine == {}
    assert parent.usable.tolist() == [part == [CHUNK] for part in division]
    disk.chunks[2] = changed(disk.chunks[2], 1)
    second, _ = save_image(repository, disk, parent)
    assert read_image(second) == disk.nonzero()
    with pytest.raises(FreezeframeError, match="not in the parent"):
        save_image(repository, disk, parent, taken_over=[0])


def lose(repository: Repository, chunk: bytes) -> None:
    """Take away the pack that a blob lies in."""
    location = repository.load_index().find(DATA, BlobHandle.name(chunk))
    assert location is not None
    repository.store.remove(Kind.DATA, location.pack.hex())


def reopened(repository: Repository, image: ImageReader) -> ImageReader:
    index = repository.load_index()
    index.drop_missing_packs(repository.pack_names())
    return ImageReader(repository, index, image.snapshot)


def test_what_is_whole_of_a_damaged_parent_is_built_upon(repository: Repository) -> None:
    disk = SparseDisk(3 * SEGMENT, {n: fresh() for n in (0, 1, 1024, 1025, 2048)})
    first, _ = save_image(repository, disk, fine=(1, 1025), pack_size=1)
    lose(repository, disk.chunks[1024])
    damaged = reopened(repository, first)
    told: list[FreezeframeError] = []
    parent = parent_disk(damaged, damaged.manifest.disks[0], told.append)
    assert [type(error) for error in told] == [RepositoryDamaged]
    assert parent.usable.reshape(3, -1).all(axis=1).tolist() == [True, False, True]
    assert not parent.usable[1024:2048].any()
    assert parent.used == Extents.of([(0, SEGMENT), (2 * SEGMENT, 3 * SEGMENT)])
    second, stats = save_image(repository, disk, parent)
    assert read_image(second) == disk.nonzero()
    assert fine_of(second) == [1]
    # What was lost, and a chunk that is whole again for want of a parent.
    assert stats.plain_bytes < 2 * CHUNK + 128 * KIB
    problems = check(repository, read_data=True, progress=Silent())
    # The index still promises the pack; but the chunk is there again, for both images.
    assert not [found for found in problems if found.object.startswith("snapshots")]


def test_a_segments_folder_is_not_reused_where_a_blob_of_it_is_gone(
    repository: Repository,
) -> None:
    disk = SparseDisk(2 * SEGMENT, {n: fresh() for n in (0, 1024)})
    first, _ = save_image(repository, disk, pack_size=1)
    for name in ("sums", "used"):
        node = next(n for n in nodes_of(first, segment_ids(first)[1]) if n.name == name)
        lost = first.blobs.read(DATA, bytes.fromhex((node.content or [])[0]))
        if name == "sums":
            lose(repository, lost)
    damaged = reopened(repository, first)
    told: list[FreezeframeError] = []
    parent = parent_disk(damaged, damaged.manifest.disks[0], told.append)
    assert len(told) == 1
    second, _ = save_image(repository, disk, parent)
    assert read_image(second) == disk.nonzero()
    assert as_parent(second).usable.all()
    assert all(as_parent(second).segments)


def test_an_image_without_its_folders_is_no_parent(repository: Repository) -> None:
    disk = SparseDisk(MIB, {0: fresh()})
    first, _ = save_image(repository, disk, pack_size=1)
    location = first.index.find(BlobKind.TREE, bytes.fromhex(segment_ids(first)[0]))
    assert location is not None
    again = reopened(repository, first)
    repository.store.remove(Kind.DATA, location.pack.hex())
    told: list[FreezeframeError] = []
    parent = parent_disk(again, again.manifest.disks[0], told.append)
    assert len(told) == 1
    assert not parent.usable.any()


def test_a_disk_of_another_size_is_not_built_upon(repository: Repository) -> None:
    disk = SparseDisk(2 * MIB, {n: fresh() for n in range(2)})
    first, _ = save_image(repository, disk, fine=(0, 1))
    longer = SparseDisk(2 * MIB + 512, {**disk.chunks, 2: fresh(512)})
    second, _ = save_image(repository, longer, as_parent(first))
    assert read_image(second) == longer.nonzero()
    assert fine_of(second) == []


def copied(repository: Repository, image: ImageReader) -> tuple[Repository, ImageReader]:
    """Copy an image to a repository of another key, as restic's copy does."""
    other = memory_repository()
    with BlobWriter(other, other.load_index()) as writer:
        for kind in BlobKind:
            table = image.index.columns(kind)
            for blob_id in table.ids(np.arange(len(table))):
                writer.handle().put(kind, image.blobs.read(kind, blob_id.tobytes()))
        writer.flush()
        snapshot = other.save_snapshot(msgspec.structs.replace(image.snapshot, id=""))
    return other, ImageReader(other, other.load_index(), snapshot)


def test_a_copy_under_another_key_is_built_upon_by_hashing(repository: Repository) -> None:
    disk = SparseDisk(5 * MIB, {n: fresh() for n in range(4)})
    first, _ = save_image(repository, disk, fine=(2,))
    other, image = copied(repository, first)
    disk.chunks[1] = changed(disk.chunks[1], 7)
    disk.chunks[2] = changed(disk.chunks[2], 0)
    second, stats = save_image(other, disk, as_parent(image))
    assert read_image(second) == disk.nonzero()
    assert fine_of(second) == [1, 2]
    assert stats.plain_bytes < CHUNK + GRANULE + 64 * KIB
    assert not np.array_equal(as_parent(second).sums[0], as_parent(first).sums[0])
    third, stats = save_image(other, disk, as_parent(second))
    assert segment_ids(third) == segment_ids(second)


def test_only_the_same_disk_is_built_upon(repository: Repository) -> None:
    image, _ = save_image(repository, SparseDisk(MIB))
    whole = RegionRecord(role="whole", start=0, length=MIB, content="ext4", content_uuid="1-2")
    theirs = msgspec.structs.replace(record_of(MIB), disk_id="abc", serial="S1", regions=(whole,))
    image.manifest = msgspec.structs.replace(image.manifest, disks=(theirs,))
    assert matching(image, host="here", like=theirs) is theirs
    assert matching(image, host="there", like=theirs) is None
    same = {"serial": "", "model": "other", "sector": 4096, "notes": ("note",), "used": 7}
    for field, value in same.items():
        like = msgspec.structs.replace(theirs, **{field: value})
        assert matching(image, host="here", like=like) is theirs, field
    made_anew = msgspec.structs.replace(whole, content_uuid="3-4")
    other = {
        "serial": "S2", "disk_id": "abd", "size": MIB + 512, "path": "/x", "regions": (made_anew,),
    }  # fmt: skip
    for field, value in other.items():
        like = msgspec.structs.replace(theirs, **{field: value})
        assert matching(image, host="here", like=like) is None, field


# -- sums -------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=3000), st.data())
def test_any_flipped_bit_changes_the_sum(
    shared: Repository, chunk: bytes, data: st.DataObject
) -> None:
    sums = Fingerprinter(shared.key)
    total = sums.sum(chunk)
    assert len(total) == LENGTH
    assert sums.sum(memoryview(bytearray(chunk))) == total
    assert Fingerprinter(shared.key).sum(chunk) == total
    other = bytearray(chunk)
    bit = data.draw(st.integers(0, 8 * len(chunk) - 1))
    other[bit // 8] ^= 1 << bit % 8
    assert sums.sum(other) != total
    assert sums.sum(chunk + b"\0") != total
    assert sums.sum(chunk[:-1]) != total


def test_sums_are_of_one_repository(shared: Repository, repository: Repository) -> None:
    one, two = Fingerprinter(shared.key), Fingerprinter(repository.key)
    for chunk in (b"", b"x", bytes(CHUNK), fresh()):
        assert one.sum(chunk) != two.sum(chunk)


# -- the list in the manifest -----------------------------------------------------------


@given(st.sets(st.integers(0, 200)))
def test_a_list_of_chunks_is_read_as_it_was_written(numbers: set[int]) -> None:
    text = chunklist.encode(np.array(sorted(numbers), np.int64))
    assert chunklist.decode(text).units(1).tolist() == sorted(numbers)


def test_a_list_of_chunks_is_short() -> None:
    assert chunklist.encode(np.array([3, 7, 8, 9, 11], np.int64)) == "3,7-9,11"
    assert chunklist.encode(np.array([], np.int64)) == ""


@pytest.mark.parametrize(
    "text",
    ["x", "1,", ",", "3-", "-3", "5-4", "3,3", "3,4", "4,3", "1-5,2", "9" * 16, "1 ", "\u0663"],
)
def test_other_lists_of_chunks_are_refused(text: str) -> None:
    with pytest.raises(NotUnderstood):
        chunklist.decode(text)
    record = msgspec.structs.replace(record_of(MIB), fine=text)
    with pytest.raises(RepositoryDamaged, match="list of chunks"):
        decoded(record)


def test_fine_chunks_beyond_the_disk_are_refused() -> None:
    assert decoded(msgspec.structs.replace(record_of(MIB + 1), fine="0-1")).fine == "0-1"
    with pytest.raises(RepositoryDamaged, match="outside"):
        decoded(msgspec.structs.replace(record_of(MIB + 1), fine="0-2"))


def decoded(record: manifests.DiskRecord) -> manifests.DiskRecord:
    """Read a manifest with that disk, as another program may have written it."""
    manifest = manifests.Manifest(
        format=1,
        program="test",
        created=dt.datetime.now(dt.UTC),
        mode=manifests.Mode.OFFLINE,
        host=manifests.Host(name="here"),
        disks=(record,),
    )
    return manifests.decode(msgspec.json.encode(manifest), "it").disks[0]
