"""Images mounted, attached, exported and imported, on a real kernel, with real filesystems.

What is seen through a mount is compared with the disk the image was made of, by diff, cmp and
qemu-img; what is left behind is asked of the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freezeframe.access.attach import RUN
from freezeframe.system.loop import attached
from freezeframe.system.mounting import is_mounted
from freezeframe.system.mounts import own_mounts
from freezeframe.system.run import run
from freezeframe.system.sysfs import disks, loop_backing_file
from freezeframe.testing.disks import Part, Recipe, make_disk
from freezeframe.testing.program import PROGRAM, Client, finish
from freezeframe.testing.proof import Sums, checksum_tree, collect, differences
from freezeframe.testing.volumes import Survey, mounted_device

pytestmark = pytest.mark.root

MIB = 1 << 20
_RECIPE = Recipe(
    (
        Part("vfat", 34 * MIB, 2 * MIB),
        Part("ext4", 64 * MIB, 8 * MIB),
        Part("xfs", 300 * MIB, 8 * MIB),
        Part("btrfs", 128 * MIB, 8 * MIB),
        Part("ntfs", 64 * MIB, 8 * MIB),
        Part("swap", 8 * MIB),
        Part("LVM2_member", 96 * MIB, 8 * MIB),
    ),
    seed=11,
)
_SHOWN = {"2 ext4": "p2", "3 xfs": "p3", "4 btrfs": "p4", "5 ntfs": "p5"}


@dataclass(frozen=True)
class World:
    """A disk and a repository with an image of it."""

    client: Client
    disk: Survey
    #: Every file on the disk, by volume.
    files: dict[str, Sums]
    #: The disk as restic reads it out of the repository: with zeros for what nobody uses.
    stored: Path

    @property
    def name(self) -> str:
        return self.disk.path.name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("mount")
    disk = make_disk(folder / "disk.raw", _RECIPE)
    client = Client(folder / "repo")
    client.run("init")
    client.run("backup", "--offline", str(disk.path))
    stored = folder / "stored.raw"
    with stored.open("xb") as file:
        line = ["restic", "--no-cache", "dump", "latest", f"/disks/{disk.path.name}/00000/data"]
        subprocess.run(line, env=client.environment(), stdout=file, check=True)
    run(["fallocate", "--dig-holes", str(stored)])
    yield World(client, disk, collect(disk.path), stored)
    shutil.rmtree(folder)


@contextlib.contextmanager
def mount(client: Client, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mount` until the end of the block; it is ended by SIGTERM."""
    folder.mkdir()
    process = client.start("mount", *arguments, str(folder))
    try:
        _wait_until_said(process, b"ends with")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
        assert ended.code == 0, ended.output
        left = [each.point for each in own_mounts() if each.point.startswith(str(folder))]
        assert not left, ended.output
    assert not _loops_below(folder)


def _wait_until_said(process: subprocess.Popen[bytes], word: bytes) -> bytes:
    assert process.stdout is not None
    said = b""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError((said + finish(process).output.encode()).decode())


def _loops_below(folder: Path) -> list[str]:
    backing = [loop_backing_file(node) for node in disks() if node.name.startswith("loop")]
    return [path for path in backing if path.startswith(str(folder))]


