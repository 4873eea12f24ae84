"""What is measured: each program's way to store the disk, store it again, and bring it back."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk import PART_START, Disk
from freezeframe.core.units import MIB
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.volumes import mounted_device
from measure import Usage, measure, stored, warm

FREEZEFRAME = Path(sys.executable).with_name("freezeframe")
_PASSWORD = "side by side"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it happens."""

    disk: Disk
    #: Everything the programs write lies below, on one filesystem.
    outputs: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, stdin: Path | None = None, stdout: Path | None = None) -> Usage:
        """Measure a command."""
        return measure(command, env=self.env, cwd=self.outputs, stdin=stdin, stdout=stdout)

    def pipe(self, *commands: list[str]) -> Usage:
        """Measure a pipeline as one process: the shell and all it starts."""
        line = " | ".join(shlex.join(command) for command in commands)
        return self.run("bash", "-o", "pipefail", "-c", line)

    def place(self, name: str) -> Path:
        """Return where an output of that name goes."""
        return self.outputs / name


def environment(outputs: Path) -> dict[str, str]:
    """Keep every program's password, cache and settings inside the folder of outputs."""
    return {
        "FREEZEFRAME_PASSWORD": _PASSWORD,
        "RESTIC_PASSWORD": _PASSWORD,
        "RESTIC_CACHE_DIR": str(outputs / "restic.cache"),
        "BORG_PASSPHRASE": _PASSWORD,
        "BORG_BASE_DIR": str(outputs / "borg.base"),
        "XDG_CACHE_HOME": str(outputs / "cache"),
        "HOME": str(outputs),
    }


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is measured, once a round."""

    #: `first`, `again` or `restore`.
    stage: str
    tool: str
    #: The command as the report shows it.
    shown: str
    run: Callable[[Bench], Usage]
    #: The output whose size is reported.
    keeps: str = ""
    #: Outputs that nothing needs after this step.
    drops: tuple[str, ...] = ()
    #: Looks at what the step made, with other programs than ours; returns what it found.
    proof: Callable[[Bench], str] | None = None


# -- partclone ----------------------------------------------------------------------


@contextlib.contextmanager
def _partition(bench: Bench) -> Iterator[str]:
    """Give the partition as a device, its content in the page cache like the disk's."""
    disk = bench.disk
    with attached(disk.path, offset=PART_START, size=disk.part_size, read_only=True) as device:
        # Held open: a device that nobody has open loses its cache.
        handle = os.open(device, os.O_RDONLY)
        try:
            warm(device, disk.path, PART_START)
            yield device
        finally:
            os.close(handle)


def _partclone_first(bench: Bench) -> Usage:
    out = shlex.quote(str(bench.place("partclone.zst")))
    with _partition(bench) as device:
        line = f"partclone.ext4 -c -s {device} -o - -L partclone.log | zstd -1 -T2 -q > {out}"
        return bench.run("bash", "-o", "pipefail", "-c", line)


def _partclone_restore(bench: Bench) -> Usage:
    return bench.pipe(
        ["zstd", "-dcq", str(bench.place("partclone.zst"))],
        ["partclone.ext4", "-r", "-W", "-s", "-", "-o", str(bench.place("partclone.raw")),
         "-L", "partclone.log"],
    )  # fmt: skip


# -- restic -------------------------------------------------------------------------


def _restic_on(bench: Bench, repo: str, *arguments: str, **ends: Path) -> Usage:
    return bench.run("restic", "-q", "-r", str(bench.place(repo)), *arguments, **ends)


def _restic(bench: Bench, *arguments: str, **ends: Path) -> Usage:
    return _restic_on(bench, "restic", *arguments, **ends)


def _restic_first(bench: Bench) -> Usage:
    _restic(bench, "init", "--repository-version", "2")
    return _restic_again(bench)


def _restic_again(bench: Bench) -> Usage:
    backup = ("backup", "--stdin", "--stdin-filename", "disk")
    return _restic(bench, *backup, stdin=bench.disk.path)


def _restic_restore(bench: Bench) -> Usage:
    return _restic(bench, "dump", "latest", "disk", stdout=bench.place("restic.raw"))


# -- borg and qemu-img --------------------------------------------------------------


def _borg_first(bench: Bench) -> Usage:
    repo = str(bench.place("borg"))
    # AES and HMAC-SHA256 have instructions of their own; BLAKE2b, the other mode, is slower.
    bench.run("borg", "init", "-e", "repokey", repo)
    return bench.run(
        "borg", "create", "--chunker-params", "fixed,1048576", "--compression", "zstd,1",
        f"{repo}::disk", "-", stdin=bench.disk.path,
    )  # fmt: skip


