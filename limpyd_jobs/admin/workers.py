"""Which workers there are, and what each of them runs at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models import Queue


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
        status: as in `Worker.status`: `starting`, `waiting`, `running`...
        jobs: that it runs, those that began first at the head.
        counts: since its start: `jobs` (runs that have ended), `errors`, `loops`.
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
    """All workers that are alive, by host and pid."""
    raise NotImplementedError


def listeners(queue_model: Any = Queue) -> dict[str, int]:
    """How many workers listen on each queue, by its name; names without any are not in it."""
    raise NotImplementedError
