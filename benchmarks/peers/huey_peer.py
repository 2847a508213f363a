"""The adapter of huey: a list in Redis, and a thread that takes messages from it with BRPOP."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from huey import RedisHuey

THREADS = 1

huey = RedisHuey("bench", url=probe.URL, results=False, utc=True, blocking=True)


@huey.task()
def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about huey."""
    return {
        "name": "huey",
        "version": version("huey"),
        "configuration": f"RedisHuey without results, a blocking pop, one process with {THREADS} thread "
        "(at two processes four threads are about as fast; a worker process of its own is slower), no periodic tasks, "
        "no health check",
        "guarantees": {
            "ack": "none: a job is gone once it is taken",
            "lease": "none: what runs when the worker dies is lost",
            "record": "a message only",
            "result": "off; may be kept",
        },
    }


def add(n: int) -> float:
    """Add `n` messages, one call each."""
    huey.storage.conn.ping()
    begin = perf_counter()
    for i in range(n):
        job(i)
    return perf_counter() - begin


def bulk(n: int) -> None:
    """None: huey adds one message a call."""


def work() -> None:
    """Run one worker process until it is killed."""
    huey.create_consumer(workers=THREADS, worker_type="thread", periodic=False, check_worker_health=False).run()


def latency(n: int, interval: float) -> None:
    """Add a message each `interval` seconds."""
    huey.storage.conn.ping()
    for i in range(n):
        probe.added(i)
        job(i)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
