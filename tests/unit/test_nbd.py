"""The NBD server, as QEMU's own client sees it, and as nobody should use it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.access.nbd import NbdServer
from freezeframe.block.faulty import FaultyReader
from freezeframe.block.file import open_reader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB

DATA = random.Random(7).randbytes(3 * MIB + 512)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "nbd"


@pytest.fixture
def server(place: Path) -> Iterator[NbdServer]:
    bad = FaultyReader(MemoryBlocks(DATA), bad=Extents.single(MIB, MIB + 512))
    with NbdServer({"good": MemoryBlocks(DATA), "bad": bad}, str(place)) as served:
        yield served


def qemu(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def url(place: Path, name: str) -> str:
    return f"nbd+unix:///{name}?socket={place}"


def test_all_of_it_is_what_the_reader_holds(server: NbdServer, place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    qemu("qemu-img", "convert", "-O", "raw", "-f", "raw", url(place, "good"), copy)
    assert copy.read_bytes() == DATA
    told = qemu("qemu-img", "info", "--output=json", url(place, "good"))
    assert json.loads(told)["virtual-size"] == len(DATA)
    assert server.port == 0
    assert place.stat().st_mode & 0o077 == 0


def test_exports_are_listed_and_unknown_ones_refused(server: NbdServer, place: Path) -> None:
    listed = qemu("qemu-nbd", "--list", "-k", place)
    assert "'good'" in listed
    assert "'bad'" in listed
    assert "readonly" in listed
    qemu("qemu-img", "info", url(place, "none"), code=1)


def test_what_cannot_be_read_is_an_error_of_just_those_reads(
    server: NbdServer, place: Path
) -> None:
    io = ("qemu-io", "-r", "-f", "raw", url(place, "bad"))
    assert "read failed: Input/output error" in qemu(*io, "-c", f"read {MIB} 512", code=1)
    assert "read 4096/4096" in qemu(*io, "-c", "read 0 4096")
    assert "read 4096/4096" in qemu(*io, "-c", f"read {2 * MIB} 4096")


def test_holes_are_known_and_not_read(place: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(64 * MIB)
        for at in (3, 40):
            file.seek(at * MIB)
            file.write(DATA[:MIB])
    with open_reader(str(sparse)) as reader, NbdServer({"": reader}, str(place)):
        listed = qemu("qemu-img", "map", "--output=json", url(place, ""))
        data = [piece for piece in json.loads(listed) if piece["data"]]
        assert [(piece["start"], piece["length"]) for piece in data] == [
            (3 * MIB, MIB),
            (40 * MIB, MIB),
        ]
        copy = tmp_path / "copy.qcow2"
        qemu("qemu-img", "convert", "-O", "qcow2", "-f", "raw", url(place, ""), copy)
        assert "identical" in qemu("qemu-img", "compare", copy, sparse)


def test_a_tcp_address(tmp_path: Path) -> None:
    with NbdServer({"": MemoryBlocks(DATA)}, ("127.0.0.1", 0)) as server:
        copy = tmp_path / "copy"
        address = f"nbd://127.0.0.1:{server.port}/"
        qemu("qemu-img", "convert", "-O", "raw", "-f", "raw", address, copy)
    assert copy.read_bytes() == DATA


def test_an_address_that_is_taken(server: NbdServer, place: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be served"):
        NbdServer({"x": MemoryBlocks(DATA)}, str(place))
    with pytest.raises(UsageError, match="nothing to serve"):
        NbdServer({}, str(place.with_name("other")))


def test_closed_it_leaves_nothing(place: Path) -> None:
    server = NbdServer({"x": MemoryBlocks(DATA)}, str(place))
    with connect(place) as client:
        server.close()
        server.close()
        assert not place.exists()
        assert client.recv(10) == b""


# -- clients of another kind ----------------------------------------------------------------


def connect(place: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(place))
    assert len(client.recv(18, socket.MSG_WAITALL)) == 18
    client.sendall(struct.pack(">I", 3))
    return client


def in_transmission(place: Path, name: bytes = b"good") -> socket.socket:
    client = connect(place)
    client.sendall(struct.pack(">8sII", b"IHAVEOPT", 1, len(name)) + name)
    size, flags = struct.unpack(">QH", client.recv(10, socket.MSG_WAITALL))
    assert size == len(DATA)
    assert flags & 2
    return client


def request(command: int, offset: int, length: int, cookie: int = 5) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length)


def reply(client: socket.socket) -> int:
    magic, error, cookie = struct.unpack(">IIQ", client.recv(16, socket.MSG_WAITALL))
    assert (magic, cookie) == (0x67446698, 5)
    return int(error)


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, b"\0" * 64, b"\xff" * 64])
def test_a_client_that_speaks_something_else_is_dropped(
    server: NbdServer, place: Path, start: bytes
) -> None:
    with connect(place) as client:
        client.sendall(start)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while client.recv(4096):
                pass
    in_transmission(place).close()


def test_options_nobody_knows_and_exports_there_are_not(server: NbdServer, place: Path) -> None:
    client = connect(place)
    some = struct.pack(">I", 4) + b"good"
    for option, data, kind in (
        (99, b"abc", 1),
        (5, b"", 1),
        (7, b"", 3),
        (7, struct.pack(">I", 1 << 30) + b"x" * 8, 3),
        (7, struct.pack(">I", 4) + b"none" + b"\0\0", 6),
        (10, some + struct.pack(">I", 0), 3),  # before structured replies
        (9, some + struct.pack(">II", 1, 1 << 31), 3),
        (9, some + struct.pack(">I", 1 << 31), 3),
        (9, struct.pack(">I", 4) + b"none" + struct.pack(">I", 0), 6),
    ):
        client.sendall(struct.pack(">8sII", b"IHAVEOPT", option, len(data)) + data)
        magic, echoed, got, length = struct.unpack(">QIII", client.recv(20, socket.MSG_WAITALL))
        assert (magic, echoed, got, length) == (0x3E889045565A9, option, (1 << 31) + kind, 0)
    client.sendall(struct.pack(">8sII", b"IHAVEOPT", 2, 0))
    client.close()


def test_requests_that_make_no_sense(server: NbdServer, place: Path) -> None:
    client = in_transmission(place)
    for command, offset, length, error in (
        (0, len(DATA), 1, 22),
        (0, 1 << 63, 1, 22),
        (0, 0, (1 << 32) - 1, 22),
        (4, 0, 512, 1),
        (6, 0, 512, 1),
        (17, 0, 512, 22),
        (7, 0, 512, 22),
        (3, 0, 0, 0),
    ):
        client.sendall(request(command, offset, length))
        assert reply(client) == error
    client.sendall(request(1, 0, 512) + b"x" * 512)
    assert reply(client) == 1
    client.sendall(request(0, 1000, 10))
    assert reply(client) == 0
    assert client.recv(10, socket.MSG_WAITALL) == DATA[1000:1010]
    client.sendall(b"\0" * 28)
    assert client.recv(1) == b""
    client.close()


def test_a_client_that_leaves_while_it_is_answered(server: NbdServer, place: Path) -> None:
    client = in_transmission(place)
    client.sendall(request(0, 0, 2 * MIB) * 40)
    client.close()
    after = in_transmission(place)
    after.sendall(request(0, 0, 4))
    assert reply(after) == 0
    assert after.recv(4, socket.MSG_WAITALL) == DATA[:4]
    after.close()
