"""The hooks of a worker and of its jobs, and the messages: J42 to J48, W46 to W54.

For each: write, tell, call. What a hook finds in Redis is compared with what the hook before it left there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from redis.exceptions import ConnectionError, ResponseError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.utils import utcnow

from ..base import wait_until
from .base import Log, Running, idle, leased, work

pytestmark = pytest.mark.usefixtures("database")

DURATION = r"0:00:0\d\.\d{6}"
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"


class Story(logging.Handler):
    """All that happened, in its order: what was logged, which hook was called, and what it found in Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[Any, ...]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "Run " not in record.getMessage():
            self.events.append(("log", record.getMessage().partition("] ")[2].partition("] ")[2].split(" ")[0]))

    def call(self, name: str, job: Any) -> None:
        self.events.append((name, *state_of(job)))


def state_of(job: Any) -> tuple[Any, ...]:
    """Status, queued, and the lists of its queue that hold the job."""
    status, queued = job.hmget("status", "queued")
    places = [
        name
        for queue in Queue.get_all("test")
        for name in ("waiting", "delayed", "success", "errors")
        if job.ident in (queue.delayed.zrange(0, -1) if name == "delayed" else getattr(queue, name).lmembers())
    ]
    return status, queued, sorted(places)


@pytest.fixture
def story() -> Iterator[Story]:
    handler = Story()
    logger = logging.getLogger("limpyd-jobs")
    logger.addHandler(handler)
    StoryJob.story = handler
    yield handler
    logger.removeHandler(handler)


class HookJob(Job):
    """A job without hooks; what its `run` does is in its identifier."""

    queue_name = "test"

    def run(self, queue: Any) -> str:
        action = self.identifier.hget().partition(" ")[0]
        if action == "fail":
            raise ValueError("boo")
        if action == "cancel":
            self.status.hset(STATUSES.CANCELED)
        if action == "delay":
            self.status.hset(STATUSES.DELAYED)
        return f"{action} done"


class StoryJob(HookJob):
    """A job that tells of each hook."""

    story: ClassVar[Story]

    def on_started(self, queue: Any) -> None:
        self.story.call("on_started", self)

    def on_success(self, queue: Any, result: Any) -> None:
        self.story.call("on_success", self)

    def on_error(self, queue: Any, exception: Exception, traceback: str | None) -> None:
        self.story.call("on_error", self)

    def on_requeued(self, queue: Any) -> None:
        self.story.call("on_requeued", self)

    def on_skipped(self, queue: Any) -> None:
        self.story.call("on_skipped", self)

    def on_delayed(self, queue: Any) -> None:
        self.story.call("on_delayed", self)


class StoryWorker(Worker):
    """A worker that tells of each hook, when it begins and when its super() has returned."""

    def narrate(self, name: str, job: Any, *args: Any) -> None:
        story = StoryJob.story
        story.events.append((f"{name} begins", *state_of(job)))
        getattr(Worker, name)(self, job, *args)
        story.events.append((f"{name} ends", *state_of(job)))

    def job_started(self, job: Any, queue: Any) -> None:
        self.narrate("job_started", job, queue)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        self.narrate("job_success", job, queue, job_result)

    def job_error(self, job: Any, queue: Any, exception: Any, trace: Any = None) -> None:
        self.narrate("job_error", job, queue, exception, trace)

    def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: Any = None) -> None:
        self.narrate("requeue_job", job, queue, priority, delayed_for)

    def job_skipped(self, job: Any, queue: Any) -> None:
        self.narrate("job_skipped", job, queue)

    def job_delayed(self, job: Any, queue: Any) -> None:
        self.narrate("job_delayed", job, queue)


RUNNING = (STATUSES.RUNNING, "1", [])
SUCCESS = (STATUSES.SUCCESS, None, ["success"])
ERROR = (STATUSES.ERROR, None, ["errors"])
ERROR_TO_REQUEUE = (STATUSES.ERROR, "1", ["errors"])
CANCELED = (STATUSES.CANCELED, None, [])


# --- The order: write, tell, call


def test_w47_w48_the_story_of_a_success(story: Story) -> None:
    StoryJob.add_job("work")

    work(1)

    assert story.events == [
        ("log", "starting"),
        ("on_started", *RUNNING),
        ("log", "success,"),
        ("on_success", *SUCCESS),
    ]


