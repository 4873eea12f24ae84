"""Servers that run on this machine: their processes, folders, sockets and open files.

Sources: proc(5), and /proc/net/unix and /proc/net/tcp as the kernel's
Documentation/networking/proc_net_tcp describes them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system.mounts import processes

_SOCKET = re.compile(r"^socket:\[(\d+)\]$")
_DELETED = " (deleted)"
#: States in /proc/net/tcp and /proc/net/unix: listening.
_LISTEN_TCP = "0A"
_ACCEPTS = 0x10000
#: Field 22 of /proc/<pid>/stat, counted from behind the name: clock ticks since the boot.
_STARTED = 19


@dataclass(frozen=True, slots=True)
class Server:
    """One process, as it was when it was looked at."""

    pid: int
    #: The kernel's short name of it.
    name: str
    #: The program's file; of one that was replaced since, where it was. Nothing if unknown.
    program: str
    arguments: tuple[str, ...]
    #: Whom it acts as.
    user: int
    group: int
    #: Where it works: many databases work in their data folder.
    folder: Path
    #: Tells it from a later process of the same id.
    started: int

    @property
    def runs(self) -> bool:
        """Whether it still does."""
        return _started(self.pid) == self.started

    def option(self, name: str) -> str:
        """Return the value of `--name=value` among its arguments, or nothing."""
        for argument in self.arguments[1:]:
            key, found, value = argument.partition("=")
            if found and key.lstrip("-").replace("_", "-") == name:
                return value
        return ""

    def unix_sockets(self) -> list[str]:
        """Return the paths of the sockets it accepts connections on, as it named them."""
        inodes = self._sockets()
        found = []
        for line in _lines(f"/proc/{self.pid}/net/unix"):
            # Num RefCount Protocol Flags Type St Inode Path; a path may hold blanks.
            fields = line.split(None, 7)
            if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS and fields[6] in inodes:
                found.append(fields[7])
        return found

    def tcp_ports(self) -> list[tuple[str, int]]:
        """Return the addresses and ports it accepts connections on, the lowest port first."""
        inodes = self._sockets()
        found = []
        for name in ("tcp", "tcp6"):
            for line in _lines(f"/proc/{self.pid}/net/{name}"):
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTEN_TCP and fields[9] in inodes:
                    found.append(_endpoint(fields[1]))
        # Others are for members of a cluster, or speak other protocols.
        return sorted(found, key=lambda each: (each[1], ":" in each[0]))

    def open_files(self) -> list[Path]:
        """Return the paths of what it has open that is no socket, pipe or deleted file."""
        return [Path(link) for link in self._links() if link.startswith("/")]

    def _sockets(self) -> set[str]:
        return {found[1] for link in self._links() if (found := _SOCKET.match(link))}

    def _links(self) -> list[str]:
        return [link for link in _descriptors(self.pid) if not link.endswith(_DELETED)]


def servers(names: Set[str]) -> list[Server]:
    """Return the processes of these short names that see the same files as this program.

    One in a container names its files otherwise, and is left out; one that systemd shut off
    from parts of the tree is not. Takes some milliseconds; opens nothing on any disk.
    """
    ours = _view("self")
    found = []
    for entry in processes():
        try:
            name = Path("/proc", entry, "comm").read_text(encoding="utf-8", errors="replace")
            if name.strip() in names and _view(entry) == ours:
                found.append(_server(int(entry), name.strip()))
        except OSError:
            continue  # it ended while we looked, or is not ours to see
    return found


def open_by_others() -> Iterator[tuple[int, str]]:
    """Give (process, path) of every file that a process with our view has open."""
    ours = _view("self")
    for entry in processes():
        try:
            if int(entry) == os.getpid() or _view(entry) != ours:
                continue
        except OSError:
            continue
        for link in _descriptors(int(entry)):
            if link.startswith("/") and not link.endswith(_DELETED):
                yield int(entry), link


def _server(pid: int, name: str) -> Server:
    folder = Path("/proc", str(pid))
    status = folder.stat()
    arguments = (folder / "cmdline").read_bytes().decode(errors="surrogateescape")
    try:
        program = str((folder / "exe").readlink()).removesuffix(_DELETED)
    except OSError:
        program = ""
    return Server(
        pid=pid,
        name=name,
        program=program,
        arguments=tuple(arguments.rstrip("\0").split("\0")),
        user=status.st_uid,
        group=status.st_gid,
        folder=(folder / "cwd").readlink(),
        started=_started(pid),
    )


def _view(process: str) -> tuple[int, int, str]:
    """Return what two processes with the same paths and process ids share.

    Not the mount namespace: systemd gives services one of their own, over the same root.
    """
    root = Path("/proc", process, "root").stat()
    return root.st_dev, root.st_ino, str(Path("/proc", process, "ns/pid").readlink())


def _started(pid: int) -> int:
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1
    return int(text.rpartition(")")[2].split()[_STARTED])


def _descriptors(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    found = []
    try:
        names = os.listdir(folder)  # noqa: PTH208 - thousands of them: names suffice
    except OSError:
        return []
    for name in names:
        try:
            found.append(os.readlink(f"{folder}/{name}"))  # noqa: PTH115 - as above
        except OSError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return text.splitlines()[1:]


def _endpoint(text: str) -> tuple[str, int]:
    """Read `0100007F:1F90`: words of the address in this machine's order, a plain port."""
    words, _, port = text.partition(":")
    raw = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)
    )
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)
