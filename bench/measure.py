"""Run one step and measure it: the whole process, with all that it started."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.units import MIB

_READ = 4 * MIB


class StepFailed(Exception):
    """A program that is measured failed: nothing can be said about its speed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a step took."""

    #: From start to end, seconds.
    wall: float
    #: Processor time of it and its children, user and system, seconds.
    cpu: float
    #: The largest resident set of any one of its processes, bytes.
    peak: int


def measure(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdin: Path | None = None,
    stdout: Path | None = None,
) -> Usage:
    """Run a command to its end. Raises `StepFailed` on any exit code but 0."""
    with tempfile.TemporaryFile() as errors:
        source = os.open(stdin or os.devnull, os.O_RDONLY)
        target = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_EXCL) if stdout else None
        try:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=source,
                stdout=errors if target is None else target,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C", **env},
                cwd=cwd,
            )
            # Not `wait`: only wait4 tells the memory of just this process and its children.
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        finally:
            os.close(source)
            if target is not None:
                os.close(target)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-2000:]
            raise StepFailed(f"{' '.join(command)}: exit code {process.returncode}\n{said}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def warm(path: Path | str, holes: Path, shift: int = 0) -> None:
    """Read what `path` holds into the page cache, leaving out the holes of the file `holes`.

    `path` is that file itself, or a device on its bytes from `shift` on: holes read through
    a device would fill memory with zeros.
    """
    file = os.open(path, os.O_RDONLY)
    shape = os.open(holes, os.O_RDONLY)
    buffer = bytearray(_READ)
    try:
        size, offset = os.fstat(shape).st_size, shift
        while offset < size:
            try:
                offset = os.lseek(shape, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole until the end
                break
            stop = os.lseek(shape, offset, os.SEEK_HOLE)
            while offset < stop:
                view = memoryview(buffer)[: min(_READ, stop - offset)]
                if not (got := os.preadv(file, [view], offset - shift)):
                    return
                offset += got
    finally:
        os.close(file)
        os.close(shape)


def stored(path: Path) -> int:
    """Bytes in all files at or below `path`, as their lengths say."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
