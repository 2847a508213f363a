"""What jobs answer: stored with their success, by every kind of worker, and read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, serializers, transitions
from limpyd_jobs.exceptions import (
    ConfigurationException,
    InvalidArgument,
    JobCanceled,
    JobFailed,
    NoResult,
    NotDecodable,
    ResultNotStored,
)
from limpyd_jobs.outcomes import read_result
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers import LOGGER_NAME, AsyncWorker

from .base import Log, client, work

pytestmark = pytest.mark.usefixtures("database")

HOUR = 3600


@dataclass
class Point:
    x: int
    y: int


class ResultJob(Job):
    """Answers twice its identifier, or what that names."""

    queue_name = "test"
    save_result = HOUR

    def run(self, queue: Any) -> Any:
        name = self._claim.identifier if self._claim else ""
        if name == "fails":
            error = ValueError("it failed")
            error.code = 7  # type: ignore[attr-defined]
            raise error
        answers: dict[str, Any] = {
            "nothing": None,
            "point": Point(1, 2),
            "when": datetime(2026, 11, 21, 12),
            "object": object(),
            "function": lambda: None,
            "large": "x" * serializers.MAX_RESULT,
        }
        return answers[name] if name in answers else name * 2


class CoroutineResultJob(Job):
    queue_name = "test"
    save_result = HOUR

    async def run(self, queue: Any) -> Any:
        await asyncio.sleep(0)
        return (self._claim.identifier if self._claim else "") * 2


class HookedResultJob(ResultJob):
    """One that is told of its success."""

    told: list[Any] = []

    def on_success(self, queue: Any, result: Any) -> None:
        self.told.append((result, ResultJob.from_pk(self.pk.get()).status.hget()))


class PackedResultJob(ResultJob):
    result_serializer = "msgpack"


class UnknownSerializerJob(ResultJob):
    result_serializer = "nobody-knows"


class SilentResultJob(Job):
    """Its class says nothing of results."""

    queue_name = "test"

    def run(self, queue: Any) -> Any:
        return "answer"


class OwnSavedResultJob(Job):
    """One of a program that had fields of these names before."""

    queue_name = "test"
    saved_result = fields.InstanceHashField()

    def run(self, queue: Any) -> Any:
        return "answer"


class OwnSaveResultJob(Job):
    queue_name = "test"
    save_result = fields.InstanceHashField()  # type: ignore[assignment]

    def run(self, queue: Any) -> Any:
        return "answer"


class IgnoringWorker(Worker):
    """One that never calls `super()`."""

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        pass


class RaisingWorker(Worker):
    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        raise ValueError("a hook")


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefetch": {"prefetch": 3},
    "threads": {"threads": 2},
    "event loop": {"worker_class": AsyncWorker},
    "isolated": {"isolate": True},
    "its success is overridden": {"worker_class": IgnoringWorker},
    "its success raises": {"worker_class": RaisingWorker},
}


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def key_of(job: Any) -> str:
    return str(job.saved_result.key)


def done(identifier: str = "a", model: Any = ResultJob, **more: Any) -> Any:
    job = model.add_job(identifier, **more)
    work(1)
    return job


# --- stored


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [ResultJob, CoroutineResultJob, HookedResultJob])
def test_each_kind_of_worker_stores_results(kind: str, model: Any) -> None:
    jobs = [model.add_job(identifier) for identifier in ("a", "b", "c", "d")]
    work(4, **KINDS[kind])
    assert [job.get_result() for job in jobs] == ["aa", "bb", "cc", "dd"]
    assert {client().ttl(key_of(job)) for job in jobs} <= {HOUR, HOUR - 1}


def test_the_answer_of_a_callback_is_a_result() -> None:
    job = SilentResultJob.add_job("a", save_result=True)
    work(1, callback=lambda job, queue: {"sum": 3})
    assert job.get_result() == {"sum": 3}


def test_hooks_see_the_result_as_it_was() -> None:
    HookedResultJob.told.clear()
    job = done("point", HookedResultJob)
    assert HookedResultJob.told == [(Point(1, 2), None)]
    assert job.get_result() == {"x": 1, "y": 2}


def test_a_result_is_there_as_soon_as_the_success_is() -> None:
    seen = []

    class Watching(Worker):
        def job_success_message(self, job: Any, queue: Any, job_result: Any) -> str:
            seen.append((job.status.hget(), job.get_result()))
            return ""

    ResultJob.add_job("a")
    work(1, worker_class=Watching)
    assert seen == [("s", "aa")]


def test_the_end_of_a_job_with_a_result_takes_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    send = transitions.send

    def counting(client: Any, call: Any) -> Any:
        calls.append(call.script)
        return send(client, call)

    for identifier in "abc":
        ResultJob.add_job(identifier)
    monkeypatch.setattr(transitions, "send", counting)
    work(3)
    assert calls.count("finish") + calls.count("exchange") == 3


def test_a_repeated_end_stores_nothing_again() -> None:
    job = ResultJob.add_job("a")
    held = transitions.send(
        client(), transitions.claim("jobs", "jobs:queue", "t", "w", 30, str(utcnow()), ["test"])
    ).claim
    call = transitions.finish("jobs", held, str(utcnow()), transitions.extra_text('json:"first"', None))
    assert transitions.send(client(), call).kind == "OK"
    job.saved_result.delete()
    assert transitions.send(client(), call).kind == "ALREADY"
    assert job.get_result(None) is None


def test_a_canceled_run_has_no_result() -> None:
    job = ResultJob.add_job("a")
    work(1, callback=lambda job, queue: job.cancel("not wanted"))
    assert job.saved_result.get() is None
    with pytest.raises(JobCanceled, match="was canceled: not wanted"):
        job.get_result()


def test_a_lost_lease_leaves_no_result() -> None:
    job = ResultJob.add_job("a")

    def lose(running: Any, queue: Any) -> str:
        client().zadd("jobs:leases", {job.ident: 1})
        transitions.send(client(), transitions.recover("jobs", "jobs:queue", "r", "other", 30, 3))
        return "late"

    worker = Worker("test", callback=lose, max_loops=1, terminate_gracefully=False)
    worker.run()
    assert job.saved_result.get() is None
    work(1)
    assert job.get_result() == "aa"


# --- for how long


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(True, -1), ("1h", 3600), ("90", 90), (5.5, 5), (timedelta(days=1), 86400), ("yes", -1)],
)
def test_a_result_is_kept_for_as_long_as_is_said(said: Any, seconds: int) -> None:
    job = done(save_result=said)
    assert seconds - 1 <= client().ttl(key_of(job)) <= max(seconds, -1) + 1
    assert job.get_result() == "aa"


@pytest.mark.parametrize("said", [False, "no"])
def test_a_job_says_that_its_result_is_not_saved(said: Any) -> None:
    job = done(save_result=said)
    assert not client().exists(key_of(job))
    with pytest.raises(NoResult, match="it was not saved"):
        job.get_result()


def test_without_a_word_nothing_is_saved() -> None:
    job = done(model=SilentResultJob)
    assert not client().exists(key_of(job))


def test_the_worker_says_what_jobs_and_classes_do_not() -> None:
    silent, refusing, own = (
        SilentResultJob.add_job("a"),
        SilentResultJob.add_job("b", save_result=False),
        ResultJob.add_job("c"),
    )
    work(3, save_result="2h")
    assert client().ttl(key_of(silent)) in (2 * HOUR - 1, 2 * HOUR)
    assert not client().exists(key_of(refusing))
    assert client().ttl(key_of(own)) in (HOUR - 1, HOUR)


@pytest.mark.parametrize("said", [0, -1, "", "soon", "1y", float("nan"), timedelta(0), [], "0s"])
def test_a_duration_that_is_none_is_refused(said: Any) -> None:
    with pytest.raises(InvalidArgument, match="Invalid save_result argument"):
        SilentResultJob.add_job("a", save_result=said)
    with pytest.raises(ConfigurationException, match="save_result"):
        Worker("test", save_result=said)
    assert not client().exists("jobs:silentjob:collection")


def test_an_expired_result_is_none() -> None:
    job = done()
    client().pexpire(key_of(job), 0)
    assert job.get_result("late") == "late"
    with pytest.raises(NoResult, match="or has expired"):
        job.get_result()


# --- cleared, removed


@pytest.mark.parametrize("again", ["enqueue_or_delay", "enqueue_job", "delay_job"])
def test_a_result_is_forgotten_when_the_job_is_put_in_a_queue_again(again: str) -> None:
    job = done()
    if again == "enqueue_or_delay":
        job.enqueue_or_delay()
    elif again == "enqueue_job":
        Queue.get_queue("test").enqueue_job(job)
    else:
        Queue.get_queue("test").delay_job(job, utcnow() + timedelta(hours=1))
    assert not client().exists(key_of(job))
    with pytest.raises(NoResult, match="it has not ended"):
        job.get_result()


def test_a_second_run_has_the_result_of_its_own() -> None:
    job = done()
    job.enqueue_or_delay()
    work(1, callback=lambda job, queue: "second")
    assert job.get_result() == "second"


def test_a_result_goes_with_its_record() -> None:
    deleted, kept = done("a"), done("b")
    key = key_of(deleted)
    deleted.delete()
    assert not client().exists(key)
    assert kept.get_result() == "bb"


def test_a_result_goes_with_its_record_when_that_is_not_kept() -> None:
    job = done("a", save_result=True)
    ResultJob.add_job("b")
    # the second loop has nothing to do: it removes what is past
    Worker("test", keep_success=0, max_duration=1, timeout=1, terminate_gracefully=False).run()
    assert not client().exists(key_of(job), job.key)


# --- read


@pytest.mark.parametrize("model", [ResultJob, PackedResultJob])
def test_values_come_back_as_what_they_were(model: Any) -> None:
    assert done("nothing", model).get_result() is None
    assert done("when", model).get_result() == datetime(2026, 11, 21, 12)
    assert done("point", model).get_result(annotation=Point) == Point(1, 2)


def test_who_does_not_know_the_class_reads_the_result() -> None:
    job = done("point", PackedResultJob)
    assert read_result(job.ident, job.saved_result.get(), dict[str, int]) == {"x": 1, "y": 2}


def test_a_job_that_has_not_ended_has_no_result() -> None:
    job = ResultJob.add_job("a")
    assert job.get_result(default=3) == 3
    with pytest.raises(NoResult, match=rf"There is no result of {job.ident}: it has not ended"):
        job.get_result()


def test_a_job_that_is_gone_has_no_result() -> None:
    job = ResultJob.from_pk("7")
    assert job.get_result(default=3) == 3
    with pytest.raises(NoResult, match="its record is gone"):
        job.get_result()


@pytest.mark.parametrize("text", ["x", "json:{", "json", ""])
def test_something_else_under_the_key_is_told(text: str) -> None:
    job = done()
    job.saved_result.set(text)
    with pytest.raises((NotDecodable, InvalidArgument, ResultNotStored)):
        job.get_result(default=3)


def test_a_coroutine_reads_a_result() -> None:
    good, bad, late = done("a"), ResultJob.add_job("fails"), None
    work(1)
    late = ResultJob.add_job("late")

    async def read() -> None:
        assert await good.aget_result() == "aa"
        assert await late.aget_result(3) == 3
        with pytest.raises(JobFailed, match="ValueError: it failed"):
            await bad.aget_result()

    asyncio.run(read())


# --- of jobs that failed


def test_the_error_of_a_job_is_raised_where_its_result_is_asked_for() -> None:
    job = done("fails")
    with pytest.raises(JobFailed, match=rf"{job.ident} failed with ValueError: it failed") as caught:
        job.get_result(default=3)
    error = caught.value
    assert (error.ident, error.type, error.message, error.code) == (job.ident, "ValueError", "it failed", "7")
    assert error.traceback is not None and "raise error" in error.traceback


def test_the_last_error_of_a_job_is_the_one_that_is_raised() -> None:
    job = ResultJob.add_job("a")
    for number in range(11):
        if number:
            job.requeue()

        def fail(*_: Any, number: int = number) -> None:
            raise ValueError(f"number {number}")

        work(1, callback=fail)
    with pytest.raises(JobFailed, match="number 10"):
        job.get_result()


def test_an_error_that_is_not_saved_is_told_of_all_the_same() -> None:
    job = ResultJob.add_job("fails")
    work(1, save_errors=False)
    with pytest.raises(JobFailed, match="no Error of it is saved") as caught:
        job.get_result()
    assert caught.value.type is caught.value.message is caught.value.traceback is None


def test_the_errors_of_another_model_are_read_where_they_are() -> None:
    class ResultError(Error):
        pass

    job = ResultJob.add_job("fails")
    work(1, error_model=ResultError)
    with pytest.raises(JobFailed, match="it failed"):
        job.get_result(error_model=ResultError)


def test_a_job_that_is_about_to_be_tried_again_has_not_failed() -> None:
    job = ResultJob.add_job("fails")
    work(1, requeue_times=1, requeue_delay_delta=600)
    with pytest.raises(NoResult, match="it has not ended"):
        job.get_result()


def test_a_canceled_job_says_why() -> None:
    job = ResultJob.add_job("a")
    job.cancel("not wanted")
    with pytest.raises(JobCanceled, match=f"{job.ident} was canceled: not wanted") as caught:
        job.get_result(default=3)
    assert isinstance(caught.value, JobFailed)
    assert caught.value.reason == "not wanted"


# --- that cannot be stored


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [("object", "object cannot be stored"), ("large", "bytes are too many"), ("function", "function cannot be stored")],
)
@pytest.mark.parametrize("options", [{}, {"isolate": True}, {"prefetch": 2}], ids=["plain", "isolated", "prefetch"])
def test_a_job_whose_result_cannot_be_stored_is_a_success(
    log: Log, identifier: str, reason: str, options: dict[str, Any]
) -> None:
    job = ResultJob.add_job(identifier)
    work(1, requeue_times=3, **options)
    assert job.status.hget() == STATUSES.SUCCESS
    assert job.tries.hget() == "1"
    if options != {"isolate": True} or identifier == "large":
        assert reason in (job.saved_result.get() or "")
    with pytest.raises(ResultNotStored, match="what it answered could not be stored: "):
        job.get_result(default=3)
    assert log.level_of("its result is not stored") == "ERROR"
    assert client().ttl(key_of(job)) > 0


def test_a_serializer_that_nobody_knows_stores_nothing() -> None:
    job = done("a", UnknownSerializerJob)
    assert job.status.hget() == STATUSES.SUCCESS
    with pytest.raises(ResultNotStored, match="nobody-knows"):
        job.get_result()


# --- programs that had these names before


def test_a_field_saved_result_of_the_users_own_is_left_alone() -> None:
    job = OwnSavedResultJob.add_job("a", saved_result="mine")
    work(1, save_result=True)
    assert job.saved_result.hget() == "mine"
    assert job.get_result(3) == 3
    job.enqueue_or_delay()
    assert job.saved_result.hget() == "mine"
    with pytest.raises(InvalidArgument, match="save_result"):
        OwnSavedResultJob.add_job("b", save_result=True)


def test_a_class_cannot_save_results_where_its_own_field_is() -> None:
    bad = type("BadSavedResultJob", (OwnSavedResultJob,), {"save_result": True, "__module__": __name__})
    with pytest.raises(ConfigurationException, match=r"Invalid BadSavedResultJob.save_result"):
        bad.add_job("a")  # type: ignore[attr-defined]


def test_a_field_save_result_of_the_users_own_stays_a_field() -> None:
    job = done("a", OwnSaveResultJob, save_result="mine")
    assert job.save_result.hget() == "mine"
    assert job.get_result(3) == 3
