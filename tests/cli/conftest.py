"""A small disk, a repository, and the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.testing.inprocess import PASSWORD, Program, make_disk, make_files


@pytest.fixture
def program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Program:
    repo = tmp_path / "repo"
    monkeypatch.setenv("FREEZEFRAME_REPOSITORY", str(repo))
    monkeypatch.setenv("FREEZEFRAME_PASSWORD", PASSWORD)
    return Program(capfd, repo)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.raw", make_files(tmp_path / "files"))
