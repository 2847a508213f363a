"""One job with all the places where it may be, as they are at one moment, and what is around it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..statuses import STATUSES
from ..utils import server_seconds
from .leases import worker_of
from .numbers import rates
from .pausing import Pause, paused
from .reading import (
    JobKind,
    QueueNames,
    QueueRef,
    ask,
    chunks,
    client_of,
    each_queue,
    execute_together,
    is_wrong_type,
    job_kinds,
    kind_of,
    read_jobs,
    to_integer,
)
from .records import JobRecord
from .workers import WorkerRecord, workers

DEEPEST = 100_000  # how far from each end of a waiting list a job is looked for: Redis does nothing else meanwhile
QUEUES_AT_ONCE = 20  # in which a job is looked for that does not say where it is
MOST_TRIES = 5  # to see it in a queue that it does not leave meanwhile
RATE_MINUTES = 5
FIELDS = ("status", "queued", "queue_key", "run_options", "cancel_reason", "delayed_until", "start", "end", "tries")


@dataclass(frozen=True)
class Sight:
    """A job at one moment.

    Attributes:
        kind: its class; `pk`: its primary key.
        now: by the clock of Redis.
        fields: of its hash, those of FIELDS that it has.
        lease_until: when its lease lapses; None: it has none. `token` is that of the lease.
        limit: what is noted of it because of its limits, see docs/limits.md; empty for nothing.
        queue: the one that it is, or was last, in; None: none, or it was deleted.
        ahead: how many jobs are before it in its waiting list; None: it was not found there.
        is_deep: the list is so long that it may be there all the same.
        due: its score in the delayed set.
        broken: a key of its queue that holds something of another type.
        is_registered: do the scripts know its class?
    """

    kind: JobKind
    pk: str
    now: float
    fields: Mapping[str, str]
    lease_until: float | None = None
    token: str = ""
    limit: Mapping[str, Any] = field(default_factory=dict)
    queue: QueueRef | None = None
    ahead: int | None = None
    is_deep: bool = False
    due: float | None = None
    broken: str | None = None
    is_registered: bool = True

    @property
    def ident(self) -> str:
        return self.kind.ident(self.pk)

    @property
    def status(self) -> str:
        return self.fields.get("status", "")

    @property
    def is_queued(self) -> bool:
        return bool(self.fields.get("queued"))

    @property
    def worker_id(self) -> str:
        """The key of the worker that holds its lease; '': no worker does."""
        return worker_of(self.token)

    @property
    def is_at_once(self) -> bool:
        """Is it executed by the process that made it, in no queue?"""
        return self.status == STATUSES.RUNNING and not self.is_queued and "queue_key" not in self.fields

    @property
    def is_parked(self) -> bool:
        return self.limit.get("state") == "parked"

    @property
    def run_options(self) -> Mapping[str, Any]:
        """What `add_job` was told of its runs, as far as it can be read."""
        return {} if self.kind.owns("run_options") else _json(self.fields.get("run_options"))


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Surroundings:
    """What several sentences need to know; each thing is read once."""

    def __init__(self, queue_model: Any) -> None:
        self.queue_model = queue_model
        self.client = client_of(queue_model)
        self.namespace: str = queue_model.namespace or ""
        self._names = QueueNames(self.client)

    @cached_property
    def kinds(self) -> list[JobKind]:
        return job_kinds(self.queue_model)

    @cached_property
    def workers(self) -> dict[str, WorkerRecord]:
        """Those that are alive, by their keys."""
        return {worker.id: worker for worker in workers(queue_model=self.queue_model)}

    @cached_property
    def pauses(self) -> dict[str, Pause]:
        return paused(queue_model=self.queue_model)

    def listeners_of(self, name: str) -> list[WorkerRecord]:
        """The workers that take jobs of a queue."""
        return [worker for worker in self.workers.values() if name in worker.queues]

    def started_per_second(self, name: str) -> float:
        """How many jobs of the queues of a name began of late."""
        found = rates(RATE_MINUTES, queue_model=self.queue_model).get(name)
        return found.started if found else 0.0

    def records(self, idents: list[str]) -> dict[str, JobRecord | None]:
        """Some jobs; None: the record is gone, or its class is not known."""
        known = [(ident, found) for ident in idents if (found := kind_of(self.kinds, ident))]
        read = read_jobs(self.client, [found for _, found in known], self._names)
        return {**dict.fromkeys(idents), **dict(zip([ident for ident, _ in known], read, strict=True))}

    def waiting_before(self, queue: QueueRef) -> int:
        """How many jobs wait in the queues of the same name that have a higher priority."""
        before = [one.key for one in each_queue(self.queue_model, [queue.name]) if one.priority > queue.priority]
        counts = ask(self.client, (("LLEN", f"{key}:waiting") for key in before))
        return sum(0 if is_wrong_type(count) else int(count) for count in counts)

    # --- looking at a job

    def look(self, ident: str) -> Sight | None:
        """A job, in one transaction; None: its class is not known, or its record is gone."""
        found = kind_of(self.kinds, ident)
        if found is None:
            return None
        [key] = ask(self.client, [("HGET", found[0].hash_key(found[1]), "queue_key")])
        if is_wrong_type(key):
            return None
        for _ in range(MOST_TRIES):
            sight = self._look_in(*found, key)
            if sight is None or sight.fields.get("queue_key", key) == key:
                break
            key = sight.fields["queue_key"]  # it was moved meanwhile
        return self._located(sight) if sight is not None and key is None else sight

    def _look_in(self, kind: JobKind, pk: str, queue_key: str | None) -> Sight | None:
        ident, key = kind.ident(pk), queue_key or f"{self.namespace}:no-queue"
        pipeline = self.client.pipeline(transaction=True)
        pipeline.time()
        pipeline.hmget(kind.hash_key(pk), FIELDS)
        pipeline.zscore(f"{self.namespace}:leases", ident)
        pipeline.hget(f"{self.namespace}:claims", ident)
        pipeline.hget(f"{self.namespace}:limits:jobs", ident)
        pipeline.hexists(f"{self.namespace}:models", kind.name)
        pipeline.hmget(f"{key}:hash", "name", "priority")
        pipeline.llen(f"{key}:waiting")
        pipeline.lpos(f"{key}:waiting", ident, maxlen=DEEPEST)
        pipeline.lpos(f"{key}:waiting", ident, rank=-1, maxlen=DEEPEST)
        pipeline.zscore(f"{key}:delayed", ident)
        replies = execute_together(pipeline, raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and not is_wrong_type(reply):
                raise reply
        time, values, lease_until, token, noted, is_registered, queue, length, head, tail, due = replies
        if is_wrong_type(values) or not any(values):
            return None
        broken = {"hash": queue, "waiting": length, "delayed": due}
        ahead = next((place for place in (head, tail) if isinstance(place, int)), None)
        is_named = isinstance(queue, list) and queue[0] is not None
        return Sight(
            kind=kind,
            pk=pk,
            now=server_seconds(time),
            fields={name: value for name, value in zip(FIELDS, values, strict=True) if value is not None},
            lease_until=_number(lease_until),
            token=token if isinstance(token, str) else "",
            limit=_json(noted if isinstance(noted, str) else None),
            queue=QueueRef(key, queue[0], to_integer(queue[1])) if is_named else None,
            ahead=ahead,
            is_deep=ahead is None and isinstance(length, int) and length > 2 * DEEPEST,
            due=_number(due),
            broken=next((f"{key}:{name}" for name, reply in broken.items() if is_wrong_type(reply)), None),
            is_registered=is_registered == 1,
        )

    def _located(self, sight: Sight) -> Sight:
        """As it is in the queue where it is found: a job of version 2 does not say."""
        if sight.status in (STATUSES.WAITING, STATUSES.DELAYED, STATUSES.CANCELED) and sight.is_queued:
            for key in self._holders_of(sight.ident):
                return self._look_in(sight.kind, sight.pk, key) or sight
        return sight

    def _holders_of(self, ident: str) -> Iterator[str]:
        for page in chunks(each_queue(self.queue_model), QUEUES_AT_ONCE):
            commands = [
                command
                for queue in page
                for command in (
                    ("LPOS", f"{queue.key}:waiting", ident, "MAXLEN", DEEPEST),
                    ("ZSCORE", f"{queue.key}:delayed", ident),
                )
            ]
            replies = list(ask(self.client, commands))
            for queue, place, due in zip(page, replies[::2], replies[1::2], strict=True):
                if any(reply is not None and not is_wrong_type(reply) for reply in (place, due)):
                    yield queue.key


def _number(reply: Any) -> float | None:
    return float(reply) if isinstance(reply, (int, float, str)) else None
