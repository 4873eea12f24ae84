"""The one door to the machine: subprocess, ioctl, sysfs, the list of tools."""
