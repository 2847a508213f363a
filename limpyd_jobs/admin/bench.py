"""A quick measurement of the Redis that one has: what it costs to reach it, to add jobs and to run them.

It is made under `<namespace>:bench-<number>:`, below the namespace of the jobs, which the user of Redis may write to.
There are few of these places, and each has its classes of jobs: Redis keeps a script for each class for ever.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any

from ..exceptions import InvalidArgument, LimpydJobsException
from ..models import Error, Job, Queue
from ..workers.blocking import Worker
from .reading import chunks, escaped

PLACES = 16  # in which somebody may measure, each at the same time as the others
OWNED_SECONDS = 3600  # after which a place is free again: whoever measured there was killed
SAMPLES = 200  # of what is measured one by one, at most
STARTS = 50  # that are waited for
START_TIMEOUT_SECONDS = 10.0
END_TIMEOUT_SECONDS = 30.0
KEYS_AT_ONCE = 1000
QUEUE_NAME = "bench"
STEPS = ("round trip", "add", "add_many", "run", "start")


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


@dataclass(frozen=True)
class _Place:
    """Where it is measured: classes under a namespace that is nobody else's."""

    namespace: str
    database: Any
    job_model: Any
    queue_model: Any
    error_model: Any
    started: queue.SimpleQueue[float]  # when a job ran


def bench(
    jobs: int = 1000, on_progress: Callable[[str, int, int], None] | None = None, queue_model: Any = Queue
) -> BenchResult:
    """Measure, in some seconds, under keys of its own that are removed afterwards; no queue of anybody is touched.

    Args:
        jobs: how many are added and run.
        on_progress: called with the name of a step before it begins, how many are done and how many there are.
    Raises:
        InvalidArgument: `jobs` is not a positive integer.
        LimpydJobsException: too many others measure at this moment, or a job did not start in 10 seconds.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InvalidArgument("jobs", jobs, "an integer of 1 or more")
    client = queue_model.database.connection
    steps = iter(enumerate(STEPS))

    def next_step() -> None:
        done, name = next(steps)
        if on_progress is not None:
            on_progress(name, done, len(STEPS))

    with _own_place(queue_model, client) as place:
        next_step()
        trips = [_timed(client.ping) for _ in range(SAMPLES)]
        next_step()
        ones = [_timed(partial(_add, place, f"one:{number}")) for number in range(min(jobs, SAMPLES))]
        next_step()
        many = _timed(lambda: place.job_model.add_jobs({"identifier": f"many:{n}"} for n in range(jobs)))
        next_step()
        run = _timed(lambda: _worker(place, burst=True).run())
        next_step()
        starts = _measure_starts(place)
    if on_progress is not None:
        on_progress("done", len(STEPS), len(STEPS))
    trip, trip_p99 = _median_and_p99(trips)
    start, start_p99 = _median_and_p99(starts)
    seconds = {"add": sum(ones) / len(ones), "add_many": many / jobs, "run": run / (jobs + len(ones))}
    return BenchResult(
        jobs=jobs,
        round_trip=trip,
        round_trip_p99=trip_p99,
        start=start,
        start_p99=start_p99,
        trips_per_start=start / trip,
        **{name: 1 / one for name, one in seconds.items()},
        **{f"trips_per_{name}": one / trip for name, one in seconds.items()},
    )


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _median_and_p99(values: list[float]) -> tuple[float, float]:
    points = quantiles(values, n=100, method="inclusive")
    return points[49], points[98]


# --- jobs and workers


def _add(place: _Place, identifier: str) -> None:
    place.job_model.add_job(identifier)


def _worker(place: _Place, **options: Any) -> Worker:
    """A worker as others are, but for signals, which are for whoever measures, and for its log."""
    return Worker(
        QUEUE_NAME,
        queue_model=place.queue_model,
        error_model=place.error_model,
        logger_name="limpyd-jobs.bench",
        logger_level=logging.ERROR,
        max_loops=2**53,
        terminate_gracefuly=False,
        **options,
    )


def _measure_starts(place: _Place) -> list[float]:
    """How long it took from `add_job` until a job ran, for some jobs, in seconds."""
    with _waiting_worker(place):
        found = [_time_of_a_start(place, number) for number in range(STARTS)]
    return found


def _time_of_a_start(place: _Place, number: int) -> float:
    while not place.started.empty():
        place.started.get()
    start = time.perf_counter()
    _add(place, f"start:{number}")
    try:
        return place.started.get(timeout=START_TIMEOUT_SECONDS) - start
    except queue.Empty:
        raise LimpydJobsException(f"No job was started in {START_TIMEOUT_SECONDS:g} seconds") from None


@contextmanager
def _waiting_worker(place: _Place) -> Iterator[None]:
    worker = _worker(place)
    thread = threading.Thread(target=worker.run, name="limpyd-jobs-bench", daemon=True)
    thread.start()
    try:
        yield
    finally:
        worker.end_forced = True
        thread.join(END_TIMEOUT_SECONDS)


# --- where


@contextmanager
def _own_place(queue_model: Any, client: Any) -> Iterator[_Place]:
    """A place that nobody else measures in, empty; it is empty again afterwards, whatever happens."""
    place, owner = _find_place(queue_model, client)
    try:
        _remove_keys(place, client)  # of one that was killed here
        yield place
    finally:
        _remove_keys(place, client)
        client.delete(owner)


def _find_place(queue_model: Any, client: Any) -> tuple[_Place, str]:
    """A free place, and the key that says that it is taken."""
    for number in random.sample(range(PLACES), PLACES):
        place = _place(number, queue_model)
        owner = f"{place.namespace}-owner"
        if client.set(owner, f"{os.getpid()}", nx=True, ex=OWNED_SECONDS):
            return place, owner
    raise LimpydJobsException(f"{PLACES} others measure this Redis at this moment")


_places: dict[tuple[int, str, Any], _Place] = {}


def _place(number: int, queue_model: Any) -> _Place:
    """One of the places of a namespace of a database; its classes are made once."""
    namespace, database = ":".join(filter(None, (queue_model.namespace, f"bench-{number}"))), queue_model.database
    if (number, namespace, database) not in _places:
        others = sum(number == one for one, *_ in _places)  # in this process, of another database or namespace
        suffix = f"{number}_{others}" if others else f"{number}"
        _places[number, namespace, database] = _new_place(suffix, namespace, database)
    return _places[number, namespace, database]


def _new_place(suffix: str, namespace: str, database: Any) -> _Place:
    shared = {"namespace": namespace, "database": database, "__module__": __name__}
    started: queue.SimpleQueue[float] = queue.SimpleQueue()

    def run(job: Any, taken_from: Any) -> None:
        started.put(time.perf_counter())

    def subclass(base: Any, **more: Any) -> Any:
        return type(base)(f"Bench{base.__name__}{suffix}", (base,), {**shared, **more})

    own_queue = subclass(Queue)
    job_model = subclass(Job, queue_model=own_queue, queue_name=QUEUE_NAME, run=run)
    return _Place(namespace, database, job_model, own_queue, subclass(Error), started)


def _remove_keys(place: _Place, client: Any) -> None:
    for keys in chunks(client.scan_iter(match=f"{escaped(place.namespace)}:*", count=KEYS_AT_ONCE), KEYS_AT_ONCE):
        client.unlink(*keys)
