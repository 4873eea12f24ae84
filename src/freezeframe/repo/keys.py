"""Key files: the master key, wrapped by a password. Several may wrap the same one."""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import hashlib
import os
import socket
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InternalError
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from freezeframe.core.errors import (
    ObjectMissing,
    RepositoryDamaged,
    UsageError,
    WrongPassword,
)
from freezeframe.core.units import GIB
from freezeframe.repo.crypto import MasterKey, SealBroken, Sealer
from freezeframe.repo.sealed import decode, refuse_huge
from freezeframe.repo.structs import KeyFile, MacKey, MasterKeyFile
from freezeframe.store.base import Kind, Store

#: scrypt's cost for new keys, as restic sets it: 32 MiB of memory, 0.1 s.
_COST_N, _COST_R, _COST_P = 1 << 15, 8, 1
_SALT = 64
#: A key file that asks for more memory than this is not one.
_LARGEST_COST = 2 * GIB


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One password of a repository, as it may be shown."""

    id: str
    username: str
    hostname: str
    created: dt.datetime
    #: Whether the repository was opened with it.
    current: bool


def user_name() -> str:
    """Return the name of the user, or the number where there is no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def host_name() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def write_key(store: Store, master: MasterKey, password: str) -> str:
    """Store a key file that wraps `master` by `password`; return its id.

    It is read back and opened before it is counted on. Raises `UsageError` for an empty
    password.
    """
    if not password:
        raise UsageError("an empty password protects nothing", hint="choose a longer one")
    salt = os.urandom(_SALT)
    wrapped = MasterKeyFile(MacKey(master.mac_k, master.mac_r), master.encrypt)
    derived = _derive(password, salt, _COST_N, _COST_R, _COST_P)
    text = msgspec.json.encode(
        KeyFile(
            created=dt.datetime.now().astimezone(),
            username=user_name(),
            hostname=host_name(),
            kdf="scrypt",
            N=_COST_N,
            r=_COST_R,
            p=_COST_P,
            salt=salt,
            data=b"".join(Sealer(derived).seal(msgspec.json.encode(wrapped))),
        )
    )
    name = hashlib.sha256(text).hexdigest()
    store.put(Kind.KEYS, name, [text])
    if unwrap(read_key(store, name), password, name) != master:
        raise RepositoryDamaged(Kind.KEYS, name, "it does not open as it was written")
    return name


def read_key(store: Store, name: str) -> KeyFile:
    """Read one key file. Raises `RepositoryDamaged`, `ObjectMissing`."""
    text = store.get(Kind.KEYS, name)
    if hashlib.sha256(text).hexdigest() != name:
        raise RepositoryDamaged(Kind.KEYS, name, "the SHA-256 of its bytes is not its name")
    return decode(text, KeyFile, Kind.KEYS, name)


def open_master(store: Store, password: str) -> tuple[MasterKey, str]:
    """Try every key file; return the master key and the id of the key file that opened.

    Damaged key files do not hide good ones. Raises `WrongPassword`, or where no key file
    can be read at all `RepositoryDamaged`.
    """
    damage: RepositoryDamaged | None = None
    readable = 0
    for name, size in sorted(store.list(Kind.KEYS)):
        try:
            refuse_huge(Kind.KEYS, name, size)
            key = read_key(store, name)
            readable += 1
            master = unwrap(key, password, name)
        except RepositoryDamaged as error:
            damage = error
            continue
        except ObjectMissing:  # removed meanwhile
            continue
        if master is not None:
            return master, name
    if not readable:
        if damage is not None:
            raise damage
        raise RepositoryDamaged(
            Kind.KEYS, "*", "there is no key file", hint="bring one back from a copy"
        )
    also = f" ({damage.message})" if damage is not None else ""
    raise WrongPassword(f"no key of {store.location} opens with that password{also}")


def unwrap(key: KeyFile, password: str, name: str) -> MasterKey | None:
    """Return the master key, or None where the password is another.

    Raises `RepositoryDamaged` where it opens and holds no key, or asks for nonsense.
    """
    if key.kdf != "scrypt" or key.r < 1 or key.p < 1 or key.N < 2 or key.N & (key.N - 1):
        raise RepositoryDamaged(Kind.KEYS, name, "its key derivation is unknown")
    if 128 * key.r * (key.N + key.p) > _LARGEST_COST:
        raise RepositoryDamaged(Kind.KEYS, name, "its key derivation takes too much memory")
    derived = _derive(password, key.salt, key.N, key.r, key.p)
    try:
        text = Sealer(derived).open(key.data)
    except SealBroken:
        return None
    found = decode(text, MasterKeyFile, Kind.KEYS, name)
    if (len(found.encrypt), len(found.mac.k), len(found.mac.r)) != (32, 16, 16):
        raise RepositoryDamaged(Kind.KEYS, name, "the key in it has the wrong length")
    return MasterKey(found.encrypt, found.mac.k, found.mac.r)


def list_keys(store: Store, current: str) -> list[KeyInfo]:
    """Return every readable key file, oldest first; `current` is the id of the one in use."""
    found = []
    for name, size in store.list(Kind.KEYS):
        with contextlib.suppress(RepositoryDamaged, ObjectMissing):
            refuse_huge(Kind.KEYS, name, size)
            key = read_key(store, name)
            found.append(
                KeyInfo(name, key.username, key.hostname, key.created, current=name == current)
            )
    return sorted(found, key=lambda key: key.created)


def _derive(password: str, salt: bytes, n: int, r: int, p: int) -> MasterKey:
    # A password from the environment may hold bytes that are no UTF-8: they count as they are.
    secret = password.encode("utf-8", "surrogateescape")
    try:
        material = Scrypt(salt=salt, length=64, n=n, r=r, p=p).derive(secret)
    except (InternalError, ValueError, MemoryError) as error:
        raise UsageError(f"the key derivation failed: {error}") from error
    return MasterKey(material[:32], material[32:48], material[48:])
