"""The child's side of a pool: what ties a process to its parent, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from ..exceptions import ConfigurationException
from .base import LOGGER_NAME, BaseWorker, indented
from .insight import format_stacks
from .reload import SourceWatch

READY, DONE = b"r", b"d"  # the news: the worker is at work; its run has ended, and there is nothing more to do
READY_STATUSES = ("waiting", "running", "terminated")  # the last one for a run that has ended before its first job
CONFIGURATION_EXIT_CODE = 2  # of a child whose options cannot work


class Member:
    """The pool, as a child knows it.

    Attributes:
        is_first: no other one has been ready before; what is to be said once is said by this one.
    """

    def __init__(self, lifeline: int, news: int, is_first: bool, does_reload: bool) -> None:
        self.is_first = is_first
        self.worker: BaseWorker | None = None
        self._lifeline, self._news = lifeline, news
        # what is loaded before the fork is not loaded anew by the next child: to watch it would help nobody
        self._watch = SourceWatch(set(sys.modules), self._end_for_reload) if does_reload else None

    def watch_parent(self) -> None:
        """From now on this process ends when the parent is gone: called before anything that can take long."""
        threading.Thread(target=self._end_with_parent, name="limpyd-jobs-lifeline", daemon=True).start()

    def join(self, worker: BaseWorker) -> None:
        """Make a worker one of the pool: called before it runs."""
        self.worker = worker
        worker._id = str(os.getpid())  # the idents of the main threads are equal in all children
        worker.after_fork()
        if self._watch is not None:
            self._watch.start()
        worker._add_update_status_callback(self._look_at_status)

    def leave(self, is_done: bool) -> None:
        """Called after the run: is there nothing more to do, so that nobody needs to follow?"""
        if is_done:
            self._tell(DONE)

    def show_stacks(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGUSR2, also where the worker does not: while it is made, and with `terminate_gracefully` off."""
        with contextlib.suppress(Exception):  # of a handler or a filter of the log
            if self.worker is not None:
                self.worker.log_stacks()
            else:
                logging.getLogger(LOGGER_NAME).critical("%s\n%s", "Stacks of all threads:", indented(format_stacks()))

    def _look_at_status(self, worker: BaseWorker) -> None:
        """A worker is ready when its start is over, `run_started` included: what fails there is a bad start.

        One that has to wait for Redis, or for a queue, has come as far as it can.
        """
        if worker.status in READY_STATUSES or worker.is_held_up:
            worker._remove_update_status_callback(self._look_at_status)
            self._tell(READY)

    def _tell(self, news: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, which the lifeline says
            os.write(self._news, news)

    def _end_with_parent(self) -> None:
        os.read(self._lifeline, 1)  # until the parent is gone
        worker = self.worker
        if worker is not None:
            worker.ask_to_end("The parent of this worker is gone", level="warning")
        if worker is None or worker.status is None:  # a run that begins only now takes nothing: it was asked to end
            os._exit(0)

    def _end_for_reload(self, path: str) -> None:
        assert self.worker is not None
        self.worker.ask_to_end(f"{path} has changed", level="warning")


def live(member: Member, work: Callable[[Member], None], log: Callable[[str, str], None]) -> int:
    """Work, and come to the end as a program does.

    Args:
        work: makes the worker and runs it.
        log: called with a message and a level, when the options of the worker cannot work.
    Returns:
        The exit code.
    """
    code = 0
    try:
        work(member)
    except SystemExit as error:
        code = exit_code_of(error)
    except KeyboardInterrupt:  # as Python does, but without a traceback from each child
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception as error:
        if isinstance(error, ConfigurationException) and member.worker is None:
            log(str(error), "critical")
            code = CONFIGURATION_EXIT_CODE
        else:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # wait for the threads of jobs, as at the end of any program
    atexit._run_exitfuncs()
    return code


def forget_exit_functions() -> None:
    """Called after a fork: what the parent does at its end is for the parent to do."""
    atexit._clear()
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # the processes that jobs leave are to end with this one
        atexit.register(multiprocessing._exit_function)


def exit_code_of(error: SystemExit) -> int:
    """The exit code that Python gives to this exception; a text is written to stderr."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1
