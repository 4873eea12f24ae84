"""LVM2 physical volumes."""

from freezeframe.fs.lvm.used import LvmKind

__all__ = ["LvmKind"]