def _qemu_first(bench: Bench) -> Usage:
    return bench.run(
        "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd",
        str(bench.disk.path), str(bench.place("disk.qcow2")),
    )  # fmt: skip


# -- ours ---------------------------------------------------------------------------


def ours(bench: Bench, repo: Path, *arguments: str) -> Usage:
    """Measure freezeframe on a repository."""
    return bench.run(str(FREEZEFRAME), "-q", "-r", str(repo), *arguments)


def _ours_first(bench: Bench) -> Usage:
    ours(bench, bench.place("freezeframe"), "init")
    return _ours_again(bench)


def _ours_again(bench: Bench) -> Usage:
    return ours(bench, bench.place("freezeframe"), "backup", "--offline", str(bench.disk.path))


def _ours_restore(bench: Bench) -> Usage:
    target = str(bench.place("freezeframe.raw"))
    return ours(bench, bench.place("freezeframe"), "restore", "latest", "--to", target, "--yes")


def _prove_repository(bench: Bench) -> str:
    _restic_on(bench, "freezeframe", "check")
    return "`restic check` finds no errors in the repository freezeframe wrote"


def _prove_restored(bench: Bench) -> str:
    """Check the restored filesystem with its own tool, and compare every file's bytes."""
    disk, target = bench.disk, bench.place("freezeframe.raw")
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
    ):
        for path, folder in ((disk.path, one), (target, two)):
            device = stack.enter_context(
                attached(path, offset=PART_START, size=disk.part_size, read_only=True)
            )
            run(["e2fsck", "-fn", device])
            stack.enter_context(mounted_device(device, "ext4", Path(folder), read_only=True))
        run(["diff", "-r", "--no-dereference", one, two])
        stack.close()
    return "`e2fsck -fn` is content with what freezeframe restored, and every file is the same"


#: In the order of one round; the programs take turns.
STEPS = (
    Step("first", "partclone", "partclone.ext4 -c | zstd -1 -T2", _partclone_first,
         keeps="partclone.zst"),
    Step("first", "restic", "restic backup --stdin", _restic_first, keeps="restic"),
    Step("first", "borg", "borg create, fixed 1 MiB chunks, zstd,1", _borg_first,
         keeps="borg", drops=("borg", "borg.base")),
    Step("first", "qemu-img", "qemu-img convert -c, zstd", _qemu_first,
         keeps="disk.qcow2", drops=("disk.qcow2",)),
    Step("first", "freezeframe", "freezeframe backup --offline", _ours_first,
         keeps="freezeframe"),
    Step("again", "restic", "restic backup --stdin", _restic_again, keeps="restic"),
    Step("again", "freezeframe", "freezeframe backup --offline", _ours_again,
         keeps="freezeframe", proof=_prove_repository),
    Step("restore", "partclone", "zstd -dc | partclone.ext4 -r", _partclone_restore,
         drops=("partclone.zst", "partclone.raw")),
    Step("restore", "restic", "restic dump", _restic_restore,
         drops=("restic", "restic.raw", "restic.cache")),
    Step("restore", "freezeframe", "freezeframe restore", _ours_restore,
         drops=("freezeframe", "freezeframe.raw"), proof=_prove_restored),
)  # fmt: skip


def one_step(step: Step, bench: Bench) -> tuple[Usage, int]:
    """Run a step with its input in the page cache; return also the bytes it keeps stored."""
    warm(bench.disk.path, bench.disk.path)
    if step.stage == "restore":
        _warm_stored(bench, step)
    usage = step.run(bench)
    # What one has left to be written out must not slow the next.
    os.sync()
    size = stored(bench.place(step.keeps)) if step.keeps else 0
    return usage, size


def drop(step: Step, bench: Bench) -> None:
    """Remove the outputs that nothing needs after a step."""
    for name in step.drops:
        remove(bench.place(name))


def _warm_stored(bench: Bench, step: Step) -> None:
    source = bench.place("partclone.zst" if step.tool == "partclone" else step.tool)
    for file in [source] if source.is_file() else source.rglob("*"):
        if file.is_file():
            warm(file, file)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def megabytes(count: float) -> str:
    """Write bytes as MiB."""
    return f"{count / MIB:,.0f}"
