"""Running queued jobs in the process of a test, and looking at what is queued."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Retry, Worker, testing
from limpyd_jobs.exceptions import InvalidArgument, LimpydJobsException
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.workers import AsyncWorker

from ..base import wait_until

calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


class RunningJob(Job):
    """Does what its field says, by the name of a method."""

    queue_name = "mail"
    act = InstanceHashField()

    def run(self, queue: Any) -> Any:
        calls.append(self.identifier.hget())
        act = self.act.hget()
        return getattr(self, str(act))() if act else None

    def fail(self) -> None:
        raise ValueError(self.identifier.hget())

    def add_others(self) -> None:
        RunningJob.add_job("child", "print")

    def add_for_ever(self) -> None:
        RunningJob.add_job(f"{self.identifier.hget()}+", act="add_for_ever")

    def retry(self) -> None:
        raise Retry("again", delayed_for=60)

    def retry_once(self) -> None:
        if self.tries.hget() == "1":
            raise Retry("later", delayed_for=60)


class RunningCoroutine(Job):
    """One that is a coroutine function."""

    queue_name = "mail"

    async def run(self, queue: Any) -> Any:
        await asyncio.sleep(0)
        calls.append(self.identifier.hget())


def identifiers(jobs: list[Any]) -> list[str]:
    return [job.identifier.hget() for job in jobs]


# --- run_until_empty


def test_the_jobs_that_wait_are_run_by_priority_and_given_back() -> None:
    RunningJob.add_jobs(["a", "b"])
    RunningJob.add_job("first", priority=5)

    jobs = testing.run_until_empty("mail")

    assert identifiers(jobs) == calls == ["first", "a", "b"]
    assert {job.status.hget() for job in jobs} == {STATUSES.SUCCESS}


def test_without_names_all_queues_are_emptied_also_those_that_jobs_fill() -> None:
    RunningJob.add_job("a", act="add_others")

    assert identifiers(testing.run_until_empty()) == ["a", "child"]


def test_other_queues_are_left_alone_when_there_are_names() -> None:
    RunningJob.add_job("a", act="add_others")

    testing.run_until_empty("mail")

    assert identifiers(testing.queued()) == ["child"]


def test_nothing_is_run_where_nothing_is() -> None:
    assert testing.run_until_empty() == testing.run_until_empty("mail") == []


def test_errors_are_recorded() -> None:
    RunningJob.add_job("a", act="fail")
    RunningJob.add_job("b")

    jobs = testing.run_until_empty()

    assert [job.status.hget() for job in jobs] == [STATUSES.ERROR, STATUSES.SUCCESS]
    assert len(Error.collection(identifier="a")) == 1


def test_the_first_error_is_raised_when_that_is_asked_for_once_it_is_recorded() -> None:
    RunningJob.add_job("a", act="fail")
    RunningJob.add_job("b")

    with pytest.raises(ValueError, match=r"^a$"):
        testing.run_until_empty(raises=True)

    assert len(Error.collection(identifier="a")) == 1
    assert identifiers(testing.queued()) == ["b"]


def test_an_error_after_which_the_job_is_tried_again_is_not_raised() -> None:
    RunningJob.add_job("a", act="fail", requeue_times=2, requeue_delay_delta=0)

    with pytest.raises(ValueError, match=r"^a$"):
        testing.run_until_empty(raises=True)

    assert calls == ["a", "a", "a"]


def test_delayed_jobs_stay_delayed() -> None:
    RunningJob.add_job("a", delayed_for=500)

    assert testing.run_until_empty() == []
    assert identifiers(testing.queued()) == ["a"]


def test_delayed_jobs_run_in_their_order_when_that_is_asked_for() -> None:
    RunningJob.add_job("later", delayed_for=500)
    RunningJob.add_job("sooner", delayed_for=100)
    RunningJob.add_job("now", act="retry_once")

    jobs = testing.run_until_empty(delayed=True)

    assert identifiers(jobs) == ["now", "now", "sooner", "later"]


def test_delayed_jobs_that_are_canceled_or_deleted_do_not_run() -> None:
    canceled, deleted, _ = (RunningJob.add_job(name, delayed_for=500) for name in "abc")
    canceled.status.hset(STATUSES.CANCELED)
    deleted.delete()

    assert identifiers(testing.queued()) == ["a", "c"]
    testing.run_until_empty(delayed=True)

    assert calls == ["c"]
    assert canceled.status.hget() == STATUSES.CANCELED
    assert not testing.queued()


def test_jobs_that_add_each_other_for_ever_are_stopped() -> None:
    RunningJob.add_job("a", act="add_for_ever")

    with pytest.raises(LimpydJobsException, match="still jobs in mail after 5"):
        testing.run_until_empty(max_jobs=5)

    assert len(calls) == 5


def test_the_worker_may_be_of_any_class_with_its_options() -> None:
    RunningJob.add_job("a", act="fail")
    RunningCoroutine.add_job("b")

    testing.run_until_empty(worker_class=AsyncWorker, requeue_times=1, requeue_delay_delta=0)

    assert sorted(calls) == ["a", "a", "b"]


def test_what_is_no_worker_is_refused() -> None:
    RunningJob.add_job("a")

    with pytest.raises(InvalidArgument, match="a subclass of Worker"):
        testing.run_until_empty(worker_class=Job)


def test_coroutine_jobs_run_also_where_a_loop_runs() -> None:
    RunningCoroutine.add_job("a")

    async def main() -> list[Any]:
        return testing.run_until_empty()

    assert identifiers(asyncio.run(main())) == ["a"]


class RunningLimitedJob(RunningJob):
    """One that may not last."""

    job_timeout = 60


def test_a_job_with_a_time_limit_runs_where_nothing_can_end_it_too() -> None:
    async def main() -> None:
        with testing.eager(raises=True):
            await RunningLimitedJob.aadd_job("a")
            RunningLimitedJob.add_job("b")

    asyncio.run(main())
    with testing.background_worker("mail"):
        job = RunningLimitedJob.add_job("c")
        wait_until(lambda: job.status.hget() not in (STATUSES.WAITING, STATUSES.RUNNING))

    assert calls == ["a", "b", "c"]
    assert job.status.hget() == STATUSES.SUCCESS


def test_a_canceled_job_is_passed_over() -> None:
    RunningJob.add_job("a").cancel()

    assert testing.run_until_empty() == []
    assert calls == []


def test_jobs_that_are_tried_again_for_ever_are_stopped() -> None:
    RunningJob.add_job("a", act="retry")

    with pytest.raises(LimpydJobsException, match="still jobs in mail after 5"):
        testing.run_until_empty(max_jobs=5, delayed=True)


# --- eager


def test_a_job_has_ended_when_it_is_added() -> None:
    with testing.eager():
        job = RunningJob.add_job("a")

    assert job.status.hget() == STATUSES.SUCCESS


def test_a_job_waits_again_after_the_block() -> None:
    with testing.eager():
        pass

    assert RunningJob.add_job("a").status.hget() == STATUSES.WAITING


def test_jobs_that_a_job_adds_have_ended_too() -> None:
    with testing.eager():
        RunningJob.add_job("a", act="add_others")

    assert calls == ["a", "child"]


def test_many_jobs_are_run_when_they_are_added() -> None:
    with testing.eager():
        assert RunningJob.add_jobs(["a", "b"]) == (2, 0)

    assert calls == ["a", "b"]


def test_jobs_are_run_when_a_coroutine_adds_them() -> None:
    async def main() -> list[str]:
        with testing.eager():
            job = await RunningCoroutine.aadd_job("a")
            await RunningCoroutine.aadd_jobs(["b"])
            RunningCoroutine.add_job("c")
            return [job.status.hget()]

    assert asyncio.run(main()) == [STATUSES.SUCCESS]
    assert calls == ["a", "b", "c"]


def test_an_error_is_recorded_or_raised_as_wanted() -> None:
    with testing.eager():
        assert RunningJob.add_job("a", act="fail").status.hget() == STATUSES.ERROR

    with testing.eager(raises=True), pytest.raises(ValueError, match=r"^b$"):
        RunningJob.add_job("b", act="fail")


def test_a_delayed_job_is_kept_or_run_as_wanted() -> None:
    with testing.eager():
        assert RunningJob.add_job("a", delayed_for=500).status.hget() == STATUSES.DELAYED

    with testing.eager(delayed=True):
        assert RunningJob.add_job("b", delayed_for=600).status.hget() == STATUSES.SUCCESS


# --- a worker in the background


def test_a_worker_in_the_background_takes_jobs_until_the_block_ends() -> None:
    with testing.background_worker("mail") as worker:
        job = RunningJob.add_job("a")
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert isinstance(worker, Worker)
    assert RunningJob.add_job("b").status.hget() == STATUSES.WAITING


def test_what_a_worker_in_the_background_raises_is_raised() -> None:
    class Broken(Worker):
        def run_started(self) -> None:
            calls.append("run_started")
            raise ValueError("no start")

    RunningJob.add_job("a")

    with pytest.raises(ValueError, match="no start"), testing.background_worker("mail", worker_class=Broken):
        wait_until(lambda: calls)


# --- what is queued


def test_what_is_queued_is_found_by_identifier_and_by_queue() -> None:
    RunningJob.add_job("a")
    RunningJob.add_job("b", "print")
    RunningJob.add_job("c", delayed_for=500)
    RunningJob.add_job("d", priority=5)

    assert identifiers(testing.queued()) == ["d", "a", "c", "b"]
    assert identifiers(testing.queued("a")) == ["a"]
    assert identifiers(testing.queued(queue="print")) == ["b"]
    assert testing.queued("a", queue="print") == []


def test_what_is_parked_is_queued_too() -> None:
    for identifier in "abc":
        RunningJob.add_job(identifier, rate_limit="1/h")
    RunningJob.add_job("d", delayed_for=500)

    testing.run_until_empty()

    assert identifiers(testing.queued()) == ["d", "b", "c"]
    assert identifiers(testing.queued("c", queue="mail")) == ["c"]
    assert testing.queued(queue="print") == []
