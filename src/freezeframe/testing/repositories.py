"""Repositories for tests, and restic beside them as the independent judge."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from freezeframe.repo.repository import Repository, create_repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import dir_node, encode_tree, file_node
from freezeframe.repo.writer import BlobKind, BlobWriter
from freezeframe.store.base import CONFIG_NAME, Kind
from freezeframe.store.local import LocalStore
from freezeframe.store.memory import MemoryStore

PASSWORD = "correct horse"


def memory_repository() -> Repository:
    """Make an empty repository in memory."""
    return create_repository(MemoryStore(), PASSWORD)


def local_repository(folder: Path) -> Repository:
    """Make an empty repository in a folder."""
    return create_repository(LocalStore(folder), PASSWORD)


def save_file(
    repository: Repository, chunks: Sequence[bytes], *, pack_size: int = 1 << 20
) -> Snapshot:
    """Store a snapshot with one file, `folder/file`, made of these chunks."""
    with BlobWriter(repository, repository.load_index(), pack_size=pack_size) as writer:
        handle = writer.handle()
        ids = [handle.put(BlobKind.DATA, chunk).hex() for chunk in chunks]
        size = sum(map(len, chunks))
        inner = handle.put(BlobKind.TREE, encode_tree([file_node("file", ids, size)]))
        root = handle.put(BlobKind.TREE, encode_tree([dir_node("folder", inner)]))
        writer.flush()
        return repository.save_snapshot(
            Snapshot.new(
                time=dt.datetime.now().astimezone(),
                tree=root.hex(),
                paths=["/folder"],
                tags=["test"],
            )
        )


def restic_environment(folder: Path, password: str = PASSWORD) -> dict[str, str]:
    """Return the environment in which restic works on a repository."""
    return {
        **os.environ,
        "RESTIC_REPOSITORY": str(folder),
        "RESTIC_PASSWORD": password,
        "RESTIC_CACHE_DIR": str(folder.parent / "restic-cache"),
        "RESTIC_PROGRESS_FPS": "0.1",
    }


def restic(
    folder: Path,
    *arguments: str,
    password: str = PASSWORD,
    stdin: bytes = b"",
    ok: Sequence[int] = (0,),
) -> subprocess.CompletedProcess[bytes]:
    """Run restic on a repository; anything but an exit code in `ok` is an `AssertionError`."""
    done = subprocess.run(
        ["restic", *arguments],
        env=restic_environment(folder, password),
        input=stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode not in ok:
        raise AssertionError(
            f"restic {' '.join(arguments)}: {done.returncode}\n"
            f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
        )
    return done


def object_path(folder: Path, kind: Kind, name: str = "") -> Path:
    """Return the file of an object in a local repository; the only one where no name is given."""
    if kind is Kind.CONFIG:
        return folder / CONFIG_NAME
    name = name or LocalStore(folder).list(kind)[0][0]
    return folder / kind / (f"{name[:2]}/{name}" if kind is Kind.DATA else name)


def overwrite(path: Path, data: bytes) -> None:
    """Replace a file of a repository, read-only as it may be, by other bytes."""
    path.chmod(0o600)
    path.write_bytes(data)


def flip_bit(path: Path, offset: int) -> None:
    """Flip the lowest bit of one byte; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    overwrite(path, bytes(data))
