"""What a worker does while Redis does not answer: wait a little longer each time, and say so now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..utils import pauses

SECONDS_BETWEEN_LINES = 60
SECONDS_BETWEEN_OUTAGES = 5


class Outage:
    """Counts failures in a row.

    Args:
        log: called with a line at the first failure, then once a minute, and when it is over. What comes again within
            seconds is the same outage.
        what, over: how these lines begin.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        what: str = "Redis cannot be used, trying again",
        over: str = "Redis can be used again",
    ) -> None:
        self._log, self._what, self._over = log, what, over
        self._pauses = pauses()
        self._is_told = self._is_failing = False
        self._over_at: float | None = None
        self._last_line = float("-inf")

    def next_pause(self, error: Exception | None) -> float:
        """How long to wait before the next try, in seconds: twice as long each time, with jitter.

        Args:
            error: what happened; None when it is logged already.
        """
        if self._over_at is not None and time.monotonic() - self._over_at > SECONDS_BETWEEN_OUTAGES:
            self._last_line = float("-inf")
        self._over_at, self._is_failing = None, True
        if error is not None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line, self._is_told = time.monotonic(), True
            self._log(f"{self._what}: {error}")
        return next(self._pauses)

    def end(self) -> None:
        """Redis answers."""
        if not self._is_failing:
            return
        if self._is_told:
            self._log(self._over)
        self._over_at, self._is_failing = time.monotonic(), False
        self._is_told, self._pauses = False, pauses()
