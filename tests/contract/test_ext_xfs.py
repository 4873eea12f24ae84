"""ext and XFS keep the contract of used maps, damaged in every way that comes to mind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.fs import ext, xfs
from freezeframe.system.run import run, search_path
from freezeframe.testing.fs_contract import check_kind

#: Those without checksums are the ones whose damage gets past the door.
EXT = {
    "ext2": "-t ext2 -b 1024",
    "ext3": "-t ext3 -b 1024 -J size=1",
    "ext4": "-t ext4 -b 1024",
    "ext4-gdt-csum": "-t ext4 -b 1024 -g 1024 -O ^metadata_csum,uninit_bg",
    "ext4-open": "-t ext4 -b 1024 -O bigalloc,meta_bg,^resize_inode,^metadata_csum,^uninit_bg",
}
XFS = {"v4": "-m crc=0", "v4-groups": "-m crc=0 -b size=512 -d agcount=4", "v5": ""}


@pytest.mark.parametrize("variant", EXT)
def test_ext(variant: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    tree = str(Path(__file__).parent)
    run(("mke2fs", "-q", "-F", *EXT[variant].split(), "-d", tree, str(image)))
    check_kind(ext.KIND, image)


@pytest.mark.parametrize("variant", XFS)
def test_xfs(variant: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    # The three names mkfs.xfs looks for before it makes a filesystem so small.
    small = dict(os.environ, PATH=search_path(), TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")
    command = ["mkfs.xfs", "-q", "-f", *XFS[variant].split(), str(image)]
    subprocess.run(command, check=True, env=small, capture_output=True)
    check_kind(xfs.KIND, image)
