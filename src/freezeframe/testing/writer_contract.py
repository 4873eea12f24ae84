"""What every writer must pass, with the real application.

To join, subclass, start the application on a folder, and say how it is written to:

class TestMyWriter(WriterContract):
    holds = True

    def make_kind(self) -> WriterKind:
        return MyKind()

    @contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        ...
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.writers.base import Writer, WriterKind, WriterVeto
from freezeframe.testing.databases import open_folder
from freezeframe.testing.frozen import PATIENCE, eventually

#: Seconds in which something that is not held would have happened.
_MOMENT = 0.3

#: Freezes, says so, and waits to be killed.
_FREEZES = """
import sys, time
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.scope import nothing
{imports}
writer = next(each for each in {kind}.find() if each.name == sys.argv[1])
writer.prepare(nothing(), Deadline.after(60))
writer.freeze(Deadline.after(60))
print("frozen", flush=True)
time.sleep(600)
"""


class Application:
    """A running application, as the suite needs it."""

    #: What its writer's `paths` must contain.
    folder: Path

    @abstractmethod
    def write(self) -> None:
        """Write something durable; returns when that is acknowledged."""

    @abstractmethod
    def stop(self) -> None:
        """End it without notice, as a crash does."""

    @abstractmethod
    def start(self) -> None:
        """Start it again."""

    def cut(self) -> None:
        """Cut the writer's connection while it is frozen; by default as a crash does."""
        self.stop()
        self.start()

    def blocked(self) -> AbstractContextManager[None] | None:
        """Make freezing hang within, where something can; else None."""
        return None


def soon() -> Deadline:
    """Return a deadline that nothing here should reach."""
    return Deadline.after(PATIENCE)


