"""A connection that breaks at a bad moment: the story of a job is the same as without it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from redis.exceptions import ConnectionError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, transitions
from limpyd_jobs.utils import pauses
from limpyd_jobs.workers import LOGGER_NAME, life, outage
from limpyd_jobs.workers.claiming import Claiming

from ..base import wait_until
from .base import Log, Running, client, idle, leased, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database")


class OutageJob(Job):
    """Does what its identifier says, and notes the calls of its hooks."""

    queue_name = "test"
    calls: ClassVar[list[str]] = []

    def run(self, queue: Any) -> str:
        if self.identifier.hget() == "fail":
            raise ValueError("boom")
        return "done"

    def on_started(self, queue: Any) -> None:
        self.calls.append("on_started")

    def on_success(self, queue: Any, result: Any) -> None:
        self.calls.append(f"on_success {result}")

    def on_error(self, queue: Any, exception: Exception, trace: str | None) -> None:
        self.calls.append(f"on_error {exception}")

    def on_requeued(self, queue: Any) -> None:
        self.calls.append("on_requeued")

    def on_skipped(self, queue: Any) -> None:
        self.calls.append("on_skipped")

    def on_lease_lost(self, queue: Any) -> None:
        self.calls.append("on_lease_lost")


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[str]]:
    OutageJob.calls.clear()
    yield OutageJob.calls
    OutageJob.calls.clear()


BEFORE, AFTER, BETWEEN = "before it is run", "after it", "between two runs"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries."""
    monkeypatch.setattr(outage, "pauses", lambda: pauses(0.01, 0.05))


class Break:
    """Breaks the connection at each call of a script, `times` times.

    Args:
        when: BEFORE the script is run; AFTER it, when only its reply is lost; or BETWEEN, when redis-py, which sends
            a command again by itself, shows us the second reply only.
    """

    def __init__(self, script: str, times: float = 1, when: str = BEFORE) -> None:
        self.script, self.times, self.when = script, times, when
        self.count = 0
        self.send = transitions.send

    def __call__(self, connection: Any, call: transitions.Call[Any]) -> Any:
        if call.script != self.script or self.count >= self.times:
            return self.send(connection, call)
        self.count += 1
        if self.when != BEFORE:
            self.send(connection, call)
        if self.when == BETWEEN:
            return self.send(connection, call)
        raise ConnectionError("the connection broke")


IDENTIFIERS = {"claim": "succeed", "finish": "succeed", "fail": "fail", "requeue": "fail", "skip": "canceled"}
OUTAGE_LINES = ("Redis cannot be used", "Redis can be used")


def tell(identifier: str) -> list[Any]:
    """Add and run a job: the hooks that are called, the lines that are logged, and what is in the database then."""
    client().flushall()
    OutageJob.calls.clear()
    job = OutageJob.add_job(identifier)
    if identifier == "canceled":
        job.status.hset(STATUSES.CANCELED)
    handler, logger = Log(), logging.getLogger(LOGGER_NAME)
    logger.addHandler(handler)
    try:
        work(1, requeue_times=5, requeue_delay_delta=0)
    finally:
        logger.removeHandler(handler)
    lines = [re.sub(r"\d+:\d\d:[\d.]+", "H:MM:SS", line) for line in handler.lines if not line.startswith(OUTAGE_LINES)]
    queues = [(one.waiting.lmembers(), one.success.lmembers(), one.errors.lmembers()) for one in Queue.get_all("test")]
    errors = [error.message.hget() for error in Error.collection().instances()]
    fields = job.hmget("status", "priority", "tries", "queued", "delayed_until")
    return [list(OutageJob.calls), lines, handler.tracebacks, queues, errors, fields, leased()]


@pytest.mark.parametrize("when", [BEFORE, AFTER, BETWEEN])
@pytest.mark.parametrize("script", sorted(IDENTIFIERS))
def test_a_connection_that_breaks_at_a_script_changes_nothing_in_the_story_of_a_job(
    script: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tell(IDENTIFIERS[script])
    breaks = Break(script, when=when)
    monkeypatch.setattr(transitions, "send", breaks)

    found = tell(IDENTIFIERS[script])

    assert breaks.count == 1
    assert found == expected


@pytest.mark.parametrize("script", ["finish", "fail", "requeue", "skip"])
def test_a_worker_that_is_told_to_stop_during_an_outage_ends_after_some_tries(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "LAST_TRIES_SECONDS", 0.1)
    breaks = Break(script, times=float("inf"))
    monkeypatch.setattr(transitions, "send", breaks)
    job = OutageJob.add_job(IDENTIFIERS[script])
    if script == "skip":
        job.status.hset(STATUSES.CANCELED)

    running = Running(idle(requeue_times=5))
    with running as worker:
        wait_until(lambda: breaks.count >= 2, message="the worker tries again")
        worker.end_forced = True
        running.join(5)

    assert worker.status == "terminated"
    assert breaks.count < 100
    assert client().zscore("jobs:leases", job.ident) is not None  # so it is not lost


@pytest.mark.parametrize("method", ["update_keys", "get_queue", "get_job"])
def test_a_job_whose_worker_loses_its_connection_after_the_claim_runs_when_its_lease_lapses(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    broken: list[str] = []
    original = getattr(Worker, method)

    def break_once(self: Any, *args: Any) -> Any:
        if not broken and leased():
            broken.append(method)
            raise ConnectionError("the connection broke")
        return original(self, *args)

    monkeypatch.setattr(Claiming, method, break_once)  # no override: a worker with its own keys is another thing
    Queue.get_queue("test")
    with Running(idle(lease_seconds=0.3, callback=lambda job, queue: runs.append(job.tries.hget()))) as worker:
        wait_until(lambda: worker.keys)
        wait_until_idle()  # else it may come to the new queue while it still looks at its queues for the first time
        job = OutageJob.add_job("one", priority=5)  # in a queue that is new to the worker
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, message="the job is done")

    assert broken == [method]
    assert runs == ["2"]
    assert leased() == []


@pytest.mark.parametrize("method", ["get_queue", "get_job"])
def test_a_job_that_an_override_cannot_get_after_the_claim_is_in_error_at_once(method: str, log: Log) -> None:
    class RaisingWorker(Worker):
        pass

    def refuse(self: Any, *args: Any) -> Any:
        raise ValueError("not this one")

    setattr(RaisingWorker, method, refuse)
    job = OutageJob.add_job("one")
    with Running(idle(RaisingWorker)):
        wait_until(lambda: job.status.hget() == STATUSES.ERROR, message="the job is in error")
        wait_until(lambda: "Unable to get job" in log.lines)

    (error,) = Error.collection_for_job(job).instances()
    assert error.message.hget() == "not this one"
    assert job.queued.hget() is None
    assert leased() == []
