"""Images that others made, as disks to be imaged."""
