"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# No test asserts a time, hypothesis's own included: machines that test are busy.
settings.register_profile("freezeframe", deadline=None, print_blob=True)
settings.load_profile("freezeframe")

#: Begun first, in this order: what is long, so that the many short ones fill what is left.
_FIRST = ("root", "test_providers", "test_hot", "test_tracking", "vm")


# Before xdist's own, which writes the groups into the tests' names.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process runs in a row, where there are several (`pytest -n 2`).

    All that share this machine's devices; otherwise those of a file.
    """
    here = Path(__file__).parent

    def group(item: pytest.Item) -> str:
        return "root" if item.path.is_relative_to(here / "root") else str(item.path)

    def turn(item: pytest.Item) -> int:
        room = item.path.relative_to(here).parts[0]
        names = {room} if room == "root" else {room, item.path.stem} if room == "vm" else set()
        return min((_FIRST.index(name) for name in names if name in _FIRST), default=len(_FIRST))

    items.sort(key=turn)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
