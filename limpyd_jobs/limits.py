"""How many jobs may run at the same time, or start in some time: what `add_job` and classes say of it. No Redis.

Each limit counts the jobs of all workers under a key. The scripts that claim jobs hold it: see docs/limits.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .exceptions import InvalidArgument

NAMES = ("max_concurrency", "rate_limit", "limit_key")
STORED = "limits"  # how they are called together in `run_options`, where scripts look for them
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST = 100_000  # jobs that are counted one by one
LONGEST_SECONDS = 31 * 86400
LONGEST_KEY = 200
RATE_FORMS = f"a text like 100/s, 100/m, 100/h, 100/d or 5/10s: at most {MOST} starts, in at most 31 days"


class RateLimit(NamedTuple):
    """At most so many starts in any so many seconds."""

    starts: int
    seconds: int

    def to_json(self) -> list[int]:
        """What `rate_limit` reads again."""
        return [self.starts, self.seconds]


def max_concurrency(argument: str, value: Any) -> int:
    """How many jobs may run at the same time; raises InvalidArgument."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise InvalidArgument(argument, value, f"an integer from 1 to {MOST}")
    return value


def rate_limit(argument: str, value: Any) -> RateLimit:
    """How many jobs may start in a time, from its text or what is stored; raises InvalidArgument."""
    found = _rate(value)
    if found is None or not (1 <= found.starts <= MOST and 1 <= found.seconds <= LONGEST_SECONDS):
        raise InvalidArgument(argument, value, RATE_FORMS)
    return found


def _rate(value: Any) -> RateLimit | None:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{0,9})([smhd])", value)
        return RateLimit(int(match[1]), int(match[2] or 1) * UNITS[match[3]]) if match else None
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return RateLimit(*value) if is_pair and all(type(part) is int for part in value) else None


def limit_key(argument: str, value: Any) -> str:
    """Under which key a job counts; raises InvalidArgument."""
    is_text = isinstance(value, str) and 0 < len(value) <= LONGEST_KEY and value.isprintable()
    if not is_text:
        raise InvalidArgument(argument, value, f"a printable text of 1 to {LONGEST_KEY} characters")
    return str(value)


def with_key(given: Mapping[str, Any], default: str) -> dict[str, Any]:
    """The options of a new job, with the key of its limits, if it has any.

    Args:
        default: the key of jobs that name none.
    Raises:
        InvalidArgument: there is a key, and no limit.
    """
    if "max_concurrency" in given or "rate_limit" in given:
        return {"limit_key": default, **given}
    if "limit_key" in given:
        raise InvalidArgument("limit_key", given["limit_key"], "given with max_concurrency or rate_limit")
    return dict(given)


def apart(options: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options, each limit under its own name. Raises ValueError: something else was written there."""
    limits = options.get(STORED, {})
    if not isinstance(limits, dict):
        raise ValueError(limits)
    return {**options, **{name: limits[name] for name in NAMES if name in limits}}


def together(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are stored: the limits under one name."""
    limits = {name: options[name] for name in NAMES if name in options}
    others = {name: value for name, value in options.items() if name not in NAMES}
    return {**others, STORED: limits} if limits else others
