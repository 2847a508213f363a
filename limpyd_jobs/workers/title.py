"""The title of the worker's process, for those who look at the list of processes.

limpyd-jobs-worker#1566090 [init] queues=foo,bar
limpyd-jobs-worker#1566090 [starting] queues=foo,bar loop=0/1000 waiting=10 delayed=0
limpyd-jobs-worker#1566090 [running] queues=foo,bar loop=1/1000 waiting=9 delayed=2 duration=0:00:15
limpyd-jobs-worker#1566090 [running - ending] ...       it was told to end
limpyd-jobs-worker#1566090 [terminated] queues=foo,bar loop=10/1000 waiting=0 delayed=0 duration=0:12:27

The parent of several workers says how many are ready; `queues` are those of the command line:

limpyd-jobs-worker#1566080 [starting] queues=foo,bar processes=0/4
limpyd-jobs-worker#1566080 [running] queues=foo,bar processes=4/4
limpyd-jobs-worker#1566080 [running - ending] queues=foo,bar processes=4/4
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

Counts: TypeAlias = tuple[int, int]

# The program names that get the number of the worker; with `*.py`, whose suffix is not shown.
NUMBERED_PROGRAM = "limpyd-jobs-worker"


class JobCounts:
    """How many jobs are waiting and delayed, for the title of a worker.

    Counting costs two round trips, and a title is asked for several times a job. So while `may_be_old` is set, the last
    counts are given again, except when something has happened since and either they are `interval_seconds` old, or it
    is the start, the first job or the end.
    """

    interval_seconds = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.may_be_old = False
        self.counts: Counts | None = None
        self.counted_at: float | None = None
        self.counted_state: tuple[str | None, int] = (None, 0)

    def get(self, worker: Any) -> Counts | None:
        """(waiting, delayed); None when they could not be counted."""
        if not self.may_be_old or self._is_due(worker):
            self._count(worker)
        return self.counts

    def _is_due(self, worker: Any) -> bool:
        if self.counted_at is None:
            return True
        if self.counted_state == (worker.status, worker.num_loops):
            return False
        is_first_job = worker.num_loops > 0 and self.counted_state[1] == 0
        return (
            worker.status not in ("waiting", "running")
            or is_first_job
            or self.clock() - self.counted_at >= self.interval_seconds
        )

    def _count(self, worker: Any) -> None:
        self.counted_at, self.counted_state = self.clock(), (worker.status, worker.num_loops)
        try:
            self.counts = worker.count_waiting_jobs(), worker.count_delayed_jobs()
        # A title is decoration: a count that fails must end no worker, and the methods can be overridden.
        except Exception:
            self.counts = None


def show_program(name: str, number: str | int) -> str:
    """The program with the number of the worker, `worker#1566090` for worker.py; other names stay as they are."""
    if name.endswith(".py"):
        return f"{name.removesuffix('.py')}#{number}"
    return f"{name}#{number}" if name == NUMBERED_PROGRAM else name


def show_status(worker: Any) -> str:
    """The worker's status in brackets; None is a worker that does not exist yet."""
    status = getattr(worker, "status", None)
    if not status:
        return "[init]"
    return f"[{status} - ending]" if worker.end_forced else f"[{status}]"


def show_progress(worker: Any, counts: Counts | None) -> list[str]:
    """How far a worker that runs is: `loop=1/1000`, `waiting=9`, `delayed=2`, `duration=0:00:15`."""
    parts = [f"loop={worker.num_loops}/{worker.max_loops}"]
    if counts is not None:
        parts += [f"waiting={counts[0]}", f"delayed={counts[1]}"]
    if worker.elapsed is not None and worker.status != "starting":
        limit = f"/{worker.max_duration}" if worker.max_duration else ""
        parts.append(f"duration={timedelta(seconds=round(worker.elapsed.total_seconds()))}{limit}")
    return parts
