"""NTFS."""

from freezeframe.fs.ntfs.used import KIND

__all__ = ["KIND"]
