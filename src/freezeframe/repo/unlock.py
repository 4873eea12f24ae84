"""From a password to a repository's key: little to load, so that it can be tried early.

A password takes a tenth of a second to try, on one core; meanwhile another loads the program.
"""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.core.errors import NoRepository, RepositoryDamaged, RepositoryUnsupported
from freezeframe.repo import keys
from freezeframe.repo.crypto import MasterKey, Sealer
from freezeframe.repo.sealed import decode, open_text, refuse_huge
from freezeframe.repo.structs import ConfigFile, VersionOnly
from freezeframe.store.base import CONFIG_NAME, Kind, Store

VERSION = 2


@dataclass(frozen=True, slots=True)
class Unlocked:
    """What a repository is opened with."""

    store: Store
    config: ConfigFile
    master: MasterKey
    #: Id of the key file the password opened.
    key_id: str


def unlock(store: Store, password: str) -> Unlocked:
    """Try a password on a repository.

    Raises `NoRepository`, `RepositoryUnsupported` (another format), `WrongPassword`, or
    `RepositoryDamaged` where neither config nor keys are what they must be.
    """
    if not store.exists(Kind.CONFIG, CONFIG_NAME):
        if store.list(Kind.KEYS):
            raise RepositoryDamaged(
                Kind.CONFIG,
                CONFIG_NAME,
                "it is missing, though keys are there",
                hint="bring it back from a copy of the repository",
            )
        raise NoRepository(
            f"there is no repository at {store.location}",
            hint="make one with `freezeframe init`, or name another place",
        )
    for name, size in store.list(Kind.CONFIG):
        refuse_huge(Kind.CONFIG, name, size)
    sealed = store.get(Kind.CONFIG, CONFIG_NAME)
    master, key_id = keys.open_master(store, password)
    text = open_text(Sealer(master), sealed, Kind.CONFIG, CONFIG_NAME)
    version = decode(text, VersionOnly, Kind.CONFIG, CONFIG_NAME).version
    if version == 1:
        raise RepositoryUnsupported(
            f"the repository at {store.location} has restic's format 1; format 2 is needed",
            hint="turn it into one, its content stays: restic migrate upgrade_repo_v2",
        )
    if version != VERSION:
        raise RepositoryUnsupported(
            f"the repository at {store.location} has format {version}; format 2 is needed",
            hint="use a newer freezeframe",
        )
    return Unlocked(store, decode(text, ConfigFile, Kind.CONFIG, CONFIG_NAME), master, key_id)
