"""`make demo`: disks go into a repository and come back, and the proof that they did.

One that nobody uses, with five filesystems; then one that a program hammers meanwhile.
Everything happens in one temporary folder, on image files and loop devices; the machine's
own disks are only read from, as ordinary files.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from freezeframe.core.errors import FreezeframeError, TargetUnsuitable
from freezeframe.core.units import MIB, human_size
from freezeframe.system.interrupt import orderly_stop
from freezeframe.system.loop import attached
from freezeframe.system.run import run, which
from freezeframe.testing import disks, proof
from freezeframe.testing.demo_hot import ROOM, image_in_use
from freezeframe.testing.demo_steps import Demo, Different, Row, check, folder_size, image_ids
from freezeframe.testing.volumes import Survey

#: How much larger than the original the blank disk is.
_LARGER = 512 * MIB


def _make(demo: Demo) -> Survey:
    with demo.step("Making a disk with real partitions and real files", "make a disk") as row:
        size = human_size(demo.recipe.size)
        demo.say(f"a raw image of {size}, {demo.recipe.table}, in {demo.folder}")
        disk = disks.make_disk(
            demo.folder / "disk.img", demo.recipe, lambda line: demo.say(f"  {line}")
        )
        if not _device_mapper():
            demo.say("  (the kernel has no device-mapper: the logical volumes were made without)")
        row.size, row.result = size, f"{len(disk.volumes)} volumes"
    return disk


def _device_mapper() -> bool:
    lines = Path("/proc/misc").read_text(encoding="ascii").splitlines()
    return any(line.split()[-1] == "device-mapper" for line in lines)


def _original(demo: Demo, disk: Survey, words: str, name: str) -> Mapping[str, proof.Sums]:
    """Check the original disk and sum up its files, before it is imaged."""
    with demo.step(words, name) as row:
        check(demo, disk.path)
        sums = proof.collect(disk.path)
        files, size = proof.total_files(sums), proof.total_bytes(sums)
        row.size, row.result = human_size(size), f"{files} files, all filesystems clean"
        demo.say(f"  {row.size} in {files} files, folders and links")
    return sums


def _image(demo: Demo, disk: Survey, name: str) -> str:
    """Image the disk; return the image's id."""
    repository = demo.folder / "repository"
    before = folder_size(repository)
    with demo.step(f"Imaging the disk: {name}", name) as row:
        demo.program("backup", "--offline", str(disk.path))
        row.size = human_size(folder_size(repository) - before)
        image = image_ids()[-1]
        row.result = f"image {image[:8]}; bytes are what the repository grew by"
    return image


def _prove(demo: Demo, path: Path, wanted: Mapping[str, proof.Sums], name: str, row: Row) -> None:
    """Let the checkers look at a restored disk, and compare its files with the sums."""
    demo.say(f"checking {name} with the filesystems' own checkers:")
    checkers = check(demo, path)
    demo.say("comparing every file with the original:")
    differences = proof.differences(wanted, proof.collect(path))
    for line in differences:
        demo.say(f"  DIFFERENT {line}")
    if differences:
        raise Different(f"{name} differs from the original in {len(differences)} places")
    files = proof.total_files(wanted)
    demo.say(f"  all {files} files are the same")
    row.result = f"{checkers} checks clean, {files} files the same"


def _to_file(
    demo: Demo, image: str, size: int, wanted: Mapping[str, proof.Sums], name: str
) -> None:
    """Restore onto a blank disk that is a file, and prove it."""
    target = demo.folder / "restored.img"
    words = f"Restoring the {name} image onto a blank disk of {human_size(size)} (a file)"
    with demo.step(words, f"restore {name} image") as row:
        with target.open("xb") as file:
            file.truncate(size)
        demo.program("restore", image, "--to", str(target), "--yes")
        row.size = human_size(target.stat().st_blocks * 512)
        _prove(demo, target, wanted, "the restored disk", row)
    target.unlink()


def _to_device(demo: Demo, size: int, wanted: Mapping[str, proof.Sums]) -> None:
    """Restore onto a block device, compare it by `verify`, and prove it."""
    target = demo.folder / "device.img"
    name = "restore latest to a device"
    with demo.step("Restoring the latest image onto a block device", name) as row:
        with target.open("xb") as file:
            file.truncate(size)
        with attached(target) as device:
            demo.program("restore", "latest", "--to", device, "--yes")
            demo.program("verify", "latest", "--against", device)
        row.size = human_size(target.stat().st_blocks * 512)
        _prove(demo, target, wanted, "the device", row)
    target.unlink()


