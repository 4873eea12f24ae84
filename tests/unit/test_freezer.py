"""The parts of freezing that need no filesystem: order, quiet, the watchdog's memory."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.shadow.filesystems import MountedFilesystem, OnDisks, freezing_order
from freezeframe.shadow.freezer import FreezeTime, Window
from freezeframe.shadow.quiet import held_logging, quiet
from freezeframe.shadow.stack import Stack, way_to
from freezeframe.shadow.watchdog_process import Watch
from freezeframe.system.freeze import btrfs_uuid
from freezeframe.system.mounts import Mount, parse_mountinfo


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, set[str]]:
    """Names, each sitting on some of those that come earlier in a hidden order."""
    count = draw(st.integers(0, 12))
    hidden = [f"fs{number}" for number in range(count)]
    sits = {
        name: set(draw(st.lists(st.sampled_from(hidden[:number]), max_size=3))) if number else set()
        for number, name in enumerate(hidden)
    }
    shown = draw(st.permutations(hidden))
    return {name: sits[name] for name in shown}


@given(stacks())
def test_what_sits_on_another_comes_first(sits_on: dict[str, set[str]]) -> None:
    order = freezing_order(sits_on)
    assert sorted(order) == sorted(sits_on)
    place = {name: number for number, name in enumerate(order)}
    for name, below in sits_on.items():
        assert all(place[name] < place[other] for other in below)


def test_without_need_the_order_stays() -> None:
    assert freezing_order({"c": set(), "a": set(), "b": {"elsewhere"}}) == ["c", "a", "b"]
    # Impossible, and yet it ends.
    assert sorted(freezing_order({"a": {"b"}, "b": {"a"}, "c": {"a"}})) == ["a", "b", "c"]


def mount(line: str, namespace: int = 0) -> Mount:
    (found,) = parse_mountinfo(line, namespace=namespace)
    return found


def test_the_number_of_a_mount() -> None:
    text = "36 35 98:0 /a /b rw - ext4 /dev/x rw"
    assert mount(text).number == 36
    assert mount(text.replace("36", "x", 1)).number == 0


def test_the_way_into_another_view() -> None:
    assert way_to(mount("1 0 8:1 / / rw - ext4 /dev/x rw")) == "/"
    assert way_to(mount("1 0 8:1 / / rw - ext4 /dev/x rw", 7)) == "/proc/7/root"
    assert way_to(mount("1 0 8:1 / /srv rw - ext4 /dev/x rw", 7)) == "/proc/7/root/srv"


def test_a_filesystem_without_devices() -> None:
    stack = Stack([mount("1 0 0:99 / /t rw - tmpfs tmpfs rw")])
    below = stack.below_filesystem("0:99")
    assert (below.nodes, below.filesystems, below.unknown) == ({}, set(), False)
    # No mount of that table is there: nothing is claimed to be known.
    assert stack.filesystem_of("/proc/self/status") == ""


def filesystem(**changed: object) -> MountedFilesystem:
    values: dict[str, object] = {
        "device": "8:1", "kind": "ext4", "point": "/", "ways": (), "numbers": frozenset({"8:0"}),
        "devices": (), "read_only": False, "freezes": True,
    }  # fmt: skip
    return MountedFilesystem(**{**values, **changed})  # type: ignore[arg-type]


def test_the_same_at_two_moments() -> None:
    before = OnDisks((filesystem(),), ("8:0",))
    assert before.same_as(OnDisks((filesystem(point="/elsewhere"),), ("8:0",)))
    for changed in (
        {"read_only": True},
        {"device": "8:2"},
        {"bottom": frozenset({"8:0"})},
        {"devices": ("/dev/sda2",)},
    ):
        assert not before.same_as(OnDisks((filesystem(**changed),), ("8:0",)))
    assert not before.same_as(OnDisks((), ("8:0",)))
    # Copy-on-write that was put beneath it is no other filesystem.
    assert before.same_as(OnDisks((filesystem(numbers=frozenset({"253:7"})),), ("8:0",)))


def test_times_of_a_window() -> None:
    assert Window().pause == 0
    first = FreezeTime("/a", "ext4", asked=10.0, freeze=1.0, held=5.0, thaw=0.5)
    second = FreezeTime("/b", "ext4", asked=11.0, freeze=2.0, held=2.0, thaw=0.5)
    assert (first.blocked, second.blocked) == (6.5, 4.5)
    assert Window(times=(first, second)).pause == 6.5


def test_no_btrfs_has_no_identity(tmp_path: Path) -> None:
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        assert btrfs_uuid(descriptor) == ""
    finally:
        os.close(descriptor)


# -- quiet ----------------------------------------------------------------------------


class Noting(logging.Handler):
    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("freezeframe.tests.quiet")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers = []
    logger.propagate = True


def test_logging_waits_and_comes_in_order(logger: logging.Logger) -> None:
    everything, errors = Noting(), Noting(logging.ERROR)
    logger.handlers = [everything, errors]
    with held_logging():
        logger.debug("one %s", "and")
        logger.error("two")
        assert everything.texts == errors.texts == []
    assert everything.texts == ["one and", "two"]
    assert errors.texts == ["two"]
    logger.info("three")
    assert everything.texts[-1] == "three"
    assert logger.handlers == [everything, errors]


def test_logging_waits_where_an_error_ends_it(logger: logging.Logger) -> None:
    everything = Noting()
    logger.handlers = [everything]
    logger.propagate = False
    with pytest.raises(ZeroDivisionError), held_logging():
        _ = logger.info("before"), 1 // 0
    assert everything.texts == ["before"]


def test_a_handler_added_within_stays(logger: logging.Logger) -> None:
    former, added = Noting(), Noting()
    logger.handlers = [former]
    with held_logging():
        logger.addHandler(added)
        logger.info("within")
    logger.info("after")
    assert former.texts == ["within", "after"]
    assert added.texts == ["within", "after"]


def test_quiet_is_undone() -> None:
    before = gc.isenabled(), sys.dont_write_bytecode
    with quiet():
        assert (gc.isenabled(), sys.dont_write_bytecode) == (False, True)
    assert (gc.isenabled(), sys.dont_write_bytecode) == before


# -- the watchdog's memory ------------------------------------------------------------


class Pretended(Watch):
    """A watchdog whose thaws are a list of answers instead of the kernel's."""

    def __init__(self, count: int, limit: float = 3600.0) -> None:
        super().__init__(list(range(count)), [f"fs{n}" for n in range(count)], limit, 0)
        self.tried: list[int] = []
        self.code = 0

    def _start(self, index: int) -> int:
        self.tried.append(index)
        pid = os.fork()
        if not pid:
            os._exit(self.code)
        return pid


