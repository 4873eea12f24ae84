"""SIGKILL at any moment: nothing half-made is seen, and the next run goes on."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from freezeframe.core.progress import Silent
from freezeframe.repo.check import check
from freezeframe.repo.repository import open_repository
from freezeframe.store.base import Kind
from freezeframe.store.local import LocalStore
from freezeframe.testing.repositories import PASSWORD, local_repository, restic, save_file

#: Stores 120 chunks that are the same in every run, with small packs and frequent indexes.
_RUN = """
import random, sys
from freezeframe.repo.repository import open_repository
from freezeframe.repo.writer import BlobKind, BlobWriter
from freezeframe.store.local import LocalStore
repository = open_repository(LocalStore(sys.argv[1]), sys.argv[2])
noise = random.Random(11)
with repository.lock():
    index = repository.load_index()
    index.drop_missing_packs(repository.pack_names())
    print("known", index.total, flush=True)
    with BlobWriter(repository, index, pack_size=40_000, index_interval=0.02) as writer:
        handle = writer.handle()
        for _ in range(120):
            handle.put(BlobKind.DATA, noise.randbytes(10_000))
            print("put", flush=True)
print("done", flush=True)
"""


def run(folder: Path, kill_after: int | None) -> int:
    """Run it, kill it after so many chunks; return how many blobs it found."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder), PASSWORD], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        known = int(process.stdout.readline().split()[1])
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                process.kill()
                return known
    assert lines[-1] == "done\n"
    return known


def test_killed_again_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    repository = local_repository(folder)
    earlier = save_file(repository, [b"earlier"])
    rnd = random.Random(5)
    found = [run(folder, rnd.randrange(1, 120)) for _ in range(6)]
    for _ in range(2):
        problems = check(
            open_repository(LocalStore(folder), PASSWORD), read_data=True, progress=Silent()
        )
        assert not [problem for problem in problems if problem.damage]
        # Without locks of the dead restic's check, which is exclusive, goes through.
        repository.unlock()
        done = restic(folder, "check", "--read-data")
        assert b"no errors were found" in done.stdout + done.stderr
        found.append(run(folder, None))
    # What each run left was found by the next, and the last one found everything.
    assert found == sorted(found)
    assert found[-1] == 120 + 3
    assert [shot.id for shot in repository.snapshots()] == [earlier.id]
    assert restic(folder, "dump", earlier.id, "folder/file").stdout == b"earlier"
    assert len(repository.store.list(Kind.LOCKS)) == 0
