"""The doctor looks at everything, and says what to do about what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.app import hot_doctor
from freezeframe.app.doctor import examine
from freezeframe.core.errors import TrackingUnavailable
from freezeframe.shadow.filesystems import MountedFilesystem, OnDisks
from freezeframe.system.memory import available_memory
from freezeframe.system.tools import packages
from freezeframe.tracking import libbpf


def test_every_tool_is_looked_for() -> None:
    found = {finding.name: finding for finding in examine()}
    for package in packages():
        assert (package.name in found) == (package.needed_for == "run" or package.name == "restic")
    assert all(f.detail for f in found.values())
    assert all(f.advice for f in found.values() if f.state != "ok")
    assert found["real drives"].state == "not verified"
    assert found["hot processing elsewhere"].state == "not verified"


def test_a_machine_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freezeframe.system.run.search_path", lambda: "/nonexistent")
    found = {finding.name: finding for finding in examine()}
    for package in packages():
        if package.needed_for == "run" and package.tools:
            finding = found[package.name]
            assert finding.state == "missing"
            assert all(tool in finding.detail for tool in package.tools)
            assert finding.advice == f"apt-get install {package.name}"
    assert found["restic"].state == "limited"


def test_what_hot_processing_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise TrackingUnavailable("there is none", hint="mount one")

    monkeypatch.setattr(hot_doctor, "pins_folder", missing)
    monkeypatch.setattr(hot_doctor, "place_in_memory", missing)
    monkeypatch.setattr(hot_doctor, "read_text", lambda path: "none [confidentiality]")
    found = {finding.name: finding for finding in hot_doctor.hot_processing()}
    for name in ("BPF filesystem", "memory for marks", "lockdown"):
        assert found[name].state == "missing"
        assert name in found["hot processing"].detail
    assert found["hot processing"].state == "missing"
    assert found["BPF filesystem"].advice == "mount one"


def test_filesystems_that_cannot_be_frozen_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = (
        _mounted("/", "ext4", freezes=True),
        _mounted("/boot/efi", "vfat", freezes=False),
        _mounted("/cd", "udf", freezes=False, read_only=True),
    )
    monkeypatch.setattr(hot_doctor, "find_filesystems", lambda _disks: OnDisks(mounted, ()))
    finding = hot_doctor._freezing()
    assert finding.state == "limited"
    assert finding.detail == (
        "to be frozen in an image: / (ext4); not /boot/efi (vfat):"
        " these are crash-consistent in an image"
    )


def _mounted(point: str, kind: str, *, freezes: bool, read_only: bool = False) -> MountedFilesystem:
    return MountedFilesystem(
        device="8:1", kind=kind, point=point, ways=(), numbers=frozenset(), devices=(),
        read_only=read_only, freezes=freezes,
    )  # fmt: skip


def test_memory() -> None:
    assert available_memory() > 1 << 20


def test_what_hot_processing_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["compiled tracker", "libbpf1", "BPF filesystem", "BTF", "rights to track and freeze"]
    found = {finding.name: finding for finding in examine()}
    assert set(names) <= found.keys()
    monkeypatch.setattr(libbpf, "available", lambda: "libbpf.so.1 is missing")
    monkeypatch.setattr("freezeframe.app.hot_doctor.BTF", Path("/nonexistent"))
    found = {finding.name: finding for finding in examine()}
    assert found["libbpf1"].advice == "apt-get install libbpf1"
    assert found["BTF"].state == "limited"
    assert found["hot processing"].state == "missing"
    assert "libbpf1" in found["hot processing"].detail
    assert "BTF" not in found["hot processing"].detail
