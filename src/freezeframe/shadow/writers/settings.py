"""What the administrator says of writers: /etc/freezeframe/writers.toml.

Needed only for what cannot be found, or should not be held unasked.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from freezeframe.core.errors import UsageError

PATH = Path("/etc/freezeframe/writers.toml")


class SQLiteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[sqlite]`."""

    #: Databases that have to be held, in use or not; one that cannot be is a veto.
    databases: tuple[str, ...] = ()
    #: Whether those that programs have open are held too, as far as that goes.
    find: bool = True


class ContainerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[containers]`."""

    #: Names of those to pause, besides those with the label; `*` for all that run.
    pause: tuple[str, ...] = ()


class SystemdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[systemd]`."""

    #: Units to stop, in this order; they are started in the reverse one.
    stop: tuple[str, ...] = ()


class HookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[hooks]`."""

    folder: str = "/etc/freezeframe/hooks.d"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    sqlite: SQLiteSettings = SQLiteSettings()
    containers: ContainerSettings = ContainerSettings()
    systemd: SystemdSettings = SystemdSettings()
    hooks: HookSettings = HookSettings()


def load_settings(path: Path = PATH) -> Settings:
    """Read the file; without one nothing is named. `UsageError` where it makes no sense."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return msgspec.toml.decode(text, type=Settings)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} is not understood: {error}", hint="see docs/writers.md for what it may hold"
        ) from error
