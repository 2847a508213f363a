"""Queues that give out no jobs, and those that are to become empty."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import recipes, transitions
from ..models import Queue
from ..utils import server_seconds, this_user
from .leases import leased_jobs
from .reading import AT_ONCE, client_of, queue_names

LOOK_SECONDS = 1.0  # between two looks at what is left


@dataclass(frozen=True)
class Pause:
    """A queue that is paused.

    Attributes:
        since: UTC, `YYYY-MM-DD HH:MM:SS`.
        reason: as it was given; may be ''.
        by: who has done it: `user@host`, unless something else was given.
    """

    queue: str
    since: str
    reason: str = ""
    by: str = ""


@dataclass(frozen=True)
class Left:
    """What some queues have yet to do.

    Attributes:
        waiting: jobs in their waiting lists, and parked ones.
        delayed: jobs that are delayed; only those that are due, unless all were asked for.
        running: jobs that are leased.
    """

    waiting: int = 0
    delayed: int = 0
    running: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.waiting + self.delayed + self.running


def pause(queue: str, reason: str = "", by: str | None = None, queue_model: Any = Queue) -> Pause:
    """Have no worker take jobs of a queue any more, of all its priorities; what runs goes on to its end.

    Workers see it within a second. Jobs can be added, and delayed ones become due: they wait. A queue that is paused
    already keeps its `since`, and takes the reason. One that does not exist yet may be paused, too.

    Args:
        by: who does it; None for the user and the host.
    Raises:
        InvalidArgument: not the name of a queue.
    Redis: pause.lua.
    """
    name = recipes.to_queue_name(queue)
    why, who = recipes.to_text("reason", reason), this_user() if by is None else recipes.to_text("by", by)
    return _pause(name, queue_model._send(transitions.pause(*_names_of(queue_model), name, why, who)))


def resume(queue: str, queue_model: Any = Queue) -> bool:
    """Have workers take the jobs of a queue again, idle ones at once. Was it paused?

    Redis: resume.lua.
    """
    was_paused: bool = queue_model._send(transitions.resume(*_names_of(queue_model), recipes.to_queue_name(queue)))
    return was_paused


def paused(queue_model: Any = Queue) -> dict[str, Pause]:
    """The paused queues, by name."""
    namespace, model = _names_of(queue_model)
    prefix = f"{model[len(namespace) + 1 :]}:"
    notes = client_of(queue_model).hgetall(f"{namespace}:paused")
    found = {field.removeprefix(prefix): note for field, note in notes.items() if field.startswith(prefix)}
    return {name: _pause(name, found[name]) for name in sorted(found)}


def left(queues: str | Sequence[str], delayed: bool = False, queue_model: Any = Queue) -> Left:
    """What some queues have yet to do.

    Args:
        queues: names.
        delayed: also what is not due yet.
    Raises:
        InvalidArgument: a name is none.
    """
    client = client_of(queue_model)
    keys = [queue.key.rpartition(":")[0] for queue in queue_model.get_all(queue_names(queues))]
    pipeline = client.pipeline(transaction=False)
    until = "+inf" if delayed else server_seconds(client.time())
    for key in keys:
        pipeline.llen(f"{key}:waiting").zcount(f"{key}:delayed", "-inf", until)
    counts = pipeline.execute()
    running = sum(job.queue_key in keys for job in leased_jobs(queue_model))
    waiting = sum(counts[::2]) + _count_parked(client, queue_model.namespace or "", set(keys))
    return Left(waiting, sum(counts[1::2]), running)


def drain(
    queues: str | Sequence[str],
    on_progress: Callable[[Left], None] | None = None,
    timeout: float | None = None,
    delayed: bool = False,
    queue_model: Any = Queue,
) -> Left:
    """Wait until some queues have nothing left to do: nothing waiting, due or running.

    Args:
        queues: names.
        on_progress: called with what is left, about once a second, and at the end.
        timeout: in seconds; None for as long as it takes.
        delayed: wait for jobs that are not due yet, too.
    Returns:
        What is left: with a `count` of 0, unless the time was over before.
    Raises:
        InvalidArgument: a name is none.
    """
    give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
    while True:
        found = left(queues, delayed, queue_model)
        if on_progress is not None:
            on_progress(found)
        until_end = give_up_at - time.monotonic()
        if not found.count or until_end <= 0:
            return found
        time.sleep(min(LOOK_SECONDS, until_end))


def _names_of(queue_model: Any) -> tuple[str, str]:
    """The namespace of a queue model, and what its keys begin with."""
    return queue_model.namespace or "", queue_model._name


def _pause(queue: str, note: str) -> Pause:
    said = json.loads(note)
    return Pause(queue, said["since"], said.get("reason", ""), said.get("by", ""))


def _count_parked(client: Any, namespace: str, queue_keys: set[str]) -> int:
    """How many jobs of some queues their limits do not let start."""
    places = (json.loads(text) for _, text in client.hscan_iter(f"{namespace}:limits:jobs", count=AT_ONCE))
    return sum(place["state"] == "parked" and place["queue"] in queue_keys for place in places)
