"""Jobs that fail and are tried again: after what, how often, how much later, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Backoff, Error, Job, JobTimeout, Queue, Retry, admin
from limpyd_jobs.utils import parse_datetime, score_to_datetime
from limpyd_jobs.workers import Worker

from .base import DEADLINE_SECONDS, Log, client, leased, work

pytestmark = pytest.mark.usefixtures("database")

SLACK_SECONDS = 5  # that a busy machine may take between the two looks at the clock of Redis


class RetryingJob(Job):
    """Notes what is called."""

    queue_name = "test"
    calls: ClassVar[list[str]] = []

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.calls.append("error")

    def on_requeued(self, queue: Any) -> None:
        self.calls.append("requeued")

    def on_skipped(self, queue: Any) -> None:
        self.calls.append("skipped")

    def on_success(self, queue: Any, result: Any) -> None:
        self.calls.append("success")


class RetryingTwiceJob(RetryingJob):
    queue_name = "test"
    requeue_times = 2
    requeue_delay_delta = 100
    backoff = "linear"


class RetryingNetworkJob(RetryingJob):
    queue_name = "test"
    requeue_times = 3
    retry_on = (OSError,)
    no_retry_on = FileNotFoundError


class RetryingNeverJob(RetryingJob):
    queue_name = "test"
    requeue_times = 0


class RetryingStubbornJob(RetryingJob):
    queue_name = "test"
    requeue_times = 5
    always_cancel_on_error = True


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, no job is leased, and the invariants hold."""
    RetryingJob.calls.clear()
    yield
    assert leased() == []
    assert [str(problem) for problem in admin.check()] == []


def raising(error: Any = ValueError) -> Any:
    def callback(job: Any, queue: Any) -> None:
        raise error

    return callback


def fail(job: Any, error: Any = ValueError, **options: Any) -> float | None:
    """Run a job that fails; answers the seconds until its retry, by the clock of Redis; None when there is none."""
    before = now()
    work(1, callback=raising(error), **options)
    if job.status.hget() == STATUSES.ERROR:
        return None
    until = job.delayed_until.hget()
    return (parse_datetime(until) - before).total_seconds() if until else 0.0


def now() -> Any:
    seconds, micros = client().time()
    return score_to_datetime(seconds + micros / 1_000_000)


def is_about(found: float | None, seconds: float) -> bool:
    return found is not None and seconds - 0.01 <= found <= seconds + SLACK_SECONDS


def let_wait(job: Any) -> None:
    """Let the time of a delayed job come."""
    for queue in Queue.get_all("test"):
        client().zadd(queue.delayed.key, {job.ident: 1}, xx=True)
        queue.requeue_delayed_jobs()


def errors(job: Any) -> list[str]:
    return sorted(error.type.hget() for error in Error.collection_for_job(job).instances())


# --- Who says it


def test_without_a_word_nothing_is_retried() -> None:
    job = RetryingJob.add_job("one")

    assert fail(job) is None
    assert RetryingJob.calls == ["error"]
    assert job.hmget("status", "queued", "tries") == [STATUSES.ERROR, None, "1"]


def test_the_worker_retries_after_its_delay_and_lowers_the_priority() -> None:
    job = RetryingJob.add_job("one", priority=5)

    assert is_about(fail(job, requeue_times=1, requeue_delay_delta=40, requeue_priority_delta=-2), 40)
    assert job.hmget("status", "priority", "tries") == [STATUSES.DELAYED, "3", "1"]
    assert RetryingJob.calls == ["error", "requeued"]


def test_a_class_says_it() -> None:
    job = RetryingTwiceJob.add_job("one")

    assert is_about(fail(job), 100)
    let_wait(job)
    assert is_about(fail(job), 200)
    let_wait(job)
    assert fail(job) is None

    assert job.tries.hget() == "3"
    assert errors(job) == ["ValueError"] * 3
    assert RetryingJob.calls == ["error", "requeued", "error", "requeued", "error"]


def test_a_job_says_it() -> None:
    job = RetryingJob.add_job("one", backoff=[10, 600])

    found = []
    for _ in range(3):
        found.append(fail(job))
        let_wait(job)

    assert is_about(found[0], 10) and is_about(found[1], 600) and found[2] is None


