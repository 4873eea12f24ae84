"""Disks in memory go into a repository in memory and come back, whatever is used of them."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.app.backup import disk_record, pieces, without_repeats
from freezeframe.backup.pipeline import store_chunks
from freezeframe.backup.plan import DiskPlan, Source, plan_disks
from freezeframe.block.base import Reader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.window import Window
from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, KIB, MIB
from freezeframe.fs.base import Peers, UsedMap
from freezeframe.image import manifest as manifests
from freezeframe.image.manifest import Host, Manifest, Mode
from freezeframe.image.reader import ImageReader
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository, create_repository
from freezeframe.repo.writer import BlobWriter
from freezeframe.restore.execute import execute_restore
from freezeframe.restore.plan import Target, plan_restore
from freezeframe.restore.verify import verify_against, verify_images
from freezeframe.store.base import Kind
from freezeframe.store.memory import MemoryStore

JUNK = 0xEE


@pytest.fixture(scope="module")
def repository() -> Repository:
    return create_repository(MemoryStore(), "secret")


@dataclass
class Disk:
    """What a disk holds, and what of it is said to be used."""

    content: bytes
    used: Extents

    @property
    def size(self) -> int:
        return len(self.content)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    size = draw(st.one_of(st.integers(1, 5000), st.integers(1, 3 * MIB + 7), st.just(2 * MIB)))
    content = bytearray(np.random.default_rng(draw(st.integers(0, 3))).bytes(size))
    for number in draw(st.sets(st.integers(0, 3), max_size=3)):
        start = number * CHUNK
        content[start : start + CHUNK] = bytes(len(content[start : start + CHUNK]))
    # No partition table, whatever the dice say.
    content[510:512] = bytes(len(content[510:512]))
    edge = st.one_of(st.integers(0, size), st.integers(0, size // CHUNK).map(lambda n: n * CHUNK))
    used = Extents.of(draw(st.lists(st.tuples(edge, edge), max_size=6)))
    return Disk(bytes(content), used)


def take(repository: Repository, contents: Sequence[Disk]) -> tuple[ImageReader, list[DiskPlan]]:
    """Make an image of disks, and open it as another run of the program would."""
    readers = [MemoryBlocks(disk.content, name=f"{n}") for n, disk in enumerate(contents)]

    def read_map(reader: Reader, peers: Peers) -> UsedMap:
        del peers
        assert isinstance(reader, Window)
        disk = contents[int(reader.name.split("#")[0])]
        inside = disk.used.clip(reader.start, reader.start + reader.size)
        return UsedMap("made up", inside.shift(-reader.start), understood=True)

    sources = [Source(reader, f"/dev/{reader.name}") for reader in readers]
    plans = list(plan_disks(sources, read_map=read_map))
    with BlobWriter(repository, repository.load_index()) as writer:
        image = ImageWriter(repository, writer, [plan.layout.size for plan in plans])
        unreadable = store_chunks(plans, image, Silent(), threads=2)
        manifest = Manifest(
            format=1,
            program="test",
            created=dt.datetime.now(dt.UTC),
            mode=Mode.OFFLINE,
            host=Host(name="here"),
            disks=tuple(disk_record(plan, unreadable.of(n)) for n, plan in enumerate(plans)),
        )
        snapshot, _ = image.commit(
            manifest, [plan.used for plan in plans], {plan.name: pieces(plan) for plan in plans}
        )
    return ImageReader(repository, repository.load_index(), snapshot), plans


def in_sectors(used: Extents, size: int) -> Extents:
    """What an image answers for: whole sectors."""
    return used.aligned(512).clip(0, size)


def masked(content: bytes, used: Extents, other: int) -> bytes:
    """The content where it is used, another byte elsewhere."""
    result = bytearray([other]) * len(content)
    for start, stop in used:
        result[start:stop] = content[start:stop]
    return bytes(result)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(disks(), min_size=1, max_size=2), st.booleans())
def test_there_and_back(repository: Repository, contents: list[Disk], zero_unused: bool) -> None:
    image, plans = take(repository, contents)
    for disk, plan, record in zip(contents, plans, image.manifest.disks, strict=True):
        blobs = image.disk_blobs(record)
        assert blobs.used == in_sectors(plan.used, disk.size)
        assert int(blobs.lengths.sum()) == disk.size
        # What was not said to be used is zeros in the image, inside of a used sector, too.
        held = masked(disk.content, plan.used, 0)
        chunks = [held[at : at + CHUNK] for at in range(0, disk.size, CHUNK)]
        assert [blob.tobytes() for blob in blobs.ids] == [
            hashlib.sha256(chunk).digest() for chunk in chunks
        ]
        assert blobs.zero.tolist() == [not any(chunk) for chunk in chunks]
        target = MemoryBlocks(bytes([JUNK]) * disk.size)
        restore = plan_restore(
            "image",
            record,
            blobs,
            Target("target", disk.size, 512, blank=False),
            zero_unused=zero_unused,
        )
        execute_restore(restore, image, blobs, target, Silent(), threads=2)
        rest = 0 if zero_unused else JUNK
        assert target.read_at(0, disk.size) == masked(held, blobs.used, rest)
        assert verify_against(image, record, target, Silent()) == []
        assert verify_against(image, record, MemoryBlocks(held + b"more"), Silent()) == []
    assert verify_images([image], Silent(), threads=2) == []


def partitioned(used: Extents) -> Disk:
    """A disk of 6 MiB with two partitions: [1, 3) and [3, 5.5) MiB."""
    content = bytearray(np.random.default_rng(9).bytes(6 * MIB))
    content[:512] = bytes(512)
    for number, (start, length) in enumerate(((2048, 4096), (6144, 5120))):
        at = 446 + 16 * number
        content[at + 4] = 0x83
        content[at + 8 : at + 16] = start.to_bytes(4, "little") + length.to_bytes(4, "little")
    content[510:512] = b"\x55\xaa"
    content[4 * MIB : 5 * MIB] = bytes(MIB)
    return Disk(bytes(content), used)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 6 * MIB), st.integers(0, 6 * MIB)), max_size=5),
    st.integers(1, 2),
    st.integers(0, 70000),
    st.booleans(),
)
def test_one_partition_and_nothing_else(
    repository: Repository,
    ranges: list[tuple[int, int]],
    number: int,
    longer: int,
    zero_unused: bool,
) -> None:
    disk = partitioned(Extents.of(ranges))
    image, plans = take(repository, [disk])
    record = image.manifest.disks[0]
    region = record.partition(number)
    assert region is not None
    start, stop = region.start, region.start + region.length
    blobs = image.disk_blobs(record)
    size = region.length + longer
    target = MemoryBlocks(bytes([JUNK]) * size)
    restore = plan_restore(
        "image",
        record,
        blobs,
        Target("target", size, 512, blank=False),
        partition=number,
        zero_unused=zero_unused,
    )
    execute_restore(restore, image, blobs, target, Silent(), threads=2)
    held = masked(disk.content, plans[0].used, 0)[start:stop] + bytes(longer)
    used = blobs.used.clip(start, stop).shift(-start)
    expected = bytearray(masked(held, used, 0 if zero_unused else JUNK))
    # Where other programs look for signatures nothing old may be left.
    for first, last in ((0, MIB), (size - MIB, size)):
        ends = masked(held, used, 0)
        expected[first:last] = ends[first:last]
    assert target.read_at(0, size) == bytes(expected)
    assert verify_against(image, record, target, Silent(), start=start, length=region.length) == []


def test_differences_are_named_and_none_is_left_out(repository: Repository) -> None:
    disk = partitioned(Extents.single(0, 6 * MIB))
    image, _ = take(repository, [disk])
    record = image.manifest.disks[0]
    other = MemoryBlocks(disk.content)
    # Across the border of the partitions, in a chunk of zeros, and in the last byte.
    for at, length in ((3 * MIB - 700, 1400), (4 * MIB + 9, 1), (5 * MIB + 512 * KIB - 1, 1)):
        other.write_at(at, bytes(byte ^ 1 for byte in disk.content[at : at + length]))
    found = verify_against(image, record, other, Silent(), threads=2)
    assert [(d.start, d.stop, d.where) for d in found] == [
        (3 * MIB - 1024, 3 * MIB, "partition 1 (made up)"),
        (3 * MIB, 3 * MIB + 1024, "partition 2 (made up)"),
        (4 * MIB, 4 * MIB + 512, "partition 2 (made up)"),
        (5 * MIB + 512 * KIB - 512, 5 * MIB + 512 * KIB, "partition 2 (made up)"),
    ]
    short = verify_against(image, record, MemoryBlocks(disk.content[: 5 * MIB]), Silent())
    assert [(d.start, d.stop, d.where) for d in short] == [
        (5 * MIB, 5 * MIB + 512 * KIB, "partition 2 (made up)"),
        (5 * MIB + 512 * KIB, 6 * MIB, "gap"),
    ]


def test_damage_is_told_by_region(repository: Repository) -> None:
    store = MemoryStore()
    repository = create_repository(store, "secret")
    image, _ = take(repository, [partitioned(Extents.single(0, 6 * MIB))])
    record = image.manifest.disks[0]
    segment = image.index.find(BlobKind.DATA, image.disk_blobs(record).ids[2].tobytes())
    assert segment is not None
    damaged = bytearray(store.get(Kind.DATA, segment.pack.hex()))
    damaged[segment.offset + 100] ^= 1
    store.remove(Kind.DATA, segment.pack.hex())
    store.put(Kind.DATA, segment.pack.hex(), [bytes(damaged)])
    found = verify_images([image], Silent())
    assert [(d.start, d.stop, d.where) for d in found] == [
        (2 * MIB, 3 * MIB, "partition 1 (made up)")
    ]


def test_damaged_trees_are_told_by_region_too() -> None:
    store = MemoryStore()
    repository = create_repository(store, "secret")
    image, _ = take(repository, [partitioned(Extents.single(0, 6 * MIB))])
    trees = image.index.columns(BlobKind.TREE)
    seen = set()
    for row in range(len(trees)):
        where = image.index.pack_name(int(trees.packs[row]))
        whole = store.get(Kind.DATA, where)
        damaged = bytearray(whole)
        damaged[int(trees.offsets[row]) + 20] ^= 1
        store.remove(Kind.DATA, where)
        store.put(Kind.DATA, where, [bytes(damaged)])
        try:
            again = ImageReader(repository, image.index, image.snapshot)
        except RepositoryDamaged:
            seen.add("the image")
        else:
            seen |= {d.where for d in verify_images([again], Silent())}
        store.remove(Kind.DATA, where)
        store.put(Kind.DATA, where, [whole])
    assert seen >= {"the image", "partition 1 (made up)", "table", "its layout's files"}


# -- manifests of a buggy or hostile writer ---------------------------------------------

NASTY = (
    "-1", "0", "1", "511", str(1 << 31), str(1 << 62), str(1 << 63), str(1 << 64), str(10**30),
    "1e400", "0.5", '""', '"x"', "null", "[]", "true",
)  # fmt: skip
FIELDS = (
    "size", "sector", "segment", "start", "length", "number", "span", "used", "table", "role",
    "unreadable", "regions", "disks", "name", "consistency", "mode", "format", "seconds",
    "created", "block_size", "path", "bytes_read", "content", "understood", "volumes",
)  # fmt: skip


@pytest.fixture(scope="module")
def taken(repository: Repository) -> ImageReader:
    return take(repository, [partitioned(Extents.single(0, 6 * MIB))])[0]


def test_nonsense_in_a_manifest_is_an_error_or_harmless(taken: ImageReader) -> None:
    proof = manifests.Proof(bytes_read=1, seconds=1.5)
    manifest = msgspec.structs.replace(taken.manifest, proof=proof)
    text = manifests.encode(manifest)
    assert manifests.decode(text, "it") == manifest
    variants = {
        spoiled(text, field, number, nasty)
        for field, nasty, number in itertools.product(FIELDS, NASTY, range(3))
    }
    assert len(variants) > 400
    for variant in variants:
        with contextlib.suppress(FreezeframeError):
            use_all(taken, manifests.decode(variant, "it"))


def use_all(image: ImageReader, manifest: Manifest) -> None:
    """Make plans of whatever a manifest says: nothing may be read or written beyond an end."""
    for disk in manifest.disks:
        blobs = image.disk_blobs(disk)
        for partition in (None, 1, 2):
            target = Target("target", disk.size, 0, blank=False)
            plan = plan_restore("it", disk, blobs, target, partition=partition)
            assert plan.describe()
            assert plan.write.shift(-plan.start).end <= target.size
            assert not plan.write or int(plan.write.starts[0]) >= plan.start


def spoiled(text: bytes, field: str, number: int, nasty: str) -> bytes:
    """Put a value in the place of the field's n-th one, as text: JSON knows no limits."""
    lines = text.splitlines()
    hits = [n for n, line in enumerate(lines) if line.lstrip().startswith(b'"%s"' % field.encode())]
    if number < len(hits):
        line = lines[hits[number]]
        if not line.endswith((b"[", b"{")):
            end = b"," if line.endswith(b",") else b""
            lines[hits[number]] = line.split(b":")[0] + b": " + nasty.encode() + end
    return b"\n".join(lines)