def test_nothing_is_thawed_that_was_not_announced() -> None:
    watch = Pretended(3)
    for text in ("arm", "about 0", "failed 0", "about 1", "frozen 1", "thawed 1"):
        assert watch.message(text) == ""
    watch.thaw_all("test")
    assert watch.tried == []
    assert watch.message("disarm") == "thawed"


def test_certain_ones_first_then_the_one_under_way() -> None:
    watch = Pretended(3)
    for text in ("arm", "about 0", "frozen 0", "about 1", "frozen 1", "about 2"):
        watch.message(text)
    watch.thaw_all("test")
    assert watch.tried == [1, 0, 2]
    assert watch.message("ask") == "thawed 1 0 2"
    # The call that was under way returns; it has been thawed already.
    watch.message("frozen 2")
    watch.thaw_all("test")
    assert watch.tried == [1, 0, 2]
    assert watch.message("arm") == ""
    assert watch.message("disarm") == "thawed"


def test_what_is_not_frozen_yet_is_tried_again() -> None:
    watch = Pretended(1)
    watch.code = 1
    watch.message("arm")
    watch.message("about 0")
    watch.thaw_all("test")
    watch.thaw_all("test")
    assert watch.tried == [0, 0]
    watch.message("frozen 0")
    watch.code = 0
    watch.thaw_all("test")
    assert watch.message("disarm") == "thawed 0"


def test_a_failed_thaw_is_tried_again_and_another_s_is_not_ours() -> None:
    watch = Pretended(1)
    watch.code = 2
    watch.message("arm")
    watch.message("about 0")
    watch.message("frozen 0")
    watch.thaw_all("test")
    watch.code = 1  # somebody else thawed it
    watch.thaw_all("test")
    watch.thaw_all("test")
    assert watch.tried == [0, 0]
    assert watch.message("disarm") == "thawed"


def test_the_clock() -> None:
    watch = Pretended(1, limit=0.02)
    assert watch.wait() is None
    watch.message("arm")
    watch.message("about 0")
    watch.message("frozen 0")
    left = watch.wait()
    assert left is not None
    assert left <= 0.02
    watch.expire()
    time.sleep(0.03)
    watch.expire()
    assert watch.message("disarm") == "thawed 0"
    assert watch.wait() is None
