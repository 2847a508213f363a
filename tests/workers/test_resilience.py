"""What goes wrong around a worker, and what becomes of the jobs then."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields
from redis.exceptions import ConnectionError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, exceptions, lua, transitions
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, JobAlreadyQueued, JobNotInStatus, LeaseLost
from limpyd_jobs.models import BaseJobsModel

from ..base import wait_until
from .base import Log, Running, beats_on_demand, client, idle, leased, wait_until_idle, work


class ResilientJob(Job):
    queue_name = "test"
    items = fields.ListField(indexable=True)
    marks = fields.SetField()
    scores = fields.SortedSetField()
    map = fields.HashField()

    def on_success(self, queue: Any, result: Any) -> None:
        client().rpush("told", "success")

    def on_error(self, queue: Any, exception: Exception, trace: str | None) -> None:
        client().rpush("told", "error")

    def on_requeued(self, queue: Any) -> None:
        client().rpush("told", "requeued")


class KeyedError(Error):
    """An Error that cannot be made without a primary key of its own."""

    number = fields.PKField()


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    yield
    client().delete("told", "runs")
    assert [str(problem) for problem in admin.check()] == []


def told() -> list[str]:
    found: list[str] = client().lrange("told", 0, -1)
    return found


def boom(job: Any, queue: Any) -> None:
    raise ValueError("boom")


def nothing(job: Any, queue: Any) -> None:
    pass


class Blip:
    """Breaks the connection for some calls of a script: before it is run, or after it, when only the reply is lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str, times: int = 1, is_run: bool = False) -> None:
        self.script, self.left, self.is_run = script, times, is_run
        self.send = transitions.send
        monkeypatch.setattr(transitions, "send", self)

    def __call__(self, connection: Any, call: transitions.Call[Any]) -> Any:
        if call.script != self.script or not self.left:
            return self.send(connection, call)
        self.left -= 1
        if self.is_run:
            self.send(connection, call)
        raise ConnectionError("the connection broke")


# --- forks


def test_workers_made_before_a_fork_run_each_job_once(database: Any) -> None:
    for number in range(20):
        ResilientJob.add_job(str(number))
    worker = Worker("test", callback=lambda job, queue: client().rpush("runs", job.pk.get()), max_loops=10)
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                worker.run()
            finally:
                os._exit(0)
        children.append(pid)

    for pid in children:
        os.waitpid(pid, 0)

    assert sorted(client().lrange("runs", 0, -1), key=int) == [str(number) for number in range(1, 21)]


# --- broken connections


@pytest.mark.parametrize("is_run", [False, True])
def test_a_success_is_recorded_and_told_through_a_broken_connection(
    database: Any, monkeypatch: pytest.MonkeyPatch, log: Log, is_run: bool
) -> None:
    job = ResilientJob.add_job("a")
    Blip(monkeypatch, "finish", times=2, is_run=is_run)

    work(1, callback=nothing)

    assert job.status.hget() == STATUSES.SUCCESS
    assert Queue.get_queue("test").success.lmembers() == [job.ident]
    assert told() == ["success"]
    assert any("success, in" in line for line in log.lines)
    assert leased() == []


@pytest.mark.parametrize("is_run", [False, True])
@pytest.mark.parametrize("script", ["fail", "requeue"])
def test_a_failure_keeps_its_retries_through_a_broken_connection(
    database: Any, monkeypatch: pytest.MonkeyPatch, script: str, is_run: bool
) -> None:
    job = ResilientJob.add_job("a")
    Blip(monkeypatch, script, is_run=is_run)

    work(1, callback=boom, requeue_times=5, requeue_delay_delta=100)

    assert (job.status.hget(), job.queued.hget()) == (STATUSES.DELAYED, "1")
    assert len(Error.collection_for_job(job)) == 1
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]
    assert told() == ["error", "requeued"]