def test_w47_w48_overrides_find_the_state_in_redis_when_super_returns(story: Story) -> None:
    StoryJob.add_job("work")

    work(1, worker_class=StoryWorker)

    assert story.events == [
        ("job_started begins", *RUNNING),
        ("log", "starting"),
        ("on_started", *RUNNING),
        ("job_started ends", *RUNNING),
        ("job_success begins", *RUNNING),
        ("log", "success,"),
        ("on_success", *SUCCESS),
        ("job_success ends", *SUCCESS),
    ]


def test_w50_the_story_of_an_error(story: Story) -> None:
    StoryJob.add_job("fail")

    work(1)

    assert story.events == [
        ("log", "starting"),
        ("on_started", *RUNNING),
        ("log", "error:"),
        ("on_error", *ERROR),
    ]


def test_w50_w54_the_story_of_a_requeue(story: Story) -> None:
    StoryJob.add_job("fail")

    work(1, worker_class=StoryWorker, requeue_times=1)

    delayed = (STATUSES.DELAYED, "1", ["delayed", "errors"])
    assert story.events[4:] == [
        ("job_error begins", *RUNNING),
        ("log", "error:"),
        ("on_error", *ERROR_TO_REQUEUE),
        ("requeue_job begins", *ERROR_TO_REQUEUE),
        ("on_requeued", *delayed),
        ("log", "requeued"),
        ("requeue_job ends", *delayed),
        ("job_error ends", *delayed),
    ]


def test_w46_the_story_of_a_job_canceled_while_it_waits(story: Story) -> None:
    job = StoryJob.add_job("work")
    job.status.hset(STATUSES.CANCELED)

    work(1, worker_class=StoryWorker)

    assert story.events == [
        ("job_skipped begins", STATUSES.CANCELED, "1", []),
        ("log", "job"),
        ("on_skipped", *CANCELED),
        ("job_skipped ends", *CANCELED),
    ]
    assert leased() == []


def test_w46_the_story_of_a_job_canceled_while_it_runs(story: Story) -> None:
    StoryJob.add_job("cancel")

    work(1)

    assert story.events == [
        ("log", "starting"),
        ("on_started", *RUNNING),
        ("log", "job"),
        ("on_skipped", *CANCELED),
    ]
    assert leased() == []


def test_w49_the_story_of_a_job_delayed_while_it_runs(story: Story) -> None:
    StoryJob.add_job("delay")

    work(1)

    assert story.events == [
        ("log", "starting"),
        ("on_started", *RUNNING),
        ("log", "job"),
        ("on_delayed", STATUSES.DELAYED, "1", ["delayed"]),
    ]
    assert leased() == []


def test_w49_the_story_of_a_job_delayed_while_it_waits(story: Story) -> None:
    job = StoryJob.add_job("work")
    job.status.hset(STATUSES.DELAYED)

    work(1, worker_class=StoryWorker)

    delayed = (STATUSES.DELAYED, "1", ["delayed"])
    assert story.events == [
        ("job_delayed begins", STATUSES.DELAYED, "1", []),
        ("log", "job"),
        ("on_delayed", *delayed),
        ("job_delayed ends", *delayed),
    ]
    assert leased() == []


def test_w46_a_job_canceled_while_it_runs_gets_no_success(story: Story) -> None:
    StoryJob.add_job("cancel")

    work(1, worker_class=StoryWorker)

    assert "job_success begins" not in [event[0] for event in story.events]
    assert story.events[-1] == ("job_skipped ends", *CANCELED)


def test_w48_job_success_is_not_called_for_a_job_delayed_while_it_ran(story: Story) -> None:
    StoryJob.add_job("delay")

    work(1, worker_class=StoryWorker)

    assert "job_success begins" not in [event[0] for event in story.events]
    assert story.events[-1] == ("job_delayed ends", STATUSES.DELAYED, "1", ["delayed"])


def test_j48_a_job_has_none_of_the_hooks_by_default() -> None:
    names = ["on_started", "on_success", "on_error", "on_skipped", "on_requeued", "on_delayed"]

    assert [name for name in names if hasattr(Job, name)] == []
    assert [name for name in names if hasattr(Job.add_job("one", "test"), name)] == []


# --- The arguments


class ArgumentsJob(HookJob):
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def _note(self, name: str, queue: Any, *args: Any) -> None:
        self.calls.append((name, queue.name.hget(), *args))

    def on_started(self, *args: Any) -> None:
        self._note("on_started", *args)

    def on_success(self, *args: Any) -> None:
        self._note("on_success", *args)

    def on_error(self, *args: Any) -> None:
        self._note("on_error", *args)

    def on_requeued(self, *args: Any) -> None:
        self._note("on_requeued", *args)


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    ArgumentsJob.calls.clear()
    return ArgumentsJob.calls


