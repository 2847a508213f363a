"""Is all well? For the probes of containers, and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models import Queue


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
        max_oldest_age: how long the first job of a queue may have waited, in seconds. Of a paused queue nothing is wrong.
    """
    raise NotImplementedError
