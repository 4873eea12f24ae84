"""Writers that run programs: scripts, containers, units.

docker and systemctl are programs that behave as they do, over real processes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterVeto
from freezeframe.shadow.writers.containers import ContainerKind
from freezeframe.shadow.writers.hooks import HooksKind
from freezeframe.shadow.writers.systemd import SystemdKind
from freezeframe.testing.frozen import eventually
from freezeframe.testing.writer_contract import Application, WriterContract

pytestmark = pytest.mark.root

# -- scripts ------------------------------------------------------------------------------------

_HOOK = """#!/bin/sh
cd {state} || exit 1
echo "$(basename "$0") $1" >>log
case $1 in
freeze)
    [ ! -e down ] || {{ echo "it is down" >&2; exit 1; }}
    touch held
    while [ -e hang ]; do sleep 0.05; done ;;
thaw)
    rm -f held
    [ ! -e cut ] ;;
esac
"""


class Hooked(Application):
    """Writes to a file unless a script has said to hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hooks.d"
        self.state = folder / "state"
        self.folder.mkdir()
        self.state.mkdir()
        for name in ("20-first", "30-second"):
            self.add(name)

    def add(self, name: str, text: str = _HOOK, mode: int = 0o755) -> Path:
        script = self.folder / name
        script.write_text(text.format(state=self.state))
        script.chmod(mode)
        return script

    def log(self) -> list[str]:
        path = self.state / "log"
        return path.read_text().splitlines() if path.exists() else []

    def write(self) -> None:
        eventually(lambda: not (self.state / "held").exists())
        (self.state / "data").touch()

    def stop(self) -> None:
        (self.state / "down").touch()

    def start(self) -> None:
        for name in ("down", "cut"):
            (self.state / name).unlink(missing_ok=True)

    def cut(self) -> None:
        (self.state / "cut").touch()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        (self.state / "hang").touch()
        yield
        (self.state / "hang").unlink()


class TestHooks(WriterContract):
    cut_matters = False
    folder: Path

    def make_kind(self) -> WriterKind:
        return HooksKind(type(self).folder)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Hooked(folder)
        type(self).folder = application.folder
        type(
            self
        ).imports = (
            "from pathlib import Path; from freezeframe.shadow.writers.hooks import HooksKind"
        )
        type(self).kind_expression = f"HooksKind(Path({str(application.folder)!r}))"
        yield application

    @pytest.fixture(autouse=True)
    def afresh(self, application: Hooked) -> None:
        application.start()

    def test_in_order_and_back(self, application: Hooked) -> None:
        """Names order them; leftovers and what is not executable do not count."""
        for name in ("40-editor~", "50-old.dpkg-old", ".hidden"):
            application.add(name)
        application.add("60-plain", mode=0o644)
        (application.state / "log").unlink(missing_ok=True)
        writer = self.find(application)
        writer.freeze(Deadline.after(60))
        writer.thaw()
        assert application.log() == [
            "20-first freeze", "30-second freeze", "30-second thaw", "20-first thaw",
        ]  # fmt: skip

    def test_one_that_fails_is_thawed_with_those_before_it(self, application: Hooked) -> None:
        """Not those after it: they were not called."""
        broken = application.add("25-broken", "#!/bin/sh\n[ $1 = thaw ] || exit 3\n")
        (application.state / "log").unlink(missing_ok=True)
        writer = self.find(application)
        try:
            with pytest.raises(WriterVeto, match=r"25-broken freeze.* exit code 3"):
                writer.freeze(Deadline.after(60))
            writer.thaw()
            assert application.log() == ["20-first freeze", "20-first thaw"]
        finally:
            broken.unlink()

    def test_what_others_could_change_is_not_run(self, application: Hooked) -> None:
        """They would be root."""
        loose = application.add("10-loose", mode=0o777)
        try:
            with pytest.raises(WriterVeto, match="changed by others"):
                self.find(application).freeze(Deadline.after(60))
        finally:
            loose.unlink()

    def test_what_it_leaves_running_is_not_waited_for(self, application: Hooked) -> None:
        """A lock is held by something in the background, with the output open."""
        holder = application.add("10-holder", "#!/bin/sh\n[ $1 = thaw ] || sleep 60 &\n")
        try:
            writer = self.find(application)
            writer.freeze(Deadline.after(30))
            writer.thaw()
        finally:
            holder.unlink()


# -- containers and units: programs that behave as docker and systemctl do ----------------------

_APPENDS = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(file, b"x")
    time.sleep(0.01)
"""

_DOCKER = """#!/bin/sh
cd {state} || exit 1
runs() {{ kill -0 "$(cat pid)" 2>/dev/null; }}
case $1 in
ps)
    case "$*" in
    *label=*) [ ! -e label ] || echo {number} ;;
    *) ! runs || printf '{number}\\tweb\\n' ;;
    esac ;;
