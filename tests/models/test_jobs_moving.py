"""Section J of the checklist: `requeue` and `enqueue_or_delay`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, ConfigurationException, Job, LimpydJobsException, Queue
from limpyd_jobs.exceptions import JobNotInStatus
from limpyd_jobs.utils import parse_datetime, utcnow

from .support import (
    assert_filters_equal_hashes,
    assert_only_place,
    counted_round_trips,
    dump,
    failed_job,
    places,
    run_worker,
)

IN_2050 = datetime(2050, 1, 2, 3, 4, 5, 678901)


class MovingQueue(Queue):
    pass


class MovingNamedJob(Job):
    queue_name = "moving"
    queue_model = MovingQueue


def idents(*jobs: Any) -> list[str]:
    return [job.ident for job in jobs]


# --- requeue


def test_j31_a_failed_job_is_put_back(database: Any) -> None:
    job = failed_job()

    job.requeue("q")

    assert job.status.hget() == STATUSES.WAITING
    assert job.queued.hget() == "1"
    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j31_a_requeued_job_runs_again(database: Any) -> None:
    job = failed_job()

    job.requeue("q")
    run_worker("q", callback=lambda job, queue: None)

    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "2"]


def test_j31_the_positional_order_is_that_of_version_2(database: Any) -> None:
    """queue_name, priority, delayed_for, delayed_until, queue_model."""
    job = failed_job()
    other = failed_job(identifier="b")

    job.requeue("r", 4, 1000, None, MovingQueue)
    other.requeue("r", 4, None, IN_2050, MovingQueue)

    assert MovingQueue.get_queue("r", 4).delayed.zmembers() == idents(job, other)
    assert other.delayed_until.hget() == str(IN_2050)


def test_j31_the_errors_of_the_queue_stay_a_history(database: Any) -> None:
    job = failed_job()

    job.requeue("q")

    assert Queue.get_queue("q").errors.lmembers() == [job.ident]


def test_j32_without_a_queue_name_it_is_refused(database: Any) -> None:
    job = failed_job()
    before = dump()

    with pytest.raises(LimpydJobsException, match="Queue's name not defined"):
        job.requeue()

    assert dump() == before


def test_j32_the_queue_name_of_the_class_is_used(database: Any) -> None:
    job = failed_job(MovingNamedJob, queue_name="q", queue_model=Queue)

    job.requeue()

    assert_only_place(job, "waiting", MovingQueue.get_queue("moving"))


def test_j33_the_priority_is_kept(database: Any) -> None:
    job = failed_job(priority=7)

    job.requeue("q")

    assert job.priority.hget() == "7"
    assert_only_place(job, "waiting", Queue.get_queue("q", 7))


def test_j33_the_priority_is_kept_in_a_queue_that_did_not_exist(database: Any) -> None:
    job = failed_job(priority=7)

    job.requeue("brand-new")

    assert_only_place(job, "waiting", Queue.get_queue("brand-new", 7))


@pytest.mark.parametrize("priority", [9, 2, 0, -3])
def test_j33_a_given_priority_is_the_new_one(database: Any, priority: int) -> None:
    job = failed_job(priority=7)

    job.requeue("q", priority=priority)

    assert job.priority.hget() == str(priority)
    assert_only_place(job, "waiting", Queue.get_queue("q", priority))
    assert_filters_equal_hashes(Job, "status", "priority", "queued")


def test_j34_delayed_until_delays_it(database: Any) -> None:
    job = failed_job()

    job.requeue("q", delayed_until=IN_2050)

    assert job.hmget("status", "delayed_until", "queued") == [STATUSES.DELAYED, str(IN_2050), "1"]
    assert_only_place(job, "delayed", Queue.get_queue("q"))


@pytest.mark.parametrize("duration", [1000, 1000.5, timedelta(seconds=1000)])
def test_j34_delayed_for_delays_it(database: Any, duration: Any) -> None:
    delta = duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
    job = failed_job()
    before = utcnow()

    job.requeue("q", delayed_for=duration)

    margin = timedelta(seconds=1)
    assert before + delta - margin <= parse_datetime(job.delayed_until.hget()) <= utcnow() + delta + margin
    assert_only_place(job, "delayed", Queue.get_queue("q"))


@pytest.mark.parametrize(
    "arguments", [{"delayed_for": 0}, {"delayed_for": -5}, {"delayed_until": datetime(2001, 1, 1)}]
)
def test_j34_a_delay_that_is_over_means_at_once(database: Any, arguments: dict[str, Any]) -> None:
    job = failed_job()

    job.requeue("q", **arguments)

    assert job.status.hget() == STATUSES.WAITING
    assert not job.delayed_until.hget()
    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j34_both_kinds_of_delay_are_refused(database: Any) -> None:
    job = failed_job()
    before = dump()

    with pytest.raises(ValueError, match="exclusive"):
        job.requeue("q", delayed_for=5, delayed_until=IN_2050)

    assert dump() == before


def test_j35_the_queue_model_argument_wins(database: Any) -> None:
    job = failed_job()

    job.requeue("q", queue_model=MovingQueue)

    assert_only_place(job, "waiting", MovingQueue.get_queue("q"))


def test_j36_start_and_end_are_cleared(database: Any) -> None:
    job = failed_job()

    job.requeue("q")

    assert job.hmget("start", "end") == [None, None]
    assert job.duration is None


@pytest.mark.parametrize("status", [status for status in STATUSES.values() if status != STATUSES.ERROR])
def test_j36_a_job_that_is_not_in_error_is_refused(database: Any, status: str) -> None:
    job = failed_job()
    job.status.hset(status)
    before = dump()

    with pytest.raises(JobNotInStatus) as caught:
        job.requeue("q")

    assert isinstance(caught.value, LimpydJobsException)
    assert (caught.value.ident, caught.value.status) == (job.ident, status)
    assert dump() == before


def test_j36_a_waiting_job_on_which_somebody_wrote_error_stays_in_one_place(database: Any) -> None:
    job = Job.add_job("a", "q")
    job.status.hset(STATUSES.ERROR)

    job.requeue("q", priority=3)

    assert_only_place(job, "waiting", Queue.get_queue("q", 3))


def test_j36_a_job_that_was_deleted_does_not_exist(database: Any) -> None:
    job = failed_job()
    same = Job.get(job.pk.get())
    job.delete()

    with pytest.raises(DoesNotExist):
        same.requeue("q")


def test_j31_a_requeue_costs_one_round_trip(database: Any, monkeypatch: Any) -> None:
    failed_job(identifier="warm", queue_name="warm").requeue("warm")
    job = failed_job()

    with counted_round_trips(monkeypatch) as sent:
        job.requeue("q", priority=4, delayed_for=100)

    assert len(sent) == 1


# --- enqueue_or_delay


@pytest.fixture
def job(database: Any) -> Any:
    return Job.add_job("a", "q", priority=2)


def test_j37_in_the_future_it_is_delayed(job: Any) -> None:
    job.enqueue_or_delay("q", delayed_until=IN_2050)

    assert job.hmget("status", "delayed_until") == [STATUSES.DELAYED, str(IN_2050)]
    assert_only_place(job, "delayed", Queue.get_queue("q", 2))


@pytest.mark.parametrize("until", [None, datetime(2001, 1, 1), "2001-01-01 00:00:00", ""])
def test_j37_otherwise_it_waits(database: Any, until: Any) -> None:
    job = Job.add_job("a", "q", delayed_for=1000)

    job.enqueue_or_delay("q", delayed_until=until)

    assert job.status.hget() == STATUSES.WAITING
    assert not job.delayed_until.hget()
    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j37_the_positional_order_is_that_of_version_2(database: Any) -> None:
    """queue_name, priority, delayed_until, prepend, queue_model."""
    first = Job.add_job("first", "r", 5, queue_model=MovingQueue)
    job = Job.add_job("a", "q")
    delayed = Job.add_job("b", "q")

    job.enqueue_or_delay("r", 5, None, True, MovingQueue)
    delayed.enqueue_or_delay("r", 5, IN_2050, False, MovingQueue)

    assert MovingQueue.get_queue("r", 5).waiting.lmembers() == idents(job, first)
    assert_only_place(delayed, "delayed", MovingQueue.get_queue("r", 5))


def test_j37_it_leaves_its_former_place(job: Any) -> None:
    job.enqueue_or_delay("r", priority=3)
    job.enqueue_or_delay("q", priority=1, delayed_until=IN_2050)
    job.enqueue_or_delay("r")

    assert job.priority.hget() == "1"
    assert_only_place(job, "waiting", Queue.get_queue("r", 1))


def test_j37_a_job_made_by_plain_limpyd_can_be_enqueued(database: Any) -> None:
    job = Job(identifier="a", status=STATUSES.WAITING, priority=4)

    job.enqueue_or_delay("q")

    assert job.hmget("status", "queued") == [STATUSES.WAITING, "1"]
    assert_only_place(job, "waiting", Queue.get_queue("q", 4))
    run_worker("q", callback=lambda job, queue: None)
    assert job.status.hget() == STATUSES.SUCCESS


def test_j37_a_running_job_is_refused_to_others(job: Any) -> None:
    errors: list[Exception] = []

    def move_it(running: Any, queue: Any) -> None:
        before = dump()
        try:
            Job.get(running.pk.get()).enqueue_or_delay("q")
        except JobNotInStatus as error:
            errors.append(error)
        assert dump() == before

    run_worker("q", callback=move_it)

    assert len(errors) == 1
    assert job.status.hget() == STATUSES.SUCCESS


def test_j38_queued_is_set(database: Any) -> None:
    job = failed_job()
    assert job.queued.hget() is None

    job.enqueue_or_delay("q")

    assert job.queued.hget() == "1"
    assert list(Job.collection(queued=1)) == [job.pk.get()]


def test_j39_without_a_queue_name_it_is_refused(job: Any) -> None:
    before = dump()

    with pytest.raises(LimpydJobsException, match="Queue's name not defined"):
        job.enqueue_or_delay()

    assert dump() == before


def test_j39_the_priority_is_kept(job: Any) -> None:
    job.enqueue_or_delay("brand-new")

    assert_only_place(job, "waiting", Queue.get_queue("brand-new", 2))


def test_j39_a_given_priority_is_written(job: Any) -> None:
    job.enqueue_or_delay("q", priority=0)

    assert job.priority.hget() == "0"
    assert_only_place(job, "waiting", Queue.get_queue("q", 0))


@pytest.mark.parametrize("text", ["2050-01-02 03:04:05.678901", "2050-01-02T03:04:05.678901"])
def test_j40_delayed_until_may_be_text(job: Any, text: str) -> None:
    job.enqueue_or_delay("q", delayed_until=text)

    assert job.delayed_until.hget() == str(IN_2050)
    assert_only_place(job, "delayed", Queue.get_queue("q", 2))


def test_j41_prepend_puts_it_first(job: Any) -> None:
    other = Job.add_job("b", "q", priority=2)

    other.enqueue_or_delay("q", prepend=True)

    assert Queue.get_queue("q", 2).waiting.lmembers() == idents(other, job)


def test_j41_prepend_does_nothing_for_a_delayed_job(job: Any) -> None:
    job.enqueue_or_delay("q", delayed_until=IN_2050, prepend=True)

    assert_only_place(job, "delayed", Queue.get_queue("q", 2))


def test_j_ended_jobs_are_in_no_place(database: Any) -> None:
    job = failed_job()
    other = Job.add_job("b", "q")
    run_worker("q", callback=lambda job, queue: None)

    assert places(job) == places(other) == []
    queue = Queue.get_queue("q")
    assert (queue.success.lmembers(), queue.errors.lmembers()) == ([other.ident], [job.ident])


def test_j_a_job_that_delays_itself_in_another_queue_stays_there(database: Any) -> None:
    job = Job.add_job("a", "q")

    run_worker("q", callback=lambda running, queue: running.enqueue_or_delay("r", delayed_until=IN_2050))

    assert job.status.hget() == STATUSES.DELAYED
    assert_only_place(job, "delayed", Queue.get_queue("r"))


def test_j_a_job_that_enqueues_itself_again_waits_there(database: Any) -> None:
    job = Job.add_job("a", "q")

    run_worker("q", callback=lambda running, queue: running.enqueue_or_delay("r"))

    assert job.hmget("status", "queued") == [STATUSES.WAITING, "1"]
    assert_only_place(job, "waiting", Queue.get_queue("r"))


def test_j_a_job_that_enqueues_itself_and_fails_is_in_one_place(database: Any) -> None:
    def move_and_fail(running: Any, queue: Any) -> None:
        running.enqueue_or_delay("r")
        raise ValueError

    job = Job.add_job("a", "q")

    run_worker("q", callback=move_and_fail, requeue_times=2, requeue_delay_delta=0)

    assert job.queued.hget() == "1"
    assert [kind for kind, _ in places(job)] == ["waiting"]


def test_j_a_failure_of_a_job_that_cannot_be_saved_as_text_is_recorded(database: Any) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail_without_words(job: Any, queue: Any) -> None:
        raise Unspeakable

    job = Job.add_job("a", "q")
    run_worker("q", callback=fail_without_words)

    assert job.status.hget() == STATUSES.ERROR


# --- A queue model that makes other queues than it is asked for


class LowQueue(Queue):
    """Knows its queues in lower case only."""

    @classmethod
    def get_queue(cls, name: str, priority: Any = 0, **fields_if_new: Any) -> Any:
        return super().get_queue(name.lower(), priority, **fields_if_new)


@pytest.mark.parametrize("put", [Job.requeue, Job.enqueue_or_delay])
def test_a_queue_that_a_get_queue_never_makes_is_named_and_nothing_is_written(
    database: Any, monkeypatch: Any, put: Callable[..., None]
) -> None:
    job = failed_job(priority=3)
    LowQueue.get_queue("mail", 3)
    before = dump()

    with (
        counted_round_trips(monkeypatch) as sent,
        pytest.raises(ConfigurationException, match=r"LowQueue\.get_queue\('MAIL', 3\)"),
    ):
        put(job, queue_name="MAIL", queue_model=LowQueue)

    assert len(sent) < 10
    assert dump() == before


def test_a_queued_job_stays_where_it_is_when_a_get_queue_never_makes_its_new_queue(
    database: Any, monkeypatch: Any
) -> None:
    job = Job.add_job("a", "q", 3)
    LowQueue.get_queue("mail", 3)
    before = dump()

    with counted_round_trips(monkeypatch) as sent, pytest.raises(ConfigurationException, match="MAIL"):
        Job.add_job("a", "MAIL", 1, prepend=True, queue_model=LowQueue)

    assert len(sent) < 10
    assert dump() == before
    assert_only_place(job, "waiting", Queue.get_queue("q", 3))


def test_a_get_queue_that_makes_the_queue_it_is_asked_for_may_do_it_in_its_own_way(database: Any) -> None:
    job = failed_job(priority=3)

    job.requeue(queue_name="mail", queue_model=LowQueue)

    assert_only_place(job, "waiting", LowQueue.get_queue("MAIL", 3))
