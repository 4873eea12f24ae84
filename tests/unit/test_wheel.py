"""What is installed has the compiled tracker."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OBJECT = "freezeframe/tracking/bpf/tracker.bpf.o"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The project as git has it: nothing compiled."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("src", "tools", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        whole = ROOT / name
        if whole.is_dir():
            shutil.copytree(
                whole, copy / name, ignore=shutil.ignore_patterns("*.bpf.o", "__pycache__")
            )
        else:
            shutil.copy(whole, copy / name)
    return copy


def build(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=sources,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="no hatchling")
def test_a_wheel_contains_the_compiled_tracker(sources: Path) -> None:
    done = build(sources)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        made = archive.read(OBJECT)
    assert made[:4] == b"\x7fELF"
    # EM_BPF, little-endian; and the same wherever it is compiled.
    assert made[18:20] == b"\xf7\x00"
    subprocess.run(["sh", str(ROOT / "tools/build-bpf")], check=True)
    assert made == (ROOT / "src" / OBJECT).read_bytes()
    assert str(sources).encode() not in made


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="no hatchling")
def test_without_a_compiler_there_is_no_wheel(sources: Path) -> None:
    done = build(sources, CLANG="no-such-clang")
    assert done.returncode != 0
    assert "clang is needed" in done.stdout + done.stderr
    assert not list((sources / "dist").glob("*.whl"))
