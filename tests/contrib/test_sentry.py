"""What Sentry learns of jobs, through a transport in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.transport import Transport

from limpyd_jobs import Job, Worker
from limpyd_jobs.exceptions import Retry
from limpyd_jobs.tasks import task
from limpyd_jobs.workers import AsyncWorker, WorkerPool

from ..base import ROOT, RedisServer
from ..workers.base import Log, work

pytestmark = pytest.mark.usefixtures("database", "log")  # the lines of the log are heard, as in any program


class SentryJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        name = self.identifier.hget()
        sentry_sdk.add_breadcrumb(message=f"crumb of {name}")
        sentry_sdk.set_tag(f"own-{name}", "yes")
        if name == "again":
            raise Retry(delayed_for=0)
        fail_if_bad(name)


class SentryAsyncJob(Job):
    queue_name = "test"

    async def run(self, queue: Any) -> None:
        sentry_sdk.add_breadcrumb(message=f"crumb of {self.identifier.hget()}")
        fail_if_bad(self.identifier.hget())


@task(queue="test")
def sentry_task(letter: str) -> None:
    raise LookupError("task")


def fail_if_bad(name: str) -> None:
    if name.startswith("bad"):
        raise LookupError(name)
    if name == "exits":
        os._exit(7)


class Memory(Transport):
    """Keeps events as lines of a file, so that those of another process are there, too."""

    path: Path

    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        if event is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(event, default=str) + "\n")


class Events:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    @property
    def one(self) -> dict[str, Any]:
        (event,) = self.all
        return event


def start(path: Path, **options: Any) -> Events:
    memory = type("MemoryHere", (Memory,), {"path": path})
    sentry_sdk.init(dsn="https://key@sentry.example/1", transport=memory, **options)
    return Events(path)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    yield start(tmp_path / "events")
    sentry_sdk.init()


def crumbs(event: dict[str, Any]) -> list[str]:
    """Those of the jobs; there may be others, of Redis commands."""
    found = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
    return [message for message in found if message.startswith("crumb")]


@pytest.mark.parametrize("options", [{}, {"prefetch": 5}, {"threads": 2}], ids=["plain", "ahead", "hands"])
def test_a_job_that_fails_is_one_event_with_its_traceback_and_tags(events: Events, options: dict[str, Any]) -> None:
    job = SentryJob.add_job("bad")

    work(1, **options)

    (exception,) = events.one["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("LookupError", "bad")
    assert exception["stacktrace"]["frames"][-1]["function"] == "fail_if_bad"
    assert exception["mechanism"] == {"type": "limpyd_jobs", "handled": False}
    assert {name: events.one["tags"][name] for name in ("queue", "job_class", "identifier", "job")} == {
        "queue": "test",
        "job_class": SentryJob.get_model_repr(),
        "identifier": "bad",
        "job": job.ident,
    }
    assert events.one["transaction"] == SentryJob.get_model_repr()


def test_nothing_of_a_job_is_in_the_event_of_the_next_one(events: Events) -> None:
    SentryJob.add_jobs(["bad1", "good", "bad2"])

    work(3)

    first, second = events.all
    assert (crumbs(first), crumbs(second)) == (["crumb of bad1"], ["crumb of bad2"])
    assert "own-bad1" not in second["tags"] and second["tags"]["own-bad2"] == "yes"


def test_nothing_of_a_coroutine_is_in_the_event_of_another(events: Events) -> None:
    SentryAsyncJob.add_jobs(["bad1", "good", "bad2"])

    work(3, worker_class=AsyncWorker)

    found = {event["tags"]["identifier"]: crumbs(event) for event in events.all}
    assert found == {"bad1": ["crumb of bad1"], "bad2": ["crumb of bad2"]}


def test_an_isolated_job_that_fails_is_one_event_with_its_traceback(events: Events) -> None:
    SentryJob.add_job("bad")

    work(1, isolate=True)

    (exception,) = events.one["exception"]["values"]
    assert exception["stacktrace"]["frames"][-1]["function"] == "fail_if_bad"
    assert crumbs(events.one) == ["crumb of bad"]


def test_the_death_of_the_process_of_a_job_is_one_event(events: Events) -> None:
    SentryJob.add_job("exits")

    work(1, isolate=True)

    (exception,) = events.one["exception"]["values"]
    assert exception["type"] == "JobProcessDied" and events.one["tags"]["identifier"] == "exits"


def test_each_try_is_an_event(events: Events) -> None:
    SentryJob.add_job("bad", requeue_times=1, requeue_delay_delta=0)

    work(2)

    assert len(events.all) == 2


def test_other_errors_of_a_worker_are_events_as_before(events: Events) -> None:
    class Raising(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            raise KeyError("hook")

    SentryJob.add_job("good")

    work(1, worker_class=Raising)

    assert [value["type"] for value in events.one["exception"]["values"]] == ["KeyError"]


def test_an_event_of_a_line_says_what_it_is_about(events: Events) -> None:
    job = SentryJob.add_job("again", requeue_times=1)

    work(2)

    assert events.one["logentry"]["message"].startswith(f"[test|{job.pk.get()}|again] error: ")  # and not "[%s] %s"
    tags = {name: events.one["tags"][name] for name in ("queue", "job", "identifier")}
    assert tags == {"queue": "test", "job": job.ident, "identifier": "again"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_to_be_stopped_is_no_event(events: Events, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "stop_now", lambda self: None)
    worker = Worker("test")

    worker.catch_quit_signal(number, None) if number == signal.SIGQUIT else worker.catch_end_signal(number, None)
    pool = WorkerPool(queues="test")
    monkeypatch.setattr(pool, "_children", list)
    pool._handle_signal(number)

    assert events.all == []


def test_arguments_of_a_task_are_not_sent(events: Events) -> None:
    sentry_task.add("hunter2")

    work(1)

    event = events.one
    assert event["transaction"] == event["tags"]["task"] == sentry_task.name
    frames = event["exception"]["values"][0]["stacktrace"]["frames"]
    assert frames[-1].pop("vars") == {"letter": "'hunter2'"}  # of the program's own frames Sentry decides
    assert "hunter2" not in json.dumps(event)


@pytest.mark.filterwarnings("ignore:The send_default_pii option:DeprecationWarning")
def test_arguments_of_a_task_are_sent_when_personal_data_may_be(tmp_path: Path) -> None:
    events = start(tmp_path / "events", send_default_pii=True)
    sentry_task.add("hunter2")

    work(1)
    sentry_sdk.init()

    assert events.one["contexts"]["arguments"] == {"args": ["hunter2"], "kwargs": {}}


def test_before_it_is_told_where_to_report_to_there_is_nothing_to_do(log: Log) -> None:
    SentryJob.add_job("bad")

    work(1)

    assert log.level_of("error: bad") == "ERROR"


def test_a_worker_does_not_import_it(redis_server: RedisServer) -> None:
    Job.add_job("a", "test")
    program = (
        "import sys\n"
        "from limpyd_jobs import Worker\n"
        "from limpyd_jobs.models import BaseJobsModel\n"
        f"BaseJobsModel.database.connect({redis_server.url!r})\n"
        "Worker('test', max_loops=1, burst=True, callback=lambda job, queue: None).run()\n"
        "assert 'sentry_sdk' not in sys.modules, 'imported'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
