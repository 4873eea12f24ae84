"""Loop devices: moved to `freezeframe.system.loop`."""

from freezeframe.system.loop import attached

__all__ = ["attached"]
