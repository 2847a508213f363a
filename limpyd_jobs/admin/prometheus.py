"""What Prometheus sees: queues, workers, and how many jobs came and went, how long they waited and ran.

All of it is read from Redis at each scrape, so that every exporter of a namespace answers the same, also one that has
just started: counters are those of `totals`, which only grow. Needs the extra `metrics`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

from redis.exceptions import RedisError

from ..exceptions import ConfigurationException, LimpydJobsException
from ..models import Queue, printable
from ..utils import parse_listen
from .numbers import BOUNDS, Histogram, Numbers, totals
from .overview import Status, status

try:
    import prometheus_client as client
    from prometheus_client.core import (
        CollectorRegistry,
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigurationException(
        "Metrics need the library prometheus-client: pip install 'redis-limpyd-jobs[metrics]'"
    ) from error

logger = logging.getLogger("limpyd-jobs")

COUNTERS = {
    "added": "New jobs",
    "started": "Runs of jobs that have begun",
    "succeeded": "Runs that have ended well",
    "failed": "Runs that have failed, each try",
    "requeued": "Jobs that were put in a queue again after their end, or are tried again",
    "recovered": "Jobs that were given back as their worker was lost",
    "canceled": "Jobs that have ended canceled",
}
HISTOGRAMS = {"wait": "From when a job could have started until it did", "run": "How long the runs of jobs took"}
SHOWN_BOUNDS = BOUNDS[:25:2]  # 1 ms, 4 ms, 16 ms ... 4.6 hours: each costs a series for each queue and task
OF_TASKS = ("queue", "task")


class JobsCollector(Collector):
    """Reads the metrics of a namespace, for a registry of prometheus_client.

        REGISTRY.register(JobsCollector())

    When Redis cannot be read, `limpyd_jobs_up` is 0, and there is no more than was read until then.

    Args:
        queue_model: its namespace and its database are what is meant.
    """

    def __init__(self, queue_model: Any = Queue) -> None:
        self._queue_model, self._was_up = queue_model, True

    def describe(self) -> Iterable[Metric]:
        """What a registry asks for names; without it, it would read all of Redis when it learns of this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        found: list[Metric] = []
        is_up = False
        try:
            found.extend(_of_status(status(queue_model=self._queue_model)))
            found.extend(_of_numbers(totals(self._queue_model)))
            is_up = True
        except (RedisError, LimpydJobsException) as error:
            if self._was_up:  # once, and not at each scrape
                logger.warning("Metrics cannot be read: %s", error)
        self._was_up = is_up
        yield GaugeMetricFamily("limpyd_jobs_up", "Whether Redis can be read", int(is_up))
        yield from found


def _of_status(now: Status) -> Iterator[Metric]:
    oldest: dict[str, float] = defaultdict(float)
    length = GaugeMetricFamily("limpyd_jobs_queue_length", "Jobs in a queue", labels=["queue", "priority", "state"])
    for queue in now.queues:
        delayed = max(queue.delayed - queue.due, 0)
        states = {"waiting": queue.waiting, "due": queue.due, "delayed": delayed, "running": queue.running}
        for state, count in states.items():
            length.add_metric([printable(queue.name), str(queue.priority), state], count)
        oldest[queue.name] = max(queue.oldest_age or 0, oldest[queue.name])
    yield length
    yield _by_queue(
        "limpyd_jobs_queue_oldest_age_seconds",
        "For how long the first job that waits could have started; 0: none waits",
        oldest,
    )
    paused = {queue.name: queue.paused for queue in now.queues}
    yield _by_queue("limpyd_jobs_queue_paused", "Whether workers leave a queue alone", paused)
    listeners = {queue.name: queue.listeners for queue in now.queues}
    yield _by_queue("limpyd_jobs_queue_workers", "Workers that listen to a queue", listeners)
    yield GaugeMetricFamily("limpyd_jobs_workers", "Workers that are alive", len(now.workers))
    busy = sum(bool(worker.jobs) for worker in now.workers)
    yield GaugeMetricFamily("limpyd_jobs_workers_busy", "Workers that run a job", busy)


def _by_queue(name: str, text: str, values: dict[str, Any]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["queue"])
    for queue, value in values.items():
        metric.add_metric([printable(queue)], float(value))
    return metric


def _of_numbers(numbers: list[Numbers]) -> Iterator[Metric]:
    for name, text in COUNTERS.items():
        counter = CounterMetricFamily(f"limpyd_jobs_{name}", text, labels=OF_TASKS)
        for one in numbers:
            counter.add_metric(_labels(one), getattr(one, name))
        yield counter
    for name, text in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"limpyd_jobs_{name}_seconds", text, labels=OF_TASKS)
        for one in numbers:
            found: Histogram = getattr(one, name)
            histogram.add_metric(_labels(one), buckets_of(found), found.sum)
        yield histogram


def _labels(one: Numbers) -> list[str]:
    return [printable(one.queue), printable(one.task)]  # else what is not UTF-8 would spoil all of the answer


def buckets_of(histogram: Histogram) -> list[tuple[str, float]]:
    """How many took at most how long: the text of the bound, and all up to it. The last one is `+Inf`."""
    bounds = [(str(bound), _up_to(histogram, bound)) for bound in SHOWN_BOUNDS]
    return [*bounds, ("+Inf", histogram.count)]


def _up_to(histogram: Histogram, bound: float) -> int:
    return sum(count for other, count in histogram.buckets.items() if other <= bound)


class _Program(Collector):
    """What the program measures itself, and what prometheus_client does of each process."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        for metric in client.REGISTRY.collect():
            if not metric.name.startswith("limpyd_jobs_"):  # else the program shows ours there, too
                yield metric


class MetricsServer:
    """Answers `GET /metrics` in threads of its own.

    Attributes:
        host, port: where it listens.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        try:
            self._server, self._thread = client.start_http_server(port, host, registry)
        except UnicodeError as error:  # what Python makes of a host like "a..b"
            raise OSError(f"There is no such host: {host}") from error
        self.host, self.port = host, int(self._server.server_port)
        _open.add(self)

    @property
    def url(self) -> str:
        """Where Prometheus is to ask."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def stop(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):  # not every system can
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would look in half a second
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Come back when it was stopped; a signal may raise here meanwhile."""
        while self._thread.is_alive():
            self._thread.join(1)


_open: WeakSet[MetricsServer] = WeakSet()


def _leave_ports() -> None:
    """In a process that was forked: as it answers nobody, it must not keep others from the port by living on."""
    for server in list(_open):
        server._server.server_close()


os.register_at_fork(after_in_child=_leave_ports)


def serve(listen: str | int = "127.0.0.1:9808", queue_model: Any = Queue) -> MetricsServer:
    """Show the metrics of a namespace, and what else this process measures with prometheus_client, by HTTP.

    Args:
        listen: a port of 127.0.0.1, 0 for any that is free; or `HOST:PORT`.
    Raises:
        InvalidArgument: `listen` is neither. OSError: nobody can listen there, as somebody else does, for instance.
    """
    host, port = parse_listen("listen", listen)
    registry = CollectorRegistry()
    registry.register(JobsCollector(queue_model))
    registry.register(_Program())
    return MetricsServer(host, port, registry)
