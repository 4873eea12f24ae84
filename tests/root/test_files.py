"""Files of filesystems that the kernel filled, read without it: each is as the kernel says."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.access.files.base import Filesystem
from freezeframe.access.files.kinds import open_filesystem
from freezeframe.access.files.tree import volume_tree
from freezeframe.access.files.volumes import Volume
from freezeframe.access.get import Copier
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.open import open_source
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.fs.base import PeerList
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.disks import Part, Recipe, make_disk
from freezeframe.testing.filetree import (
    check_reader,
    data_bytes,
    differences,
    facts,
    make_tree,
    read_facts,
)
from freezeframe.testing.fsproof import fuse_mounted, loop_mounted
from freezeframe.testing.program import Client
from freezeframe.testing.volumes import mounted, unmount

pytestmark = pytest.mark.root

Rows = dict[bytes, tuple[object, ...]]


def make(image: Path, size: int, *command: str) -> Path:
    image.touch()
    os.truncate(image, size)
    run((*command, str(image)))
    return image


@contextlib.contextmanager
def reading(kind: str, image: Path) -> Iterator[Filesystem]:
    with open_source(str(image)) as reader:
        yield open_filesystem(kind, reader)


def filled(image: Path, *, options: str = "", xattr: int = 400) -> Rows:
    with loop_mounted(image, image.with_name("mounted"), options=options) as folder:
        make_tree(folder, names=400, xattr=xattr)
        os.sync()
        return facts(os.fsencode(folder))


@pytest.mark.parametrize(
    ("command", "xattr"),
    [
        ("mkfs.ext4 -q", 400),
        ("mkfs.ext4 -q -O inline_data,ea_inode -I 512 -b 4096", 20_000),
        ("mkfs.ext4 -q -O bigalloc -C 65536 -b 4096", 400),
        ("mkfs.ext3 -q -b 4096", 400),
        ("mkfs.ext2 -q -b 1024", 400),
    ],
)
def test_ext(tmp_path: Path, command: str, xattr: int) -> None:
    image = make(tmp_path / "image", 160 * MIB, *command.split())
    wanted = filled(image, xattr=xattr)
    with reading(command.split()[0].removeprefix("mkfs."), image) as filesystem:
        check_reader(filesystem, wanted)
        assert filesystem.notes == ()


@pytest.mark.parametrize(
    "command",
    [
        "mkfs.xfs -q",
        "mkfs.xfs -q -b size=1024 -n size=16384 -i size=512",
        "mkfs.xfs -q -i nrext64=0 -m bigtime=0,reflink=0",
    ],
)
def test_xfs(tmp_path: Path, command: str) -> None:
    image = make(tmp_path / "image", 320 * MIB, *command.split())
    wanted = filled(image, xattr=60_000)
    with reading("xfs", image) as filesystem:
        check_reader(filesystem, wanted)
        assert filesystem.notes == ()


def test_xfs_of_version_4(tmp_path: Path) -> None:
    # No kernel writes it any more: filled by mkfs from a list.
    (tmp_path / "data").write_bytes(os.urandom(300_000))
    lines = [
        "none",
        "0 0",
        "d--755 10 20",
        *(f"file{number} ---644 1 2 {tmp_path}/data" for number in range(200)),
        "link l--777 0 0 somewhere/else",
        "folder d--750 3 4",
        f"inside -u-755 0 0 {tmp_path}/data",
        "device c--600 0 0 5 1",
        "$",
        "$",
    ]
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    image = make(
        tmp_path / "image", 320 * MIB, "mkfs.xfs", "-q", "-m", "crc=0", "-p", f"{tmp_path}/list"
    )
    with reading("xfs", image) as filesystem:
        rows = read_facts(filesystem)
    assert len(rows) == 204
    assert len({row[2] for name, row in rows.items() if name.startswith(b"file")}) == 1
    assert rows[b"link"][-1] == b"somewhere/else"
    assert rows[b"folder/device"][5] == os.makedev(5, 1)
    assert rows[b"folder/inside"][3] == 0o104755


def test_a_log_that_was_not_replayed_is_said(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 320 * MIB, "mkfs.xfs", "-q")
    copy = tmp_path / "copy"
    with loop_mounted(image, tmp_path / "mounted") as folder:
        make_tree(folder, names=50)
        os.sync()
        wanted = facts(os.fsencode(folder))
        run(("fsfreeze", "-f", str(folder)))
        try:
            run(("cp", "--sparse=always", str(image), str(copy)))
        finally:
            run(("fsfreeze", "-u", str(folder)))
    with reading("xfs", copy) as filesystem:
        assert "not replayed" in filesystem.notes[0]
        # A freeze wrote all of it to its place.
        assert differences(wanted, read_facts(filesystem)) == []


@pytest.mark.parametrize("packed", ["zlib", "lzo", "zstd", "no"])
def test_btrfs(tmp_path: Path, packed: str) -> None:
    image = make(tmp_path / "image", 200 * MIB, "mkfs.btrfs", "-q")
    options = f"compress-force={packed}" if packed != "no" else ""
    wanted = filled(image, options=options, xattr=3000)
    with reading("btrfs", image) as filesystem:
        check_reader(filesystem, wanted)


def test_subvolumes_and_snapshots(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 200 * MIB, "mkfs.btrfs", "-q")
    with loop_mounted(image, tmp_path / "mounted") as folder:
        run(("btrfs", "subvolume", "create", str(folder / "one")))
        make_tree(folder / "one", names=200)
        run(("btrfs", "subvolume", "create", str(folder / "one/inner")))
        (folder / "one/inner/file").write_text("inside")
        run(("btrfs", "subvolume", "snapshot", str(folder / "one"), str(folder / "two")))
        run(("btrfs", "subvolume", "snapshot", "-r", str(folder / "two"), str(folder / "three")))
        (folder / "one/small").write_text("changed since")
        (folder / "two/new").write_text("new")
        os.sync()
        wanted = facts(os.fsencode(folder))
    with reading("btrfs", image) as filesystem:
        # Folders in the place of an inner subvolume have times of the moment they are looked at.
        found = read_facts(filesystem)
        for name in (b"two/inner", b"three/inner"):
            del wanted[name], found[name]
        assert differences(wanted, found) == []
        assert wanted[b"one/small"] != wanted[b"two/small"]


@pytest.mark.parametrize("compressed", [False, True])
def test_ntfs(tmp_path: Path, compressed: bool) -> None:
    image = make(tmp_path / "image", 160 * MIB, "mkfs.ntfs", "-q", "-Q", "-F")
    mount = ("ntfs-3g", "-o", "streams_interface=xattr,compression")
    with fuse_mounted(mount, image, tmp_path / "mounted") as folder:
        if compressed:
            # FILE_ATTRIBUTE_COMPRESSED of the top folder: what is made in it is packed.
            os.setxattr(folder, "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
        make_tree(folder, names=400, unix=False)
        (folder / "link").symlink_to("folder/somewhere")
        os.link(folder / "small", folder / "another name")
        os.setxattr(folder / "small", "user.stream", b"alternate")
        with (folder / "sparse").open("wb") as file:
            file.seek(5_000_000)
            file.write(b"x" * 100)
            file.truncate(9_000_000)
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
        wanted = facts(os.fsencode(folder), unix=False)
    with reading("ntfs", image) as filesystem:
        check_reader(filesystem, wanted, unix=False)
        small = filesystem.root.lookup(b"small")
        other = filesystem.root.lookup(b"another name")
        link = filesystem.root.lookup(b"link")
        assert small is not None
        assert other is not None
        assert link is not None
        assert small.key == other.key
        assert small.stat().links == 2
        assert small.xattrs() == {b"user.stream": b"alternate"}
        assert link.read_link() == b"folder/somewhere"
        for name, time in times.items():
            node = filesystem.root.lookup(name.encode())
            assert node is not None
            assert node.stat().mtime == time, name


def test_exfat(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 160 * MIB, "mkfs.exfat")
    with (
        attached(image) as device,
        fuse_mounted(("mount.exfat-fuse",), Path(device), tmp_path / "mounted") as folder,
    ):
        make_tree(folder, names=400, unix=False)
        wanted = facts(os.fsencode(folder), unix=False)
    with reading("exfat", image) as filesystem:
        check_reader(filesystem, wanted, unix=False)


@pytest.mark.parametrize("kind", ["ntfs", "exfat"])
def test_damaged(tmp_path: Path, kind: str) -> None:
    """As `unit/test_files_fuzz.py`, for those that only a mount can fill."""
    command = {"ntfs": ("mkfs.ntfs", "-q", "-Q", "-F"), "exfat": ("mkfs.exfat",)}[kind]
    mount = {"ntfs": "ntfs-3g", "exfat": "mount.exfat-fuse"}[kind]
    image = make(tmp_path / "image", 12 * MIB, *command)
    with (
        attached(image) as device,
        fuse_mounted((mount,), Path(device), tmp_path / "mounted") as folder,
    ):
        make_tree(folder, names=40, unix=False)
        (folder / "large").write_bytes(b"x" * 30_000)
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.testing.filefuzz", kind, image, "60", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# -- by the program, from images ---------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Client:
    made = Client(tmp_path / "repository")
    made.run("init")
    return made


def test_a_tree_comes_back_with_all_that_linux_keeps(client: Client, tmp_path: Path) -> None:
    wanted: dict[str, Rows] = {}
    paths = []
    for kind, command in {
        "ext4": ("mkfs.ext4", "-q"),
        "xfs": ("mkfs.xfs", "-q"),
        "btrfs": ("mkfs.btrfs", "-q"),
    }.items():
        image = make(tmp_path / f"{kind}.raw", 320 * MIB, *command)
        wanted[kind] = filled(image)
        paths.append(str(image))
    client.run("backup", "--offline", *paths)
    for kind, rows in wanted.items():
        target = tmp_path / "out" / kind
        done = client.run("files", "get", f"latest:{kind}.raw:/", "--to", str(target))
        assert "not kept" not in done.output
        assert differences(rows, facts(os.fsencode(target))) == []
        assert data_bytes(target / "only a hole") == 0
        assert data_bytes(target / "holes") <= 8 * 4096
    # The kernel's own copy of the original, and ours: the same for another program.
    with loop_mounted(tmp_path / "ext4.raw", tmp_path / "mounted", read_only=True) as folder:
        command = ("rsync", "-aHAXn", "--delete", "--exclude=/lost+found", "--itemize-changes")
        compared = subprocess.run(
            [*command, f"{folder}/", f"{tmp_path}/out/ext4/"],
            capture_output=True,
            text=True,
            check=True,
        )
        changed = [line for line in compared.stdout.splitlines() if not line.endswith(" ./")]
        assert changed == []


def test_the_tree_the_machine_had(client: Client, tmp_path: Path) -> None:
    """A root filesystem with a table of the others: paths mean what they meant there."""
    root = make(tmp_path / "root.raw", 160 * MIB, "mkfs.btrfs", "-q", "-L", "top")
    home = make(tmp_path / "home.raw", 64 * MIB, "mkfs.ext4", "-q", "-L", "my home")
    with loop_mounted(root, tmp_path / "mounted") as folder:
        for name in ("@", "@log"):
            run(("btrfs", "subvolume", "create", str(folder / name)))
        (folder / "@/etc").mkdir()
        (folder / "@/home").mkdir()
        (folder / "@/var/log").mkdir(parents=True)
        (folder / "@/etc/fstab").write_text(
            "# the machine's\n"
            "LABEL=top / btrfs subvol=@ 0 0\n"
            "LABEL=top /var/log btrfs subvol=/@log 0 0\n"
            "LABEL=my\\040home /home ext4 defaults 0 2\n"
            "LABEL=gone /gone ext4 defaults 0 2\n"
            "tmpfs /tmp tmpfs defaults 0 0\n"
        )
        (folder / "@log/messages").write_text("log")
        (folder / "@/etc/motd").symlink_to("/home/me/motd")
    with loop_mounted(home, tmp_path / "mounted") as folder:
        (folder / "me").mkdir()
        (folder / "me/motd").write_text("hello")
    client.run("backup", "--offline", str(root), str(home))
    assert client.run("files", "cat", "latest:/etc/motd").stdout == "hello"
    assert client.run("files", "cat", "latest:/home/me/../me/motd").stdout == "hello"
    found = client.run("files", "find", "latest:/", "--name", "m*").stdout.splitlines()
    assert sorted(found) == [
        "latest:/etc/motd",
        "latest:/home/me",
        "latest:/home/me/motd",
        "latest:/var/log/messages",
    ]
    listed = client.run("files", "ls", "latest").stdout
    assert "/home" in listed
    assert "/var/log" in listed
    # Both subvolumes are there by the volume's own name.
    assert client.run("files", "cat", "latest:top:/@log/messages").stdout == "log"


def test_logical_volumes(client: Client, tmp_path: Path) -> None:
    recipe = Recipe((Part("ext4", 64 * MIB, 2 * MIB), Part("LVM2_member", 192 * MIB, 6 * MIB)))
    disk = make_disk(tmp_path / "disk.raw", recipe)
    client.run("backup", "--offline", str(disk.path))
    lines = client.run("files", "ls", "latest", "--json").stdout.splitlines()
    names = [record["volume"] for record in map(json.loads, lines) if "volume" in record]
    assert names[0] == "disk.raw/p1"
    group = names[1].split("/")[0]
    assert names[1:] == [f"{group}/root", f"{group}/home"]
    for name, device in ((f"{group}/root", "lvm/root"), (f"/dev/{group}/home", "lvm/home")):
        target = tmp_path / "out" / device
        client.run("files", "get", f"latest:{name}:/", "--to", str(target))
        with mounted(disk.path, disk.sector, disk.volume(device)) as folder:
            wanted = facts(os.fsencode(folder))
        assert len(wanted) > 10
        # What was copied in may have names of its own kind: all of them are compared.
        assert differences(wanted, facts(os.fsencode(target))) == []
    found = client.run("files", "find", "--name", "*", "--json").stdout.splitlines()
    assert {json.loads(line)["path"].split(":")[1] for line in found} == set(names)


def test_a_target_that_keeps_less_or_is_full(client: Client, tmp_path: Path) -> None:
    image = make(tmp_path / "image.raw", 96 * MIB, "mkfs.ext4", "-q")
    wanted = filled(image)
    client.run("backup", "--offline", str(image))
    target = make(tmp_path / "exfat", 96 * MIB, "mkfs.exfat")
    with (
        attached(target) as device,
        fuse_mounted(("mount.exfat-fuse",), Path(device), tmp_path / "mounted") as folder,
    ):
        one = ("files", "get", "latest:/", "--to", str(folder / "all"))
        said = client.run(*one, code=3).output
        copied = facts(os.fsencode(folder / "all"), unix=False)
    for word in ("owners", "modes", "extended attributes", "hard links", "/link: it cannot be"):
        assert word in said
    files = {name: row[:3] for name, row in wanted.items() if stat.S_ISREG(int(str(row[0])))}
    del files[b"not \xff\xfe utf-8"]
    assert files.items() <= copied.items()
    small = make(tmp_path / "small", 4 * MIB, "mkfs.ext4", "-q", "-O", "^has_journal")
    with loop_mounted(small, tmp_path / "mounted") as folder:
        one = ("files", "get", "latest:/", "--to", str(folder / "all"))
        assert "No space left" in client.run(*one, code=1).output
        # No half file: what is there is whole.
        kept = facts(os.fsencode(folder / "all"), unix=False)
        assert {name: row for name, row in kept.items() if name in files}.items() <= files.items()


@pytest.mark.parametrize("profile", ["raid1", "raid0"])
def test_btrfs_on_two_disks(client: Client, tmp_path: Path, profile: str) -> None:
    images = [tmp_path / f"disk{number}.raw" for number in range(2)]
    for image in images:
        image.touch()
        os.truncate(image, 300 * MIB)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(attached(image)) for image in images]
        run(("mkfs.btrfs", "-q", "-f", "-d", profile, "-m", "raid1", *devices))
        run(("btrfs", "device", "scan", *devices))
        try:
            run(("mount", "-t", "btrfs", devices[0], str(folder)))
            make_tree(folder, names=100, xattr=3000)
            os.sync()
            wanted = facts(os.fsencode(folder))
        finally:
            if folder.is_mount():
                unmount(folder)
            run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))
    client.run("backup", "--offline", *map(str, images))
    client.run("files", "get", "latest:disk1.raw:/", "--to", str(tmp_path / "out"))
    assert differences(wanted, facts(os.fsencode(tmp_path / "out"))) == []
    # One of them alone: whole with copies on both, and honest where there are none.
    client.run("backup", "--offline", str(images[1]))
    code = 0 if profile == "raid1" else 3
    one = ("files", "get", "latest:disk1.raw:/", "--to", str(tmp_path / "one"))
    ended = client.run(*one, code=code)
    assert "not all devices" in ended.output
    found = facts(os.fsencode(tmp_path / "one"))
    assert found.items() <= wanted.items()
    assert (len(found) == len(wanted)) is (profile == "raid1")


def test_whoever_is_not_root_is_told_what_is_lost(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 96 * MIB, "mkfs.ext4", "-q")
    filled(image)
    target = tmp_path / "out"
    target.mkdir()
    os.chown(target, 65534, 65534)
    handle = os.open(target, os.O_RDONLY)
    with reading("ext4", image) as filesystem:
        copied = _as_nobody(filesystem, handle)
    os.close(handle)
    assert copied["failed"] == []
    lost = " ".join(copied["lost"])
    for word in ("owners", "device nodes", "of trusted", "of security"):
        assert word in lost
    assert (target / "large").stat().st_uid == 65534
    # Whose program it was to run as is gone: so is the right to run as them.
    assert (target / "large").stat().st_mode & 0o7777 == 0o711
    assert not (target / "null").exists()
    assert os.getxattr(target / "attributes", "user.short") == b"v"


def _as_nobody(filesystem: Filesystem, target: int) -> dict[str, list[str]]:
    """Copy everything in a child that is nobody; return what it said."""
    volume = Volume(
        name="it",
        content=filesystem.kind,
        size=filesystem.span,
        label="",
        uuid="",
        aliases=frozenset(),
        _reader=lambda: MemoryBlocks(0),
        _peers=PeerList,
        _opened=filesystem,
    )
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            copier = Copier(target, Silent())
            tree = volume_tree(volume)
            copier.copy(tree, tree.root(), b"")
            said = {
                "failed": [reason for _, reason in copier.copied.failed],
                "lost": list(copier.copied.lost),
            }
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = json.load(pipe)
    os.waitpid(child, 0)
    return dict(said)
