"""The adapter of spinach: Lua scripts that move JSON, and threads that share what one thread fetched."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from redis import Redis
from spinach import Batch, Engine, RedisBroker

QUEUE = "bench"
# As many jobs are fetched in one call as threads are free: fewer threads are slower, more are no faster.
THREADS = 100
CHUNK = 1000

client = Redis.from_url(probe.URL)
engine = Engine(RedisBroker(client))


@engine.task(name="job", queue=QUEUE)
def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about spinach."""
    return {
        "name": "spinach",
        "version": version("spinach"),
        "configuration": f"{THREADS} threads, which is also how many jobs a fetch takes; `schedule_batch` with "
        f"{CHUNK} jobs a call; no retries",
        "guarantees": {
            "ack": "after the job, in a thread of its own",
            "lease": "30 minutes for the whole process; without retries its jobs are lost",
            "record": "a message only",
            "result": "none",
        },
    }


def add(n: int) -> float:
    """Schedule `n` jobs, one call each."""
    client.ping()
    begin = perf_counter()
    for i in range(n):
        engine.schedule(job, i)
    return perf_counter() - begin


def bulk(n: int) -> float:
    """Schedule `n` jobs in batches."""
    client.ping()
    begin = perf_counter()
    for start in range(0, n, CHUNK):
        batch = Batch()
        for i in range(start, min(start + CHUNK, n)):
            batch.schedule(job, i)
        engine.schedule_batch(batch)
    return perf_counter() - begin


def work() -> None:
    """Run one worker process until it is killed."""
    engine.start_workers(number=THREADS, queue=QUEUE)


def latency(n: int, interval: float) -> None:
    """Schedule a job each `interval` seconds."""
    client.ping()
    for i in range(n):
        probe.added(i)
        engine.schedule(job, i)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
