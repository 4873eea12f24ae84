"""From the place a user named to its store."""

from __future__ import annotations

import re

from freezeframe.core.errors import UsageError
from freezeframe.store.base import Store
from freezeframe.store.local import LocalStore

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)")


def open_store(location: str) -> Store:
    """Return the store at `location`: a path, or `local:` and a path. Nothing is touched.

    Raises `UsageError` for other schemes. A path with a colon goes as `local:` or `./`.
    """
    scheme = _SCHEME.match(location)
    if scheme is None:
        path = location
    elif scheme.group() == "local":
        path = location.removeprefix("local:")
    else:
        raise UsageError(
            f"repositories at `{scheme.group()}:` are not known; known are: a path, local:PATH",
            hint="a path that holds a colon is written as local:PATH",
        )
    if not path:
        raise UsageError("the place of the repository is empty")
    return LocalStore(path)
