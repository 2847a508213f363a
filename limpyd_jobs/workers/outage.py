"""What a worker does while Redis does not answer: wait a little longer each time, and say so now and then."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5
SECONDS_BETWEEN_LINES = 60


class Outage:
    """Counts failures in a row.

    Args:
        log: called with a line at the first failure, then once a minute, and when it is over.
        what, over: how these lines begin.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        what: str = "Redis cannot be used, trying again",
        over: str = "Redis can be used again",
    ) -> None:
        self._log, self._what, self._over = log, what, over
        self._pause = FIRST_PAUSE_SECONDS
        self._is_on = False
        self._last_line = float("-inf")

    def next_pause(self, error: Exception | None) -> float:
        """How long to wait before the next try, in seconds: twice as long each time, with jitter.

        Args:
            error: what happened; None when it is logged already.
        """
        if error is not None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._log(f"{self._what}: {error}")
        self._is_on = self._is_on or error is not None
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.5, 1)

    def end(self) -> None:
        """Redis answers."""
        if self._is_on:
            self._log(self._over)
        self._is_on, self._pause, self._last_line = False, FIRST_PAUSE_SECONDS, float("-inf")
