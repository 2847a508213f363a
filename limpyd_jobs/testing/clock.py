"""A clock that stands still until it is moved, for this process and for the scripts that it sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from .. import lua, transitions, utils
from ..exceptions import InvalidArgument
from ..utils import EPOCH, check_datetime, get_delta
from ..workers import heartbeat

listeners: set[Callable[[], None]] = set()  # called when the clock was moved


class FakeClock:
    """The time, as `fake_clock` has made it."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    @property
    def now(self) -> datetime:
        """As a naive UTC datetime."""
        return self._now

    def advance(self, duration: float | timedelta = 0, **parts: float) -> datetime:
        """Move the clock forward, and say what time it is then.

        Args:
            duration: in seconds (int, float) or a timedelta.
            parts: more of it, as timedelta takes it: `advance(hours=1, minutes=30)`.
        Raises:
            InvalidArgument: it is not a duration, or goes back.
        """
        try:
            delta = get_delta(duration) + timedelta(**parts)
        except TypeError:
            raise InvalidArgument("parts", parts, "numbers of days, hours, minutes, seconds...") from None
        if delta < timedelta():
            raise InvalidArgument("duration", delta, "0 or more: jobs have never seen time go back")
        self._now += delta
        _set(self._now)
        return self._now


@contextmanager
def fake_clock(start: datetime | None = None) -> Iterator[FakeClock]:
    """Let the time stand still in the block, but for `clock.advance(hours=1)`.

    It is the time of this process, also where scripts compare times: when a delayed job is due, leases, `expires`,
    backoff, retention. Other processes have their own, and so has Redis for keys that expire.

    Args:
        start: naive datetimes are UTC; now when None.
    Raises:
        InvalidArgument: it is not a datetime.
    """
    former = utils.fixed_clock()
    clock = FakeClock(utils.utcnow() if start is None else check_datetime("start", start))
    _set(clock.now)
    try:
        yield clock
    finally:
        _set(former)


def _set(moment: datetime | None) -> None:
    former = utils.utcnow()
    utils.fix_clock(moment)
    for one in list(heartbeat.beating):  # what runs here has not outlasted its lease
        one.prolong((utils.utcnow() - former).total_seconds())
    micros: Any = None if moment is None else (moment - EPOCH) // timedelta(microseconds=1)
    lua.fix_clock(*((None,) if micros is None else divmod(micros, 1_000_000)))
    transitions.forget_packed()
    for tell in list(listeners):
        tell()
