"""LVM2 physical volumes."""

from freezeframe.fs.lvm.used import LvmKind, open_volumes

__all__ = ["LvmKind", "open_volumes"]
