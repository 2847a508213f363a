"""The adapter of limpyd_jobs with what a new user has: a plain worker, and no option that makes it faster."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe

from limpyd_jobs import Job, Worker
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.version import EXACT_VERSION

QUEUE = "bench"
# "no limit", so that the worker does not end by itself in the middle of a measurement
MAX_LOOPS = 10**9


def run(job: Any, queue: Any) -> None:
    """The job: it notes that it ran. Its number is the primary key, which the job has without asking Redis."""
    probe.mark(int(job.pk.get()) - 1)


def describe() -> dict[str, Any]:
    """What the table says about limpyd_jobs in its defaults."""
    return {
        "name": "limpyd_jobs",
        "version": EXACT_VERSION,
        "configuration": "all defaults: `Job.add_job`, and `Worker(queue, callback=...)`; logging is not configured",
        "guarantees": GUARANTEES,
    }


GUARANTEES = {
    "ack": "after the job",
    "lease": "renewed while it runs; given back 30 s after its worker died",
    "record": "a hash with status, times and tries, indexed; no identifier queued twice",
    "result": "the end of each job, for ever",
}


def connect() -> None:
    """Connect the models to the database, before the clock runs."""
    BaseJobsModel.database.connect(probe.URL)
    BaseJobsModel.database.connection.ping()


def add(n: int, first: int = 0) -> float:
    """Add `n` jobs, one call each, with identifiers from `first` on."""
    connect()
    begin = perf_counter()
    for i in range(first, first + n):
        Job.add_job(identifier=str(i), queue_name=QUEUE)
    return perf_counter() - begin


def bulk(n: int) -> float | None:
    """Add `n` jobs at once; None where this version cannot."""
    if not hasattr(Job, "add_jobs"):
        return None
    connect()
    begin = perf_counter()
    Job.add_jobs(map(str, range(n)), queue_name=QUEUE)
    return perf_counter() - begin


def work(**options: Any) -> None:
    """Run one worker process until it is killed."""
    connect()
    Worker(QUEUE, callback=run, max_loops=MAX_LOOPS, **options).run()


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""
    connect()
    for i in range(n):
        probe.added(i)
        Job.add_job(identifier=str(i), queue_name=QUEUE)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=lambda: work(), latency=latency)
