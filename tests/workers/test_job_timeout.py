"""Time limits of jobs in a worker that runs them in its main thread."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Error, Job, JobTimeout, admin
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.workers import Worker

from ..base import wait_until
from .base import Log, Running, client, idle, leased, work

pytestmark = pytest.mark.usefixtures("database")

LIMIT = 0.03
LATER = 0.3  # a limit within which the code of a job begins, on a busy machine, too
FOR_EVER = 60


class LimitedJob(Job):
    """Notes what its hooks get."""

    queue_name = "test"
    calls: ClassVar[list[Any]] = []

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.calls.append(exception)


class ClassLimitedJob(LimitedJob):
    queue_name = "test"
    job_timeout = LIMIT

    def run(self, queue: Any) -> None:
        time.sleep(FOR_EVER)


class LimitedHooksJob(LimitedJob):
    """Notes where its limit holds."""

    queue_name = "test"
    job_timeout = FOR_EVER

    def run(self, queue: Any) -> None:
        self.calls.append(("run", is_limited()))

    def on_started(self, queue: Any) -> None:
        self.calls.append(("started", is_limited()))

    def on_success(self, queue: Any, result: Any) -> None:
        self.calls.append(("success", is_limited()))


class LimitedCoroutineJob(LimitedJob):
    queue_name = "test"
    job_timeout = LATER
    ended: ClassVar[list[str]] = []

    async def run(self, queue: Any) -> None:
        try:
            await asyncio.sleep(FOR_EVER)
        finally:
            self.ended.append(self.identifier.hget())


class LimitedBusyJob(LimitedJob):
    """That never waits, and gives the loop its turn again and again."""

    queue_name = "test"
    job_timeout = 0.004

    async def run(self, queue: Any) -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no timer runs, no job is leased, and the invariants hold."""
    LimitedJob.calls.clear()
    LimitedCoroutineJob.ended.clear()
    timer, handler = signal.setitimer(signal.ITIMER_REAL, 0), signal.getsignal(signal.SIGALRM)  # of pytest-timeout
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == handler
    signal.setitimer(signal.ITIMER_REAL, *timer)
    assert leased() == []
    assert [str(problem) for problem in admin.check()] == []


def sleep(job: Any, queue: Any) -> None:
    time.sleep(FOR_EVER)


def is_limited() -> bool:
    """Does the timer run that would end this code?"""
    return signal.getitimer(signal.ITIMER_REAL) != (0, 0)


def the_limit(job: Any) -> float:
    """That which ended a job, in seconds."""
    (error,) = LimitedJob.calls
    assert type(error) is JobTimeout and error.ident == job.ident
    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    return float(error.seconds)


# --- Who says it


def test_a_class_limits_its_jobs() -> None:
    job = ClassLimitedJob.add_job("one")

    work(1)

    assert the_limit(job) == LIMIT


def test_a_job_has_its_own_limit() -> None:
    job = LimitedJob.add_job("one", job_timeout=LIMIT)

    work(1, callback=sleep)

    assert the_limit(job) == LIMIT


def test_a_worker_limits_all_its_jobs() -> None:
    job = LimitedJob.add_job("one")

    work(1, callback=sleep, job_timeout=LIMIT)

    assert the_limit(job) == LIMIT


def test_the_job_wins_over_its_class_and_that_over_the_worker() -> None:
    job, of_class = ClassLimitedJob.add_job("one", job_timeout=LIMIT / 2), ClassLimitedJob.add_job("two")

    work(2, job_timeout=FOR_EVER)

    assert [(error.ident, error.seconds) for error in LimitedJob.calls] == [
        (job.ident, LIMIT / 2),
        (of_class.ident, LIMIT),
    ]


@pytest.mark.parametrize("value", [0, -1, "ten", True, float("nan"), float("inf")], ids=str)
def test_a_limit_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match="job_timeout"):
        idle(job_timeout=value)
    with pytest.raises(InvalidArgument, match="job_timeout"):
        LimitedJob.add_job("one", job_timeout=value)
    assert len(LimitedJob.collection()) == 0


# --- What becomes of the job


def test_a_job_that_takes_too_long_has_an_error_that_says_so_and_where(log: Log) -> None:
    job = ClassLimitedJob.add_job("one", job_timeout=LATER)

    work(1)

    (error,) = Error.collection_for_job(job).instances()
    assert error.type.hget() == "JobTimeout"
    assert error.message.hget() == f"{job.ident} has run for longer than {LATER} seconds"
    assert "time.sleep(FOR_EVER)" in error.traceback.hget()
    assert f"[test|1|one] error: {job.ident} has run for longer than {LATER} seconds [NOT requeued]" in log.lines


def test_it_is_requeued_as_after_any_error() -> None:
    job = ClassLimitedJob.add_job("one", requeue_times=1)

    work(1)

    assert job.status.hget() == STATUSES.DELAYED


def test_except_exception_in_a_job_does_not_swallow_it() -> None:
    job = LimitedJob.add_job("one", job_timeout=LIMIT)

    def callback(job: Any, queue: Any) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(FOR_EVER)

    work(1, callback=callback)

    assert the_limit(job) == LIMIT


def test_the_finally_blocks_of_the_job_run() -> None:
    job, ended = LimitedJob.add_job("one", job_timeout=LATER), []

    def callback(job: Any, queue: Any) -> None:
        try:
            time.sleep(FOR_EVER)
        finally:
            ended.append(job.identifier.hget())

    work(1, callback=callback)

    assert ended == ["one"] and the_limit(job) == LATER


