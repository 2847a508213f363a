"""What the functions of this package take and answer: plain values, that can be compared, pickled and made JSON of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..exceptions import InvalidArgument
from ..statuses import STATUSES
from ..utils import parse_moment

T = TypeVar("T")
LONGEST_AGE = 36525 * 86400  # a century, in seconds


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are meant: those for which all that is given is true.

    Attributes:
        queues: names; a job is of the queue that it is, or was last, in.
        statuses: values of `STATUSES`, or their names; the values afterwards.
        identifier: as it is stored; may hold `*` and `?`.
        job_class: the ident of a class (`my.module.MailJob`) or its name alone (`MailJob`).
        task: the name of a task, for jobs that are calls of one.
        older_than, newer_than: since it was added, in seconds.
        ended_before: the latest end, as `since` of an `ErrorFilter`; for a job that was canceled before it ran, of the
            time when it was added.
    """

    queues: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    identifier: str | None = None
    job_class: str | None = None
    task: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    ended_before: str | None = None

    def __post_init__(self) -> None:
        """Take names of statuses for their values, and one text for several.

        Raises:
            InvalidArgument: there is no such status, an age is no number of seconds, or a time is none.
        """
        object.__setattr__(self, "queues", texts(self.queues))
        object.__setattr__(self, "statuses", tuple(dict.fromkeys(map(_status, texts(self.statuses)))))
        for name in ("older_than", "newer_than"):
            _check_age(name, getattr(self, name))
        if self.ended_before is not None:
            object.__setattr__(self, "ended_before", _moment("ended_before", self.ended_before))


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Some texts; one alone may be given as it is."""
    return (value,) if isinstance(value, str) else tuple(value)


def _status(value: str) -> str:
    found = STATUSES.get(value.upper(), value) if isinstance(value, str) else value
    if found not in STATUSES.values():
        names = ", ".join(f"{name.lower()} ({letter})" for name, letter in STATUSES.items())
        raise InvalidArgument("statuses", value, f"one of {names}")
    return found


def _check_age(name: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value <= LONGEST_AGE):
        raise InvalidArgument(name, value, "a number of seconds, 0 or more")


@dataclass(frozen=True)
class ErrorFilter:
    """Which Error records are meant: those for which all that is given is true.

    Attributes:
        queues: names.
        job_class: as in `JobFilter`.
        type: the name of the class of the exception.
        code: what the exception has as `code`.
        identifier: of the job; may hold `*` and `?`.
        since, until: UTC, `YYYY-MM-DD HH:MM:SS` or the beginning of one; `until` is not included.
        job: the ident of the job.
        group: the fingerprint of a group (see `group_errors`).
    """

    queues: tuple[str, ...] = ()
    job_class: str | None = None
    type: str | None = None
    code: str | None = None
    identifier: str | None = None
    since: str | None = None
    until: str | None = None
    job: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        """Take one text for several queues.

        Raises:
            InvalidArgument: a time is not the beginning of one.
        """
        object.__setattr__(self, "queues", texts(self.queues))
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _moment(name, value))


def _moment(name: str, value: Any) -> str:
    """The beginning of a time, as the field `date_time` has it."""
    try:
        return parse_moment(value if isinstance(value, str) else "")
    except ValueError:
        raise InvalidArgument(name, value, "UTC, YYYY-MM-DD HH:MM:SS or the beginning of one") from None


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of many.

    Attributes:
        next: what to pass as `after` for the next page; None: this is the last one.
    """

    items: list[T]
    next: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job, as it is stored; its class need not be there.

    Attributes:
        ident: its class and primary key.
        queue: the name of the queue that it is, or was last, in; None: it was in none.
        status: a value of `STATUSES`.
        task: of a call of a task, its name.
        fields: all of its hash.
        fault: what is wrong with the record, which cannot be read; None: nothing.
    """

    ident: str
    identifier: str
    queue: str | None
    status: str
    priority: int
    tries: int
    added: str | None
    start: str | None
    end: str | None
    delayed_until: str | None
    task: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    fault: str | None = None


@dataclass(frozen=True)
class ErrorRecord:
    """An Error record, as it is stored.

    Attributes:
        pk: its primary key.
        job: the ident of the job that failed.
        date_time: UTC.
    """

    pk: str
    job: str
    identifier: str
    queue: str
    type: str
    code: str | None
    message: str
    date_time: str
    traceback: str | None = None
