"""Keeping this very program from touching a disk while its filesystems are frozen."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from freezeframe.system.memory import lock_memory, unlock_memory


class _Held(logging.Handler):
    """Keeps records in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def held_logging() -> Iterator[None]:
    """Within, what any thread logs stays in memory; at the end it goes to the handlers.

    A handler may write to a file on a frozen filesystem, and whoever logs would wait for the
    thaw. Handlers added within are kept, and get what is logged after it.
    """
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(found for found in named if isinstance(found, logging.Logger))]
    changed: list[tuple[logging.Logger, list[logging.Handler], _Held]] = []
    for logger in loggers:
        # The root always: without any handler, logging writes to stderr.
        if logger.handlers or logger is logging.root:
            held = _Held()
            changed.append((logger, logger.handlers, held))
            logger.handlers = [held]
    try:
        yield
    finally:
        for logger, former, held in changed:
            logger.handlers = [*former, *(h for h in logger.handlers if h is not held)]
        for logger, former, held in changed:
            for record in held.records:
                _deliver(logger, former, record)


def _deliver(
    logger: logging.Logger, handlers: list[logging.Handler], record: logging.LogRecord
) -> None:
    """Give a held record to the handlers it was for."""
    chosen = handlers
    if not handlers and logger is logging.root and logging.lastResort is not None:
        chosen = [logging.lastResort]
    for handler in chosen:
        if record.levelno >= handler.level:
            handler.handle(record)


@contextmanager
def locked_memory() -> Iterator[bool]:
    """Within, all memory of the process is held; gives whether that was granted."""
    try:
        lock_memory()
    except OSError:
        # Without it a page may have to be read back, which a frozen filesystem allows;
        # what it does not allow is a write fault on a mapped file of its own.
        yield False
        return
    try:
        yield True
    finally:
        unlock_memory()


@contextmanager
def quiet() -> Iterator[None]:
    """Within, this program logs to memory, writes no bytecode, and collects no garbage."""
    collecting, writing = gc.isenabled(), sys.dont_write_bytecode
    gc.disable()
    sys.dont_write_bytecode = True
    try:
        with held_logging():
            yield
    finally:
        sys.dont_write_bytecode = writing
        if collecting:
            gc.enable()
