"""The one translator between disks and a repository."""
