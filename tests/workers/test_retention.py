"""What is kept of the jobs that have ended, and what goes with those that are not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.indexes import EqualIndex, NumberRangeIndex

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.utils import parse_keep, utcnow
from limpyd_jobs.workers import retention

from ..base import wait_until
from .base import Log, Running, client, idle, work

pytestmark = pytest.mark.usefixtures("database", "books")


UpperIndex = EqualIndex.configure(prefix="upper", key="upper", transform=lambda value: value.upper(), name="UpperIndex")


class KeptJob(Job):
    """Has fields of all kinds, with keys and indexes of their own."""

    queue_name = "test"
    colour = fields.InstanceHashField(indexable=True)
    status = fields.InstanceHashField(indexable=True, indexes=[EqualIndex, UpperIndex])  # one that no script knows
    width = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    tags = fields.SetField(indexable=True)
    steps = fields.ListField()


@pytest.fixture
def books() -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []


def nothing(job: Any, queue: Any) -> None:
    pass


def fail(job: Any, queue: Any) -> None:
    raise ValueError("no")


def keys_of(job: Any) -> list[str]:
    return [key for key in client().keys("jobs:*") if key.startswith(f"{job._name}:{job.pk.get()}:")]


def history(name: str = "success") -> list[str]:
    return list(client().lrange(f"jobs:queue:1:{name}", 0, -1))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0", 0),
        ("1000", 1000),
        (12, 12),
        ("45s", timedelta(seconds=45)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
        (timedelta(days=1), timedelta(days=1)),
    ],
)
def test_a_retention_is_a_number_or_a_duration(text: Any, kept: Any) -> None:
    assert parse_keep("keep_success", text) == kept


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "-1",
        -1,
        1.5,
        True,
        "7y",
        "d",
        None,
        timedelta(seconds=-1),
        timedelta(days=36526),
        "36526d",
        "9" * 15 + "w",
    ],
)
def test_another_retention_is_refused_with_what_is_accepted(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"keep_success.*a number of jobs like 1000, or a duration like"):
        parse_keep("keep_success", value)


@pytest.mark.parametrize("name", ["keep_success", "keep_errors"])
def test_a_worker_refuses_such_a_retention(name: str) -> None:
    with pytest.raises(ConfigurationException, match=f"{name}.*'x'"):
        Worker("test", terminate_gracefully=False, **{name: "x"})


def test_only_the_newest_jobs_are_kept_with_all_that_belongs_to_them() -> None:
    jobs = [
        KeptJob.add_job(str(number), colour="red", width=number, tags={"a", "b"}, steps=["x"]) for number in range(8)
    ]

    work(8, callback=nothing, keep_success=3)
    worker = Worker("test", terminate_gracefully=False, keep_success=3)
    worker._retention.note("jobs:queue:1", "success", retention.History(len(history())))
    worker._retention.trim()

    assert history() == [job.ident for job in jobs[-3:]]
    assert [keys_of(job) for job in jobs[:-3]] == [[]] * 5
    assert sorted(KeptJob.collection(colour="red")) == sorted(job.pk.get() for job in jobs[-3:])
    assert sorted(KeptJob.collection(tags="a")) == sorted(job.pk.get() for job in jobs[-3:])
    assert sorted(KeptJob.collection(width__gte=0)) == sorted(job.pk.get() for job in jobs[-3:])
    assert sorted(KeptJob.collection(status__upper="S")) == sorted(job.pk.get() for job in jobs[-3:])
    assert jobs[-1].tags.smembers() == {"a", "b"}


def test_with_nothing_to_keep_nothing_is_left() -> None:
    before = set(client().keys("*"))
    KeptJob.add_job("one", colour="red", tags={"a"})

    work(1, callback=nothing, keep_success=0)
    with Running(idle(keep_success=0, callback=nothing)):
        KeptJob.add_job("two", colour="red", tags={"a"})
        wait_until(lambda: history() == [] and not KeptJob.collection(), message="all is removed")

    passing = ("jobs:done:", "jobs:numbers:")  # they expire
    left = {key for key in set(client().keys("*")) - before - {"jobs:tasks"} if not key.startswith(passing)}
    assert left <= {
        "jobs:models",
        "jobs:tasks",
        "jobs:keptjob:max_pk",
        "jobs:queue:1:hash",
        "jobs:queue:max_pk",
        "jobs:queue:collection",
        "jobs:queue:name:test",
        "jobs:queue:priority:0",
        "jobs:queues:queue:test",
    }


def test_what_is_kept_for_a_time_goes_when_that_is_past() -> None:
    old, new = KeptJob.add_job("old"), KeptJob.add_job("new")
    work(2, callback=nothing)
    old.end.hset(str(utcnow() - timedelta(hours=2)))
    worker = Worker("test", terminate_gracefully=False, keep_success="1h")

    worker._retention.note("jobs:queue:1", "success", retention.History(2))
    worker._retention.trim()

    assert history() == [new.ident]
    assert keys_of(old) == []


def test_an_idle_worker_removes_what_becomes_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "IDLE_SECONDS", 0.05)
    KeptJob.add_job("one")

    with Running(idle(keep_success="1s", callback=nothing)):
        wait_until(lambda: KeptJob.collection(status=STATUSES.SUCCESS).instances() or not KeptJob.collection())
        wait_until(lambda: not KeptJob.collection(), message="the job is removed")

    assert history() == []


def test_the_queue_wins_over_the_worker() -> None:
    Queue.get_queue("test", keep_success="1", keep_errors="0")
    for number in range(4):
        KeptJob.add_job(str(number))

    work(4, callback=nothing, keep_success=1000)
    with Running(idle(keep_success=1000, callback=nothing)):
        wait_until(lambda: len(history()) <= 2)
        KeptJob.add_job("last")
        wait_until(lambda: not Queue.count_waiting_jobs("test") and len(KeptJob.collection(queued="1")) == 0)
        wait_until(lambda: len(history()) == 1)


@pytest.mark.parametrize("keep", ["36525d", "999999999999999", "999999999w"])
def test_no_retention_is_too_long_for_a_worker(keep: str) -> None:
    Queue.get_queue("test", keep_success=keep)
    jobs = [KeptJob.add_job(str(number)) for number in range(3)]

    work(3, callback=nothing)

    assert history() == [job.ident for job in jobs]


def test_a_queue_with_an_unreadable_retention_keeps_everything_and_says_so(log: Log) -> None:
    Queue.get_queue("test", keep_success="some")
    jobs = [KeptJob.add_job(str(number)) for number in range(3)]

    work(3, callback=nothing, keep_success=0)

    assert history() == [job.ident for job in jobs]
    assert len([line for line in log.lines if "keeps everything" in line and "'some'" in line]) == 1


def test_an_error_goes_with_its_entry_and_the_record_with_the_last_one() -> None:
    job = KeptJob.add_job("again")
    work(3, callback=fail, requeue_times=2, requeue_delay_delta=0, requeue_priority_delta=0)
    other = KeptJob.add_job("other")
    work(1, callback=fail)
    assert history("errors") == [job.ident] * 3 + [other.ident]
    worker = Worker("test", terminate_gracefully=False, keep_errors=2)

    worker._retention.note("jobs:queue:1", "errors", retention.History(4))
    worker._retention.trim()

    assert history("errors") == [job.ident, other.ident]
    assert len(Error.collection_for_job(job)) == 1
    assert job.status.hget() == STATUSES.ERROR
    worker._retention._keep["errors"] = 1
    worker._retention.note("jobs:queue:1", "errors", retention.History(2))
    worker._retention.trim()
    assert history("errors") == [other.ident]
    assert keys_of(job) == []
    assert len(Error.collection()) == 1


def test_a_job_that_succeeded_later_stays_when_the_entry_of_its_failure_goes() -> None:
    job = KeptJob.add_job("again")
    work(1, callback=fail)
    job.requeue()
    work(1, callback=nothing)
    worker = Worker("test", terminate_gracefully=False, keep_errors=0)

    worker._retention.note("jobs:queue:1", "errors", retention.History(1))
    worker._retention.trim()

    assert history("errors") == []
    assert len(Error.collection()) == 0
    assert job.status.hget() == STATUSES.SUCCESS


def test_a_job_that_was_queued_again_stays() -> None:
    job = KeptJob.add_job("again")
    work(1, callback=nothing)
    job.enqueue_or_delay()
    worker = Worker("test", terminate_gracefully=False, keep_success=0)

    worker._retention.note("jobs:queue:1", "success", retention.History(1))
    worker._retention.trim()

    assert history() == []
    assert job.status.hget() == STATUSES.WAITING
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]


def test_a_job_that_begins_anew_between_the_reading_and_the_removal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    job = KeptJob.add_job("again")
    work(1, callback=nothing)
    worker = Worker("test", terminate_gracefully=False, keep_success=0)
    read = retention.Retention._read

    def read_and_wait(self: Any, name: str, idents: list[str]) -> Any:
        entries = read(self, name, idents)
        job.enqueue_or_delay()
        return entries

    monkeypatch.setattr(retention.Retention, "_read", read_and_wait)
    worker._retention.note("jobs:queue:1", "success", retention.History(1))
    worker._retention.trim()

    assert job.status.hget() == STATUSES.WAITING
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]


def test_a_job_that_is_written_to_between_the_reading_and_the_removal_goes_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = KeptJob.add_job("one", colour="red")
    work(1, callback=nothing)
    worker = Worker("test", terminate_gracefully=False, keep_success=0)
    read = retention.Retention._read
    colours = iter(["blue"])

    def read_and_write(self: Any, name: str, idents: list[str]) -> Any:
        entries = read(self, name, idents)
        for colour in colours:
            job.colour.hset(colour)
        return entries

    monkeypatch.setattr(retention.Retention, "_read", read_and_write)
    worker._retention.note("jobs:queue:1", "success", retention.History(1))
    worker._retention.trim()
    assert history() == [job.ident]
    worker._retention.trim()

    assert history() == []
    assert not KeptJob.collection(colour="blue")


def test_idents_of_unknown_classes_and_deleted_jobs_are_removed_from_the_history() -> None:
    job = KeptJob.add_job("gone")
    work(1, callback=nothing)
    job.delete()
    client().rpush("jobs:queue:1:success", "no.such.Model:1", "nonsense")
    worker = Worker("test", terminate_gracefully=False, keep_success=0)

    worker._retention.note("jobs:queue:1", "success", retention.History(3))
    worker._retention.trim()

    assert history() == []


def test_two_workers_remove_the_same_once() -> None:
    jobs = [KeptJob.add_job(str(number)) for number in range(300)]
    work(300, callback=nothing)
    workers = [Worker("test", terminate_gracefully=False, keep_success=5) for _ in range(2)]

    for worker in workers:
        worker._retention.note("jobs:queue:1", "success", retention.History(300))
    for _ in range(5):
        for worker in workers:
            worker._retention.trim()

    assert history() == [job.ident for job in jobs[-5:]]
    assert len(KeptJob.collection()) == 5


def test_a_history_that_nobody_limits_is_told_of_once_when_it_is_long(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MANY", 2)
    for number in range(5):
        KeptJob.add_job(str(number))

    work(5, callback=nothing)

    assert len([line for line in log.lines if "jobs:queue:1:success holds more than 2 jobs" in line]) == 1
    assert len(history()) == 5


def test_a_limited_history_is_not_told_of(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MANY", 2)
    for number in range(5):
        KeptJob.add_job(str(number))

    work(5, callback=nothing, keep_success=1000)

    assert [line for line in log.lines if "holds more than" in line] == []


# --- What is not as it should be


def trim(name: str = "success", **keep: Any) -> None:
    worker = Worker("test", terminate_gracefully=False, **keep)
    worker._retention.note("jobs:queue:1", name, retention.History(len(history(name))))
    for _ in range(3):
        worker._retention.trim()


def test_idents_that_nobody_can_run_are_removed_like_other_errors() -> None:
    queue = Queue.get_queue("test")
    queue.waiting.rpush(*[f"no.such.Model:{number}" for number in range(30)])

    with Running(idle(keep_errors=5, callback=nothing)):
        wait_until(lambda: not queue.waiting.llen() and len(history("errors")) <= 5)

    assert len(Error.collection()) == len(history("errors")) == 5


def test_the_records_of_a_class_that_this_process_cannot_have_stay(log: Log) -> None:
    jobs = [KeptJob.add_job(str(number)) for number in range(3)]
    work(3, callback=nothing)
    client().lset("jobs:queue:1:success", 1, "no.such.Model:1")
    client().hset("jobs:models", "no.such.Model", "{}")

    trim(keep_success=0)

    assert history() == ["no.such.Model:1", jobs[2].ident]
    assert len([line for line in log.lines if "the class of no.such.Model:1 cannot be had" in line]) == 1
    client().hdel("jobs:models", "no.such.Model")
    jobs[1].delete()


def test_what_is_not_utf8_is_removed_like_the_rest() -> None:
    job = KeptJob.add_job("one", colour="red")
    work(1, callback=nothing)
    client().srem("jobs:keptjob:identifier:one", job.pk.get())
    client().hset(job.key, "identifier", b"\xff\xfe")
    client().sadd(b"jobs:keptjob:identifier:\xff\xfe", job.pk.get())
    client().rpush("jobs:queue:1:success", b"\xff:1")

    trim(keep_success=0)

    assert history() == []
    assert keys_of(job) == []


def test_a_record_or_an_index_of_a_wrong_type_does_not_stop_the_worker() -> None:
    first, second = KeptJob.add_job("one", colour="red"), KeptJob.add_job("two", colour="blue")
    work(2, callback=nothing)
    client().delete(first.key)
    client().set(first.key, "something else")
    client().delete("jobs:keptjob:colour:blue")
    client().set("jobs:keptjob:colour:blue", "something else")
    later = KeptJob.add_job("later")

    with Running(idle(keep_success=0, callback=nothing)):
        wait_until(lambda: history() == [] and not KeptJob.exists(pk=later.pk.get()))

    assert keys_of(second) == []
    client().flushdb()  # the books are as wrong as they were made


class VagueError(Error):
    """Its indexes do not tell the errors of a job."""

    job_pk = fields.InstanceHashField()


def test_errors_that_cannot_be_found_stay_and_that_is_told_of(log: Log) -> None:
    KeptJob.add_job("one")
    work(1, callback=fail, error_model=VagueError)

    trim("errors", keep_errors=0, error_model=VagueError)

    assert history("errors") == []
    assert len(VagueError.collection()) == 1
    assert len([line for line in log.lines if "The errors of VagueError stay" in line]) == 1


def test_a_job_that_ended_a_little_later_than_its_error_says_goes_with_it() -> None:
    job = KeptJob.add_job("one")
    work(1, callback=fail)
    (error,) = Error.collection_for_job(job).instances()
    error.date_time.hset(str(utcnow() - timedelta(hours=2)))

    trim("errors", keep_errors="1h")

    assert history("errors") == []
    assert keys_of(job) == []
