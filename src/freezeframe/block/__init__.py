"""Readers and writers of bytes at offsets: device, raw file, memory, faulty."""
