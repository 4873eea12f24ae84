"""Containers of docker and podman, paused for the moment.

Paused processes stand still wherever they are: no more than a power cut's consistency, but for
all filesystems of a container at once. Each takes the tenth of a second and more, which is
added to the time everything is held. So only those are paused that have the label
`freezeframe.pause=true` or are named in the settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterResult, WriterVeto
from freezeframe.shadow.writers.commands import CommandFailed, Commands, Step, Steps
from freezeframe.shadow.writers.settings import load_settings
from freezeframe.system.run import which

#: Engine → what is there where it may have containers; else it is not even asked.
_ENGINES: Mapping[str, Sequence[Path]] = {
    "docker": (Path("/run/docker.sock"), Path("/var/run/docker.sock")),
    "podman": (Path("/var/lib/containers/storage"), Path("/run/podman/podman.sock")),
}
#: Both engines know these; the labels themselves each prints in its own way.
_LIST = ("ps", "--no-trunc", "--format", "{{.ID}}\t{{.Names}}")
_DETAILS = "{{json .Mounts}}\n{{json .GraphDriver}}"
_LABELLED = ("ps", "--no-trunc", "-q", "--filter", "label=freezeframe.pause=true")
#: Seconds: to look, and to let go.
_LOOK = 2.0
_THAW = 20.0


class _Volume(msgspec.Struct, frozen=True):
    Source: str = ""


class _Driver(msgspec.Struct, frozen=True):
    Data: dict[str, str] | None = None


class Container(Writer):
    """One container that runs."""

    kind = "containers"
    stops_others = True

    def __init__(self, engine: str, program: str, number: str, name: str) -> None:
        """`program` is the engine's client by its full path; `number` the container's id."""
        self._engine = engine
        self._program = program
        self._number = number
        self._title = name
        self._steps = Steps([Step((program, "pause", number), (program, "unpause", number))], _THAW)
        self._broken = ""

    @property
    def name(self) -> str:
        """`docker:web`."""
        return f"{self._engine}:{self._title}"

    def about(self) -> str:
        """Say which it is."""
        return f"{self._engine} container {self._number[:12]}"

    def paths(self) -> tuple[Path, ...]:
        """Return the folder it writes to, and its volumes. `FreezeError` where nobody tells."""
        command = (self._program, "inspect", "--format", _DETAILS, self._number)
        volumes, driver = [*Commands().run(command, Deadline.after(_LOOK)).splitlines(), "", ""][:2]
        try:
            data = msgspec.json.decode(driver, type=_Driver | None)
            mounts = msgspec.json.decode(volumes, type=list[_Volume] | None)
        except msgspec.DecodeError as error:
            raise FreezeError(f"{self.name}: what it lies on is not understood: {error}") from error
        own = (data.Data or {}).get("UpperDir", "") if data is not None else ""
        names = [own, *(volume.Source for volume in mounts or ())]
        return tuple(dict.fromkeys(Path(name).resolve() for name in names if name.startswith("/")))

    def freeze(self, deadline: Deadline) -> None:
        """Pause it. `WriterVeto` where it cannot be, as where somebody else has paused it."""
        self._broken = ""
        if self._is_paused():
            raise WriterVeto(
                f"{self.name} is paused already", hint="let it go on, or leave this writer out"
            )
        try:
            self._steps.hold(deadline)
        except CommandFailed as error:
            raise WriterVeto(f"{self.name}: {error}", hint="see whether it still runs") from error

    def _is_paused(self) -> bool:
        command = (self._program, "inspect", "--format", "{{.State.Paused}}", self._number)
        try:
            return Commands().run(command, Deadline.after(_LOOK)).strip() == "true"
        except CommandFailed:
            return False

    def thaw(self) -> None:
        """Let it go on."""
        for error in self._steps.release():
            self._broken = str(error)
            if "not paused" not in error.output and "o such container" not in error.output:
                raise FreezeError(
                    f"{self.name} could not be told to go on: {error}",
                    hint=f"by hand: {self._program} unpause {self._number[:12]}",
                )

    def finish(self, taken: bool) -> WriterResult:
        """Tell that it stood still. `WriterVeto` where it did not."""
        with contextlib.suppress(FreezeError):
            self.thaw()
        if taken and self._broken:
            raise WriterVeto(
                f"{self.name} did not stay paused: {self._broken}",
                hint="see what has stopped or unpaused it, and make the image again",
            )
        return WriterResult(
            "crash", ("its processes stood still; what they had half done is half done",),
            {"id": self._number},
        )  # fmt: skip

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return the command that lets it go on."""
        return self._steps.undo()


class ContainerKind(WriterKind):
    """Containers with the label, or named in the settings."""

    kind = "containers"

    def __init__(
        self,
        names: Sequence[str] | None = None,
        engines: Mapping[str, Sequence[Path]] = _ENGINES,
    ) -> None:
        """`names` of those to pause, in place of the settings'; `engines` as above."""
        self._names = names
        self._engines = engines

    def find(self) -> Sequence[Container]:
        """Ask the engines that are in use here; one that does not answer has none."""
        names = load_settings().containers.pause if self._names is None else self._names
        found: list[Container] = []
        for engine, places in self._engines.items():
            program = which(engine)
            if program is None or not any(place.exists() for place in places):
                continue
            try:
                text = Commands().run((program, *_LIST), Deadline.after(_LOOK))
                labelled = Commands().run((program, *_LABELLED), Deadline.after(_LOOK)).split()
            except CommandFailed:
                continue
            for line in text.splitlines():
                number, _, name = line.partition("\t")
                if name and (number in labelled or name in names or "*" in names):
                    found.append(Container(Path(engine).name, program, number, name))
        return sorted(found, key=lambda writer: writer.name)
