"""Parts of writers that need no server: what is found where, and what is understood."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.core.errors import UsageError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers import links
from freezeframe.shadow.writers.client import Client, ClientFailed
from freezeframe.shadow.writers.commands import CommandFailed, Commands
from freezeframe.shadow.writers.links import resolved
from freezeframe.shadow.writers.mariadb import way_of
from freezeframe.shadow.writers.settings import load_settings
from freezeframe.system.mounts import parse_mountinfo
from freezeframe.system.servers import servers
from freezeframe.testing.frozen import eventually

# -- servers ------------------------------------------------------------------------------------

_LISTENS = """
import os, socket, sys
os.chdir(sys.argv[1])
plain = socket.socket(); plain.bind(("127.0.0.1", 0)); plain.listen()
long = socket.socket(socket.AF_INET6); long.bind(("::1", 0)); long.listen()
local = socket.socket(socket.AF_UNIX); local.bind("a socket"); local.listen()
connected = socket.create_connection(plain.getsockname())
kept = open("data", "w")
open("/proc/self/comm", "w").write("ffserver")
print(plain.getsockname()[1], long.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_server_is_described(tmp_path: Path) -> None:
    """Where it works, listens and writes; and no longer once it has ended."""
    if not Path("/proc/net/tcp6").exists() or not socket.has_ipv6:
        pytest.fail("the kernel has no IPv6")
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENS, str(tmp_path), "--data-dir=/srv/x y"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        plain, long = map(int, process.stdout.readline().split())
        (found,) = [each for each in servers({"ffserver"}) if each.pid == process.pid]
        assert found.folder == tmp_path
        assert (found.user, found.group) == (os.geteuid(), os.getegid())
        assert found.option("data-dir") == "/srv/x y"
        assert found.tcp_ports() == sorted(
            [("127.0.0.1", plain), ("::1", long)], key=lambda each: each[1]
        )
        assert found.unix_sockets() == ["a socket"]
        assert tmp_path / "data" in found.open_files()
        assert found.runs
        assert process.stdin is not None
        process.stdin.close()
    assert not found.runs
    assert not found.open_files()


def test_another_root_is_another_machine(tmp_path: Path) -> None:
    """What runs in a container names its files otherwise: it is left out."""
    if os.geteuid() != 0:
        pytest.fail("only root can change its root")
    program = "import os, sys, time; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        name = Path("/proc", str(process.pid), "comm").read_text().strip()
        assert process.pid not in [each.pid for each in servers({name})]
        process.kill()


# -- settings -----------------------------------------------------------------------------------


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "writers.toml"
    assert load_settings(file).sqlite.find
    file.write_text('[sqlite]\ndatabases = ["/srv/a.db"]\nfind = false\n[systemd]\nstop = ["x"]\n')
    found = load_settings(file)
    assert found.sqlite.databases == ("/srv/a.db",)
    assert not found.sqlite.find
    assert found.systemd.stop == ("x",)
    for text in ("[sqlite]\ndatabase = 1\n", "[sqlite\n", "[sqlite]\ndatabases = 5\n"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"writers.toml is not understood") as caught:
            load_settings(file)
        assert caught.value.hint


def test_links_and_mounts_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, log, space = tmp_path / "data", tmp_path / "log", tmp_path / "space"
    for folder in (data, data / "pg_tblspc", log, space):
        folder.mkdir()
    (data / "pg_wal").symlink_to(log)
    (data / "pg_tblspc" / "16384").symlink_to(space)
    (tmp_path / "link").symlink_to(data)
    found = resolved(tmp_path / "link", inside=("", "pg_tblspc", "absent"))
    assert found == (data, log, space)
    # Mounted in the folder, without any link; and what is in memory is not to be restored.
    (data / "pg_stat_tmp").symlink_to(space / "memory")
    mounts = (
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"22 21 8:2 / {data}/base rw - ext4 /dev/sda2 rw\n"
        f"23 21 0:5 / {data}/temporary rw - tmpfs tmpfs rw\n"
        f"24 21 0:6 / {space}/memory rw - tmpfs tmpfs rw\n"
    )
    monkeypatch.setattr(links, "own_mounts", lambda: parse_mountinfo(mounts))
    found = resolved(data, inside=("", "pg_tblspc"))
    assert set(found) == {data, log, space, data / "base"}


# -- how each version is held -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "first", "position"),
    [
        ("10.11.19-MariaDB-0+deb12u1-log", "BACKUP STAGE START", "SHOW MASTER STATUS"),
        ("11.4.2-MariaDB", "BACKUP STAGE START", "SHOW MASTER STATUS"),
        ("10.3.39-MariaDB", "FLUSH TABLES WITH READ LOCK", "SHOW MASTER STATUS"),
        ("5.7.44-log", "FLUSH TABLES WITH READ LOCK", "SHOW MASTER STATUS"),
        ("8.0.39", "LOCK INSTANCE FOR BACKUP", "SHOW MASTER STATUS"),
        ("8.4.3", "LOCK INSTANCE FOR BACKUP", "SHOW BINARY LOG STATUS"),
        ("9.1.0", "LOCK INSTANCE FOR BACKUP", "SHOW BINARY LOG STATUS"),
    ],
)
def test_the_statements_of_a_version(version: str, first: str, position: str) -> None:
    way = way_of(version)
    assert way.hold[0] == first
    assert way.position == position
    assert len(way.release) == (2 if first.startswith("LOCK") else 1)