def test_j42_j43_on_success_gets_the_queue_and_the_result(calls: list[Any]) -> None:
    ArgumentsJob.add_job("work")

    work(1)

    assert calls == [("on_started", "test"), ("on_success", "test", "work done")]


def test_j43_on_success_gets_the_result_itself_of_whatever_type(calls: list[Any]) -> None:
    ArgumentsJob.add_job("work")
    result = object()

    work(1, callback=lambda job, queue: result)

    assert calls[-1] == ("on_success", "test", result)


def test_j44_j46_on_error_gets_the_exception_and_the_traceback(calls: list[Any]) -> None:
    ArgumentsJob.add_job("fail")

    work(1, requeue_times=1)

    name, queue_name, exception, trace = calls[1]
    assert (name, queue_name) == ("on_error", "test")
    assert repr(exception) == "ValueError('boo')"
    assert trace.startswith("Traceback (most recent call last)")
    assert calls[2] == ("on_requeued", "test")


def test_j44_on_error_gets_no_traceback_without_save_tracebacks(calls: list[Any]) -> None:
    ArgumentsJob.add_job("fail")

    work(1, save_tracebacks=False)

    assert calls[1][3] is None


# --- What each hook writes


def test_w48_a_success_writes_the_end() -> None:
    job = HookJob.add_job("work")

    work(1)

    start, end = job.hmget("start", "end")
    assert start <= end <= str(utcnow())
    assert job.duration is not None


def test_w50_an_error_writes_the_end_and_an_error() -> None:
    job = HookJob.add_job("fail")

    work(1)

    start, end = job.hmget("start", "end")
    (error,) = Error.collection_for_job(job).instances()
    assert start <= end
    assert error.hmget("type", "message", "queue_name", "job_pk", "identifier") == [
        "ValueError",
        "boo",
        "test",
        job.pk.get(),
        "fail",
    ]


def test_w50_the_error_has_the_code_of_the_exception() -> None:
    HookJob.add_job("work")

    def fail(job: Any, queue: Any) -> None:
        error = ValueError("boo")
        error.code = 42  # type: ignore[attr-defined]
        raise error

    work(1, callback=fail)

    (error,) = Error.collection().instances()
    assert error.code.hget() == "42"


def test_w49_without_a_valid_date_a_job_is_delayed_for_a_minute() -> None:
    job = HookJob.add_job("delay")
    other = HookJob.add_job("delay other")
    other.delayed_until.hset("next week")

    work(2)

    for one in (job, other):
        left = datetime.fromisoformat(one.delayed_until.hget()) - utcnow()
        assert timedelta(seconds=50) < left <= timedelta(seconds=60)


def test_w49_with_a_date_a_job_is_delayed_until_then() -> None:
    job = HookJob.add_job("work")
    until = utcnow() + timedelta(hours=5)

    work(1, callback=lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=str(until)))

    queue = Queue.get_queue("test")
    assert job.hmget("status", "delayed_until", "queued") == [STATUSES.DELAYED, str(until), "1"]
    assert queue.first_delayed == (job.ident, pytest.approx((until - datetime(1970, 1, 1)).total_seconds(), abs=1e-3))
    assert queue.waiting.lmembers() == queue.success.lmembers() == []


def test_w49_with_a_date_in_the_past_a_job_waits_again() -> None:
    job = HookJob.add_job("work")
    past = str(utcnow() - timedelta(hours=5))

    work(1, callback=lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=past))

    assert job.hmget("status", "delayed_until", "queued") == [STATUSES.WAITING, None, "1"]
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]


def test_w49_a_job_delayed_while_it_waits_is_not_executed() -> None:
    job = HookJob.add_job("work")
    job.hmset(status=STATUSES.DELAYED, delayed_until=str(utcnow() + timedelta(hours=1)))
    ran: list[str] = []

    work(1, callback=lambda job, queue: ran.append("ran"))

    assert ran == []
    assert job.hmget("tries", "start") == [None, None]
    assert Queue.get_queue("test").first_delayed[0] == job.ident


@pytest.mark.parametrize("status", [STATUSES.CANCELED, STATUSES.SUCCESS, STATUSES.ERROR])
def test_w46_a_job_that_is_not_waiting_is_skipped(status: str) -> None:
    job = HookJob.add_job("work")
    job.status.hset(status)
    ran: list[str] = []

    worker = work(1, callback=lambda job, queue: ran.append("ran"))

    assert ran == []
    assert worker.num_loops == 1
    assert job.hmget("status", "queued", "tries") == [status, None, None]
    assert Queue.get_queue("test").waiting.lmembers() == []


