"""XFS."""

from freezeframe.fs.xfs.used import XfsKind

KIND = XfsKind()
