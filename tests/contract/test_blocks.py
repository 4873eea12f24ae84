"""Every reader and writer keeps the one contract, and others see the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from freezeframe.block.faulty import FaultyReader, FaultyWriter
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.open import open_shared, open_source, open_target
from freezeframe.block.window import Window
from freezeframe.core.units import KIB, MIB
from freezeframe.system.loop import attached
from freezeframe.testing.blocks import check_reader, check_writer


def content(size: int = 3 * MIB) -> bytes:
    data = bytearray(random.Random(7).randbytes(size))
    data[MIB : MIB + 300 * KIB] = bytes(300 * KIB)
    return bytes(data)


def image(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(content())
    return path


def test_memory() -> None:
    check_reader(MemoryBlocks(content()), content())
    check_writer(MemoryBlocks(content(), sector=4096), content())


def test_window() -> None:
    whole = content()
    check_reader(Window(MemoryBlocks(whole), 512, 2 * MIB), whole[512 : 2 * MIB + 512])


def test_file(tmp_path: Path) -> None:
    path = image(tmp_path)
    for open_it in (open_source, open_shared):
        with open_it(path) as reader:
            check_reader(reader, content())
    with open_target(path) as writer:
        after = check_writer(writer, content())
    assert path.read_bytes() == after


def test_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new.raw"
    with open_target(path, size=2 * MIB + 512) as writer:
        after = check_writer(writer, bytes(2 * MIB + 512))
    assert path.read_bytes() == after


def test_faulty_without_faults() -> None:
    check_reader(FaultyReader(MemoryBlocks(content())), content())
    check_writer(FaultyWriter(MemoryBlocks(content())), content())


@pytest.mark.root
@pytest.mark.parametrize("sector", [512, 4096])
def test_device(tmp_path: Path, sector: int) -> None:
    path = image(tmp_path)
    with attached(path, sector=sector) as device:
        with open_source(device) as reader:
            assert reader.sector == sector
            check_reader(reader, content())
        with open_target(device) as writer:
            after = check_writer(writer, content())
        assert Path(device).read_bytes() == after
    assert path.read_bytes() == after
