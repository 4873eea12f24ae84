"""ext2, ext3 and ext4."""

from freezeframe.fs.ext.used import ExtKind

#: For a filesystem nobody has mounted for writing.
KIND = ExtKind()
#: For one that is mounted and frozen at this moment.
FROZEN = ExtKind(frozen=True)