def test_a_skip_is_recorded_through_a_broken_connection(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ResilientJob.add_job("a")
    job.status.hset(STATUSES.CANCELED)
    Blip(monkeypatch, "skip")

    work(1, callback=nothing)

    assert job.queued.hget() is None


def test_a_worker_that_must_stop_does_not_wait_for_redis_for_ever(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limpyd_jobs.workers.life.LAST_TRIES_SECONDS", 0.1)
    ResilientJob.add_job("a")
    blip = Blip(monkeypatch, "finish", times=10**9)

    with Running(idle(callback=nothing)) as worker:
        wait_until(lambda: blip.left < 10**9)
        worker.end_forced = True
        wait_until(lambda: worker.status == "terminated")

    blip.left = 0
    for ident in client().zrange("jobs:leases", 0, -1):
        client().zadd("jobs:leases", {ident: 1})
    work(1, callback=nothing)  # the lease has lapsed: another one runs it again


def test_a_claim_whose_worker_fails_to_go_on_lapses(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Worker):
        fails = 1

        def update_keys(self) -> None:
            if self.fails and self.status == "running":
                self.fails -= 1
                raise ConnectionError("the connection broke")
            super().update_keys()

    job = ResilientJob.add_job("a")
    monkeypatch.setattr(Failing, "_has_own_keys", False, raising=False)
    worker = idle(Failing, lease_seconds=0.3, callback=nothing)
    worker._has_own_keys = False
    with Running(worker):
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)
        wait_until_idle()  # else it may come to the new queue while it still looks at its queues for the first time
        Queue.get_queue("test", 5)
        job2 = ResilientJob.add_job("b", priority=5)  # in a queue that the worker does not know: it looks at its keys
        wait_until(lambda: job2.status.hget() == STATUSES.SUCCESS)
    assert job.status.hget() == STATUSES.SUCCESS
    assert worker.fails == 0


# --- queues that go


def test_the_job_of_a_dead_worker_whose_queue_was_deleted_ends_in_error(database: Any, log: Log) -> None:
    job = ResilientJob.add_job("a")
    transitions.send(client(), transitions.claim("jobs", "jobs:queue", "w-1", "w", 0.001, "now", ["test"]))
    Queue.get_queue("test").delete()
    Queue.get_queue("test", 7)

    with Running(idle(lease_seconds=0.3)):
        wait_until(lambda: job.status.hget() == STATUSES.ERROR)
        wait_until(lambda: len(Error.collection(job_pk=job.pk.get())) == 1)

    assert job.queued.hget() is None
    assert any("its queue was deleted" in line for line in log.lines)
    assert ResilientJob.add_job("a").pk.get() != job.pk.get()


def test_the_job_of_a_dead_worker_whose_class_the_registry_lost_is_given_back(database: Any) -> None:
    job = ResilientJob.add_job("a")
    transitions.send(client(), transitions.claim("jobs", "jobs:queue", "w-1", "w", 0.001, "now", ["test"]))
    client().delete("jobs:models")
    worker = idle()
    client().zadd("jobs:leases", {job.ident: 1})

    worker._recover_lapsed()
    assert client().zcard("jobs:leases") == 1  # not decided, and not dropped
    client().zadd("jobs:leases", {job.ident: 1})
    worker._recover_lapsed()

    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]


def test_something_else_under_the_key_of_a_queue_leaves_the_lease(database: Any) -> None:
    job = ResilientJob.add_job("a")
    transitions.send(client(), transitions.claim("jobs", "jobs:queue", "w-1", "w", 30, "now", ["test"]))
    client().zadd("jobs:leases", {job.ident: 1})
    client().set("jobs:queue:1:waiting", "a string")

    idle()._recover_lapsed()

    assert job.status.hget() == STATUSES.RUNNING
    assert client().zcard("jobs:leases") == 1
    client().delete("jobs:queue:1:waiting")


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_queue_that_went_away_with_delayed_jobs_does_not_keep_workers_busy(database: Any, change: str) -> None:
    queue = Queue.get_queue("test")
    Queue.get_queue("test", 1)
    client().zadd("jobs:due:queue:test", {queue.pk.get(): 1})
    queue.name.hset("other") if change == "rename" else queue.delete()
    calls: list[str] = []

    class Counting(Worker):
        def _send_call(self, call: transitions.Call[Any]) -> Any:
            calls.append(call.script)
            return super()._send_call(call)

    with Running(idle(Counting)) as worker:
        wait_until_idle()
        wait_until(lambda: not client().exists("jobs:due:queue:test"))
        before = len(calls)
        wait_until(lambda: worker._looked_at_keys and client().info("clients")["blocked_clients"])
        assert len(calls) - before < 10


# --- stopping, telling


def test_a_worker_told_to_stop_while_it_waits_takes_nothing_more(database: Any) -> None:
    Queue.get_queue("test")

    class Late(Worker):
        def _wait_for_ring(self, *args: Any) -> None:
            super()._wait_for_ring(*args)
            if self.end_forced:
                ResilientJob.add_job("too late")

    with Running(idle(Late, callback=nothing)):
        wait_until_idle()

    assert [job.status.hget() for job in ResilientJob.instances()] == [STATUSES.WAITING]


