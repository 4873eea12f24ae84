"""What is left by dead programs is removed, and nothing that belongs to one that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from freezeframe.shadow import leftovers
from freezeframe.shadow.journal import Found, SetEntry
from freezeframe.shadow.registry import Registered


def test_only_what_nobody_knows_is_a_stray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider of a set has a name of its own that begins with the set's."""
    removed: list[str] = []
    names = ["ff-0a", "ff-0a-lvm", "ff-0b-lvm-thin", "ff-0ab-lvm", "ff-dead-lvm", ""]

    def strays() -> Sequence[Mapping[str, str]]:
        return [{"name": name} for name in names]

    kind = SimpleNamespace(
        kind="lvm", strays=strays, clean=lambda record: removed.append(record["name"])
    )
    monkeypatch.setattr(leftovers, "provider_kinds", lambda: Registered({"lvm": kind}))
    runs = [Found(SetEntry(name="ff-0a"), Path("a"), alive=True)]
    stays = [Found(SetEntry(name="ff-0b"), Path("b"), alive=False)]
    monkeypatch.setattr(leftovers, "running", lambda folder: runs)
    monkeypatch.setattr(leftovers, "kept", lambda: stays)
    cleaned = list(leftovers.clean_leftovers())
    assert removed == ["ff-0ab-lvm", "ff-dead-lvm"]
    assert [each.name for each in cleaned] == removed