def test_the_job_wins_over_its_class_and_that_over_the_worker() -> None:
    of_job = RetryingTwiceJob.add_job("of the job", requeue_delay_delta=timedelta(minutes=5))
    assert is_about(fail(of_job, requeue_times=9, requeue_delay_delta=7, backoff="constant"), 300)

    of_class = RetryingTwiceJob.add_job("of the class")
    assert is_about(fail(of_class, requeue_times=9, requeue_delay_delta=7, backoff="constant"), 100)

    of_worker = RetryingJob.add_job("of the worker")
    assert is_about(fail(of_worker, requeue_times=9, requeue_delay_delta=7, backoff="constant"), 7)


def test_a_class_that_says_never_wins_over_the_worker() -> None:
    assert fail(RetryingNeverJob.add_job("one"), requeue_times=9) is None


def test_a_delay_of_nothing_makes_the_job_wait() -> None:
    job = RetryingJob.add_job("one", requeue_times=1, requeue_delay_delta=0)

    assert fail(job) == 0
    assert job.status.hget() == STATUSES.WAITING


@pytest.mark.parametrize(
    "backoff, seconds",
    [
        ("exponential:2", [2, 4, 8, 16]),
        ("exponential:2:5", [2, 4, 5, 5]),
        ("linear:3:7", [3, 6, 7, 7]),
        ("constant", [30, 30, 30, 30]),
        ((1, 100), [1, 100, 100, 100]),
        (Backoff("exponential", delay=1, factor=10), [1, 10, 100, 1000]),
    ],
    ids=str,
)
def test_the_delay_grows_from_retry_to_retry(backoff: Any, seconds: list[float]) -> None:
    job = RetryingJob.add_job("one", backoff=backoff, requeue_times=4)

    found = []
    for _ in seconds:
        found.append(fail(job))
        let_wait(job)

    assert [is_about(one, wanted) for one, wanted in zip(found, seconds, strict=True)] == [True] * 4, found


def test_jitter_takes_any_time_up_to_the_delay() -> None:
    jobs = [RetryingJob.add_job(str(number), backoff="constant:1000::jitter") for number in range(12)]
    before = now()

    work(12, callback=raising(), requeue_times=1)

    found = [(parse_datetime(job.delayed_until.hget()) - before).total_seconds() for job in jobs]
    assert all(0 <= seconds <= 1000 + SLACK_SECONDS for seconds in found)
    assert max(found) - min(found) > 50


# --- After what


def test_only_what_is_named_is_retried_and_what_is_excluded_is_not() -> None:
    assert fail(RetryingNetworkJob.add_job("timed out"), TimeoutError) is not None
    assert fail(RetryingNetworkJob.add_job("no file"), FileNotFoundError) is None
    assert fail(RetryingNetworkJob.add_job("a value"), ValueError) is None


def test_the_worker_may_name_them_as_text() -> None:
    options = {"requeue_times": 1, "retry_on": "ValueError,limpyd_jobs.exceptions.JobTimeout"}

    assert fail(RetryingJob.add_job("one"), UnicodeError, **options) is not None
    assert fail(RetryingJob.add_job("two"), KeyError, **options) is None


def test_a_job_that_takes_too_long_is_retried_where_that_is_named() -> None:
    job = RetryingJob.add_job("one", job_timeout=0.02, requeue_times=1, retry_on=JobTimeout)

    work(1, callback=lambda job, queue: time.sleep(DEADLINE_SECONDS))

    assert job.status.hget() == STATUSES.DELAYED
    assert errors(job) == ["JobTimeout"]


@pytest.mark.parametrize("where", ["class", "job"])
def test_what_cancels_on_error_wins_over_retries(where: str) -> None:
    model, values = (
        (RetryingStubbornJob, {}) if where == "class" else (RetryingJob, {"cancel_on_error": 1, "requeue_times": 5})
    )
    job = model.add_job("one", **values)

    assert fail(job) is None
    assert "requeued" not in RetryingJob.calls


# --- Retry


def test_a_job_that_asks_for_a_retry_is_delayed_for_as_long_as_it_says(log: Log) -> None:
    job = RetryingJob.add_job("one")

    assert is_about(fail(job, Retry("busy", delayed_for=77)), 77)
    assert errors(job) == []
    assert RetryingJob.calls == ["requeued"]
    assert not [record for record in log.records if record.levelname == "ERROR"]


def test_a_job_that_asks_for_a_retry_is_delayed_until_it_says() -> None:
    job = RetryingJob.add_job("one")

    until = now() + timedelta(hours=3)
    fail(job, Retry(delayed_until=until))

    assert job.status.hget() == STATUSES.DELAYED
    assert abs(parse_datetime(job.delayed_until.hget()) - until) < timedelta(seconds=SLACK_SECONDS)


