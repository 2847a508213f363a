"""The options of the runs of a job: what `add_job`, its class and its worker may say of them.

What `add_job` was given is stored in the field `run_options`, as JSON: scripts look there for `expires` and `limits`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from . import limits
from .exceptions import InvalidArgument
from .retries import NO_LIMIT, exception_names, parse_backoff, seconds_of
from .utils import check_datetime, datetime_to_score, parse_keep, seconds_now


def _timeout(argument: str, value: Any) -> float:
    seconds = seconds_of(argument, value)
    if not seconds:
        raise InvalidArgument(argument, value, "a number of seconds or a timedelta, more than 0")
    return seconds


def _times(argument: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= NO_LIMIT:
        raise InvalidArgument(argument, value, f"an integer from 0 to {NO_LIMIT}")
    return value


def _expiry(argument: str, value: Any) -> float | timedelta | datetime:
    if isinstance(value, datetime):
        return check_datetime(argument, value)
    try:
        return timedelta(seconds=seconds_of(argument, value))
    except InvalidArgument:
        accepted = "a number of seconds, a timedelta (0 or more), or a datetime"
        raise InvalidArgument(argument, value, accepted) from None


POLICIES = ("cancel", "run", "wait")


def _policy(argument: str, value: Any) -> str:
    if value not in POLICIES:
        raise InvalidArgument(argument, value, f"one of {', '.join(POLICIES)}")
    return str(value)


def _saving(argument: str, value: Any) -> bool | float:
    accepted = "True, False, or a duration of more than 0: seconds, a timedelta, or like 45s, 30m, 12h, 7d, 2w"
    if isinstance(value, bool):
        return value
    if value in ("yes", "no"):  # of the command line
        return bool(value == "yes")
    try:
        kept = parse_keep(argument, value) if isinstance(value, str) else value
        seconds = seconds_of(argument, kept)
    except InvalidArgument:
        raise InvalidArgument(argument, value, accepted) from None
    if not seconds:
        raise InvalidArgument(argument, value, accepted)
    return seconds


def _kept_for(argument: str, value: Any) -> float:
    accepted = "a number of seconds, a timedelta (0 or more), or a duration like 45s, 30m, 12h, 7d, 2w"
    try:
        is_text = isinstance(value, str) and value[-1:].isalpha()  # else it would be a number of jobs
        return seconds_of(argument, parse_keep(argument, value) if is_text else value)
    except InvalidArgument:
        raise InvalidArgument(argument, value, accepted) from None


# How the value of each is checked and made uniform.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "expires": _expiry,
    "job_timeout": _timeout,
    "requeue_times": _times,
    "requeue_delay_delta": seconds_of,
    "backoff": parse_backoff,
    "retry_on": exception_names,
    "no_retry_on": exception_names,
    "if_parent_fails": _policy,
    "save_result": _saving,
    "max_concurrency": limits.max_concurrency,
    "rate_limit": limits.rate_limit,
    "limit_key": limits.limit_key,
    "keep_success": _kept_for,
    "keep_errors": _kept_for,
}
NAMES = tuple(CHECKS)
OF_NEW_JOBS = ("expires", *limits.NAMES)  # what a class says is stored with each job that is added
FIELD = "run_options"
CARRIED = "carried"  # what instruments put there; the last one in the text: scripts look for words in it


def check(argument: str, value: Any) -> Any:
    """The value of an option in its uniform kind.

    Seconds for `job_timeout`, `requeue_delay_delta`, `keep_success` and `keep_errors`, a timedelta (from the adding on)
    or a naive UTC datetime for `expires`, a `retries.Backoff`, names of exceptions, a `limits.RateLimit`; for
    `save_result` False, True (for as long as the record) or seconds.

    Raises:
        InvalidArgument: it is not accepted.
    """
    return CHECKS[argument](argument, value)


def to_text(given: Mapping[str, Any], now: float | None = None, carried: Mapping[str, Any] | None = None) -> str:
    """Options as they are stored.

    Args:
        given: by name, as `check` accepts them.
        now: what `expires` counts from, in seconds since the epoch; the clock's when None.
        carried: what comes along for the instruments; see instruments.py.
    Raises:
        InvalidArgument: a value is not accepted.
    """
    stored = {name: _stored(check(name, given[name]), now) for name in NAMES if name in given}
    options = limits.together(stored)
    return json.dumps({**options, CARRIED: carried} if carried else options, separators=(",", ":"))


def _stored(value: Any, now: float | None) -> Any:
    if isinstance(value, timedelta):
        return (seconds_now() if now is None else now) + value.total_seconds()
    if isinstance(value, datetime):
        return datetime_to_score(value)
    return value.to_json() if hasattr(value, "to_json") else value


def read(text: str) -> dict[str, Any]:
    """Options from what is stored, in their uniform kinds; `expires` in seconds since the epoch.

    Raises:
        ValueError: something else was written there.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(text)
    found = limits.apart(found)
    values = {name: found[name] for name in NAMES if name in found}
    expires = values.pop("expires", None)
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, (int, float))):
        raise ValueError(text)
    checked = {name: check(name, value) for name, value in values.items()}
    return checked if expires is None else {**checked, "expires": expires}


def read_carried(text: str) -> dict[str, Any]:
    """What comes along for the instruments; empty when something else was written there."""
    try:
        found = json.loads(text)[CARRIED] if CARRIED in text else {}
    except (ValueError, KeyError, TypeError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def only_carries(text: Any) -> bool:
    """Are there no options, only what comes along?"""
    return isinstance(text, str) and text.startswith(f'{{"{CARRIED}":')  # it is the last one
