"""From disks to an image: plan, pipeline."""
