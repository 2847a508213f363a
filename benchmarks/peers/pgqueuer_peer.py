"""The adapter of pgqueuer: jobs are rows of PostgreSQL, fetched and finished in batches by an asyncio worker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

# Unlogged tables: a crash of the server empties them, as that of a Redis that saves nothing.
os.environ.setdefault("PGQUEUER_DURABILITY", "volatile")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
import probe
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

# Jobs that a worker fetches, and results that it writes, at once; 1000 are slower.
BATCH = 150
# Jobs added by one statement in `bulk`.
CHUNK = 1000


def describe() -> dict[str, Any]:
    """What the table says about pgqueuer."""
    return {
        "name": "pgqueuer",
        "version": version("pgqueuer"),
        "configuration": f"asyncpg on uvloop, batches of {BATCH} jobs, inserts of {CHUNK} jobs; unlogged tables, and "
        "commits that do not wait for the disk, as with a Redis that saves nothing",
        "guarantees": {
            "ack": "after the job, in batches: up to 0.1 s later",
            "lease": "30 s without a heartbeat of the job; then another worker takes it",
            "record": "a row until it ends, a row of a log for each status",
            "result": "none",
        },
    }


async def connect() -> asyncpg.Connection:
    """A connection whose commits do not wait for the disk."""
    return await asyncpg.connect(probe.URL, server_settings={"synchronous_commit": "off", "jit": "off"})


@asynccontextmanager
async def open_queries() -> AsyncIterator[Queries]:
    """What adds jobs, over a connection of its own."""
    connection = await connect()
    try:
        queries = Queries(AsyncpgDriver(connection))
        await connection.execute("SELECT 1")
        yield queries
    finally:
        await connection.close()


def setup() -> None:
    """Create its tables, where they are missing."""

    async def install() -> None:
        async with open_queries() as queries:
            if not await queries.schema_is_installed():
                await queries.install()

    uvloop.run(install())


def add(n: int) -> float:
    """Add `n` jobs, one awaited statement each."""

    async def run() -> float:
        async with open_queries() as queries:
            begin = perf_counter()
            for i in range(n):
                await queries.enqueue("job", b"%d" % i)
            return perf_counter() - begin

    return uvloop.run(run())


def bulk(n: int) -> float:
    """Add `n` jobs, a statement for each chunk."""

    async def run() -> float:
        async with open_queries() as queries:
            begin = perf_counter()
            for first in range(0, n, CHUNK):
                numbers = range(first, min(first + CHUNK, n))
                size = len(numbers)
                await queries.enqueue(["job"] * size, [b"%d" % i for i in numbers], [0] * size)
            return perf_counter() - begin

    return uvloop.run(run())


def work() -> None:
    """Run one worker process until it is killed."""

    async def run() -> None:
        pgq = PgQueuer.from_asyncpg_connection(await connect())

        @pgq.entrypoint("job")
        async def job(job: Job) -> None:
            probe.mark(int(job.payload))

        await pgq.run(batch_size=BATCH, dequeue_timeout=timedelta(seconds=30))

    uvloop.run(run())


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""

    async def run() -> None:
        async with open_queries() as queries:
            for i in range(n):
                probe.added(i)
                await queries.enqueue("job", b"%d" % i)
                await asyncio.sleep(interval)

    uvloop.run(run())


if __name__ == "__main__":
    probe.main(describe=describe, setup=setup, add=add, bulk=bulk, work=work, latency=latency)
