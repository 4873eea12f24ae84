"""libbpf, as far as it is needed: open an object, set its constants, load, attach, pin.

`ctypes` over `libbpf.so.1` (libbpf 1.x keeps that ABI). The library is needed to load a
program only; reading what one that is pinned has marked is in `pinned`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from freezeframe.core.errors import FreezeframeError, TrackingUnavailable

_LIBRARY = "libbpf.so.1"
_DATASEC = 15
_PRINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
#: name: (result, arguments). Pointers as `c_void_p`: anything else is cut to 32 bits.
_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_U32, _SIZE = ctypes.c_uint32, ctypes.c_size_t
_FUNCTIONS = {
    "libbpf_set_print": (_POINTER, (_PRINTER,)),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__btf": (_POINTER, (_POINTER,)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__attach": (_POINTER, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, _U32)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, ctypes.POINTER(_SIZE))),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__pin": (_INT, (_POINTER, _TEXT)),
    "bpf_link__pin": (_INT, (_POINTER, _TEXT)),
    "bpf_link__fd": (_INT, (_POINTER,)),
    "bpf_link__disconnect": (None, (_POINTER,)),
    "bpf_link__destroy": (_INT, (_POINTER,)),
    "btf__find_by_name_kind": (_INT, (_POINTER, _TEXT, _U32)),
    "btf__type_by_id": (_POINTER, (_POINTER, _U32)),
    "btf__name_by_offset": (_TEXT, (_POINTER, _U32)),
}

#: What libbpf said, in the thread that called it.
_said = threading.local()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.vsnprintf.argtypes = (_POINTER, _SIZE, _TEXT, _POINTER)
_libc.vsnprintf.restype = _INT


def _listen(level: int, form: bytes, arguments: int) -> int:
    """Keep warnings (level 0) and what explains them; libbpf prints to stderr otherwise."""
    if level <= 1:
        buffer = ctypes.create_string_buffer(4096)
        _libc.vsnprintf(buffer, len(buffer), form, arguments)
        lines: list[str] = getattr(_said, "lines", [])
        lines.append(buffer.value.decode(errors="replace").strip())
        _said.lines = lines[-40:]
    return 0


#: For as long as the library is loaded: it calls back through this.
_listener = _PRINTER(_listen)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise TrackingUnavailable(
            f"writes cannot be tracked: {_LIBRARY} is missing or too old ({error})",
            hint="install it: apt-get install libbpf1",
        ) from error
    library.libbpf_set_print(_listener)
    return library


def available() -> str:
    """Return why the library cannot be used, or nothing where it can."""
    try:
        _library()
    except TrackingUnavailable as error:
        return error.message
    return ""


def _failure(what: str, number: int) -> FreezeframeError:
    lines: list[str] = getattr(_said, "lines", [])
    warnings = [line for line in lines if line]
    reason = os.strerror(number) if number else "no reason given"
    error = TrackingUnavailable(
        f"writes cannot be tracked: {what} failed: {reason}",
        hint=(
            "run it as root, outside of containers"
            if number in (errno.EPERM, errno.EACCES)
            else "see what works here: freezeframe doctor"
        ),
    )
    for line in warnings[-6:]:
        error.add_note(line)
    return error


def _checked(what: str, result: int | None) -> int:
    """Return a pointer that is there. Raises `TrackingUnavailable`."""
    if not result:
        raise _failure(what, ctypes.get_errno())
    return result


def _succeeded(what: str, result: int) -> None:
    if result < 0:
        raise _failure(what, -result)


class BpfObject:
    """An object file that is open: constants first, then `load`, then `attach` and pin."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self._programs: dict[str, int] = {}
        library, before = _library(), 0
        while found := library.bpf_object__next_program(pointer, before):
            self._programs[library.bpf_program__name(found).decode()] = found
            before = found

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of all programs in it."""
        return tuple(self._programs)

    def keep(self, names: tuple[str, ...]) -> None:
        """Load these programs and no other. The rest is not even looked up in the kernel."""
        for name, program in self._programs.items():
            wanted = name in names
            _succeeded(name, _library().bpf_program__set_autoload(program, wanted))

    def set_constants(self, values: Mapping[str, int]) -> None:
        """Set read-only variables, found by name in the object's BTF. `KeyError` for no such."""
        library = _library()
        size = _SIZE()
        address = _checked(
            "finding constants",
            library.bpf_map__initial_value(self._map(".rodata"), ctypes.byref(size)),
        )
        places = self._variables(".rodata")
        for name, value in values.items():
            offset, length = places[name]
            if offset + length > size.value:
                raise _failure(f"setting {name}", errno.ERANGE)
            ctypes.memmove(address + offset, value.to_bytes(length, "little"), length)

    def _variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Return name → (offset, length) of a section's variables.

        struct btf_type {name_off, info, size}, then for each variable struct btf_var_secinfo
        {type, offset, size}; Documentation/bpf/btf.rst.
        """
        library = _library()
        btf = _checked("reading BTF", library.bpf_object__btf(self._pointer))
        number = library.btf__find_by_name_kind(btf, section.encode(), _DATASEC)
        _succeeded(f"finding {section}", number)
        kind = _checked("reading BTF", library.btf__type_by_id(btf, number))
        _, info, _ = struct.unpack("=3I", ctypes.string_at(kind, 12))
        found = {}
        for index in range(info & 0xFFFF):
            entry = ctypes.string_at(kind + 12 + 12 * index, 12)
            variable, offset, length = struct.unpack("=3I", entry)
            where = _checked("reading BTF", library.btf__type_by_id(btf, variable))
            name_offset = struct.unpack("=I", ctypes.string_at(where, 4))[0]
            name = library.btf__name_by_offset(btf, name_offset).decode()
            found[name] = (offset, length)
        return found

    def _map(self, name: str) -> int:
        found = _library().bpf_object__find_map_by_name(self._pointer, name.encode())
        return _checked(f"finding map {name}", found)

    def resize(self, name: str, entries: int) -> None:
        """Set the number of elements of a map, before `load`."""
        _succeeded(f"sizing {name}", _library().bpf_map__set_max_entries(self._map(name), entries))

    def load(self) -> None:
        """Let the kernel verify and take it. Raises `TrackingUnavailable` with its reasons."""
        _said.lines = []
        _succeeded("loading the program", _library().bpf_object__load(self._pointer))

    def map_descriptor(self, name: str) -> int:
        """Return the descriptor of a loaded map; the object owns it."""
        return int(_library().bpf_map__fd(self._map(name)))

    def pin_map(self, name: str, path: Path) -> None:
        """Keep a map for as long as the file is there."""
        _succeeded(f"pinning {name}", _library().bpf_map__pin(self._map(name), os.fsencode(path)))

    def attach_pinned(self, program: str, path: Path) -> None:
        """Attach a program where its section says, until the file is removed."""
        library = _library()
        _said.lines = []
        link = _checked(
            f"attaching {program}", library.bpf_program__attach(self._programs[program])
        )
        failed = library.bpf_link__pin(link, os.fsencode(path))
        if failed:
            library.bpf_link__destroy(link)
            raise _failure(f"pinning {program}", -failed)
        # Not to be detached: libbpf switches the event of a classic tracepoint off otherwise.
        descriptor = library.bpf_link__fd(link)
        library.bpf_link__disconnect(link)
        library.bpf_link__destroy(link)
        os.close(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[BpfObject]:
    """Open an object file; closed in the end. What is pinned stays."""
    library = _library()
    _said.lines = []
    pointer = _checked(
        f"opening {path.name}", library.bpf_object__open_file(os.fsencode(path), None)
    )
    try:
        yield BpfObject(pointer)
    finally:
        library.bpf_object__close(pointer)
