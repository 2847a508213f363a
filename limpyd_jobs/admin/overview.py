"""What is queued, and who works on it: all on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models import Queue


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
        oldest_age: for how long the job at the head of its waiting list has been there, or could have been, in seconds;
            None: nothing waits.
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
        workers: `WorkerRecord`s of those that are alive.
        time: when that was, UTC, by the clock of Redis.
    """

    queues: list[QueueStatus]
    workers: list[Any]
    time: str


def status(queues: Sequence[str] = (), queue_model: Any = Queue) -> Status:
    """What is queued, and who works on it.

    Args:
        queues: names; all when there are none.
    """
    raise NotImplementedError
