"""Named write-once objects: a local directory, memory."""