# -- clients and commands -----------------------------------------------------------------------

_ECHO = r"""
import sys
for line in sys.stdin:
    word, _, rest = line.rstrip().partition(" ")
    if word == "say":
        print(rest, flush=True)
    elif word == "lines":
        print("x" * int(rest) + "\n" + "y", flush=True)
    elif word == "fail":
        print("ERROR " + rest, file=sys.stderr, flush=True)
    elif word == "lose":
        print("ERROR lost", file=sys.stderr, flush=True)
        sys.stdin.read()
    elif word == "end":
        sys.exit(rest)
"""


def client() -> Client:
    return Client(
        (sys.executable, "-c", _ECHO),
        ending=lambda word: f"say {word}",
        failure=lambda text: text.partition("ERROR ")[2].strip(),
        refusal="REFUSED",
    )


def test_answers_come_whole() -> None:
    with client() as asked:
        assert asked.ask("lines 300000", Deadline.after(60)) == ["x" * 300_000, "y"]
        assert asked.ask("say one\nsay two", Deadline.after(60)) == ["one", "two"]
        assert asked.alive
    assert not asked.alive
    asked.close()


def test_what_fails_is_told_and_the_session_goes_on() -> None:
    with client() as asked:
        with pytest.raises(ClientFailed, match="no such table") as caught:
            asked.ask("fail no such table", Deadline.after(60))
        assert not caught.value.gone
        assert asked.ask("say still there", Deadline.after(60)) == ["still there"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [("lose", "lost"), ("end bye", "bye"), ("say REFUSED: no", "REFUSED: no")],
)
def test_a_lost_session_is_told(statement: str, message: str) -> None:
    """Also where the program itself goes on, and never comes to the end of the answer."""
    with client() as asked:
        with pytest.raises(ClientFailed, match=message) as caught:
            asked.ask(statement, Deadline.after(60))
        assert caught.value.gone
        eventually(lambda: not asked.alive)


def test_what_does_not_answer_is_ended() -> None:
    with Client(("sleep", "600"), ending=str, failure=str) as asked:
        with pytest.raises(ClientFailed, match="no answer within") as caught:
            asked.ask("anything", Deadline.after(0.1))
        assert caught.value.gone


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}; echo working; wait"
    with pytest.raises(CommandFailed, match=r"took longer than 0\.5 s: working"):
        Commands().run(("/bin/sh", "-c", script), Deadline.after(0.5))
    pid = int(note.read_text())
    eventually(lambda: _ended(pid))


def _ended(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