def test_a_job_that_asks_for_a_retry_and_says_not_when_has_the_usual_delay() -> None:
    assert is_about(fail(RetryingJob.add_job("one"), Retry()), 30)
    assert is_about(fail(RetryingJob.add_job("two"), Retry(), requeue_delay_delta=50), 50)
    assert is_about(fail(RetryingTwiceJob.add_job("three"), Retry()), 100)


def test_a_job_may_ask_for_a_retry_in_the_past() -> None:
    job = RetryingJob.add_job("one")

    assert fail(job, Retry(delayed_until=now() - timedelta(hours=3))) == 0
    assert job.status.hget() == STATUSES.WAITING


def test_a_job_that_has_asked_too_often_is_in_error(log: Log) -> None:
    job = RetryingJob.add_job("one", requeue_times=1)

    assert fail(job, Retry("busy", delayed_for=0)) == 0
    assert fail(job, Retry("busy", delayed_for=0)) is None

    assert errors(job) == ["Retry"]
    assert RetryingJob.calls == ["requeued", "error"]


def test_a_job_that_was_canceled_meanwhile_is_not_retried() -> None:
    job = RetryingJob.add_job("one")

    def callback(job: Any, queue: Any) -> None:
        job.cancel("enough")
        raise Retry(delayed_for=0)

    work(1, callback=callback)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert errors(job) == ["Retry"]


def test_retry_is_neither_named_nor_excluded() -> None:
    job = RetryingJob.add_job("one", retry_on=ValueError, no_retry_on=Exception)

    assert is_about(fail(job, Retry(delayed_for=5)), 5)


def test_jobs_that_were_claimed_ahead_are_retried_as_well() -> None:
    jobs = [RetryingJob.add_job(str(number)) for number in range(6)]

    def callback(job: Any, queue: Any) -> None:
        if int(job.identifier.hget()) % 3 == 0:
            raise Retry(delayed_for=60)
        if int(job.identifier.hget()) % 3 == 1:
            raise ValueError

    work(6, callback=callback, prefetch=6, requeue_times=1)

    assert [job.status.hget() for job in jobs] == [STATUSES.DELAYED, STATUSES.DELAYED, STATUSES.SUCCESS] * 2
    assert [errors(job) for job in jobs] == [[], ["ValueError"], []] * 2


# --- Canceled between its error and its retry


class RetryingCanceledJob(RetryingJob):
    """Is canceled by its own `on_error`, when its error is recorded and its retry is not."""

    queue_name = "test"

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.cancel("no more")


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"prefetch": 2}], ids=str)
def test_a_job_that_is_canceled_before_its_retry_ends_so_without_a_traceback(options: dict[str, Any], log: Log) -> None:
    job = RetryingCanceledJob.add_job("one")

    work(1, callback=raising(), requeue_times=3, **options)

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "no more"]
    assert log.tracebacks == []
    assert log.lines.count("[test|1|one] job skipped (current status: CANCELED)") == 1
    assert not [line for line in log.lines if "lease" in line]
    assert RetryingJob.calls == ["skipped"]


# --- The log


def test_the_log_tells_that_a_job_is_retried_and_until_when_it_is_delayed(log: Log) -> None:
    RetryingJob.add_job("one")

    work(1, callback=raising(ValueError("oops")), requeue_times=1)

    told = [line for line in log.lines if line.startswith("[test|")]
    assert told[1] == "[test|1|one] error: oops [requeued]"
    assert told[2].startswith("[test|1|one] requeued with priority -1, delayed until ")


def test_the_log_tells_that_a_job_is_not_retried_any_more(log: Log) -> None:
    RetryingJob.add_job("one")

    work(1, callback=raising(ValueError("oops")))

    assert "[test|1|one] error: oops [NOT requeued]" in log.lines


def test_an_own_requeue_job_is_called_as_in_version_2() -> None:
    job = RetryingJob.add_job("one", priority=3)
    calls = []

    class OldWorker(Worker):
        def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: Any = None) -> Any:
            calls.append((job.identifier.hget(), priority, delayed_for))
            return super().requeue_job(job, queue, priority, delayed_for=delayed_for)

    work(1, worker_class=OldWorker, callback=raising(), requeue_times=1)

    assert calls == [("one", 2, 30)]
    assert job.status.hget() == STATUSES.DELAYED
