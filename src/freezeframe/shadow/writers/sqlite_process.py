"""The process that holds one SQLite database: commands on standard input, one a line.

Run by its path, alone; it imports nothing of the program. It ends when its input does, and
the lock with it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path

#: Seconds between tries to lock. SQLite's own waiting grows to a tenth of a second: who writes
#: without a rest is always quicker.
_BETWEEN = 0.0005


def main() -> None:
    """Become the owner of the database, open it, and do what comes."""
    path, user, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if os.geteuid() == 0 and user != 0:
        # What lies in its folder is that user's to replace: it is opened with no more rights.
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    database: sqlite3.Connection | None = None
    opened = Path(path).stat()
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "say":
                print(rest, flush=True)
            elif word == "open":
                name = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
                database = sqlite3.connect(f"file:{name}?mode=rw", uri=True, isolation_level=None)
                database.execute("PRAGMA schema_version").fetchone()
                opened = Path(path).stat()
            elif database is None:
                continue
            elif word == "checkpoint":
                # Waits for nobody; does nothing without a write-ahead log.
                database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            elif word == "freeze":
                if not os.path.samestat(Path(path).stat(), opened):
                    raise sqlite3.OperationalError("another file has its name now")
                _lock(database, time.monotonic() + float(rest))
            elif word == "thaw":
                with suppress(sqlite3.OperationalError):  # no transaction is active
                    database.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _lock(database: sqlite3.Connection, until: float) -> None:
    database.execute("PRAGMA busy_timeout = 0").fetchone()
    while True:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_BETWEEN)
        else:
            return


if __name__ == "__main__":
    main()
