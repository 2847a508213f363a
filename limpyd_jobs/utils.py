"""The clock, durations, scores, imports."""

from __future__ import annotations

import getpass
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

from .exceptions import ConfigurationException, InvalidArgument

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1)
MOMENT = re.compile(r"\d{4}(-\d\d(-\d\d( \d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?)?)?)?")
FIRST_MOMENT = "0001-01-01 00:00:00"
LISTEN = re.compile(r"((\[(?P<address>[0-9a-fA-F:.%]+)\]|(?P<name>[^\s:\[\]/]+)):)?(?P<port>[0-9]{1,5})")
Keep: TypeAlias = "int | timedelta"  # of a history: a number of jobs, or for how long


_fixed: datetime | None = None  # the time, where it stands still: see limpyd_jobs.testing


def fix_clock(moment: datetime | None) -> None:
    """Let it be this moment, a naive UTC datetime, for all that asks here; None: let time go on."""
    global _fixed
    _fixed = moment


def fixed_clock() -> datetime | None:
    """The moment that `fix_clock` was given last."""
    return _fixed


def utcnow() -> datetime:
    """Now, as the naive UTC datetime that all fields store."""
    return datetime.now(timezone.utc).replace(tzinfo=None) if _fixed is None else _fixed


_second = 0, ""  # one since the epoch, and its text


def now_text() -> str:
    """Now, as fields store it: `str(utcnow())`, in a quarter of its time."""
    global _second
    if _fixed is not None:
        return str(_fixed)
    seconds, micros = divmod(int(time.time() * 1_000_000), 1_000_000)
    known, text = _second
    if seconds != known:
        text = str(datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None))
        _second = seconds, text
    return f"{text}.{micros:06}" if micros else text


def seconds_now() -> float:
    """Now, in seconds since the epoch."""
    return time.time() if _fixed is None else datetime_to_score(_fixed)


def server_seconds(reply: tuple[int, int]) -> float:
    """Now by the clock of Redis, in seconds since the epoch.

    Args:
        reply: to the command TIME.
    """
    seconds, micros = reply
    return seconds + micros / 1_000_000 if _fixed is None else seconds_now()


def to_naive_utc(value: datetime) -> datetime:
    """The same instant as a naive UTC datetime; a naive one is UTC already."""
    if value.tzinfo is None:
        return value
    return value.astimezone(timezone.utc).replace(tzinfo=None)


def check_datetime(argument: str, value: Any) -> datetime:
    """The naive UTC datetime of an argument.

    Raises:
        InvalidArgument: it is not a datetime, or none that UTC has.
    """
    try:
        if isinstance(value, datetime):
            return to_naive_utc(value)
    except OverflowError:  # the year 10000, or the year 0, by UTC
        pass
    raise InvalidArgument(argument, value, "a datetime object")


def parse_datetime(text: str) -> datetime:
    """The naive UTC datetime that a field holds as text.

    Raises:
        ValueError: the text is not the representation of a datetime.
    """
    return to_naive_utc(datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text))


def parse_moment(text: str) -> str:
    """A time in UTC, or the beginning of one (`2026-11-21 18`), as fields hold it; `T` and `Z` may be in it.

    Raises:
        ValueError: it is none, or there is no such day.
    """
    moment = text.strip().replace("T", " ").removesuffix("Z")
    if not MOMENT.fullmatch(moment):
        raise ValueError(text)
    parse_datetime((moment + FIRST_MOMENT[len(moment) :])[: len(FIRST_MOMENT)])
    return moment


def seconds_of(text: str | None) -> float | None:
    """The time that a field holds, in seconds since the epoch; None: none, or a program has written something else."""
    try:
        return datetime_to_score(parse_datetime(text)) if text else None
    except ValueError:
        return None


def datetime_to_score(value: datetime) -> float:
    """Seconds since the epoch, the score of a delayed job: independent of the time zone of the machine."""
    return (to_naive_utc(value) - EPOCH).total_seconds()


def score_to_datetime(score: float) -> datetime:
    """The naive UTC datetime of a score."""
    return EPOCH + timedelta(seconds=score)


