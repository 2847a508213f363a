"""Whether a job that failed is tried again, and after how long. Pure: no Redis, and chance is passed in."""

from __future__ import annotations

import builtins
import random
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from .exceptions import InvalidArgument, Retry
from .modules import is_dotted_name
from .utils import LONGEST_KEEP, utcnow

KINDS = ("constant", "linear", "exponential")
MAXIMUM_SECONDS = 3600.0  # at which growing delays stop, unless a Backoff says otherwise
MOST_DELAYS = 1000
NO_LIMIT = 10**9  # the largest number of tries that scripts count to
BACKOFF_FORMS = (
    "constant, linear or exponential (as text also with delay, maximum and jitter: exponential:1:3600:jitter), "
    "a Backoff, or a list of delays in seconds"
)


@dataclass(frozen=True)
class Backoff:
    """How long a job is delayed before each retry, the first of which has the number 1.

    Attributes:
        kind: constant: `delay`; linear: `delay * number`; exponential: `delay * factor ** (number - 1)`.
        delay: in seconds; `requeue_delay_delta` when None.
        factor: of `exponential`, 1 or more.
        maximum: in seconds, at which linear and exponential delays stop.
        jitter: any time between 0 and the delay ("full jitter"), so that what failed together does not return together.
        delays: before each retry, in seconds, the last one repeated; then the above, but `jitter`, is not used.
    """

    kind: str = "exponential"
    delay: float | None = None
    factor: float = 2
    maximum: float = MAXIMUM_SECONDS
    jitter: bool = False
    delays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "delays", _delays(self.delays) if self.delays else ())
        if self.kind not in KINDS:
            raise InvalidArgument("backoff", self.kind, "of the kind constant, linear or exponential")
        if self.delay is not None:
            object.__setattr__(self, "delay", seconds_of("backoff", self.delay))
        object.__setattr__(self, "maximum", seconds_of("backoff", self.maximum))
        if not _is_number(self.factor) or not 1 <= self.factor <= NO_LIMIT:
            raise InvalidArgument("backoff", self.factor, "a factor of 1 or more")
        if not isinstance(self.jitter, bool):
            raise InvalidArgument("backoff", self.jitter, "jitter, True or False")

    def delay_before(self, number: int, default: float, chance: Callable[[], float] = random.random) -> float:
        """The seconds before a retry.

        Args:
            number: of the retry, from 1.
            default: what `delay` is when it is None.
            chance: gives a number from 0 to 1.
        """
        delay = self._without_jitter(max(number, 1), default)
        return delay * chance() if self.jitter else delay

    def _without_jitter(self, number: int, default: float) -> float:
        if self.delays:
            return self.delays[min(number, len(self.delays)) - 1]
        delay = default if self.delay is None else self.delay
        if self.kind == "constant":
            return delay
        try:
            grown = delay * (number if self.kind == "linear" else self.factor ** (number - 1))
        except OverflowError:
            return self.maximum
        return min(grown, self.maximum)

    def to_json(self) -> Any:
        """What `parse_backoff` reads again: a name, a list, or what is not as usual."""
        if self == Backoff(delays=self.delays) and self.delays:
            return list(self.delays)
        if self == Backoff(self.kind):
            return self.kind
        default = Backoff()
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if name == "kind" or value != getattr(default, name)}


@dataclass(frozen=True)
class Retries:
    """What holds for the retries of a job.

    Attributes:
        requeue_times: how often it is tried again; None: nobody has said.
        requeue_delay_delta: seconds before a retry, where `backoff` does not say.
        retry_on: names of exceptions (see `exception_names`); given, only these are retried.
        no_retry_on: those that are not; they win.
    """

    requeue_times: int | None = None
    requeue_delay_delta: float = 30
    backoff: Backoff | None = None
    retry_on: tuple[str, ...] | None = None
    no_retry_on: tuple[str, ...] | None = None

    def limit(self, error: BaseException) -> int | None:
        """How often a job that ended with this exception is tried again at most; None: not at all.

        A `Retry` is what the job asks for itself: it is limited by `requeue_times` alone, if that was said.
        """
        if isinstance(error, Retry):
            return NO_LIMIT if self.requeue_times is None else self.requeue_times
        if self.no_retry_on and is_one_of(error, self.no_retry_on):
            return None
        if self.retry_on is not None and not is_one_of(error, self.retry_on):
            return None
        if self.requeue_times is None:
            return len(self.backoff.delays) if self.backoff else 0
        return self.requeue_times

    def delay(
        self,
        tries: int,
        error: BaseException,
        chance: Callable[[], float] = random.random,
        now: datetime | None = None,
    ) -> float:
        """The seconds before the next try, after so many.

        Args:
            chance: gives a number from 0 to 1.
            now: naive UTC; the clock's when None.
        """
        if isinstance(error, Retry):
            if error.delayed_for is not None:
                return error.delayed_for
            if error.delayed_until is not None:
                return (error.delayed_until - (now or utcnow())).total_seconds()
        if self.backoff is None:
            return self.requeue_delay_delta
        return self.backoff.delay_before(tries, self.requeue_delay_delta, chance)

    def delay_before_retry(
        self, tries: int, error: BaseException, chance: Callable[[], float] = random.random
    ) -> float | None:
        """The seconds before the next try of a job that was tried so often; None when there is none."""
        limit = self.limit(error)
        return None if limit is None or tries > limit else self.delay(tries, error, chance)


