"""What Prometheus reads of queues, workers and numbers, and where it can."""

from __future__ import annotations

import json
import os
import re
import socketserver
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from limpyd_jobs import Job, Queue, Worker, admin
from limpyd_jobs.admin.numbers import BOUNDS, Histogram
from limpyd_jobs.admin.overview import QueueStatus, Status
from limpyd_jobs.admin.prometheus import JobsCollector, MetricsServer, _of_status, buckets_of, serve
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.workers import AsyncWorker

from ..base import ROOT, wait_until
from ..workers.base import Running, idle, work

pytestmark = pytest.mark.usefixtures("database")

Sample = tuple[str, frozenset[tuple[str, str]]]


class ScrapedJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("bad"):
            raise ValueError("no")


class Scrape:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {one.name: one for one in text_string_to_metric_families(text)}
        self.samples: dict[Sample, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((f"limpyd_jobs_{name}", frozenset(labels.items())))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def scrape(queue_model: Any = Queue) -> Scrape:
    registry = CollectorRegistry()
    registry.register(JobsCollector(queue_model))
    return Scrape(generate_latest(registry).decode())


def ask(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return Scrape(reply.read().decode())


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    found = serve(0)
    yield found
    found.stop()


# --- queues and workers


def test_the_jobs_of_a_queue_are_told_by_priority_and_state() -> None:
    ScrapedJob.add_jobs(["a", "b"])
    ScrapedJob.add_job("c", priority=5)
    ScrapedJob.add_job("d", delayed_for=100)

    found = scrape()

    low = {
        state: found.value("queue_length", queue="test", priority="0", state=state) for state in ("waiting", "delayed")
    }
    assert low == {"waiting": 2, "delayed": 1}
    assert found.value("queue_length", queue="test", priority="5", state="waiting") == 1
    assert found.value("up") == 1


def test_the_age_of_a_queue_is_that_of_its_oldest_job() -> None:
    ScrapedJob.add_job("a", priority=5)
    old = ScrapedJob.add_job("b")
    old.added.hset("2020-01-01 00:00:00")
    Queue.get_queue("empty")

    found = scrape()

    assert (found.value("queue_oldest_age_seconds", queue="test") or 0) > 1e8
    assert found.value("queue_oldest_age_seconds", queue="empty") == 0


def test_a_pause_and_the_workers_of_a_queue_are_told() -> None:
    ScrapedJob.add_job("a")
    admin.pause("test")

    with Running(idle()):
        wait_until(lambda: scrape().value("workers") == 1)
        found = scrape()

    assert (found.value("queue_paused", queue="test"), found.value("queue_workers", queue="test")) == (1, 1)
    assert found.value("workers_busy") == 0


def test_without_redis_it_is_not_up_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ScrapedJob.add_job("a")
    BaseJobsModel.database.reset(host="127.0.0.1", port=1)
    registry = CollectorRegistry()
    registry.register(JobsCollector())

    found = [Scrape(generate_latest(registry).decode()) for _ in range(2)]

    assert found[1].names == {"limpyd_jobs_up"} and found[1].value("up") == 0
    assert [record.getMessage()[:22] for record in caplog.records] == ["Metrics cannot be read"]  # once


def test_what_can_be_read_is_told_though_the_numbers_cannot() -> None:
    ScrapedJob.add_job("a")
    BaseJobsModel.database.connection.set("jobs:numbers:total", "not a hash")

    found = scrape()

    assert (found.value("up"), found.value("queue_length", queue="test", priority="0", state="waiting")) == (0, 1)
    assert found.value("added_total", queue="test", task=ScrapedJob.get_model_repr()) is None


def test_a_name_that_is_not_utf_8_spoils_no_answer() -> None:
    queue = Queue.get_queue("test")
    BaseJobsModel.database.connection.hset(queue.key, "name", b"caf\xe9")

    assert scrape().value("queue_paused", queue="caf\\udce9") == 0


def test_thousands_of_queues_take_no_time() -> None:
    sizes = dict.fromkeys(("waiting", "due", "delayed", "running", "errors", "succeeded"), 0)
    queues = [QueueStatus(f"queue {number}", 0, **sizes) for number in range(6000)]
    started = time.thread_time()  # of the processor: what else runs there does not count

    (oldest,) = [one for one in _of_status(Status(queues, [], "")) if "oldest" in one.name]

    assert len(oldest.samples) == 6000 and time.thread_time() - started < 2


# --- numbers


def test_what_became_of_jobs_is_counted_by_queue_and_task() -> None:
    ScrapedJob.add_jobs(["a", "b", "bad"])
    ScrapedJob.add_job("canceled").cancel()
    work(3)

    found, of = scrape(), {"queue": "test", "task": ScrapedJob.get_model_repr()}

    names = ("added", "started", "succeeded", "failed", "canceled", "requeued", "recovered")
    assert {name: found.value(f"{name}_total", **of) for name in names} == {
        "added": 4,
        "started": 3,
        "succeeded": 2,
        "failed": 1,
        "canceled": 1,
        "requeued": 0,
        "recovered": 0,
    }
    assert found.value("run_seconds_count", **of) == found.value("wait_seconds_count", **of) == 3
    assert found.value("run_seconds_bucket", le="+Inf", **of) == 3
    assert (found.value("wait_seconds_sum", **of) or 0) >= 0


def test_counters_never_fall_though_minutes_expire() -> None:
    ScrapedJob.add_job("a")
    let_minutes_expire()
    of = {"queue": "test", "task": ScrapedJob.get_model_repr()}
    before = scrape()
    ScrapedJob.add_job("b")

    after = scrape()

    assert (before.value("added_total", **of), after.value("added_total", **of)) == (1, 2)


def test_counters_never_fall_though_there_is_no_room_for_more() -> None:
    full = {f"a task queue-{number}": 1 for number in range(9999)}
    BaseJobsModel.database.connection.hset("jobs:numbers:total", mapping=full)
    admin.totals()  # notes the minute; no room is left then
    ScrapedJob.add_job("a")
    before = admin.totals()
    let_minutes_expire()

    assert admin.totals() == before
    assert [one.added for one in before if one.queue == "*"] == [1]


def let_minutes_expire() -> None:
    """Have what was counted be of some minutes ago; then, when it was added up, be gone."""
    connection = BaseJobsModel.database.connection
    connection.hset("jobs:numbers:total", "rolled", 0)
    for key in list(connection.scan_iter("jobs:numbers:[0-9]*")):
        prefix, _, minute = key.rpartition(":")
        connection.rename(key, f"{prefix}:{int(minute) - 5}")
    admin.totals()
    assert connection.delete(*connection.scan_iter("jobs:numbers:[0-9]*"))


def test_all_exporters_answer_the_same(server: MetricsServer) -> None:
    ScrapedJob.add_jobs(["a", "b"])
    work(2)

    first, second = ask(server.url), scrape()

    ours = {of: value for of, value in first.samples.items() if re.match(r"limpyd_jobs_\w+_(total|bucket)$", of[0])}
    assert ours and ours == {of: second.samples[of] for of in ours}


def test_the_buckets_of_a_histogram_grow_up_to_all() -> None:
    found = buckets_of(Histogram({BOUNDS[0]: 1, BOUNDS[1]: 2, BOUNDS[32]: 4}, 1e6, 7))

    counts = [count for _, count in found]
    assert counts == sorted(counts) and counts[:2] == [1, 3] and found[-1] == ("+Inf", 7)
    assert [float(bound) for bound, _ in found] == sorted(float(bound) for bound, _ in found)


def test_names_are_those_that_prometheus_wants() -> None:
    ScrapedJob.add_job("a")
    work(1)

    found = scrape()

    for name, family in found.families.items():
        assert family.documentation
        assert name.startswith("limpyd_jobs_")
        assert all(sample.name.endswith("_total") for sample in family.samples if family.type == "counter")


# --- the server


def test_a_server_shows_them_with_what_the_program_measures() -> None:
    gauge = Gauge("letters_in_the_box", "...")
    gauge.set(7)
    server = serve("127.0.0.1:0")

    found = ask(server.url)
    server.stop()
    REGISTRY.unregister(gauge)

    assert found.samples["letters_in_the_box", frozenset()] == 7
    assert found.value("up") == 1
    with pytest.raises(OSError):
        ask(server.url)


def test_a_program_may_show_them_in_its_own_registry_too() -> None:
    REGISTRY.register(collector := JobsCollector())
    server = serve(0)

    text = ask(server.url).text
    server.stop()
    REGISTRY.unregister(collector)

    assert text.count("# TYPE limpyd_jobs_up ") == 1


@pytest.mark.parametrize(
    "listen", ["", "x", "127.0.0.1", "127.0.0.1:", ":80", -1, 65536, True, None, "a b:1", "::1:80"]
)
def test_a_place_that_is_none_is_refused(listen: Any) -> None:
    with pytest.raises(InvalidArgument, match="listen"):
        serve(listen)


def test_it_stops_at_once(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # how often its thread looks whether it is to end, in seconds: what happens before is not such a look
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (60,))
    other = serve(0)
    started = time.monotonic()

    other.stop()

    assert time.monotonic() - started < 10


def test_a_forked_process_does_not_keep_the_port() -> None:
    server = serve(0)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.read(reader, 1)
        os._exit(0)
    server.stop()

    try:
        serve(server.port).stop()
    finally:
        os.write(writer, b".")
        os.waitpid(child, 0)


def test_a_host_that_cannot_be_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"There is no such host: a\.\.b"):
        serve("a..b:80")


# --- of workers


@pytest.mark.parametrize(
    "make",
    [
        lambda: idle(metrics_port=0),
        lambda: idle(threads=2, metrics_port="127.0.0.1:0"),
        lambda: idle(worker_class=AsyncWorker, metrics_port="0"),
    ],
    ids=["plain", "threads", "loop"],
)
def test_a_worker_shows_them_while_it_runs(make: Any) -> None:
    ScrapedJob.add_job("a")
    worker = make()

    with Running(worker):
        url = wait_until(lambda: worker._metrics_port and worker._metrics_port.url)
        wait_until(lambda: ask(url).value("succeeded_total", queue="test", task=ScrapedJob.get_model_repr()) == 1)

    with pytest.raises(OSError):
        ask(url)


def test_a_worker_takes_the_place_of_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.workers.metrics_port.TRY_AGAIN_SECONDS", 0.05)
    ScrapedJob.add_job("a")
    first = idle(metrics_port=0)
    with Running(first):
        url = wait_until(lambda: first._metrics_port and first._metrics_port.url)
        second = idle(metrics_port=int(re.findall(r":(\d+)/", url)[0]))
        running = Running(second)
        running.__enter__()
        wait_until(lambda: second._metrics_port and second._metrics_port._has_complained)

    try:
        wait_until(lambda: second._metrics_port and second._metrics_port.url)
        assert ask(url).value("up") == 1
    finally:
        running.__exit__()


@pytest.mark.parametrize("value", ["x", 70000, -1, "host"])
def test_a_port_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match="Invalid metrics_port"):
        Worker("test", metrics_port=value)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.workers.metrics_port.find_spec", lambda name: None)

    with pytest.raises(ConfigurationException, match=r"pip install 'redis-limpyd-jobs\[metrics\]'"):
        Worker("test", metrics_port=9808)


