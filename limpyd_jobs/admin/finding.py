"""Finding jobs, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models import Queue
from ..outcomes import Progress
from .records import ErrorRecord, JobFilter, JobRecord, Page

EVERY_JOB = JobFilter()


@dataclass(frozen=True)
class Relative:
    """A job that another one comes before or after.

    Attributes:
        status: a value of `STATUSES`; None: its record is gone, or its class is not known here.
    """

    ident: str
    identifier: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class Lease:
    """Who has a job in its hands.

    Attributes:
        worker: its id, as `WorkerRecord.id`; None: a process that puts the job in its queue.
        until: when the lease lapses unless it is renewed, UTC.
        seconds: until then, by the clock of Redis; below 0 when it has lapsed.
    """

    worker: str | None
    until: str
    seconds: float


@dataclass(frozen=True)
class SavedResult:
    """What a job answered, as it is stored.

    Attributes:
        serializer: the name of what has encoded it.
        text: encoded; of a long one its first 100,000 characters.
        size: of all of it, in bytes.
        fault: why it could not be stored; None: it was.
    """

    serializer: str
    text: str
    size: int
    fault: str | None = None


@dataclass(frozen=True)
class Moment:
    """A line of the history of a job.

    Attributes:
        time: UTC; None: nobody has noted when.
        event: `added`, `delayed`, `due`, `started`, `progress`, `error`, `recovered`, `ended`, `canceled`.
        text: a few words about it.
    """

    time: str | None
    event: str
    text: str = ""


@dataclass(frozen=True)
class JobDetails:
    """All that is known of a job.

    Attributes:
        fields: of its hash, and of our further fields.
        errors: the newest first, 100 at most, with their tracebacks.
        parents, children, waits_for: 1,000 at most of each.
        lease: None: no process has it.
        result: None: none was saved.
        progress: None: it has said nothing.
        history: as far as the record tells, the oldest first.
    """

    record: JobRecord
    fields: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[ErrorRecord, ...] = ()
    parents: tuple[Relative, ...] = ()
    children: tuple[Relative, ...] = ()
    waits_for: tuple[Relative, ...] = ()
    lease: Lease | None = None
    result: SavedResult | None = None
    progress: Progress | None = None
    history: tuple[Moment, ...] = ()


def find_jobs(
    wanted: JobFilter = EVERY_JOB, limit: int = 50, after: str | None = None, queue_model: Any = Queue
) -> Page[JobRecord]:
    """A page of the jobs that a filter finds, the newest first; those whose primary keys users have chosen come last.

    What is there all the time is on one of the pages, once, though other jobs come and go meanwhile. A record that is
    broken is on a page with its `fault` when nothing is asked that it would have to say.

    Args:
        limit: of the page, 1 to 1000.
        after: `next` of the page before; None for the first.
    Raises:
        InvalidArgument: a value is not accepted, or there is no such class.
    """
    raise NotImplementedError


def each_job(wanted: JobFilter = EVERY_JOB, queue_model: Any = Queue) -> Iterator[JobRecord]:
    """All jobs that a filter finds, as `find_jobs`, one after the other.

    What is done to those that were given does not change which ones follow; new jobs are not among them.

    Raises:
        InvalidArgument: a value is not accepted, or there is no such class.
    """
    raise NotImplementedError


def count_jobs(wanted: JobFilter = EVERY_JOB, queue_model: Any = Queue) -> int:
    """How many jobs a filter finds.

    Raises:
        InvalidArgument: a value is not accepted, or there is no such class.
    """
    raise NotImplementedError


def get_job(ident: str, queue_model: Any = Queue) -> JobRecord:
    """A job by its ident, by its primary key alone if only one class has it, or by its identifier: then the newest.

    Raises:
        JobNotFound: there is none, or several classes have this primary key.
    """
    raise NotImplementedError


def show(ident: str, queue_model: Any = Queue) -> JobDetails:
    """All that is known of a job.

    Args:
        ident: as for `get_job`.
    Raises:
        JobNotFound: there is none, or several classes have this primary key.
    """
    raise NotImplementedError