def test_a_coroutine_is_ended_too_and_cleans_up() -> None:
    job = LimitedCoroutineJob.add_job("one")

    work(1)

    assert the_limit(job) == LimitedCoroutineJob.job_timeout
    assert LimitedCoroutineJob.ended == ["one"]


def test_a_coroutine_that_never_waits_is_ended_each_time() -> None:
    jobs = [LimitedBusyJob.add_job(str(number)) for number in range(50)]

    work(50)

    assert [job.status.hget() for job in jobs] == [STATUSES.ERROR] * 50
    assert {type(error) for error in LimitedJob.calls} == {JobTimeout}


# --- What is not limited


def test_hooks_are_not_limited() -> None:
    job = LimitedHooksJob.add_job("one")

    work(1)

    assert LimitedJob.calls == [("started", False), ("run", True), ("success", False)]
    assert job.status.hget() == STATUSES.SUCCESS


def test_the_next_job_is_not_limited_by_the_one_before() -> None:
    LimitedJob.add_job("quick", job_timeout=LIMIT)
    slow = LimitedJob.add_job("slow")

    work(2, callback=lambda job, queue: time.sleep(2 * LIMIT) if job.identifier.hget() == "slow" else None)

    assert slow.status.hget() == STATUSES.SUCCESS


def test_a_worker_that_waits_is_not_limited() -> None:
    jobs = [LimitedJob.add_job(str(number), job_timeout=FOR_EVER) for number in range(2)]
    found: list[tuple[str, bool]] = []

    class LookingWorker(Worker):
        def wait_for_job(self) -> Any:
            found.append(("waits", is_limited()))
            return super().wait_for_job()

    work(2, worker_class=LookingWorker, callback=lambda job, queue: found.append(("runs", is_limited())))

    assert found == [("waits", False), ("runs", True)] * 2
    assert [job.status.hget() for job in jobs] == [STATUSES.SUCCESS] * 2


# --- With jobs that are claimed ahead


@pytest.mark.parametrize("prefetch", [2, 20])
def test_each_of_many_that_were_claimed_ahead_has_its_own_limit(prefetch: int) -> None:
    limits = [LIMIT if number % 4 == 0 else FOR_EVER for number in range(12)]
    jobs = [LimitedJob.add_job(str(number), job_timeout=limit) for number, limit in enumerate(limits)]

    def callback(job: Any, queue: Any) -> None:
        time.sleep(FOR_EVER if int(job.identifier.hget()) % 4 == 0 else 2 * LIMIT)

    work(12, callback=callback, prefetch=prefetch)

    assert [job.status.hget() for job in jobs] == [STATUSES.ERROR, *[STATUSES.SUCCESS] * 3] * 3
    assert {job.tries.hget() for job in jobs} == {"1"}


# --- Signals


def test_the_handler_and_the_timer_of_the_program_are_kept() -> None:
    LimitedJob.add_job("one", job_timeout=FOR_EVER)
    rings: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, frame: rings.append(number))
    try:
        work(1, callback=lambda job, queue: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        wait_until(lambda: rings)
    finally:
        signal.signal(signal.SIGALRM, former)

    assert rings == [signal.SIGALRM]


# --- In a thread


def test_a_worker_in_a_thread_refuses_a_job_with_a_limit_and_runs_the_others() -> None:
    limited, free = LimitedJob.add_job("limited", job_timeout=5), LimitedJob.add_job("free")
    ran: list[str] = []
    with Running(idle(callback=lambda job, queue: ran.append(job.identifier.hget()))):
        wait_until(lambda: free.status.hget() == STATUSES.SUCCESS)

    assert (ran, limited.status.hget()) == (["free"], STATUSES.ERROR)
    (error,) = Error.collection_for_job(limited).instances()
    assert error.type.hget() == "ConfigurationException"
    assert "allow_unenforced_timeouts" in error.message.hget()


def test_a_worker_in_a_thread_runs_it_without_limit_where_that_is_allowed() -> None:
    limited = LimitedJob.add_job("limited", job_timeout=0.001)
    with Running(idle(callback=lambda job, queue: time.sleep(0.01), allow_unenforced_timeouts=True)):
        wait_until(lambda: limited.status.hget() == STATUSES.SUCCESS)


# --- Many


@pytest.mark.parametrize("prefetch", [0, 50])
def test_of_many_that_end_near_their_limit_none_is_lost_and_no_limit_escapes(prefetch: int, log: Log) -> None:
    limits = {0: {"job_timeout": FOR_EVER}}  # each tenth has time enough, and the one after it has never
    LimitedJob.add_jobs({"identifier": str(number), **limits.get(number % 10, {})} for number in range(400))
    late: list[str] = []

    class Counting(Worker):
        logger_level = 50

        def job_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None = None) -> Any:
            assert type(exception) is JobTimeout
            late.append(job.identifier.hget())
            return super().job_error(job, queue, exception, trace)

    def callback(job: Any, queue: Any) -> None:
        number = int(job._claim.identifier)
        end = time.perf_counter() + (FOR_EVER if number % 10 == 1 else 0.0007 + number % 7 * 0.0001)
        while time.perf_counter() < end:
            pass

    work(400, worker_class=Counting, callback=callback, job_timeout=0.001, prefetch=prefetch, save_tracebacks=False)

    success, errors = client().llen("jobs:queue:1:success"), client().llen("jobs:queue:1:errors")
    assert success + errors == 400
    assert errors == len(late) == len(Error.collection())
    assert [name for name in late if name.endswith("0")] == []
    assert {name for name in late if name.endswith("1")} == {str(number) for number in range(1, 400, 10)}
    assert log.tracebacks == []