def pauses(first: float = 0.1, longest: float = 5) -> Iterator[float]:
    """How long to wait before each next try, in seconds: twice as long each time, with jitter."""
    pause = first
    while True:
        yield max(pause * random.uniform(0.5, 1), first)
        pause = min(pause * 2, longest)


def get_delta(value: float | timedelta) -> timedelta:
    """A duration as a timedelta, from seconds or from a timedelta.

    Raises:
        InvalidArgument: neither a number nor a timedelta, or out of the range of datetimes.
    """
    if isinstance(value, timedelta):
        return value
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return timedelta(seconds=value)
    except (OverflowError, ValueError):  # more than a timedelta holds, or nan
        pass
    raise InvalidArgument("delta", value, "an int, a float or a timedelta object")


LONGEST_KEEP = timedelta(days=36525)  # a century: dates begin with the year 1
KEEP_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_keep(argument: str, value: Any) -> Keep:
    """How much of a history is kept: a number of jobs, or for how long.

    Args:
        value: an integer, a timedelta, or a text: `1000`, or a duration with its unit: `45s`, `30m`, `12h`, `7d`, `2w`.
    Raises:
        InvalidArgument: none of these, negative, or more than a century.
    """
    accepted = "a number of jobs like 1000, or a duration like 45s, 30m, 12h, 7d, 2w"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, timedelta) and timedelta() <= value <= LONGEST_KEEP:
        return value
    match = re.fullmatch(r"([0-9]{1,15})([smhdw]?)", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidArgument(argument, value, accepted)
    if not match[2]:
        return int(match[1])
    seconds = int(match[1]) * KEEP_UNITS[match[2]]
    if seconds > LONGEST_KEEP.total_seconds():
        raise InvalidArgument(argument, value, accepted)
    return timedelta(seconds=seconds)


def compute_delayed_until(
    delayed_for: float | timedelta | None = None, delayed_until: datetime | None = None
) -> datetime | None:
    """When a job may start, as a naive UTC datetime; None when it is not delayed.

    Args:
        delayed_for: from now, in seconds or a timedelta; not with `delayed_until`.
        delayed_until: aware datetimes are converted, naive ones are UTC.
    Raises:
        InvalidArgument: both are given, or one has a wrong type.
    """
    if delayed_for is not None and delayed_until is not None:
        raise InvalidArgument("delayed_for", delayed_for, "given alone: delayed_until and delayed_for are exclusive")
    if delayed_for is not None:
        try:
            return utcnow() + get_delta(delayed_for)
        except (InvalidArgument, OverflowError):
            raise InvalidArgument("delayed_for", delayed_for, "an int, a float or a timedelta object") from None
    if delayed_until is None:
        return None
    return check_datetime("delayed_until", delayed_until)


def check_on(owner: str, check: Callable[[str, Any], T], name: str, value: Any) -> T:
    """What the attribute of a class says.

    Args:
        check: of an argument; answers its value.
    Raises:
        ConfigurationException: it is not accepted.
    """
    try:
        return check(name, value)
    except InvalidArgument as error:
        raise ConfigurationException(f"Invalid {owner}.{name}: {value!r}: must be {error.accepted}") from error


def this_user() -> str:
    """Who runs this process, and where: `user@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container there may be none of this number
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def import_class(class_uri: str) -> Any:
    """What a dotted path names: a class, or a function of a module.

    Raises:
        ImportError, AttributeError, ValueError: as Python raises them.
    """
    module_name, _, name = class_uri.rpartition(".")
    if not module_name:
        raise ImportError(f"{class_uri!r} is not a dotted path")
    return getattr(import_module(module_name), name)


def parse_listen(argument: str, value: Any) -> tuple[str, int]:
    """Where a server is to listen: the host, which is 127.0.0.1 unless it is named, and the port, 0 for any.

    Args:
        value: a port, its text, or `HOST:PORT`; an IPv6 address goes in brackets.
    Raises:
        InvalidArgument: it is none of these.
    """
    match = LISTEN.fullmatch(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if match is None or int(match["port"]) > 65535:
        raise InvalidArgument(argument, value, "a port from 0 to 65535, or HOST:PORT")
    return match["address"] or match["name"] or "127.0.0.1", int(match["port"])