def test_w46_job_cached_status_is_what_the_worker_saw() -> None:
    seen: list[Any] = []

    class SeeingWorker(Worker):
        def job_skipped(self, job: Any, queue: Any) -> None:
            seen.append(job._cached_status)
            super().job_skipped(job, queue)

    HookJob.add_job("cancel")
    HookJob.add_job("work").status.hset(STATUSES.CANCELED)

    work(2, worker_class=SeeingWorker)

    assert seen == [STATUSES.CANCELED, STATUSES.CANCELED]


# --- The messages


def test_the_messages_of_a_success(log: Log) -> None:
    HookJob.add_job("work")

    worker = work(1)

    starting, success = log.messages[1:-1]
    assert starting == f"[{worker.id}] [test|1|work] starting"
    assert re.fullmatch(rf"\[{worker.id}\] \[test\|1\|work\] success, in {DURATION}", success)
    assert (log.level_of("starting"), log.level_of("success")) == ("INFO", "INFO")


def test_w48_the_duration_in_the_message_is_the_one_of_the_job(log: Log) -> None:
    job = HookJob.add_job("work")

    work(1)

    assert f"[test|1|work] success, in {job.duration}" in log.lines


def test_w50_the_message_of_an_error_that_is_not_requeued(log: Log) -> None:
    HookJob.add_job("fail")

    worker = work(1)

    assert f"[{worker.id}] [test|1|fail] error: boo [NOT requeued]" in log.messages
    assert log.level_of("error: boo") == "ERROR"


def test_w50_w52_the_messages_of_a_requeue(log: Log) -> None:
    job = HookJob.add_job("fail")

    worker = work(1, requeue_times=1)

    error, requeued = log.messages[2:4]
    assert error == f"[{worker.id}] [test|1|fail] error: boo [requeued]"
    until = job.delayed_until.hget()
    assert re.fullmatch(DATE, until)
    assert requeued == f"[{worker.id}] [test|1|fail] requeued with priority -1, delayed until {until}"
    assert log.level_of("requeued with") == "INFO"


def test_w52_the_message_of_a_requeue_without_delay(log: Log) -> None:
    HookJob.add_job("fail")

    work(1, requeue_times=1, requeue_delay_delta=0, requeue_priority_delta=2)

    assert "[test|1|fail] requeued with priority 2" in log.lines


@pytest.mark.parametrize("status", ["CANCELED", "SUCCESS", "ERROR"])
def test_w46_the_message_of_a_skipped_job_names_its_status(status: str, log: Log) -> None:
    HookJob.add_job("work").status.hset(STATUSES[status])

    worker = work(1)

    assert f"[{worker.id}] [test|1|work] job skipped (current status: {status})" in log.messages
    assert log.level_of("skipped") == "WARNING"


def test_w46_the_message_of_a_job_canceled_while_it_ran(log: Log) -> None:
    HookJob.add_job("cancel")

    work(1)

    assert "[test|1|cancel] job skipped (current status: CANCELED)" in log.lines


def test_w49_the_message_of_a_delayed_job(log: Log) -> None:
    job = HookJob.add_job("delay")

    worker = work(1)

    assert f"[{worker.id}] [test|1|delay] job delayed until {job.delayed_until.hget()}" in log.messages
    assert log.level_of("delayed until") == "WARNING"


def test_w49_the_message_of_a_job_delayed_into_the_past(log: Log) -> None:
    HookJob.add_job("work")
    past = str(utcnow() - timedelta(hours=5))

    work(1, callback=lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=past))

    assert "[test|1|work] job delayed until None" in log.lines


class MessagesWorker(Worker):
    """Its messages name the hook and the arguments that they were given."""

    def job_started_message(self, job: Any, queue: Any) -> str:
        return f"started {job.pk.get()} {queue.name.hget()}"

    def job_success_message(self, job: Any, queue: Any, job_result: Any) -> str:
        return f"success {job.pk.get()} {queue.name.hget()} {job_result}"

    def job_error_message(
        self, job: Any, queue: Any, to_be_requeued: bool, exception: Any, trace: str | None = None
    ) -> str:
        return f"error {job.pk.get()} {queue.name.hget()} {to_be_requeued} {exception!r} {(trace or '')[:9]}"

    def job_requeue_message(self, job: Any, queue: Any) -> str:
        return f"requeue {job.pk.get()} {queue.name.hget()}"

    def job_skipped_message(self, job: Any, queue: Any) -> str:
        return f"skipped {job.pk.get()} {queue.name.hget()}"

    def job_delayed_message(self, job: Any, queue: Any) -> str:
        return f"delayed {job.pk.get()} {queue.name.hget()}"


