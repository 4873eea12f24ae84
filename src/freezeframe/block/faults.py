"""What a failed opening means, for a source and for a target."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from freezeframe.core.errors import FreezeframeError, SourceError, TargetUnsuitable

#: Makes an error of a message and a hint.
Fault = Callable[[str, str], FreezeframeError]


def source_fault(message: str, hint: str = "") -> FreezeframeError:
    """Return what is raised where a source cannot be had."""
    return SourceError(message, hint=hint)


def target_fault(message: str, hint: str = "") -> FreezeframeError:
    """Return what is raised where a target cannot be had."""
    return TargetUnsuitable(message, hint=hint)


def denied(path: str, error: OSError, fault: Fault) -> FreezeframeError:
    """Return what a failed opening means, and what to do about it."""
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.geteuid() == 0:
            return fault(
                f"{path} may not be opened, even by root", "run it outside of the container"
            )
        return fault(f"{path} may not be opened by this user", "run it as root: sudo freezeframe …")
    if error.errno in (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
        return fault(f"{path} has no medium, or has gone", "list the disks: freezeframe disks")
    if error.errno == errno.ENOENT:
        return fault(f"there is no {path}", "list the disks: freezeframe disks")
    if error.errno == errno.EEXIST:
        return fault(f"{path} exists already", "name a file that does not exist yet")
    if error.errno == errno.EROFS:
        return fault(f"{path} is read-only", "choose another")
    return fault(f"{path} cannot be opened: {error.strerror}", "")