def test_a_slow_on_success_is_not_told_that_its_lease_is_lost(
    database: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_beat = beats_on_demand(monkeypatch)

    class Slow(Worker):
        async def _call_job_hook(self, job: Any, name: str, *args: Any) -> None:
            if name == "on_success":
                let_it_beat()
            await super()._call_job_hook(job, name, *args)

    ResilientJob.add_job("a")
    work(1, worker_class=Slow, callback=nothing)
    assert not any("lease" in line for line in log.lines)


def test_two_workers_leave_the_signal_handlers_that_they_found(database: Any) -> None:
    found = signal.getsignal(signal.SIGTERM)
    first, second = Worker("test"), Worker("test")
    first.end_forced = second.end_forced = True

    first.run()
    assert signal.getsignal(signal.SIGTERM) == second.catch_end_signal
    second.run()

    assert signal.getsignal(signal.SIGTERM) == found


def test_a_job_that_deletes_itself_costs_no_traceback(database: Any, log: Log) -> None:
    def delete(job: Any, queue: Any) -> None:
        job.delete()
        if job.__dict__.get("fails"):
            raise ValueError("boom")

    ResilientJob.add_job("a")
    work(1, callback=delete)
    ResilientJob.add_job("b")
    work(1, callback=lambda job, queue: (job.delete(), boom(job, queue)))

    assert log.tracebacks == []
    assert any("error: boom" in line for line in log.lines)


# --- poison


def test_an_error_model_that_cannot_be_made_does_not_block_the_queue(database: Any, log: Log) -> None:
    queue = Queue.get_queue("test")
    queue.waiting.rpush("no.such.Class:1")
    client().zadd("jobs:ready:queue:test", {queue.pk.get(): 0})
    job = ResilientJob.add_job("a")

    work(1, callback=nothing, error_model=KeyedError)

    assert job.status.hget() == STATUSES.SUCCESS
    assert queue.errors.lmembers() == ["no.such.Class:1"]
    assert any("Unable to save the error of no.such.Class:1" in line for line in log.lines)


def test_a_class_that_moved_runs_under_its_new_name(database: Any) -> None:
    job = ResilientJob.add_job("a")
    later = ResilientJob.add_job("b", delayed_for=100)
    queue = Queue.get_queue("test")
    old = {one.ident: one.ident.replace("test_resilience", "old_home") for one in (job, later)}
    queue.waiting.delete()
    queue.waiting.rpush(old[job.ident])
    queue.delayed.delete()
    queue.delayed.zadd({old[later.ident]: 1})
    client().delete("jobs:models")
    client().zadd("jobs:due:queue:test", {queue.pk.get(): 1})

    work(2, callback=nothing, job_modules=["tests.workers.old_home"])

    assert queue.success.lmembers() == [job.ident, later.ident]
    assert job.status.hget() == later.status.hget() == STATUSES.SUCCESS


def test_a_worker_teaches_the_registry_what_its_classes_mean_now(database: Any) -> None:
    ResilientJob.add_job("a")
    current = client().hget("jobs:models", ResilientJob.get_model_repr())
    client().hset("jobs:models", ResilientJob.get_model_repr(), current.replace('"status"', '"former"'))

    work(1, callback=nothing)

    assert client().hget("jobs:models", ResilientJob.get_model_repr()) == current
    assert ResilientJob.collection(status=STATUSES.SUCCESS) == ["1"]


# --- one job an identifier


@pytest.mark.parametrize(
    "put",
    [
        lambda job: job.requeue("test"),
        lambda job: job.enqueue_or_delay("test"),
        lambda job: Queue.get_queue("test").enqueue_job(job),
        lambda job: Queue.get_queue("test").delay_job(job, datetime(2099, 1, 1)),
    ],
)
def test_a_job_is_refused_while_another_with_its_identifier_is_queued(
    database: Any, put: Callable[[Any], None]
) -> None:
    failed = ResilientJob.add_job("a")
    work(1, callback=boom)
    newer = ResilientJob.add_job("a")
    before = failed.hgetall()

    with pytest.raises(JobAlreadyQueued, match=newer.ident):
        put(failed)

    assert failed.hgetall() == before
    newer.status.hset(STATUSES.CANCELED)
    work(1, callback=nothing)
    put(failed)
    assert failed.queued.hget() == "1"


def test_a_requeue_that_is_sent_twice_is_done_once(database: Any) -> None:
    job = ResilientJob.add_job("a")
    work(1, callback=boom)
    calls: list[Any] = []
    send = transitions.send

    def record(connection: Any, call: transitions.Call[Any]) -> Any:
        calls.append(call)
        return send(connection, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "send", record)
        job.requeue("test", delayed_for=100)
    again = transitions.send(client(), next(call for call in calls if call.script == "requeue"))

    assert again.kind == "OK"
    assert Queue.get_queue("test").delayed.zmembers() == [job.ident]
    with pytest.raises(JobNotInStatus):
        job.requeue("test")


def test_a_get_queue_that_makes_another_queue_is_told_and_ends(database: Any) -> None:
    class LoweringQueue(Queue):
        @classmethod
        def get_queue(cls, name: str, priority: Any = 0, **fields_if_new: Any) -> Any:
            return super().get_queue(name.lower(), priority, **fields_if_new)

    job = ResilientJob.add_job("a", priority=3)
    work(1, callback=boom)

    with pytest.raises(ConfigurationException, match=r"LoweringQueue\.get_queue"):
        job.requeue("UPPER", queue_model=LoweringQueue)


# --- sizes, clocks, errors


def test_long_values_are_written_whole(database: Any) -> None:
    many = [str(number) for number in range(8300)]

    job = ResilientJob.add_job(
        "a", items=many, marks=set(many), scores={text: 1 for text in many}, map={text: "x" for text in many}
    )

    assert job.items.lmembers() == many
    assert (job.marks.scard(), job.scores.zcard(), job.map.hlen()) == (8300, 8300, 8300)
    assert ResilientJob.collection(items="8299") == ["1"]


def test_a_worker_does_not_raise_a_priority_beyond_what_redis_holds(database: Any) -> None:
    ResilientJob.add_job("a", priority=2**53)
    work(1, callback=boom, requeue_times=1, requeue_priority_delta=5, requeue_delay_delta=0)
    assert Queue.get_queue("test", 2**53).waiting.llen() == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_seconds", float("inf")),
        ("logger_name", 5),
        ("requeue_priority_delta", 2**60),
        ("max_duration", timedelta.max),
        ("max_duration", 9e12),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(database: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigurationException, match=option):
        Worker("test", **{option: value})


def test_counting_asks_for_names(database: Any) -> None:
    with pytest.raises(InvalidArgument, match="names"):
        Queue.count_waiting_jobs(None)  # type: ignore[arg-type]


ERRORS = [
    InvalidArgument("priority", "x", "an integer"),
    JobNotInStatus("a:1", "r", "move"),
    JobAlreadyQueued("a:1", "a:2"),
    LeaseLost("a:1"),
    exceptions.JobClassError("a:1", "no"),
    exceptions.ServerTooOld("6.0", "6.2"),
    exceptions.InvalidDatabaseURL("redis://***", "no"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled_with_its_facts(error: Exception) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_the_statuses_can_be_copied(database: Any) -> None:
    assert copy.deepcopy(STATUSES) == STATUSES
    assert not hasattr(STATUSES, "__wrapped__")


def test_a_property_of_a_job_that_fails_says_why(database: Any) -> None:
    class Broken(ResilientJob):
        @property
        def customer(self) -> Any:
            return self.nothing_of_this_name

    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = Broken().customer


def test_orphans_among_our_own_keys_are_found(database: Any) -> None:
    orphans = ["jobs:ready:queue:nosuch", "jobs:due:queue:nosuch", "jobs:queues:queue:nosuch", "jobs:doorbell:queue:no"]
    for key in (*orphans, "jobs:done:nobody"):
        client().set(key, "x")

    found = {problem.subject for problem in admin.check() if problem.kind == "key"}

    assert found == {*orphans, "jobs:done:nobody"}
    client().delete(*orphans, "jobs:done:nobody")


def test_a_write_in_a_pipeline_keeps_an_index_that_no_script_knows(database: Any) -> None:
    error = Error.add_error("test", ResilientJob.add_job("a"), ValueError("boom"))
    with BaseJobsModel.database.pipeline(transaction=False) as pipe:
        error.message.hset("other")
        pipe.execute()
    error.date_time.hset("2031-01-01 00:00:00")
    assert Error.collection(date_time__gt="2030-01-01") == [error.pk.get()]
    assert Error.collection(date_time__lt="2030-01-01") == []


def test_all_scripts_are_short_of_the_limits_of_lua() -> None:
    assert all(len(lua.load(name).text) < 60_000 for name in lua.NAMES)
