"""All that is known of one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models import Queue
from ..outcomes import Progress, read_progress
from ..statuses import STATUSES
from ..utils import score_to_datetime, server_seconds
from .errors import find_errors
from .finding import get_job
from .leases import worker_of
from .reading import MEMBERS, ask, client_of, is_wrong_type, job_kinds, kind_of
from .records import ErrorFilter, ErrorRecord, JobRecord

MOST_ERRORS = 100
MOST_TEXT = 100_000  # bytes of a result
EDGES = ("parents", "children", "waits_for")


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
        fields: all of its hash.
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


def show(ident: str, queue_model: Any = Queue) -> JobDetails:
    """All that is known of a job.

    Args:
        ident: as for `get_job`.
    Raises:
        JobNotFound: there is none, or several classes have this primary key.
    """
    return _Reading(get_job(ident, queue_model), queue_model).details()


class _Reading:
    """One reading of a job."""

    def __init__(self, record: JobRecord, queue_model: Any) -> None:
        self.record, self.queue_model = record, queue_model
        self.client, self.namespace = client_of(queue_model), queue_model.namespace or ""
        self.kinds = job_kinds(queue_model)
        found = kind_of(self.kinds, record.ident)
        assert found is not None, "the record was read by its class"
        self.kind, self.pk = found

    def details(self) -> JobDetails:
        """All of it."""
        errors = tuple(self._errors())
        relatives = {name: self._relatives(name) for name in EDGES}
        progress = None if self.kind.owns("progress") else read_progress(self.record.fields.get("progress"))
        return JobDetails(
            record=self.record,
            fields=self.record.fields,
            errors=errors,
            lease=self._lease(),
            result=self._result(),
            progress=progress,
            history=tuple(sorted(self._history(errors, progress), key=lambda moment: moment.time or "~")),
            **relatives,
        )

    def _errors(self) -> Iterator[ErrorRecord]:
        for name in self.kind.names:
            wanted = ErrorFilter(job=f"{name}:{self.pk}")
            yield from find_errors(wanted, MOST_ERRORS, queue_model=self.queue_model).items

    def _relatives(self, name: str) -> tuple[Relative, ...]:
        if self.kind.owns(name) or self.record.fault:
            return ()
        reply = next(ask(self.client, [("SSCAN", f"{self.kind.key}:{self.pk}:{name}", 0, "COUNT", MEMBERS)]))
        idents = [] if is_wrong_type(reply) else sorted(reply[1])
        known = {ident: found for ident in idents if (found := kind_of(self.kinds, ident)) is not None}
        commands = (("HMGET", kind.hash_key(pk), "identifier", "status") for kind, pk in known.values())
        values = dict(zip(known, ask(self.client, commands), strict=True))
        return tuple(
            Relative(ident, *(None, None) if is_wrong_type(values.get(ident)) else values.get(ident, (None, None)))
            for ident in idents
        )

    def _lease(self) -> Lease | None:
        for name in self.kind.names:
            ident = f"{name}:{self.pk}"
            commands = [("ZSCORE", f"{self.namespace}:leases", ident), ("HGET", f"{self.namespace}:claims", ident)]
            until, token = ask(self.client, commands)
            if until is not None and not is_wrong_type(until):
                left = until - server_seconds(self.client.time())
                return Lease(
                    worker_of(token if isinstance(token, str) else None) or None, str(score_to_datetime(until)), left
                )
        return None

    def _result(self) -> SavedResult | None:
        if self.kind.owns("saved_result") or self.record.status != STATUSES.SUCCESS:
            return None
        key = f"{self.kind.key}:{self.pk}:saved_result"
        text, size = ask(self.client, [("GETRANGE", key, 0, MOST_TEXT - 1), ("STRLEN", key)])
        if is_wrong_type(text) or not size:
            return None
        serializer, _, rest = text.partition(":")
        return SavedResult(serializer, rest, size) if serializer else SavedResult("", "", size, fault=rest)

    # --- Its history

    def _history(self, errors: tuple[ErrorRecord, ...], progress: Progress | None) -> Iterator[Moment]:
        record = self.record
        if record.added:
            yield Moment(record.added, "added", f"with the priority {record.priority}")
        if record.delayed_until:
            yield Moment(record.delayed_until, "due", "delayed until then")
        if record.start:
            yield Moment(record.start, "started", f"try {record.tries}" if record.tries else "")
        if progress is not None:
            percent = "" if progress.percent is None else f"{progress.percent:g} %"
            yield Moment(str(progress.updated), "progress", " ".join(filter(None, (percent, progress.note))))
        for error in errors:
            yield Moment(error.date_time, "error", f"{error.type}: {error.message}".split("\n")[0])
        recoveries = record.fields.get("recoveries")
        if recoveries and recoveries != "0":
            times = "once" if recoveries == "1" else f"{recoveries} times"
            yield Moment(None, "recovered", f"its lease has lapsed {times}")
        yield from self._end()

    def _end(self) -> Iterator[Moment]:
        record = self.record
        reason = "" if self.kind.owns("cancel_reason") else record.fields.get("cancel_reason", "")
        if record.status == STATUSES.CANCELED:
            yield Moment(record.end, "canceled", reason)
        elif record.end:
            yield Moment(record.end, "ended", STATUSES.by_value(record.status, record.status).lower())
