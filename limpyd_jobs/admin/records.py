"""What the functions of this package take and answer: plain values, that can be compared, pickled and made JSON of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are meant: those for which all that is given is true.

    Attributes:
        queues: names; a job is of the queue that it is, or was last, in.
        statuses: values of `STATUSES`.
        identifier: as it is stored; may hold `*` and `?`.
        job_class: the ident of a class (`my.module.MailJob`) or its name alone (`MailJob`).
        task: the name of a task, for jobs that are calls of one.
        older_than, newer_than: since it was added, in seconds.
        ended_before: the latest end, a text as in the field `end`.
    """

    queues: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    identifier: str | None = None
    job_class: str | None = None
    task: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    ended_before: str | None = None


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
    """

    queues: tuple[str, ...] = ()
    job_class: str | None = None
    type: str | None = None
    code: str | None = None
    identifier: str | None = None
    since: str | None = None
    until: str | None = None


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
