"""Finding jobs: by a filter, page by page, or by an ident, a primary key, an identifier.

A million jobs are not read for a page: the primary keys of those that may be meant come from the smallest place that
has them (see sources.py), and the filter is asked of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..exceptions import InvalidArgument, JobNotFound
from ..models import Queue
from ..statuses import STATUSES
from ..utils import server_seconds
from .matching import ENOUGH, JobQuestion, is_pattern
from .reading import (
    AT_ONCE,
    MEMBERS,
    JobKind,
    QueueNames,
    ask,
    client_of,
    each_queue,
    execute_together,
    is_wrong_type,
    job_kinds,
    kind_of,
    kinds_named,
    read_jobs,
)
from .records import JobFilter, JobRecord, Page
from .sources import FEW, Chosen, Order, Source, each_of, growing, newest, page_of, smallest, to_top

EVERY_JOB = JobFilter()

# Where jobs with a status may be, see docs/states.md: in a list or sorted set of their queue...
IN_QUEUES = (
    ("waiting", "list", {STATUSES.WAITING, STATUSES.DELAYED}),
    ("delayed", "zset", {STATUSES.DELAYED}),
    ("success", "list", {STATUSES.SUCCESS}),
    ("errors", "list", {STATUSES.ERROR}),
)
LEASED = {STATUSES.WAITING, STATUSES.DELAYED, STATUSES.RUNNING, STATUSES.ERROR}
PARKED = {STATUSES.WAITING, STATUSES.DELAYED}
# ... or, also, in none that names them: the index of the status does. RUNNING: a worker of version 2 has no lease.
IN_NO_LIST = {STATUSES.CANCELED, STATUSES.BLOCKED, STATUSES.RUNNING}


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
    items, following = page_of(_Search(wanted, queue_model).streams(), limit, after, _recency)
    return Page(items, following)


def each_job(wanted: JobFilter = EVERY_JOB, queue_model: Any = Queue) -> Iterator[JobRecord]:
    """All jobs that a filter finds, as `find_jobs`, one after the other.

    What is done to those that were given does not change which ones follow; new jobs are not among them.

    Raises:
        InvalidArgument: a value is not accepted, or there is no such class.
    """
    return each_of(_Search(wanted, queue_model).streams(), _recency)


def count_jobs(wanted: JobFilter = EVERY_JOB, queue_model: Any = Queue) -> int:
    """How many jobs a filter finds.

    Raises:
        InvalidArgument: a value is not accepted, or there is no such class.
    """
    return sum(stream.count() for stream in _Search(wanted, queue_model).streams())


def get_job(ident: str, queue_model: Any = Queue) -> JobRecord:
    """A job by its ident, by its primary key alone if only one class has it, or by its identifier: then the newest.

    Raises:
        JobNotFound: there is none, or several classes have this primary key. InvalidArgument: it is not a text.
    """
    if not isinstance(ident, str) or not ident:
        raise InvalidArgument("ident", ident, "the ident, the primary key or the identifier of a job")
    client, kinds = client_of(queue_model), job_kinds(queue_model)
    named = kind_of(kinds, ident)
    keys = [named] if named is not None else [(kind, ident) for kind in kinds]
    found = [record for record in read_jobs(client, keys, QueueNames(client)) if record is not None]
    if len(found) > 1:
        raise JobNotFound(ident, f"it could be {' or '.join(record.ident for record in found[:10])}")
    if not found:
        search = _Search(JobFilter(identifier=ident), queue_model, may_be_pattern=False)
        found = page_of(search.streams(), 1, None, _recency)[0]
    if not found:
        raise JobNotFound(ident)
    return found[0]


def _recency(record: JobRecord) -> str:
    return record.added or ""


class _Search:
    """One search for jobs."""

    def __init__(self, wanted: JobFilter, queue_model: Any, may_be_pattern: bool = True) -> None:
        self.wanted, self.queue_model, self.may_be_pattern = wanted, queue_model, may_be_pattern
        self.client = client_of(queue_model)
        self.queue_names = QueueNames(self.client)
        kinds = kinds_named(job_kinds(queue_model), wanted.job_class)
        self.kinds = [kind for kind in kinds if wanted.task is None or kind.task]

    def streams(self) -> list[_Jobs]:
        """The jobs that are found, by class, each from the smallest source."""
        tops = ask(self.client, (("GET", f"{kind.key}:max_pk") for kind in self.kinds))
        sources = smallest(self.client, map(self._sets, self.kinds))
        streams = [
            _Jobs(self, kind, to_top(top), *source) for kind, top, source in zip(self.kinds, tops, sources, strict=True)
        ]
        is_large = any(stream.source.size > FEW for stream in streams)
        if self.wanted.queues and is_large and self._places.size <= FEW:
            for stream in streams:
                stream.look_only_at(self.found_in.get(stream.key, {}))
        return streams

    @cached_property
    def _places(self) -> _Places:
        return _Places(self)

    @cached_property
    def found_in(self) -> Mapping[str, Mapping[str, str | None]]:
        """For each class, by its key prefix, primary keys -> the name of the queue in which they are; not of many."""
        return self._places.read() if self._places.size <= FEW else {}

    def _sets(self, kind: JobKind) -> dict[str | None, list[str]]:
        """Sets that have all jobs of a class that are meant, by the field that they index; '' for the set of all."""
        wanted, is_one = self.wanted, not (self.may_be_pattern and is_pattern(self.wanted.identifier))
        values = {
            "status": wanted.statuses,
            "identifier": (wanted.identifier,) if wanted.identifier is not None and is_one else (),
            kind.task: (wanted.task,) if wanted.task is not None else (),
        }
        options: dict[str | None, list[str]] = {
            name: [f"{kind.sets[name]}{value}" for value in asked]
            for name, asked in values.items()
            if asked and name is not None and name in kind.sets
        }
        return {"": [f"{kind.key}:collection"], **options}


class _Jobs:
    """The jobs of a class that a search finds."""

    def __init__(self, search: _Search, kind: JobKind, top: int, source: Source, indexed: str | None) -> None:
        self.key, self.kind, self.top, self.source, self._indexed = kind.key, kind, top, source, indexed
        self._search, self._client = search, search.client
        self._question = JobQuestion(search.wanted, kind, search.queue_names, search.may_be_pattern)

    def look_only_at(self, pks: Collection[str]) -> None:
        """Take these as the source."""
        self.source, self._indexed = Chosen(pks), ""

    def read(self, below: Order, first: int) -> Iterator[tuple[str, JobRecord]]:
        """Those below a primary key, the newest first; `first` are read at first."""
        for pks in growing(newest(self.source, self._start(), below), first, AT_ONCE):
            kept, is_end = self._sift(pks)
            records = read_jobs(self._client, [(self.kind, pk) for pk in kept], self._search.queue_names)
            for pk, record in zip(kept, records, strict=True):
                if record is not None and self._keeps(pk, record.fields):
                    yield pk, self._with_queue(record, pk)
            if is_end:
                return

    def _with_queue(self, record: JobRecord, pk: str) -> JobRecord:
        return record if record.queue else replace(record, queue=self._found_in(pk, record.fields))

    def _keeps(self, pk: str, values: Mapping[str, Any]) -> bool:
        return self._question.keeps(values, self._found_in(pk, values))

    def _found_in(self, pk: str, values: Mapping[str, Any]) -> str | None:
        """In which of the queues that are meant it is, of a job of version 2, which does not say it."""
        if values.get("queue_key") or not self._search.wanted.queues:
            return None
        return self._search.found_in.get(self.key, {}).get(pk)

    def count(self) -> int:
        """How many there are."""
        if self._question.names in ((), (self._indexed,)):
            return self.source.size
        count = 0
        for pks in growing(newest(self.source, self._start()), AT_ONCE, AT_ONCE):
            kept, is_end = self._sift(pks)
            count += len(kept)
            if is_end:
                break
        return count

    def _start(self) -> int:
        """The number from which on jobs may be old enough, where that is worth some round trips."""
        high, low = self.top, 0
        while self._question.asks_for_old and self.source.size > FEW and high - low > MEMBERS:
            middle = (low + high) // 2
            keys = (self.kind.hash_key(str(number)) for number in range(middle, middle - ENOUGH, -1))
            found = ask(self._client, (("HGET", key, "added") for key in keys))
            times = [added for added in found if isinstance(added, str)]
            if len(times) * 2 > ENOUGH and all(map(self._question.is_too_new, times)):
                high = middle
            else:
                low = middle
        return high

    def _sift(self, pks: list[str]) -> tuple[list[str], bool]:
        """Those that are meant, and whether no older ones are, by the fields that tell it."""
        if not self._question.names:
            return pks, False
        names = tuple(dict.fromkeys((*self._question.names, "status")))  # a record that is there has a status
        replies = ask(self._client, (("HMGET", self.kind.hash_key(pk), *names) for pk in pks))
        found = [
            (pk, dict(zip(names, values, strict=True)))
            for pk, values in zip(pks, replies, strict=True)
            if not is_wrong_type(values) and any(value is not None for value in values)
        ]
        self._search.queue_names.of(values["queue_key"] for _, values in found if values.get("queue_key"))
        kept = [pk for pk, values in found if self._keeps(pk, values)]
        is_end = len(found) >= ENOUGH and all(self._question.is_too_old(values) for _, values in found)
        return kept, is_end and self.top > 0 and self.source.size > FEW


@dataclass(frozen=True)
class _Place:
    """Where jobs of a queue may be.

    Attributes:
        kind: `list`, `zset`, `due` (the part of a sorted set whose time has come) or `set`.
        queue: the name of the queue whose jobs alone are there; None: those of other queues are, too.
        job_kind: of a set of primary keys, not of idents: their class.
    """

    kind: str
    key: str
    queue: str | None = None
    job_kind: JobKind | None = None

    def size_command(self, now: float) -> tuple[Any, ...]:
        """Asks how many there are."""
        if self.kind == "due":
            return ("ZCOUNT", self.key, "-inf", now)
        return ({"list": "LLEN", "zset": "ZCARD", "set": "SCARD"}[self.kind], self.key)

    def read_commands(self, size: int, now: float) -> Iterator[tuple[Any, ...]]:
        """Read them, so many at a time."""
        for start in range(0, size, MEMBERS):
            if self.kind == "due":
                yield ("ZRANGEBYSCORE", self.key, "-inf", now, "LIMIT", start, MEMBERS)
            else:
                yield ("LRANGE" if self.kind == "list" else "ZRANGE", self.key, start, start + MEMBERS - 1)


class _Places:
    """Where the jobs are that are, or were last, in some queues: their lists, the leases, the parked ones...

    Of jobs that ended, those in the histories: a record that is kept for a time of its own after it was removed there,
    because jobs that come after it have yet to run, is not found.

    Attributes:
        size: how many entries there are; more than FEW when they cannot be counted.
    """

    def __init__(self, search: _Search) -> None:
        self._search, self._client = search, search.client
        self._now = server_seconds(self._client.time())
        self._places = list(self._find())
        sizes = list(ask(self._client, (place.size_command(self._now) for place in self._places)))
        self._sizes = [FEW + 1 if is_wrong_type(size) else size for size in sizes]
        self.size = sum(self._sizes)

    def _find(self) -> Iterator[_Place]:
        statuses = set(self._search.wanted.statuses or STATUSES.values())
        namespace = self._search.queue_model.namespace or ""
        for queue in each_queue(self._search.queue_model, self._search.wanted.queues):
            for name, kind, found in IN_QUEUES:
                if statuses & found:
                    yield _Place(kind, f"{queue.key}:{name}", queue.name)
        if statuses & LEASED:
            yield _Place("zset", f"{namespace}:leases")
        if statuses & PARKED:
            for limit, _ in self._client.zscan_iter(f"{namespace}:limits:due", count=MEMBERS):
                yield _Place("zset", f"{namespace}:limit:{limit}:parked")
        if STATUSES.SUCCESS in statuses:
            yield _Place("due", f"{namespace}:expiring")
        for status in sorted(statuses & IN_NO_LIST):
            for job_kind in self._search.kinds:
                prefix = job_kind.sets.get("status")
                yield _Place("set", f"{prefix}{status}" if prefix else f"{job_kind.key}:collection", None, job_kind)

    def read(self) -> dict[str, dict[str, str | None]]:
        """For each key prefix of a class, its primary keys -> the queue in which they were found.

        The lists are read in one transaction: a job that moves meanwhile is in the place before or after it.
        """
        found: dict[str, dict[str, str | None]] = defaultdict(dict)
        names = {name: kind for kind in self._search.kinds for name in kind.names}
        for place, members in self._members():
            for member in members:
                if place.job_kind is not None:
                    found[place.job_kind.key].setdefault(member, None)
                    continue
                ident = member.partition(" ")[2] if place.key.endswith(":parked") else member
                name, _, pk = ident.partition(":")
                if name in names and pk:
                    pks = found[names[name].key]
                    pks[pk] = pks.get(pk) or place.queue
        return found

    def _members(self) -> Iterator[tuple[_Place, list[str]]]:
        """The sets are read before the lists and after them: a job may leave one for the other meanwhile."""
        yield from self._members_of_sets()
        pipeline, asked = self._client.pipeline(transaction=True), list[_Place]()
        for place, size in zip(self._places, self._sizes, strict=True):
            for command in place.read_commands(size, self._now) if place.kind != "set" else ():
                pipeline.execute_command(*command)
                asked.append(place)
        yield from zip(asked, execute_together(pipeline), strict=True)
        yield from self._members_of_sets()

    def _members_of_sets(self) -> Iterator[tuple[_Place, list[str]]]:
        for place, size in zip(self._places, self._sizes, strict=True):
            if place.kind == "set" and size:
                yield place, list(self._client.sscan_iter(place.key, count=MEMBERS))
