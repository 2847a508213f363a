"""Acting on all jobs that a filter finds, one after the other: at a rate, resumable, on each once.

An operation is kept in the hash `jobs:operations` from its start to its end: what it does and to which jobs, and its
cut-off, the time of its start. It needs no list of what was done: a job that was acted on is no more as it was read,
and what has been added, or has ended, after the cut-off is not meant.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from limpyd.exceptions import DoesNotExist
from redis.exceptions import RedisError

from .. import recipes
from ..exceptions import (
    InvalidArgument,
    JobAlreadyQueued,
    JobChanged,
    JobClassError,
    JobNotInStatus,
    WrongKeyType,
)
from ..models import Queue, class_name, printable, shortened
from ..statuses import ENDS, STATUSES, Cancellation
from ..utils import (
    check_datetime,
    compute_delayed_until,
    get_delta,
    parse_datetime,
    score_to_datetime,
    server_seconds,
    this_user,
)
from .acting import ACCEPTED, Actor
from .errors import EVERY_ERROR, each_error
from .finding import EVERY_JOB, count_jobs, each_job, find_jobs
from .reading import chunks, client_of
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord
from .removing import AT_ONCE, Remover

KINDS = (*ACCEPTED, "purge_errors")
REMOVALS = ("delete", "purge")
OPTIONS: dict[str, tuple[str, ...]] = {
    "requeue": ("queue", "priority", "delayed_for", "delayed_until"),
    "cancel": ("reason",),
    "move": ("queue", "priority"),
    "delete": ("is_forced",),
}
BURST_SECONDS = 0.1  # what may be made up for at once, when something has taken time
SAVE_SECONDS = 1.0
PAGE = 500
MOST_REASONS = 50
MOST_TRIES = 100  # to remove a job with thousands of Errors or children


@dataclass(frozen=True)
class Operation:
    """Something that is done to many jobs, one after the other; kept in `jobs:operations` until it has ended.

    Attributes:
        kind: `requeue`, `cancel`, `move`, `delete`, `purge` or `purge_errors`.
        wanted: which jobs; of `purge_errors`, which Errors.
        options: as the function for one job takes them.
        cut_off: UTC, by the clock of Redis: what was added, or has ended, later is not meant.
        by: who has started it, `user@host`.
        count: how many it concerned when it was started.
        done: how many were acted on, as far as that was noted: once a second, and when a run ends.
        skipped: how many were not, by the reason.
    """

    id: str
    kind: str
    wanted: JobFilter | ErrorFilter
    options: Mapping[str, Any]
    cut_off: str
    by: str
    count: int
    done: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    _queue_model: ClassVar[Any] = Queue

    def run(self, rate: float | None = None, on_progress: Callable[[int, int], None] | None = None) -> Operation:
        """Act on what is left; answers the operation as it has ended.

        Each job is acted on once, however often this is interrupted and resumed, and by however many at a time: in the
        state in which it was read, or not at all. What cannot be done to one is counted in `skipped`.

        Args:
            rate: jobs a second, at most.
            on_progress: called with how many it has come to, and how many there are in all; after each round trip, of
                50 jobs or of those of a tenth of a second.
        Raises:
            InvalidArgument: the rate is not more than 0. RedisError: Redis cannot be used for some seconds. Like
                KeyboardInterrupt, and what `on_progress` raises, it leaves an operation that can be resumed; what
                the round trip has done that was interrupted is not counted.
        """
        if rate is not None and not (isinstance(rate, (int, float)) and rate > 0):
            raise InvalidArgument("rate", rate, "a number of jobs a second, more than 0")
        return _Run(self, rate, on_progress or _say_nothing).run()


def _say_nothing(done: int, count: int) -> None:
    pass


# --- Starting and finding


def start_operation(
    kind: str, wanted: JobFilter | ErrorFilter, by: str | None = None, queue_model: Any = Queue, **options: Any
) -> Operation:
    """Prepare to act on all jobs that a filter finds; nothing is done to them before `run`.

    Args:
        kind: `requeue` (of statuses ERROR if the filter names none; SUCCESS and CANCELED can be named), `cancel` (all
            that have not ended), `move` (WAITING and DELAYED), `delete` (all), `purge` (all that have ended; those that
            ended well stay while their children have yet to run), or `purge_errors`, with an ErrorFilter.
        by: who starts it; None for the user and the host.
        options: what the function for one job takes: `queue`, `priority`, `delayed_for`, `delayed_until`, `reason`,
            `is_forced`.
    Raises:
        InvalidArgument: a value is not accepted, or a status of the filter does not fit.
    Redis: `jobs:operations`.
    """
    if kind not in KINDS:
        raise InvalidArgument("kind", kind, f"one of {', '.join(KINDS)}")
    checked = _check_options(kind, options)
    cut_off = _server_time(queue_model)
    wanted = _fitting(kind, wanted, str(cut_off))
    identity = os.urandom(4).hex()
    count = _count(wanted, queue_model)
    operation = Operation(identity, kind, wanted, checked, str(cut_off), by or this_user(), count)
    client_of(queue_model).hset(_key(queue_model), identity, _to_json(operation))
    return _of_model(operation, queue_model)


def start_purge(
    statuses: Sequence[str] = ENDS,
    older_than: float | timedelta = 0,
    wanted: JobFilter = EVERY_JOB,
    queue_model: Any = Queue,
) -> Operation:
    """Prepare to remove jobs that have ended in one of these statuses, so many seconds ago or more.

    Args:
        wanted: of these only.
    Raises:
        InvalidArgument: a value is not accepted.
    """
    ended_before = str(_server_time(queue_model) - _age(older_than))
    wanted = replace(wanted, statuses=tuple(statuses), ended_before=_earlier(wanted.ended_before, ended_before))
    return start_operation("purge", wanted, queue_model=queue_model)


def start_purge_of_errors(
    older_than: float | timedelta = 0, wanted: ErrorFilter = EVERY_ERROR, queue_model: Any = Queue
) -> Operation:
    """Prepare to remove Errors that were written so many seconds ago or more; their jobs stay.

    Args:
        wanted: of these only.
    Raises:
        InvalidArgument: a value is not accepted.
    """
    until = str(_server_time(queue_model) - _age(older_than))
    return start_operation(
        "purge_errors", replace(wanted, until=_earlier(wanted.until, until)), queue_model=queue_model
    )


def resume_operation(id: str, queue_model: Any = Queue) -> Operation:
    """An operation that was interrupted, to be run.

    Raises:
        InvalidArgument: there is none of this id: it has ended, or was dropped.
    """
    text = client_of(queue_model).hget(_key(queue_model), id)
    operation = None if text is None else _from_json(id, text)
    if operation is None:
        raise InvalidArgument("id", id, "the id of an operation that has not ended")
    return _of_model(operation, queue_model)


def drop_operation(id: str, queue_model: Any = Queue) -> bool:
    """Forget an operation that is not to be resumed. Answers whether there was one."""
    return bool(client_of(queue_model).hdel(_key(queue_model), id))


def operations(queue_model: Any = Queue) -> list[Operation]:
    """Those that were started and have not ended, oldest first."""
    found = client_of(queue_model).hgetall(_key(queue_model))
    readable = filter(None, (_from_json(id, text) for id, text in found.items()))
    all_of_them = [_of_model(operation, queue_model) for operation in readable]
    return sorted(all_of_them, key=lambda operation: operation.cut_off)


def _key(queue_model: Any) -> str:
    return f"{queue_model.namespace or ''}:operations"


def _of_model(operation: Operation, queue_model: Any) -> Operation:
    object.__setattr__(operation, "_queue_model", queue_model)  # no field: it is nothing that JSON could hold
    return operation


def _to_json(operation: Operation) -> str:
    values = asdict(operation)
    del values["id"]
    return json.dumps(values)


def _from_json(id: str, text: str) -> Operation | None:
    """An operation as it is kept; None: it cannot be read, being broken or of another version."""
    try:
        values = json.loads(text)
        kind = ErrorFilter if values["kind"] == "purge_errors" else JobFilter
        return Operation(id, **{**values, "wanted": kind(**values["wanted"])})
    except (ValueError, KeyError, TypeError):
        return None


def _server_time(queue_model: Any) -> datetime:
    return score_to_datetime(server_seconds(client_of(queue_model).time()))


def _age(older_than: float | timedelta) -> timedelta:
    try:
        age = get_delta(older_than)
    except (InvalidArgument, OverflowError):
        age = timedelta(-1)
    if age < timedelta():
        raise InvalidArgument("older_than", older_than, "a number of seconds, or a timedelta, 0 or more")
    return age


def _earlier(first: str | None, second: str) -> str:
    return second if first is None else min(first, second)


def _count(wanted: JobFilter | ErrorFilter, queue_model: Any) -> int:
    if isinstance(wanted, ErrorFilter):
        return sum(1 for _ in each_error(wanted, queue_model))
    return count_jobs(wanted, queue_model)


def _fitting(kind: str, wanted: JobFilter | ErrorFilter, cut_off: str) -> JobFilter | ErrorFilter:
    """The filter with all that the kind of an operation says."""
    if kind == "purge_errors":
        if not isinstance(wanted, ErrorFilter):
            raise InvalidArgument("wanted", wanted, "an ErrorFilter")
        return replace(wanted, until=_earlier(wanted.until, cut_off))
    if not isinstance(wanted, JobFilter):
        raise InvalidArgument("wanted", wanted, "a JobFilter")
    unfitting = [status for status in wanted.statuses if status not in ACCEPTED[kind]]
    if unfitting:
        names = ", ".join(STATUSES.by_value(status).lower() for status in ACCEPTED[kind])
        raise InvalidArgument("statuses", STATUSES.by_value(unfitting[0]).lower(), f"for a {kind} {names}")
    if kind == "requeue":
        wanted = replace(wanted, statuses=wanted.statuses or (STATUSES.ERROR,))
    elif kind != "delete":
        wanted = replace(wanted, statuses=wanted.statuses or ACCEPTED[kind])
    return wanted


def _check_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    for name in given:
        if name not in OPTIONS.get(kind, ()):
            raise InvalidArgument(name, given[name], f"an option of {kind}: there is none of this name")
    found = {name: value for name, value in given.items() if value is not None}
    if kind == "move" and not found:
        raise InvalidArgument("queue", None, "the name of another one, or with a priority")
    compute_delayed_until(found.get("delayed_for"), found.get("delayed_until"))
    return {name: _CHECKS[name](value) for name, value in found.items()}


def _reason(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgument("reason", value, "a string")
    return recipes.to_text("reason", value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue": recipes.to_queue_name,
    "priority": lambda value: int(recipes.to_priority(value)),
    "delayed_for": lambda value: get_delta(value).total_seconds(),
    "delayed_until": lambda value: str(check_datetime("delayed_until", value)),
    "reason": _reason,
    "is_forced": bool,
}


# --- A run


class Pace:
    """Lets so many pass in a second, over the whole run: no more than BURST_SECONDS' worth, or one, at once.

    Args:
        rate: None: as many as come.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._next = clock()

    @property
    def most_at_once(self) -> int:
        """How many may pass together."""
        return AT_ONCE if self._rate is None else min(max(int(self._rate * BURST_SECONDS), 1), AT_ONCE)

    def wait(self, count: int) -> None:
        """Wait until so many may pass."""
        if self._rate is None:
            return
        now = self._clock()
        self._next = max(self._next, now - BURST_SECONDS)
        if self._next > now:
            self._sleep(self._next - now)
        self._next += count / self._rate


