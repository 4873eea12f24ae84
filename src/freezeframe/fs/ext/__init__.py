"""ext2, ext3 and ext4."""

from freezeframe.fs.ext.used import ExtKind

KIND = ExtKind()
