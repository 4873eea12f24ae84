"""Our repositories before restic, and restic's before us. restic is the judge."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.core.errors import RepositoryLocked, RepositoryUnsupported, WrongPassword
from freezeframe.core.progress import Silent
from freezeframe.repo.check import check
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository, create_repository, open_repository
from freezeframe.repo.trees import content_ids, decode_tree, encode_tree
from freezeframe.repo.writer import BlobWriter
from freezeframe.store.base import Kind
from freezeframe.store.local import LocalStore
from freezeframe.testing.repositories import (
    PASSWORD,
    local_repository,
    restic,
    restic_environment,
    save_file,
)

RND = random.Random(3)
CHUNKS = [
    RND.randbytes(300_000),
    b"compressible " * 30_000,
    bytes(1 << 20),
    b"",
    b"short",
    *(RND.randbytes(70_000) for _ in range(5)),
]
WHOLE = b"".join(CHUNKS)


def open_at(folder: Path, password: str = PASSWORD) -> Repository:
    return open_repository(LocalStore(folder), password)


def assert_clean(folder: Path) -> None:
    """Both judges find nothing."""
    done = restic(folder, "check", "--read-data")
    assert b"no errors were found" in done.stdout + done.stderr
    assert check(open_at(folder), read_data=True, progress=Silent()) == []


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one of each: deriving keys takes longer than copying."""
    folder = tmp_path_factory.mktemp("templates")
    local_repository(folder / "ours")
    restic(folder / "theirs", "init", "--repository-version", "2")
    return folder


@pytest.fixture
def ours(templates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates / "ours", tmp_path / "r"))


@pytest.fixture
def theirs(templates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates / "theirs", tmp_path / "r"))


# -- ours before restic ----------------------------------------------------------------


def test_restic_reads_what_we_write(ours: Path) -> None:
    shot = save_file(open_at(ours), [*CHUNKS, *CHUNKS], pack_size=400_000)
    assert_clean(ours)
    assert restic(ours, "dump", "latest", "folder/file").stdout == WHOLE * 2
    listed = [
        json.loads(line) for line in restic(ours, "ls", "--json", "latest").stdout.splitlines()
    ]
    assert listed[0]["id"] == shot.id
    assert listed[0]["tags"] == ["test"]
    assert [(node["path"], node.get("size", 0)) for node in listed[1:]] == [
        ("/folder", 0),
        ("/folder/file", 2 * len(WHOLE)),
    ]


def test_restic_restores_what_we_write(ours: Path, tmp_path: Path) -> None:
    save_file(open_at(ours), CHUNKS)
    restic(ours, "restore", "latest", "--target", str(tmp_path / "out"))
    assert (tmp_path / "out/folder/file").read_bytes() == WHOLE


def test_restic_backs_up_forgets_and_prunes_beside_us(ours: Path, tmp_path: Path) -> None:
    repository = open_at(ours)
    first = save_file(repository, CHUNKS[:5])
    second = save_file(repository, CHUNKS[4:])
    (tmp_path / "source").mkdir()
    (tmp_path / "source/same").write_bytes(CHUNKS[0])
    restic(ours, "backup", str(tmp_path / "source"))
    assert len(repository.snapshots()) == 3
    assert_clean(ours)
    restic(ours, "forget", first.id, "--prune", "--max-unused", "0")
    assert repository.snapshots()[0].id == second.id
    assert_clean(ours)
    assert restic(ours, "dump", second.id, "folder/file").stdout == b"".join(CHUNKS[4:])
    third = save_file(repository, CHUNKS)
    assert restic(ours, "dump", third.id, "folder/file").stdout == WHOLE
    assert_clean(ours)


def test_restic_rebuilds_our_index_the_same(ours: Path) -> None:
    """Our pack headers say the same as our index."""
    repository = open_at(ours)
    save_file(repository, CHUNKS, pack_size=300_000)
    before = everything(repository)
    for name, _ in repository.store.list(Kind.INDEX):
        repository.store.remove(Kind.INDEX, name)
    restic(ours, "rebuild-index")
    assert everything(repository) == before
    assert_clean(ours)