def parse_backoff(argument: str, value: Any) -> Backoff:
    """A Backoff from any of its forms.

    Args:
        value: a Backoff, or its arguments as a mapping; a name; a list of delays in seconds; as text also
            `kind:delay:maximum:jitter`, of which all but the kind may be left out, or delays with commas: `1,10,60`.
    Raises:
        InvalidArgument: none of these.
    """
    try:
        if isinstance(value, Backoff):
            return value
        if isinstance(value, str):
            return _backoff_of_text(value.strip())
        if isinstance(value, Mapping):
            return Backoff(**value)
        if isinstance(value, (list, tuple)) and value:
            return Backoff(delays=_delays(value))
    except (InvalidArgument, TypeError, ValueError):
        pass
    raise InvalidArgument(argument, value, BACKOFF_FORMS)


def _backoff_of_text(text: str) -> Backoff:
    if re.match(r"[\d.]", text):
        return Backoff(delays=_delays([float(part) for part in text.split(",")]))
    kind, delay, maximum, jitter, *rest = [*text.split(":"), "", "", ""]
    if jitter not in ("", "jitter") or any(rest):
        raise ValueError(text)
    return Backoff(
        kind,
        float(delay) if delay else None,
        maximum=float(maximum) if maximum else MAXIMUM_SECONDS,
        jitter=jitter == "jitter",
    )


def _delays(values: Iterable[Any]) -> tuple[float, ...]:
    found = tuple(seconds_of("backoff", value) for value in values)
    if len(found) > MOST_DELAYS:
        raise InvalidArgument("backoff", values, f"at most {MOST_DELAYS} delays")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def seconds_of(argument: str, value: Any) -> float:
    """A duration in seconds, from a number or a timedelta; an int stays one.

    Raises:
        InvalidArgument: negative, longer than a century, or none.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not _is_number(seconds) or not 0 <= seconds <= LONGEST_KEEP.total_seconds():
        raise InvalidArgument(argument, value, "a number of seconds or a timedelta, 0 or more")
    return seconds


# --- Exceptions by name


def exception_names(argument: str, value: Any) -> tuple[str, ...]:
    """The full names of exceptions, `module.Class`, so that they can be stored and nothing has to be imported.

    Args:
        value: an exception class, a name, or several of these; as text with commas. Names without a dot are of Python.
    Raises:
        InvalidArgument: none of these.
    """
    several = value.split(",") if isinstance(value, str) else value
    if isinstance(several, type):
        several = [several]
    if isinstance(several, (list, tuple, set, frozenset)):
        names = [_exception_name(one) for one in several]
        if None not in names:
            return tuple(dict.fromkeys(name for name in names if name))
    accepted = "exception classes, or their names: module.Class, or ValueError and the like"
    raise InvalidArgument(argument, value, accepted)


def _exception_name(value: Any) -> str | None:
    if isinstance(value, type):
        return name_of(value) if issubclass(value, BaseException) else None
    text = value.strip() if isinstance(value, str) else ""
    if "." in text:
        return text if is_dotted_name(text.replace(".<locals>", "")) else None
    found = getattr(builtins, text, None)
    return name_of(found) if isinstance(found, type) and issubclass(found, BaseException) else None


def name_of(kind: type) -> str:
    """The full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_one_of(error: BaseException, names: Iterable[str]) -> bool:
    """Is an exception of a class with one of these names, or of a subclass? Nothing is imported to find out."""
    classes = type(error).__mro__
    own = {name_of(kind) for kind in classes}
    return any(name in own or _loaded(name) in classes for name in names)


def _loaded(name: str) -> Any:
    """What a module that is imported already has under a name: a class may be known by another than its own."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), "__dict__", {}).get(attribute)
