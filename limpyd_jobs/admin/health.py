"""Is all well? For the probes of containers, and for scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..exceptions import DatabaseException, InvalidArgument
from ..models import Queue
from .overview import oldest_ages
from .pausing import paused
from .reading import client_of, queue_names
from .workers import listeners, workers

WRITE_MILLISECONDS = 1000  # after which what is written as a trial is gone


def health(
    queues: str | Sequence[str] = (),
    min_workers: int = 0,
    max_oldest_age: float | None = None,
    queue_model: Any = Queue,
) -> list[str]:
    """What is wrong, a sentence each; nothing when all is well.

    Redis must answer and accept writes; what else is looked at is asked for.

    Args:
        queues: names of the queues that are meant; without any, all of them.
        min_workers: how many workers must be alive, that listen on each of `queues`; without names, on any.
        max_oldest_age: how long the first job of a queue may have waited, in seconds; not of one that is paused.
    Raises:
        InvalidArgument: an argument is not accepted.
    """
    names = queue_names(queues)
    _check_number("min_workers", min_workers)
    _check_number("max_oldest_age", max_oldest_age or 0)
    try:
        _write(queue_model)
        wrong = list(_too_few_workers(names, min_workers, queue_model)) if min_workers else []
        if max_oldest_age is not None:
            wrong += _too_old_jobs(names, max_oldest_age, queue_model)
    except (RedisError, DatabaseException) as error:
        return [f"Redis cannot be used: {error}"]
    return wrong


def _check_number(argument: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
        raise InvalidArgument(argument, value, "a number, 0 or more")


def _write(queue_model: Any) -> None:
    """Write something that goes by itself: a full memory, a replica, a disk that cannot be written refuse it."""
    key = f"{queue_model.namespace or ''}:done:health-{os.urandom(4).hex()}"
    client_of(queue_model).set(key, "", px=WRITE_MILLISECONDS)


def _too_few_workers(names: Sequence[str], wanted: int, queue_model: Any) -> Iterator[str]:
    if not names:
        count = len(workers(queue_model))
        if count < wanted:
            yield f"{_workers(count)}, not {wanted}"
        return
    listening = listeners(queue_model)
    for name in names:
        if listening.get(name, 0) < wanted:
            yield f"{_workers(listening.get(name, 0))} on the queue {name!r}, not {wanted}"


def _workers(count: int) -> str:
    return "1 worker listens" if count == 1 else f"{count or 'no'} workers listen"


def _too_old_jobs(names: Sequence[str], longest: float, queue_model: Any) -> Iterator[str]:
    left_alone, found = paused(queue_model), oldest_ages(names, queue_model)
    for queue in sorted(found, key=lambda queue: (queue.name, -queue.priority)):
        if found[queue] > longest and queue.name not in left_alone:
            which = f"the queue {queue.name!r} with priority {queue.priority}"
            yield f"the first job of {which} has waited for {found[queue]:.0f} seconds"
