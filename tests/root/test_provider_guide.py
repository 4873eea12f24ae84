"""The provider that `docs/adding-a-provider.md` shows passes the contract suite."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.providers.base import Provider
from freezeframe.testing.frozen import mounted_disk
from freezeframe.testing.provider_contract import Ground, ProviderContract, volume_at

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-provider.md"


def shown() -> type[Provider]:
    """Return the class the page shows."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    found = names["CopyProvider"]
    assert isinstance(found, type)
    assert issubclass(found, Provider)
    return found


class TestShown(ProviderContract):
    provider = shown()

    @contextlib.contextmanager
    def ground(self, folder: Path) -> Iterator[Ground]:
        with (
            mounted_disk(folder, "ext4", "one", size=24 * MIB) as one,
            mounted_disk(folder, "ext4", "two", size=24 * MIB) as two,
        ):
            yield Ground((one.point, two.point), (volume_at(one.point), volume_at(two.point)))

    def break_commit(self, provider: Provider) -> None:
        # As if the device ended early.
        ((source, _), *_) = provider.files  # type: ignore[attr-defined]
        source.seek(MIB)