def everything(repository: Repository) -> set[tuple[str, str, int, int, int]]:
    return {
        (pack.id, blob.id, blob.offset, blob.length, blob.uncompressed_length)
        for name, _ in repository.store.list(Kind.INDEX)
        for pack in repository.load_index_file(name).packs or []
        for blob in pack.blobs
    }


def test_restic_opens_with_each_of_our_passwords(ours: Path) -> None:
    repository = open_at(ours)
    second = repository.add_password("the second: ünïcode")
    restic(ours, "cat", "config", password="the second: ünïcode")
    listed = json.loads(restic(ours, "key", "list", "--json").stdout)
    assert {key["id"] for key in listed} == {repository.key_id[:8], second[:8]} or {
        key["id"] for key in listed
    } == {repository.key_id, second}
    restic(ours, "cat", "config", password="wrong", ok=(1, 12))


def test_a_tree_we_write_again_has_restics_id(theirs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub <&> folder").mkdir(parents=True)
    (source / "file").write_bytes(b"content")
    (source / "empty").write_bytes(b"")
    (source / "ünï \\ \" 'quoted'\n").write_bytes(b"x")
    (source / "link").symlink_to("some<where>&\u2028 else\x01\x7f")
    os.mkfifo(source / "fifo")
    os.link(source / "file", source / "hard")
    os.setxattr(source / "file", "user.test", b"\x00\xffvalue")
    restic(theirs, "backup", str(source))
    repository = open_at(theirs)
    reader = BlobReader(repository, repository.load_index())
    waiting, seen = [repository.snapshots()[0].tree], 0
    while waiting:
        tree = bytes.fromhex(waiting.pop())
        data = reader.read(BlobKind.TREE, tree)
        nodes = decode_tree(data)
        assert encode_tree(nodes) == data
        waiting += [node.subtree for node in nodes if node.subtree]
        seen += len(nodes)
    assert seen >= 9


# -- restic's before us ----------------------------------------------------------------


def test_we_read_what_restic_writes(theirs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(WHOLE)
    (source / "other").write_bytes(b"other")
    restic(theirs, "backup", str(source))
    restic(theirs, "backup", "--stdin", "--stdin-filename", "piped", stdin=WHOLE)
    repository = open_at(theirs)
    with repository.lock():
        shots = repository.snapshots()
        index = repository.load_index()
        assert contents(repository, shots[1].tree) == {"piped": hashlib.sha256(WHOLE).hexdigest()}
        assert contents(repository, shots[0].tree) == {
            "big": hashlib.sha256(WHOLE).hexdigest(),
            "other": hashlib.sha256(b"other").hexdigest(),
        }
        assert index.total > 0
    assert_clean(theirs)


def contents(repository: Repository, root: str) -> dict[str, str]:
    """Hash every file below a tree, wherever it lies."""
    reader = BlobReader(repository, repository.load_index())
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        for node in decode_tree(reader.read(BlobKind.TREE, bytes.fromhex(waiting.pop()))):
            if node.subtree:
                waiting.append(node.subtree)
            if node.type == "file":
                digest = hashlib.sha256()
                for blob_id in content_ids(node):
                    digest.update(reader.read(BlobKind.DATA, blob_id.tobytes()))
                found[node.name] = digest.hexdigest()
    return found


def test_we_write_into_restics_and_reuse_its_blobs(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(CHUNKS[0])  # below restic's shortest chunk: one blob
    restic(theirs, "backup", str(tmp_path / "small"))
    repository = open_at(theirs)
    with BlobWriter(repository, repository.load_index()) as writer:
        writer.handle().put(BlobKind.DATA, CHUNKS[0])
        assert writer.stats.blobs_known == 1
    save_file(repository, CHUNKS)
    assert restic(theirs, "dump", "latest", "folder/file").stdout == WHOLE
    assert_clean(theirs)


def test_we_open_with_each_of_restics_passwords(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("another one\n")
    restic(theirs, "key", "add", "--new-password-file", str(tmp_path / "new"))
    repository = open_at(theirs, "another one")
    assert repository.key == open_at(theirs).key
    assert len(repository.keys()) == 2
    with pytest.raises(WrongPassword):
        open_at(theirs, "neither")
    assert_clean(theirs)


def test_format_1_is_refused_and_can_be_migrated_as_we_say(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    restic(folder, "init", "--repository-version", "1")
    restic(folder, "backup", "--stdin", "--stdin-filename", "piped", stdin=WHOLE)
    with pytest.raises(RepositoryUnsupported) as caught:
        open_at(folder)
    assert caught.value.exit_code == 10
    restic(folder, *caught.value.hint.split("restic ")[1].split())
    repository = open_at(folder)
    assert contents(repository, repository.snapshots()[0].tree) == {
        "piped": hashlib.sha256(WHOLE).hexdigest()
    }
    assert_clean(folder)


def test_two_who_write_at_once_leave_a_clean_repository(ours: Path) -> None:
    command = ["restic", "backup", "--stdin", "--stdin-filename", "piped"]
    with subprocess.Popen(
        command, env=restic_environment(ours), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as running:
        assert running.stdin is not None
        running.stdin.write(WHOLE)
        save_file(open_at(ours), CHUNKS)
        save_file(open_at(ours), CHUNKS[::-1])
        running.stdin.close()
        assert running.wait() == 0
    assert len(open_at(ours).snapshots()) == 3
    done = restic(ours, "check", "--read-data")
    assert b"no errors were found" in done.stdout + done.stderr


# -- locks -----------------------------------------------------------------------------


def test_a_running_restic_excludes_us_from_exclusive_work(ours: Path) -> None:
    repository = open_at(ours)
    with subprocess.Popen(
        ["restic", "backup", "--stdin"],
        env=restic_environment(ours),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as running:
        assert running.stdin is not None
        while not repository.store.list(Kind.LOCKS):
            assert running.poll() is None
        with pytest.raises(RepositoryLocked, match=f"process {running.pid} of"):
            repository.lock(exclusive=True).acquire()
        with repository.lock():
            pass
        assert repository.unlock() == 0
        running.stdin.write(b"data")
        running.stdin.close()
        assert running.wait() == 0
    with repository.lock(exclusive=True):
        pass
    assert_clean(ours)


_HOLDER = """
import sys
from freezeframe.repo.repository import open_repository
from freezeframe.store.local import LocalStore
with open_repository(LocalStore(sys.argv[1]), sys.argv[2]).lock(sys.argv[3] == "exclusive"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_our_lock_excludes_restic_and_survives_its_probe(ours: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(ours), PASSWORD, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        # An exclusive command: refused. It probes the holder by SIGHUP when it unlocks.
        refused = restic(ours, "check", ok=(1, 11))
        assert str(holder.pid).encode() in refused.stderr
        restic(ours, "unlock")
        assert len(LocalStore(ours).list(Kind.LOCKS)) == 1
        shared = restic(ours, "backup", "--stdin", stdin=b"x", ok=(0, 1, 11))
        assert (shared.returncode == 0) == (how == "shared")
        holder.send_signal(signal.SIGHUP)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"
        assert holder.wait() == 0
    assert_clean(ours)


def test_what_a_killed_holder_left_is_removed_by_either(ours: Path) -> None:
    for unlock in (lambda: open_at(ours).unlock(), lambda: restic(ours, "unlock")):
        with subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(ours), PASSWORD, "exclusive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            holder.kill()
        assert len(LocalStore(ours).list(Kind.LOCKS)) == 1
        with pytest.raises(RepositoryLocked) as caught:
            open_at(ours).lock().acquire()
        assert "freezeframe unlock" in caught.value.hint
        unlock()
        assert LocalStore(ours).list(Kind.LOCKS) == []
    assert_clean(ours)


def test_our_key_of_theirs_and_their_key_of_ours(tmp_path: Path) -> None:
    repository = create_repository(LocalStore(tmp_path / "r"), "first")
    restic(tmp_path / "r", "key", "list", password="first")
    repository.add_password(PASSWORD)
    open_at(tmp_path / "r").remove_key(repository.key_id)
    restic(tmp_path / "r", "cat", "config", password="first", ok=(1, 12))
    assert_clean(tmp_path / "r")
