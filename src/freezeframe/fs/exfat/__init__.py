"""exFAT."""

from freezeframe.fs.exfat.used import KIND

__all__ = ["KIND"]
