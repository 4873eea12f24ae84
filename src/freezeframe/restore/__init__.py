"""From an image to disks: plan, execute, verify."""
