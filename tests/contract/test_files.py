"""Every reader of files passes one suite, on filesystems made without a mount.

What the files are is asked of the kernel, of the folder they were copied from.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from freezeframe.access.files.base import Filesystem
from freezeframe.access.files.kinds import open_filesystem
from freezeframe.block.open import open_source
from freezeframe.testing.filetree import check_reader, facts, make_tree, plain_times

pytestmark = pytest.mark.root  # devices, other owners and `trusted.` attributes in the folder

MIB = 1 << 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "tree"
    folder.mkdir()
    make_tree(folder, names=300)
    plain_times(folder)
    return folder


@pytest.fixture(scope="module")
def plain_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "tree"
    folder.mkdir()
    make_tree(folder, names=300, unix=False)
    # mtools writes characters beyond the first plane wrongly.
    for path in folder.glob("*\N{GRINNING FACE}*"):
        path.rename(folder / path.name.replace("\N{GRINNING FACE}", "\N{SNOWMAN}"))
    return folder


def blank(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def run(*command: str | Path) -> None:
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1", LC_ALL="C.UTF-8")
    subprocess.run(command, check=True, capture_output=True, env=environment)


def opened(kind: str, image: Path) -> Filesystem:
    return open_filesystem(kind, open_source(str(image)))


@pytest.mark.parametrize(
    "options",
    [
        "-t ext4",
        "-t ext4 -O bigalloc -C 65536 -b 4096",
        "-t ext4 -O meta_bg,^resize_inode,^has_journal,^metadata_csum,^64bit -b 2048",
        "-t ext3 -b 4096",
        "-t ext2 -b 1024 -O ^filetype",
    ],
)
def test_ext(tree: Path, tmp_path: Path, options: str) -> None:
    image = blank(tmp_path / "image", 96 * MIB)
    run("mke2fs", "-q", "-F", *options.split(), "-d", tree, image)
    check_reader(opened(options.split()[1], image), facts(os.fsencode(tree)))


@pytest.mark.parametrize("options", ["", "--nodesize 4096", "--checksum xxhash", "--mixed"])
def test_btrfs(tree: Path, tmp_path: Path, options: str) -> None:
    image = blank(tmp_path / "image", 200 * MIB)
    run("mkfs.btrfs", "-q", *options.split(), "--rootdir", tree, image)
    wanted = facts(os.fsencode(tree))
    for name in (b"disk", b"null"):
        # mkfs.btrfs 6.2 makes the nodes, and leaves their numbers out.
        row = list(wanted[name])
        row[5] = 0
        wanted[name] = tuple(row)
    check_reader(opened("btrfs", image), wanted)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fat(plain_tree: Path, tmp_path: Path, bits: int) -> None:
    image = blank(tmp_path / "image", {12: 30, 16: 64, 32: 300}[bits] * MIB)
    size = {12: ("-s", "64"), 16: (), 32: ()}[bits]
    run("mkfs.vfat", "-F", str(bits), *size, image)
    run("mcopy", "-s", "-i", image, *sorted(plain_tree.iterdir()), "::/")
    check_reader(
        opened(f"fat{bits}", image), facts(os.fsencode(plain_tree), unix=False), unix=False
    )
