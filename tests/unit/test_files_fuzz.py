"""Damaged filesystems are refused or read, and never end or stop the program.

Each in a process of its own, with limits to its memory and processor time, so that what hangs
or eats memory fails the test. More rounds: `python -m freezeframe.testing.filefuzz`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.testing.filetree import make_tree

MIB = 1 << 20
ROUNDS = 40


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "tree"
    folder.mkdir()
    make_tree(folder, names=40, unix=False)
    (folder / "large").write_bytes(b"x" * 30_000)
    (folder / "link").symlink_to("y" * 200)
    os.setxattr(folder / "small", "user.attribute", b"v" * 300)
    return folder


def _image(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def _run(*command: str | Path) -> None:
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1", LC_ALL="C.UTF-8")
    # Small ones, which mkfs.xfs makes for its own tests only.
    environment |= {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def _make(kind: str, tree: Path, folder: Path) -> Path:
    if kind.startswith("ext"):
        image = _image(folder / "image", 8 * MIB)
        _run("mke2fs", "-q", "-F", "-t", kind, "-d", tree, image)
    elif kind == "btrfs":
        image = _image(folder / "image", 110 * MIB)
        _run("mkfs.btrfs", "-q", "--rootdir", tree, image)
    elif kind == "xfs":
        image = _image(folder / "image", 24 * MIB)
        lines = ["none", "0 0", "d--755 0 0"]
        # Its list of files knows no names with spaces.
        lines += [f"file{number} ---644 0 0 {tree}/small" for number in range(60)]
        lines += ["folder d--755 0 0", "link l--777 0 0 target", "$", "$"]
        (folder / "list").write_text("\n".join(lines) + "\n")
        _run("mkfs.xfs", "-q", "-f", "-p", folder / "list", image)
    else:
        image = _image(folder / "image", 16 * MIB)
        _run("mkfs.vfat", "-F", kind.removeprefix("fat"), image)
        _run("mcopy", "-s", "-i", image, tree / "many", tree / "large", tree / "small", "::/")
    return image


@pytest.mark.parametrize("kind", ["ext2", "ext4", "xfs", "btrfs", "fat16"])
def test_damaged(kind: str, tree: Path, tmp_path: Path) -> None:
    image = _make(kind, tree, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.testing.filefuzz", kind, image, str(ROUNDS), "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{ROUNDS} rounds")
