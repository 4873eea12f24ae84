"""Writers and other providers share the moment of an online image, on the real kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow import journal, providers, writers
from freezeframe.shadow.leftovers import remove_kept
from freezeframe.shadow.writers import settings
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.documented import documented_module
from freezeframe.testing.frozen import eventually, is_frozen, mounted_at, mounted_disk
from freezeframe.testing.hot import check_filesystem, last_record, pair, untrack
from freezeframe.testing.inprocess import PASSWORD, Program
from freezeframe.testing.tracking import ensure_mounts

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs" / "shadow-copies.md"
#: Notes each call, and holds a process still.
_HOOK = """#!/bin/sh
echo "$1" >> {log}
test ! -e {log}.veto || test "$1" = thaw || {{ echo "not now" >&2; exit 1; }}
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_mounts()
    monkeypatch.setattr(journal, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(journal, "KEPT", tmp_path / "kept")


@pytest.fixture
def program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Program:
    repo = tmp_path / "repo"
    monkeypatch.setenv("FREEZEFRAME_REPOSITORY", str(repo))
    monkeypatch.setenv("FREEZEFRAME_PASSWORD", PASSWORD)
    program = Program(capfd, repo)
    program("init")
    return program


@dataclass
class Hook:
    """A script in a drop-in folder; everything it was called with."""

    log: Path

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def veto(self) -> None:
        Path(f"{self.log}.veto").touch()


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hook:
    folder = tmp_path / "hooks.d"
    folder.mkdir()
    script, log = folder / "note", tmp_path / "hook.log"
    script.write_text(_HOOK.format(log=log))
    script.chmod(stat.S_IRWXU)
    chosen = settings.Settings(hooks=settings.HookSettings(folder=str(folder)))
    monkeypatch.setattr("freezeframe.shadow.writers.hooks.load_settings", lambda: chosen)
    return Hook(log)


@contextlib.contextmanager
def two_disks(folder: Path) -> Iterator[tuple[str, Path, str, Path]]:
    """Two plain filesystems."""
    with (
        mounted_disk(folder, "ext4", "one", size=64 * MIB) as one,
        mounted_disk(folder, "ext4", "two", size=64 * MIB) as two,
    ):
        try:
            yield one.device, one.point, two.device, two.point
        finally:
            untrack(one.device, two.device)


def records_of(program: Program, folder: Path, devices: tuple[str, str]) -> tuple[int, int]:
    """Restore two disks of the latest image; return the last record on each."""
    found = []
    for device in devices:
        target = folder / "restored.raw"
        target.unlink(missing_ok=True)
        program("restore", "latest", "--disk", device, "--to", target, "--yes")
        check_filesystem("ext4", target)
        with attached(target) as loop, mounted_at(loop, folder / "restored") as point:
            found.append(last_record(point / "records"))
        target.unlink()
    return found[0], found[1]


def test_a_script_shares_the_moment_of_two_disks(
    tmp_path: Path, program: Program, hook: Hook
) -> None:
    """Who writes record n to one and then to two: no record on two is missing on one."""
    with two_disks(tmp_path) as (one, first, two, second):
        with pair(first / "records", second / "records"):
            made = program("backup", one, two)
        before = hook.calls
        assert before[-2:] == ["freeze", "thaw"]
        assert before.count("freeze") == before.count("thaw")
        assert "writers: hooks:" in made.out
        assert "application-consistent, held for" in made.out
        ones, twos = records_of(program, tmp_path, (one, two))
    assert twos in (ones, ones - 1)
    shown = program("--json", "show", "latest").record("image")["manifest"]
    (writer,) = shown["shadow"]["writers"]  # type: ignore[index]
    assert writer["vote"] == "yes"
    assert writer["held_ms"] > 0
    steps = [step["name"] for step in shown["shadow"]["steps"]]  # type: ignore[index]
    assert steps == [
        "prepare writers", "prepare providers", "freeze writers", "freeze filesystems", "hold",
        "commit", "thaw filesystems", "thaw writers", "finish",
    ]  # fmt: skip
    assert "steps: prepare writers" in program("show", "latest").out
    listed = program("--json", "writers").records
    (each,) = (record for record in listed if record.get("kind") == "hooks")
    assert each["last"]["vote"] == "yes"  # type: ignore[index]
    # And without any.
    with two_disks(tmp_path) as (one, _, two, _):
        program("backup", one, two, "--writers", "none")
    assert hook.calls == before
    last = program("--json", "show", "latest").record("image")["manifest"]
    assert "shadow" not in last  # type: ignore[operator]


def test_a_veto_makes_no_image(tmp_path: Path, program: Program, hook: Hook) -> None:
    hook.veto()
    with two_disks(tmp_path) as (one, first, two, _):
        failed = program("backup", one, two, code=1)
        assert "vetoed (freeze writers)" in failed.err
        assert "not now" in failed.err
        assert "→" in failed.err
        # Nothing stays frozen, and who was called to freeze was called to thaw.
        (first / "more").write_bytes(b"more")
        assert hook.calls == ["freeze", "thaw"]
        assert program("--json", "images").records == []
        listed = program("--json", "writers").records
        (each,) = (record for record in listed if record.get("kind") == "hooks")
        assert each["last"]["vote"] == "veto"  # type: ignore[index]
        asked = program("backup", one, "--writers", "nobody", code=2)
        assert "no writer named nobody" in asked.err
    assert journal.running() == []


#: A backup that stays in its window, everything held.
_STAYS = """
import os, pathlib, sys, time
from freezeframe.backup.hot.freezing import Freezing
from freezeframe.cli.main import main
from freezeframe.shadow import journal
from freezeframe.shadow.writers import hooks, settings
journal.RUNNING = pathlib.Path(sys.argv[1])
chosen = settings.Settings(hooks=settings.HookSettings(folder=sys.argv[2]))
hooks.load_settings = lambda: chosen
real = Freezing.read_frozen
def held(self, until):
    done = real(self, until)
    os.write(1, b"in\\n")
    time.sleep(600)
    return done
Freezing.read_frozen = held
main(sys.argv[3:])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_backup_that_ends_in_its_window(
    tmp_path: Path, program: Program, hook: Hook, how: signal.Signals
) -> None:
    """Filesystem and script are let go: at once, or when the limits have passed."""
    with two_disks(tmp_path) as (one, first, _, _):
        limits = ("--writer-limit", "60", "--commit-limit", "60")
        if how is signal.SIGSTOP:
            limits = ("--writer-limit", "4", "--commit-limit", "2")
        process = subprocess.Popen(
            [sys.executable, "-c", _STAYS, journal.RUNNING, hook.log.parent / "hooks.d",
             "backup", "--online", one, *limits],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
            assert hook.calls == ["freeze"]
            assert is_frozen(first)
            process.send_signal(how)
            eventually(lambda: not is_frozen(first))
            eventually(lambda: hook.calls == ["freeze", "thaw"])
        finally:
            process.kill()
            process.communicate()
        (first / "more").write_bytes(b"more")
        # Written to the file a moment after the script was called.
        (found,) = journal.running()
        eventually(found.path.with_suffix(journal.UNDONE).exists)
        assert program("--json", "images").records == []
        told = program("backup", "--online", one).err
        assert "left by a program that died" in told
        assert hook.calls == ["freeze", "thaw"] * 2
    assert journal.running() == []


@pytest.fixture
def mailer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The writer of the documents, and the program it is for, as far as anybody can tell."""
    ended = threading.Event()
    with documented_module(PAGE, "mailer", tmp_path) as module:
        monkeypatch.setattr(writers, "_OWN", {"mailer": "mailer:MailerKind"})

        def run() -> None:
            while not ended.wait(0.01):
                hold, idle = module.SPOOL / "hold", module.SPOOL / "idle"
                with contextlib.suppress(FileNotFoundError):
                    if hold.exists():
                        idle.touch()
                    else:
                        idle.unlink(missing_ok=True)

        thread = threading.Thread(target=run)
        thread.start()
        yield module
        ended.set()
        thread.join()


def test_what_a_writer_says_holds_for_the_volumes_of_its_data(
    tmp_path: Path, program: Program, mailer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_disks(tmp_path) as (one, first, two, second):
        (first / "spool" / "queue").mkdir(parents=True)
        monkeypatch.setattr(mailer, "SPOOL", first / "spool")
        (found,) = (r for r in program("--json", "writers").records if "paths" in r)
        assert found["paths"] == [str(first / "spool")]
        assert found["volumes"] == [one]
        program("backup", one, two)
        record = program("--json", "show", "latest").record("image")["manifest"]
        assert [
            region["consistency"]
            for disk in record["disks"]  # type: ignore[index]
            for region in disk["regions"]
            if region["role"] == "whole"
        ] == ["application-consistent", "frozen"]
        assert "whole (ext4): application-consistent" in program("show", "latest").out
        # Its data are not in this one, so nobody speaks of it.
        program("backup", "--online", two)
        record = program("--json", "show", "latest").record("image")["manifest"]
        assert "shadow" not in record  # type: ignore[operator]
        # Half of its data in the image is none: it is left out, and the image says so.
        (second / "more").mkdir()
        paths = (first / "spool", second / "more")
        monkeypatch.setattr(mailer.Mailer, "paths", lambda _: paths)
        told = program("backup", "--online", one)
        assert "mailer is left out: not all of its data lie in the image" in told.err
        assert "mailer left out" in told.out
        record = program("--json", "show", "latest").record("image")["manifest"]
        (writer,) = record["shadow"]["writers"]  # type: ignore[index]
        assert writer["vote"] == "left out"
        (whole,) = record["disks"][0]["regions"]  # type: ignore[index]
        assert whole["consistency"] == "frozen"
        refused = program("backup", "--online", one, "--writers", "mailer", code=2)
        assert "do not all lie in the image" in refused.err


@pytest.fixture
def reflink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The provider of the documents."""
    with documented_module(PAGE, "reflink", tmp_path):
        monkeypatch.setattr(providers, "_OWN", {"reflink": "reflink:Reflink"})
        yield


@contextlib.contextmanager
def mixed_disks(folder: Path) -> Iterator[tuple[str, Path, str, Path, Path]]:
    """A plain filesystem, and one in a file on an XFS, which shares blocks between files."""
    with (
        mounted_disk(folder, "xfs", "host", size=400 * MIB) as host,
        mounted_disk(folder, "ext4", "one", size=64 * MIB) as one,
    ):
        image = host.point / "two.raw"
        image.touch()
        os.truncate(image, 64 * MIB)
        run(("mkfs.ext4", "-q", "-F", str(image)))
        with attached(image) as two, mounted_at(two, folder / "two") as point:
            try:
                yield one.device, one.point, two, point, host.point
            finally:
                untrack(one.device, two)
                for found in journal.kept():
                    list(remove_kept(found.entry))


@pytest.mark.usefixtures("reflink")
def test_a_plain_disk_and_a_copy_share_the_moment(
    tmp_path: Path, program: Program, hook: Hook
) -> None:
    """Either way round: the copied one written first, or last."""
    with mixed_disks(tmp_path) as (one, first, two, second, host):
        shown = program("disks", two).out
        assert f"online, {two} by reflink: shares the blocks of {host}/two.raw" in shown
        for turn, (early, late) in enumerate([(first, second), (second, first)]):
            names = (early / "records", late / "records")
            for name in names:
                name.unlink(missing_ok=True)
            with pair(*names):
                made = program("backup", one, two, "--provider", f"{one}=hot")
            assert f"shadow copies: {two} by reflink (commit" in made.out
            order = (one, two) if turn == 0 else (two, one)
            ones, twos = records_of(program, tmp_path, order)
            assert twos in (ones, ones - 1)
        assert [path.name for path in host.iterdir()] == ["two.raw"]
        record = program("--json", "show", "latest").record("image")["manifest"]
        assert [disk["path"] for disk in record["disks"]] == [one, two]  # type: ignore[index]
        assert {
            region["consistency"]
            for disk in record["disks"]  # type: ignore[index]
            for region in disk["regions"]
            if region["role"] == "whole"
        } == {"frozen"}
        # Nothing for the engine itself: the window is there all the same.
        with pair(second / "a", second / "b"):
            alone = program("backup", "--online", two).out
        assert "paused for" in alone
        assert f"shadow copies: {two} by reflink" in alone
        program("restore", "latest", "--to", tmp_path / "restored.raw", "--yes")
        check_filesystem("ext4", tmp_path / "restored.raw")
        program.restic("check", "--read-data")
    assert hook.calls.count("freeze") == hook.calls.count("thaw") >= 2
    assert journal.running() == []


@pytest.mark.usefixtures("reflink", "hook")
def test_shadow_copies_are_kept_until_deleted(tmp_path: Path, program: Program) -> None:
    with mixed_disks(tmp_path) as (one, _, two, second, host):
        with pair(second / "a", second / "b"):
            made = program("--json", "shadow", "create", two, "--name", "noon")
        (shadow,) = made.record("shadow_set")["set"]["shadows"]  # type: ignore[index]
        path = shadow["path"]
        assert (shadow["volume"], shadow["provider"]) == (two, "reflink")
        twice = program("shadow", "create", two, "--name", "noon", code=2)
        assert "there is a set of shadow copies named noon" in twice.err
        # The file beneath this one lies where no blocks are shared: it fails at the commit.
        failed = program("shadow", "create", two, one, code=1)
        assert "failed to commit" in failed.err
        assert len(list(host.iterdir())) == 2
        absent = program("shadow", "create", tmp_path, code=1)
        assert "no block device" in absent.err
        with mounted_at(path, tmp_path / "seen", "-o", "ro,noload") as seen:
            assert last_record(seen / "a") - last_record(seen / "b") in (0, 1)
        listed = program("shadow", "list").out
        assert "noon" in listed
        assert two in listed
        # What is kept is no leftover.
        assert "nothing was left behind" in program("shadow", "cleanup").out
        assert "removed" in program("shadow", "delete", "noon").out
        assert [each.name for each in host.iterdir()] == ["two.raw"]
        assert "no shadow copies are kept" in program("shadow", "list").out
        program("shadow", "delete", "noon", code=2)
    assert journal.kept() == []
