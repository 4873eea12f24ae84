"""Making, opening and checking repositories, whole and damaged."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from freezeframe.core.errors import (
    FreezeframeError,
    NoRepository,
    ObjectMissing,
    RepositoryDamaged,
    RepositoryLocked,
    RepositoryUnsupported,
    UsageError,
    WrongPassword,
)
from freezeframe.core.progress import Silent
from freezeframe.repo.check import Problem, check
from freezeframe.repo.crypto import Sealer
from freezeframe.repo.keys import read_key, unwrap
from freezeframe.repo.pack import BlobKind, encode_header, open_header
from freezeframe.repo.repository import Repository, create_repository, open_repository
from freezeframe.repo.sealed import seal_text
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.structs import KeyFile
from freezeframe.repo.unlock import Unlocked
from freezeframe.store.base import CONFIG_NAME, Kind
from freezeframe.store.local import LocalStore
from freezeframe.store.memory import MemoryStore
from freezeframe.testing.repositories import (
    PASSWORD,
    flip_bit,
    local_repository,
    memory_repository,
    object_path,
    overwrite,
    save_file,
)


def found(repository: Repository, *, read_data: bool = True) -> list[Problem]:
    return check(repository, read_data=read_data, progress=Silent())


def damaged(repository: Repository, *, read_data: bool = True) -> list[str]:
    problems = found(repository, read_data=read_data)
    return [f"{problem.object}: {problem.text}" for problem in problems if problem.damage]


# -- making and opening ----------------------------------------------------------------


def test_a_new_repository_opens_and_is_empty(tmp_path: Path) -> None:
    made = local_repository(tmp_path / "r")
    opened = open_repository(LocalStore(tmp_path / "r"), PASSWORD)
    assert opened.config == made.config
    assert opened.key == made.key
    assert opened.config.version == 2
    assert opened.snapshots() == []
    assert opened.load_index().total == 0
    assert found(opened) == []


def test_a_repository_is_never_made_over_another(tmp_path: Path) -> None:
    made = local_repository(tmp_path / "r")
    with pytest.raises(UsageError, match="already"):
        local_repository(tmp_path / "r")
    # Nor where only its keys are left: with a config brought back it can be opened again.
    object_path(tmp_path / "r", Kind.CONFIG).unlink()
    with pytest.raises(UsageError, match="already"):
        local_repository(tmp_path / "r")
    with pytest.raises(RepositoryDamaged, match="config"):
        open_repository(made.store, PASSWORD)


def test_an_empty_password_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create_repository(LocalStore(tmp_path / "r"), "")
    assert not (tmp_path / "r").exists()


def test_no_repository(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoRepository) as caught:
            open_repository(LocalStore(place), PASSWORD)
        assert caught.value.exit_code == 10
        assert "init" in caught.value.hint


def test_passwords() -> None:
    repository = memory_repository()
    second = repository.add_password("zwei ünd \udcff bytes")
    assert [key.current for key in repository.keys()].count(True) == 1
    assert {key.id for key in repository.keys()} == {repository.key_id, second}
    other = open_repository(repository.store, "zwei ünd \udcff bytes")
    assert other.key == repository.key
    assert other.key_id == second
    with pytest.raises(WrongPassword) as caught:
        open_repository(repository.store, "wrong")
    assert caught.value.exit_code == 12
    with pytest.raises(UsageError):
        repository.remove_key(repository.key_id)
    with pytest.raises(UsageError):
        repository.add_password("")
    other.remove_key(repository.key_id)
    with pytest.raises(ObjectMissing):
        other.remove_key(repository.key_id)
    with pytest.raises(WrongPassword):
        open_repository(repository.store, PASSWORD)


def _sealed_config(repository: Repository, text: bytes) -> None:
    repository.store.remove(Kind.CONFIG, CONFIG_NAME)
    sealed = seal_text(Sealer(repository.key), text, compress=False)
    repository.store.put(Kind.CONFIG, CONFIG_NAME, [sealed])


def test_other_formats_are_refused() -> None:
    repository = memory_repository()
    _sealed_config(repository, b'{"version":1,"id":"x","chunker_polynomial":"1"}')
    with pytest.raises(RepositoryUnsupported, match="format 1") as caught:
        open_repository(repository.store, PASSWORD)
    assert "restic migrate upgrade_repo_v2" in caught.value.hint
    _sealed_config(repository, b'{"version":3,"shape":"unknown"}')
    with pytest.raises(RepositoryUnsupported, match="format 3"):
        open_repository(repository.store, PASSWORD)
    _sealed_config(repository, b'{"version":2,"id":5}')
    with pytest.raises(RepositoryDamaged, match="config"):
        open_repository(repository.store, PASSWORD)


# -- key files -------------------------------------------------------------------------


def test_a_damaged_key_does_not_hide_a_good_one(tmp_path: Path) -> None:
    repository = local_repository(tmp_path / "r")
    names = [repository.key_id, *(repository.add_password(f"more {n}") for n in range(2))]
    flip_bit(object_path(tmp_path / "r", Kind.KEYS, names[0]), 30)
    overwrite(object_path(tmp_path / "r", Kind.KEYS, names[1]), b"")
    assert open_repository(repository.store, "more 1").key == repository.key
    with pytest.raises(WrongPassword, match="damaged"):
        open_repository(repository.store, PASSWORD)
    assert [key.id for key in repository.keys()] == [names[2]]
    assert {problem.object for problem in found(repository)} == {
        f"keys/{name}" for name in names[:2]
    }
    overwrite(object_path(tmp_path / "r", Kind.KEYS, names[2]), b"{}")
    with pytest.raises(RepositoryDamaged, match="keys/"):
        open_repository(repository.store, PASSWORD)


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf": "argon2"},
        {"N": 3},
        {"N": 0},
        {"N": 1 << 40},
        {"r": 0},
        {"r": 1 << 30},
        {"p": -1},
        {"p": 1 << 30},
        {"N": 1 << 70},
    ],
)
def test_a_key_that_asks_for_nonsense_is_refused_at_once(changes: dict[str, object]) -> None:
    repository = memory_repository()
    key = read_key(repository.store, repository.key_id)
    with pytest.raises(RepositoryDamaged):
        unwrap(msgspec.structs.replace(key, **changes), PASSWORD, "x")


def test_fuzzed_key_files() -> None:
    repository = memory_repository()
    text = repository.store.get(Kind.KEYS, repository.key_id)
    rnd = random.Random(1)
    for _ in range(300):
        broken = bytearray(text)
        for _ in range(rnd.randrange(1, 4)):
            broken[rnd.randrange(len(broken))] = rnd.randrange(32, 127)
        store = MemoryStore()
        store.put(Kind.KEYS, hashlib.sha256(broken).hexdigest(), [broken])
        try:
            key = read_key(store, hashlib.sha256(broken).hexdigest())
        except RepositoryDamaged:
            continue
        # Deriving takes a tenth of a second: only keys that ask for something else are tried.
        if (key.N, key.r, key.p) != (1 << 15, 8, 1) and key.N * key.r * key.p < 1 << 20:
            try_to_unwrap(key)


def try_to_unwrap(key: KeyFile) -> None:
    with contextlib.suppress(FreezeframeError):
        assert unwrap(key, PASSWORD, "x") is None


# -- snapshots -------------------------------------------------------------------------


def test_snapshots_come_oldest_first() -> None:
    repository = memory_repository()
    zone = dt.timezone(dt.timedelta(hours=5))
    moments = [
        dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 16, tzinfo=zone),
        dt.datetime(2023, 1, 1, tzinfo=zone),
    ]
    saved = [
        repository.save_snapshot(Snapshot.new(time=moment, tree="ab" * 32, paths=["/x"]))
        for moment in moments
    ]
    assert repository.snapshots() == [saved[2], saved[1], saved[0]]
    assert saved[0].short_id == saved[0].id[:8]
    assert repository.load_snapshot(saved[0].id) == saved[0]
    repository.remove_snapshot(saved[0].id)
    assert repository.snapshots() == [saved[2], saved[1]]
    with pytest.raises(ObjectMissing):
        repository.remove_snapshot(saved[0].id)


def test_a_damaged_snapshot_does_not_hide_the_others(tmp_path: Path) -> None:
    repository = local_repository(tmp_path / "r")
    shots = [save_file(repository, [b"%d" % number]) for number in range(3)]
    flip_bit(object_path(tmp_path / "r", Kind.SNAPSHOTS, shots[1].id), 40)
    with pytest.raises(RepositoryDamaged, match=shots[1].id):
        repository.snapshots()
    told: list[RepositoryDamaged] = []
    assert repository.snapshots(on_damage=told.append) == [shots[0], shots[2]]
    assert [error.name for error in told] == [shots[1].id]


# -- checking --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = local_repository(tmp_path_factory.mktemp("template") / "r")
    rnd = random.Random(7)
    save_file(repository, [rnd.randbytes(20_000) for _ in range(6)], pack_size=50_000)
    return repository


@pytest.fixture
def filled(template: Repository, tmp_path: Path) -> Repository:
    """Give each test a copy of its own: making one takes longer."""
    shutil.copytree(template.store.location, tmp_path / "r")
    store = LocalStore(tmp_path / "r")
    return Repository(Unlocked(store, template.config, template.key, template.key_id))


def folder_of(repository: Repository) -> Path:
    return Path(repository.store.location)


def data_packs(repository: Repository) -> list[str]:
    """Names of the packs that hold data blobs, not trees."""
    index = repository.load_index()
    return [
        index.pack_name(int(number))
        for number in sorted(set(index.columns(BlobKind.DATA).packs.tolist()))
    ]


def test_a_whole_repository_has_no_problem(filled: Repository) -> None:
    assert found(filled, read_data=False) == []
    assert found(filled) == []


def _cut(path: Path) -> None:
    overwrite(path, path.read_bytes()[:-10])


def _empty(path: Path) -> None:
    overwrite(path, b"")


def _grow(path: Path) -> None:
    overwrite(path, path.read_bytes() + b"more")


@pytest.mark.parametrize("harm", [_cut, _empty, _grow, Path.unlink])
@pytest.mark.parametrize("kind", [Kind.INDEX, Kind.SNAPSHOTS, Kind.DATA, Kind.KEYS])
def test_what_is_cut_or_gone_is_named(
    filled: Repository, kind: Kind, harm: Callable[[Path], None]
) -> None:
    if kind is Kind.KEYS:
        name = filled.add_password("second")
    elif kind is Kind.DATA:
        name = data_packs(filled)[0]
    else:
        name = filled.store.list(kind)[0][0]
    harm(object_path(folder_of(filled), kind, name))
    for read_data in (False, True):
        problems = damaged(filled, read_data=read_data)
        gone = harm is Path.unlink
        if gone and kind in (Kind.SNAPSHOTS, Kind.KEYS):
            assert problems == []  # nobody can know that it was ever there
        elif gone and kind is Kind.INDEX:
            assert any(text.startswith("snapshots/") for text in problems)
        else:
            assert any(text.startswith(f"{kind}/{name}") for text in problems), problems
        if kind is Kind.DATA and (gone or harm is _empty or (harm is _cut and read_data)):
            hit = [text for text in problems if text.startswith("snapshots/")]
            assert bool(hit) == (harm is not _cut), problems


@pytest.mark.parametrize("kind", [Kind.INDEX, Kind.SNAPSHOTS, Kind.KEYS, Kind.LOCKS, Kind.CONFIG])
def test_a_huge_file_is_not_read_into_memory(filled: Repository, kind: Kind) -> None:
    """A tebibyte of holes: named, not read."""
    name = CONFIG_NAME if kind is Kind.CONFIG else "0" * 64
    path = object_path(folder_of(filled), kind, name)
    if path.exists():
        path.chmod(0o600)
    with path.open("ab") as file:
        file.truncate(1 << 40)
    if kind is Kind.LOCKS:
        with pytest.raises(RepositoryLocked, match="too many"):
            filled.lock().acquire()
        assert filled.unlock() == 0
    elif kind is Kind.CONFIG:
        with pytest.raises(RepositoryDamaged, match="too many"):
            open_repository(filled.store, PASSWORD)
    else:
        assert any(text.startswith(f"{kind}/{name}") for text in damaged(filled))


def test_every_flipped_byte_of_a_pack_is_found(filled: Repository) -> None:
    """One in each part: blobs, their tags, header, its length."""
    for name, size in filled.store.list(Kind.DATA):
        path = object_path(folder_of(filled), Kind.DATA, name)
        for offset in (0, size // 3, size // 2, size - 60, size - 30, size - 4, size - 1):
            flip_bit(path, offset)
            problems = damaged(filled)
            assert any(text.startswith(f"data/{name}") for text in problems), (offset, problems)
            flip_bit(path, offset)
    assert damaged(filled) == []


@pytest.mark.parametrize("kind", [Kind.INDEX, Kind.SNAPSHOTS])
def test_every_flipped_byte_of_a_sealed_file_is_found(filled: Repository, kind: Kind) -> None:
    path = object_path(folder_of(filled), kind)
    for offset in range(0, path.stat().st_size, 17):
        flip_bit(path, offset)
        problems = found(filled, read_data=False)
        assert f"{kind}/{path.name}" in {problem.object for problem in problems}
        flip_bit(path, offset)


def test_damage_tells_which_snapshots_are_hit(filled: Repository) -> None:
    victim, hit = data_packs(filled)[0], filled.snapshots()[0]
    rnd = random.Random(8)
    whole = save_file(filled, [rnd.randbytes(20_000) for _ in range(2)])
    flip_bit(object_path(folder_of(filled), Kind.DATA, victim), 100)
    problems = damaged(filled)
    assert [text for text in problems if text.startswith(f"snapshots/{hit.id}")] == [
        text for text in problems if "/folder/: file: 1 of 6 blobs cannot be read" in text
    ]
    assert not any(whole.id in text for text in problems)
    assert damaged(filled, read_data=False) == []


def test_a_pack_whose_header_says_otherwise_is_found(filled: Repository) -> None:
    """Right hash, right size, blobs whole: only the header lies."""
    name = data_packs(filled)[0]
    path = object_path(folder_of(filled), Kind.DATA, name)
    data = path.read_bytes()
    length = struct.unpack("<I", data[-4:])[0]
    entries = open_header(Sealer(filled.key), data[-4 - length : -4], len(data))
    lie = [entries[0]._replace(id=os.urandom(32)), *entries[1:]]
    header = b"".join(Sealer(filled.key).seal(encode_header(lie)))
    overwrite(path, data[: -4 - length] + header + data[-4:])
    assert any("its header and the index differ" in text for text in damaged(filled))


def test_packs_in_no_index_are_no_damage(filled: Repository) -> None:
    orphan = hashlib.sha256(b"orphan").hexdigest()
    filled.store.put(Kind.DATA, orphan, [b"orphan"])
    problems = found(filled)
    assert [problem.damage for problem in problems] == [False]
    assert orphan in problems[0].object
    assert "prune" in problems[0].text


def test_leftovers_go_when_checking(filled: Repository) -> None:
    left = folder_of(filled) / "data" / "00" / ".freezeframe-unfinished-0"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert found(filled) == []
    assert not left.exists()


def test_checking_with_several_kinds_of_damage_names_all(filled: Repository) -> None:
    root = folder_of(filled)
    shot = filled.store.list(Kind.SNAPSHOTS)[0][0]
    packs = data_packs(filled)
    save_file(filled, [b"new"])
    object_path(root, Kind.DATA, packs[0]).unlink()
    flip_bit(object_path(root, Kind.DATA, packs[1]), 50)
    overwrite(object_path(root, Kind.KEYS), b"[]")
    save_file(filled, [b"other"])
    flip_bit(object_path(root, Kind.SNAPSHOTS, filled.snapshots()[-1].id), 60)
    objects = {problem.object for problem in found(filled)}
    assert {f"data/{packs[0]}", f"data/{packs[1]}", f"snapshots/{shot}"} < objects
    assert any(name.startswith("keys/") for name in objects)
    assert len([name for name in objects if name.startswith("snapshots/")]) == 2
