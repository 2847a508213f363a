"""Jobs that are executed at once, by whoever makes them: `Job.execute_now` and `Job.aexecute_now`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from limpyd_jobs import STATUSES, Error, Job, Queue, Retry, admin, transitions
from limpyd_jobs.exceptions import InvalidArgument, JobFailed, JobTimeout, NoResult
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.models import current_job

from ..base import ROOT, RedisServer, wait_until
from .base import Log, work

pytestmark = pytest.mark.usefixtures("books")

calls: list[Any] = []


@pytest.fixture
def books(database: Any) -> Any:
    """After each test the books are right."""
    calls.clear()
    yield
    assert [str(problem) for problem in admin.check()] == []


class AtOnceJob(Job):
    """Tells what is called, and fails as often as it is told."""

    failures = InstanceHashField(default=0)

    def run(self, queue: Any) -> Any:
        calls.append(("run", queue))
        if int(self.tries.hget()) <= int(self.failures.hget() or 0):
            raise ValueError(f"try {self.tries.hget()}")
        return "done"

    def on_started(self, queue: Any) -> None:
        calls.append(("on_started", self.status.hget()))

    def on_success(self, queue: Any, result: Any) -> None:
        calls.append(("on_success", self.status.hget(), result))

    def on_error(self, queue: Any, error: Any, trace: Any) -> None:
        calls.append(("on_error", self.status.hget(), str(error)))

    def on_requeued(self, queue: Any) -> None:
        calls.append(("on_requeued", self.status.hget()))

    def on_skipped(self, queue: Any) -> None:
        calls.append(("on_skipped", self.status.hget()))


class AtOnceMail(AtOnceJob):
    """One that has a queue."""

    queue_name = "mail"


class AtOnceLimited(AtOnceJob):
    """One that takes turns, where it is in a queue."""

    queue_name = "mail"
    max_concurrency = 1


class AtOnceCoroutine(Job):
    """One whose run is a coroutine function, in the loop of the caller."""

    fails = InstanceHashField()
    sleeps = InstanceHashField()

    async def run(self, queue: Any) -> Any:
        calls.append(asyncio.get_running_loop())
        await asyncio.sleep(float(self.sleeps.hget() or 0))
        if self.fails.hget():
            raise ValueError("boom")

    async def on_success(self, queue: Any, result: Any) -> None:
        calls.append(asyncio.get_running_loop())


class AtOnceAct(Job):
    """Does something to itself."""

    act = InstanceHashField()

    def run(self, queue: Any) -> Any:
        return getattr(self, str(self.act.hget()))()

    def look(self) -> None:
        client = self.database.connection
        calls.append((self.status.hget(), self.queued.hget(), client.hexists("jobs:claims", self.ident)))

    def note_current(self) -> None:
        calls.append(current_job().identifier.hget())

    def ask_for_a_cancel(self) -> None:
        self.cancel("enough")

    def move(self) -> None:
        self.enqueue_or_delay("other")

    def later(self) -> None:
        raise Retry("later", delayed_for=500)

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    def nest(self) -> None:
        calls.append(AtOnceJob.execute_now("inner").status.hget())

    def hang(self) -> None:
        while True:
            pass


def test_a_job_is_run_here_with_the_hooks_of_a_worker() -> None:
    job = AtOnceJob.execute_now("a")

    assert calls == [("on_started", "r"), ("run", None), ("on_success", "s", "done")]
    assert isinstance(job, AtOnceJob)
    assert job.hmget("identifier", "status", "tries", "queued") == ["a", STATUSES.SUCCESS, "1", None]
    assert job.duration is not None


def test_what_it_answered_is_known_for_an_hour_unless_something_else_is_said() -> None:
    assert AtOnceJob.execute_now().get_result() == "done"
    job = AtOnceJob.execute_now(save_result=60)
    assert 0 < job.saved_result.ttl() <= 60
    with pytest.raises(NoResult):
        AtOnceJob.execute_now(save_result=False).get_result()


def test_the_error_of_a_job_is_known_too() -> None:
    with pytest.raises(JobFailed, match="try 1"):
        AtOnceJob.execute_now(failures=1).get_result()


def test_a_job_without_an_identifier_gets_one_of_its_own() -> None:
    identifiers = {AtOnceJob.execute_now().identifier.hget() for _ in range(2)}

    assert len(identifiers) == 2


def test_it_runs_under_a_lease_and_is_not_queued() -> None:
    AtOnceAct.execute_now(act="look")

    assert calls == [(STATUSES.RUNNING, None, True)]


def test_the_hooks_get_the_queue_of_the_class_and_its_history_has_the_job() -> None:
    job = AtOnceMail.execute_now("a")

    queue = Queue.get_queue("mail")
    assert calls[1][1].pk.get() == queue.pk.get()
    assert queue.success.lmembers() == [job.ident]
    assert queue.waiting.llen() == 0


def test_no_queue_is_made_for_a_job_that_names_none() -> None:
    AtOnceJob.execute_now("a")

    assert list(Queue.collection()) == []


def test_an_error_is_recorded_and_not_raised() -> None:
    job = AtOnceMail.execute_now("a", failures=1)

    assert job.status.hget() == STATUSES.ERROR
    assert calls[-1] == ("on_error", "e", "try 1")
    (error,) = Error.collection_for_job(job).instances()
    assert error.hmget("type", "message", "queue_name") == ["ValueError", "try 1", "mail"]
    assert Queue.get_queue("mail").errors.lmembers() == [job.ident]


def test_an_error_is_raised_when_that_is_asked_for_once_it_is_recorded() -> None:
    with pytest.raises(ValueError, match="try 1"):
        AtOnceJob.execute_now("a", raises=True, failures=1)

    assert len(Error.collection(identifier="a")) == 1


def test_a_job_that_may_be_tried_again_is_at_once_whatever_its_delays() -> None:
    job = AtOnceJob.execute_now("a", raises=True, failures=2, requeue_times=2, backoff=[500])

    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "3"]
    assert [name for name, *_ in calls].count("on_requeued") == 2
    assert len(Error.collection(identifier="a")) == 2


def test_a_job_whose_tries_are_used_up_is_in_error() -> None:
    job = AtOnceJob.execute_now("a", failures=9, requeue_times=1)

    assert job.hmget("status", "tries") == [STATUSES.ERROR, "2"]


def test_a_retry_that_the_job_asks_for_is_made_up_to_its_requeue_times() -> None:
    job = AtOnceAct.execute_now(act="later", requeue_times=2)

    assert job.hmget("status", "tries") == [STATUSES.ERROR, "3"]
    assert [error.type.hget() for error in Error.collection_for_job(job).instances()] == ["Retry"]


def test_a_retry_that_the_job_asks_for_without_end_is_an_error() -> None:
    assert AtOnceAct.execute_now(act="later").hmget("status", "tries") == [STATUSES.ERROR, "1"]


def test_a_job_that_cancels_itself_is_canceled() -> None:
    job = AtOnceAct.execute_now(act="ask_for_a_cancel")

    assert job.hmget("status", "cancel_reason") == [STATUSES.CANCELED, "enough"]


def test_a_job_that_moves_itself_is_in_that_queue_then() -> None:
    job = AtOnceAct.execute_now(act="move")

    assert job.status.hget() == STATUSES.WAITING
    assert Queue.get_queue("other").waiting.lmembers() == [job.ident]


def test_an_interrupt_is_recorded_and_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        AtOnceAct.execute_now("a", act="interrupt", requeue_times=3)

    (job,) = AtOnceAct.collection(identifier="a").instances()
    assert job.hmget("status", "tries") == [STATUSES.ERROR, "1"]


def test_a_job_is_ended_when_its_time_is_over() -> None:
    with pytest.raises(JobTimeout):
        AtOnceAct.execute_now(act="hang", job_timeout=0.05, raises=True)


def test_a_job_executes_another_one() -> None:
    AtOnceAct.execute_now(act="nest")

    assert calls[-1] == STATUSES.SUCCESS


def test_the_identifier_may_be_that_of_a_queued_job() -> None:
    queued = AtOnceJob.add_job("a", "mail")

    job = AtOnceJob.execute_now("a")

    assert job.ident != queued.ident
    assert queued.status.hget() == STATUSES.WAITING


@pytest.mark.parametrize(
    "name", ["delayed_for", "delayed_until", "prepend", "expires", "after", "if_queued", "rate_limit"]
)
def test_what_is_said_of_a_place_in_a_queue_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="executed at once"):
        AtOnceJob.execute_now("a", **{name: 5})

    assert list(AtOnceJob.collection()) == []


class AtOnceQueueingJob(AtOnceJob):
    """One whose class says a lot of its place in a queue."""

    if_queued = "rerun"
    unique_for = 100
    max_concurrency = 1
    expires = 100


@pytest.mark.parametrize("fields", [{}, {"if_queued": None, "unique_for": None, "prepend": None, "after": None}])
def test_what_its_class_says_of_a_place_in_a_queue_does_not_matter(fields: dict[str, Any]) -> None:
    job = AtOnceQueueingJob.execute_now("a", **fields)

    assert job.status.hget() == STATUSES.SUCCESS
    assert AtOnceQueueingJob.add_job("a", "mail").ident != job.ident


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="there is none of this name"):
        AtOnceJob.execute_now("a", colour="red")


def test_the_log_says_what_a_worker_says(log: Log) -> None:
    logging.getLogger("limpyd-jobs").setLevel(logging.INFO)
    AtOnceJob.execute_now("a", failures=1)
    AtOnceMail.execute_now("b")

    assert log.lines[:2] == ["[-|1|a] starting", "[-|1|a] error: try 1 [NOT requeued]"]
    assert log.lines[2] == "[mail|1|b] starting"
    assert log.tracebacks == []


def test_the_level_of_the_logger_stays_as_it_is(log: Log) -> None:
    logging.getLogger("limpyd-jobs").setLevel(logging.ERROR)
    AtOnceJob.execute_now("a")

    assert log.messages == []


def test_current_job_is_the_one_that_is_executed() -> None:
    AtOnceAct.execute_now("a", act="note_current")

    assert calls == ["a"]
    assert current_job() is None


def test_a_coroutine_function_runs_without_a_loop_of_the_caller() -> None:
    assert AtOnceCoroutine.execute_now().status.hget() == STATUSES.SUCCESS


# --- in an event loop


def test_a_coroutine_function_is_awaited_in_the_loop_of_the_caller() -> None:
    async def main() -> Any:
        return await AtOnceCoroutine.aexecute_now("a"), asyncio.get_running_loop()

    job, loop = asyncio.run(main())

    assert job.status.hget() == STATUSES.SUCCESS
    assert calls == [loop, loop]


def test_a_plain_function_runs_in_a_thread_beside_the_loop() -> None:
    job = asyncio.run(AtOnceMail.aexecute_now("a", failures=1, requeue_times=1))

    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "2"]


def test_the_error_of_a_coroutine_function_is_recorded_and_raised_when_that_is_asked_for() -> None:
    with pytest.raises(ValueError, match="boom"):
        asyncio.run(AtOnceCoroutine.aexecute_now("a", raises=True, fails=1))

    assert len(Error.collection(identifier="a")) == 1


def test_a_job_whose_caller_is_cancelled_is_in_error() -> None:
    async def main() -> None:
        task = asyncio.create_task(AtOnceCoroutine.aexecute_now("a", sleeps=60, requeue_times=5))
        while not calls:
            await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())

    (job,) = AtOnceCoroutine.collection(identifier="a").instances()
    assert job.hmget("status", "tries") == [STATUSES.ERROR, "1"]


def test_a_coroutine_is_ended_when_its_job_is_canceled() -> None:
    async def main() -> Any:
        task = asyncio.create_task(AtOnceCoroutine.aexecute_now("a", sleeps=60))
        while not calls:
            await asyncio.sleep(0.01)
        (job,) = AtOnceCoroutine.collection(identifier="a").instances()
        await asyncio.to_thread(job.cancel)
        return await task

    assert asyncio.run(main()).status.hget() == STATUSES.CANCELED


def test_a_coroutine_is_ended_when_its_time_is_over() -> None:
    with pytest.raises(JobTimeout):
        asyncio.run(AtOnceCoroutine.aexecute_now(sleeps=60, job_timeout=0.05, raises=True))


# --- an isolated job, an outage


class AtOnceIsolated(Job):
    """Runs in a process of its own."""

    isolate = True

    def run(self, queue: Any) -> int:
        return os.getpid()

    def on_success(self, queue: Any, result: Any) -> None:
        calls.append(result)


def test_an_isolated_job_runs_in_a_process_of_its_own() -> None:
    AtOnceIsolated.execute_now()

    assert calls and calls[0] != os.getpid()


class AtOnceImpatient(Job):
    """Gives up soon."""

    retry_for = 0.1

    def run(self, queue: Any) -> None:
        calls.append("run")


def test_an_end_that_cannot_be_recorded_is_tried_for_as_long_as_a_producer_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send(client: Any, call: Any) -> Any:
        if call.script == "finish":
            calls.append("finish")
            raise ConnectionError("gone")
        return plain_send(client, call)

    plain_send = transitions.send
    monkeypatch.setattr(transitions, "send", send)

    with pytest.raises(ConnectionError, match="gone"):
        AtOnceImpatient.execute_now("a")

    (job,) = AtOnceImpatient.collection(identifier="a").instances()
    assert calls[0] == "run" and len(calls) > 2
    assert job.status.hget() == STATUSES.RUNNING  # until its lease lapses


# --- a process that dies


def test_a_job_whose_process_was_killed_is_in_error_when_its_lease_has_lapsed(redis_server: RedisServer) -> None:
    code = (
        "from limpyd_jobs import Job; from tests.workers.test_at_once import AtOnceAct; "
        f"Job.database.connect(unix_socket_path={redis_server.socket_path!r}); "
        "AtOnceAct.execute_now('a', act='hang')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (job,) = wait_until(lambda: list(AtOnceAct.collection(identifier="a").instances()), timeout=30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    Job.database.connection.zadd("jobs:leases", {job.ident: 1})

    AtOnceJob.add_job("b", "mail")
    work(1, "mail")

    assert job.status.hget() == STATUSES.ERROR
    (error,) = Error.collection_for_job(job).instances()
    assert error.type.hget() == "ExecutionLost"
