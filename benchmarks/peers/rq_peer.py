"""The adapter of rq: a hash for each job, and a worker that runs them in its own process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from redis import Redis
from rq import Queue, SimpleWorker

# Jobs added by one pipeline in `bulk`.
CHUNK = 1000
# Spares rq the making of one.
OPTIONS = {"description": "job"}

client = Redis.from_url(probe.URL or "redis://")
queue = Queue("bench", connection=client)


def describe() -> dict[str, Any]:
    """What the table says about rq."""
    return {
        "name": "rq",
        "version": version("rq"),
        "configuration": "SimpleWorker, which does not fork; no scheduler, no log line for a job; results kept, as it "
        f"takes more commands to run a job without; `enqueue_many` with {CHUNK} jobs a call",
        "guarantees": {
            "ack": "after the job",
            "lease": "240 s: its timeout and a minute; then it is failed, or run again with `Retry`",
            "record": "status, times, arguments, by id; lists of failed, started, ended",
            "result": "kept for 500 s",
        },
    }


def add(n: int) -> float:
    """Add `n` jobs, one call each."""
    client.ping()
    begin = perf_counter()
    for i in range(n):
        queue.enqueue(probe.mark, i, **OPTIONS)
    return perf_counter() - begin


def bulk(n: int) -> float:
    """Add `n` jobs, a call for each chunk."""
    client.ping()
    begin = perf_counter()
    for first in range(0, n, CHUNK):
        numbers = range(first, min(first + CHUNK, n))
        queue.enqueue_many([Queue.prepare_data(probe.mark, (i,), **OPTIONS) for i in numbers])
    return perf_counter() - begin


def work() -> None:
    """Run one worker process until it is killed."""
    SimpleWorker([queue], connection=client, log_job_description=False).work(logging_level="WARNING")


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""
    client.ping()
    for i in range(n):
        probe.added(i)
        queue.enqueue(probe.mark, i, **OPTIONS)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
