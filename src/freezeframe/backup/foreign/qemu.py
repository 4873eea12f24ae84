"""Disk images of virtual machines (qcow2, VMDK, VHDX, …), shown as raw files by QEMU.

`qemu-storage-daemon` exports them through FUSE: nothing is converted, no second copy is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from freezeframe.core.errors import FreezeframeError, ToolFailed, ToolMissing, UsageError
from freezeframe.system.mounting import detach_mount, is_mounted
from freezeframe.system.run import run, search_path, which

#: As qemu-img calls them; the program knows more, these are what virtual machines have.
FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi")
#: Seconds the daemon has to show a file, and to end.
_PATIENCE = 20.0


class _Info(msgspec.Struct, rename="kebab"):
    """What `qemu-img info --output=json` tells, as far as it is needed."""

    format: str
    virtual_size: int
    backing_filename: str = ""


def format_of(path: Path) -> str:
    """Return the format of a disk image file as qemu-img recognises it.

    Raises `UsageError` for one that leans on another file: what that is would be read, too,
    and a stranger's image may name any.
    """
    done = run(["qemu-img", "info", "--output=json", os.fspath(path)], purpose="to read images")
    try:
        info = msgspec.json.decode(done.stdout, type=_Info)
    except msgspec.MsgspecError as error:
        raise FreezeframeError(f"qemu-img says nothing clear of {path}: {error}") from error
    if info.backing_filename:
        raise UsageError(
            f"{path} holds only what differs from {info.backing_filename}",
            hint=f"make it whole: qemu-img convert -O qcow2 {path} whole.qcow2",
        )
    return info.format


@contextmanager
def shown_raw(path: Path, form: str, folder: Path) -> Iterator[Path]:
    """Show a disk image file as a raw one in `folder`, read only, while it is needed."""
    daemon = which("qemu-storage-daemon")
    if daemon is None:
        raise ToolMissing("qemu-storage-daemon", "qemu-utils", f"to read {form} files")
    place = folder / "disk.raw"
    place.touch()
    nodes: list[Mapping[str, object]] = [
        {"driver": "file", "node-name": "file", "filename": os.fspath(path), "read-only": True},
        {"driver": form, "node-name": "disk", "file": "file", "read-only": True},
    ]
    export = {"type": "fuse", "id": "disk", "node-name": "disk", "mountpoint": os.fspath(place)}
    command = [daemon]
    for node in nodes:
        command += ["--blockdev", json.dumps(node)]
    command += ["--export", json.dumps({**export, "writable": False})]
    with (folder / "errors").open("w+b") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=dict(os.environ, LC_ALL="C", PATH=search_path()),
        )
        try:
            _wait_for(place, process, errors.name)
            yield place
        finally:
            _end(process, place)


def _wait_for(place: Path, process: subprocess.Popen[bytes], errors: str) -> None:
    until = time.monotonic() + _PATIENCE
    while not is_mounted(place):
        if process.poll() is not None or time.monotonic() > until:
            said = Path(errors).read_text(encoding="utf-8", errors="replace")
            raise ToolFailed("qemu-storage-daemon", process.poll() or -1, said)
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes], place: Path) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if is_mounted(place):
        detach_mount(place)
    with contextlib.suppress(OSError):
        place.unlink()
