"""How one job an identifier is meant: for how long, and what becomes of another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .exceptions import InvalidArgument
from .retries import seconds_of

# keep: the job that is queued stays as it is. replace: it gets the fields of the new one, unless it has begun.
# rerun: one more runs after it, if it has begun. raise: JobAlreadyQueued.
CHOICES = ("keep", "replace", "rerun", "raise")


def _duration(argument: str, value: Any) -> float:
    seconds = seconds_of(argument, value)
    if seconds < 0.001:
        raise InvalidArgument(argument, value, "a number of seconds or a timedelta, at least a millisecond")
    return seconds


def _choice(argument: str, value: Any) -> str:
    if not isinstance(value, str) or value not in CHOICES:
        raise InvalidArgument(argument, value, f"one of {', '.join(CHOICES)}")
    return value


CHECKS: dict[str, Callable[[str, Any], Any]] = {"unique_for": _duration, "if_queued": _choice}
NAMES = tuple(CHECKS)


def check(argument: str, value: Any) -> Any:
    """The value of an option: seconds for `unique_for`, one of CHOICES for `if_queued`; None for none.

    Raises:
        InvalidArgument: it is not accepted.
    """
    return None if value is None else CHECKS[argument](argument, value)