class _Run:
    """One run of an operation."""

    def __init__(self, operation: Operation, rate: float | None, on_progress: Callable[[int, int], None]) -> None:
        self._operation, self._on_progress, self._pace = operation, on_progress, Pace(rate)
        self._queue_model, self._kind = operation._queue_model, operation.kind
        self._client = client_of(self._queue_model)
        self._actor = Actor(self._queue_model)
        is_forced = bool(operation.options.get("is_forced"))
        self._remover = Remover(self._queue_model, is_forced, spares=self._kind == "purge")
        self._done, self._skipped = operation.done, Counter(operation.skipped)
        self._come_to, self._save_at = 0, time.monotonic() + SAVE_SECONDS
        self._histories: set[str] = set()

    def run(self) -> Operation:
        try:
            for batch in self._batches():
                self._pace.wait(len(batch))
                self._act(batch)
                self._note(len(batch))
            for key in sorted(self._histories):
                self._remover.trim_history(key)
        except BaseException:
            self._save()
            raise
        self._client.hdel(_key(self._queue_model), self._operation.id)
        return self._as_it_is()

    def _as_it_is(self) -> Operation:
        operation = replace(self._operation, done=self._done, skipped=dict(self._skipped))
        return _of_model(operation, self._queue_model)

    def _save(self) -> None:
        """Note how far it has come, unless another run has ended it."""
        key, identity, text = _key(self._queue_model), self._operation.id, _to_json(self._as_it_is())

        def write(pipeline: Any) -> None:
            is_there = pipeline.hexists(key, identity)
            pipeline.multi()
            if is_there:
                pipeline.hset(key, identity, text)

        self._client.transaction(write, key)

    def _note(self, count: int) -> None:
        self._come_to += count
        self._on_progress(self._come_to, max(self._operation.count, self._come_to))
        if time.monotonic() >= self._save_at:
            self._save()
            self._save_at = time.monotonic() + SAVE_SECONDS

    # --- Which ones

    def _batches(self) -> Iterator[list[Any]]:
        return chunks(self._records(), self._pace.most_at_once)

    def _records(self) -> Iterator[Any]:
        wanted, cut_off = self._operation.wanted, self._operation.cut_off
        if isinstance(wanted, ErrorFilter):
            yield from each_error(wanted, self._queue_model)
            return
        wanted = self._aged(wanted)
        is_in_order = self._kind in ("requeue", "move")  # they come to run in the order in which they enter a queue
        found = self._oldest_first(wanted) if is_in_order else each_job(wanted, self._queue_model)
        for record in found:
            times = (record.added, record.end if record.status in ENDS else None)
            if all(moment is None or moment <= cut_off for moment in times) and record.fault is None:
                yield record

    def _oldest_first(self, wanted: JobFilter) -> Iterator[JobRecord]:
        """As `each_job`, the other way round: the pages are found first, and read again from the last one to the first.

        That is acted on as it was read at first, since new jobs would come before it.
        """
        first = page = find_jobs(wanted, PAGE, queue_model=self._queue_model)
        pages: list[tuple[str, str]] = []  # what each comes after, and its last ident
        while page.next is not None:
            after, page = page.next, find_jobs(wanted, PAGE, page.next, self._queue_model)
            pages += [(after, record.ident) for record in page.items[-1:]]
        for after, last in reversed(pages):
            for limit in (PAGE, 2 * PAGE):  # others may have come between them
                records = find_jobs(wanted, limit, after, self._queue_model).items
                idents = [record.ident for record in records]
                if last in idents:
                    break
            yield from reversed(records[: idents.index(last) + 1] if last in idents else records)
        yield from reversed(first.items)

    def _aged(self, wanted: JobFilter) -> JobFilter:
        """The filter, whose ages are those at the start of the operation."""
        passed = (_server_time(self._queue_model) - parse_datetime(self._operation.cut_off)).total_seconds()
        ages = {name: getattr(wanted, name) for name in ("older_than", "newer_than")}
        return replace(wanted, **{name: age + max(passed, 0) for name, age in ages.items() if age is not None})

    # --- What is done

    def _act(self, batch: Sequence[Any]) -> None:
        if self._kind == "purge_errors":
            self._remove_errors(batch)
        elif self._kind in REMOVALS:
            self._remove(batch)
        else:
            self._do(batch)

    def _count(self, reason: str) -> None:
        if not reason:
            self._done += 1
        else:
            self._skipped[reason if reason in self._skipped or len(self._skipped) < MOST_REASONS else "others"] += 1

    def _do(self, records: Sequence[JobRecord]) -> None:
        options = dict(self._operation.options)
        if "delayed_until" in options:
            options["delayed_until"] = parse_datetime(options["delayed_until"])
        failure: Exception | None = None
        for answer in self._actor.act_on(self._kind, records, **options):
            try:
                self._count(_reason_of(answer))
            except RedisError as error:  # those after it may have been done all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def _remove(self, records: Sequence[JobRecord]) -> None:
        try:
            results = self._remove_all(records)
        except JobClassError:
            if len(records) == 1:
                return self._count(_why_skipped(JobClassError("", "")))
            for record in records:  # perhaps of several classes
                self._remove([record])
            return
        for result in results:
            self._count(REASONS.get(result, ""))
        if self._kind == "purge":
            self._histories |= {key for record in records for key in _histories_of(record)}

    def _remove_all(self, records: Sequence[JobRecord]) -> list[str]:
        idents = [record.ident for record in records]
        results = dict(zip(idents, self._actor.remove(self._remover, records), strict=True))
        for record in records:
            for _ in range(MOST_TRIES):
                if results[record.ident] != "MORE":
                    break
                results[record.ident] = self._actor.remove(self._remover, [record])[0]
        return list(results.values())

    def _remove_errors(self, errors: Sequence[ErrorRecord]) -> None:
        self._remover.remove_errors(errors)
        self._done += len(errors)


