"""Traces and metrics of jobs for OpenTelemetry.

    from limpyd_jobs.contrib.opentelemetry import instrument

    instrument()

In each process that adds jobs or runs them. The context of the trace comes along with a job, as W3C says, and its run
is a child of the call that added it, in whichever process. Names are those of the semantic conventions of messaging.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..exceptions import ConfigurationException, Retry
from ..instruments import Instrument, add_instrument, remove_instrument
from ..models import Job, class_name, printable
from ..version import EXACT_VERSION
from ..workers.life import StatusChanged

try:
    from opentelemetry import context, metrics, propagate, trace
except ImportError as error:
    raise ConfigurationException(
        "Traces need the library opentelemetry-api: pip install 'redis-limpyd-jobs[opentelemetry]'"
    ) from error

NAME = "limpyd_jobs"  # of the messaging system, of our instrumentation, and before what only we have
ADDED = "limpyd_jobs.added"  # among what is carried: when it was added, in seconds since the epoch
FLUSH_SECONDS = 2.0  # for the process of an isolated job: its end must not wait for a collector that is away
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)  # the bounds of histograms

Attributes = dict[str, str | int]


class Telemetry(Instrument):
    """Makes spans and metrics of jobs.

    Args:
        tracer_provider, meter_provider: None for those of the process.
    """

    stays_outside = True

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        self._tracer = trace.get_tracer(NAME, EXACT_VERSION, tracer_provider)
        meter = metrics.get_meter(NAME, EXACT_VERSION, meter_provider)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Jobs that were to be added, those queued already among them"
        )
        self._calls = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long calls that add jobs took",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Runs of jobs")
        self._durations = meter.create_histogram(
            "messaging.process.duration", "s", "How long jobs ran", explicit_bucket_boundaries_advisory=SECONDS
        )
        self._waits = meter.create_histogram(
            "limpyd_jobs.job.wait",
            "s",
            "From the adding of a job to its first run, its delay included",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

    # --- Where jobs are added

    @contextmanager
    def adding(self, model: Any, queue_name: str | None, identifier: str | None) -> Iterator[None]:
        """A span of the kind PRODUCER around the call."""
        attributes = _attributes("add", "send", queue_name or model.queue_name)
        attributes["limpyd_jobs.job.class"] = model.get_model_repr()
        if identifier is not None:
            attributes["limpyd_jobs.job.identifier"] = identifier
        started = time.perf_counter()
        with self._span(attributes, trace.SpanKind.PRODUCER) as span:
            call = _Call(attributes)
            outer = context.attach(context.set_value(NAME, call))
            try:
                yield
            except Exception as error:
                attributes["error.type"] = _tell_error(span, error)
                raise
            finally:
                context.detach(outer)
                if identifier is None:
                    span.set_attribute("messaging.batch.message_count", call.count)
                self._sent.add(call.count, measured := _of_metrics(attributes))
                self._calls.record(time.perf_counter() - started, measured)

    def carry(self, carried: dict[str, Any]) -> None:
        """Have the context of that span come along, or that of whoever executes a job at once."""
        call = context.get_value(NAME)
        if isinstance(call, _Call):
            call.count += 1
        propagate.inject(carried)
        carried[ADDED] = time.time()

    # --- Where jobs run

    @contextmanager
    def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
        """A span of the kind CONSUMER around the run, of which what the job does is a part."""
        carried, claim = Job.get_carried(job), job._claim
        attributes = _attributes("run", "process", claim.queue_name if claim else None)
        attributes |= _of_job(job, claim)
        started, pid = time.perf_counter(), os.getpid()
        self._measure_wait(carried, claim, attributes)
        parent = propagate.extract(carried)
        with self._span(attributes, trace.SpanKind.CONSUMER, parent) as span:
            outcome = "success"
            try:
                yield
            except BaseException as error:
                outcome = _outcome_of(error, worker)
                if outcome == "error":
                    attributes["error.type"] = _tell_error(span, error, job._trace)
                raise
            finally:
                if os.getpid() == pid:
                    span.set_attribute("limpyd_jobs.job.outcome", outcome)
                    measured = _of_metrics(attributes)
                    self._durations.record(time.perf_counter() - started, measured)
                    self._consumed.add(1, measured)

    def _measure_wait(self, carried: dict[str, Any], claim: Any, attributes: Attributes) -> None:
        added = carried.get(ADDED)
        if isinstance(added, (int, float)) and claim is not None and int(claim.tries or 1) == 1:
            self._waits.record(max(time.time() - added, 0.0), _of_metrics(attributes))

    @contextmanager
    def _span(self, attributes: Attributes, kind: trace.SpanKind, parent: Any = None) -> Iterator[trace.Span]:
        """A span that is the current one; what is raised within is for the caller to tell."""
        name = f"{attributes['messaging.operation.name']} {attributes.get('messaging.destination.name', '')}".strip()
        span, pid = self._tracer.start_span(name, parent, kind, attributes), os.getpid()
        outer = context.attach(trace.set_span_in_context(span, parent))
        try:
            yield span
        finally:
            context.detach(outer)
            if os.getpid() == pid:  # else it is a process that a job has forked, and this would be a second one
                span.end()


class Flush(Instrument):
    """Sends the spans of the process of an isolated job, which ends without its `atexit`."""

    def __init__(self, tracer_provider: Any) -> None:
        self._provider = tracer_provider

    @contextmanager
    def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
        """See Instrument."""
        try:
            yield
        finally:
            provider = self._provider or trace.get_tracer_provider()
            if not worker._is_this_process and hasattr(provider, "force_flush"):
                sending = threading.Thread(target=provider.force_flush, daemon=True)  # not all keep to its own limit
                sending.start()
                sending.join(FLUSH_SECONDS)


class _Call:
    """A call that adds jobs, and how many."""

    def __init__(self, attributes: Attributes) -> None:
        self.attributes, self.count = attributes, 0


def _attributes(operation: str, kind: str, queue_name: str | None) -> Attributes:
    attributes: Attributes = {
        "messaging.system": NAME,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }
    if queue_name:
        attributes["messaging.destination.name"] = queue_name
    return attributes


def _of_metrics(attributes: Attributes) -> Attributes:
    """Those that take few values."""
    few = ("messaging.", "error.", "limpyd_jobs.job.class", "limpyd_jobs.task")
    return {name: value for name, value in attributes.items() if name.startswith(few) and not name.endswith(".id")}


def _of_job(job: Any, claim: Any) -> Attributes:
    found: Attributes = {"limpyd_jobs.job.class": job.get_model_repr()}
    task = getattr(job, "task_name", None)
    if isinstance(task, str):
        found["limpyd_jobs.task"] = task
    if claim is not None:
        found["messaging.message.id"] = claim.ident
        found["limpyd_jobs.job.identifier"] = claim.identifier
        found["limpyd_jobs.job.tries"] = int(claim.tries or 1)
    return found


def _outcome_of(error: BaseException, worker: Any) -> str:
    """What became of a run that has raised something."""
    if isinstance(error, Retry):
        return "retry"
    if isinstance(error, StatusChanged):
        return "canceled"
    return "interrupted" if worker._must_not_be_caught(error) else "error"


def _tell_error(span: trace.Span, error: BaseException, trace_text: str | None = None) -> str:
    """Note an exception on a span; answers its type.

    Args:
        trace_text: the traceback, if it is that of another process.
    """
    kind = type(error)
    name = class_name(error) if kind.__module__ == "builtins" else f"{kind.__module__}.{class_name(error)}"
    span.record_exception(error, {"exception.stacktrace": trace_text} if trace_text else None)
    span.set_attribute("error.type", name)
    span.set_status(trace.StatusCode.ERROR, printable(error)[:1000])
    return name


_installed: list[Instrument] = []


def instrument(tracer_provider: Any = None, meter_provider: Any = None) -> None:
    """Make spans and metrics of the jobs that this process adds and runs, from now on; again: with other providers.

    Args:
        tracer_provider, meter_provider: None for those of the process, which may be set later.
    """
    uninstrument()
    _installed.extend([Telemetry(tracer_provider, meter_provider), Flush(tracer_provider)])
    for one in _installed:
        add_instrument(one)


def uninstrument() -> None:
    """Make none any more; those that are begun end as they would."""
    for one in _installed:
        remove_instrument(one)
    _installed.clear()
