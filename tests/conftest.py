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
    """Begin with the room that one process has to itself: it takes longest."""
    items.sort(key=lambda item: not item.path.is_relative_to(_HERE / "root"))
