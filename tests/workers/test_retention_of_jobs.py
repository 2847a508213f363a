"""Jobs that are kept for a time of their own: when they go, what goes with them, and what does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.indexes import EqualIndex

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, transitions
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.workers import LOGGER_NAME, AsyncWorker, expiring

from ..base import wait_until
from .base import Log, Running, client, idle, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database", "books")

DAY = 86400

UpperIndex = EqualIndex.configure(prefix="upper", key="upper", transform=lambda value: value.upper(), name="UpperIndex")


class ExpiringJob(Job):
    """Kept as long as it is told."""

    queue_name = "test"
    colour = fields.InstanceHashField(indexable=True)
    shade = fields.InstanceHashField(indexable=True, indexes=[UpperIndex])
    tags = fields.SetField(indexable=True)
    steps = fields.ListField()

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("fail"):
            raise ValueError("it fails")


class DayJob(ExpiringJob):
    keep_success = "1d"
    keep_errors = timedelta(days=30)


class CoroutineExpiringJob(ExpiringJob):
    keep_success = 0

    async def run(self, queue: Any) -> None:
        pass


class OwnKeepJob(ExpiringJob):
    """One of a program that had a field of this name before."""

    keep_success = fields.InstanceHashField()


@pytest.fixture
def books() -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []


@pytest.fixture
def quick(monkeypatch: Any) -> None:
    """Workers look all the time."""
    monkeypatch.setattr(expiring, "FIRST_LOOK_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(expiring, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(expiring, "IDLE_SECONDS", 0.05)


def trim(times: int = 1) -> None:
    """What a worker does now and then."""
    worker = Worker("test", terminate_gracefully=False)
    for _ in range(times):
        worker._expiring.trim()


def noted() -> dict[str, float]:
    """The jobs that will go, and in how many seconds."""
    seconds, micros = client().time()
    entries = client().zrange("jobs:expiring", 0, -1, withscores=True)
    return {ident: when - seconds - micros / 1_000_000 for ident, when in entries}


def run_out(*jobs: Any) -> None:
    """Let the time of jobs be over."""
    for job in jobs:
        assert client().zadd("jobs:expiring", {job.ident: 1}, xx=True, ch=True)


def history(name: str = "success") -> list[str]:
    return list(client().lrange(f"jobs:queue:1:{name}", 0, -1))


def keys_of(job: Any) -> list[str]:
    return [key for key in client().keys("jobs:*") if key.startswith(f"{job._name}:{job.pk.get()}:")]


# --- What is noted at the end


@pytest.mark.parametrize("keep", [DAY, float(DAY), timedelta(days=1), "1d", "24h"])
def test_the_end_of_a_job_notes_until_when_it_is_kept(keep: Any) -> None:
    job = ExpiringJob.add_job("a", keep_success=keep)

    work(1)

    assert list(noted()) == [job.ident]
    assert DAY - 20 < noted()[job.ident] <= DAY


def test_successes_and_errors_are_kept_as_their_class_says() -> None:
    good, bad = DayJob.add_job("a"), DayJob.add_job("fail")

    work(2, requeue_times=0)

    assert DAY - 20 < noted()[good.ident] <= DAY
    assert 30 * DAY - 20 < noted()[bad.ident] <= 30 * DAY


def test_what_is_said_of_a_job_wins_over_its_class() -> None:
    jobs = [DayJob.add_job("a", keep_success=10), DayJob.add_job("fail", keep_errors="30s", keep_success=DAY)]

    work(2, requeue_times=0)

    assert noted()[jobs[0].ident] <= 10
    assert 10 < noted()[jobs[1].ident] <= 30


@pytest.mark.parametrize("options", [{"prefetch": 10}, {"threads": 3}, {"isolate": True}], ids=str)
def test_it_is_noted_however_the_job_ends(options: dict[str, Any]) -> None:
    jobs = [DayJob.add_job(str(number)) for number in range(20)]
    jobs += [ExpiringJob.add_job(str(number), keep_success=10) for number in range(20)]

    work(40, **options)

    assert sorted(noted()) == sorted(job.ident for job in jobs)


def test_a_plain_job_notes_nothing() -> None:
    ExpiringJob.add_job("a")
    ExpiringJob.add_job("b", keep_errors=1)

    work(2)

    assert noted() == {}


def test_an_error_that_is_retried_notes_nothing() -> None:
    job = ExpiringJob.add_job("fail", keep_errors=10, requeue_times=1, requeue_delay_delta=1000)

    work(1)

    assert job.status.hget() == STATUSES.DELAYED
    assert noted() == {}


def test_a_job_that_is_canceled_is_kept_as_an_error() -> None:
    waiting, delayed = DayJob.add_job("a"), ExpiringJob.add_job("b", delayed_for=100, keep_errors=5)

    waiting.cancel()
    delayed.cancel()

    assert noted()[waiting.ident] > 29 * DAY
    assert noted()[delayed.ident] <= 5


def test_a_job_that_is_canceled_while_it_runs_is_kept_as_an_error() -> None:
    job = DayJob.add_job("a")

    work(1, callback=lambda job, queue: job.cancel())

    assert noted()[job.ident] > 29 * DAY


def test_a_job_that_expires_is_kept_as_an_error() -> None:
    job = DayJob.add_job("a", expires=0)

    work(1)

    assert job.status.hget() == STATUSES.CANCELED
    assert noted()[job.ident] > 29 * DAY


def test_an_end_that_a_program_writes_counts() -> None:
    job = DayJob.add_job("a")
    client().lrem("jobs:queue:1:waiting", 0, job.ident)
    job.queued.hdel()

    job.status.hset(STATUSES.SUCCESS)

    assert DAY - 20 < noted()[job.ident] <= DAY


def test_a_class_may_have_a_field_of_this_name() -> None:
    job = OwnKeepJob.add_job("a", keep_success="mine")

    work(1)

    assert job.keep_success.hget() == "mine"
    assert noted() == {}


@pytest.mark.parametrize("value", [-1, "5", 1.5j, "x", True, "7y", "", timedelta(days=36526)])
@pytest.mark.parametrize("name", ["keep_success", "keep_errors"])
def test_what_is_no_duration_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"{name}.*or a duration like 45s"):
        ExpiringJob.add_job("a", **{name: value})

    assert client().keys("jobs:job*") == []


def test_a_class_with_such_a_value_is_refused() -> None:
    class BadKeepJob(ExpiringJob):
        keep_success = 1000j

    with pytest.raises(ConfigurationException, match=r"BadKeepJob\.keep_success"):
        BadKeepJob.add_job("a")
    BadKeepJob.keep_success = None  # type: ignore[assignment]


# --- What goes


def test_all_that_belongs_to_a_job_goes_with_it() -> None:
    values = {"colour": "red", "shade": "dark", "tags": {"a", "b"}, "steps": ["x"]}
    job, other = ExpiringJob.add_job("a", keep_success=DAY, **values), ExpiringJob.add_job("b", **values)
    work(2)

    trim()
    assert keys_of(job)
    run_out(job)
    trim()

    assert keys_of(job) == []
    assert noted() == {}
    assert history() == [other.ident]
    for found in ({"colour": "red"}, {"shade__upper": "DARK"}, {"tags": "a"}, {"status": STATUSES.SUCCESS}):
        assert list(ExpiringJob.collection(**found)) == [other.pk.get()]


def test_the_errors_of_a_job_go_with_it() -> None:
    job = ExpiringJob.add_job("fail", keep_errors=DAY, requeue_times=2, requeue_delay_delta=0)
    other = ExpiringJob.add_job("fail too")
    work(4)
    assert len(Error.collection()) == 4

    run_out(job)
    trim()

    assert [Error.get(pk).job_pk.hget() for pk in Error.collection()] == [other.pk.get()]
    assert [ident for queue in Queue.get_all("test") for ident in queue.errors.lmembers()] == [other.ident]


def test_the_errors_before_a_success_go_with_the_job() -> None:
    job = ExpiringJob.add_job("fail", keep_success=DAY, requeue_times=2, requeue_delay_delta=0)
    work(1)
    job.identifier.hset("good")
    work(1)

    run_out(job)
    trim()

    assert (history(), history("errors"), list(Error.collection()), keys_of(job)) == ([], [], [], [])


def test_a_job_that_succeeded_twice_leaves_no_entry() -> None:
    job = ExpiringJob.add_job("a", keep_success=DAY)
    work(1)
    job.enqueue_or_delay()
    work(1)
    assert history() == [job.ident] * 2

    run_out(job)
    trim()

    assert history() == []


def test_a_job_with_very_many_errors_goes_in_several_steps(monkeypatch: Any) -> None:
    monkeypatch.setattr(expiring, "MOST_ERRORS", 2)
    job = ExpiringJob.add_job("fail", keep_errors=DAY, requeue_times=4, requeue_delay_delta=0)
    work(5)
    run_out(job)

    trim()
    assert (len(Error.collection()), bool(keys_of(job))) == (3, True)
    trim(2)

    assert (len(Error.collection()), keys_of(job)) == (0, [])


def test_a_canceled_job_goes() -> None:
    job = ExpiringJob.add_job("a", keep_errors=DAY)
    job.cancel()

    run_out(job)
    trim()

    assert (keys_of(job), noted()) == ([], {})


# --- What does not


def test_a_job_that_is_queued_again_stays_and_its_next_end_counts() -> None:
    job = ExpiringJob.add_job("a", keep_success=DAY)
    work(1)
    job.enqueue_or_delay()

    run_out(job)
    trim()
    assert (noted(), job.status.hget()) == ({}, STATUSES.WAITING)
    work(1)

    assert list(noted()) == [job.ident]


def test_a_job_that_is_written_to_while_it_is_removed_is_looked_at_anew(monkeypatch: Any) -> None:
    job = ExpiringJob.add_job("a", keep_success=DAY, colour="red")
    work(1)
    run_out(job)
    send = transitions.send

    def write_first(client: Any, call: Any) -> Any:
        if call.script == "forget":
            monkeypatch.undo()
            job.colour.hset("blue")
        return send(client, call)

    monkeypatch.setattr(transitions, "send", write_first)
    trim()
    assert len(ExpiringJob.collection(colour="blue")) == 1
    trim()

    assert keys_of(job) == []


def test_a_record_that_is_gone_already_leaves_no_note() -> None:
    job = ExpiringJob.add_job("a", keep_success=DAY)
    work(1)
    run_out(job)
    ExpiringJob.get(job.pk.get()).delete()

    trim()

    assert noted() == {}


def test_a_shorter_retention_of_the_queue_wins() -> None:
    jobs = [ExpiringJob.add_job(str(number), keep_success=DAY) for number in range(3)]
    Queue.get_queue("test").keep_success.hset("1")
    work(3)
    worker = Worker("test", terminate_gracefully=False)
    worker._retention.note("jobs:queue:1", "success", transitions.History(3, "1"))
    worker._retention.trim()

    assert history() == [jobs[2].ident]
    run_out(*jobs)
    trim()

    assert (history(), noted()) == ([], {})


def test_a_success_stays_while_a_job_after_it_has_yet_to_run() -> None:
    job = ExpiringJob.add_job("a", keep_success=DAY)
    later = ExpiringJob.add_job("b", after=job, delayed_for=60)
    work(1)

    run_out(job)
    trim()
    assert job.status.hget() == STATUSES.SUCCESS
    assert noted()[job.ident] > 500

    later.cancel()
    run_out(job)
    trim()
    assert keys_of(job) == []


def test_the_history_of_a_queue_leaves_a_success_that_is_needed_to_others() -> None:
    job = ExpiringJob.add_job("a")
    later = ExpiringJob.add_job("b", after=job)
    Queue.get_queue("test").keep_success.hset("0")
    worker = Worker("test", terminate_gracefully=False)

    work(1)
    worker._retention.note("jobs:queue:1", "success", transitions.History(1, "0"))
    worker._retention.trim()
    assert (history(), later.status.hget()) == ([], STATUSES.WAITING)
    trim()
    assert job.status.hget() == STATUSES.SUCCESS

    work(1)
    run_out(job)
    trim()
    assert keys_of(job) == []


def test_jobs_whose_class_cannot_be_had_do_not_hold_up_the_others(monkeypatch: Any) -> None:
    monkeypatch.setattr(expiring, "BATCH", 2)
    client().zadd("jobs:expiring", {f"nowhere.Job:{number}": number for number in range(5)})
    job = ExpiringJob.add_job("a", keep_success=DAY)
    work(1)
    client().zadd("jobs:expiring", {job.ident: 10})
    log = Log()
    worker = Worker("test", terminate_gracefully=False)
    worker.logger.addHandler(log)

    for _ in range(4):
        worker._expiring.trim()
    worker.logger.removeHandler(log)

    assert keys_of(job) == []
    assert len(noted()) == 5
    assert any("nowhere.Job:0 is kept for longer than it should be" in line for line in log.lines)


def test_something_else_under_the_key_is_told_of_and_ends_no_worker() -> None:
    client().set("jobs:expiring", "x")
    job = DayJob.add_job("a")
    log = Log()
    worker = Worker("test", terminate_gracefully=False)
    worker.logger.addHandler(log)

    work(1)
    worker._expiring.trim()
    worker.logger.removeHandler(log)

    assert job.status.hget() == STATUSES.SUCCESS
    assert log.level_of("kept for a time of their own stay") == "ERROR"


def test_a_long_history_is_looked_through_in_several_steps() -> None:
    jobs = [ExpiringJob.add_job(str(number), keep_success=DAY) for number in range(10)]
    work(10)
    client().lpush("jobs:queue:1:success", *["limpyd_jobs.models.Job:0"] * 30_000)

    run_out(*jobs)
    trim()
    assert 0 < len(ExpiringJob.collection()) < 10
    trim(3)

    assert list(ExpiringJob.collection()) == []
    assert len(history()) == 30_000
    client().delete("jobs:queue:1:success")


# --- By whom


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [Worker, AsyncWorker])
def test_a_worker_that_has_nothing_to_do_removes_them(kind: type[Worker]) -> None:
    job = ExpiringJob.add_job("a", keep_success=0)
    with Running(idle(kind)):
        wait_until(lambda: not keys_of(job))

    assert noted() == {}


@pytest.mark.usefixtures("quick")
def test_an_idle_worker_removes_what_others_have_ended() -> None:
    Queue.get_queue("nothing")
    with Running(idle(queues="nothing")):
        wait_until_idle()
        job = ExpiringJob.add_job("a", keep_success=0.05)
        work(1)
        wait_until(lambda: not keys_of(job))


@pytest.mark.usefixtures("quick")
def test_coroutines_are_removed_by_the_worker_that_runs_them() -> None:
    CoroutineExpiringJob.add_jobs(str(number) for number in range(50))

    with Running(idle(AsyncWorker)):
        wait_until(lambda: client().get("jobs:coroutineexpiringjob:max_pk") == "50")
        wait_until(lambda: not CoroutineExpiringJob.collection())

    assert (history(), noted()) == ([], {})


def test_the_memory_of_thousands_of_jobs_returns(caplog: Any, monkeypatch: Any) -> None:
    caplog.set_level(logging.WARNING, LOGGER_NAME)
    monkeypatch.setattr(expiring, "FIRST_LOOK_SECONDS", (1000.0, 1000.0))
    ExpiringJob.add_job("warm", keep_success=0)
    work(1)
    trim()
    before = client().info("memory")["used_memory"]
    ExpiringJob.add_jobs({"identifier": str(number), "keep_success": 0, "colour": "red" * 30} for number in range(5000))
    full = client().info("memory")["used_memory"]
    with Running(idle(prefetch=50, max_loops=10_000)):
        wait_until(lambda: len(history()) == 5000, 90, "all have run")

    monkeypatch.setattr(expiring, "FIRST_LOOK_SECONDS", (0.0, 0.0))
    with Running(idle()):
        wait_until(lambda: not client().exists("jobs:expiringjob:collection"), 90, "all are gone")

    assert (history(), noted()) == ([], {})
    after = client().info("memory")["used_memory"]
    assert after - before < (full - before) / 4, (before, full, after)


def test_a_worker_that_has_just_begun_does_not_look_at_once() -> None:
    started = time.monotonic()
    looks = [Worker("test", terminate_gracefully=False)._expiring._look_at for _ in range(20)]

    assert min(looks) >= started + expiring.FIRST_LOOK_SECONDS[0]
    assert len(set(looks)) > 1


def test_a_record_without_an_identifier_goes_like_others() -> None:
    jobs = [ExpiringJob.add_job("a", keep_success=10), ExpiringJob.add_job("b")]
    work(2, callback=lambda job, queue: job.identifier.delete() and None)
    run_out(jobs[0])

    trim()
    with Running(idle(keep_success=0)):
        ExpiringJob.add_job("c")
        wait_until(lambda: not keys_of(jobs[1]), message="the other one goes with its entry in the history")

    assert keys_of(jobs[0]) == []
