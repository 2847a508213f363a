"""A quick measurement of the Redis that one has: what it costs to reach it, to add jobs and to run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..models import Queue


@dataclass(frozen=True)
class BenchResult:
    """What was measured; times in seconds, rates in jobs per second.

    Attributes:
        jobs: how many were added in bulk, and run.
        round_trip, round_trip_p99: of a PING, the median and the 99th percentile.
        add: the rate of `add_job`, one after the other.
        add_many: that of `add_jobs`.
        run: that of one worker with jobs that do nothing.
        start, start_p99: from `add_job` to the start of the job, by a worker that waits.
        trips_per_add, trips_per_add_many, trips_per_run, trips_per_start: the same, in round trips: how often a PING
            takes as long as one job.
    """

    jobs: int
    round_trip: float
    round_trip_p99: float
    add: float
    add_many: float
    run: float
    start: float
    start_p99: float
    trips_per_add: float
    trips_per_add_many: float
    trips_per_run: float
    trips_per_start: float


def bench(
    jobs: int = 1000, on_progress: Callable[[str, int, int], None] | None = None, queue_model: Any = Queue
) -> BenchResult:
    """Measure, in some seconds, under keys of its own that are removed afterwards; no queue of anybody is touched.

    Args:
        jobs: how many are added and run.
        on_progress: called with the name of the step, how many steps are done and how many there are.
    Raises:
        InvalidArgument: `jobs` is not a positive integer.
    """
    raise NotImplementedError
