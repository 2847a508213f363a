"""What the tests of the workers share: the log, and the signal handlers as they were."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

from limpyd_jobs import workers

from .base import Log


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A worker that was made and never run leaves its handlers behind: they must not reach the next test.

    Nor may a test leave signals blocked, which a process that a later one starts would inherit.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    assert signal.pthread_sigmask(signal.SIG_SETMASK, mask) == mask


@pytest.fixture
def log() -> Iterator[Log]:
    """What the workers log during the test; the level that a test gives the logger goes with it."""
    handler = Log()
    logger = logging.getLogger(workers.LOGGER_NAME)
    level = logger.level
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _locks_of_the_log_are_free() -> Iterator[None]:
    """The handler of a signal that raises in the middle of a line of the log leaves a lock behind, in any Python."""
    yield
    for reference in list(logging._handlerList):
        handler = reference()
        while handler is not None and handler.lock is not None and handler.lock._is_owned():
            handler.lock.release()
