"""The process that resumes suspended volumes when the program that suspended them cannot.

The watchdog of frozen filesystems (`shadow.watchdog_process`), with another call: a volume
is resumed by device-mapper's own ioctl. No program can be started for that while the volume
beneath the root filesystem is suspended; this process is there already, and in memory.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from freezeframe.shadow.watchdog_process import Watch, serve, settle_down
from freezeframe.system.devmapper import DeviceMapper


class Resume(Watch):
    """Which volumes are suspended, and resuming them. `limit` in seconds, from `arm`."""

    def __init__(self, names: list[str], limit: float) -> None:
        super().__init__([], names, limit, 0)
        self._volumes = names
        self._mapper = DeviceMapper()

    def let_go(self, index: int) -> None:
        """Resume one volume, in a child. EINVAL where it is not suspended."""
        info = self._mapper.info(self._volumes[index])
        # The rehearsal goes all the way but the last step.
        if index < 0 or info is None or not info.suspended:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._mapper.resume(self._volumes[index])


def main(arguments: list[str]) -> None:
    """Serve one program: CHANNEL PIDFD LIMIT, then the NAME of each volume."""
    channel, process = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    watch = Resume(arguments[3:], float(arguments[2]))
    locked = settle_down()
    watch.rehearse()
    channel.send(f"ready {int(locked)}".encode())
    serve(channel, process, watch)
    watch.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