# --- the dashboard


DASHBOARD = ROOT / "docs" / "grafana" / "limpyd-jobs.json"
PAGE = ROOT / "docs" / "telemetry.md"
SELECTOR = re.compile(r"(limpyd_jobs_\w+)(?:{([^}]*)})?")


def expressions_of_dashboard() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def expressions_of_page() -> list[str]:
    return re.findall(r"(?:expr|query|metricsQuery): (.+)", PAGE.read_text())


@pytest.mark.parametrize("expressions", [expressions_of_dashboard(), expressions_of_page()], ids=["dashboard", "page"])
def test_each_metric_and_label_that_is_asked_for_is_there(expressions: list[str]) -> None:
    ScrapedJob.add_jobs(["a", "bad"])
    work(2)
    found = scrape()
    labels = {name: {label for label, _ in given} | {"job"} for name, given in found.samples}

    asked = [pair for expression in expressions for pair in SELECTOR.findall(expression)]

    assert len(asked) > 5 and {name for name, _ in asked} <= found.names
    for name, selector in asked:
        assert set(re.findall(r"(\w+)=", selector)) <= labels[name]


def test_the_dashboard_shows_one_database_of_several() -> None:
    asked = [pair for expression in expressions_of_dashboard() for pair in SELECTOR.findall(expression)]

    assert [name for name, selector in asked if 'job="$job"' not in selector] == []
    assert set(re.findall(r"label_values\((\w+)", DASHBOARD.read_text())) <= scrape().names | {
        "limpyd_jobs_queue_length"
    }


def test_each_metric_is_in_the_page_about_them() -> None:
    ScrapedJob.add_job("a")
    work(1)
    page = PAGE.read_text()

    shown = {name if family.type != "counter" else f"{name}_total" for name, family in scrape().families.items()}

    assert {name for name in shown if f"`{name}" not in page} == set()