def _restic(demo: Demo) -> None:
    """Let another program judge the repository."""
    if which("restic") is None:
        demo.rows.append(Row("restic check --read-data", result="restic is not installed"))
        return
    with demo.step("Asking restic what it thinks of the repository", "restic check") as row:
        command = ("restic", "--no-cache", "check", "--read-data")
        demo.say("$ " + shlex.join(command))
        demo.say(run(command).stdout.decode().strip())
        row.size = human_size(folder_size(demo.folder / "repository"))
        row.result = "no errors were found"


def perform(demo: Demo) -> None:
    """Do it all. Raises `FreezeframeError` where anything is not as it must be."""
    repository = demo.folder / "repository"
    # Where both programs, and whoever runs them here, take them from.
    password = secrets.token_urlsafe()
    for prefix in ("FREEZEFRAME", "RESTIC"):
        os.environ[f"{prefix}_REPOSITORY"] = str(repository)
        os.environ[f"{prefix}_PASSWORD"] = password
    disk = _make(demo)
    old = _original(demo, disk, "Checking it and summing up its files", "sum up the files")
    with demo.step("Making a repository", "make a repository") as row:
        demo.program("init")
        row.size, row.result = human_size(folder_size(repository)), "done"
    first = _image(demo, disk, "first image")
    with demo.step("Changing, adding and deleting files on the disk", "change files") as row:
        row.result = f"{disks.change_disk(disk, seed=1)} files"
    new = _original(demo, disk, "Summing up its files again", "sum up again")
    _image(demo, disk, "second image")
    with demo.step("Looking at what there is", "list the images") as row:
        demo.program("images")
        demo.program("show", "latest")
        row.result = f"{len(image_ids())} images"
    _restic(demo)
    with demo.step("Reading both images back", "verify") as row:
        demo.program("verify")
        row.size, row.result = human_size(folder_size(repository)), "all reads back"
    with demo.step("Comparing the latest image with the disk", "verify against disk") as row:
        demo.program("verify", "latest", "--against", str(disk.path))
        row.size, row.result = human_size(demo.recipe.size), "the same"
    size = demo.recipe.size
    _to_file(demo, "latest", size + _LARGER, new, "latest")
    _to_device(demo, size, new)
    _to_file(demo, first, size, old, "first")
    image_in_use(demo)


def _folder(wanted: str | None, needed: int) -> Path:
    """Choose where there is room. Raises `TargetUnsuitable`."""
    places = [wanted] if wanted else [tempfile.gettempdir(), "/var/tmp", "."]
    for place in places:
        if Path(place).is_dir() and shutil.disk_usage(place).free >= needed:
            return Path(place)
    raise TargetUnsuitable(
        f"the demo needs {human_size(needed)} of room; there is less in {', '.join(places)}",
        hint="name a folder with enough room: --work FOLDER",
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m freezeframe.testing.demo", description=__doc__)
    parser.add_argument("--work", metavar="FOLDER", help="where to work (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave disk and repository there")
    parser.add_argument("--small", action="store_true", help="a disk with few files, for a try")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = _options(arguments)
    if os.geteuid() != 0:
        print(
            "demo: it needs root to attach loop devices and mount filesystems on them.\n"
            "  → run `sudo make demo`; the machine's own disks are not touched.",
            file=sys.stderr,
        )
        return 1
    recipe = disks.SMALL_GPT if options.small else disks.DEMO
    return _guarded(lambda: _in_folder(options.work, recipe, keep=bool(options.keep)))


def _in_folder(work: str | None, recipe: disks.Recipe, *, keep: bool) -> None:
    place = _folder(work, disks.room_needed(recipe) + ROOM)
    folder = Path(tempfile.mkdtemp(prefix="freezeframe-demo-", dir=place))
    demo = Demo(folder, recipe)
    try:
        perform(demo)
    finally:
        demo.console.print()
        demo.console.print(demo.table())
        if keep:
            demo.say(f"kept: {folder}, password {os.environ['FREEZEFRAME_PASSWORD']}")
        else:
            shutil.rmtree(folder)
    demo.say("Everything came back the same: tables, boot code, filesystems and all files.")


def _guarded(work: Callable[[], None]) -> int:
    try:
        with orderly_stop():
            work()
    except FreezeframeError as error:
        print(f"\ndemo: FAILED: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  → {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was cleaned up", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
