"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# No test asserts a time, hypothesis's own included: machines that test are busy.
settings.register_profile("freezeframe", deadline=None, print_blob=True)
settings.load_profile("freezeframe")

#: Long, and each of these rooms one after the other: they share the machine's devices, or
#: take both its cores. Begun first, so that the many short ones fill what is left.
_IN_A_ROW = ("root", "vm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process runs in a row, where there are several (`pytest -n 2`)."""
    here = Path(__file__).parent

    def room(item: pytest.Item) -> str:
        return item.path.relative_to(here).parts[0]

    def turn(item: pytest.Item) -> int:
        return _IN_A_ROW.index(room(item)) if room(item) in _IN_A_ROW else len(_IN_A_ROW)

    items.sort(key=turn)
    for item in items:
        group = room(item) if room(item) in _IN_A_ROW else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
