"""Section J of the checklist: `add_job`, with a new job and with one that is queued already."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Job, LimpydJobsException, Queue
from limpyd_jobs.utils import utcnow

from .support import (
    assert_filters_equal_hashes,
    assert_only_place,
    connection,
    counted_round_trips,
    dump,
    places,
    run_worker,
)


class AddingQueue(Queue):
    color = fields.InstanceHashField(indexable=True)


class AddingOtherQueue(Queue):
    pass


class AddingJob(Job):
    queue_model = AddingQueue
    queue_name = "adding"

    size = fields.InstanceHashField(indexable=True)
    tags = fields.SetField(indexable=True)
    notes = fields.StringField()


def later(seconds: float = 1000) -> Any:
    return utcnow() + timedelta(seconds=seconds)


def idents(*jobs: Any) -> list[str]:
    return [job.ident for job in jobs]


# --- The same identifier


@pytest.mark.parametrize("priority", [3, 2, 0, -1])
def test_j02_a_lower_or_equal_priority_changes_nothing(database: Any, priority: int) -> None:
    job = Job.add_job("a", "q", priority=3)
    before = dump()

    again = Job.add_job("a", "q", priority=priority)

    assert again.ident == job.ident
    assert dump() == before


def test_j02_a_discarded_job_creates_no_queue(database: Any) -> None:
    Job.add_job("a", "q", priority=3)

    Job.add_job("a", "elsewhere", priority=1)

    assert list(Queue.collection(name="elsewhere")) == []


def test_j03_a_higher_priority_moves_the_existing_job(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)

    again = Job.add_job("a", "q", priority=5)

    assert again.ident == job.ident
    assert job.priority.hget() == "5"
    assert_only_place(job, "waiting", Queue.get_queue("q", 5))
    assert_filters_equal_hashes(Job, "identifier", "status", "priority", "queued")


def test_j03_a_higher_priority_is_compared_as_a_number(database: Any) -> None:
    job = Job.add_job("a", "q", priority=9)

    Job.add_job("a", "q", priority=10)

    assert_only_place(job, "waiting", Queue.get_queue("q", 10))


def test_j03_a_moved_job_goes_to_the_end_of_the_list(database: Any) -> None:
    first = Job.add_job("first", "q", priority=5)
    job = Job.add_job("a", "q", priority=1)

    Job.add_job("a", "q", priority=5)

    assert Queue.get_queue("q", 5).waiting.lmembers() == idents(first, job)


def test_j03_a_moved_job_runs_once(database: Any) -> None:
    runs: list[str] = []
    Job.add_job("a", "q", priority=1)
    Job.add_job("a", "q", priority=5)
    Job.add_job("b", "q", priority=0)

    run_worker("q", loops=2, callback=lambda job, queue: runs.append(job.identifier.hget()))

    assert runs == ["a", "b"]


def test_j03_the_same_identifier_in_another_class_is_another_job(database: Any) -> None:
    job = Job.add_job("a", "adding")
    other = AddingJob.add_job("a", queue_model=Queue)

    assert other.ident != job.ident
    assert Queue.get_queue("adding").waiting.lmembers() == idents(job, other)


# --- Arguments


def test_j17_delayed_until_puts_the_job_in_the_delayed_set(database: Any) -> None:
    until = later()

    job = Job.add_job("a", "q", delayed_until=until)

    assert job.delayed_until.hget() == str(until)
    assert_only_place(job, "delayed", Queue.get_queue("q"))


def test_j49_the_positional_order_is_that_of_version_2(database: Any) -> None:
    """identifier, queue_name, priority, queue_model, prepend, delayed_for, delayed_until."""
    first = Job.add_job("first", "q", 2, AddingOtherQueue)
    job = Job.add_job("a", "q", 2, AddingOtherQueue, True)
    delayed = Job.add_job("b", "q", 2, AddingOtherQueue, False, 1000)
    until = later(2000)
    long_delayed = Job.add_job("c", "q", 2, AddingOtherQueue, False, None, until)

    queue = AddingOtherQueue.get_queue("q", 2)
    assert queue.waiting.lmembers() == idents(job, first)
    assert queue.delayed.zmembers() == idents(delayed, long_delayed)
    assert long_delayed.delayed_until.hget() == str(until)


def test_j49_all_arguments_may_be_named(database: Any) -> None:
    job = Job.add_job(
        identifier="a", queue_name="q", priority=2, queue_model=AddingOtherQueue, prepend=False, delayed_until=later()
    )

    assert_only_place(job, "delayed", AddingOtherQueue.get_queue("q", 2))


def test_j49_the_new_job_is_returned_as_its_own_class(database: Any) -> None:
    assert type(AddingJob.add_job("a")) is AddingJob
    assert type(AddingJob.add_job("a")) is AddingJob


def test_j49_a_priority_may_be_text(database: Any) -> None:
    job = Job.add_job("a", "q", priority="3")

    assert job.priority.hget() == "3"
    assert_only_place(job, "waiting", Queue.get_queue("q", 3))


def test_j50_without_a_queue_name_it_is_refused(database: Any) -> None:
    with pytest.raises(LimpydJobsException, match="Queue's name not defined"):
        Job.add_job("a")

    assert dump() == {}


def test_j51_the_queue_model_argument_wins(database: Any) -> None:
    job = AddingJob.add_job("a", queue_model=AddingOtherQueue)

    assert places(job, AddingQueue) == []
    assert_only_place(job, "waiting", AddingOtherQueue.get_queue("adding"))


def test_j51_the_queue_model_of_the_class_is_used_otherwise(database: Any) -> None:
    assert_only_place(AddingJob.add_job("a"), "waiting", AddingQueue.get_queue("adding"))


def test_j52_the_waiting_list_is_first_in_first_out(database: Any) -> None:
    order: list[str] = []
    jobs = [Job.add_job(name, "q") for name in "abc"]

    assert Queue.get_queue("q").waiting.lmembers() == idents(*jobs)
    run_worker("q", loops=3, callback=lambda job, queue: order.append(job.identifier.hget()))
    assert order == ["a", "b", "c"]


def test_j52_prepend_puts_a_new_job_first(database: Any) -> None:
    first = Job.add_job("first", "q")

    job = Job.add_job("a", "q", prepend=True)

    assert Queue.get_queue("q").waiting.lmembers() == idents(job, first)


def test_j53_prepend_moves_an_existing_job_to_the_beginning(database: Any) -> None:
    jobs = [Job.add_job(name, "q") for name in "abc"]

    again = Job.add_job("c", "q", prepend=True)

    assert again.ident == jobs[2].ident
    assert Queue.get_queue("q").waiting.lmembers() == idents(jobs[2], jobs[0], jobs[1])


def test_j53_j54_prepend_does_not_lower_the_priority(database: Any) -> None:
    first = Job.add_job("first", "q", priority=5)
    job = Job.add_job("a", "q", priority=5)

    Job.add_job("a", "q", prepend=True)

    assert job.priority.hget() == "5"
    assert Queue.get_queue("q", 5).waiting.lmembers() == idents(job, first)
    assert_only_place(job, "waiting", Queue.get_queue("q", 5))


def test_j54_prepend_raises_a_lower_priority(database: Any) -> None:
    first = Job.add_job("first", "q", priority=5)
    job = Job.add_job("a", "q", priority=1)

    Job.add_job("a", "q", priority=5, prepend=True)

    assert job.priority.hget() == "5"
    assert Queue.get_queue("q", 5).waiting.lmembers() == idents(job, first)


def test_j54_prepend_in_another_queue_name_keeps_the_priority(database: Any) -> None:
    job = Job.add_job("a", "q", priority=5)

    Job.add_job("a", "other", priority=1, prepend=True)

    assert job.priority.hget() == "5"
    assert_only_place(job, "waiting", Queue.get_queue("other", 5))


def test_j54_the_queue_that_keeps_the_priority_is_found_when_it_exists(database: Any) -> None:
    first = Job.add_job("first", "other", priority=5)
    job = Job.add_job("a", "q", priority=5)

    Job.add_job("a", "other", prepend=True)

    assert Queue.get_queue("other", 5).waiting.lmembers() == idents(job, first)


def test_j55_more_arguments_are_saved_on_a_new_job(database: Any) -> None:
    job = AddingJob.add_job("a", size=3, tags=["x", "y"], notes="hello")

    assert job.size.hget() == "3"
    assert job.tags.smembers() == {"x", "y"}
    assert job.notes.get() == "hello"
    assert list(AddingJob.collection(size=3, tags="x")) == [job.pk.get()]


def test_j55_more_arguments_are_ignored_for_an_existing_job(database: Any) -> None:
    job = AddingJob.add_job("a", size=3, tags=["x"])

    AddingJob.add_job("a", priority=4, size=9, tags=["z"], notes="late")

    assert job.size.hget() == "3"
    assert job.tags.smembers() == {"x"}
    assert job.notes.get() is None
    assert list(AddingJob.collection(size=9)) == []


def test_j55_fields_of_the_job_itself_are_saved_too(database: Any) -> None:
    assert Job.add_job("a", "q", cancel_on_error=1).cancel_on_error.hget() == "1"


@pytest.mark.parametrize("seconds", [-1000, -0.5, 0])
def test_j56_a_delay_that_is_over_means_at_once(database: Any, seconds: float) -> None:
    job = Job.add_job("a", "q", delayed_until=later(seconds))
    other = Job.add_job("b", "q", delayed_for=seconds)

    assert [found.status.hget() for found in (job, other)] == [STATUSES.WAITING] * 2
    assert not job.delayed_until.hget()
    assert Queue.get_queue("q").waiting.lmembers() == idents(job, other)
    assert Queue.get_queue("q").delayed.zcard() == 0


def test_j57_both_kinds_of_delay_are_refused(database: Any) -> None:
    with pytest.raises(ValueError, match="exclusive"):
        Job.add_job("a", "q", delayed_for=5, delayed_until=later())

    assert dump() == {}


@pytest.mark.parametrize(
    "arguments",
    [{"delayed_for": "5"}, {"delayed_for": True}, {"delayed_until": 5}, {"delayed_until": "2050-01-01"}],
)
def test_j57_a_delay_of_a_wrong_type_is_refused(database: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Job.add_job("a", "q", **arguments)

    assert dump() == {}


# --- One place only


def test_j58_a_delayed_job_that_is_raised_leaves_the_delayed_set(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1, delayed_for=1000)

    Job.add_job("a", "q", priority=5)

    assert job.status.hget() == STATUSES.WAITING
    assert not job.delayed_until.hget()
    assert_only_place(job, "waiting", Queue.get_queue("q", 5))


def test_j58_a_waiting_job_that_is_raised_and_delayed_leaves_the_waiting_list(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)

    Job.add_job("a", "q", priority=5, delayed_for=1000)

    assert job.status.hget() == STATUSES.DELAYED
    assert_only_place(job, "delayed", Queue.get_queue("q", 5))


def test_j58_a_delayed_job_stays_delayed_without_a_higher_priority(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1, delayed_for=1000)

    Job.add_job("a", "q", priority=1)

    assert_only_place(job, "delayed", Queue.get_queue("q", 1))


def test_j59_a_job_in_another_queue_name_is_moved(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)

    again = Job.add_job("a", "other", priority=5)

    assert again.ident == job.ident
    assert_only_place(job, "waiting", Queue.get_queue("other", 5))
    assert Queue.count_waiting_jobs("q") == 0


def test_j59_a_job_in_another_queue_name_is_not_duplicated(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)

    again = Job.add_job("a", "other", priority=1)

    assert again.ident == job.ident
    assert_only_place(job, "waiting", Queue.get_queue("q", 1))


def test_j59_a_job_in_the_queue_of_another_model_is_moved(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)

    Job.add_job("a", "q", priority=5, queue_model=AddingOtherQueue)

    assert places(job, Queue) == []
    assert_only_place(job, "waiting", AddingOtherQueue.get_queue("q", 5))


def test_j59_a_job_whose_place_is_not_written_down_is_moved_too(database: Any) -> None:
    """As version 2 leaves it: without `queue_key`, and found by the lists alone."""
    job = Job.add_job("a", "q", priority=1)
    connection().hdel("jobs:job:1:hash", "queue_key")

    Job.add_job("a", "other", priority=5)

    assert_only_place(job, "waiting", Queue.get_queue("other", 5))


def test_j59_a_job_whose_priority_was_written_by_hand_is_moved_too(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)
    job.priority.hset(3)
    connection().hdel("jobs:job:1:hash", "queue_key")

    Job.add_job("a", "other", priority=5)

    assert_only_place(job, "waiting", Queue.get_queue("other", 5))


def test_j59_a_canceled_job_that_is_raised_waits_again(database: Any) -> None:
    job = Job.add_job("a", "q", priority=1)
    job.status.hset(STATUSES.CANCELED)

    Job.add_job("a", "q", priority=5)

    assert job.status.hget() == STATUSES.WAITING
    assert_only_place(job, "waiting", Queue.get_queue("q", 5))


# --- Many with one identifier


def test_j_many_ended_jobs_of_one_identifier_do_not_hide_the_queued_one(database: Any) -> None:
    for _ in range(25):
        Job.add_job("nightly", "q")
        run_worker("q", callback=lambda job, queue: None)

    job = Job.add_job("nightly", "q")

    assert Job.add_job("nightly", "q", priority=2).ident == job.ident
    assert_only_place(job, "waiting", Queue.get_queue("q", 2))
    assert len(list(Job.collection(identifier="nightly"))) == 26


def test_j_many_threads_that_add_one_identifier_make_one_job(database: Any) -> None:
    barrier = threading.Barrier(16)
    added: list[str] = []

    def add(number: int) -> None:
        barrier.wait()
        added.append(Job.add_job("a", f"q{number % 3}", priority=number % 5, prepend=number % 2 == 0).ident)

    threads = [threading.Thread(target=add, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(added) == 16
    assert set(added) == {"limpyd_jobs.models.Job:1"}
    assert len(places(Job.get("1"))) == 1
    assert Job.get("1").priority.hget() == "4"


# --- One round trip


@pytest.fixture
def warm(database: Any) -> Any:
    """The scripts are loaded, and the connection is open."""
    Job.add_job("warm", "warm")
    AddingJob.add_job("warm", size=1)
    Job.add_job("warm later", "warm", delayed_for=1000)


def test_j_a_new_job_in_a_new_queue_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("a", "q", priority=3)

    assert len(sent) == 1


def test_j_a_new_job_in_an_existing_queue_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("a", "warm")

    assert len(sent) == 1


def test_j_a_delayed_job_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("a", "q", delayed_for=1000)

    assert len(sent) == 1


def test_j_an_existing_job_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("warm", "warm")

    assert len(sent) == 1


@pytest.mark.parametrize("arguments", [{"priority": 8}, {"prepend": True}, {"priority": 8, "delayed_for": 1000}])
def test_j_a_moved_job_costs_one_round_trip(warm: Any, monkeypatch: Any, arguments: dict[str, Any]) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("warm", "warm", **arguments)

    assert len(sent) == 1


def test_j_a_job_moved_to_a_new_queue_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("warm", "brand-new", priority=8)

    assert len(sent) == 1


def test_j_a_job_with_fields_of_its_own_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    with counted_round_trips(monkeypatch) as sent:
        AddingJob.add_job("a", "new-queue", size=3, tags=["x", "y"], notes="hello")

    assert len(sent) == 1


def test_j_an_existing_job_among_many_of_its_identifier_costs_one_round_trip(warm: Any, monkeypatch: Any) -> None:
    for _ in range(20):
        Job.add_job("nightly", "q")
        run_worker("q", callback=lambda job, queue: None)
    Job.add_job("nightly", "q")

    with counted_round_trips(monkeypatch) as sent:
        Job.add_job("nightly", "q", priority=4)

    assert len(sent) == 1
