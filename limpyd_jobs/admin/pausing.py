"""Queues that give out no jobs, and those that are to become empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..models import Queue


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
    """
    raise NotImplementedError


def resume(queue: str, queue_model: Any = Queue) -> bool:
    """Have workers take the jobs of a queue again, idle ones at once. Was it paused?"""
    raise NotImplementedError


def paused(queue_model: Any = Queue) -> dict[str, Pause]:
    """The paused queues, by name."""
    raise NotImplementedError


def left(queues: Sequence[str], delayed: bool = False, queue_model: Any = Queue) -> Left:
    """What some queues have yet to do; `delayed`: also what is not due yet."""
    raise NotImplementedError


def drain(
    queues: Sequence[str],
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
    """
    raise NotImplementedError
