"""The doctor looks at everything, and says what to do about what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.app.doctor import examine
from freezeframe.system.memory import available_memory
from freezeframe.system.tools import packages
from freezeframe.tracking import libbpf


def test_every_tool_is_looked_for() -> None:
    found = {finding.name: finding for finding in examine()}
    for package in packages():
        assert (package.name in found) == (package.needed_for == "run" or package.name == "restic")
    assert all(f.detail for f in found.values())
    assert all(f.advice for f in found.values() if f.state != "ok")
    assert found["images of mounted disks"].state == "missing"
    assert found["real drives"].state == "not verified"


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


def test_memory() -> None:
    assert available_memory() > 1 << 20


def test_what_hot_processing_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["compiled tracker", "libbpf1", "BPF filesystem", "BTF", "rights to track"]
    found = {finding.name: finding for finding in examine()}
    assert set(names) <= found.keys()
    monkeypatch.setattr(libbpf, "available", lambda: "libbpf.so.1 is missing")
    monkeypatch.setattr("freezeframe.app.doctor.BTF", Path("/nonexistent"))
    found = {finding.name: finding for finding in examine()}
    assert found["libbpf1"].advice == "apt-get install libbpf1"
    assert found["BTF"].state == "limited"
    assert found["tracking of writes"].state == "missing"
    assert "libbpf1" in found["tracking of writes"].detail
    assert "BTF" not in found["tracking of writes"].detail