def test_a_manifest_that_could_not_be_read_is_not_written(taken: ImageReader) -> None:
    twice = msgspec.structs.replace(taken.manifest, disks=taken.manifest.disks * 2)
    with pytest.raises(FreezeframeError, match="no sense"):
        manifests.encode(twice)


def test_a_worker_that_leaves_work_undone_makes_no_image(repository: Repository) -> None:
    disk = Disk(bytes(range(1, 251)) * 20_000, Extents.single(0, 5_000_000))

    class Leaving(Silent):
        def advance(self, amount: int) -> None:
            raise SystemExit(1)

    plans = plan_disks([Source(MemoryBlocks(disk.content), "/dev/x")])
    with BlobWriter(repository, repository.load_index()) as writer:
        image = ImageWriter(repository, writer, [plan.layout.size for plan in plans])
        with pytest.raises(SystemExit):
            store_chunks(plans, image, Leaving(), threads=1)


def test_the_same_source_by_other_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    one = folder / "one"
    one.write_bytes(b"x")
    (folder / "hard").hardlink_to(one)
    (folder / "soft").symlink_to(one)
    (folder / "two").write_bytes(b"x")
    names = [str(folder / name) for name in ("one", "hard", "two", "soft", "none", "none")]
    assert without_repeats(names) == [names[0], names[2], names[4]]


def test_a_disk_that_is_too_long() -> None:
    blocks = MemoryBlocks(1)
    blocks.size = manifests.LARGEST_DISK + 1
    with pytest.raises(FreezeframeError, match="ends at"):
        plan_disks([Source(blocks, "/dev/endless")])
