"""Section Q of the checklist: the queues."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Job, Queue
from limpyd_jobs.exceptions import JobNotInStatus
from limpyd_jobs.utils import datetime_to_score, utcnow

from .support import (
    assert_filters_equal_hashes,
    assert_only_place,
    connection,
    counted_round_trips,
    dump,
    fail,
    failed_job,
    places,
    run_worker,
)

PAST = datetime(2001, 2, 3, 4, 5, 6)
IN_2050 = datetime(2050, 1, 2, 3, 4, 5, 678901)


class QueuesQueue(Queue):
    color = fields.InstanceHashField(indexable=True)
    labels = fields.SetField(indexable=True)


class QueuesJob(Job):
    """A class of which this process alone knows what it means."""


def idents(*jobs: Any) -> list[str]:
    return [job.ident for job in jobs]


def priorities_of(queues: Any) -> list[tuple[str, str]]:
    return [(queue.name.hget(), queue.priority.hget()) for queue in queues]


@pytest.fixture
def queue(database: Any) -> Any:
    return Queue.get_queue("q")


@pytest.fixture
def many_queues(database: Any) -> None:
    for name, priority in [("bar", 0), ("foo", 2), ("foo", 10), ("bar", 10), ("foo", -1), ("other", 50), ("foo", 9)]:
        Queue.get_queue(name, priority)


# --- Fields


def test_q01_many_queues_have_one_name(database: Any) -> None:
    queues = [Queue.get_queue("q", priority) for priority in (0, 1, 2)]
    Queue.get_queue("r")

    assert set(Queue.collection(name="q")) == {queue.pk.get() for queue in queues}
    assert {queue.name.hget() for queue in queues} == {"q"}


def test_q02_the_priority_is_indexed_and_0_by_default(database: Any) -> None:
    queue = Queue(name="q")

    assert queue.priority.hget() == "0"
    assert list(Queue.collection(priority=0)) == [queue.pk.get()]


def test_q03_jobs_enter_at_the_right_and_leave_from_the_left(queue: Any) -> None:
    jobs = [Job.add_job(name, "q") for name in "abc"]
    assert connection().lrange(queue.waiting.key, 0, -1) == idents(*jobs)

    run_worker("q", callback=lambda job, queue: None)

    assert queue.waiting.lmembers() == idents(*jobs[1:])


def test_q03_an_ident_pushed_by_another_program_is_run(queue: Any) -> None:
    job = Job(identifier="a", status=STATUSES.WAITING)

    queue.waiting.rpush(job.ident)
    run_worker("q", callback=lambda job, queue: None)

    assert job.status.hget() == STATUSES.SUCCESS
    assert queue.success.lmembers() == [job.ident]


def test_q04_after_its_execution_a_job_is_in_success_or_errors(queue: Any) -> None:
    good, bad = Job.add_job("good", "q"), Job.add_job("bad", "q")

    run_worker("q", loops=2, callback=lambda job, queue: job.identifier.hget() == "bad" and fail())

    assert queue.waiting.lmembers() == []
    assert queue.success.lmembers() == [good.ident]
    assert queue.errors.lmembers() == [bad.ident]


def test_q04_errors_may_be_read_as_error_too(queue: Any) -> None:
    job = failed_job()

    assert queue.error.lmembers() == queue.errors.lmembers() == [job.ident]


@pytest.mark.parametrize("status", ["c", "s", "e"])
def test_q05_a_waiting_entry_in_another_status_is_skipped(queue: Any, status: str) -> None:
    runs: list[str] = []
    job = Job.add_job("a", "q")
    Job.add_job("b", "q")
    job.status.hset(status)

    run_worker("q", loops=2, callback=lambda job, queue: runs.append(job.identifier.hget()))

    assert runs == ["b"]
    assert job.status.hget() == status


def test_q06_success_is_in_the_order_of_the_ends(queue: Any) -> None:
    jobs = [Job.add_job(name, "q") for name in "abc"]

    run_worker("q", loops=3, callback=lambda job, queue: None)

    assert queue.success.lmembers() == idents(*jobs)


def test_q07_errors_is_in_the_order_of_the_ends(queue: Any) -> None:
    jobs = [Job.add_job(name, "q") for name in "abc"]

    run_worker("q", loops=3, callback=fail)

    assert queue.errors.lmembers() == idents(*jobs)


def test_q08_q09_the_score_of_a_delayed_job_is_its_utc_timestamp(queue: Any) -> None:
    job = Job.add_job("a", "q", delayed_until=IN_2050)

    # 2050-01-02 03:04:05 UTC, as `date --utc +%s` has it
    assert queue.delayed.zscore(job.ident) == pytest.approx(2524705445.678901, abs=1e-5)


# --- Delayed


def test_q10_first_delayed_is_none_when_nothing_is_delayed(queue: Any) -> None:
    assert queue.first_delayed is None


def test_q10_first_delayed_is_the_ident_and_score_of_the_first_to_be_due(queue: Any) -> None:
    Job.add_job("late", "q", delayed_until=IN_2050 + timedelta(seconds=1))
    first = Job.add_job("first", "q", delayed_until=IN_2050)

    assert queue.first_delayed == (first.ident, pytest.approx(datetime_to_score(IN_2050), abs=1e-5))
    assert isinstance(queue.first_delayed, tuple)


def test_q11_first_delayed_time_is_its_score(queue: Any) -> None:
    assert queue.first_delayed_time is None

    Job.add_job("a", "q", delayed_until=IN_2050)

    assert queue.first_delayed_time == pytest.approx(datetime_to_score(IN_2050), abs=1e-5)


def test_q12_delay_job_puts_a_job_in_the_delayed_set(queue: Any) -> None:
    job = Job.add_job("a", "q")

    queue.delay_job(job, IN_2050)

    assert queue.delayed.zscore(job.ident) == pytest.approx(datetime_to_score(IN_2050), abs=1e-5)
    assert_only_place(job, "delayed", queue)
    assert job.hmget("status", "delayed_until") == [STATUSES.DELAYED, str(IN_2050)]


def test_q12_delay_job_moves_a_job_from_another_queue(queue: Any) -> None:
    job = Job.add_job("a", "other", delayed_for=1000)

    queue.delay_job(job, IN_2050)

    assert_only_place(job, "delayed", queue)


def test_q13_enqueue_job_puts_a_job_at_the_end(queue: Any) -> None:
    first = Job.add_job("first", "q")
    job = Job.add_job("a", "q", delayed_for=1000)

    queue.enqueue_job(job)

    assert queue.waiting.lmembers() == idents(first, job)
    assert_only_place(job, "waiting", queue)
    assert job.status.hget() == STATUSES.WAITING


@pytest.mark.parametrize("how", ["positional", "named"])
def test_q13_enqueue_job_puts_a_job_at_the_start(queue: Any, how: str) -> None:
    first = Job.add_job("first", "q")
    job = Job.add_job("a", "q")

    if how == "positional":
        queue.enqueue_job(job, True)
    else:
        queue.enqueue_job(job=job, prepend=True)

    assert queue.waiting.lmembers() == idents(job, first)


def test_q13_enqueue_job_twice_is_one_entry(queue: Any) -> None:
    job = Job.add_job("a", "q")

    queue.enqueue_job(job)
    queue.enqueue_job(job)

    assert_only_place(job, "waiting", queue)


def test_q12_q13_a_running_job_is_refused(queue: Any) -> None:
    refused: list[str] = []

    def place_it(running: Any, _: Any) -> None:
        same, before = Job.get(running.pk.get()), dump()
        for place in (lambda: queue.enqueue_job(same), lambda: queue.delay_job(same, IN_2050)):
            with pytest.raises(JobNotInStatus):
                place()
            refused.append(same.ident)
        assert dump() == before

    job = Job.add_job("a", "q")
    run_worker("q", callback=place_it)

    assert len(refused) == 2
    assert job.status.hget() == STATUSES.SUCCESS


def test_q12_q13_a_queue_that_was_deleted_does_not_exist(queue: Any) -> None:
    job = Job.add_job("a", "r")
    same = Queue.get(queue.pk.get())
    queue.delete()

    for place in (lambda: same.enqueue_job(job), lambda: same.delay_job(job, IN_2050)):
        with pytest.raises(DoesNotExist):
            place()

    assert_only_place(job, "waiting", Queue.get_queue("r"))


# --- Delayed jobs that are due


def test_q14_due_jobs_are_put_in_the_waiting_list_and_no_others(queue: Any) -> None:
    due, other_due, future = (Job.add_job(name, "q") for name in ("due", "other", "future"))
    queue.delay_job(due, PAST + timedelta(seconds=1))
    queue.delay_job(other_due, PAST)
    queue.delay_job(future, IN_2050)

    queue.requeue_delayed_jobs()

    assert queue.waiting.lmembers() == idents(other_due, due)
    assert queue.delayed.zmembers() == [future.ident]
    assert due.hmget("status", "queued") == [STATUSES.WAITING, "1"]
    assert future.status.hget() == STATUSES.DELAYED
    assert_filters_equal_hashes(Job, "status", "queued", "priority")


def test_q14_all_due_jobs_are_moved_however_many(queue: Any) -> None:
    jobs = [Job.add_job(str(number), "q") for number in range(250)]
    for number, job in enumerate(jobs):
        queue.delay_job(job, PAST + timedelta(seconds=number))

    assert queue.requeue_delayed_jobs() == []

    assert queue.waiting.lmembers() == idents(*jobs)
    assert queue.delayed.zcard() == 0


def test_q14_a_due_job_is_run_by_a_worker(queue: Any) -> None:
    job = Job.add_job("a", "q")
    queue.delay_job(job, utcnow() + timedelta(seconds=0.3))

    run_worker("q", callback=lambda job, queue: None)

    assert job.status.hget() == STATUSES.SUCCESS


def test_q15_without_failures_the_list_is_empty(queue: Any) -> None:
    assert queue.requeue_delayed_jobs() == []

    queue.delay_job(Job.add_job("a", "q"), PAST)

    assert queue.requeue_delayed_jobs() == []


def test_q15_failures_are_idents_with_their_messages(queue: Any) -> None:
    good, gone = Job.add_job("good", "q"), Job.add_job("gone", "q")
    queue.delay_job(good, PAST)
    queue.delay_job(gone, PAST)
    gone_ident = gone.ident
    gone.delete()

    failures = queue.requeue_delayed_jobs()

    assert failures == [(gone_ident, "No Job found with pk 2")]
    assert queue.waiting.lmembers() == [good.ident]
    assert queue.delayed.zcard() == 0


def test_q15_an_ident_of_an_unknown_class_is_a_failure_and_stops_nothing(queue: Any) -> None:
    job = Job.add_job("a", "q")
    queue.delay_job(job, PAST)
    queue.delayed.zadd({"no.such.module.Job:1": 5, "rubbish": 6})

    failures = dict(queue.requeue_delayed_jobs())

    assert set(failures) == {"no.such.module.Job:1", "rubbish"}
    assert "no.such.module" in failures["no.such.module.Job:1"] or "No module" in failures["no.such.module.Job:1"]
    assert job.status.hget() == STATUSES.WAITING
    assert job.ident in queue.waiting.lmembers()


def test_q15_a_class_that_no_registry_knows_is_found(queue: Any) -> None:
    """As version 2 leaves it: idents of classes that never were written down."""
    job = QueuesJob(identifier="a", status=STATUSES.DELAYED, delayed_until=str(PAST), queued=1)
    queue.delayed.zadd({job.ident: datetime_to_score(PAST)})

    assert queue.requeue_delayed_jobs() == []

    assert job.status.hget() == STATUSES.WAITING
    assert queue.waiting.lmembers() == [job.ident]


def test_q16_a_canceled_job_stays_canceled(queue: Any) -> None:
    job = Job.add_job("a", "q")
    queue.delay_job(job, PAST)
    job.status.hset(STATUSES.CANCELED)

    queue.requeue_delayed_jobs()

    assert job.status.hget() == STATUSES.CANCELED
    assert queue.waiting.lmembers() == [job.ident]


def test_q16_a_canceled_job_that_became_due_is_skipped(queue: Any) -> None:
    runs: list[Any] = []
    job = Job.add_job("a", "q")
    queue.delay_job(job, PAST)
    job.status.hset(STATUSES.CANCELED)

    run_worker("q", callback=lambda job, queue: runs.append(job))

    assert runs == []
    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]
    assert places(job) == []


def test_q17_while_the_lock_of_version_2_is_held_nothing_is_moved(queue: Any) -> None:
    job = Job.add_job("a", "q")
    queue.delay_job(job, PAST)
    connection().set("jobs:queue:1:requeue_all_delayed_ready_jobs", "1", ex=60)

    assert queue.requeue_delayed_jobs() == []
    assert_only_place(job, "delayed", queue)

    connection().delete("jobs:queue:1:requeue_all_delayed_ready_jobs")
    assert queue.requeue_delayed_jobs() == []
    assert_only_place(job, "waiting", queue)


# --- Finding


def test_q18_get_queue_creates_a_queue_once(database: Any) -> None:
    queue = Queue.get_queue("q", 3)

    again = Queue.get_queue("q", 3)

    assert again.pk.get() == queue.pk.get()
    assert queue.hmget("name", "priority") == ["q", "3"]
    assert list(Queue.collection(name="q", priority=3)) == [queue.pk.get()]


def test_q18_the_priority_is_0_by_default(database: Any) -> None:
    assert (
        Queue.get_queue("q").pk.get()
        == Queue.get_queue("q", 0).pk.get()
        == Queue.get_queue(name="q", priority="0").pk.get()
    )


def test_q18_each_name_and_priority_is_a_queue(database: Any) -> None:
    queues = [Queue.get_queue(name, priority) for name in ("q", "r") for priority in (0, 1, -1)]

    assert len({queue.pk.get() for queue in queues}) == 6


def test_q18_a_queue_made_by_plain_limpyd_is_found(database: Any) -> None:
    queue = Queue(name="q", priority=4)

    assert Queue.get_queue("q", 4).pk.get() == queue.pk.get()


def test_q18_of_two_queues_that_other_programs_made_the_first_is_found(database: Any) -> None:
    """Two processes of version 2 can do that."""
    pks = [Queue(name="q", priority=4).pk.get() for _ in range(12)]

    assert Queue.get_queue("q", 4).pk.get() == pks[0]
    assert_only_place(Job.add_job("a", "q", 4), "waiting", Queue.get(pks[0]))


def test_q18_a_queue_that_was_renamed_is_no_longer_found(database: Any) -> None:
    queue = Queue.get_queue("q", 4)
    queue.name.hset("renamed")

    assert Queue.get_queue("q", 4).pk.get() != queue.pk.get()
    assert Queue.get_queue("renamed", 4).pk.get() == queue.pk.get()


def test_q18_a_queue_that_was_deleted_is_created_anew(database: Any) -> None:
    queue = Queue.get_queue("q", 4)
    queue.delete()

    again = Queue.get_queue("q", 4)

    assert again.name.hget() == "q"
    assert list(Queue.collection()) == [again.pk.get()]


def test_q18_get_queue_costs_one_round_trip(database: Any, monkeypatch: Any) -> None:
    Queue.get_queue("warm")

    with counted_round_trips(monkeypatch) as sent:
        Queue.get_queue("q")
        Queue.get_queue("q")

    assert len(sent) == 2


def test_q19_more_arguments_are_saved_for_a_new_queue(database: Any) -> None:
    queue = QueuesQueue.get_queue("q", 1, color="red", labels=["x", "y"])

    assert queue.color.hget() == "red"
    assert queue.labels.smembers() == {"x", "y"}
    assert list(QueuesQueue.collection(color="red", labels="y")) == [queue.pk.get()]


def test_q19_more_arguments_are_ignored_for_an_existing_queue(database: Any) -> None:
    queue = QueuesQueue.get_queue("q", 1, color="red")

    QueuesQueue.get_queue("q", 1, color="blue", labels=["z"])

    assert queue.color.hget() == "red"
    assert queue.labels.smembers() == set()
    assert list(QueuesQueue.collection(color="blue")) == []


def test_q20_waiting_keys_are_by_priority_then_by_the_order_of_the_names(many_queues: None) -> None:
    keys = Queue.get_waiting_keys(["foo", "bar"])

    expected = [("foo", 10), ("bar", 10), ("foo", 9), ("foo", 2), ("bar", 0), ("foo", -1)]
    assert keys == [Queue.get_queue(name, priority).waiting.key for name, priority in expected]
    assert Queue.get_waiting_keys(["bar", "foo"])[:2] == [keys[1], keys[0]]


def test_q20_waiting_keys_of_one_name(many_queues: None) -> None:
    expected = [Queue.get_queue("bar", priority).waiting.key for priority in (10, 0)]

    assert (
        Queue.get_waiting_keys("bar") == Queue.get_waiting_keys(["bar"]) == Queue.get_waiting_keys(("bar",)) == expected
    )


def test_q20_waiting_keys_are_empty_when_no_queue_exists(many_queues: None) -> None:
    assert Queue.get_waiting_keys("nothing") == Queue.get_waiting_keys(["nothing", "neither"]) == []
    assert Queue.get_waiting_keys([]) == []


def test_q21_waiting_jobs_are_counted_over_all_priorities(database: Any) -> None:
    for number in range(5):
        Job.add_job(f"a{number}", "q", priority=number % 2)
    Job.add_job("b", "r")
    Job.add_job("c", "r", delayed_for=1000)
    Job.add_job("d", "s")

    assert Queue.count_waiting_jobs("q") == 5
    assert Queue.count_waiting_jobs(["q", "r"]) == 6
    assert Queue.count_waiting_jobs("nothing") == 0


def test_q22_delayed_jobs_are_counted_over_all_priorities(database: Any) -> None:
    for number in range(5):
        Job.add_job(f"a{number}", "q", priority=number % 2, delayed_for=1000)
    Job.add_job("b", "r", delayed_for=1000)
    Job.add_job("c", "r")

    assert Queue.count_delayed_jobs("q") == 5
    assert Queue.count_delayed_jobs(["q", "r"]) == 6
    assert Queue.count_delayed_jobs("nothing") == 0


def test_q23_get_all_is_a_list_of_the_queues_with_the_names(many_queues: None) -> None:
    queues = Queue.get_all(["foo", "bar"])

    assert isinstance(queues, list)
    assert all(isinstance(queue, Queue) for queue in queues)
    assert len(queues) == 6
    assert {queue.name.hget() for queue in queues} == {"foo", "bar"}
    assert len(Queue.get_all("foo")) == 4
    assert Queue.get_all("nothing") == []


def test_q24_get_all_by_priority_is_the_same_highest_first(many_queues: None) -> None:
    queues = Queue.get_all_by_priority(["foo", "bar"])

    assert priorities_of(queues) == [
        ("foo", "10"),
        ("bar", "10"),
        ("foo", "9"),
        ("foo", "2"),
        ("bar", "0"),
        ("foo", "-1"),
    ]
    assert priorities_of(Queue.get_all_by_priority("bar")) == [("bar", "10"), ("bar", "0")]


def test_q23_queues_of_a_subclass_are_of_the_subclass(database: Any) -> None:
    QueuesQueue.get_queue("q")

    assert [type(queue) for queue in QueuesQueue.get_all("q")] == [QueuesQueue]
    assert Queue.get_all("q") == []


# --- Order of the work


def test_q25_all_jobs_of_a_higher_priority_come_first(database: Any) -> None:
    order: list[str] = []
    for number in range(6):
        Job.add_job(f"{number}", "q", priority=number % 3)

    run_worker("q", loops=6, callback=lambda job, queue: order.append(queue.priority.hget()))

    assert order == ["2", "2", "1", "1", "0", "0"]


def test_q25_a_job_of_a_higher_priority_added_meanwhile_is_next(database: Any) -> None:
    order: list[str] = []

    def note(job: Any, queue: Any) -> None:
        order.append(job.identifier.hget())
        if len(order) == 1:
            Job.add_job("urgent", "q", priority=99)

    Job.add_job("a", "q")
    Job.add_job("b", "q")
    run_worker("q", loops=3, callback=note)

    assert order == ["a", "urgent", "b"]


def test_q25_equal_priorities_are_taken_in_the_order_of_the_names(database: Any) -> None:
    order: list[str] = []
    for name in ("alpha", "zulu"):
        Job.add_job(name, name)
    Job.add_job("first", "alpha", priority=1)

    run_worker(["zulu", "alpha"], loops=3, callback=lambda job, queue: order.append(job.identifier.hget()))

    assert order == ["first", "zulu", "alpha"]


def test_q26_priorities_compare_as_numbers(database: Any) -> None:
    order: list[str] = []
    for priority in (9, -1, 10, 2, 0, -10, 100, 2**53, -(2**53)):
        Job.add_job(f"{priority}", "q", priority=priority)

    run_worker("q", loops=9, callback=lambda job, queue: order.append(queue.priority.hget()))

    assert order == [str(2**53), "100", "10", "9", "2", "0", "-1", "-10", str(-(2**53))]
    assert [queue.priority.hget() for queue in Queue.get_all_by_priority("q")] == order
