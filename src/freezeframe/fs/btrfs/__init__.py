"""btrfs."""

from freezeframe.fs.btrfs.used import KIND

__all__ = ["KIND"]
