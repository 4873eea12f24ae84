"""Writing past the page cache, against what is read back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.file import open_writer
from freezeframe.store.base import Kind
from freezeframe.store.local import LocalStore
from freezeframe.system import direct

BLOCK = direct.ALIGNMENT


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder on a filesystem that knows O_DIRECT: tmp_path may be on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3 << 20), max_size=6), st.integers(0, 255))
def test_parts_are_joined(place: Path, lengths: list[int], seed: int) -> None:
    parts = [bytes([(seed + n) % 256]) * length for n, length in enumerate(lengths)]
    file = place / "file"
    with file.open("wb") as handle:
        opened = direct.open_direct(handle.fileno())
        assert opened is not None
        try:
            assert direct.write_direct(opened, BLOCK, parts)
        finally:
            os.close(opened)
    joined = b"".join(parts)
    assert file.read_bytes()[BLOCK : BLOCK + len(joined)] == joined
    assert file.stat().st_size % BLOCK == 0


def test_a_large_object_has_just_its_bytes(place: Path) -> None:
    store = LocalStore(place / "store")
    store.create()
    for length in (1 << 20, (1 << 20) + 1, (5 << 20) - 7):
        parts = [os.urandom(length // 3), os.urandom(length - length // 3)]
        joined = b"".join(parts)
        name = hashlib.sha256(joined).hexdigest()
        store.put(Kind.DATA, name, parts)
        assert store.get(Kind.DATA, name) == joined
        assert (place / "store" / "data" / name[:2] / name).stat().st_size == length


def test_a_refusal_falls_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freezeframe.store.local.write_direct", lambda *_: False)
    monkeypatch.setattr("freezeframe.block.file.write_direct", lambda *_: False)
    test_a_large_object_has_just_its_bytes(place)
    with open_writer(str(place / "raw"), size=4 << 20, create=True) as file:
        data = os.urandom(1 << 20)
        file.write_at(BLOCK, data)
        assert file.read_at(BLOCK, len(data)) == data


def test_large_and_small_writes_to_one_file_agree(place: Path) -> None:
    path = place / "raw"
    wanted = bytearray(4 << 20)
    with open_writer(str(path), size=len(wanted), create=True) as file:
        for offset, length in ((0, 1 << 20), (100, 5000), (1 << 20, 1 << 20), (0x180000, 65536)):
            data = os.urandom(length)
            file.write_at(offset, data)
            wanted[offset : offset + length] = data
            assert file.read_at(offset, length) == data
        file.flush()
    assert path.read_bytes() == wanted
