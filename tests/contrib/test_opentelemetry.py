"""What OpenTelemetry learns of jobs, by its exporters in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from limpyd_jobs import Job, Workflow
from limpyd_jobs.contrib.opentelemetry import Flush, instrument, uninstrument
from limpyd_jobs.exceptions import InvalidArgument, Retry
from limpyd_jobs.instruments import around, instruments
from limpyd_jobs.tasks import task
from limpyd_jobs.workers import AsyncWorker

from ..base import ROOT, RedisServer, wait_until
from ..workers.base import Running, idle, work

pytestmark = pytest.mark.usefixtures("database")


class TracedJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> Any:
        name = self.identifier.hget()
        with trace.get_tracer("shop").start_as_current_span("inner") as span:
            span.set_attribute("user", str(baggage.get_baggage("user")))
        if name.startswith("bad"):
            raise LookupError(name)
        if name == "again" and self.tries.hget() == "1":
            raise Retry(delayed_for=0)
        if name == "stops":
            self.cancel()
        if name == "exits":
            os._exit(7)
        return trace.get_current_span().get_span_context().trace_id


class TracedAsyncJob(Job):
    queue_name = "test"

    async def run(self, queue: Any) -> None:
        with tracer().start_as_current_span(f"inner {self.identifier.hget()}"):
            pass


@task(queue="test")
def traced_task(number: int) -> None:
    pass


class Telemetry:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meter_provider = MeterProvider([self.reader])

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        found = [metric for one in data.resource_metrics for scope in one.scope_metrics for metric in scope.metrics]
        return [point for metric in found if metric.name == name for point in metric.data.data_points]


_tracers: list[Any] = []


def tracer() -> Any:
    return _tracers[-1].get_tracer("shop")


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    found = Telemetry()
    _tracers.append(found.tracer_provider)
    instrument(found.tracer_provider, found.meter_provider)
    yield found
    uninstrument()
    assert instruments == []


def assert_child(child: ReadableSpan, parent: ReadableSpan) -> None:
    assert child.parent is not None and parent.context is not None
    assert (child.parent.span_id, child.parent.trace_id) == (parent.context.span_id, parent.context.trace_id)


def test_the_run_is_a_child_of_the_call_that_added_the_job_in_another_thread(telemetry: Telemetry) -> None:
    with tracer().start_as_current_span("request"):
        job = TracedJob.add_job("a")

    with Running(idle()):
        wait_until(lambda: telemetry.named("run test"))

    (request,), (add,), (run,) = (telemetry.named(name) for name in ("request", "add test", "run test"))
    assert_child(add, request)
    assert_child(run, add)
    assert (add.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(add.attributes or {}) == {
        "messaging.system": "limpyd_jobs",
        "messaging.operation.name": "add",
        "messaging.operation.type": "send",
        "messaging.destination.name": "test",
        "limpyd_jobs.job.class": TracedJob.get_model_repr(),
        "limpyd_jobs.job.identifier": "a",
    }
    assert dict(run.attributes or {}) == {
        "messaging.system": "limpyd_jobs",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "test",
        "messaging.message.id": job.ident,
        "limpyd_jobs.job.class": TracedJob.get_model_repr(),
        "limpyd_jobs.job.identifier": "a",
        "limpyd_jobs.job.tries": 1,
        "limpyd_jobs.job.outcome": "success",
    }


def test_a_real_process_goes_on_with_the_trace(telemetry: Telemetry, redis_server: RedisServer) -> None:
    program = (
        "import sys\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n"
        "from limpyd_jobs import Worker\n"
        "from limpyd_jobs.contrib.opentelemetry import instrument\n"
        "from limpyd_jobs.models import BaseJobsModel\n"
        f"BaseJobsModel.database.connect({redis_server.url!r})\n"
        "provider = TracerProvider()\n"
        "exporter = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + '\\n')\n"
        "provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
        "instrument(provider)\n"
        "Worker('test', max_loops=1, burst=True, callback=lambda job, queue: None).run()\n"
    )
    Job.add_job("a", "test")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    (add,), run = telemetry.named("add test"), json.loads(done.stdout)
    assert add.context is not None and run["name"] == "run test", done.stderr
    assert int(run["parent_id"], 16) == add.context.span_id
    assert int(run["context"]["trace_id"], 16) == add.context.trace_id


def test_the_jobs_of_one_call_have_one_producer(telemetry: Telemetry) -> None:
    TracedJob.add_jobs(["a", "b"])

    work(2)

    (add,), runs = telemetry.named("add test"), telemetry.named("run test")
    assert (add.attributes or {})["messaging.batch.message_count"] == 2
    for run in runs:
        assert_child(run, add)


def test_a_workflow_and_its_jobs_are_one_trace(telemetry: Telemetry) -> None:
    workflow = Workflow()
    first = workflow.plan(TracedJob, "a")
    workflow.plan(TracedJob, "b", after=first)
    workflow.add()

    work(2)

    (add,), runs = telemetry.named("add test"), telemetry.named("run test")
    assert len(runs) == 2
    for run in runs:
        assert_child(run, add)


def test_a_call_of_a_task_names_it(telemetry: Telemetry) -> None:
    traced_task.add(1)

    work(1)

    (run,) = telemetry.named("run test")
    assert (run.attributes or {})["limpyd_jobs.task"] == traced_task.name


def test_what_a_job_raises_is_on_its_span(telemetry: Telemetry) -> None:
    TracedJob.add_job("bad")

    work(1)

    (run,) = telemetry.named("run test")
    (event,) = run.events
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "bad")
    assert (run.attributes or {})["error.type"] == "LookupError"
    assert (event.name, (event.attributes or {})["exception.type"]) == ("exception", "LookupError")
    assert "in run" in str((event.attributes or {})["exception.stacktrace"])


def test_of_an_isolated_job_the_traceback_is_that_of_its_process(telemetry: Telemetry) -> None:
    TracedJob.add_job("bad")

    work(1, isolate=True)

    (event,) = telemetry.named("run test")[0].events
    assert "in run" in str((event.attributes or {})["exception.stacktrace"])


def test_the_death_of_the_process_of_a_job_is_on_its_span(telemetry: Telemetry) -> None:
    TracedJob.add_job("exits")

    work(1, isolate=True)

    (run,) = telemetry.named("run test")
    assert (run.attributes or {})["error.type"] == "limpyd_jobs.exceptions.JobProcessDied"


def test_a_process_that_a_job_forks_ends_no_span(telemetry: Telemetry) -> None:
    worker = SimpleNamespace(_is_this_process=True, _must_not_be_caught=lambda error: True)
    context = around(TracedJob.add_job("a"), None, worker)
    context.__enter__()

    if not (child := os.fork()):
        del context  # its generators are closed, as at the end of a process
        os._exit(len(telemetry.named("run")))

    assert os.waitpid(child, 0)[1] == 0
    context.leave(None)
    assert len(telemetry.named("run")) == 1


def test_a_collector_that_is_away_keeps_no_isolated_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.contrib.opentelemetry.FLUSH_SECONDS", 0.05)
    is_over = threading.Event()
    provider = SimpleNamespace(force_flush=lambda: is_over.wait(30))
    started = time.monotonic()

    with Flush(provider).around(None, None, SimpleNamespace(_is_this_process=False)):
        pass

    assert time.monotonic() - started < 10
    is_over.set()


def test_each_try_is_a_span_of_the_same_trace(telemetry: Telemetry) -> None:
    TracedJob.add_job("again", requeue_times=1)

    work(2)

    (add,), runs = telemetry.named("add test"), telemetry.named("run test")
    found = [
        ((run.attributes or {})["limpyd_jobs.job.tries"], (run.attributes or {})["limpyd_jobs.job.outcome"])
        for run in runs
    ]
    assert found == [(1, "retry"), (2, "success")]
    assert {run.status.status_code for run in runs} == {StatusCode.UNSET}
    for run in runs:
        assert_child(run, add)


def test_coroutines_that_run_together_have_their_own_spans(telemetry: Telemetry) -> None:
    TracedAsyncJob.add_jobs(["a", "b"])

    work(2, worker_class=AsyncWorker)

    runs = {(run.attributes or {})["limpyd_jobs.job.identifier"]: run for run in telemetry.named("run test")}
    for name in ("a", "b"):
        (inner,) = telemetry.named(f"inner {name}")
        assert_child(inner, runs[name])


def test_baggage_comes_along(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer", lambda name: telemetry.tracer_provider.get_tracer(name))
    token = context.attach(baggage.set_baggage("user", "12"))
    TracedJob.add_job("a")
    context.detach(token)

    work(1)

    assert (telemetry.named("inner")[0].attributes or {})["user"] == "12"


def test_a_job_that_is_executed_at_once_is_a_child_of_its_caller(telemetry: Telemetry) -> None:
    with tracer().start_as_current_span("request"):
        TracedJob.execute_now("a")

    (request,), (run,) = telemetry.named("request"), telemetry.named("run test")
    assert_child(run, request)


def test_a_call_that_fails_is_an_error(telemetry: Telemetry) -> None:
    with pytest.raises(InvalidArgument):
        TracedJob.add_job("a", priority="high")

    (add,) = telemetry.named("add test")
    assert add.status.status_code == StatusCode.ERROR
    assert (add.attributes or {})["error.type"] == "limpyd_jobs.exceptions.InvalidArgument"
    (sent,) = telemetry.points("messaging.client.sent.messages")
    assert sent.attributes["error.type"] == "limpyd_jobs.exceptions.InvalidArgument"


def test_it_counts_and_measures(telemetry: Telemetry) -> None:
    TracedJob.add_jobs(["a", "bad"])

    work(2)

    (sent,) = telemetry.points("messaging.client.sent.messages")
    assert (sent.value, sent.attributes["messaging.destination.name"]) == (2, "test")
    (call,) = telemetry.points("messaging.client.operation.duration")
    assert (call.count, call.attributes["messaging.operation.name"]) == (1, "add")
    durations = {
        point.attributes.get("error.type"): point.count for point in telemetry.points("messaging.process.duration")
    }
    assert durations == {None: 1, "LookupError": 1}
    assert sum(point.value for point in telemetry.points("messaging.client.consumed.messages")) == 2
    (wait,) = telemetry.points("limpyd_jobs.job.wait")
    assert wait.count == 2 and wait.explicit_bounds[0] == 0.005
    assert "limpyd_jobs.job.identifier" not in wait.attributes and "messaging.message.id" not in wait.attributes


def test_it_is_there_once_and_goes_again(telemetry: Telemetry) -> None:
    instrument(telemetry.tracer_provider, telemetry.meter_provider)
    TracedJob.add_job("a")
    uninstrument()
    TracedJob.add_job("b")

    assert len(telemetry.named("add test")) == 1
