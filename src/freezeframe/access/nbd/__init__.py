"""An NBD server for readers: what QEMU, nbd-client and the other tools of the protocol read."""

from freezeframe.access.nbd.server import Address, NbdServer

__all__ = ["Address", "NbdServer"]
