"""Noticing that an event loop is blocked, by something that should have run in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable

LOOK_SECONDS = 0.2  # how often the loop shows that it turns, and the thread looks


class LoopWatch:
    """Looks from a thread whether the running event loop turns, and tells once when it has not for a while.

    Args:
        blocked_seconds: how long it may stand still.
        tell: called from the thread with the seconds so far and the stack of the loop's thread, outermost line first.
    """

    def __init__(self, blocked_seconds: float, tell: Callable[[float, list[str]], None]) -> None:
        self._blocked_seconds = blocked_seconds
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned_at = time.monotonic()
        self._must_stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="limpyd-jobs-loop-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting for the thread."""
        self._must_stop.set()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        if not self._must_stop.is_set():
            self._loop.call_later(min(LOOK_SECONDS, self._blocked_seconds / 4), self._turn)

    def _watch(self) -> None:
        told_of = 0.0
        while not self._must_stop.wait(min(LOOK_SECONDS, self._blocked_seconds / 4)):
            turned_at = self._turned_at
            standing = time.monotonic() - turned_at
            if standing > self._blocked_seconds and told_of != turned_at:
                told_of = turned_at  # once for each time that it stands still
                frame = sys._current_frames().get(self._loop_thread)
                with contextlib.suppress(Exception):  # of a handler of the log: look on
                    self._tell(standing, traceback.format_stack(frame) if frame is not None else [])
