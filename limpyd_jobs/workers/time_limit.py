"""Ending what takes too long, in the main thread of a process: by an interval timer, whose handler raises."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..exceptions import ConfigurationException, InvalidArgument

SOONEST_SECONDS = 0.000001  # a timer of 0 would be none
LONGEST_SECONDS = 86400.0  # of one timer, which cannot hold any number; then the next one is set
LOOP_SECONDS = 0.01  # between two looks whether an event loop is back in a task
EARLY_SECONDS = 0.001  # the timer and the clock that deadlines are read from may differ by so much


def can_limit_time() -> bool:
    """Is this where a `TimeLimit` works: the main thread, on a system that has interval timers?"""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def check_limit(seconds: Any) -> None:
    """See that a time can be a limit.

    Raises:
        InvalidArgument: it is no positive, finite number.
    """
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds < math.inf:
        raise InvalidArgument("seconds", seconds, "a number, more than 0")


class TimeLimit:
    """Raises an error in the code of a block that runs for too long.

        with TimeLimit(1.5, lambda: JobTimeout(ident, 1.5)):
            ...

    Limits can be nested: the one whose time is over first raises, and those inside it end with it. Once a block is left
    its limit never raises. A former handler of SIGALRM is put back then, and a former timer goes on with what is left
    of its time; when that is over meanwhile, it rings late, at the end of the block.

    What it cannot do:
        - It raises once. A block that catches the error (a BaseException of any kind is possible), or runs in a place
          where Python drops errors (`__del__`), goes on without a limit.
        - In an event loop it raises in a task alone: one that waits has to be cancelled by another timer.
        - Code in C that does not come back to Python, as a long `re.match`, is not interrupted: the error comes after.
        - A block that uses SIGALRM itself, as a handler or by `signal.alarm`, has no limit any more.
        - When the handler of another signal raises right as the block is left, before the first line of `__exit__`, the
          limit stays and raises later. Python leaves no way to close that gap; handlers of a worker do not raise.

    Args:
        seconds: from the beginning of the block.
        make_error: gives the error to raise.
    Raises:
        InvalidArgument: seconds is no positive, finite number.
        ConfigurationException: at the beginning of the block: not in the main thread.
    """

    def __init__(self, seconds: float, make_error: Callable[[], BaseException]) -> None:
        check_limit(seconds)
        self.seconds = seconds
        self.make_error = make_error
        self.deadline = math.inf

    def __enter__(self) -> TimeLimit:
        if not can_limit_time():
            raise ConfigurationException(
                "A time limit works in the main thread of a process only: run the job there, or isolate it"
            )
        try:
            _alarm.add(self)
        except BaseException:  # of the handler of another signal; a limit that was never entered must not raise
            _alarm.remove(self)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        _alarm.remove(self)


class _Alarm:
    """The one timer of the process, for all limits that are open."""

    def __init__(self) -> None:
        self.limits: list[TimeLimit] = []  # from the outermost to the innermost
        self._former_handler: Any = None
        self._former_deadline = math.inf
        self._former_interval = 0.0

    def add(self, limit: TimeLimit) -> None:
        if not self.limits:
            self._take_over()
        limit.deadline = time.monotonic() + limit.seconds
        self.limits.append(limit)
        self._set()

    def remove(self, limit: TimeLimit) -> None:
        """End a limit and those inside it, if it is open."""
        if limit in self.limits:
            # from here on it does not raise: `ring` looks only at what is in the list
            del self.limits[self.limits.index(limit) :]
            self._set()

    def _take_over(self) -> None:
        # the former timer first, so that no ring of it meets our handler
        seconds, self._former_interval = signal.setitimer(signal.ITIMER_REAL, 0)
        self._former_deadline = time.monotonic() + seconds if seconds else math.inf
        self._former_handler = signal.getsignal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, self.ring)

    def _give_back(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # None is a handler that was not set from Python, and cannot be put back
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self._former_handler is None else self._former_handler)
        if self._former_deadline < math.inf:
            left = max(self._former_deadline - time.monotonic(), SOONEST_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, left, self._former_interval)

    def _set(self) -> None:
        if not self.limits:
            self._give_back()
            return
        left = min(limit.deadline for limit in self.limits) - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, min(max(left, SOONEST_SECONDS), LONGEST_SECONDS))

    def ring(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGALRM: raise the error of the outermost limit whose time is over, if there is one.

        The limit is removed before: an error that is raised as `__exit__` is entered leaves nothing behind, though the
        lines of `__exit__` never run.
        """
        now = time.monotonic() + EARLY_SECONDS
        late = next((limit for limit in self.limits if limit.deadline <= now), None)
        if late is not None and _is_in_event_loop(frame):
            signal.setitimer(signal.ITIMER_REAL, LOOP_SECONDS)
        elif late is not None:
            self.remove(late)
            raise late.make_error()
        elif self.limits:  # a signal from elsewhere, or a very long limit
            self._set()


def _is_in_event_loop(frame: FrameType | None) -> bool:
    """Does the event loop itself run, and none of its tasks? It drops errors, and the task with which it is busy."""
    loop = asyncio._get_running_loop()
    if loop is None:
        return False
    task = asyncio.current_task(loop)
    of_task = getattr(task.get_coro(), "cr_frame", None) if task is not None else None
    while frame is not None and frame is not of_task:
        frame = frame.f_back
    return frame is None


_alarm = _Alarm()
