"""Writers and providers that fail where they are told to: doubles for faults, and only for those.

What they hold and make are files in a folder, so that another process can see what is left:
`<name>.frozen`, `<name>.held`, `<name>.copy`.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Fit, Provider, Shadow, Volume, Wishes
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.writers.base import Writer, WriterResult, WriterVeto
from freezeframe.system.sysfs import Node


class Fault(enum.Enum):
    """How a step fails."""

    VETO = enum.auto()
    FAIL = enum.auto()
    #: With an error nobody foresaw.
    BREAK = enum.auto()
    #: Until it is let go.
    HANG = enum.auto()
    #: Tells on standard output, and stays there.
    STAY = enum.auto()


@dataclass
class Stage:
    """What doubles share: who did what, and where they put their files."""

    folder: Path
    #: `writer a: freeze`.
    done: list[str] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """Return one of the files."""
        return self.folder / name

    def left(self) -> list[str]:
        """Return the files that are there."""
        return sorted(each.name for each in self.folder.iterdir())


def _act(who: str, step: str, stage: Stage, fault: Fault | None, let_go: threading.Event) -> None:
    stage.done.append(f"{who}: {step}")
    if fault is Fault.VETO:
        raise WriterVeto(f"{who} would not", hint="ask again later")
    if fault is Fault.FAIL:
        raise FreezeError(f"{who} could not")
    if fault is Fault.BREAK:
        raise ZeroDivisionError(f"{who} broke")
    if fault is Fault.HANG:
        # What is frozen is let go by a thaw; from anything else nobody ever comes back.
        (let_go if step in ("freeze", "hold", "commit") else threading.Event()).wait()
    if fault is Fault.STAY:
        os.write(1, b"here\n")
        time.sleep(3600)


class FaultyWriter(Writer):
    """A writer that fails in some steps."""

    kind = "toy"

    def __init__(
        self,
        name: str,
        stage: Stage,
        faults: Mapping[str, Fault] | None = None,
        *,
        undoes: bool = True,
        paths: Sequence[Path] = (),
    ) -> None:
        self._name = name
        self._stage = stage
        self._faults = dict(faults or {})
        self._undoes = undoes
        self._paths = tuple(paths)
        self._let_go = threading.Event()
        self._file = stage.file(f"{name}.frozen")

    @property
    def name(self) -> str:
        """Return its name."""
        return self._name

    def about(self) -> str:
        """Say what it is."""
        return "a double"

    def paths(self) -> tuple[Path, ...]:
        """Return what it was told."""
        return self._paths

    def _step(self, step: str) -> None:
        who = f"writer {self._name}"
        _act(who, step, self._stage, self._faults.get(step), self._let_go)

    def prepare(self, scope: Scope, deadline: Deadline) -> None:
        """Prepare."""
        del scope, deadline
        self._step("prepare")

    def freeze(self, deadline: Deadline) -> None:
        """Freeze: half of it is done before it fails."""
        del deadline
        self._file.touch()
        self._step("freeze")

    def thaw(self) -> None:
        """Thaw."""
        self._step("thaw")
        self._let_go.set()
        self._file.unlink(missing_ok=True)

    def finish(self, taken: bool) -> WriterResult:
        """Say what it is told to say."""
        self._step("finish" if taken else "finish, not taken")
        return WriterResult("application", facts={"taken": str(taken)})

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return what removes its file."""
        return (("/bin/rm", "-f", str(self._file)),) if self._undoes else ()


class FaultyProvider(Provider):
    """A provider that fails in some steps; `wishes.store` is its folder."""

    kind = "toy"
    holds_filesystems = True

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self.stage = Stage(Path(wishes.store))
        self.faults: dict[str, Fault] = {}
        self.label = "a"
        self.let_go = threading.Event()

    @classmethod
    def fit(cls, volume: Volume) -> Fit:
        """Take nothing unless asked to."""
        del volume
        return Fit(True, -1, "a double")

    def file(self, what: str) -> Path:
        """Return the file of what it holds or makes."""
        return self.stage.file(f"{self.name}-{self.label}.{what}")

    def _step(self, step: str) -> None:
        who = f"provider {self.label}"
        _act(who, step, self.stage, self.faults.get(step), self.let_go)

    def prepare(self, deadline: Deadline) -> None:
        """Make room for a copy."""
        del deadline
        self.journal()
        self.file("room").touch()
        self._step("prepare")

    def hold(self, deadline: Deadline) -> None:
        """Hold."""
        del deadline
        self.file("held").touch()
        self._step("hold")

    def commit(self, deadline: Deadline) -> None:
        """Make a copy."""
        del deadline
        self.file("copy").touch()
        self._step("commit")

    def resume(self) -> None:
        """Resume."""
        self._step("resume")
        self.let_go.set()
        self.file("held").unlink(missing_ok=True)

    def shadows(self) -> tuple[Shadow, ...]:
        """Return the copies."""
        return tuple(Shadow(volume, str(self.file("copy"))) for volume in self.volumes)

    def check(self) -> None:
        """Look at the copy."""
        self._step("check")

    def release(self) -> None:
        """Remove everything."""
        self._step("release")
        self.clean(self.record())

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return what lets go."""
        return (("/bin/rm", "-f", str(self.file("held"))),)

    def record(self) -> Mapping[str, str]:
        """Return where it all lies."""
        return {"folder": str(self.stage.folder), "name": self.name, "label": self.label}

    @classmethod
    def clean(cls, record: Mapping[str, str]) -> None:
        """Remove what a record tells of."""
        for each in Path(record["folder"]).glob(f"{record['name']}-{record['label']}.*"):
            each.unlink(missing_ok=True)


def toy_volume(number: int = 0) -> Volume:
    """Return a volume that is none."""
    return Volume(Node(f"toy{number}", f"0:{number}", Path("/nonexistent"), 0), 1 << 20)


def toy_provider(
    name: str, stage: Stage, faults: Mapping[str, Fault] | None = None, label: str = "a"
) -> FaultyProvider:
    """Make a provider of one toy volume."""
    made = FaultyProvider(name, [toy_volume()], Wishes(store=str(stage.folder)))
    made.stage, made.label = stage, label
    made.faults = dict(faults or {})
    return made
