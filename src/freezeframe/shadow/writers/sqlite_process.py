"""The process that holds one SQLite database: commands on standard input, one a line.

Run by its path, alone; it imports nothing of the program. It ends when its input does, and
the lock with it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path


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
                database.execute(f"PRAGMA busy_timeout = {int(float(rest) * 1000)}").fetchone()
                database.execute("BEGIN IMMEDIATE")
            elif word == "thaw":
                with suppress(sqlite3.OperationalError):  # no transaction is active
                    database.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
