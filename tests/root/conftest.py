"""What tests on real devices share."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.repo.repository import Repository
from freezeframe.testing.repositories import local_repository
from freezeframe.testing.tracking import ensure_mounts


@pytest.fixture(autouse=True, scope="session")
def mounts() -> None:
    """Have what tracking needs."""
    ensure_mounts()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a new repository."""
    return local_repository(tmp_path / "repository")
