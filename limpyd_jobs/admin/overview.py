"""What is queued, and who works on it: all on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models import Queue
from ..statuses import STATUSES
from ..utils import score_to_datetime, seconds_of, server_seconds
from .numbers import Rates, rates
from .pausing import paused
from .reading import (
    MEMBERS,
    JobKind,
    QueueRef,
    ask,
    chunks,
    client_of,
    each_queue,
    is_wrong_type,
    job_kinds,
    kind_of,
    queue_names,
)
from .workers import WorkerRecord, workers


@dataclass(frozen=True)
class QueueStatus:
    """A queue: the jobs of a name and a priority.

    Attributes:
        waiting: in its waiting list; those that are due but still in the delayed set are not among them.
        due: delayed jobs whose time has come.
        delayed: all in its delayed set, also those that are due.
        running: jobs that run, and were taken from it.
        errors, succeeded: entries of its histories, as long as these are kept.
        paused: is the name paused?
        rate_in, rate_out: of all queues of the name: jobs per second over the last five minutes.
        oldest_age: for how long the job at the head of its waiting list has waited there, in seconds; None: nothing
            waits, or the record does not say.
        listeners: workers that listen to the name.
    """

    name: str
    priority: int
    waiting: int
    due: int
    delayed: int
    running: int
    errors: int
    succeeded: int
    paused: bool = False
    rate_in: float = 0.0
    rate_out: float = 0.0
    oldest_age: float | None = None
    listeners: int = 0


@dataclass(frozen=True)
class Status:
    """A namespace, at one moment.

    Attributes:
        queues: by name, higher priorities first.
        workers: those that are alive.
        time: when that was, UTC, by the clock of Redis.
    """

    queues: list[QueueStatus]
    workers: list[WorkerRecord]
    time: str


def status(queues: str | Sequence[str] = (), queue_model: Any = Queue) -> Status:
    """What is queued, and who works on it.

    Args:
        queues: names; all when there are none. Workers are all of them.
    Raises:
        InvalidArgument: a name is none.
    """
    reading, found = _Reading(queue_model), workers(queue_model)
    listening = Counter(name for worker in found for name in set(worker.queues))
    names = _Names(paused(queue_model), rates(queue_model=queue_model), listening)
    lines = sorted(reading.queues(queue_names(queues), names), key=lambda line: (line.name, -line.priority))
    return Status(lines, found, str(score_to_datetime(reading.now)))


def oldest_ages(queues: Sequence[str] = (), queue_model: Any = Queue) -> dict[QueueRef, float]:
    """For how long the first job of each queue has waited, in seconds; without those of which nobody knows."""
    reading = _Reading(queue_model)
    pages = map(reading.ages, chunks(each_queue(queue_model, queues)))
    return {queue: age for found in pages for queue, age in found.items()}


@dataclass(frozen=True)
class _Names:
    """What is known of the names of queues."""

    paused: Mapping[str, Any]
    rates: Mapping[str, Rates]
    listeners: Mapping[str, int]


# What is asked of each queue: attribute of its status, command, name of the list or sorted set.
SIZES = (
    ("waiting", "LLEN", "waiting"),
    ("delayed", "ZCARD", "delayed"),
    ("errors", "LLEN", "errors"),
    ("succeeded", "LLEN", "success"),
)
WAITED_SINCE = ("waiting_since", "delayed_until", "added")  # jobs of version 2, and new ones, lack the first one


class _Reading:
    """One reading of a namespace.

    Attributes:
        now: by the clock of Redis, in seconds since the epoch.
    """

    def __init__(self, queue_model: Any) -> None:
        self._queue_model, self._client = queue_model, client_of(queue_model)
        self.now = server_seconds(self._client.time())
        self._kinds = job_kinds(queue_model)

    def queues(self, names: Sequence[str], known: _Names) -> Iterator[QueueStatus]:
        """The queues, in no order: some hundreds in two round trips."""
        running = self._count_running()
        for page in chunks(each_queue(self._queue_model, names)):
            ages = self.ages(page)
            for queue, found in zip(page, self._sizes(page), strict=True):
                flow = known.rates.get(queue.name, Rates())
                yield QueueStatus(
                    queue.name,
                    queue.priority,
                    **found,
                    running=running[queue.key],
                    paused=queue.name in known.paused,
                    rate_in=flow.rate_in,
                    rate_out=flow.rate_out,
                    oldest_age=ages.get(queue),
                    listeners=known.listeners.get(queue.name, 0),
                )

    def _sizes(self, queues: list[QueueRef]) -> Iterator[dict[str, int]]:
        commands = [(command, f"{queue.key}:{name}") for queue in queues for _, command, name in SIZES]
        due = [("ZCOUNT", f"{queue.key}:delayed", "-inf", self.now) for queue in queues]
        replies = [0 if is_wrong_type(reply) else reply for reply in ask(self._client, [*commands, *due])]
        for position in range(len(queues)):
            sizes = replies[position * len(SIZES) : (position + 1) * len(SIZES)]
            found = {name: size for (name, _, _), size in zip(SIZES, sizes, strict=True)}
            yield {**found, "due": replies[len(commands) + position]}

    def ages(self, queues: list[QueueRef]) -> dict[QueueRef, float]:
        """For how long the first job of each queue has waited; without those of which nobody knows."""
        heads = ask(self._client, (("LINDEX", f"{queue.key}:waiting", 0) for queue in queues))
        found = {queue: self._job_of(head) for queue, head in zip(queues, heads, strict=True)}
        first = {queue: job for queue, job in found.items() if job is not None}
        replies = ask(self._client, (("HMGET", kind.hash_key(pk), *WAITED_SINCE) for kind, pk in first.values()))
        ages = {
            queue: self._age(kind, values) for (queue, (kind, _)), values in zip(first.items(), replies, strict=True)
        }
        return {queue: age for queue, age in ages.items() if age is not None}

    def _job_of(self, ident: Any) -> tuple[JobKind, str] | None:
        """The class and the primary key of an ident; None: there is none, or its class is not known here."""
        return kind_of(self._kinds, ident) if isinstance(ident, str) else None

    def _age(self, kind: JobKind, values: Any) -> float | None:
        if is_wrong_type(values):
            return None
        since, delayed_until, added = values
        said = None if kind.owns("waiting_since") else since
        moments = [seconds_of(moment) for moment in ([said] if said else [added, delayed_until])]
        known = [moment for moment in moments if moment is not None]
        return max(self.now - max(known), 0.0) if known else None

    def _count_running(self) -> Counter[str]:
        """How many jobs run that were taken from a queue, by its key: those leased, and those of version 2."""
        leased = (self._job_of(ident) for ident, _ in self._client.zscan_iter(self._leases, count=MEMBERS))
        keys = {kind.hash_key(pk) for kind, pk in filter(None, leased)} | set(self._keys_of_running())
        counts: Counter[str] = Counter()
        for values in ask(self._client, (("HMGET", key, "status", "queue_key") for key in keys)):
            if not is_wrong_type(values) and values[0] == STATUSES.RUNNING and values[1]:
                counts[values[1]] += 1
        return counts

    @property
    def _leases(self) -> str:
        return f"{self._queue_model.namespace or ''}:leases"

    def _keys_of_running(self) -> Iterator[str]:
        """The hashes of the jobs that run, of the classes whose indexes tell."""
        indexes = {kind.sets["status"] + STATUSES.RUNNING: kind for kind in self._kinds if "status" in kind.sets}
        sizes = list(ask(self._client, (("SCARD", index) for index in indexes)))
        for size, (index, kind) in zip(sizes, indexes.items(), strict=True):
            if size and not is_wrong_type(size):
                yield from map(kind.hash_key, self._client.sscan_iter(index, count=MEMBERS))
