"""Filesystems and volumes: what of a region is in use, read from its own structures."""