def _reason_of(answer: Any) -> str:
    """Why something was not done, by what came of it; '' when it was."""
    if isinstance(answer, Exception):
        return _why_skipped(answer)
    if isinstance(answer, Cancellation):
        return "it has ended" if answer is Cancellation.ENDED else ""
    return str(answer)


def _histories_of(record: JobRecord) -> tuple[str, ...]:
    key = record.fields.get("queue_key")
    return (f"{key}:success", f"{key}:errors") if key else ()


# Why something was not done: by what remove.lua answers, and by what was raised.
REASONS = {
    "GONE": "it is gone",
    "RUNNING": "a process has it",
    "CHANGED": "it has changed since it was read",
    "NEEDED": "jobs that come after it have yet to run",
    "MORE": "too much belongs to it",
}
_RAISED: dict[type[Exception], str] = {
    JobChanged: REASONS["CHANGED"],
    JobAlreadyQueued: "another job with its identifier is queued",
    JobClassError: "its class cannot be had here, and is needed: name its directory with --pythonpath",
    WrongKeyType: "something of another type is under a key of its queue",
    DoesNotExist: REASONS["GONE"],
}


def _why_skipped(error: Exception) -> str:
    """Why a job was not acted on. That Redis cannot be used is no reason, and is raised."""
    for kind, reason in _RAISED.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, JobNotInStatus):
        return f"it is {STATUSES.by_value(error.status, 'in no status').lower()}"
    if isinstance(error, RedisError):
        raise error
    return (
        f"{class_name(error)}: {shortened(printable(error), 200)}"  # of a hook of its class, which may raise anything
    )
