"""Points in time of disks in use: which filesystems lie on them, and holding these still."""
