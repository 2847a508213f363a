"""Canceling jobs that a worker has, or has claimed ahead."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Cancellation, Error, Job, Queue, admin
from limpyd_jobs.exceptions import JobNotInStatus
from limpyd_jobs.workers import Worker

from ..base import wait_until
from .base import DEADLINE_SECONDS, Log, Running, idle, leased, work

pytestmark = pytest.mark.usefixtures("database")

OPTIONS: list[dict[str, Any]] = [{}, {"threads": 3}, {"prefetch": 5}]


class CancelingJob(Job):
    """Notes its hooks."""

    queue_name = "test"
    calls: ClassVar[list[str]] = []

    def on_skipped(self, queue: Any) -> None:
        self.calls.append("skipped")

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.calls.append("error")


class CancelingTellingJob(CancelingJob):
    """With a hook for its success, too."""

    queue_name = "test"

    def on_success(self, queue: Any, result: Any) -> None:
        self.calls.append("success")


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no job is leased, and the invariants hold."""
    CancelingJob.calls.clear()
    yield
    assert leased() == []
    assert [str(problem) for problem in admin.check()] == []


def was_canceled(job: Any, reason: str = "canceled") -> bool:
    return bool(job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, reason])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model", [CancelingJob, CancelingTellingJob])
def test_a_job_that_is_canceled_while_it_runs_counts_as_canceled_at_its_end(
    model: Any, options: dict[str, Any], log: Log
) -> None:
    job, other = model.add_job("canceled"), model.add_job("other")
    begun, go = threading.Event(), threading.Event()

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "canceled":
            begun.set()
            assert go.wait(DEADLINE_SECONDS)

    with Running(idle(callback=callback, **options)):
        assert begun.wait(DEADLINE_SECONDS)
        answer = type(job)(job.pk.get()).cancel("no more")
        go.set()
        wait_until(lambda: other.status.hget() == STATUSES.SUCCESS)

    assert answer is Cancellation.REQUESTED
    assert was_canceled(job, "no more")
    assert CancelingJob.calls.count("skipped") == 1
    assert CancelingJob.calls.count("success") == (1 if model is CancelingTellingJob else 0)
    assert Queue.get_queue("test").success.lmembers() == [other.ident]
    assert "[test|1|canceled] job skipped (current status: CANCELED)" in log.lines


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_job_that_cancels_itself_counts_as_canceled(options: dict[str, Any]) -> None:
    job = CancelingJob.add_job("one")

    work(1, callback=lambda job, queue: job.cancel(), **options)

    assert was_canceled(job)
    assert CancelingJob.calls == ["skipped"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_canceled_job_that_raises_is_in_error_and_not_retried(options: dict[str, Any]) -> None:
    job = CancelingJob.add_job("one", requeue_times=5)

    def callback(job: Any, queue: Any) -> None:
        job.cancel()
        raise ValueError

    work(1, callback=callback, **options)

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.ERROR, None, None]
    assert [error.type.hget() for error in Error.collection_for_job(job).instances()] == ["ValueError"]
    assert CancelingJob.calls == ["error"]


def test_jobs_that_were_claimed_ahead_and_are_canceled_do_not_begin() -> None:
    jobs = [CancelingJob.add_job(str(number)) for number in range(8)]
    ran, answers = [], []

    def callback(job: Any, queue: Any) -> None:
        ran.append(job.identifier.hget())
        if ran == ["0"]:
            answers.extend(one.cancel() for one in jobs[2:6])

    work(8, callback=callback, prefetch=8)

    assert answers == [Cancellation.REQUESTED] * 4
    assert ran == ["0", "1", "6", "7"]
    assert all(was_canceled(job) for job in jobs[2:6])
    assert {job.tries.hget() for job in jobs[2:6]} == {None}
    assert CancelingJob.calls == ["skipped"] * 4


