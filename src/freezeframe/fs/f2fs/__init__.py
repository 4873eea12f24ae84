"""F2FS."""

from freezeframe.fs.f2fs.used import KIND

__all__ = ["KIND"]
