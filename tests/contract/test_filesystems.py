"""Every used map keeps the one contract: `testing/fs_contract.py`.

To join: a row in `CASES`, that is the kind, the size of an image, and the tool's command
that makes it (`{}` is the image). Nothing is mounted, so it needs no root.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.fs import btrfs, exfat, ext, f2fs, fat, luks, ntfs, swap, xfs
from freezeframe.fs.base import FilesystemKind
from freezeframe.fs.detect import KINDS, identify
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import check_kind
from freezeframe.testing.fsproof import PlainFile

GEOMETRY = "-p 0 -H 0 -S 0"
ENCRYPT = "cryptsetup luksFormat -q --pbkdf-force-iterations 1000"

CASES: dict[str, tuple[FilesystemKind, int, str]] = {
    "ext2": (ext.KIND, 8, "mkfs.ext2 -q -F {}"),
    "ext4": (ext.KIND, 40, "mkfs.ext4 -q -F {}"),
    "ext4-plain": (ext.KIND, 16, "mkfs.ext4 -q -F -b 1024 -O ^metadata_csum,^64bit {}"),
    "xfs": (xfs.KIND, 300, "mkfs.xfs -q -f {}"),
    "btrfs": (btrfs.KIND, 120, "mkfs.btrfs -q -f {}"),
    "f2fs": (f2fs.KIND, 64, "mkfs.f2fs -q -f {}"),
    "ntfs": (ntfs.KIND, 8, f"mkfs.ntfs -F -q {GEOMETRY} {{}}"),
    "ntfs-512": (ntfs.KIND, 8, f"mkfs.ntfs -F -q -c 512 {GEOMETRY} {{}}"),
    "ntfs-4k": (ntfs.KIND, 8, f"mkfs.ntfs -F -q -s 4096 -c 65536 {GEOMETRY} {{}}"),
    "fat12": (fat.KIND, 2, "mkfs.fat -F 12 {}"),
    "fat16": (fat.KIND, 16, "mkfs.fat -F 16 {}"),
    "fat32": (fat.KIND, 40, "mkfs.fat -F 32 {}"),
    "exfat": (exfat.KIND, 8, "mkfs.exfat {}"),
    "swap": (swap.KIND, 4, "mkswap {}"),
    "luks1": (luks.KIND, 4, f"{ENCRYPT} --type luks1 {{}} -"),
    "luks2": (luks.KIND, 24, f"{ENCRYPT} --type luks2 --pbkdf pbkdf2 {{}} -"),
}


@pytest.fixture(scope="module", params=CASES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FilesystemKind, Path]:
    kind, size, command = CASES[request.param]
    image = tmp_path_factory.mktemp("contract") / f"{request.param}.img"
    with image.open("wb") as file:
        file.truncate(size * MIB)
    image.chmod(0o600)
    run([word.replace("{}", str(image)) for word in command.split()], stdin=b"secret")
    return kind, image


def test_contract(made: tuple[FilesystemKind, Path]) -> None:
    check_kind(*made)


def test_only_its_own_kind_recognises_it(made: tuple[FilesystemKind, Path]) -> None:
    own, image = made
    with PlainFile(image) as reader:
        assert [kind.name for kind in KINDS if kind.recognise(reader)] == [own.name]
        found = identify(reader)
    assert found is own
