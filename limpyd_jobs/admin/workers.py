"""Which workers there are, and what each of them runs at this moment."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from .. import transitions
from ..models import Queue, worker_key, worker_recipe
from ..statuses import STATUSES
from ..utils import seconds_of, server_seconds
from ..workers.presence import GONE_SECONDS
from .leases import leased_jobs
from .reading import ask, client_of, is_wrong_type


@dataclass(frozen=True)
class CurrentJob:
    """A job that a worker runs.

    Attributes:
        since: when it began, UTC, as in its field `start`; None when its record does not say.
        seconds: how long ago that is, by the clock of Redis.
    """

    ident: str
    since: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class WorkerRecord:
    """A worker, as its `WorkerInfo` was last written; its jobs are those of this moment.

    Attributes:
        id: its key, with which the tokens of its claims begin.
        kind: the name of its class.
        options: those in force, by their names, as JSON has them; no passwords.
        started: UTC, `YYYY-MM-DD HH:MM:SS`.
        status: as in `Worker.status`: `starting`, `waiting`, `running`...; `ending` when it was told to end.
        jobs: that it runs, those that began first at the head.
        counts: since its start: `jobs` (runs that have ended, however) and `errors`.
        memory_bytes: resident.
        heartbeat_age: how long ago the record was written, in seconds by the clock of Redis.
    """

    id: str
    kind: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    options: Mapping[str, Any]
    started: str
    status: str
    jobs: tuple[CurrentJob, ...]
    counts: Mapping[str, int]
    memory_bytes: int
    heartbeat_age: float


def workers(queue_model: Any = Queue) -> list[WorkerRecord]:
    """All workers that are alive, by host and pid.

    A worker that was killed is shown for some seconds more (workers/presence.py). Redis: note_worker.lua.
    """
    client = client_of(queue_model)
    now = server_seconds(client.time())
    living = list(_living(queue_model, now))
    jobs = _jobs_of_workers(queue_model, now) if living else {}
    found = [_record(pk, values, tuple(jobs.get(pk, ())), age) for pk, values, age in living]
    return sorted(found, key=lambda one: (one.host, one.pid, one.id))


def listeners(queue_model: Any = Queue) -> dict[str, int]:
    """How many workers listen on each queue, by its name; names without any are not in it."""
    now = server_seconds(client_of(queue_model).time())
    return dict(Counter(name for _, values, _ in _living(queue_model, now) for name in json.loads(values["queues"])))


def _living(queue_model: Any, now: float) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """The key of each worker that is alive, what is noted of it, and how many seconds ago that was."""
    client, namespace = client_of(queue_model), queue_model.namespace or ""
    with contextlib.suppress(ResponseError):  # who may only read sees those that live all the same
        transitions.send(client, transitions.note_worker(namespace, worker_recipe(namespace)))
    noted = client.zrangebyscore(f"{namespace}:workers", now, "+inf", withscores=True)
    hashes = ask(client, (("HGETALL", f"{worker_key(namespace)}:{pk}:hash") for pk, _ in noted))
    for (pk, until), values in zip(noted, hashes, strict=True):
        if values and not is_wrong_type(values):  # else it has ended meanwhile
            yield pk, values, max(now - (until - GONE_SECONDS), 0.0)


def _jobs_of_workers(queue_model: Any, now: float) -> dict[str, list[CurrentJob]]:
    """What runs at this moment, by the key of the worker; what is claimed ahead does not run yet."""
    found: dict[str, list[CurrentJob]] = defaultdict(list)
    for job in leased_jobs(queue_model):
        if job.status != STATUSES.WAITING:
            found[job.worker].append(CurrentJob(job.ident, job.start, _seconds_since(job.start, now)))
    return {key: sorted(jobs, key=lambda job: (job.since or "~", job.ident)) for key, jobs in found.items()}


def _seconds_since(start: str | None, now: float) -> float | None:
    begun = seconds_of(start)
    return None if begun is None else max(now - begun, 0.0)


def _record(pk: str, values: Mapping[str, str], jobs: tuple[CurrentJob, ...], age: float) -> WorkerRecord:
    return WorkerRecord(
        id=pk,
        kind=values["kind"],
        host=values["host"],
        pid=int(values["pid"]),
        version=values["version"],
        queues=tuple(json.loads(values["queues"])),
        options=json.loads(values["options"]),
        started=values["started"],
        status=values["status"],
        jobs=jobs,
        counts=json.loads(values["counts"]),
        memory_bytes=int(values["memory"]),
        heartbeat_age=age,
    )
