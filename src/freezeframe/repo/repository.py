"""A repository: a store, its config and its key; everything in it but the blobs."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import msgspec

from freezeframe.core.errors import (
    ObjectMissing,
    RepositoryDamaged,
    UsageError,
)
from freezeframe.core.progress import Progress, Silent
from freezeframe.repo import keys, locks
from freezeframe.repo.crypto import MasterKey, Sealer
from freezeframe.repo.index import Index
from freezeframe.repo.index_files import IndexBuilder, StoredPack, decode_index, encode_index
from freezeframe.repo.keys import KeyInfo
from freezeframe.repo.locks import Lock, LockTimes
from freezeframe.repo.polynomial import random_irreducible
from freezeframe.repo.sealed import decode, open_text, refuse_huge, seal_text
from freezeframe.repo.snapshots import Snapshot, encode_snapshot
from freezeframe.repo.structs import ConfigFile, IndexFile, LockFile
from freezeframe.repo.unlock import VERSION, Unlocked, unlock
from freezeframe.store.base import CONFIG_NAME, Kind, Store

#: Told of each damaged object; the rest is read all the same.
OnDamage = Callable[[RepositoryDamaged], None]


def create_repository(store: Store, password: str) -> Repository:
    """Make a repository in an empty store.

    Raises `UsageError` where there is one already, or the password is empty.
    """
    if store.exists(Kind.CONFIG, CONFIG_NAME) or store.list(Kind.KEYS):
        raise UsageError(
            f"there is a repository at {store.location} already",
            hint="use it as it is, or choose an empty place",
        )
    if not password:
        raise UsageError("an empty password protects nothing", hint="choose a longer one")
    store.create()
    master = MasterKey.random()
    config = ConfigFile(VERSION, secrets.token_hex(32), f"{random_irreducible():x}")
    key_id = keys.write_key(store, master, password)
    text = seal_text(Sealer(master), msgspec.json.encode(config), compress=False)
    # Last of all: it is what makes the folder a repository.
    store.put(Kind.CONFIG, CONFIG_NAME, [text])
    return Repository(Unlocked(store, config, master, key_id))


def open_repository(store: Store, password: str) -> Repository:
    """Open a repository. Raises what `unlock` does."""
    return Repository(unlock(store, password))


class Repository:
    """An open repository. Thread-safe. Made of what `unlock` returns."""

    def __init__(self, unlocked: Unlocked) -> None:
        self.store = unlocked.store
        self.config = unlocked.config
        self.key = unlocked.master
        #: Id of the key file it was opened with.
        self.key_id = unlocked.key_id
        self._held: list[Lock] = []

    # -- passwords ------------------------------------------------------------------

    def keys(self) -> list[KeyInfo]:
        """Return every readable key, oldest first."""
        return keys.list_keys(self.store, self.key_id)

    def add_password(self, new: str) -> str:
        """Let another password open the repository, too; return its key's id."""
        return keys.write_key(self.store, self.key, new)

    def remove_key(self, key_id: str) -> None:
        """Remove a key by its full id. Raises `UsageError` for the one in use."""
        if key_id == self.key_id:
            raise UsageError(
                "the key the repository was opened with cannot be removed",
                hint="open it with another password",
            )
        self.store.remove(Kind.KEYS, key_id)

    # -- locks ----------------------------------------------------------------------

    def lock(self, exclusive: bool = False, *, times: LockTimes | None = None) -> Lock:
        """Return a lock for a `with` statement, best entered in the main thread (SIGHUP).

        Entering raises `RepositoryLocked` on a conflict. Shared: backup, restore, list;
        exclusive: prune, forget. It is removed on leaving, so whoever turns SIGTERM into an
        exception leaves none behind.
        """
        return Lock(self, exclusive=exclusive, times=times, held=self._held)

    def check_locks(self) -> None:
        """Raise `RepositoryLocked` where a lock we hold was lost: writers ask before they write."""
        for lock in tuple(self._held):
            lock.check()

    def unlock(self, *, remove_all: bool = False) -> int:
        """Remove stale locks, or all of them; return how many."""
        return locks.unlock(self, remove_all=remove_all)

    def read_lock(self, name: str) -> LockFile:
        """Read a lock file. Raises `ObjectMissing`, `RepositoryDamaged`."""
        return decode(self.load(Kind.LOCKS, name), LockFile, Kind.LOCKS, name)

    def write_lock(self, lock: LockFile) -> str:
        """Store a lock file durably; return its name."""
        return self._save(Kind.LOCKS, msgspec.json.encode(lock))

    # -- index ----------------------------------------------------------------------

    def load_index(
        self, progress: Progress | None = None, *, on_damage: OnDamage | None = None
    ) -> Index:
        """Read all index files into one index.

        A damaged one raises `RepositoryDamaged`, or is told to `on_damage` and left out.
        """
        progress = progress or Silent()
        files = self.store.list(Kind.INDEX)
        progress.start("read index", sum(size for _, size in files))
        builder = IndexBuilder()
        for name, size in files:
            try:
                refuse_huge(Kind.INDEX, name, size)
                builder.add(self.load_index_file(name), name)
            except (RepositoryDamaged, ObjectMissing) as error:
                if isinstance(error, ObjectMissing):
                    # Removed meanwhile, as prune and rebuild-index do: their new one is needed.
                    error = RepositoryDamaged(Kind.INDEX, name, "it vanished while it was read")
                if on_damage is None:
                    raise error from None
                on_damage(error)
            progress.advance(size)
        return builder.build()

    def load_index_file(self, name: str) -> IndexFile:
        """Read one index file. Raises `RepositoryDamaged`, `ObjectMissing`."""
        return decode_index(self.load(Kind.INDEX, name), name)

    def save_index(self, packs: list[StoredPack]) -> str:
        """Store an index file of durable packs; return its name."""
        self.check_locks()
        return self._save(Kind.INDEX, encode_index(packs))

    def pack_sizes(self) -> dict[str, int]:
        """Return the names of all packs in the store, and their bytes."""
        return dict(self.store.list(Kind.DATA))

    def pack_names(self) -> set[str]:
        """Return the names of all packs in the store."""
        return set(self.pack_sizes())

    # -- snapshots ------------------------------------------------------------------

    def snapshots(self, *, on_damage: OnDamage | None = None) -> list[Snapshot]:
        """Return all snapshots, oldest first.

        A damaged one raises `RepositoryDamaged`, or is told to `on_damage` and left out.
        """
        found = []
        for name, size in self.store.list(Kind.SNAPSHOTS):
            try:
                refuse_huge(Kind.SNAPSHOTS, name, size)
                found.append(self.load_snapshot(name))
            except ObjectMissing:  # forgotten meanwhile
                continue
            except RepositoryDamaged as error:
                if on_damage is None:
                    raise
                on_damage(error)
        return sorted(found, key=lambda shot: (shot.time, shot.id))

    def load_snapshot(self, name: str) -> Snapshot:
        """Read one snapshot by its full id. Raises `RepositoryDamaged`, `ObjectMissing`."""
        text = self.load(Kind.SNAPSHOTS, name)
        shot = decode(text, Snapshot, Kind.SNAPSHOTS, name)
        return msgspec.structs.replace(shot, id=name)

    def save_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Store a snapshot durably and return it with its id.

        Last of all: every blob it refers to must be durable and in the index before. Raises
        `RepositoryLocked` where our lock was lost meanwhile.
        """
        self.check_locks()
        name = self._save(Kind.SNAPSHOTS, encode_snapshot(snapshot))
        return msgspec.structs.replace(snapshot, id=name)

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot by its full id. Raises `ObjectMissing`."""
        self.check_locks()
        self.store.remove(Kind.SNAPSHOTS, name)

    # -- sealed JSON ----------------------------------------------------------------

    def load(self, kind: Kind, name: str) -> bytes:
        """Return the JSON text of a sealed object whose name is its hash.

        Raises `ObjectMissing`, `RepositoryDamaged`.
        """
        sealed = self.store.get(kind, name)
        if hashlib.sha256(sealed).hexdigest() != name:
            raise RepositoryDamaged(kind, name, "the SHA-256 of its bytes is not its name")
        return open_text(Sealer(self.key), sealed, kind, name)

    def _save(self, kind: Kind, text: bytes) -> str:
        sealed = seal_text(Sealer(self.key), text)
        name = hashlib.sha256(sealed).hexdigest()
        self.store.put(kind, name, [sealed])
        return name
