"""Section J of the checklist: the fields, attributes and properties of a job."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Error, Job, LimpydJobsException, Queue
from limpyd_jobs.exceptions import JobClassError
from limpyd_jobs.utils import parse_datetime, utcnow

from .support import (
    LONG_AGO,
    assert_filters_equal_hashes,
    assert_indexes_as_rebuilt,
    assert_only_place,
    fail,
    failed_job,
    places,
    run_worker,
)


class JobsQueue(Queue):
    pass


class JobsNamedJob(Job):
    queue_name = "named"
    queue_model = JobsQueue


class JobsNeverRequeuedJob(Job):
    always_cancel_on_error = True


class JobsExtraJob(Job):
    size = fields.InstanceHashField(indexable=True)


class Outer:
    class JobsNestedJob(Job):
        pass


@pytest.fixture
def job(database: Any) -> Any:
    return Job.add_job("a", "q")


# --- Fields


def test_j01_the_identifier_is_an_indexed_string(database: Any) -> None:
    job = Job.add_job("user:12:mail", "q")
    Job.add_job("other", "q")

    assert job.identifier.hget() == "user:12:mail"
    assert list(Job.collection(identifier="user:12:mail")) == [job.pk.get()]


def test_j01_an_identifier_may_hold_any_text(database: Any) -> None:
    texts = ["é ünïcode ☃", 'quotes "and" \\ backslash', "line\nbreak", "nul\0byte", ":", "*"]

    jobs = [Job.add_job(text, "q") for text in texts]

    assert [job.identifier.hget() for job in jobs] == texts
    assert [list(Job.collection(identifier=text)) for text in texts] == [[job.pk.get()] for job in jobs]
    assert [Job.add_job(text, "q").ident for text in texts] == [job.ident for job in jobs]


def test_j04_the_status_is_indexed(job: Any) -> None:
    assert list(Job.collection(status=STATUSES.WAITING)) == [job.pk.get()]
    assert list(Job.collection(status=STATUSES.RUNNING)) == []


def test_j05_an_added_job_is_waiting(job: Any) -> None:
    assert job.status.hget() == STATUSES.WAITING


def test_j05_an_added_job_is_delayed_if_it_is_to_be(database: Any) -> None:
    job = Job.add_job("a", "q", delayed_for=1000)

    assert job.status.hget() == STATUSES.DELAYED


def test_j06_a_job_is_running_while_a_worker_runs_it(job: Any) -> None:
    seen = []

    run_worker("q", callback=lambda job, queue: seen.append((job.status.hget(), list(Job.collection(status="r")))))

    assert seen == [(STATUSES.RUNNING, [job.pk.get()])]


def test_j07_a_finished_job_is_in_success(job: Any) -> None:
    run_worker("q", callback=lambda job, queue: None)

    assert job.status.hget() == STATUSES.SUCCESS


def test_j07_a_failed_job_is_in_error(job: Any) -> None:
    run_worker("q", callback=fail)

    assert job.status.hget() == STATUSES.ERROR


def test_j08_a_canceled_job_stays_in_its_queue(job: Any) -> None:
    job.status.hset(STATUSES.CANCELED)

    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j08_a_worker_skips_a_canceled_job(job: Any) -> None:
    runs: list[Any] = []
    job.status.hset(STATUSES.CANCELED)

    run_worker("q", callback=lambda job, queue: runs.append(job))

    assert runs == []
    assert job.status.hget() == STATUSES.CANCELED
    assert places(job) == []


def test_j09_the_priority_is_the_string_0_by_default(job: Any) -> None:
    assert job.priority.hget() == "0"
    assert list(Job.collection(priority=0)) == [job.pk.get()]


def test_j09_a_job_made_without_add_job_has_the_default_priority_too(database: Any) -> None:
    job = Job(identifier="a")

    assert job.priority.hget() == "0"
    assert list(Job.collection(priority=0)) == [job.pk.get()]


def test_j09_a_higher_priority_runs_sooner_and_negative_ones_last(database: Any) -> None:
    order: list[str] = []
    for priority in (0, -1, 10, 9):
        Job.add_job(str(priority), "q", priority=priority)

    run_worker("q", loops=4, callback=lambda job, queue: order.append(job.identifier.hget()))

    assert order == ["10", "9", "0", "-1"]


@pytest.mark.parametrize("priority", [-5, 0, 3])
def test_j10_the_priority_decides_the_queue(database: Any, priority: int) -> None:
    job = Job.add_job("a", "q", priority=priority)

    (queue,) = Queue.collection(name="q", priority=priority).instances()
    assert_only_place(job, "waiting", queue)


def test_j11_writing_the_priority_does_not_move_the_job(job: Any) -> None:
    job.priority.hset(5)

    assert_only_place(job, "waiting", Queue.get_queue("q", 0))
    assert list(Job.collection(priority=5)) == [job.pk.get()]
    assert list(Job.collection(priority=0)) == []


def test_j12_added_is_the_utc_time_of_the_call(database: Any) -> None:
    before = utcnow()
    job = Job.add_job("a", "q")
    after = utcnow()

    assert before <= datetime.strptime(job.added.hget(), "%Y-%m-%d %H:%M:%S.%f") <= after


def test_j13_start_is_written_before_the_callback(job: Any) -> None:
    seen: list[Any] = []
    before = utcnow()

    run_worker("q", callback=lambda job, queue: seen.append((job.start.hget(), utcnow())))

    ((start, called),) = seen
    assert before <= datetime.strptime(start, "%Y-%m-%d %H:%M:%S.%f") <= called


@pytest.mark.parametrize("callback", [lambda job, queue: None, fail], ids=["success", "error"])
def test_j14_end_is_written_after_the_callback(job: Any, callback: Any) -> None:
    seen: list[datetime] = []

    def look_and_call(job: Any, queue: Any) -> None:
        seen.append(utcnow())
        assert job.end.hget() is None
        callback(job, queue)

    run_worker("q", callback=look_and_call)

    assert seen[0] <= datetime.strptime(job.end.hget(), "%Y-%m-%d %H:%M:%S.%f") <= utcnow()


def test_j15_tries_counts_the_executions(job: Any) -> None:
    assert job.tries.hget() is None

    run_worker("q", loops=3, callback=fail, requeue_times=2, requeue_delay_delta=0, requeue_priority_delta=0)

    assert job.tries.hget() == "3"


def test_j16_delayed_until_is_empty_when_the_job_is_not_delayed(job: Any) -> None:
    assert not job.delayed_until.hget()


@pytest.mark.parametrize("microseconds", [678901, 500000, 1, 0])
def test_j16_delayed_until_is_a_datetime_as_text(database: Any, microseconds: int) -> None:
    until = datetime(2050, 1, 2, 3, 4, 5, microseconds)

    job = Job.add_job("a", "q", delayed_until=until)

    assert job.delayed_until.hget() == str(until)


def test_j16_delayed_until_is_emptied_when_the_job_becomes_due(job: Any) -> None:
    queue = Queue.get_queue("q")
    queue.delay_job(job, parse_datetime(LONG_AGO))

    queue.requeue_delayed_jobs()

    assert not job.delayed_until.hget()


@pytest.mark.parametrize("duration", [1000, 1000.5, timedelta(seconds=1000)])
def test_j17_delayed_for_is_added_to_now(database: Any, duration: Any) -> None:
    delta = duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
    before = utcnow()

    job = Job.add_job("a", "q", delayed_for=duration)

    margin = timedelta(seconds=1)  # the clock of Redis is what counts
    assert before + delta - margin <= parse_datetime(job.delayed_until.hget()) <= utcnow() + delta + margin
    assert_only_place(job, "delayed", Queue.get_queue("q"))


def test_j18_a_failed_job_is_delayed_by_the_delta_of_the_worker(job: Any) -> None:
    before = utcnow()

    run_worker("q", callback=fail, requeue_times=1, requeue_delay_delta=500)

    until = parse_datetime(job.delayed_until.hget())
    assert before + timedelta(seconds=499) <= until <= utcnow() + timedelta(seconds=501)
    assert job.status.hget() == STATUSES.DELAYED
    assert_only_place(job, "delayed", Queue.get_queue("q", -1))


def test_j18_without_a_delta_a_failed_job_waits_at_once(job: Any) -> None:
    run_worker("q", callback=fail, requeue_times=1, requeue_delay_delta=0)

    assert not job.delayed_until.hget()
    assert_only_place(job, "waiting", Queue.get_queue("q", -1))


@pytest.mark.parametrize("arguments", [{}, {"delayed_for": 1000}], ids=["waiting", "delayed"])
def test_j19_queued_is_1_while_waiting_or_delayed(database: Any, arguments: dict[str, Any]) -> None:
    job = Job.add_job("a", "q", **arguments)

    assert job.queued.hget() == "1"
    assert list(Job.collection(queued=1)) == [job.pk.get()]


def test_j19_queued_is_1_while_running(job: Any) -> None:
    seen = []

    run_worker("q", callback=lambda job, queue: seen.append((job.queued.hget(), list(Job.collection(queued="1")))))

    assert seen == [("1", [job.pk.get()])]


@pytest.mark.parametrize("callback", [lambda job, queue: None, fail], ids=["success", "error"])
def test_j20_queued_is_removed_at_the_end(job: Any, callback: Any) -> None:
    run_worker("q", callback=callback)

    assert job.queued.hget() is None
    assert list(Job.collection(queued=1)) == []


def test_j20_queued_is_removed_when_a_canceled_job_is_skipped(job: Any) -> None:
    job.status.hset(STATUSES.CANCELED)

    run_worker("q")

    assert job.queued.hget() is None


def test_j20_queued_is_removed_when_the_job_was_canceled_while_it_ran(job: Any) -> None:
    run_worker("q", callback=lambda job, queue: job.status.hset(STATUSES.CANCELED))

    assert job.queued.hget() is None


def test_j20_queued_is_kept_when_the_job_is_requeued(job: Any) -> None:
    run_worker("q", callback=fail, requeue_times=1)

    assert job.queued.hget() == "1"


def test_j20_queued_is_kept_when_the_job_is_delayed(job: Any) -> None:
    run_worker("q", callback=lambda job, queue: job.status.hset(STATUSES.DELAYED))

    assert job.queued.hget() == "1"


@pytest.mark.parametrize("callback", [lambda job, queue: None, fail], ids=["success", "error"])
def test_j21_after_its_end_a_new_job_with_the_identifier_is_created(job: Any, callback: Any) -> None:
    run_worker("q", callback=callback)

    new = Job.add_job("a", "q")

    assert new.pk.get() != job.pk.get()
    assert new.status.hget() == STATUSES.WAITING


def test_j21_a_running_job_is_returned_and_not_disturbed(job: Any) -> None:
    seen: list[Any] = []

    def add_again(running: Any, queue: Any) -> None:
        before = running.hgetall()
        added = Job.add_job("a", "other", priority=9, prepend=True)
        seen.append((added.ident, running.hgetall() == before, places(running)))

    run_worker("q", callback=add_again)

    assert seen == [(job.ident, True, [("leased", "")])]
    assert job.status.hget() == STATUSES.SUCCESS
    assert places(job) == []


def test_j21_a_job_whose_queued_flag_was_removed_by_hand_is_not_the_same_job(job: Any) -> None:
    job.queued.hdel()

    assert Job.add_job("a", "q").pk.get() != job.pk.get()


@pytest.mark.parametrize("value", ["1", "0", "False", 0, "no"])
def test_j22_any_cancel_on_error_prevents_a_requeue(database: Any, value: Any) -> None:
    job = Job.add_job("a", "q", cancel_on_error=value)

    run_worker("q", callback=fail, requeue_times=3)

    assert job.status.hget() == STATUSES.ERROR
    assert job.queued.hget() is None
    assert places(job) == []


def test_j22_an_empty_cancel_on_error_prevents_nothing(database: Any) -> None:
    job = Job.add_job("a", "q", cancel_on_error="")

    run_worker("q", callback=fail, requeue_times=3)

    assert job.status.hget() == STATUSES.DELAYED


def test_j22_cancel_on_error_may_be_set_while_the_job_runs(job: Any) -> None:
    def set_and_fail(job: Any, queue: Any) -> None:
        job.cancel_on_error.hset(1)
        fail()

    run_worker("q", callback=set_and_fail, requeue_times=3)

    assert job.status.hget() == STATUSES.ERROR


# --- Class attributes


def test_j23_the_queue_model_of_the_class_is_queue() -> None:
    assert Job.queue_model is Queue


def test_j23_the_queue_model_of_the_class_is_used(database: Any) -> None:
    job = JobsNamedJob.add_job("a")

    assert_only_place(job, "waiting", JobsQueue.get_queue("named"))
    assert list(Queue.collection()) == []


def test_j24_the_queue_name_of_the_class_is_none() -> None:
    assert Job.queue_name is None


def test_j24_the_queue_name_of_the_class_is_used_everywhere(database: Any) -> None:
    job = JobsNamedJob.add_job("a")
    job.enqueue_or_delay(priority=2)
    run_worker("named", callback=fail, queue_model=JobsQueue)
    job.requeue(priority=3)

    assert_only_place(job, "waiting", JobsQueue.get_queue("named", 3))


def test_j25_a_class_that_is_always_canceled_on_error_is_not_requeued(database: Any) -> None:
    assert Job.always_cancel_on_error is False
    job = JobsNeverRequeuedJob.add_job("a", "q")

    run_worker("q", callback=fail, requeue_times=3)

    assert job.status.hget() == STATUSES.ERROR
    assert places(job) == []


# --- Properties


def test_j26_the_ident_is_the_class_and_the_pk(job: Any) -> None:
    assert job.ident == f"limpyd_jobs.models.Job:{job.pk.get()}"
    assert Queue.get_queue("q").waiting.lmembers() == [job.ident]


def test_j26_the_ident_of_a_subclass_names_the_subclass(database: Any) -> None:
    job = JobsNamedJob.add_job("a")

    assert job.ident == f"{__name__}.JobsNamedJob:1"
    assert JobsQueue.get_queue("named").waiting.lmembers() == [job.ident]


def test_j27_must_be_cancelled_on_error_is_false_by_default(job: Any) -> None:
    assert job.must_be_cancelled_on_error is False


@pytest.mark.parametrize("value", ["1", "0", "False"])
def test_j27_must_be_cancelled_on_error_is_true_with_the_field(job: Any, value: str) -> None:
    job.cancel_on_error.hset(value)

    assert job.must_be_cancelled_on_error is True


def test_j27_must_be_cancelled_on_error_is_true_with_the_class_attribute(database: Any) -> None:
    assert JobsNeverRequeuedJob.add_job("a", "q").must_be_cancelled_on_error is True


def test_j28_the_duration_is_none_before_the_end(job: Any) -> None:
    assert job.duration is None

    job.start.hset(LONG_AGO)

    assert job.duration is None


def test_j28_the_duration_is_end_minus_start(job: Any) -> None:
    job.hmset(start="2001-02-03 04:05:06.250000", end="2001-02-03 04:06:07")

    assert job.duration == timedelta(minutes=1, microseconds=750_000)


def test_j28_a_job_that_ran_has_a_duration(job: Any) -> None:
    run_worker("q", callback=lambda job, queue: None)

    assert timedelta(0) <= job.duration < timedelta(seconds=10)


def test_j29_run_raises_not_implemented_error(job: Any) -> None:
    with pytest.raises(NotImplementedError, match="You must implement your own action"):
        job.run(Queue.get_queue("q"))


def test_j29_a_worker_records_that_nothing_is_implemented(job: Any) -> None:
    run_worker("q")

    (error,) = Error.collection_for_job(job).instances()
    assert error.hmget("type", "message") == ["NotImplementedError", "You must implement your own action"]


# --- Idents


def test_j60_the_model_repr_is_module_and_class() -> None:
    assert Job.get_model_repr() == "limpyd_jobs.models.Job"
    assert JobsNamedJob.get_model_repr() == f"{__name__}.JobsNamedJob"


def test_j61_a_job_is_found_by_its_ident_as_its_own_class(database: Any) -> None:
    job = JobsExtraJob.add_job("a", "q", size=3)

    found = Job.get_from_ident(job.ident)

    assert type(found) is JobsExtraJob
    assert (found.pk.get(), found.size.hget()) == (job.pk.get(), "3")


def test_j61_an_ident_without_a_record_does_not_exist(database: Any) -> None:
    with pytest.raises(DoesNotExist):
        Job.get_from_ident("limpyd_jobs.models.Job:99")


@pytest.mark.parametrize(
    "ident",
    [
        "",
        "1",
        "limpyd_jobs.models.Job",
        "limpyd_jobs.models.Job:",
        "no.such.module.Job:1",
        "limpyd_jobs.models.Nothing:1",
    ],
)
def test_j61_an_ident_that_names_no_class_is_refused(database: Any, ident: str) -> None:
    with pytest.raises(JobClassError, match="job class"):
        Job.get_from_ident(ident)


def test_j61_an_ident_that_names_another_model_is_refused(database: Any) -> None:
    Queue.get_queue("q")

    with pytest.raises(LimpydJobsException, match="not a subclass of Job"):
        Job.get_from_ident("limpyd_jobs.models.Queue:1")


def test_j62_a_class_that_is_not_at_the_first_level_cannot_be_found_elsewhere(database: Any) -> None:
    """Within the process that defined it there is no doubt; another process has only the text."""
    from limpyd_jobs.utils import import_class

    with pytest.raises(AttributeError):
        import_class(Outer.JobsNestedJob.get_model_repr())


# --- Deletion and plain limpyd


def test_j_plain_limpyd_writes_keep_the_indexes_in_step(job: Any) -> None:
    job.status.hset(STATUSES.CANCELED)
    job.hmset(priority=4, queued="")
    job.identifier.hset("b")
    job.queued.hdel()

    assert_filters_equal_hashes(Job, "identifier", "status", "priority", "queued")


def test_j_a_deleted_job_leaves_no_index_entry(job: Any) -> None:
    other = failed_job(identifier="b", queue_name="r")

    job.delete()

    assert list(Job.collection()) == [other.pk.get()]
    assert_filters_equal_hashes(Job, "identifier", "status", "priority", "queued")


def test_j_a_deleted_job_does_not_stop_the_worker(job: Any) -> None:
    runs: list[str] = []
    job.delete()
    Job.add_job("b", "q")

    run_worker("q", callback=lambda job, queue: runs.append(job.identifier.hget()))

    assert runs == ["b"]


def test_j_fields_written_in_a_pipeline_of_limpyd_are_written_with_their_indexes(job: Any) -> None:
    with Job.database.pipeline() as pipeline:
        job.status.hset(STATUSES.CANCELED)
        job.priority.hincrby(4)
        job.queued.hdel()
        pipeline.execute()

    assert job.hmget("status", "priority", "queued") == [STATUSES.CANCELED, "4", None]
    assert_indexes_as_rebuilt(Job)


def test_j_a_job_added_in_a_pipeline_of_limpyd_is_added_at_once(database: Any) -> None:
    with Job.database.pipeline() as pipeline:
        job = Job.add_job("a", "q")
        pipeline.execute()

    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j_a_write_on_a_job_that_was_deleted_elsewhere_is_refused(job: Any) -> None:
    same = Job.lazy_connect(job.pk.get())
    job.delete()

    with pytest.raises(DoesNotExist):
        same.status.hset(STATUSES.CANCELED)

    assert_filters_equal_hashes(Job, "identifier", "status", "priority", "queued")
    assert list(Job.collection()) == []
