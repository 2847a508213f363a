"""The adapter of taskiq with taskiq-redis: an asyncio worker that reads from a stream, or from a list, of Redis."""

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
from redis.asyncio import Redis
from taskiq.api import run_receiver_task
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq_redis import RedisStreamBroker

# Calls of `bulk` that wait for Redis together.
GATHERED = 20
# Jobs that a worker runs at once, and messages that it holds beyond them.
CONCURRENCY = 100
PREFETCH = 100

# Whoever starts first creates the group of workers: from the first entry on, so that none is passed over.
broker = RedisStreamBroker(probe.URL or "redis://", consumer_id="0", xread_count=100).with_formatter(JSONFormatter())


@broker.task(task_name="job")
async def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about taskiq."""
    return {
        "name": "taskiq",
        "version": f"{version('taskiq')} with taskiq-redis {version('taskiq-redis')}",
        "configuration": f"RedisStreamBroker on uvloop, up to {CONCURRENCY} coroutines at once, {PREFETCH} messages "
        "prefetched, messages in pydantic's own JSON, no parsing of arguments, no result backend (the list broker, "
        f"which acknowledges nothing, is not faster); no bulk call: {GATHERED} calls awaited together",
        "guarantees": {
            "ack": "after the job",
            "lease": "10 minutes idle; then another worker takes it",
            "record": "a message only, in a stream that keeps it",
            "result": "none without a backend",
        },
    }


async def connect() -> None:
    """Open the connection that jobs are added by."""
    await broker.startup()
    await Redis(connection_pool=broker.connection_pool).ping()


def add(n: int) -> float:
    """Add `n` jobs, one awaited call each."""

    async def run() -> float:
        await connect()
        begin = perf_counter()
        for i in range(n):
            await job.kiq(i)
        return perf_counter() - begin

    return uvloop.run(run())


def bulk(n: int) -> float:
    """Add `n` jobs, many calls awaited together."""

    async def run() -> float:
        await connect()
        begin = perf_counter()
        for first in range(0, n, GATHERED):
            await asyncio.gather(*(job.kiq(i) for i in range(first, min(first + GATHERED, n))))
        return perf_counter() - begin

    return uvloop.run(run())


def work() -> None:
    """Run one worker process until it is killed."""

    async def run() -> None:
        await run_receiver_task(
            broker,
            max_async_tasks=CONCURRENCY,
            max_prefetch=PREFETCH,
            validate_params=False,
            run_startup=True,
        )

    uvloop.run(run())


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""

    async def run() -> None:
        await connect()
        for i in range(n):
            probe.added(i)
            await job.kiq(i)
            await asyncio.sleep(interval)

    uvloop.run(run())


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