def _wait_for_loops(folder: Path) -> None:
    until = time.monotonic() + 20
    while _loops_below(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _loops_below(folder)


# -- mount ------------------------------------------------------------------------------


def test_one_image_as_files(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    with mount(world.client, folder, "latest") as process:
        shown = folder / world.name
        subprocess.run(["cmp", shown / "disk.img", world.stored], check=True)
        for volume in world.disk.volumes:
            if "lvm/" in volume.name:
                continue
            raw = shown / f"p{volume.name.split()[0]}.img"
            assert raw.stat().st_size == volume.length
        (group,) = (folder / "volumes").iterdir()
        found = {name: checksum_tree(shown / place) for name, place in _SHOWN.items()}
        found |= {f"7 lvm/{name}": checksum_tree(group / name) for name in ("root", "home")}
        assert differences({name: world.files[name] for name in found}, found) == []
        assert json.loads((folder / "manifest.json").read_bytes())["disks"]
        with pytest.raises(OSError, match="Read-only"):
            (shown / "p2" / "new").touch()
        with pytest.raises(OSError, match="Read-only"):
            (shown / "disk.img").open("r+b")
        assert process.poll() is None


def test_all_images_under_one_tree(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    with mount(world.client, folder):
        (host,) = folder.iterdir()
        names = {each.name for each in host.iterdir()}
        assert "latest" in names
        assert len(names) == 1 + len(world.client.images())
        raw = host / "latest" / world.name / "disk.img"
        subprocess.run(["cmp", raw, world.stored], check=True)
        # Holes are told: copies are sparse without being asked.
        copy = tmp_path / "copy"
        run(["cp", "--sparse=auto", str(raw), str(copy)])
        assert copy.stat().st_blocks * 512 < world.disk.path.stat().st_size / 2


def test_a_dirty_journal_is_replayed_beside_the_image(tmp_path: Path) -> None:
    for kind, size in (("ext4", 64), ("xfs", 300)):
        place = tmp_path / kind
        place.mkdir()
        disk = place / "disk.raw"
        disk.touch()
        os.truncate(disk, size * MIB)
        run([f"mkfs.{kind}", "-q", str(disk)])
        copied = place / "copied.raw"
        with attached(disk) as device:
            point = place / "point"
            point.mkdir()
            with mounted_device(device, kind, point, read_only=False):
                for number in range(200):
                    (point / f"file {number}").write_bytes(b"%d" % number * 1000)
                os.sync()
                (point / "last").write_bytes(b"in the journal only, perhaps")
                descriptor = os.open(point / "last", os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                # As a power cut would leave it.
                run(["cp", "--sparse=always", device, str(copied)])
        client = Client(place / "repo")
        client.run("init")
        client.run("backup", "--offline", str(copied))
        before = copied.read_bytes()
        with mount(client, place / "shown", "latest"):
            files = place / "shown" / "copied.raw" / "files"
            assert len(list(files.glob("file *"))) == 200
            assert (files / "last").read_bytes() == b"in the journal only, perhaps"
            assert (place / "shown" / "copied.raw" / "disk.img").read_bytes() == before


def test_a_flipped_byte_fails_the_reads_of_its_chunk_only(world: World, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(world.client.repository, repo)
    packs = sorted((repo / "data").glob("*/*"), key=lambda path: path.stat().st_size)
    pack = packs[-1]
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    original = world.stored.read_bytes()
    with mount(Client(repo), tmp_path / "shown", "--no-files", "latest"):
        bad = []
        with (tmp_path / "shown" / world.name / "disk.img").open("rb", buffering=0) as raw:
            for at in range(0, len(original), 65_536):
                try:
                    data = os.pread(raw.fileno(), 65_536, at)
                except OSError:
                    bad.append(at // MIB)
                else:
                    assert data == original[at : at + 65_536]
        assert bad
        assert len(set(bad)) == 1


def test_damage_is_named(world: World, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(world.client.repository, repo)
    for pack in (repo / "data").glob("*/*"):
        if pack.stat().st_size > MIB:
            pack.unlink()
    folder = tmp_path / "shown"
    folder.mkdir()
    process = Client(repo).start("mount", "--no-files", "latest", str(folder))
    _wait_until_said(process, b"ends with")
    with pytest.raises(OSError, match="Input/output"):
        (folder / world.name / "p2.img").read_bytes()
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 0
    assert "chunk " in ended.stderr
    assert "pack" in ended.stderr
    assert not is_mounted(folder)


@pytest.mark.parametrize("way", ["umount", "background"])
def test_umount_ends_it(world: World, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    if way == "background":
        world.client.run("mount", "--background", "latest", str(folder))
    else:
        process = world.client.start("mount", "latest", str(folder))
        _wait_until_said(process, b"ends with")
    assert (folder / world.name / "p2").is_mount()
    until = time.monotonic() + 20
    # ntfs-3g goes on for a moment after its mount has gone.
    while is_mounted(folder) and time.monotonic() < until:
        run(["umount", "-R", str(folder)], ok=(0, 32))
        time.sleep(0.1)
    if way == "umount":
        assert finish(process).code == 0
    assert not list(folder.iterdir())
    _wait_for_loops(folder)


def test_a_mount_in_use_goes_all_the_same(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    with contextlib.ExitStack() as stack:
        with mount(world.client, folder, "latest"):
            for place in ("p2", "p3"):
                (shown,) = [p for p in (folder / world.name / place).iterdir() if p.name == "usr"]
                stack.callback(os.close, os.open(shown, os.O_RDONLY))
            stack.enter_context((folder / world.name / "disk.img").open("rb"))
        # `mount` has looked: nothing is left in the tree, although files are open.
        assert not list(folder.iterdir())
    _wait_for_loops(folder)


def test_nbd_for_other_programs(world: World, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    process = world.client.start("serve-nbd", "latest", "--socket", str(socket))
    _wait_until_said(process, b"ends with")
    try:
        run(["qemu-img", "compare", f"nbd+unix:///?socket={socket}", str(world.stored)])
        volume = world.disk.volume("xfs")
        part = tmp_path / "part"
        uri = f"nbd+unix:///{world.name}/p3?socket={socket}"
        run(["qemu-img", "convert", "-O", "raw", uri, str(part)])
        assert part.read_bytes() == world.stored.read_bytes()[volume.start :][: volume.length]
    finally:
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 0
    assert not socket.exists()


def test_a_killed_process_is_named_by_doctor(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    process = world.client.start("mount", "latest", str(folder))
    _wait_until_said(process, b"ends with")
    process.kill()
    finish(process)
    try:
        lines = world.client.run("doctor", "--json").stdout.splitlines()
        found = [f for f in map(json.loads, lines) if f.get("name") == "mounted images"]
        (finding,) = (f for f in found if str(folder) in f["detail"])
        assert finding["state"] == "limited"
        subprocess.run(finding["advice"], shell=True, check=True)
        assert not is_mounted(folder)
    finally:
        if is_mounted(folder):
            run(["umount", "-R", "-l", str(folder)])
    _wait_for_loops(folder)


def test_unsuitable_folders(world: World, tmp_path: Path) -> None:
    client = world.client
    assert "mkdir" in client.run("mount", "latest", str(tmp_path / "none"), code=2).stderr
    (tmp_path / "file").touch()
    assert "no folder" in client.run("mount", "latest", str(tmp_path / "file"), code=2).stderr
    assert "not empty" in client.run("mount", "latest", str(tmp_path), code=2).stderr
    folder = tmp_path / "shown"
    with mount(client, folder, "--no-files", "latest"):
        assert "already" in client.run("mount", "latest", str(folder), code=2).stderr
    assert client.run("mount", "f" * 8, str(folder), code=1).stderr
    assert not is_mounted(folder)


def test_without_fuse_it_says_what_lacks(world: World, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    hidden = (
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3"
        f" && exec {PROGRAM} mount latest {tmp_path / 'shown'}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden],
        env=world.client.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"no FUSE" in done.stderr
    assert b"modprobe fuse" in done.stderr


def test_who_is_not_root_has_the_raw_files(world: World, tmp_path: Path) -> None:
    # Where another user may go: pytest's folders are root's alone.
    place = Path(tempfile.mkdtemp(prefix="freezeframe-user-"))
    try:
        shutil.copytree(world.client.repository, place / "repo")
        folder = place / "shown"
        folder.mkdir()
        run(["chown", "-R", "nobody", str(place)])
        as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups"]
        process = subprocess.Popen(
            [*as_nobody, str(PROGRAM), "mount", "latest", str(folder)],
            env=Client(place / "repo").environment() | {"HOME": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _wait_until_said(process, b"fusermount3 -u")
        raw = str(folder / world.name / "disk.img")
        (digest,) = {
            run(line).stdout.split()[0]
            for line in ([*as_nobody, "sha256sum", raw], ["sha256sum", str(world.stored)])
        }
        assert digest
        run([*as_nobody, "fusermount3", "-u", str(folder)])
        assert finish(process).code == 0
    finally:
        shutil.rmtree(place)


# -- attach -----------------------------------------------------------------------------


def test_attach_and_detach(world: World) -> None:
    client = world.client
    device = client.run("attach", "latest").stdout.strip()
    try:
        subprocess.run(["cmp", device, world.stored], check=True)
        assert run(["blockdev", "--getro", device]).stdout.strip() == b"1"
        volume = world.disk.volume("2 ext4")
        line = [
            "cmp",
            "-n",
            str(volume.length),
            f"{device}p2",
            world.stored,
            "0",
            str(volume.start),
        ]
        subprocess.run(line, check=True)
        assert device in client.run("attach").stdout
        point = client.repository.parent / "point"
        point.mkdir()
        with mounted_device(f"{device}p2", "ext4", point, read_only=True):
            assert "mounted" in client.run("detach", device, code=1).stderr
    finally:
        client.run("detach", device)
    assert not list(RUN.glob("*.json"))
    assert "was not attached" in client.run("detach", device, code=2).stderr


def test_attach_a_volume_and_kill_its_server(world: World) -> None:
    client = world.client
    lines = client.run("attach", "latest", "--partition", "4", "--json").stdout.splitlines()
    (record,) = (r for r in map(json.loads, lines) if r["message_type"] == "attached")
    os.kill(record["pid"], signal.SIGKILL)
    time.sleep(0.2)
    found = [json.loads(line) for line in client.run("doctor", "--json").stdout.splitlines()]
    (finding,) = (f for f in found if f.get("name") == "attached images")
    assert finding["advice"] == f"freezeframe detach {record['device']}"
    client.run("detach", record["device"])
    assert not list(RUN.glob("*.json"))
    assert not any(each.point.startswith(str(RUN)) for each in own_mounts())


# -- export and import ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk", "vhdx"])
def test_export_and_import(world: World, tmp_path: Path, form: str) -> None:
    target = tmp_path / f"out.{form}"
    world.client.run("export", "latest", str(target))
    run(["qemu-img", "compare", "-F", form, str(world.stored), str(target)])
    assert target.stat().st_blocks * 512 < world.disk.path.stat().st_size / 2
    client = Client(tmp_path / "repo")
    client.run("init")
    client.run("import", "--host", "elsewhere", str(target))
    manifest = client.manifest("latest")
    assert manifest["origin"]["format"] == form  # type: ignore[index]
    assert manifest["host"]["name"] == "elsewhere"  # type: ignore[index]
    (disk,) = manifest["disks"]  # type: ignore[misc]
    assert not [note for note in disk.get("notes", ()) if "sfdisk" in note]
    client.run("restore", "latest", "--to", str(tmp_path / "back.raw"), "--yes")
    run(["qemu-img", "compare", "-F", "raw", str(world.stored), str(tmp_path / "back.raw")])


def test_export_a_partition_and_a_volume(world: World, tmp_path: Path) -> None:
    volume = world.disk.volume("xfs")
    target = tmp_path / "xfs.raw"
    world.client.run("export", "latest", str(target), "--partition", "3")
    assert target.read_bytes() == world.stored.read_bytes()[volume.start :][: volume.length]
    volume = world.disk.volume("lvm/root")
    held = tmp_path / "root.raw"
    wrong = world.client.run("export", "latest", str(held), "--volume", "none/root", code=2)
    name = wrong.stderr.split("it has: ")[1].split(",")[0].strip().partition("/")[0]
    world.client.run("export", "latest", str(held), "--volume", f"{name}/root")
    assert held.read_bytes() == world.stored.read_bytes()[volume.start :][: volume.length]
    wrong = world.client.run("export", "latest", str(target), "--partition", "3", code=1)
    assert "exists already" in wrong.stderr
    wrong = world.client.run("export", "latest", str(tmp_path / "x"), code=2)
    assert "--format" in wrong.stderr


def test_an_image_of_partclone(world: World, tmp_path: Path) -> None:
    volume = world.disk.volume("xfs")
    path = tmp_path / "xfs.pcl"
    with attached(
        world.disk.path, offset=volume.start, size=volume.length, read_only=True
    ) as device:
        run(["partclone.xfs", "-c", "-s", device, "-o", str(path), "-L", f"{tmp_path}/log", "-q"])
    client = Client(tmp_path / "repo")
    client.run("init")
    client.run("import", str(path))
    back = tmp_path / "back.raw"
    client.run("restore", "latest", "--to", str(back), "--yes")
    found = collect(back)
    assert differences({"xfs": world.files["3 xfs"]}, {"xfs": found["0 xfs"]}) == []
    manifest = client.manifest("latest")
    assert manifest["origin"]["format"] == "partclone"  # type: ignore[index]


def test_clonezilla(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "2026-11-26-img"
    folder.mkdir()
    path = world.disk.path
    with attached(path, read_only=True) as device:
        (folder / "sda-pt.sf").write_bytes(
            run(["sfdisk", "-d", device]).stdout.replace(device.encode() + b"p", b"/dev/sda")
        )
        size = path.stat().st_size // 512
    (folder / "sda-pt.parted").write_text(f"Model: x\nDisk /dev/sda: {size}s\n")
    (folder / "sda-mbr").write_bytes(path.read_bytes()[:512])
    parts = []
    for volume in world.disk.volumes:
        number, _, kind = volume.name.partition(" ")
        if "lvm/" in kind:
            continue
        parts.append(f"sda{number}")
        if kind == "swap":
            facts = f'UUID="{volume.uuid}"\nLABEL="swap"\n'
            (folder / f"swappt-sda{number}.info").write_text(facts)
            continue
        with attached(path, offset=volume.start, size=volume.length, read_only=True) as device:
            if kind == "LVM2_member":
                line = f"dd if={device} bs=1M | zstd -q"
                name = f"sda{number}.dd-img.zst."
            else:
                line = f"partclone.{kind} -c -s {device} -o - -L {tmp_path}/log -q | gzip -1"
                name = f"sda{number}.{kind}-ptcl-img.gz."
            line += f" | split -b 4M - {folder}/{name}"
            subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, capture_output=True)
    (folder / "parts").write_text(" ".join(parts) + "\n")
    (folder / "disk").write_text("sda\n")
    client = Client(tmp_path / "repo")
    client.run("init")
    client.run("import", str(folder))
    back = tmp_path / "back.raw"
    client.run("restore", "latest", "--to", str(back), "--yes")
    assert differences(world.files, collect(back)) == []