class WriterContract:
    """The suite."""

    #: Whether what it freezes is not written to until the thaw.
    holds = True
    #: What `finish` says where all went well.
    consistency = "application"
    #: Whether a lost connection means that there is no image: what was held no longer was.
    cut_matters = True
    #: How another Python gets at the kind.
    imports = ""
    kind_expression = ""

    def make_kind(self) -> WriterKind:
        """Return the kind."""
        raise NotImplementedError

    def running(self, folder: Path) -> AbstractContextManager[Application]:
        """Run the application on an empty folder that every user may pass through."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def application(cls) -> Iterator[Application]:
        """Give all tests one application."""
        with open_folder() as folder, cls().running(folder) as application:
            yield application

    @pytest.fixture
    def writer(self, application: Application) -> Iterator[Writer]:
        """Give each test its writer, and end it."""
        writer = self.find(application)
        yield writer
        writer.thaw()

    def find(self, application: Application) -> Writer:
        """Return the writer of the application."""
        found = [
            writer for writer in self.make_kind().find() if _belongs(writer, application.folder)
        ]
        assert len(found) == 1, [writer.name for writer in found]
        return found[0]

    def scope(self) -> Scope:
        """Return what is imaged: all of it at one moment."""
        return Scope(())

    # -- finding ------------------------------------------------------------------------

    def test_it_is_found_and_told_apart(self, application: Application, writer: Writer) -> None:
        """By a name that stays the same, with all that a restore needs."""
        assert not self.make_kind().unavailable()
        assert writer.kind == self.make_kind().kind
        assert self.find(application).name == writer.name
        assert writer.about()
        for path in writer.paths():
            assert path.is_absolute()
            assert path.resolve() == path
            assert path.exists()

    # -- the time line ------------------------------------------------------------------

    def test_it_holds_still_again_and_again(self, application: Application, writer: Writer) -> None:
        """Nothing is written while it is frozen; and all goes on after each thaw."""
        writer.prepare(self.scope(), soon())
        application.write()
        for _ in range(3):
            writer.freeze(soon())
            with _writing(application) as done:
                assert not (done.wait(_MOMENT) and self.holds)
                writer.thaw()
                assert done.wait(PATIENCE)
        result = writer.finish(True)
        assert result.consistency == self.consistency
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in result.pieces)
        application.write()

    def test_thawing_twice_or_too_early_does_nothing(
        self, application: Application, writer: Writer
    ) -> None:
        """Also before anything was prepared."""
        writer.thaw()
        writer.prepare(self.scope(), soon())
        writer.thaw()
        writer.freeze(soon())
        writer.thaw()
        writer.thaw()
        application.write()
        writer.finish(True)
        writer.thaw()
        application.write()

    def test_it_can_be_called_off(self, application: Application, writer: Writer) -> None:
        """After any step; then nothing is claimed, and nothing is left."""
        writer.finish(False)
        again = self.find(application)
        again.prepare(self.scope(), soon())
        assert again.finish(False).consistency == "crash"
        third = self.find(application)
        third.prepare(self.scope(), soon())
        third.freeze(soon())
        third.thaw()
        assert third.finish(False).consistency == "crash"
        application.write()

    def test_another_thread_may_thaw(self, application: Application, writer: Writer) -> None:
        """The one that froze may be busy."""
        writer.prepare(self.scope(), soon())
        writer.freeze(soon())
        thread = threading.Thread(target=writer.thaw)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        application.write()
        writer.finish(True)

    # -- faults -------------------------------------------------------------------------

    def test_it_vetoes_where_the_application_is_gone(self, application: Application) -> None:
        """By name, with something to do; and leaves nothing behind."""
        early, late = self.find(application), self.find(application)
        late.prepare(self.scope(), soon())
        application.stop()
        try:
            for writer in (early, late):
                with pytest.raises(WriterVeto) as caught:  # noqa: PT012 - either step may tell
                    writer.prepare(self.scope(), soon()) if writer is early else None
                    writer.freeze(soon())
                assert writer.name in caught.value.message
                assert caught.value.hint
                with contextlib.suppress(FreezeError):
                    writer.thaw()
                writer.finish(False)
        finally:
            application.start()
        application.write()

    def test_nothing_is_claimed_where_the_hold_was_lost(
        self, application: Application, writer: Writer
    ) -> None:
        """A server that restarts, or cuts the connection, in the middle."""
        writer.prepare(self.scope(), soon())
        writer.freeze(soon())
        application.cut()
        with contextlib.suppress(FreezeError):
            writer.thaw()
        application.write()
        if self.cut_matters:
            with pytest.raises(WriterVeto):
                writer.finish(True)
        else:
            assert writer.finish(True).consistency == "crash"

    def test_it_is_let_go_while_freezing_hangs(
        self, application: Application, writer: Writer
    ) -> None:
        """`thaw` returns, `freeze` fails, and nothing is held once what blocked it is gone."""
        block = application.blocked()
        if block is None:
            return
        writer.prepare(self.scope(), soon())
        caught: list[BaseException] = []

        def freeze() -> None:
            try:
                writer.freeze(soon())
            except WriterVeto as error:
                caught.append(error)

        with block:
            thread = threading.Thread(target=freeze)
            thread.start()
            time.sleep(_MOMENT)
            assert thread.is_alive(), caught
            with contextlib.suppress(FreezeError):
                writer.thaw()
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert caught
        application.write()
        assert writer.finish(False).consistency == "crash"

    def test_it_vetoes_where_it_takes_too_long(
        self, application: Application, writer: Writer
    ) -> None:
        """The deadline is kept, and nothing is held after the thaw."""
        block = application.blocked()
        if block is None:
            return
        writer.prepare(self.scope(), soon())
        with block:
            with pytest.raises(WriterVeto):
                writer.freeze(Deadline.after(1.0))
            with contextlib.suppress(FreezeError):
                writer.thaw()
        application.write()
        writer.finish(False)

    def test_sigkill_ends_the_hold(self, application: Application, writer: Writer) -> None:
        """By itself, or by the commands that a guard runs then."""
        kind = type(self.make_kind())
        imports = self.imports or f"from {kind.__module__} import {kind.__qualname__}"
        expression = self.kind_expression or f"{kind.__qualname__}()"
        program = _FREEZES.format(imports=imports, kind=expression)
        writer.prepare(self.scope(), soon())
        undo = writer.undo()
        writer.finish(False)
        with subprocess.Popen(
            [sys.executable, "-c", program, writer.name], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"frozen\n"
            with _writing(application) as done:
                assert not (done.wait(_MOMENT) and self.holds)
                process.kill()
                process.wait()
                for command in undo:
                    assert Path(command[0]).is_absolute()
                    assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == 0
                assert done.wait(PATIENCE)


def _belongs(writer: Writer, folder: Path) -> bool:
    paths = writer.paths()
    return folder in paths or (not paths and str(folder) in writer.name)


@contextlib.contextmanager
def _writing(application: Application) -> Iterator[threading.Event]:
    """Write once in another thread; the event tells that it was acknowledged."""
    done = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            application.write()
            done.set()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield done
    finally:
        thread.join(PATIENCE)
    eventually(lambda: not thread.is_alive())
    assert not failed, failed
