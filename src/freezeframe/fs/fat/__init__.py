"""FAT12, FAT16 and FAT32."""

from freezeframe.fs.fat.used import KIND

__all__ = ["KIND"]
