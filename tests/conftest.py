"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from freezeframe.testing.left_out import LeftOutWrites

# No test asserts a time, hypothesis's own included: machines that test are busy.
settings.register_profile("freezeframe", deadline=None, print_blob=True)
settings.load_profile("freezeframe")


_HERE = Path(__file__).parent
_ALONE = [
    f"tests/root/test_{name}.py"
    for name in (
        "end_to_end",
        "exfat_used",
        "ext_used",
        "failures",
        "files",
        "fixture_disks",
        "lvm",
        "ntfs_used",
        "shrink",
        "xfs_used",
    )
]


class _Rooms(LoadScopeScheduling):
    """Gives each process a file at a time, and one process all that share real devices.

    What one program left behind, and devices the kernel is to forget, are everybody's there;
    files whose disks nobody else sees are given out singly.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/root" if file.startswith("tests/root/") and file not in _ALONE else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Share the tests out, for `pytest -n 3`."""
    return _Rooms(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the room that one process has to itself: it takes longest."""
    items.sort(key=lambda item: not item.path.is_relative_to(_HERE / "root"))


#: Rooms whose tests track writes of real disks.
_TRACKING = ("root", "contract", "cli")
_RUNS = 3
_left_out: LeftOutWrites | None = None


@pytest.fixture(scope="session", autouse=True)
def left_out_writes() -> Iterator[None]:
    """Count what the kernel leaves out, for `pytest_runtest_protocol`."""
    global _left_out
    if os.geteuid():
        yield
        return
    _left_out = LeftOutWrites()
    try:
        yield
    finally:
        _left_out.close()
        _left_out = None


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test again that failed while the kernel left out a write: see `LeftOutWrites`."""
    if not any(item.path.is_relative_to(_HERE / room) for room in _TRACKING):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for _ in range(_RUNS):
        before = _left_out.count() if _left_out is not None else 0
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if not any(report.failed for report in reports):
            break
        if _left_out is None or _left_out.count() == before:
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
