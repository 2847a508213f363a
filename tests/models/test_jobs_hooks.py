"""Section J of the checklist: the hooks that a job may define, and methods that subclasses override."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue
from limpyd_jobs.exceptions import JobNotInStatus
from limpyd_jobs.utils import utcnow

from .support import (
    assert_filters_equal_hashes,
    assert_only_place,
    failed_job,
    places,
    run_worker,
)

IN_2050 = datetime(2050, 1, 2, 3, 4, 5)
GHOSTS = ("on_started", "on_success", "on_error", "on_skipped", "on_requeued", "on_delayed")

calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


class HooksJob(Job):
    """Writes down which hook was called, with what, and what Redis held then."""

    queue_name = "hooks"

    action: ClassVar[Any] = staticmethod(lambda job, queue: None)

    def run(self, queue: Any) -> Any:
        calls.append("run")
        return HooksJob.action(self, queue)

    def _note(self, hook: str, queue: Any, *details: Any) -> None:
        status = Job.get_from_ident(self.ident).status.hget()
        calls.append((hook, queue.name.hget(), status, *details))

    def on_started(self, queue: Any) -> None:
        self._note("on_started", queue, bool(self.start.hget()), self.tries.hget())

    def on_success(self, queue: Any, result: Any) -> None:
        self._note("on_success", queue, result)

    def on_error(self, queue: Any, exception: BaseException, traceback: str | None) -> None:
        self._note("on_error", queue, exception, traceback)

    def on_skipped(self, queue: Any) -> None:
        self._note("on_skipped", queue)

    def on_requeued(self, queue: Any) -> None:
        self._note("on_requeued", queue)

    def on_delayed(self, queue: Any) -> None:
        self._note("on_delayed", queue)


def work(action: Any = None, **options: Any) -> None:
    """Let a worker take one job of the queue `hooks`."""
    HooksJob.action = staticmethod(action or (lambda job, queue: None))
    run_worker("hooks", **options)


def fail_with(exception: Exception) -> Any:
    def action(job: Any, queue: Any) -> None:
        raise exception

    return action


def write_status(status: str, **more: Any) -> Any:
    return lambda job, queue: job.hmset(status=status, **more)


# --- Ghosts


def test_j30_the_result_of_run_goes_to_on_success(database: Any) -> None:
    HooksJob.add_job("a")

    work(lambda job, queue: {"answer": 42})

    assert calls[-1] == ("on_success", "hooks", STATUSES.SUCCESS, {"answer": 42})


def test_j30_run_gets_the_queue_from_which_the_job_was_taken(database: Any) -> None:
    HooksJob.add_job("a", priority=4)
    seen: list[Any] = []

    work(lambda job, queue: seen.append((type(queue), queue.name.hget(), queue.priority.hget())))

    assert seen == [(Queue, "hooks", "4")]


def test_j42_on_started_is_called_before_run_when_start_and_tries_are_written(database: Any) -> None:
    HooksJob.add_job("a")

    work()

    assert calls[:2] == [("on_started", "hooks", STATUSES.RUNNING, True, "1"), "run"]


def test_j43_on_success_is_called_when_success_is_written(database: Any) -> None:
    HooksJob.add_job("a")

    work(lambda job, queue: "done")

    assert calls[1:] == ["run", ("on_success", "hooks", STATUSES.SUCCESS, "done")]


def test_j44_on_error_gets_the_exception_and_the_traceback(database: Any) -> None:
    exception = ValueError("it failed")
    HooksJob.add_job("a")

    work(fail_with(exception))

    assert calls[1] == "run"
    ((hook, name, status, seen, trace),) = calls[2:]
    assert (hook, name, status) == ("on_error", "hooks", STATUSES.ERROR)
    assert seen is exception
    assert trace.startswith("Traceback (most recent call last)")
    assert trace.strip().endswith("ValueError: it failed")


def test_j44_on_error_gets_no_traceback_when_they_are_not_saved(database: Any) -> None:
    exception = ValueError("it failed")
    HooksJob.add_job("a")

    work(fail_with(exception), save_tracebacks=False)

    assert calls[2:] == [("on_error", "hooks", STATUSES.ERROR, exception, None)]


def test_j45_on_skipped_is_called_instead_of_run_for_a_canceled_job(database: Any) -> None:
    job = HooksJob.add_job("a")
    job.status.hset(STATUSES.CANCELED)

    work()

    assert calls == [("on_skipped", "hooks", STATUSES.CANCELED)]


@pytest.mark.parametrize("status", [STATUSES.SUCCESS, STATUSES.ERROR])
def test_j45_on_skipped_is_called_instead_of_run_for_a_job_with_another_status(database: Any, status: str) -> None:
    job = HooksJob.add_job("a")
    job.status.hset(status)

    work()

    assert calls == [("on_skipped", "hooks", status)]
    assert job.queued.hget() is None
    assert places(job) == []


def test_j45_on_skipped_is_called_when_the_job_was_canceled_while_it_ran(database: Any) -> None:
    HooksJob.add_job("a")

    work(write_status(STATUSES.CANCELED))

    assert calls[1:] == ["run", ("on_skipped", "hooks", STATUSES.CANCELED)]


def test_j46_on_requeued_is_called_after_on_error(database: Any) -> None:
    exception = ValueError("it failed")
    HooksJob.add_job("a")

    work(fail_with(exception), requeue_times=1, save_tracebacks=False)

    assert calls[2:] == [
        ("on_error", "hooks", STATUSES.ERROR, exception, None),
        ("on_requeued", "hooks", STATUSES.DELAYED),
    ]


def test_j46_on_requeued_is_not_called_after_the_last_try(database: Any) -> None:
    HooksJob.add_job("a")
    HooksJob.action = staticmethod(fail_with(ValueError()))

    run_worker("hooks", loops=2, requeue_times=1, requeue_delay_delta=0)

    assert [call[0] for call in calls if call != "run"] == [
        "on_started",
        "on_error",
        "on_requeued",
        "on_started",
        "on_error",
    ]


def test_j47_on_delayed_is_called_when_the_job_delayed_itself(database: Any) -> None:
    job = HooksJob.add_job("a")

    work(write_status(STATUSES.DELAYED, delayed_until=str(IN_2050)))

    assert calls[1:] == ["run", ("on_delayed", "hooks", STATUSES.DELAYED)]
    assert job.delayed_until.hget() == str(IN_2050)
    assert_only_place(job, "delayed", Queue.get_queue("hooks"))


def test_j47_a_job_that_does_not_say_until_when_is_delayed_for_a_minute(database: Any) -> None:
    job = HooksJob.add_job("a")
    before = utcnow()

    work(write_status(STATUSES.DELAYED))

    seconds = (datetime.fromisoformat(job.delayed_until.hget()) - before).total_seconds()
    assert 58 < seconds < 70


def test_j47_on_delayed_is_called_for_a_job_that_was_delayed_while_it_waited(database: Any) -> None:
    job = HooksJob.add_job("a")
    job.hmset(status=STATUSES.DELAYED, delayed_until=str(IN_2050))

    work()

    assert calls == [("on_delayed", "hooks", STATUSES.DELAYED)]
    assert job.tries.hget() is None
    assert_only_place(job, "delayed", Queue.get_queue("hooks"))


def test_j47_a_job_that_was_delayed_until_the_past_waits_again(database: Any) -> None:
    job = HooksJob.add_job("a")

    work(write_status(STATUSES.DELAYED, delayed_until="2001-01-01 00:00:00"))

    assert job.status.hget() == STATUSES.WAITING
    assert_only_place(job, "waiting", Queue.get_queue("hooks"))


@pytest.mark.parametrize("name", GHOSTS)
def test_j48_no_ghost_exists_on_job(name: str) -> None:
    assert not hasattr(Job, name)


def test_j48_a_job_without_ghosts_goes_through_everything(database: Any) -> None:
    job = Job.add_job("a", "q")
    run_worker("q", requeue_times=1, requeue_delay_delta=0)
    run_worker("q", callback=lambda job, queue: job.status.hset(STATUSES.DELAYED))
    job.enqueue_or_delay("q")
    run_worker("q", callback=lambda job, queue: job.status.hset(STATUSES.CANCELED))

    assert job.hmget("status", "tries") == [STATUSES.CANCELED, "3"]
    assert places(job) == []


@pytest.mark.parametrize("hook", ["on_started", "on_success"])
def test_j48_a_ghost_that_raises_does_not_harm_the_job(database: Any, monkeypatch: Any, hook: str) -> None:
    def explode(*_: Any) -> None:
        raise RuntimeError("a bug in a hook")

    monkeypatch.setattr(HooksJob, hook, explode)
    job = HooksJob.add_job("a")

    work()

    assert job.status.hget() == STATUSES.SUCCESS
    assert places(job) == []


def test_j48_an_on_error_that_raises_does_not_prevent_the_requeue(database: Any, monkeypatch: Any) -> None:
    def explode(*_: Any) -> None:
        raise RuntimeError("a bug in a hook")

    monkeypatch.setattr(HooksJob, "on_error", explode)
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()), requeue_times=1, requeue_delay_delta=0)

    assert_only_place(job, "waiting", Queue.get_queue("hooks", -1))


def add_same(job: Any, *_: Any) -> None:
    calls.append(type(job).add_job(job.identifier.hget()).ident)


def test_j43_on_success_may_add_the_identifier_again(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_success", add_same)
    job = HooksJob.add_job("a")

    work()

    (new,) = HooksJob.collection(queued=1).instances()
    assert calls[-1] == new.ident != job.ident
    assert_only_place(new, "waiting", Queue.get_queue("hooks"))


def test_j44_on_error_may_add_the_identifier_again(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_error", add_same)
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()))

    assert calls[-1] != job.ident
    assert [found.ident for found in HooksJob.collection(queued=1).instances()] == [calls[-1]]


def test_j44_on_error_finds_the_job_that_is_about_to_be_requeued(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_error", add_same)
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()), requeue_times=1)

    assert job.ident in calls
    assert list(HooksJob.collection()) == [job.pk.get()]
    assert_only_place(job, "delayed", Queue.get_queue("hooks", -1))


def test_j46_on_requeued_may_move_the_job(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_requeued", lambda job, queue: job.enqueue_or_delay("elsewhere", priority=9))
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()), requeue_times=1)

    assert_only_place(job, "waiting", Queue.get_queue("elsewhere", 9))


def test_j44_on_error_may_requeue_a_job_that_the_worker_does_not(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_error", lambda job, queue, exception, trace: job.requeue(priority=9))
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()))

    assert job.status.hget() == STATUSES.WAITING
    assert_only_place(job, "waiting", Queue.get_queue("hooks", 9))


def test_j44_on_error_may_requeue_a_job_that_the_worker_would_requeue_too(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_error", lambda job, queue, exception, trace: job.requeue(priority=9))
    job = HooksJob.add_job("a")

    work(fail_with(ValueError()), requeue_times=1)

    assert job.status.hget() == STATUSES.WAITING
    assert_only_place(job, "waiting", Queue.get_queue("hooks", 9))


def test_j42_on_started_may_cancel_the_job(database: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HooksJob, "on_started", lambda job, queue: job.status.hset(STATUSES.CANCELED))
    job = HooksJob.add_job("a")

    work()

    assert calls[-1] == ("on_skipped", "hooks", STATUSES.CANCELED)
    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]


# --- Overridden: called as in version 2, with super() or around it


class HooksPlacingJob(Job):
    """Without names for what it is called with: positional callers and named ones look alike."""

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> Any:
        names = ("queue_name", "priority", "delayed_until", "prepend", "queue_model")
        calls.append(("enqueue_or_delay", len(args), {**dict(zip(names, args, strict=False)), **kwargs}))
        return super().enqueue_or_delay(*args, **kwargs)


class HooksRedirectingJob(Job):
    """As the document of version 2 shows it: with the signature repeated."""

    def enqueue_or_delay(
        self,
        queue_name: Any = None,
        priority: Any = None,
        delayed_until: Any = None,
        prepend: bool = False,
        queue_model: Any = None,
    ) -> None:
        super().enqueue_or_delay("redirected", 5, delayed_until, prepend, queue_model)


class HooksQueue(Queue):
    @classmethod
    def get_queue(cls, *args: Any, **kwargs: Any) -> Any:
        calls.append(("get_queue", args, kwargs))
        return super().get_queue(*args, **kwargs)

    def enqueue_job(self, *args: Any, **kwargs: Any) -> None:
        calls.append(("enqueue_job", args[0].ident, args[1:], kwargs))
        super().enqueue_job(*args, **kwargs)

    def delay_job(self, *args: Any, **kwargs: Any) -> None:
        calls.append(("delay_job", args[0].ident, args[1:], kwargs))
        super().delay_job(*args, **kwargs)


class HooksRoutingQueue(Queue):
    """Sends all to one priority."""

    @classmethod
    def get_queue(cls, name: str, priority: Any = 0, **fields_if_new: Any) -> Any:
        return super().get_queue(name, 7, **fields_if_new)


class HooksRefusingQueue(Queue):
    def enqueue_job(self, job: Any, prepend: bool = False) -> None:
        raise RuntimeError("closed")


class JobsHooksError(Error):
    @classmethod
    def add_error(cls, queue_name: str, job: Any, error: Any, when: Any = None, trace: Any = None, **more: Any) -> Any:
        calls.append(("add_error", queue_name, job.ident, error, when, trace and trace.splitlines()[0], more))
        return super().add_error(queue_name, job, error, when, trace, **more)


def placing_calls() -> list[dict[str, Any]]:
    return [call[2] for call in calls if call[0] == "enqueue_or_delay"]


def test_j37_add_job_calls_an_overridden_enqueue_or_delay(database: Any) -> None:
    job = HooksPlacingJob.add_job("a", "q", 3)

    ((_, positional, arguments),) = calls
    assert positional == 5
    assert {**arguments, "queue_model": None} == {
        "queue_name": "q",
        "priority": 3,
        "delayed_until": None,
        "prepend": False,
        "queue_model": None,
    }
    assert arguments["queue_model"] in (None, Queue)
    assert_only_place(job, "waiting", Queue.get_queue("q", 3))


def test_j37_add_job_calls_it_for_a_delayed_job(database: Any) -> None:
    job = HooksPlacingJob.add_job("a", "q", 3, delayed_until=IN_2050)

    (arguments,) = placing_calls()
    assert arguments["delayed_until"] == IN_2050
    assert_only_place(job, "delayed", Queue.get_queue("q", 3))


def test_j37_add_job_calls_it_when_the_existing_job_moves(database: Any) -> None:
    job = HooksPlacingJob.add_job("a", "q", 3)
    calls.clear()

    HooksPlacingJob.add_job("a", "r", 5, prepend=True)

    (arguments,) = placing_calls()
    assert (arguments["queue_name"], arguments["priority"], arguments["prepend"]) == ("r", 5, True)
    assert_only_place(job, "waiting", Queue.get_queue("r", 5))


def test_j37_add_job_does_not_call_it_when_nothing_moves(database: Any) -> None:
    HooksPlacingJob.add_job("a", "q", 3)
    calls.clear()

    HooksPlacingJob.add_job("a", "q", 3)

    assert calls == []


def test_j37_requeue_calls_an_overridden_enqueue_or_delay(database: Any) -> None:
    job = failed_job(HooksPlacingJob, priority=3)
    calls.clear()

    job.requeue("r", 4, delayed_until=IN_2050)

    ((_, positional, arguments),) = calls
    assert positional == 3
    assert arguments == {"queue_name": "r", "priority": 4, "delayed_until": IN_2050, "queue_model": Queue}
    assert job.hmget("start", "end", "queued") == [None, None, "1"]
    assert_only_place(job, "delayed", Queue.get_queue("r", 4))


def test_j37_a_worker_that_requeues_calls_an_overridden_enqueue_or_delay(database: Any) -> None:
    job = HooksPlacingJob.add_job("a", "q", 3)
    calls.clear()

    run_worker("q", requeue_times=1, requeue_delay_delta=0)

    (arguments,) = placing_calls()
    assert (arguments["queue_name"], arguments["priority"]) == ("q", 2)
    assert_only_place(job, "waiting", Queue.get_queue("q", 2))


class HooksCanceledJob(Job):
    """Is canceled by somebody else before it is placed."""

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        type(self)(self.pk.get()).cancel("no more")
        super().enqueue_or_delay(*args, **kwargs)


def test_j37_a_job_that_is_canceled_before_add_job_places_it_stays_so(database: Any) -> None:
    job = HooksCanceledJob.add_job("a", "q")

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "no more"]
    assert places(job) == []


def test_j37_a_job_that_is_canceled_before_requeue_places_it_is_refused(database: Any) -> None:
    job = HooksCanceledJob.add_job("a", "q")
    job.status.hset(STATUSES.ERROR)

    with pytest.raises(JobNotInStatus):
        job.requeue("q")

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "no more"]
    assert places(job) == []


def test_j37_an_override_may_choose_another_queue(database: Any) -> None:
    job = HooksRedirectingJob.add_job("a", "q")

    assert job.priority.hget() == "5"
    assert_only_place(job, "waiting", Queue.get_queue("redirected", 5))
    run_worker("redirected", callback=lambda job, queue: None)
    assert job.status.hget() == STATUSES.SUCCESS
    assert_filters_equal_hashes(HooksRedirectingJob, "status", "priority", "queued", "identifier")


def test_q18_an_overridden_get_queue_is_called_with_name_and_priority(database: Any) -> None:
    Job.add_job("a", "q", 3, queue_model=HooksQueue)

    assert ("get_queue", ("q", 3), {}) in calls


def test_q13_an_overridden_enqueue_job_is_called_with_job_and_prepend(database: Any) -> None:
    job = Job.add_job("a", "q", 3, queue_model=HooksQueue)
    other = Job.add_job("b", "q", 3, queue_model=HooksQueue, prepend=True)

    enqueued = [call[1:] for call in calls if call[0] == "enqueue_job"]
    assert enqueued == [(job.ident, (False,), {}), (other.ident, (True,), {})]
    assert HooksQueue.get_queue("q", 3).waiting.lmembers() == [other.ident, job.ident]
    assert_only_place(job, "waiting", HooksQueue.get_queue("q", 3))


def test_q12_an_overridden_delay_job_is_called_with_job_and_datetime(database: Any) -> None:
    job = Job.add_job("a", "q", 3, queue_model=HooksQueue, delayed_until=IN_2050)

    assert [call for call in calls if call[0] != "get_queue"] == [("delay_job", job.ident, (IN_2050,), {})]
    assert job.hmget("status", "delayed_until", "queued") == [STATUSES.DELAYED, str(IN_2050), "1"]
    assert_only_place(job, "delayed", HooksQueue.get_queue("q", 3))


def test_q13_they_are_called_when_the_existing_job_moves(database: Any) -> None:
    job = Job.add_job("a", "q", 3, queue_model=HooksQueue)
    calls.clear()

    Job.add_job("a", "q", 5, queue_model=HooksQueue)

    assert [call for call in calls if call[0] != "get_queue"] == [("enqueue_job", job.ident, (False,), {})]
    assert_only_place(job, "waiting", HooksQueue.get_queue("q", 5))


def test_q12_they_are_called_when_a_worker_requeues(database: Any) -> None:
    job = Job.add_job("a", "q", 3, queue_model=HooksQueue)
    calls.clear()

    run_worker("q", queue_model=HooksQueue, requeue_times=1, requeue_delay_delta=500)

    assert [call[:2] for call in calls if call[0] != "get_queue"] == [("delay_job", job.ident)]
    assert ("get_queue", ("q", 2), {}) in calls
    assert_only_place(job, "delayed", HooksQueue.get_queue("q", 2))


def test_q13_they_are_called_by_requeue_and_enqueue_or_delay(database: Any) -> None:
    job = failed_job(queue_name="other")
    calls.clear()

    job.requeue("q", 4, queue_model=HooksQueue)
    job.enqueue_or_delay("q", 4, IN_2050, queue_model=HooksQueue)

    assert [call[:2] for call in calls if call[0] != "get_queue"] == [
        ("enqueue_job", job.ident),
        ("delay_job", job.ident),
    ]
    assert_only_place(job, "delayed", HooksQueue.get_queue("q", 4))


def test_q18_an_overridden_get_queue_may_choose_another_priority(database: Any) -> None:
    job = Job.add_job("a", "q", 1, queue_model=HooksRoutingQueue)

    (queue,) = HooksRoutingQueue.collection(name="q", priority=7).instances()
    assert_only_place(job, "waiting", queue)
    run_worker("q", callback=lambda job, queue: None, queue_model=HooksRoutingQueue)
    assert job.status.hget() == STATUSES.SUCCESS


def test_q13_a_job_whose_enqueue_job_raises_is_not_lost(database: Any) -> None:
    with pytest.raises(RuntimeError, match="closed"):
        Job.add_job("a", "q", queue_model=HooksRefusingQueue)

    (job,) = Job.collection(identifier="a").instances()
    assert places(job, HooksRefusingQueue) == [("leased", "")]


def test_e14_an_overridden_add_error_is_called_by_the_worker(database: Any) -> None:
    exception = ValueError("it failed")
    job = HooksJob.add_job("a")

    work(fail_with(exception), error_model=JobsHooksError)

    added = [call for call in calls if call[0] == "add_error"]
    assert added == [
        ("add_error", "hooks", job.ident, exception, None, "Traceback (most recent call last):", {}),
    ]
    (error,) = JobsHooksError.collection_for_job(job).instances()
    assert error.hmget("queue_name", "identifier", "type", "message") == ["hooks", "a", "ValueError", "it failed"]
    assert list(Error.collection()) == []
    assert job.status.hget() == STATUSES.ERROR


def test_e14_an_overridden_add_error_is_not_called_when_errors_are_not_saved(database: Any) -> None:
    HooksJob.add_job("a")

    work(fail_with(ValueError()), error_model=JobsHooksError, save_errors=False)

    assert [call for call in calls if call[0] == "add_error"] == []
    assert list(JobsHooksError.collection()) == []
