"""Locks, by restic's protocol: files that say who works on the repository.

To lock: look, write one's own, wait, look again, and give way on a conflict. A lock is
refreshed every five minutes by writing a new one and removing the old one. restic tells
whether a holder on the same machine is alive by sending it SIGHUP, so that signal must not
end us while we hold one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Protocol, Self

from freezeframe.core.errors import (
    FreezeframeError,
    ObjectMissing,
    RepositoryDamaged,
    RepositoryLocked,
)
from freezeframe.core.units import human_time
from freezeframe.repo.keys import host_name, user_name
from freezeframe.repo.sealed import refuse_huge
from freezeframe.repo.structs import LockFile
from freezeframe.store.base import Kind, Store

#: restic takes a lock that was not refreshed for so long (seconds) as left behind.
STALE_AFTER = 30 * 60.0


@dataclass(frozen=True, slots=True)
class LockTimes:
    """How long things take, in seconds; restic's values."""

    #: Between writing a lock and looking again. Two who lock at once both see both.
    settle: float = 0.2
    #: Between refreshes.
    refresh: float = 5 * 60.0
    #: Between attempts where refreshing fails.
    retry: float = 30.0
    #: Without a refresh for so long, others may soon take the lock as left behind: it is lost.
    give_up: float = 25 * 60.0


class Documents(Protocol):
    """What locks need of a repository: sealed JSON objects."""

    @property
    def store(self) -> Store:
        """Where they lie."""

    def read_lock(self, name: str) -> LockFile:
        """Read a lock file. Raises `ObjectMissing`, `RepositoryDamaged`."""

    def write_lock(self, lock: LockFile) -> str:
        """Store a lock file durably; return its name."""


class Lock:
    """A lock held, as a context manager. Made by `Repository.lock`."""

    def __init__(
        self,
        documents: Documents,
        *,
        exclusive: bool = False,
        times: LockTimes | None = None,
        held: list[Lock] | None = None,
    ) -> None:
        """Take where to lock, and a list that this lock stands in while it is held."""
        self._documents = documents
        self._times = times or LockTimes()
        self._held = [] if held is None else held
        self._stop = threading.Event()
        self._refresher: threading.Thread | None = None
        self._name = ""
        self._lost = ""
        self._settling = threading.Lock()
        self._settles, self._settled = 0.0, True
        self.exclusive = exclusive

    @property
    def name(self) -> str:
        """The lock file's name at this moment; empty while nothing is held."""
        return self._name

    @property
    def lost(self) -> bool:
        """Whether others may believe we are gone: nothing may be written any more."""
        return bool(self._lost)

    def check(self) -> None:
        """Return where something may be written: settled, and not lost since. Thread-safe.

        Raises `RepositoryLocked`.
        """
        self.settle()
        if self._lost:
            raise RepositoryLocked(
                f"the lock on {self._documents.store.location} was lost: {self._lost}",
                hint="run it again; what was stored is found again",
            )

    def acquire(self) -> None:
        """Lock. Raises `RepositoryLocked` on a conflict."""
        self.begin()
        try:
            self.settle()
        except BaseException:
            self.release()
            raise

    def begin(self) -> None:
        """Take the first half of a lock; whoever writes waits for the second (`check`).

        All else may be done meanwhile, instead of waiting. Raises `RepositoryLocked`.
        """
        _hangup.hold()
        try:
            self._refuse_conflict()
            self._name = self._write()
            # Writing it may have taken long, and what is read from now on must stay true:
            # whoever locks after this sees our lock, whoever did before is seen.
            self._refuse_conflict()
        except BaseException:
            self._remove(self._name)
            self._name = ""
            _hangup.release()
            raise
        self._settles, self._settled = time.monotonic() + self._times.settle, False
        self._held.append(self)
        self._stop.clear()
        self._refresher = threading.Thread(target=self._refresh, name="lock", daemon=True)
        self._refresher.start()

    def settle(self) -> None:
        """Wait until whoever locked at the same time is seen. Raises `RepositoryLocked`."""
        with self._settling:
            if not self._settled:
                time.sleep(max(self._settles - time.monotonic(), 0.0))
                self._refuse_conflict()
                self._settled = True

    def release(self) -> None:
        """Unlock. Never raises: a lock that cannot be removed becomes stale by itself."""
        self._stop.set()
        if self._refresher is None:
            return
        try:
            self._refresher.join()
        finally:
            self._refresher = None
            self._remove(self._name)
            self._name = ""
            self._held.remove(self)
            _hangup.release()

    @contextlib.contextmanager
    def begun(self) -> Iterator[Self]:
        """Hold it from `begin` on; the first to write anything waits until it is settled."""
        self.begin()
        try:
            yield self
        finally:
            self.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    # -- inside ---------------------------------------------------------------------

    def _write(self) -> str:
        return self._documents.write_lock(
            LockFile(
                time=dt.datetime.now().astimezone(),
                exclusive=self.exclusive,
                hostname=host_name(),
                username=user_name(),
                pid=os.getpid(),
                uid=os.getuid(),
                gid=os.getgid(),
            )
        )

    def _remove(self, name: str) -> None:
        if name:
            with contextlib.suppress(FreezeframeError):
                self._documents.store.remove(Kind.LOCKS, name)

    def _refuse_conflict(self) -> None:
        """Raise `RepositoryLocked` where another lock does not go with ours.

        Not even a stale one is ignored: only a person can know that its holder, maybe on a
        cloned machine of the same name, is really gone.
        """
        for name, size in self._documents.store.list(Kind.LOCKS):
            if name == self._name:
                continue
            try:
                refuse_huge(Kind.LOCKS, name, size)
                other = self._documents.read_lock(name)
            except ObjectMissing:
                continue
            except RepositoryDamaged as error:
                raise RepositoryLocked(
                    f"there is a lock nobody can read: {error.message}",
                    hint="when nobody works on the repository: freezeframe unlock --remove-all",
                ) from error
            if self.exclusive or other.exclusive:
                raise RepositoryLocked(
                    f"the repository is locked {describe(other)}", hint=_what_to_do(other)
                )

    def _refresh(self) -> None:
        """Write new locks and remove the old ones, until told to stop or the lock is lost."""
        last = time.monotonic()
        pause = self._times.refresh
        while not self._stop.wait(pause):
            try:
                new = self._write()
                # The old one must have been there all the time: else somebody unlocked us,
                # and may have locked since.
                if not self._documents.store.exists(Kind.LOCKS, self._name):
                    self._remove(new)
                    self._lost = "somebody removed it"
                    return
            except FreezeframeError as error:
                if time.monotonic() - last > self._times.give_up:
                    self._lost = f"it could not be refreshed: {error.message}"
                    return
                pause = self._times.retry
                continue
            old, self._name = self._name, new
            self._remove(old)
            last = time.monotonic()
            pause = self._times.refresh