def test_w46_to_w52_each_message_can_be_overridden(log: Log) -> None:
    for identifier in ("work", "fail", "cancel", "delay"):
        HookJob.add_job(identifier)

    work(4, worker_class=MessagesWorker, requeue_times=1)

    assert log.lines[1:-1] == [
        "started 1 test",
        "success 1 test work done",
        "started 2 test",
        "error 2 test True ValueError('boo') Traceback",
        "requeue 2 test",
        "started 3 test",
        "skipped 3 test",
        "started 4 test",
        "delayed 4 test",
    ]


def test_w51_job_error_message_is_told_that_a_job_is_not_requeued(log: Log) -> None:
    HookJob.add_job("fail")

    work(1, worker_class=MessagesWorker, save_tracebacks=False)

    assert "error 1 test False ValueError('boo') " in log.lines


def test_messages_hold_a_percent_sign_as_it_is(log: Log) -> None:
    HookJob.add_job("work %s 100%")

    work(1)

    assert "[test|1|work %s 100%] starting" in log.lines


# --- Errors of one's own


class HooksError(Error):
    colour = InstanceHashField(indexable=True)


class ColourWorker(Worker):
    error_model = HooksError
    seen: ClassVar[list[Any]] = []

    def additional_error_fields(self, job: Any, queue: Any, exception: Any, trace: str | None = None) -> dict[str, Any]:
        self.seen.append((job.pk.get(), queue.name.hget(), repr(exception), (trace or "")[:9]))
        return {"colour": "red"}


def test_w53_additional_error_fields_are_saved_with_the_error() -> None:
    ColourWorker.seen.clear()
    job = HookJob.add_job("fail")

    work(1, worker_class=ColourWorker)

    assert len(HooksError.collection(colour="red", job_pk=job.pk.get())) == 1
    assert ColourWorker.seen == [(job.pk.get(), "test", "ValueError('boo')", "Traceback")]


def test_w53_there_are_none_by_default() -> None:
    job = HookJob.add_job("fail")

    fields = Worker("test").additional_error_fields(job, Queue.get_queue("test"), ValueError("boo"))

    assert fields == {}


class AddingError(Error):
    added: ClassVar[list[Any]] = []

    @classmethod
    def add_error(cls, queue_name: str, job: Any, error: Any, *args: Any, **kwargs: Any) -> Any:
        cls.added.append((queue_name, job.pk.get(), repr(error), sorted(kwargs)))
        return super().add_error(queue_name, job, error, *args, **kwargs)


def test_w50_an_override_of_add_error_is_called() -> None:
    AddingError.added.clear()
    job = HookJob.add_job("fail")

    work(1, error_model=AddingError)

    assert AddingError.added == [("test", job.pk.get(), "ValueError('boo')", ["trace"])]
    assert len(AddingError.collection(job_pk=job.pk.get())) == 1


def test_w54_requeue_job_gets_the_new_priority_and_the_delay() -> None:
    seen: list[Any] = []

    class RequeuingWorker(Worker):
        def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: Any = None) -> None:
            seen.append((priority, delayed_for))
            super().requeue_job(job, queue, priority + 10, delayed_for=0)

    job = HookJob.add_job("fail", priority=3)

    work(1, worker_class=RequeuingWorker, requeue_times=1, requeue_delay_delta=7)

    assert seen == [(2, 7)]
    assert job.hmget("status", "priority") == [STATUSES.WAITING, "12"]


def test_w54_a_requeue_clears_start_and_end() -> None:
    job = HookJob.add_job("fail")

    work(1, requeue_times=1)

    assert job.hmget("start", "end") == [None, None]


# --- Hooks that raise, or do not call super: the books stay right

SETTLED = {"work": (STATUSES.SUCCESS, None, ["success"]), "fail": (STATUSES.ERROR, None, ["errors"])}


