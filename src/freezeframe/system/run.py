"""The one way to run another program."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from freezeframe.core.errors import ToolFailed, ToolMissing
from freezeframe.system.tools import package_of

log = logging.getLogger("freezeframe.run")

#: Administrators' programs lie here; a user's PATH often leaves these out.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return PATH with the administrators' folders at its end."""
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*parts, *(p for p in _SBIN if p not in parts)])


def foreign_environment() -> dict[str, str]:
    """Return the environment for programs that are none of ours: scripts, databases' clients.

    PATH as above, English messages, and not the repository's password.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FREEZEFRAME_PASSWORD", "RESTIC_PASSWORD"))
    }
    return {**kept, "LC_ALL": "C", "PATH": search_path()}


def which(tool: str) -> str | None:
    """Return the full path of a program, or None where it is not installed."""
    return shutil.which(tool, path=search_path())


def _prepared(command: Sequence[str], purpose: str) -> tuple[str, str, dict[str, str]]:
    """Return where a program is, the line to be logged and told, and its environment."""
    path = which(command[0])
    if path is None:
        package, use = package_of(command[0])
        raise ToolMissing(command[0], package, purpose or use)
    line = shlex.join(command)
    log.debug("+ %s", line)
    return path, line, dict(os.environ, LC_ALL="C", PATH=search_path())


def run(
    command: Sequence[str],
    *,
    purpose: str = "",
    stdin: bytes | None = None,
    ok: Sequence[int] = (0,),
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return what it printed (bytes).

    Logs a line that can be pasted into a shell. English messages (LC_ALL=C).
    Raises `ToolMissing` where it is not installed, `ToolFailed` on an exit code that is
    not in `ok`, or when `timeout` seconds have passed.
    """
    path, line, env = _prepared(command, purpose)
    try:
        done = subprocess.run(
            [path, *command[1:]],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=env,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(line, -1, f"no end after {timeout:.0f} s") from error
    if done.returncode not in ok:
        output = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        raise ToolFailed(line, done.returncode, output)
    return done


def run_watched(
    command: Sequence[str], watch: Callable[[bytes], None], *, purpose: str = ""
) -> None:
    """Run a program to its end, and hand on what it prints while it does.

    `watch` gets pieces of its standard output. Ended where the caller is interrupted. Errors
    as `run`; `output` is what it wrote to standard error.
    """
    path, line, env = _prepared(command, purpose)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
        )
        try:
            if process.stdout is not None:
                with process.stdout as pipe:
                    while text := os.read(pipe.fileno(), 4096):
                        watch(text)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if code:
        raise ToolFailed(line, code, said)