def describe(lock: LockFile) -> str:
    """Say who holds a lock."""
    how = "exclusively " if lock.exclusive else ""
    age = (dt.datetime.now().astimezone() - lock.time).total_seconds()
    return (
        f"{how}by process {lock.pid} of {lock.username or 'somebody'} on {lock.hostname},"
        f" refreshed {human_time(max(age, 0))} ago"
    )


def is_stale(lock: LockFile) -> bool:
    """Whether a lock was left behind: not refreshed for long, or its process here is gone."""
    age = (dt.datetime.now().astimezone() - lock.time).total_seconds()
    if age > STALE_AFTER:
        return True
    if lock.hostname != host_name() or lock.pid <= 0:
        return False
    try:
        os.kill(lock.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def unlock(documents: Documents, *, remove_all: bool) -> int:
    """Remove stale locks, or all, readable or not; return how many."""
    removed = 0
    for name, size in documents.store.list(Kind.LOCKS):
        if not remove_all:
            try:
                refuse_huge(Kind.LOCKS, name, size)
                if not is_stale(documents.read_lock(name)):
                    continue
            except (ObjectMissing, RepositoryDamaged):
                continue
        with contextlib.suppress(ObjectMissing):
            documents.store.remove(Kind.LOCKS, name)
            removed += 1
    return removed


def _what_to_do(lock: LockFile) -> str:
    if is_stale(lock):
        return "its holder seems to be gone; if it is: freezeframe unlock"
    return "wait until it ends; if it has died: freezeframe unlock"


class _Hangup:
    """Keeps SIGHUP from ending the process while any lock is held.

    A handler, not SIG_IGN: programs we start would inherit that. Signal handlers can only be
    set in the main thread; a lock taken in another one leaves the signal as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._installed = False

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if (
                not self._installed
                and threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
            ):
                signal.signal(signal.SIGHUP, _do_nothing)
                self._installed = True

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if (
                self._installed
                and not self._holders
                and threading.current_thread() is threading.main_thread()
            ):
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                self._installed = False


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Be alive: that is what restic asks."""


_hangup = _Hangup()
