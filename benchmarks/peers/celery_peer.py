"""The adapter of celery: messages in a list of Redis, and a worker that runs them in its own process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from celery import Celery

# Messages that a worker holds.
PREFETCH = 100

app = Celery("bench", broker=probe.URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="bench",
    task_ignore_result=True,
    task_send_sent_event=False,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=PREFETCH,
    worker_send_task_events=False,
)


@app.task(name="job")
def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about celery."""
    return {
        "name": "celery",
        "version": version("celery"),
        "configuration": f"one process (`solo` pool), {PREFETCH} messages prefetched, no results, no events, "
        "no remote control, no gossip; one producer for all calls; no bulk call (a group sends one by one; "
        "chunks make one job of many)",
        "guarantees": {
            "ack": "before the job",
            "lease": "none for what runs: it is lost; an hour for what was prefetched",
            "record": "a message only",
            "result": "off; may be kept",
        },
    }


def add(n: int) -> float:
    """Send `n` messages, one call each, with one producer."""
    with app.producer_or_acquire() as producer:
        producer.connection.ensure_connection()
        begin = perf_counter()
        for i in range(n):
            job.apply_async((i,), producer=producer)
        return perf_counter() - begin


def bulk(n: int) -> None:
    """None: a group sends its messages one call each, and chunks are one job for many calls."""


def work() -> None:
    """Run one worker process until it is killed."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    app.worker_main(["worker", "--pool=solo", "--concurrency=1", *quiet])


def latency(n: int, interval: float) -> None:
    """Send a message each `interval` seconds."""
    with app.producer_or_acquire() as producer:
        producer.connection.ensure_connection()
        for i in range(n):
            probe.added(i)
            job.apply_async((i,), producer=producer)
            sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
