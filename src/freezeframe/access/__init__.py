"""Images in use: their disks as readers, devices, files, machines."""
