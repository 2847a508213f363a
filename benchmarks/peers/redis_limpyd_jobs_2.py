"""The adapter of redis-limpyd-jobs 2, which limpyd_jobs succeeds."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from limpyd.contrib.database import PipelineDatabase

from limpyd_jobs import Job, Queue, Worker
from limpyd_jobs.models import BaseJobsModel

QUEUE = "bench"
MAX_LOOPS = 10**9


def run(job: Any, queue: Any) -> None:
    """The job: it notes that it ran. Its number is the primary key, which the job has without asking Redis."""
    probe.mark(int(job.pk.get()) - 1)


def describe() -> dict[str, Any]:
    """What the table says about version 2."""
    return {
        "name": "redis-limpyd-jobs 2",
        "version": version("redis-limpyd-jobs"),
        "configuration": "all defaults, on a PipelineDatabase; logging is not configured",
        "guarantees": {
            "ack": "none: a job is gone from the queue once it is taken",
            "lease": "none: what runs when the worker dies stays RUNNING",
            "record": "a hash with status, times and tries, indexed",
            "result": "the end of each job, for ever",
        },
    }


def connect() -> None:
    """Connect the models to the database, before the clock runs."""
    parts = urlsplit(probe.URL)
    database = PipelineDatabase(host=parts.hostname, port=parts.port, db=int(parts.path.strip("/") or 0))
    BaseJobsModel.use_database(database)
    database.connection.ping()


def setup() -> None:
    """Make the queue: a worker that finds none, ends."""
    connect()
    Queue.get_queue(QUEUE, 0)


def add(n: int) -> float:
    """Add `n` jobs, one call each."""
    connect()
    begin = perf_counter()
    for i in range(n):
        Job.add_job(identifier=str(i), queue_name=QUEUE)
    return perf_counter() - begin


def work() -> None:
    """Run one worker process until it is killed."""
    connect()
    Worker(QUEUE, callback=run, max_loops=MAX_LOOPS).run()


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""
    connect()
    for i in range(n):
        probe.added(i)
        Job.add_job(identifier=str(i), queue_name=QUEUE)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, setup=setup, add=add, work=work, latency=latency)