def test_jobs_that_wait_for_a_thread_are_canceled_at_once() -> None:
    jobs = [CancelingJob.add_job(str(number)) for number in range(5)]
    ran: list[str] = []
    go = threading.Event()

    def callback(job: Any, queue: Any) -> None:
        ran.append(job.identifier.hget())
        assert go.wait(DEADLINE_SECONDS)

    with Running(idle(threads=2, callback=callback)):
        wait_until(lambda: len(ran) == 2)
        answers = [job.cancel() for job in jobs[2:4]]
        go.set()
        wait_until(lambda: jobs[4].status.hget() == STATUSES.SUCCESS)

    assert answers == [Cancellation.CANCELED] * 2
    assert sorted(ran) == ["0", "1", "4"]


def test_a_job_that_was_canceled_and_added_again_while_it_runs_is_known_as_queued() -> None:
    job = CancelingJob.add_job("one")
    same = []

    def callback(running: Any, queue: Any) -> None:
        running.cancel()
        same.append(CancelingJob.add_job("one").pk.get())

    work(1, callback=callback)

    assert len(CancelingJob.collection(queued="1")) == (0 if same == [job.pk.get()] else 1)


def test_an_own_job_skipped_of_a_worker_is_called_once() -> None:
    job = CancelingJob.add_job("one")
    calls = []

    class Noting(Worker):
        def job_skipped(self, job: Any, queue: Any) -> Any:
            calls.append(job.identifier.hget())
            return super().job_skipped(job, queue)

    work(1, worker_class=Noting, callback=lambda job, queue: job.cancel())

    assert calls == ["one"] and was_canceled(job)


def test_a_canceled_job_may_be_added_again_and_runs() -> None:
    CancelingJob.add_job("one")
    work(1, callback=lambda job, queue: job.cancel())

    again = CancelingJob.add_job("one")
    work(1, callback=lambda job, queue: None)

    assert again.hmget("status", "cancel_reason") == [STATUSES.SUCCESS, None]


class CancelingDelayWorker(Worker):
    """Somebody else cancels the job between its end and its delay."""

    calls_super = True

    def job_delayed(self, job: Any, queue: Any) -> Any:
        type(job)(job.pk.get()).cancel("no more")
        if self.calls_super:
            super().job_delayed(job, queue)


class CancelingOwnDelayWorker(CancelingDelayWorker):
    calls_super = False


@pytest.mark.parametrize("worker_class", [CancelingDelayWorker, CancelingOwnDelayWorker])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_job_that_is_canceled_before_it_is_delayed_is_skipped(
    worker_class: type[Worker], options: dict[str, Any], log: Log
) -> None:
    job = CancelingJob.add_job("one")

    work(
        1,
        worker_class=worker_class,
        callback=lambda job, queue: job.status.hset(STATUSES.DELAYED),
        **options,
    )

    assert was_canceled(job, "no more")
    assert CancelingJob.calls == ["skipped"]
    assert log.tracebacks == []
    assert log.lines.count("[test|1|one] job skipped (current status: CANCELED)") == 1


@pytest.mark.parametrize("options", [*OPTIONS, {"isolate": True}], ids=str)
@pytest.mark.parametrize("catches", [False, True])
def test_a_job_that_cancels_itself_and_then_moves_itself_is_canceled(
    catches: bool, options: dict[str, Any], log: Log
) -> None:
    job = CancelingJob.add_job("one")

    def callback(job: Any, queue: Any) -> None:
        job.cancel()
        with pytest.raises(JobNotInStatus) if catches else contextlib.nullcontext():
            job.enqueue_or_delay("test")

    work(1, callback=callback, **options)

    assert was_canceled(job)
    assert CancelingJob.calls == ["skipped"]
    assert log.tracebacks == []
    assert [line for line in log.lines if "NOT requeued" in line or "lease" in line] == (
        [] if catches else [f"[test|1|one] error: Unable to move {job.ident}: its status is 'c' [NOT requeued]"]
    )
