"""QEMU's control socket: commands as JSON, a line each. Source: QEMU's `qmp-spec`."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError

#: Seconds an answer may take; a busy emulator answers between two stretches of guest code.
_PATIENCE = 20.0


class QmpFailed(FreezeframeError):
    """QEMU refused a command, or is gone."""


class JsonSocket(Closing):
    """Sends objects to a unix socket and takes objects from it, one a line."""

    def __init__(self, path: Path, *, patience: float = _PATIENCE) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(patience)
        self._left = b""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise QmpFailed(f"{path.name}: {error.strerror or error}") from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, message: Mapping[str, object]) -> None:
        """Send one object. Raises `QmpFailed`."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise QmpFailed(f"QEMU is gone: {error}") from error

    def receive(self) -> dict[str, object]:
        """Return the next object. Raises `QmpFailed` where none comes."""
        while b"\n" not in self._left:
            try:
                more = self._socket.recv(65536)
            except OSError as error:
                raise QmpFailed(f"no answer: {error}") from error
            if not more:
                raise QmpFailed("QEMU is gone")
            self._left += more
        line, _, self._left = self._left.partition(b"\n")
        try:
            found: object = json.loads(line)
        except ValueError as error:
            raise QmpFailed("what came is no JSON") from error
        if not isinstance(found, dict):
            raise QmpFailed("what came is no object")
        return found


class Qmp(Closing):
    """A conversation with one QEMU. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._socket = JsonSocket(path)
        self._socket.receive()
        self.execute("qmp_capabilities")

    @classmethod
    def when_there(cls, path: Path, *, patience: float = _PATIENCE) -> Qmp:
        """Connect as soon as QEMU listens. Raises `QmpFailed` where it does not in time."""
        until = time.monotonic() + patience
        while True:
            try:
                return cls(path)
            except QmpFailed:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        """Hang up; QEMU goes on."""
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command and return its answer. Raises `QmpFailed`."""
        message: dict[str, object] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._socket.send(message)
        while True:
            answer = self._socket.receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpFailed(f"{command}: {answer['error']}")


def ping_agent(path: Path) -> bool:
    """Whether the guest agent behind a socket answers."""
    try:
        with JsonSocket(path, patience=0.5) as agent:
            agent.send({"execute": "guest-ping"})
            return "return" in agent.receive()
    except QmpFailed:
        return False
