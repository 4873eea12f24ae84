"""Machines started from images: firmware, accelerator, command line, signs of life."""
