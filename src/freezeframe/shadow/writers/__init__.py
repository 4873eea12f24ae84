"""Writers: applications that make themselves consistent. See `base` for what one is."""

from __future__ import annotations

from freezeframe.shadow.registry import Registered, load
from freezeframe.shadow.writers.base import WriterKind

#: Entry points of other packages.
GROUP = "freezeframe.writers"
#: The program's own, in the order in which they are looked for.
_OWN = {
    kind: f"freezeframe.shadow.writers.{kind}:{name}"
    for kind, name in {
        # Scripts and units first: what they stop may use the databases.
        "hooks": "HooksKind",
        "systemd": "SystemdKind",
        "containers": "ContainerKind",
        "postgresql": "PostgreSQLKind",
        "mariadb": "MariaDBKind",
        "redis": "RedisKind",
        "sqlite": "SQLiteKind",
    }.items()
}


def writer_kinds() -> Registered[type[WriterKind]]:
    """Return the kinds of writers there are."""
    return load(GROUP, _OWN, WriterKind)  # type: ignore[type-abstract]
