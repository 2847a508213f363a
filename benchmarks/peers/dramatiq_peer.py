"""The adapter of dramatiq: threads, a Lua script for each fetch and acknowledgement.

Its command line starts a supervisor and worker processes; here is the same worker in one process, without supervisor.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

# Read when dramatiq is imported: how many messages a worker holds (more are no faster; its default, two for each
# thread, is slower by an order of magnitude), and how many ms it sleeps when idle (at 1 it does not sleep at all).
os.environ.update(dramatiq_queue_prefetch="100", dramatiq_worker_timeout="5")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dramatiq
import probe
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries
from dramatiq.worker import QUEUE_PREFETCH, WORKER_TIMEOUT

THREADS = 2

# Without the middleware for limits of age and time, callbacks and pipelines, none of which these jobs use.
broker = RedisBroker(url=probe.URL, middleware=[Retries()])
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="job", queue_name="bench")
def job(i: int) -> None:
    """Note that it ran."""
    probe.mark(i)


def describe() -> dict[str, Any]:
    """What the table says about dramatiq."""
    return {
        "name": "dramatiq",
        "version": version("dramatiq"),
        "configuration": f"RedisBroker, {THREADS} threads, {QUEUE_PREFETCH} messages prefetched, a look at the queue "
        f"every {WORKER_TIMEOUT} ms when idle; only the middleware for retries, as each one costs time; "
        "no bulk call (a group sends one by one)",
        "guarantees": {
            "ack": "after the job",
            "lease": "60 s without a heartbeat of the worker; a chance of 1 in 1,000 calls sees it and requeues",
            "record": "a message only",
            "result": "off; may be kept",
        },
    }


def add(n: int) -> float:
    """Send `n` messages, one call each."""
    broker.do_qsize("bench")
    begin = perf_counter()
    for i in range(n):
        job.send(i)
    return perf_counter() - begin


def bulk(n: int) -> None:
    """None: a group sends its messages one call each."""


def work() -> None:
    """Run one worker process until it is killed."""
    dramatiq.Worker(broker, worker_threads=THREADS).start()
    threading.Event().wait()


def latency(n: int, interval: float) -> None:
    """Send a message each `interval` seconds."""
    broker.do_qsize("bench")
    for i in range(n):
        probe.added(i)
        job.send(i)
        sleep(interval)


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency)
