"""Hot processing: one point in time of disks in use, with a pause of milliseconds."""