inspect)
    case $3 in
    *json*)
        echo '[{{"Type": "bind", "Source": "{state}"}}]'
        echo '{{"Name": "overlay2", "Data": null}}' ;;
    *) if [ -e paused ]; then echo true; else echo false; fi ;;
    esac ;;
pause)
    while [ -e hang ]; do sleep 0.05; done
    runs || {{ echo "Error: No such container: $2" >&2; exit 1; }}
    kill -STOP "$(cat pid)"
    touch paused ;;
unpause)
    [ -e paused ] || {{ echo "Error: Container $2 is not paused" >&2; exit 1; }}
    rm paused
    kill -CONT "$(cat pid)" ;;
esac
"""

_SYSTEMCTL = """#!/bin/sh
cd {state} || exit 1
runs() {{ grep -q '^State:.[^ZX]' "/proc/$(cat pid)/status" 2>/dev/null; }}
case $1 in
is-active) runs ;;
stop)
    [ ! -e down ] || {{ echo "Failed to stop" >&2; exit 1; }}
    while [ -e hang ]; do sleep 0.05; done
    kill -KILL "$(cat pid)"
    while runs; do sleep 0.01; done ;;
start)
    runs || {{ {python} {program} {state}/data >/dev/null 2>&1 & echo $! >pid; }} ;;
esac
"""


class Managed(Application):
    """A program that writes all the time, and what manages it."""

    def __init__(self, folder: Path, manager: str, text: str) -> None:
        self.folder = folder / "state"
        self.folder.mkdir()
        self.manager = folder / manager
        program = folder / "program.py"
        program.write_text(_APPENDS)
        self.manager.write_text(
            text.format(state=self.folder, number="c0ffee", python=sys.executable, program=program)
        )
        self.manager.chmod(0o755)
        self._program = program
        self.start()

    def start(self) -> None:
        process = subprocess.Popen([sys.executable, self._program, self.folder / "data"])
        (self.folder / "pid").write_text(str(process.pid))
        self._process = process
        self.write()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        (self.folder / "paused").unlink(missing_ok=True)

    def write(self) -> None:
        before = self._size()
        eventually(lambda: self._size() > before)

    def _size(self) -> int:
        path = self.folder / "data"
        return path.stat().st_size if path.exists() else 0

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        (self.folder / "hang").touch()
        yield
        (self.folder / "hang").unlink()


class TestContainers(WriterContract):
    consistency = "crash"
    program: Path

    def make_kind(self) -> WriterKind:
        program = type(self).program
        return ContainerKind(["web"], {str(program): (program,)})

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Managed(folder, "docker", _DOCKER)
        type(self).program = application.manager
        type(self).imports = (
            "from pathlib import Path\n"
            "from freezeframe.shadow.writers.containers import ContainerKind\n"
            f"place = {str(application.manager)!r}"
        )
        type(self).kind_expression = "ContainerKind(['web'], {place: (Path(place),)})"
        yield application
        application.stop()

    def test_a_label_or_a_name_is_asked_for(self, application: Application) -> None:
        """A container nobody named is left alone."""
        assert isinstance(application, Managed)
        kind = ContainerKind([], {str(application.manager): (application.manager,)})
        assert not kind.find()
        (application.folder / "label").touch()
        assert [each.name for each in kind.find()] == ["docker:web"]

    def test_one_that_somebody_paused_is_not_touched(self, application: Application) -> None:
        """It is not ours to let go."""
        assert isinstance(application, Managed)
        command = [str(application.manager), "pause", "c0ffee"]
        subprocess.run(command, check=True)
        writer = self.find(application)
        try:
            with pytest.raises(WriterVeto, match="paused already"):
                writer.freeze(Deadline.after(60))
            writer.thaw()
            assert (application.folder / "paused").exists()
        finally:
            subprocess.run([str(application.manager), "unpause", "c0ffee"], check=True)
        application.write()


class Unit(Managed):
    """One whose process is the manager's child."""

    def start(self) -> None:
        (self.folder / "down").unlink(missing_ok=True)
        subprocess.run([str(self.manager), "start", "app"], check=True)
        self.write()

    def stop(self) -> None:
        (self.folder / "down").touch()

    def cut(self) -> None:
        self.start()

    def end(self) -> None:
        self.start()
        subprocess.run([str(self.manager), "stop", "app"], check=True)


class TestSystemd(WriterContract):
    program: Path

    def make_kind(self) -> WriterKind:
        program = type(self).program
        return SystemdKind(["app"], str(program), booted=program)

    def find(self, application: Application) -> Writer:
        (found,) = self.make_kind().find()
        return found

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        application = Unit(folder, "systemctl", _SYSTEMCTL)
        type(self).program = application.manager
        type(self).imports = "from freezeframe.shadow.writers.systemd import SystemdKind"
        type(self).kind_expression = f"SystemdKind(['app'], {str(application.manager)!r})"
        yield application
        application.end()
