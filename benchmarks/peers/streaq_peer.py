"""The adapter of streaq: a stream and a key for each job, and an asyncio worker on coredis that fetches ahead."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
import uvloop
from streaq import Worker

# Jobs that a worker runs at once, and jobs that it holds beyond them.
CONCURRENCY = 32
PREFETCH = 100
# Jobs added by one pipeline in `bulk`.
CHUNK = 1000

worker = Worker(
    redis_url=probe.URL or "redis://",
    concurrency=CONCURRENCY,
    prefetch=PREFETCH,
    queue_name="bench",
    anyio_kwargs={"use_uvloop": True},
)


# Keeps no result, and logs no line for a job.
@worker.task(name="job", ttl=0, silent=True)
async def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about streaq."""
    return {
        "name": "streaq",
        "version": version("streaq"),
        "configuration": f"uvloop, up to {CONCURRENCY} coroutines at once, {PREFETCH} jobs prefetched, no results, "
        f"no log line for a job; `enqueue_many` with {CHUNK} jobs a call",
        "guarantees": {
            "ack": "after the job",
            "lease": "60 s without a renewal; then another worker takes it",
            "record": "status, arguments, tries, by id, until it ends",
            "result": "off; kept for 5 minutes by default",
        },
    }


def add(n: int) -> float:
    """Add `n` jobs, one awaited call each."""

    async def run() -> float:
        async with worker:
            await worker.redis.ping()
            begin = perf_counter()
            for i in range(n):
                await job.enqueue(i)
            return perf_counter() - begin

    return uvloop.run(run())


def bulk(n: int) -> float:
    """Add `n` jobs, a call for each chunk."""

    async def run() -> float:
        async with worker:
            await worker.redis.ping()
            begin = perf_counter()
            for first in range(0, n, CHUNK):
                await worker.enqueue_many([job.enqueue(i) for i in range(first, min(first + CHUNK, n))])
            return perf_counter() - begin

    return uvloop.run(run())


def work() -> None:
    """Run one worker process until it is killed."""
    worker.run_sync()


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""

    async def run() -> None:
        async with worker:
            await worker.redis.ping()
            for i in range(n):
                probe.added(i)
                await job.enqueue(i)
                await asyncio.sleep(interval)

    uvloop.run(run())


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
