"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# No test asserts a time, hypothesis's own included: machines that test are busy.
settings.register_profile("freezeframe", deadline=None, print_blob=True)
settings.load_profile("freezeframe")


_HERE = Path(__file__).parent


class _Rooms(LoadScopeScheduling):
    """Gives each process a file at a time, and one process all that share real devices.

    What one program left behind, and devices the kernel is to forget, are everybody's there.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/root" if file.startswith("tests/root/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Share the tests out, for `pytest -n 2`."""
    return _Rooms(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the room that one process has to itself; put machines' tests between the others.

    A machine keeps a core and more busy for minutes, so two at once gain nothing, and one that
    is left for the end is waited for.
    """
    rooms: dict[str, dict[Path, list[pytest.Item]]] = {"root": {}, "vm": {}, "": {}}
    for item in items:
        room = item.path.relative_to(_HERE).parts[0]
        rooms[room if room in rooms else ""].setdefault(item.path, []).append(item)
    machines, rest = list(rooms["vm"].values()), list(rooms[""].values())
    every = max(len(rest) // max(len(machines), 1), 1)
    order = list(rooms["root"].values())
    for number, machine in enumerate(machines):
        order += [machine, *rest[number * every : (number + 1) * every]]
    order += rest[len(machines) * every :]
    items[:] = [item for file in order for item in file]
