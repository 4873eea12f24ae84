"""Providers: ways to take point-in-time copies. See `base` for what one is.

`hot` is none of these: it is the engine of online images itself (`backup.hot`), and takes
what no other provider does.
"""

from __future__ import annotations

from freezeframe.shadow.providers.base import Provider
from freezeframe.shadow.registry import Registered, load

#: Entry points of other packages.
GROUP = "freezeframe.providers"
#: The program's own.
_OWN = {
    "lvm-thin": "freezeframe.shadow.providers.lvm_thin:LvmThinProvider",
    "lvm": "freezeframe.shadow.providers.lvm:LvmProvider",
    "dm": "freezeframe.shadow.providers.dm:DmProvider",
    "btrfs": "freezeframe.shadow.providers.btrfs:BtrfsProvider",
}


def provider_kinds() -> Registered[type[Provider]]:
    """Return the providers there are."""
    return load(GROUP, _OWN, Provider)  # type: ignore[type-abstract]
