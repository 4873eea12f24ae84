"""Check a repository: what is damaged, and which images that hits."""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.core.errors import FreezeframeError, ObjectMissing, RepositoryDamaged
from freezeframe.core.progress import Progress
from freezeframe.core.units import human_size
from freezeframe.repo import keys
from freezeframe.repo.check_packs import (
    BlobKey,
    PackFindings,
    PackTable,
    check_content,
    check_presence,
)
from freezeframe.repo.check_trees import check_trees
from freezeframe.repo.index import Index
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.sealed import refuse_huge
from freezeframe.repo.snapshots import Snapshot
from freezeframe.store.base import Kind

#: What an interrupted put left is removed when it is a day old.
_LEFT_OVER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    #: `data/<id>`, `index/<id>`, `snapshots/<id>`, …
    object: str
    text: str
    #: False: information only, nothing is lost by it.
    damage: bool = True


def check(repository: Repository, *, read_data: bool, progress: Progress) -> list[Problem]:
    """Check everything and return all that was found, damage first.

    Structure: keys, indexes and snapshots open and are named by their hashes; every pack of
    the index is there with the size it must have; every tree can be read and every blob it
    refers to is there. With `read_data` each pack's SHA-256 is compared with its name, its
    header with the index, and every blob is opened and hashed. Goes on after any damage.
    The caller holds a lock. Raises `StoreError` only where the store cannot even be listed.
    """
    repository.store.tidy(_LEFT_OVER)
    problems: list[Problem] = []

    def damaged(error: RepositoryDamaged) -> None:
        problems.append(Problem(f"{error.kind}/{error.name}", error.reason))

    _check_keys(repository, problems)
    # Snapshots first, then indexes, then packs: whatever a backup adds meanwhile is complete.
    snapshots = repository.snapshots(on_damage=damaged)
    index = repository.load_index(progress, on_damage=damaged)
    present = dict(repository.store.list(Kind.DATA))
    _check_packs(repository, index, present, snapshots, problems, progress, read_data)
    return sorted(problems, key=lambda problem: not problem.damage)


def _check_packs(
    repository: Repository,
    index: Index,
    present: dict[str, int],
    snapshots: list[Snapshot],
    problems: list[Problem],
    progress: Progress,
    read_data: bool,
) -> None:
    table = PackTable(index)
    findings = PackFindings()
    there = check_presence(index, table, present, findings)
    if read_data:
        sizes = {number: present[index.pack_name(number)] for number in there}
        check_content(repository.store, repository.key, index, table, sizes, findings, progress)
    problems += [Problem(f"{Kind.DATA}/{name}", text) for name, text in findings.problems]
    known = {index.pack_name(number) for number in there}
    orphans = {name: size for name, size in present.items() if name not in known}
    if orphans:
        problems.append(
            Problem(
                f"{Kind.DATA}/{min(orphans)}" if len(orphans) == 1 else Kind.DATA,
                f"{len(orphans)} packs ({human_size(sum(orphans.values()))}) are in no index:"
                " left by an interrupted run, or being written; prune removes them",
                damage=False,
            )
        )
    bad = {key for key in findings.bad if not _has_good_copy(repository, index, key)}
    reader = BlobReader(repository, index)
    problems += [
        Problem(f"{Kind.SNAPSHOTS}/{found.snapshot}", f"{found.path}: {found.text}")
        for found in check_trees(reader, index, snapshots, bad, progress)
    ]


def _has_good_copy(repository: Repository, index: Index, key: BlobKey) -> bool:
    """Whether a blob with a bad copy can be read from another pack."""
    kind, blob_id = key
    if sum(1 for _ in index.find_all(kind, blob_id)) < 2:
        return False
    try:
        BlobReader(repository, index).read(kind, blob_id)
    except FreezeframeError:
        return False
    return True


def _check_keys(repository: Repository, problems: list[Problem]) -> None:
    for name, size in repository.store.list(Kind.KEYS):
        try:
            refuse_huge(Kind.KEYS, name, size)
            keys.read_key(repository.store, name)
        except ObjectMissing:
            continue
        except RepositoryDamaged as error:
            problems.append(Problem(f"{error.kind}/{error.name}", error.reason))
