"""XFS."""

from freezeframe.fs.xfs.used import XfsKind

#: For a filesystem nobody has mounted for writing.
KIND = XfsKind()
#: For one that is mounted and frozen at this moment.
FROZEN = XfsKind(frozen=True)
