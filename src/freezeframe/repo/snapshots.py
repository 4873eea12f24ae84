"""Snapshots: the roots. One file each, written last of all."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence

import msgspec

from freezeframe.repo.keys import host_name, user_name
from freezeframe.repo.structs import HexId, Moment


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One point in time. Fields and order are restic's; what it does not know is lost on it."""

    time: Moment
    parent: str = ""
    #: Id of the root's tree blob, 64 hex digits.
    tree: HexId
    paths: list[str] = msgspec.field(default_factory=list)
    hostname: str = ""
    username: str = ""
    uid: int = 0
    gid: int = 0
    excludes: list[str] | None = None
    tags: list[str] | None = None
    original: str = ""
    program_version: str = ""
    #: Name of its file, 64 hex digits; empty until it is stored, and never in the file.
    id: str = ""

    @property
    def short_id(self) -> str:
        """The first 8 digits, as restic shows it."""
        return self.id[:8]

    @classmethod
    def new(
        cls,
        *,
        time: dt.datetime,
        tree: str,
        paths: Sequence[str],
        tags: Sequence[str] = (),
        hostname: str | None = None,
        parent: str = "",
        program_version: str = "",
    ) -> Snapshot:
        """Make one of this machine and user; `time` must have a time zone."""
        return cls(
            time=time.astimezone(time.tzinfo),
            parent=parent,
            tree=tree,
            paths=list(paths),
            hostname=host_name() if hostname is None else hostname,
            username=user_name(),
            uid=os.getuid(),
            gid=os.getgid(),
            tags=list(tags) or None,
            program_version=program_version,
        )


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return its JSON, without the id."""
    return msgspec.json.encode(msgspec.structs.replace(snapshot, id=""))
