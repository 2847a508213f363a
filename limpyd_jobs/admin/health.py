"""Is all well? For the probes of containers, and for scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError

from .. import recipes
from ..exceptions import DatabaseException, InvalidArgument
from ..models import Queue
from ..utils import datetime_to_score, parse_datetime, server_seconds
from .leases import keys_of_classes
from .pausing import paused
from .workers import listeners, workers

WRITE_MILLISECONDS = 1000  # after which what is written as a trial is gone


def health(
    queues: Sequence[str] = (),
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
    names = [recipes.to_queue_name(name) for name in queues]
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
    queue_model.get_connection().set(key, "", px=WRITE_MILLISECONDS)


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
    left_alone = paused(queue_model)
    for (name, priority), age in sorted(_oldest_ages(names, queue_model).items()):
        if age > longest and name not in left_alone:
            yield f"the first job of the queue {name!r} with priority {priority} has waited for {age:.0f} seconds"


def _oldest_ages(names: Sequence[str], queue_model: Any) -> dict[tuple[str, str], float]:
    """How long the first job of each queue has waited, in seconds, by name and priority."""
    client = queue_model.get_connection()
    pks = [queue.pk.get() for queue in queue_model.get_all(names)] if names else sorted(queue_model.collection())
    pipeline = client.pipeline(transaction=False)
    for pk in pks:
        pipeline.hmget(f"{queue_model._name}:{pk}:hash", "name", "priority")
        pipeline.lindex(f"{queue_model._name}:{pk}:waiting", 0)
    replies = pipeline.execute(raise_on_error=False)
    heads = [
        ((values[0], values[1] or "0"), ident)
        for values, ident in zip(replies[::2], replies[1::2], strict=True)
        if isinstance(values, list) and values[0] is not None and isinstance(ident, str)
    ]
    since = _waiting_since(queue_model, [ident for _, ident in heads])
    now = server_seconds(client.time())
    return {key: now - since[ident] for key, ident in heads if ident in since}


def _waiting_since(queue_model: Any, idents: Sequence[str]) -> dict[str, float]:
    """When some jobs have begun to wait, as their records say it."""
    keys, pipeline = keys_of_classes(queue_model), queue_model.get_connection().pipeline(transaction=False)
    known = [ident for ident in idents if ident.partition(":")[0] in keys]
    for ident in known:
        model_repr, _, pk = ident.partition(":")
        pipeline.hmget(f"{keys[model_repr]}:{pk}:hash", "waiting_since", "added")
    found: dict[str, float] = {}
    for ident, values in zip(known, pipeline.execute(raise_on_error=False), strict=True):
        for text in values if isinstance(values, list) else ():
            seconds = _seconds(text)
            if seconds is not None:
                found.setdefault(ident, seconds)
    return found


def _seconds(text: str | None) -> float | None:
    try:
        return datetime_to_score(parse_datetime(text)) if text else None
    except ValueError:  # programs may write to it
        return None
