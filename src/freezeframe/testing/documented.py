"""Programs that stand in documents, as modules: what is told there is what is tested."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def documented_module(page: Path, name: str, folder: Path) -> Iterator[ModuleType]:
    """Import the block of a page that begins with `# <name>.py`; `folder` is for its file."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    (text,) = (block for block in blocks if block.startswith(f"# {name}.py\n"))
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)