def raising(name: str, calls_super: bool, error: Exception | None = None) -> type[Worker]:
    """A worker with one hook that raises, after its super() or instead of it."""

    def hook(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> None:
        if calls_super:
            getattr(Worker, name)(self, job, queue, *args, **kwargs)
        raise error or RuntimeError(f"in {name}")

    return type("RaisingWorker", (Worker,), {name: hook})


def silent(name: str) -> type[Worker]:
    """A worker with one hook that does nothing."""
    return type("SilentWorker", (Worker,), {name: lambda self, *args, **kwargs: None})


def run_and_check_the_next_job(worker_class: type[Worker], identifier: str, **options: Any) -> Any:
    """Run one job, and one more to see that the worker lives; gives the first one."""
    job = HookJob.add_job(identifier)
    other = HookJob.add_job("work other", "other")

    work(2, "test,other", worker_class=worker_class, **options)

    assert other.status.hget() == STATUSES.SUCCESS
    assert leased() == []
    return job


@pytest.mark.parametrize("calls_super", [True, False], ids=["after super", "instead of super"])
@pytest.mark.parametrize(
    ("name", "identifier"),
    [("job_started", "work"), ("job_started", "fail"), ("job_success", "work"), ("job_error", "fail")],
)
def test_a_hook_that_raises_is_logged_and_the_job_recorded(
    name: str, identifier: str, calls_super: bool, log: Log
) -> None:
    job = run_and_check_the_next_job(raising(name, calls_super), identifier)

    assert state_of(job) == SETTLED[identifier]
    assert job.end.hget() is not None
    assert f"RuntimeError('in {name}')" in log.tracebacks


@pytest.mark.parametrize("error", [ResponseError("boo"), ConnectionError("boo")], ids=["response", "connection"])
@pytest.mark.parametrize("calls_super", [True, False], ids=["after super", "instead of super"])
@pytest.mark.parametrize(
    ("name", "identifier"), [("job_started", "work"), ("job_success", "work"), ("job_error", "fail")]
)
def test_a_hook_that_raises_an_error_of_redis_is_as_any_other(
    name: str, identifier: str, calls_super: bool, error: Exception, log: Log
) -> None:
    """It may come from another server, which the hook uses."""
    job = run_and_check_the_next_job(raising(name, calls_super, error), identifier)

    assert state_of(job) == SETTLED[identifier]
    assert repr(error) in log.tracebacks


@pytest.mark.parametrize(("name", "identifier"), [("job_success", "work"), ("job_error", "fail")])
def test_a_hook_that_does_not_call_super_leaves_the_job_recorded(name: str, identifier: str) -> None:
    job = run_and_check_the_next_job(silent(name), identifier)

    assert state_of(job) == SETTLED[identifier]
    assert job.end.hget() is not None


def test_a_job_error_that_does_not_call_super_leaves_an_error_saved() -> None:
    run_and_check_the_next_job(silent("job_error"), "fail")

    assert len(Error.collection(type="ValueError")) == 1


def test_a_job_error_that_raises_before_super_leaves_one_error_saved() -> None:
    run_and_check_the_next_job(raising("job_error", calls_super=False), "fail")

    assert len(Error.collection(type="ValueError")) == 1


@pytest.mark.parametrize("hook", [raising("requeue_job", False), silent("requeue_job")], ids=["raises", "silent"])
def test_a_requeue_job_that_does_not_requeue_leaves_the_job_in_error(hook: type[Worker]) -> None:
    job = run_and_check_the_next_job(hook, "fail", requeue_times=1)

    assert state_of(job) == ERROR


def test_a_requeue_job_that_raises_after_super_leaves_the_job_requeued(log: Log) -> None:
    job = run_and_check_the_next_job(raising("requeue_job", True), "fail", requeue_times=1)

    assert state_of(job) == (STATUSES.DELAYED, "1", ["delayed", "errors"])
    assert "RuntimeError('in requeue_job')" in log.tracebacks


@pytest.mark.parametrize("calls_super", [True, False], ids=["after super", "instead of super"])
def test_a_job_skipped_that_raises_leaves_no_lease(calls_super: bool, log: Log) -> None:
    job = run_and_check_the_next_job(raising("job_skipped", calls_super), "cancel")

    assert state_of(job) == CANCELED
    assert "RuntimeError('in job_skipped')" in log.tracebacks


def test_a_job_skipped_that_raises_for_a_waiting_job_leaves_no_lease() -> None:
    job = HookJob.add_job("work")
    job.status.hset(STATUSES.CANCELED)

    work(1, worker_class=raising("job_skipped", False))

    assert state_of(job) == CANCELED
    assert leased() == []


def test_a_job_skipped_that_does_not_call_super_leaves_no_lease() -> None:
    job = run_and_check_the_next_job(silent("job_skipped"), "cancel")

    assert state_of(job) == CANCELED


def test_a_job_delayed_that_raises_after_super_leaves_the_job_delayed() -> None:
    job = run_and_check_the_next_job(raising("job_delayed", True), "delay")

    assert state_of(job) == (STATUSES.DELAYED, "1", ["delayed"])


@pytest.mark.parametrize("hook", [raising("job_delayed", False), silent("job_delayed")], ids=["raises", "silent"])
@pytest.mark.parametrize("when", ["while it runs", "while it waits"])
def test_a_job_delayed_that_does_not_call_super_leaves_the_job_in_one_place(hook: type[Worker], when: str) -> None:
    job = HookJob.add_job("delay" if when == "while it runs" else "work")
    if when == "while it waits":
        job.status.hset(STATUSES.DELAYED)

    work(1, worker_class=hook)

    assert leased() == []
    status, queued, places = state_of(job)
    assert (status, queued, places) in [
        (STATUSES.DELAYED, "1", ["delayed"]),
        (STATUSES.WAITING, "1", ["waiting"]),
    ]


def test_a_job_canceled_by_a_job_success_that_does_not_call_super_is_let_go() -> None:
    class CancelingWorker(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            job.status.hset(STATUSES.CANCELED)

    job = HookJob.add_job("work")

    work(1, worker_class=CancelingWorker)

    assert state_of(job) == CANCELED
    assert leased() == []


def test_a_job_canceled_by_job_success_before_super_is_skipped(log: Log) -> None:
    class CancelingFirstWorker(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            job.status.hset(STATUSES.CANCELED)
            super().job_success(job, queue, job_result)

    job = HookJob.add_job("work")

    work(1, worker_class=CancelingFirstWorker)

    assert state_of(job) == CANCELED
    assert leased() == []
    assert "[test|1|work] job skipped (current status: CANCELED)" in log.lines


def test_a_job_success_that_swallows_everything_leaves_a_canceled_job_let_go() -> None:
    class SwallowingWorker(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            job.status.hset(STATUSES.CANCELED)
            with contextlib.suppress(Exception):
                super().job_success(job, queue, job_result)

    job = HookJob.add_job("work")

    work(1, worker_class=SwallowingWorker)

    assert state_of(job) == CANCELED
    assert leased() == []


@pytest.mark.parametrize(
    "name",
    ["job_started_message", "job_success_message", "job_error_message", "job_skipped_message", "job_delayed_message"],
)
def test_a_message_that_raises_does_not_end_the_worker(name: str, log: Log) -> None:
    def message(self: Any, *args: Any) -> str:
        raise RuntimeError(f"in {name}")

    jobs = [HookJob.add_job(identifier) for identifier in ("work", "fail", "cancel", "delay")]

    work(4, worker_class=type("MuteWorker", (Worker,), {name: message}))

    assert [state_of(job) for job in jobs] == [SUCCESS, ERROR, CANCELED, (STATUSES.DELAYED, "1", ["delayed"])]
    assert leased() == []
    assert f"RuntimeError('in {name}')" in log.tracebacks


def test_a_requeue_message_that_raises_leaves_the_job_requeued() -> None:
    def message(self: Any, *args: Any) -> str:
        raise RuntimeError("boo")

    job = HookJob.add_job("fail")

    work(1, worker_class=type("MuteRequeueWorker", (Worker,), {"job_requeue_message": message}), requeue_times=1)

    assert state_of(job) == (STATUSES.DELAYED, "1", ["delayed", "errors"])
    assert leased() == []


def test_an_error_message_that_raises_does_not_cost_the_job_its_requeue() -> None:
    def message(self: Any, *args: Any) -> str:
        raise RuntimeError("boo")

    job = HookJob.add_job("fail")

    work(1, worker_class=type("MuteErrorWorker", (Worker,), {"job_error_message": message}), requeue_times=1)

    assert state_of(job) == (STATUSES.DELAYED, "1", ["delayed", "errors"])
    assert leased() == []


def test_additional_error_fields_that_raise_do_not_end_the_worker(log: Log) -> None:
    def additional_error_fields(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise RuntimeError("in additional_error_fields")

    hooks = {"additional_error_fields": additional_error_fields}
    job = run_and_check_the_next_job(type("NoFieldsWorker", (Worker,), hooks), "fail")

    assert state_of(job) == ERROR
    assert "RuntimeError('in additional_error_fields')" in log.tracebacks


def test_additional_error_fields_that_the_model_lacks_do_not_end_the_worker() -> None:
    hooks = {"additional_error_fields": lambda self, *args, **kwargs: {"colour": "red"}}
    job = run_and_check_the_next_job(type("WrongFieldsWorker", (Worker,), hooks), "fail")

    assert state_of(job) == ERROR


class BrokenError(Error):
    @classmethod
    def add_error(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("in add_error")


def test_an_add_error_that_raises_does_not_end_the_worker(log: Log) -> None:
    job = run_and_check_the_next_job(Worker, "fail", error_model=BrokenError)

    assert state_of(job) == ERROR
    assert "RuntimeError('in add_error')" in log.tracebacks


class PickyError(Error):
    message = InstanceHashField(unique=True)


def test_an_error_whose_unique_value_is_taken_does_not_end_the_worker() -> None:
    first, second = HookJob.add_job("fail"), HookJob.add_job("fail again")

    work(2, error_model=PickyError)

    assert [state_of(job) for job in (first, second)] == [ERROR, ERROR]
    assert leased() == []


class UndecidedJob(HookJob):
    @property
    def must_be_cancelled_on_error(self) -> bool:
        raise RuntimeError("in must_be_cancelled_on_error")


def test_a_must_be_cancelled_on_error_that_raises_does_not_end_the_worker(log: Log) -> None:
    job, other = UndecidedJob.add_job("fail"), HookJob.add_job("work")

    work(2)

    assert state_of(job) == ERROR
    assert other.status.hget() == STATUSES.SUCCESS
    assert leased() == []


class RaisingHooksJob(HookJob):
    """Each of its hooks raises."""


for hook_name in ("on_started", "on_success", "on_error", "on_requeued", "on_skipped", "on_delayed"):

    def raise_its_name(self: Any, *args: Any, name: str = hook_name) -> None:
        raise RuntimeError(f"in {name}")

    setattr(RaisingHooksJob, hook_name, raise_its_name)


def test_hooks_of_a_job_that_raise_are_logged_and_change_nothing(log: Log) -> None:
    good, bad, canceled, delayed = [
        RaisingHooksJob.add_job(identifier) for identifier in ("work", "fail", "cancel", "delay")
    ]

    work(4, requeue_times=1)

    waits = (STATUSES.DELAYED, "1", ["delayed"])
    assert (state_of(good), state_of(canceled), state_of(delayed)) == (SUCCESS, CANCELED, waits)
    assert state_of(bad) == (STATUSES.DELAYED, "1", ["delayed", "errors"])
    assert leased() == []
    for name in ("on_started", "on_success", "on_error", "on_requeued", "on_skipped", "on_delayed"):
        assert f"RuntimeError('in {name}')" in log.tracebacks


@pytest.mark.parametrize("graceful", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        RecursionError,
        MemoryError,
        StopIteration,
        asyncio.CancelledError,
        BaseException,
    ],
)
def test_an_exception_of_any_kind_is_the_error_of_the_job(kind: type[BaseException], graceful: bool) -> None:
    job, other = HookJob.add_job("work"), HookJob.add_job("work other")

    def leave(running: Any, queue: Any) -> None:
        if running.pk.get() == job.pk.get():
            raise kind(3)

    work(2, callback=leave, terminate_gracefully=graceful)

    assert (state_of(job), state_of(other)) == (ERROR, SUCCESS)
    (error,) = Error.collection_for_job(job).instances()
    assert error.hmget("type", "message") == [kind.__name__, "3"]
    assert leased() == []


def test_an_error_whose_text_raises_is_recorded() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail(job: Any, queue: Any) -> None:
        raise UnspeakableError

    job, other = HookJob.add_job("work"), HookJob.add_job("work other")

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "work":
            fail(job, queue)

    work(2, callback=callback)

    assert (state_of(job), state_of(other)) == (ERROR, SUCCESS)
    assert leased() == []


def test_a_job_deleted_while_it_runs_leaves_no_lease() -> None:
    HookJob.add_job("work")
    other = HookJob.add_job("work other")

    def delete(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "work":
            job.delete()

    work(2, callback=delete)

    assert other.status.hget() == STATUSES.SUCCESS
    assert leased() == []


def test_a_job_deleted_while_it_waits_is_passed_by(log: Log) -> None:
    gone = HookJob.add_job("work")
    ident = gone.ident
    gone.delete()
    with Running(idle()):
        other = HookJob.add_job("work other")
        wait_until(lambda: other.status.hget() == STATUSES.SUCCESS)

    assert Queue.get_queue("test").waiting.lmembers() == []
    assert any("Unable to get job" in line and ident in line for line in log.lines)
