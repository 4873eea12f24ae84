"""Used maps of ext2, ext3 and ext4, filled by the kernel, judged by e2fsprogs and partclone."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import MIB
from freezeframe.fs.base import PeerList, State, UsedMap
from freezeframe.fs.ext import KIND
from freezeframe.system.run import run
from freezeframe.testing.fsproof import (
    PlainFile,
    loop_mounted,
    make_tree,
    partclone_used,
    scatter_used,
    tree_checksums,
)

pytestmark = pytest.mark.root

#: mke2fs options, size in MiB, and what blkid calls it.
VARIANTS = {
    "ext4": ("-t ext4", 64, "ext4"),
    "ext4-1k": ("-t ext4 -b 1024", 64, "ext4"),
    "ext4-2k": ("-t ext4 -b 2048 -I 128", 64, "ext4"),
    "ext4-many-groups": ("-t ext4 -b 4096 -g 256", 61, "ext4"),
    "ext4-32-bit": ("-t ext4 -b 1024 -O ^64bit", 64, "ext4"),
    "ext4-gdt-csum": ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg", 64, "ext4"),
    "ext4-gdt-csum-32": ("-t ext4 -b 1024 -O ^64bit,^metadata_csum,uninit_bg", 64, "ext4"),
    "ext4-no-checksums": ("-t ext4 -O ^metadata_csum,^uninit_bg", 64, "ext4"),
    "ext4-no-flex": ("-t ext4 -b 1024 -O ^flex_bg", 64, "ext4"),
    "ext4-no-journal": ("-t ext4 -b 1024 -O ^has_journal", 64, "ext4"),
    "ext4-meta-bg": ("-t ext4 -b 1024 -O meta_bg,^resize_inode -g 512", 120, "ext4"),
    "ext4-meta-bg-32": ("-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit -g 1024", 120, "ext4"),
    "ext4-bigalloc": ("-t ext4 -O bigalloc -C 65536", 100, "ext4"),
    "ext4-bigalloc-1k": ("-t ext4 -b 1024 -O bigalloc -C 16384", 130, "ext4"),
    "ext4-sparse-super2": ("-t ext4 -b 1024 -O sparse_super2,^resize_inode", 64, "ext4"),
    "ext4-one-backup": (
        "-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=1",
        64,
        "ext4",
    ),
    "ext4-dense-super": ("-t ext4 -b 1024 -O ^sparse_super,^resize_inode", 64, "ext4"),
    "ext4-csum-seed": (
        "-t ext4 -O metadata_csum_seed,orphan_file,inline_data,ea_inode",
        64,
        "ext4",
    ),
    "ext4-packed": ("-t ext4 -b 1024 -E packed_meta_blocks=1 -G 64", 64, "ext4"),
    "ext4-fast-commit": ("-t ext4 -O fast_commit,large_dir", 64, "ext4"),
    "ext3": ("-t ext3", 64, "ext3"),
    "ext3-1k": ("-t ext3 -b 1024 -J size=4", 40, "ext3"),
    "ext2": ("-t ext2", 64, "ext2"),
    "ext2-1k": ("-t ext2 -b 1024", 40, "ext2"),
    "ext2-first-revision": ("-t ext2 -r 0 -b 1024", 40, "ext2"),
}
#: Those partclone is asked about too: it takes two seconds each time, and knows no clusters.
PARTCLONE = ("ext4", "ext4-meta-bg", "ext4-gdt-csum", "ext3-1k", "ext2")


def _make(image: Path, options: str, mib: int) -> None:
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    run(("mke2fs", "-q", "-F", "-L", "a label", *options.split(), str(image)))


def _used(image: Path, *, state: State = State.AT_REST) -> UsedMap:
    with PlainFile(image) as reader:
        return KIND.used_map(reader, PeerList((reader,)), state=state)


def _counted(image: Path) -> int:
    """Bytes in use as dumpe2fs counts them."""
    output = run(("dumpe2fs", "-h", str(image))).stdout.decode()
    pairs = (line.split(":", 1) for line in output.splitlines() if ":" in line)
    found = {name: text.strip() for name, text in pairs}
    blocks = int(found["Block count"]) - int(found["Free blocks"])
    return blocks * int(found["Block size"])


def _prove(image: Path, result: UsedMap, folder: Path) -> None:
    """Keep what is in use, spoil the rest: the checker and the kernel see no difference."""
    with loop_mounted(image, folder / "before", read_only=True) as mounted:
        before = tree_checksums(mounted)
    assert len(before) > 20
    spoiled = folder / "spoiled.img"
    scatter_used(image, result.used, spoiled)
    run(("e2fsck", "-fn", str(spoiled)))
    with loop_mounted(spoiled, folder / "after", read_only=True) as mounted:
        assert tree_checksums(mounted) == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_never_a_used_block_left_out(variant: str, tmp_path: Path) -> None:
    options, mib, kind = VARIANTS[variant]
    image = tmp_path / "image"
    _make(image, options, mib)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted, names=False)
    result = _used(image)
    assert (result.kind, result.label, result.understood) == (kind, "a label", True)
    uuid = run(("blkid", "-o", "value", "-s", "UUID", str(image))).stdout.decode().strip()
    assert result.uuid == uuid
    counted = _counted(image)
    assert counted <= result.used.total <= counted * 1.01
    if variant in PARTCLONE:
        assert not partclone_used("extfs", image) - result.used
    _prove(image, result, tmp_path)


def test_after_resizing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext4 -b 1024 -g 2048 -O ^64bit -E resize=400000", 60)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
    for command in (
        ("resize2fs", "-f", str(image), "100M"),
        ("resize2fs", "-f", str(image), "37M"),
        ("resize2fs", "-f", "-b", str(image)),
        ("tune2fs", "-O", "metadata_csum_seed", str(image)),
        ("tune2fs", "-U", "random", str(image)),
        ("resize2fs", "-f", str(image), "300M"),
    ):
        run(("e2fsck", "-fy", str(image)), ok=(0, 1))
        run(command)
        result = _used(image)
        tail = image.stat().st_size - result.span
        counted = _counted(image)
        assert counted <= result.used.total - tail <= counted * 1.01
    _prove(image, result, tmp_path)


def test_meta_groups_after_ordinary_ones(tmp_path: Path) -> None:
    """As growing while mounted leaves it: the first descriptors together, the others apart."""
    image = tmp_path / "image"
    _make(image, "-t ext4 -b 1024 -g 512 -O meta_bg,^resize_inode", 120)
    run(("debugfs", "-w", "-R", "ssv first_meta_bg 1", str(image)))
    run(("e2fsck", "-fy", str(image)), ok=(1,))
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
    result = _used(image)
    counted = _counted(image)
    assert counted <= result.used.total <= counted * 1.01
    _prove(image, result, tmp_path)


@pytest.mark.parametrize("options", ["-t ext4", "-t ext4 -O ^has_journal", "-t ext2", "-t ext3"])
def test_frozen(options: str, tmp_path: Path) -> None:
    image, still, running = tmp_path / "image", tmp_path / "still", tmp_path / "running"
    _make(image, options, 64)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
        orphan = (mounted / "open and deleted").open("wb")
        try:
            orphan.write(b"still here" * 50_000)
            orphan.flush()
            (mounted / "open and deleted").unlink()
            run(("sync", "-f", str(mounted)))
            run(("cp", "--sparse=always", str(image), str(running)))
            before = tree_checksums(mounted)
            run(("fsfreeze", "-f", str(mounted)))
            try:
                run(("cp", "--sparse=always", str(image), str(still)))
            finally:
                run(("fsfreeze", "-u", str(mounted)))
        finally:
            orphan.close()
    journal = "has_journal" not in options and "ext2" not in options
    # Mounted for writing and not frozen: nothing to rely on.
    for state in (State.AT_REST, State.FROZEN):
        with pytest.raises(NotUnderstood, match="recovery" if journal else "cleanly"):
            _used(running, state=state)
    assert _used(running, state=State.LIVE).understood
    if not journal:
        # It may have crashed before it was mounted: nothing tells.
        with pytest.raises(NotUnderstood, match="cleanly"):
            _used(still, state=State.FROZEN)
        return
    result = _used(still, state=State.FROZEN)
    assert any("deleted files" in note for note in result.notes)
    assert result.used.total < 64 * MIB / 2
    spoiled = tmp_path / "spoiled"
    scatter_used(still, result.used, spoiled)
    # Frees the deleted file.
    run(("e2fsck", "-fy", str(spoiled)), ok=(0, 1))
    with loop_mounted(spoiled, tmp_path / "after", read_only=True) as mounted:
        assert tree_checksums(mounted) == before
    run(("e2fsck", "-fn", str(spoiled)))
