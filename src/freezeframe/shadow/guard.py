"""The program's side of the guard: starting it, and telling it what is held."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow import guard_process
from freezeframe.shadow.companion import Companion
from freezeframe.system.run import search_path

#: The package lies in this folder: all that the guard needs of it is the standard library's.
_PLACE = str(Path(guard_process.__file__).parents[2])
_PROGRAM = (
    f"import sys; sys.path.insert(0, {_PLACE!r});"
    f" from {guard_process.__name__} import main; main(sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class Hold:
    """One thing that is about to be held."""

    name: str
    #: So long at most.
    seconds: float
    #: Command lines that let it go, programs by their full paths.
    undo: Sequence[Sequence[str]] = ()

    @property
    def ends(self) -> bool:
        """Whether only the end of this program lets it go where this program cannot."""
        return not self.undo


class Guard(Companion):
    """A process that lets go what this one holds when this one cannot.

    When this process ends in any way, SIGKILL included, and when the time of a hold is up.
    A hold without commands ends with this process; where it is not let go two seconds after
    its time was up, the guard kills this process.
    """

    what = "the guard that lets go writers and volumes in an emergency"

    def __init__(self, done: Path) -> None:
        """`done` is a file that it makes when it has let go what a dead program held."""
        super().__init__()
        self._done = done

    def command(self, channel: int, process: int) -> list[str]:
        """Return its command line."""
        python = [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM]
        return [*python, str(channel), str(process), str(self._done)]

    def environment(self) -> Mapping[str, str]:
        """Return what commands need: a password of this program is none of that."""
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        return {"PATH": search_path(), "LC_ALL": "C", **kept}

    def hold(self, holds: Iterable[Hold]) -> None:
        """Say what is about to be held: the time runs from now. `FreezeError` if it has ended."""
        told = [
            {
                "name": hold.name,
                "seconds": hold.seconds,
                "undo": [list(command) for command in hold.undo],
                "ends": hold.ends,
            }
            for hold in holds
        ]
        if not told:
            return
        text = json.dumps({"hold": told})
        if len(text.encode()) > guard_process.LONGEST:
            raise FreezeError(
                "the commands that would thaw everything in an emergency are too long",
                hint="image fewer volumes, or with fewer writers, at once",
            )
        self.tell(text)

    def free(self, names: Sequence[str]) -> tuple[str, ...]:
        """Say what was let go; return what the guard had let go before.

        Empty also where it has ended: a guard that died lets nothing go.
        """
        answer = self.ask(json.dumps({"free": list(names)})) if names else ""
        found: list[str] = json.loads(answer or "[]")
        return tuple(found)
