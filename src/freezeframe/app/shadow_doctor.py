"""What works on this machine of shadow copies: providers and writers."""

from __future__ import annotations

from collections.abc import Iterator

from freezeframe.app.hot_doctor import Finding
from freezeframe.app.writers import examine_writers
from freezeframe.shadow.journal import running
from freezeframe.shadow.providers import provider_kinds


def shadow_findings() -> Iterator[Finding]:
    """Look at each provider and writer, and at what dead programs left. Changes nothing."""
    providers = provider_kinds()
    for name, kind in providers.kinds.items():
        if reason := kind.unavailable():
            yield Finding(f"provider {name}", "limited", reason, "volumes are taken by others")
        else:
            yield Finding(f"provider {name}", "ok", "freezeframe disks tells where it suits")
    for name, reason in providers.broken.items():
        yield Finding(
            f"provider {name}", "missing", reason, "mend or remove the package it came from"
        )
    found = examine_writers()
    for each in found.writers:
        yield Finding(f"writer {each.name}", "ok", each.about)
    for name, reason in found.unavailable:
        yield Finding(f"writers {name}", "limited", reason, "nothing where none runs here")
    left = [each.entry.name for each in running() if not each.alive]
    if left:
        yield Finding(
            "shadow copies",
            "limited",
            f"left by programs that died: {', '.join(left)}",
            "freezeframe shadow cleanup (the next image does it as well)",
        )
