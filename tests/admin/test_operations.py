"""Acting on many jobs: once on each, at a rate, resumable."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Worker, admin
from limpyd_jobs.admin import ErrorFilter, JobFilter
from limpyd_jobs.admin.operating import Pace
from limpyd_jobs.exceptions import InvalidArgument
from limpyd_jobs.models import Error

from ..base import Process, RedisServer
from .operating_jobs import OperatingJob

pytestmark = pytest.mark.usefixtures("database")

PROGRAM = """
import sys
from limpyd_jobs import admin
from limpyd_jobs.models import BaseJobsModel
if sys.argv[4] == "with the class":
    import tests.admin.operating_jobs
client = BaseJobsModel.database.connect(sys.argv[1])
operation = admin.resume_operation(sys.argv[2])
print("ready")
client.blpop("test:gate", 0)
def on_progress(done, count):
    if done == 5:
        print("come to five")
operation.run(float(sys.argv[3]), on_progress)
print("ended")
"""
FAILED = JobFilter(statuses=("e",), queues=("operating",))


def run_all() -> None:
    Worker(["operating"], burst=True, terminate_gracefully=False, logger_level=100).run()


def fail_many(count: int) -> list[Any]:
    jobs = [OperatingJob.add_job(str(number)) for number in range(count)]
    run_all()
    return jobs


def statuses(jobs: list[Any]) -> set[str]:
    return {job.status.hget() for job in jobs}


def runs() -> dict[str, str]:
    found: dict[str, str] = Queue.get_connection().hgetall("test:runs")
    return found


def test_all_jobs_that_a_filter_finds_are_acted_on() -> None:
    jobs = fail_many(5)
    other = OperatingJob.add_job("other", "elsewhere")
    operation = admin.start_operation("requeue", FAILED, priority=3)
    seen: list[tuple[int, int]] = []

    ended = operation.run(on_progress=lambda done, count: seen.append((done, count)))

    assert (operation.count, ended.done, ended.skipped) == (5, 5, {})
    assert seen == [(number, 5) for number in range(1, 6)]
    assert {(job.status.hget(), job.priority.hget()) for job in jobs} == {(STATUSES.WAITING, "3")}
    assert other.priority.hget() == "0"
    assert admin.operations() == []
    assert admin.check() == []


def test_an_operation_is_kept_until_it_has_ended() -> None:
    fail_many(2)
    operation = admin.start_operation("requeue", FAILED, by="me@here", delayed_for=10)

    [kept] = admin.operations()

    assert kept == operation == admin.resume_operation(operation.id)
    assert (kept.kind, kept.by, kept.options) == ("requeue", "me@here", {"delayed_for": 10.0})
    assert json.loads(json.dumps(asdict(kept)))["count"] == 2
    assert admin.check() == []


def test_an_operation_can_be_dropped() -> None:
    operation = admin.start_operation("delete", JobFilter())

    assert admin.drop_operation(operation.id)
    assert not admin.drop_operation(operation.id)
    with pytest.raises(InvalidArgument, match="id"):
        admin.resume_operation(operation.id)


def test_an_operation_that_was_interrupted_goes_on_where_it_was() -> None:
    jobs = fail_many(6)
    operation = admin.start_operation("requeue", FAILED)

    def interrupt(done: int, count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        operation.run(on_progress=interrupt)
    [kept] = admin.operations()
    run_all()  # what was requeued has failed again, and is not meant
    ended = admin.resume_operation(operation.id).run()

    assert kept.done == 2
    assert (ended.done, ended.skipped) == (6, {})
    run_all()
    assert statuses(jobs) == {STATUSES.ERROR}
    assert set(runs().values()) == {"2"}


@pytest.mark.parametrize("known", ["with the class", "without it"])
def test_an_operation_in_two_processes_of_which_one_is_killed_acts_once_on_each(
    redis_server: RedisServer, known: str
) -> None:
    jobs = fail_many(40)
    operation = admin.start_operation("requeue", FAILED)
    arguments = [sys.executable, "-c", PROGRAM, redis_server.url, operation.id, "100", known]

    with Process(arguments) as first, Process(arguments) as second:
        for process in (first, second):
            process.wait_for_output("ready")
        Queue.get_connection().rpush("test:gate", 1, 2)
        first.wait_for_output("come to five")
        first.process.kill()
        run_all()
        second.wait_for_output("ended")
    run_all()

    assert admin.operations() == []
    assert runs() == {job.ident: "2" for job in jobs}
    assert admin.check() == []


def test_what_cannot_be_done_to_a_job_is_counted_with_its_reason() -> None:
    fail_many(3)
    OperatingJob.add_job("1")  # queued, with the identifier of one that failed

    ended = admin.start_operation("requeue", FAILED).run()

    assert ended.done == 2
    assert ended.skipped == {"another job with its identifier is queued": 1}


def test_a_hook_that_raises_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fail_many(3)

    def requeue(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.pk.get() == "2":
            raise ZeroDivisionError("of the user")
        Job.requeue(self, *args, **kwargs)

    monkeypatch.setattr(OperatingJob, "requeue", requeue)
    ended = admin.start_operation("requeue", FAILED).run()

    assert (ended.done, ended.skipped) == (2, {"ZeroDivisionError: of the user": 1})
    assert [job.status.hget() for job in jobs] == ["w", "e", "w"]


def test_jobs_that_are_added_after_its_start_are_not_meant() -> None:
    OperatingJob.add_job("before")
    operation = admin.start_operation("cancel", JobFilter(queues=("operating",)), reason="not wanted")
    after = OperatingJob.add_job("after")

    ended = operation.run()

    assert ended.done == 1
    assert OperatingJob.get("1").hmget("status", "cancel_reason") == [STATUSES.CANCELED, "not wanted"]
    assert after.status.hget() == STATUSES.WAITING


def test_jobs_are_moved_once() -> None:
    for number in range(3):
        OperatingJob.add_job(str(number), delayed_for=100 if number == 2 else None)

    ended = admin.start_operation("move", JobFilter(), priority=8).run()
    again = admin.start_operation("move", JobFilter(), priority=8).run()

    assert ended.done == 3
    assert (again.done, again.skipped) == (0, {"it is there already": 3})
    assert Queue.count_waiting_jobs("operating") == 2
    assert admin.check() == []


@pytest.mark.parametrize("kind", ["move", "requeue"])
def test_jobs_keep_their_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.admin.operating.PAGE", 3)
    jobs = fail_many(8) if kind == "requeue" else [OperatingJob.add_job(str(number)) for number in range(8)]

    ended = admin.start_operation(kind, JobFilter(queues=("operating",)), queue="other").run()

    assert (ended.done, ended.skipped) == (8, {})
    assert Queue.get_queue("other").waiting.lmembers() == [job.ident for job in jobs]


def test_jobs_are_deleted() -> None:
    fail_many(3)
    OperatingJob.add_job("waits")

    ended = admin.start_operation("delete", JobFilter(job_class="OperatingJob")).run()

    assert ended.done == 4
    assert len(OperatingJob.collection()) == len(Error.collection()) == 0
    assert Queue.get_queue("operating").errors.llen() == 0
    assert admin.check() == []


# --- purge


def test_what_has_ended_long_ago_is_purged() -> None:
    old, new = fail_many(2)
    old.end.hset("2020-01-01 00:00:00")
    waiting = OperatingJob.add_job("waits")
    operation = admin.start_purge(older_than=3600)

    ended = operation.run()

    assert (operation.count, ended.done) == (1, 1)
    assert not OperatingJob.exists(pk=old.pk.get())
    assert statuses([new, waiting]) == {STATUSES.ERROR, STATUSES.WAITING}
    assert Queue.get_queue("operating").errors.lmembers() == [new.ident]
    assert len(Error.collection()) == 1
    assert admin.check() == []


def test_only_the_statuses_that_are_named_are_purged() -> None:
    failed = fail_many(1)
    canceled = OperatingJob.add_job("c")
    canceled.cancel()

    ended = admin.start_purge(["c"]).run(rate=1000)

    assert ended.done == 1
    assert statuses(failed) == {STATUSES.ERROR}
    assert admin.check() == []


def test_a_parent_whose_children_have_yet_to_run_is_not_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OperatingJob, "run", lambda self, queue: None)
    parent = OperatingJob.add_job("parent")
    child = OperatingJob.add_job("child", "elsewhere", after=parent)
    run_all()

    ended = admin.start_purge().run()

    assert (ended.done, ended.skipped) == (0, {"jobs that come after it have yet to run": 1})
    assert child.status.hget() == STATUSES.WAITING


def test_what_is_left_of_purged_jobs_in_a_history_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.admin.removing.NEAR", 1)
    jobs = fail_many(6)
    for job in jobs[:5]:
        job.end.hset("2020-01-01 00:00:00")

    admin.start_purge(older_than=3600).run()

    assert Queue.get_queue("operating").errors.lmembers() == [jobs[5].ident]


def test_errors_are_purged_by_their_age_and_their_jobs_stay() -> None:
    jobs = fail_many(3)
    first = Error.get("1")
    first.date_time.hset("2020-01-01 00:00:00")
    operation = admin.start_purge_of_errors(older_than=3600, wanted=ErrorFilter(type="ValueError"))

    ended = operation.run()

    assert (operation.count, ended.done) == (1, 1)
    assert sorted(Error.collection()) == ["2", "3"]
    assert statuses(jobs) == {STATUSES.ERROR}
    assert admin.check() == []


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "statuses", "options", "named"),
    [
        ("run", (), {}, "kind"),
        ("requeue", ("w",), {}, "statuses"),
        ("move", ("e",), {"queue": "a"}, "statuses"),
        ("move", (), {}, "queue"),
        ("cancel", ("s",), {}, "statuses"),
        ("cancel", (), {"reason": 3}, "reason"),
        ("purge", ("r",), {}, "statuses"),
        ("requeue", (), {"queue": "a,b"}, "queue_name"),
        ("requeue", (), {"priority": "high"}, "priority"),
        ("requeue", (), {"delayed_for": "soon"}, "delayed_for"),
        ("delete", (), {"queue": "a"}, "queue"),
    ],
)
def test_an_operation_that_cannot_be_is_refused_before_it_is_noted(
    kind: str, statuses: tuple[str, ...], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        admin.start_operation(kind, JobFilter(statuses=statuses), **options)
    assert admin.operations() == []


@pytest.mark.parametrize("older_than", [-1, "old", float("nan")])
def test_an_age_that_is_none_is_refused(older_than: Any) -> None:
    with pytest.raises(InvalidArgument, match="older_than"):
        admin.start_purge(older_than=older_than)


def test_a_rate_that_is_none_is_refused() -> None:
    operation = admin.start_operation("delete", JobFilter())

    with pytest.raises(InvalidArgument, match="rate"):
        operation.run(rate=0)


# --- the rate


class Clock:
    """Time that passes only by sleeping, or when something takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("rate", [0.5, 50, 1000])
def test_a_rate_is_kept_over_the_whole_run(rate: float) -> None:
    clock = Clock()
    pace = Pace(rate, clock.time, clock.sleep)

    for _ in range(100):
        pace.wait(pace.most_at_once)

    assert clock.now == pytest.approx(99 * pace.most_at_once / rate)


def test_what_was_held_up_is_not_made_up_for_in_a_burst() -> None:
    clock = Clock()
    pace = Pace(50, clock.time, clock.sleep)
    pace.wait(1)
    clock.now += 60
    passed = 0
    while clock.now < 60.9:
        pace.wait(1)
        passed += 1

    assert passed <= 50 + 5


def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    pace = Pace(None, clock.time, clock.sleep)

    for _ in range(100):
        pace.wait(10)

    assert clock.now == 0
