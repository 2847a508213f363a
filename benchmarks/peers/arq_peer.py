"""The adapter of arq: a sorted set that an asyncio worker polls."""

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
from arq import Worker, create_pool, func
from arq.connections import ArqRedis, RedisSettings

# Jobs that a worker runs at once.
CONCURRENCY = 100
# How long a worker sleeps between two looks at the queue.
POLL_SECONDS = 0.005
# Calls of `bulk` that wait for Redis together.
GATHERED = 100

settings = RedisSettings.from_dsn(probe.URL or "redis://")


async def job(context: dict[str, Any], i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about arq."""
    return {
        "name": "arq",
        "version": version("arq"),
        "configuration": f"uvloop, up to {CONCURRENCY} coroutines at once, a look at the queue every "
        f"{POLL_SECONDS * 1000:g} ms; no results kept; no bulk call: {GATHERED} calls awaited together",
        "guarantees": {
            "ack": "after the job",
            "lease": "310 s: its timeout and 10 s; then another worker takes it",
            "record": "status, arguments, time of adding, by id, until it ends",
            "result": "off; kept for an hour by default",
        },
    }


async def connect() -> ArqRedis:
    """What adds jobs, connected."""
    pool = await create_pool(settings)
    await pool.ping()
    return pool


def add(n: int) -> float:
    """Add `n` jobs, one awaited call each."""

    async def run() -> float:
        pool = await connect()
        begin = perf_counter()
        for i in range(n):
            await pool.enqueue_job("job", i)
        return perf_counter() - begin

    return uvloop.run(run())


def bulk(n: int) -> float:
    """Add `n` jobs, many calls awaited together."""

    async def run() -> float:
        pool = await connect()
        begin = perf_counter()
        for first in range(0, n, GATHERED):
            numbers = range(first, min(first + GATHERED, n))
            await asyncio.gather(*(pool.enqueue_job("job", i) for i in numbers))
        return perf_counter() - begin

    return uvloop.run(run())


def work() -> None:
    """Run one worker process until it is killed."""

    async def run() -> None:
        worker = Worker(
            [func(job, name="job")],
            redis_settings=settings,
            max_jobs=CONCURRENCY,
            poll_delay=POLL_SECONDS,
            keep_result=0,
            log_results=False,
            handle_signals=False,
        )
        await worker.async_run()

    uvloop.run(run())


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""

    async def run() -> None:
        pool = await connect()
        for i in range(n):
            probe.added(i)
            await pool.enqueue_job("job", i)
            await asyncio.sleep(interval)

    uvloop.run(run())


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
