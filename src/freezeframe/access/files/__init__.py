"""Files of filesystems inside images, read without a mount and without root."""
