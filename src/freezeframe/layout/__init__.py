"""What a disk consists of: capture its partition table and gaps, recreate them."""
