"""What we use of mfusepy, which has types but does not say so (PEP 561 knows no single files)."""

import ctypes

_libfuse: ctypes.CDLL

class fuse_file_info(ctypes.Structure):  # noqa: N801 - its name
    flags: int
    fh: int

class FUSE:
    operations: object
    def __init__(
        self,
        operations: object,
        mountpoint: str,
        raw_fi: bool = ...,
        encoding: str = ...,
        **kwargs: str | int | bool,
    ) -> None: ...
    def init_fuse_3(
        self,
        conn: ctypes._Pointer[ctypes.Structure],
        config: ctypes._Pointer[ctypes.Structure],
    ) -> None: ...
