"""What is special about a folder as a store."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.core.errors import StoreError, UsageError
from freezeframe.store import local
from freezeframe.store.base import CONFIG_NAME, Kind
from freezeframe.store.local import LocalStore
from freezeframe.store.open import open_store
from freezeframe.testing.store_contract import name_of

NAME = name_of(b"data")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "repository")
    made.create()
    made.put(Kind.CONFIG, CONFIG_NAME, [b"config"])
    return made


def test_it_lies_as_restic_lays_it(store: LocalStore) -> None:
    root = Path(store.location)
    store.put(Kind.DATA, NAME, [b"data"])
    store.put(Kind.KEYS, NAME, [b"data"])
    assert (root / "data" / NAME[:2] / NAME).read_bytes() == b"data"
    assert (root / "keys" / NAME).read_bytes() == b"data"
    assert sorted(path.name for path in root.iterdir()) == sorted(Kind)
    assert len(list((root / "data").iterdir())) == 256


def test_only_the_owner_may_read(store: LocalStore) -> None:
    store.put(Kind.DATA, NAME, [b"data"])
    path = Path(store.location) / "data" / NAME[:2] / NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_foreign_names_are_not_listed(store: LocalStore) -> None:
    root = Path(store.location)
    for foreign in (f"{NAME}-tmp-123", NAME.upper(), ".nfs0001", "lost+found"):
        (root / "index" / foreign).write_bytes(b"x")
    # Right name, wrong folder: `get` would not find it.
    (root / "data" / ("00" if NAME[:2] != "00" else "01") / NAME).write_bytes(b"x")
    assert store.list(Kind.INDEX) == []
    assert store.list(Kind.DATA) == []


def test_unfinished_files_are_ignored_and_go_when_they_are_old(store: LocalStore) -> None:
    folder = Path(store.location) / "data" / "ab"
    old, new = folder / f"{local._UNFINISHED}1", folder / f"{local._UNFINISHED}2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert store.list(Kind.DATA) == []
    assert store.tidy(3600) == 1
    assert not old.exists()
    assert new.exists()


def test_nothing_is_left_where_a_part_cannot_be_written(store: LocalStore) -> None:
    with pytest.raises(TypeError):
        store.put(Kind.DATA, NAME, [b"da", 5])  # type: ignore[list-item]
    assert not any((Path(store.location) / "data" / NAME[:2]).iterdir())


def test_a_folder_that_a_copy_dropped_is_made_again(store: LocalStore) -> None:
    root = Path(store.location)
    (root / "locks").rmdir()
    (root / "data" / NAME[:2]).rmdir()
    assert store.list(Kind.LOCKS) == []
    assert store.list(Kind.DATA) == []
    store.put(Kind.LOCKS, NAME, [b"lock"])
    store.put(Kind.DATA, NAME, [b"data"])
    assert store.get(Kind.LOCKS, NAME) == b"lock"


def test_an_unmounted_disk_is_not_written_below(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with pytest.raises(StoreError) as caught:
        LocalStore(mountpoint).put(Kind.DATA, NAME, [b"data"])
    assert "mounted" in caught.value.hint
    assert not any(mountpoint.iterdir())


def test_a_folder_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        LocalStore(tmp_path / "file").create()


def test_filesystems_without_links_get_their_files_all_the_same(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store.put(Kind.DATA, NAME, [b"data"])
    assert store.get(Kind.DATA, NAME) == b"data"
    with pytest.raises(StoreError, match="exists already"):
        store.put(Kind.DATA, NAME, [b"data"])
    assert [name for name, _ in store.list(Kind.DATA)] == [NAME]
    assert len(list((Path(store.location) / "data" / NAME[:2]).iterdir())) == 1


def test_a_file_size_limit_leaves_no_trace(store: LocalStore) -> None:
    """A write that is cut short, as on a full disk, made by the kernel."""
    script = (
        "import resource, signal, sys\n"
        "from freezeframe.store.local import LocalStore\n"
        "from freezeframe.store.base import Kind\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "LocalStore(sys.argv[1]).put(Kind.DATA, sys.argv[2], [bytes(60_000), bytes(60_000)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, store.location, NAME], capture_output=True, check=False
    )
    assert b"StoreError" in done.stderr
    assert not any((Path(store.location) / "data" / NAME[:2]).iterdir())


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("local:/a/b:c").location == "/a/b:c"
    assert open_store("/a/b:c").location == "/a/b:c"
    assert open_store("./b:c").location == str(tmp_path / "b:c")
    assert open_store("r").location == str(tmp_path / "r")
    for bad in ("sftp:host:/x", "s3:bucket", "", "local:"):
        with pytest.raises(UsageError):
            open_store(bad)
