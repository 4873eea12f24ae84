"""What documents say of the program is what the program says of itself."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from freezeframe.image import manifest
from freezeframe.system.tools import packages

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_command_reference_is_current() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "command-reference"))["reference"]()
    assert (ROOT / "docs" / "commands.md").read_text() == made, "run tools/command-reference"


def test_the_manifest_schema_is_current() -> None:
    assert (ROOT / "docs" / "manifest.schema.json").read_bytes() == manifest.schema(), (
        "run tools/command-reference"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_lock_file_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    pins = re.findall(r"^([a-z0-9-]+)==\S+", text, re.MULTILINE)
    blocks = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins)
    assert all("--hash=sha256:" in block for block in blocks)


def test_every_system_package_says_what_for() -> None:
    assert all(p.needed_for in ("run", "build", "test", "bench") and p.purpose for p in packages())
    names = [p.name for p in packages()]
    assert len(names) == len(set(names))
