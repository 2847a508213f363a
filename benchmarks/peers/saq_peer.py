"""The adapter of saq: a JSON document for each job, and an asyncio worker that waits with BLMOVE."""

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
from saq import Worker
from saq.queue.redis import RedisQueue

# Jobs that a worker runs at once; each waits for its next one over a connection of its own.
CONCURRENCY = 10
# Calls of `bulk` that wait for Redis together.
GATHERED = 20
# Deleted when they end.
OPTIONS = {"ttl": -1}


async def job(context: dict[str, Any], *, i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about saq."""
    return {
        "name": "saq",
        "version": version("saq"),
        "configuration": f"RedisQueue on uvloop, {CONCURRENCY} coroutines at once, jobs deleted when they end; "
        f"no bulk call: {GATHERED} calls awaited together",
        "guarantees": {
            "ack": "after the job",
            "lease": "10 s, its timeout, seen once a minute; then it is aborted, or run again with `retries`",
            "record": "status, times, attempts, arguments, by id, until it ends",
            "result": "off; kept for 10 minutes by default",
        },
    }


async def connect() -> RedisQueue:
    """What adds jobs, connected."""
    queue = RedisQueue.from_url(probe.URL, name="bench", max_concurrent_ops=GATHERED)
    await queue.redis.ping()
    return queue


def add(n: int) -> float:
    """Add `n` jobs, one awaited call each."""

    async def run() -> float:
        queue = await connect()
        begin = perf_counter()
        for i in range(n):
            await queue.enqueue("job", i=i, **OPTIONS)
        return perf_counter() - begin

    return uvloop.run(run())


def bulk(n: int) -> float:
    """Add `n` jobs, many calls awaited together."""

    async def run() -> float:
        queue = await connect()
        begin = perf_counter()
        for first in range(0, n, GATHERED):
            numbers = range(first, min(first + GATHERED, n))
            await asyncio.gather(*(queue.enqueue("job", i=i, **OPTIONS) for i in numbers))
        return perf_counter() - begin

    return uvloop.run(run())


def work() -> None:
    """Run one worker process until it is killed."""

    async def run() -> None:
        await Worker(await connect(), functions=[("job", job)], concurrency=CONCURRENCY).start()

    uvloop.run(run())


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""

    async def run() -> None:
        queue = await connect()
        for i in range(n):
            probe.added(i)
            await queue.enqueue("job", i=i, **OPTIONS)
            await asyncio.sleep(interval)

    uvloop.run(run())


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
