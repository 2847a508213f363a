"""The worker of an event loop: what runs at the same time, what its hooks may be, how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
from redis.exceptions import ReadOnlyError

from limpyd_jobs import STATUSES, Error, Job, Queue, transitions
from limpyd_jobs.exceptions import LimpydJobsException, Retry
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers import AsyncWorker, asynchronous, base, claiming, expiring, presence

from ..base import wait_until
from .base import Log, Running, client, leased, run, wait_until_idle
from .base import idle as idle_of
from .base import work as work_of

pytestmark = pytest.mark.usefixtures("database")

work: Any = partial(work_of, worker_class=AsyncWorker)


def idle(worker_class: type[AsyncWorker] = AsyncWorker, queues: Any = "test", **options: Any) -> Any:
    return idle_of(worker_class, queues, **options)


class ExceptionOfMine(Exception):
    pass


class Gate:
    """Counts the coroutines that are within, and holds them until it is opened; for any loop and any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_open = False
        self.within: list[str] = []
        self.most = 0
        self.passed: list[str] = []

    async def hold(self, name: str) -> None:
        self.within.append(name)
        self.most = max(self.most, len(self.within))
        try:
            while not self.is_open:
                await asyncio.sleep(0.002)
        finally:
            self.within.remove(name)
            self.passed.append(name)


class CoroutineJob(Job):
    """Does what its identifier says."""

    queue_name = "test"
    gate: ClassVar[Gate]
    calls: ClassVar[list[Any]]

    async def run(self, queue: Any) -> Any:
        identifier = self.identifier.hget()
        what = identifier.partition(" ")[0]
        if what == "hold":
            await self.gate.hold(identifier)
        if what == "fail":
            raise ValueError("boo")
        return f"result of {identifier}"


class PlainRunJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> Any:
        if self.identifier.hget().partition(" ")[0] == "fail":
            raise ValueError("boo")
        return f"result of {self.identifier.hget()}"


@pytest.fixture(autouse=True)
def gate() -> Iterator[Gate]:
    """Open at the end of each test: nothing waits for it any more."""
    CoroutineJob.gate = gate = Gate()
    CoroutineJob.calls = []
    yield gate
    gate.is_open = True


def statuses(jobs: list[Any]) -> list[str]:
    return [STATUSES.by_value(job.status.hget()) for job in jobs]


def errors() -> list[tuple[str, str]]:
    """Type and message of the errors that are saved."""
    return [(error.type.hget(), error.message.hget()) for error in (Error.get(pk) for pk in Error.collection())]


class PlainHooksWorker(AsyncWorker):
    """Each hook is plain, calls that of its parent, and waits for its end."""

    requeue_times = 1
    requeue_delay_delta = 0

    def job_started(self, job: Any, queue: Any) -> None:
        super().job_started(job, queue)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        super().job_success(job, queue, job_result)

    def job_error(self, job: Any, queue: Any, exception: Any, trace: Any = None) -> None:
        super().job_error(job, queue, exception, trace)

    def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: Any = None) -> None:
        super().requeue_job(job, queue, priority, delayed_for)

    def job_success_message(self, job: Any, queue: Any, job_result: Any) -> str:
        return f"well done: {super().job_success_message(job, queue, job_result)}"


class PlainHooksJob(PlainRunJob):
    queue_name = "test"

    def on_started(self, queue: Any) -> None:
        CoroutineJob.calls.append("on_started")

    def on_success(self, queue: Any, result: Any) -> None:
        CoroutineJob.calls.append("on_success")

    def on_error(self, queue: Any, exception: Any, trace: Any) -> None:
        CoroutineJob.calls.append("on_error")

    def on_requeued(self, queue: Any) -> None:
        CoroutineJob.calls.append("on_requeued")


@pytest.mark.parametrize("identifier", ["well", "fail"])
def test_plain_hooks_that_call_others_do_not_wait_for_their_own_threads(identifier: str) -> None:
    jobs = [PlainHooksJob.add_job(f"{identifier} {number}") for number in range(6)]
    runs = 1 if identifier == "well" else 2

    work(6 * runs, concurrency=2, worker_class=PlainHooksWorker)

    assert statuses(jobs) == ["SUCCESS" if identifier == "well" else "ERROR"] * 6
    assert leased() == []


def test_200_plain_jobs_with_plain_hooks_run_100_at_a_time() -> None:
    jobs = [PlainHooksJob.add_job(str(number)) for number in range(200)]

    work(200, concurrency=100, worker_class=PlainHooksWorker)

    assert statuses(jobs) == ["SUCCESS"] * 200
    assert CoroutineJob.calls.count("on_success") == 200


def test_a_get_job_that_raises_for_one_job_does_not_keep_the_others_from_running() -> None:
    jobs = [CoroutineJob.add_job(str(number)) for number in range(5)]

    class PickyWorker(AsyncWorker):
        def get_job(self, job_ident: str) -> Any:
            if job_ident == jobs[1].ident:
                raise ValueError("not this one")
            return super().get_job(job_ident)

    with Running(idle(worker_class=PickyWorker)):
        wait_until(lambda: statuses(jobs) == ["SUCCESS", "ERROR", "SUCCESS", "SUCCESS", "SUCCESS"])
        wait_until(lambda: not leased())


def test_a_job_that_is_canceled_while_its_start_is_told_does_not_run_to_its_end(gate: Gate) -> None:
    job = CoroutineJob.add_job("hold")

    class CancelingWorker(AsyncWorker):
        async def job_started(self, job: Any, queue: Any) -> None:
            await super().job_started(job, queue)
            await asyncio.to_thread(job.cancel)
            while self._heartbeat is not None and not self._heartbeat._told:
                await asyncio.sleep(0.002)

    with Running(idle(worker_class=CancelingWorker)) as worker:
        wait_until(lambda: statuses([job]) == ["CANCELED"])
        wait_until(lambda: not leased())
        wait_until(lambda: not worker._canceled)

    assert not gate.is_open


def test_a_run_within_an_event_loop_is_refused_before_anything_is_done() -> None:
    worker = idle()

    async def embed() -> None:
        worker.run()

    with pytest.raises(LimpydJobsException, match=r"AsyncWorker.run\(\) cannot be called within an event loop"):
        asyncio.run(embed())
    assert worker.status is None

    worker.end_forced = True
    worker.run()
    assert worker.status == "terminated"


def test_tasks_that_jobs_leave_behind_are_cancelled_at_the_end_of_the_worker() -> None:
    left: list[Any] = []
    cleaned: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    async def leave(job: Any, queue: Any) -> None:
        left.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)

    CoroutineJob.add_job("1")

    work(1, callback=leave)

    assert left[0].cancelled()
    assert cleaned == ["up"]


def test_a_signal_that_comes_while_the_worker_is_made_ends_its_run() -> None:
    class SlowWorker(AsyncWorker):
        def handle_end_signal(self) -> None:
            super().handle_end_signal()
            os.kill(os.getpid(), signal.SIGTERM)

    worker = SlowWorker("test")
    worker.run()

    assert worker.status == "terminated"


# --- How many run at a time


def test_as_many_coroutines_as_allowed_run_at_a_time_and_not_more(gate: Gate) -> None:
    jobs = [CoroutineJob.add_job(f"hold {number}") for number in range(30)]

    with Running(idle(concurrency=7)):
        wait_until(lambda: len(gate.within) == 7)
        gate.is_open = True
        wait_until(lambda: statuses(jobs) == ["SUCCESS"] * 30)

    assert gate.most == 7


def test_more_than_allowed_never_run_while_jobs_come_and_go() -> None:
    running, most = 0, 0

    async def count(job: Any, queue: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(int(job.pk.get()) % 4):
            await asyncio.sleep(0)
        running -= 1
        if int(job.pk.get()) % 5 == 0:
            raise ValueError

    for number in range(200):
        CoroutineJob.add_job(str(number))

    work(200, callback=count, concurrency=5)

    assert 2 <= most <= 5


def test_max_loops_is_exact_however_many_wait() -> None:
    jobs = [CoroutineJob.add_job(str(number)) for number in range(25)]

    work(17, concurrency=10)

    assert sorted(statuses(jobs)) == ["SUCCESS"] * 17 + ["WAITING"] * 8
    assert leased() == []


def test_max_loops_counts_jobs_that_come_later(gate: Gate) -> None:
    worker = idle(max_loops=5, concurrency=10)
    running = Running(worker)
    with running:
        jobs = [CoroutineJob.add_job(f"hold {number}") for number in range(3)]
        wait_until(lambda: len(gate.within) == 3)
        jobs += [CoroutineJob.add_job(f"hold {number}") for number in range(3, 8)]
        wait_until(lambda: len(gate.within) == 5)
        gate.is_open = True
        running.join()

    assert sorted(statuses(jobs)) == ["SUCCESS"] * 5 + ["WAITING"] * 3
    assert gate.most == 5


def test_max_duration_ends_an_idle_worker_and_lets_what_runs_end(gate: Gate) -> None:
    job = CoroutineJob.add_job("hold")
    running = Running(idle(max_duration=1000))
    with running as worker:
        wait_until(lambda: gate.within)
        wait_until_idle()
        worker.wanted_end_date = utcnow()  # as if these seconds were over: how long it takes to begin is not known
        assert worker.must_stop()
        later = CoroutineJob.add_job("later")
        gate.is_open = True
        running.join()

    assert statuses([job, later]) == ["SUCCESS", "WAITING"]

    worker = idle(max_duration=0.1, queues="nothing")
    Queue.get_queue("nothing")
    worker.run()
    assert worker.status == "terminated"


def test_max_memory_takes_no_more_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "resident_mib", lambda: 1000.0)
    jobs = [CoroutineJob.add_job(str(number)) for number in range(9)]

    worker = idle(max_memory=500, concurrency=3)
    run(worker)

    assert 1 <= statuses(jobs).count("SUCCESS") == worker.num_loops <= 6
    assert leased() == []


# --- Burst


def test_burst_runs_what_waits_and_what_is_due_and_leaves_the_rest() -> None:
    waiting = [CoroutineJob.add_job(str(number)) for number in range(5)]
    due = CoroutineJob.add_job("due", delayed_for=0.001)
    later = CoroutineJob.add_job("later", delayed_for=1000)

    worker = idle(burst=True, concurrency=2)
    run(worker)

    assert worker.is_drained
    assert statuses([*waiting, due, later]) == ["SUCCESS"] * 6 + ["DELAYED"]


def test_burst_without_any_queue_ends_at_once() -> None:
    worker = idle(burst=True, queues="nothing")
    run(worker)

    assert (worker.is_drained, worker.num_loops) == (True, 0)


def test_burst_waits_for_what_running_jobs_add() -> None:
    async def add(job: Any, queue: Any) -> None:
        number = int(job.identifier.hget())
        if number:
            await asyncio.sleep(0.01)
            await CoroutineJob.aadd_job(str(number - 1))

    CoroutineJob.add_job("5")

    worker = idle(burst=True, callback=add)
    run(worker)

    assert worker.num_loops == 6


# --- What a callback may be


async def answer(job: Any, queue: Any, text: str = "coroutine") -> str:
    await asyncio.sleep(0)
    return f"{text} in {threading.current_thread().name}"


def answer_plainly(job: Any, queue: Any) -> str:
    return f"plain in {threading.current_thread().name}"


def answer_with_a_coroutine(job: Any, queue: Any) -> Any:
    return answer(job, queue, "given")


class Answer:
    async def __call__(self, job: Any, queue: Any) -> str:
        return await answer(job, queue, "object")


class UnhashableAnswer(Answer):
    __hash__ = None  # type: ignore[assignment]


class ResultsWorker(AsyncWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.results: list[Any] = []

    async def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        self.results.append(job_result)
        await super().job_success(job, queue, job_result)

    async def job_error(self, job: Any, queue: Any, exception: Any, trace: Any = None) -> None:
        self.results.append(exception)
        await super().job_error(job, queue, exception, trace)


class CallbackWorker(ResultsWorker):
    async def callback(self, job: Any, queue: Any) -> str:
        return await answer(job, queue, "method")


class ExecuteWorker(ResultsWorker):
    async def execute(self, job: Any, queue: Any) -> Any:
        return f"executed {await super().execute(job, queue)}"


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (answer, "coroutine in MainThread"),
        (partial(answer, text="partial"), "partial in MainThread"),
        (answer_plainly, "plain in limpyd-jobs-hand"),
        (partial(answer_plainly), "plain in limpyd-jobs-hand"),
        (answer_with_a_coroutine, "given in MainThread"),
        (lambda job, queue: answer(job, queue, "lambda"), "lambda in MainThread"),
        (Answer(), "object in MainThread"),
        (UnhashableAnswer(), "object in MainThread"),
        (Answer().__call__, "object in MainThread"),
    ],
)
def test_callbacks_of_every_kind_are_run(callback: Any, text: str) -> None:
    job = CoroutineJob.add_job("1")

    worker = work(1, callback=callback, worker_class=ResultsWorker)

    assert worker.results[0].startswith(text)
    assert statuses([job]) == ["SUCCESS"]


@pytest.mark.parametrize(
    ("worker_class", "text"),
    [(CallbackWorker, "method in MainThread"), (ExecuteWorker, "executed result of 1")],
)
def test_callback_and_execute_can_be_coroutine_methods(worker_class: Any, text: str) -> None:
    CoroutineJob.add_job("1")

    assert work(1, worker_class=worker_class).results == [text]


def test_a_plain_run_that_gives_a_coroutine_is_awaited_in_the_loop() -> None:
    class GivingJob(Job):
        queue_name = "test"

        def run(self, queue: Any) -> Any:
            return answer(self, queue, "given")

    GivingJob.add_job("1")

    assert work(1, worker_class=ResultsWorker).results == ["given in MainThread"]


# --- What a job may raise


RAISED = [
    SystemExit(3),
    KeyboardInterrupt("mine"),
    asyncio.CancelledError("mine"),
    StopAsyncIteration("mine"),
    GeneratorExit("mine"),
    BaseException("mine"),
    ExceptionOfMine("mine"),
]


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
def test_what_a_job_raises_is_its_error_and_ends_nothing(raised: BaseException, is_plain: bool) -> None:
    async def fail(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "1":
            raise raised

    def fail_plainly(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "1":
            raise raised

    jobs = [CoroutineJob.add_job("1"), CoroutineJob.add_job("2")]

    work(2, callback=fail_plainly if is_plain else fail)

    assert statuses(jobs) == ["ERROR", "SUCCESS"]
    assert [name for name, _ in errors()] == [type(raised).__name__]
    assert leased() == []


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
def test_a_stop_iteration_is_an_error(is_plain: bool) -> None:
    async def fail(job: Any, queue: Any) -> None:
        raise StopIteration

    def fail_plainly(job: Any, queue: Any) -> None:
        raise StopIteration

    job = CoroutineJob.add_job("1")

    work(1, callback=fail_plainly if is_plain else fail)

    assert statuses([job]) == ["ERROR"]
    assert len(errors()) == 1


def test_a_job_that_raises_retry_runs_again_when_it_wants() -> None:
    tries: list[int] = []

    async def retry(job: Any, queue: Any) -> None:
        tries.append(int(job.tries.hget()))
        if len(tries) < 3:
            raise Retry(delayed_for=0.05)

    job = CoroutineJob.add_job("1")

    work(3, callback=retry, requeue_times=5)

    assert tries == [1, 2, 3]
    assert statuses([job]) == ["SUCCESS"]
    assert errors() == []


def test_retry_on_and_backoff_hold_for_coroutines() -> None:
    jobs = [CoroutineJob.add_job("fail"), CoroutineJob.add_job("fail too", retry_on=KeyError)]

    worker = idle(requeue_times=3, backoff=[0.01, 1000], retry_on=ValueError)
    with Running(worker):
        wait_until(lambda: statuses(jobs) == ["DELAYED", "ERROR"] and worker.num_loops == 3)

    assert [job.tries.hget() for job in jobs] == ["2", "1"]


# --- What a job may do with itself


def act(job: Any, queue: Any) -> None:
    what = job.identifier.hget()
    if what == "cancel":
        job.cancel()
    elif what == "status canceled":
        job.status.hset(STATUSES.CANCELED)
    elif what == "status delayed":
        job.hmset(status=STATUSES.DELAYED, delayed_until="2100-01-01 00:00:00")
    elif what == "requeue":
        job.enqueue_or_delay(queue_name="other")
    elif what == "delay":
        job.enqueue_or_delay(delayed_until="2100-01-01 00:00:00")
    elif what == "delete":
        job.delete()


ACTS = {
    "cancel": "CANCELED",
    "status canceled": "CANCELED",
    "status delayed": "DELAYED",
    "delay": "DELAYED",
    "requeue": "WAITING",
    "delete": None,
}


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
@pytest.mark.parametrize("what", ACTS)
def test_what_a_job_does_with_itself_counts(what: str, is_plain: bool, log: Log) -> None:
    async def act_in_the_loop(job: Any, queue: Any) -> None:
        act(job, queue)

    job = CoroutineJob.add_job(what)
    key = job.key

    work(1, callback=act if is_plain else act_in_the_loop)

    status = client().hget(key, "status")
    assert (status and STATUSES.by_value(status)) == ACTS[what]
    assert errors() == []
    assert leased() == []
    assert log.tracebacks == []


# --- Hooks

numbers = itertools.count()  # a class of jobs is known by its name


def make_hooks(is_plain: bool) -> tuple[type[AsyncWorker], type[Job], list[tuple[str, str]]]:
    """A worker and a job with hooks of one kind: each notes its name, and the status after that of its parent."""
    seen: list[tuple[str, str]] = []

    def note(name: str, job: Any) -> None:
        seen.append((name, STATUSES.by_value(client().hget(job.key, "status"))))

    def worker_hook(name: str) -> Any:
        async def in_loop(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> None:
            await getattr(super(worker_class, self), name)(job, queue, *args, **kwargs)
            note(name, job)

        def in_thread(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> None:
            assert threading.current_thread() is not threading.main_thread()
            getattr(super(worker_class, self), name)(job, queue, *args, **kwargs)
            note(name, job)

        return in_thread if is_plain else in_loop

    def job_hook(name: str) -> Any:
        async def in_loop(self: Any, *args: Any) -> None:
            await asyncio.sleep(0)
            note(name, self)

        def in_thread(self: Any, *args: Any) -> None:
            assert threading.current_thread() is not threading.main_thread()
            note(name, self)

        return in_thread if is_plain else in_loop

    names = ("job_started", "job_success", "job_error", "job_skipped", "job_delayed", "requeue_job")
    worker_class = type("HookedWorker", (AsyncWorker,), {name: worker_hook(name) for name in names})
    job_names = ("on_started", "on_success", "on_error", "on_requeued", "on_skipped", "on_delayed")
    job_class = type(f"HookedJob{next(numbers)}", (ActingJob,), {name: job_hook(name) for name in job_names})
    return worker_class, job_class, seen


class ActingJob(Job):
    abstract = True
    queue_name = "test"

    async def run(self, queue: Any) -> None:
        if self.identifier.hget() == "fail":
            raise ValueError("boo")
        act(self, queue)


HOOKS = {
    "well": [("job_success", "SUCCESS"), ("on_success", "SUCCESS")],
    "fail": [("job_error", "DELAYED"), ("on_error", "ERROR"), ("on_requeued", "DELAYED"), ("requeue_job", "DELAYED")],
    "status canceled": [("job_skipped", "CANCELED"), ("on_skipped", "CANCELED")],
    "status delayed": [("job_delayed", "DELAYED"), ("on_delayed", "DELAYED")],
}


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
@pytest.mark.parametrize("what", HOOKS)
def test_after_the_hook_of_the_parent_the_state_is_in_redis(what: str, is_plain: bool, log: Log) -> None:
    worker_class, job_class, seen = make_hooks(is_plain)
    job_class.add_job(what)

    work(1, worker_class=worker_class, requeue_times=1)

    expected = [("job_started", "RUNNING"), ("on_started", "RUNNING"), *HOOKS[what]]
    assert sorted(one for one in seen if one != ("job_success", "CANCELED")) == sorted(expected)
    assert log.tracebacks == []
    assert leased() == []


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
def test_messages_error_fields_and_the_ends_of_the_run_can_be_of_both_kinds(is_plain: bool, log: Log) -> None:
    class NotedError(Error):
        abstract = False
        namespace = "noted"
        note = InstanceHashField()

    class PlainWorker(AsyncWorker):
        error_model = NotedError

        def run_started(self) -> None:
            self.log("plain start")

        def run_ended(self) -> None:
            self.log("plain end")

        def job_error_message(self, *args: Any) -> str:
            return "plain message"

        def additional_error_fields(self, *args: Any) -> dict[str, Any]:
            return {"note": "plain"}

    class CoroutineWorker(AsyncWorker):
        error_model = NotedError

        async def run_started(self) -> None:  # type: ignore[override]
            self.log("coroutine start")

        async def run_ended(self) -> None:  # type: ignore[override]
            self.log("coroutine end")

        async def job_error_message(self, *args: Any) -> str:  # type: ignore[override]
            return "coroutine message"

        async def additional_error_fields(self, *args: Any) -> dict[str, Any]:  # type: ignore[override]
            return {"note": "coroutine"}

    CoroutineJob.add_job("fail")
    kind = "plain" if is_plain else "coroutine"

    work(1, worker_class=PlainWorker if is_plain else CoroutineWorker)

    assert [line for line in log.lines if line.startswith(kind)] == [
        f"{kind} {what}" for what in ("start", "message", "end")
    ]
    assert [error.note.hget() for error in (NotedError.get(pk) for pk in NotedError.collection())] == [kind]


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
@pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(1), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("name", ["job_started", "job_success", "on_success", "on_started"])
def test_a_hook_that_raises_is_logged_and_ends_nothing(
    name: str, raised: BaseException, is_plain: bool, log: Log
) -> None:
    async def fail(*args: Any, **kwargs: Any) -> None:
        raise raised

    def fail_plainly(*args: Any, **kwargs: Any) -> None:
        raise raised

    fail.__name__ = fail_plainly.__name__ = name
    hook = {name: fail_plainly if is_plain else fail}
    worker_class = type("FailingWorker", (AsyncWorker,), hook if name.startswith("job") else {})
    job_class = type(f"FailingHookJob{next(numbers)}", (ActingJob,), hook if name.startswith("on") else {})
    jobs = [job_class.add_job(str(number)) for number in range(3)]

    work(3, worker_class=worker_class)

    assert statuses(jobs) == ["SUCCESS"] * 3
    assert log.tracebacks == [repr(raised)] * 3
    assert leased() == []


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
def test_a_job_success_that_never_calls_its_parent_leaves_the_job_in_success(is_plain: bool) -> None:
    class CoroutineWorker(AsyncWorker):
        async def job_success(self, *args: Any) -> None:
            await asyncio.sleep(0)

    class PlainWorker(AsyncWorker):
        def job_success(self, *args: Any) -> None:
            pass

    jobs = [CoroutineJob.add_job(str(number)) for number in range(3)]

    work(3, worker_class=PlainWorker if is_plain else CoroutineWorker)

    assert statuses(jobs) == ["SUCCESS"] * 3
    assert leased() == []


def test_a_plain_hook_that_takes_long_does_not_hold_up_other_jobs() -> None:
    is_over = threading.Event()

    class SlowWorker(AsyncWorker):
        def job_started(self, job: Any, queue: Any) -> None:
            if job.identifier.hget() == "slow":
                assert is_over.wait(10)
            super().job_started(job, queue)

    slow, *others = [CoroutineJob.add_job(name) for name in ("slow", "1", "2")]

    with Running(idle(SlowWorker)):
        wait_until(lambda: statuses(others) == ["SUCCESS"] * 2)
        assert statuses([slow]) == ["RUNNING"]
        is_over.set()
        wait_until(lambda: statuses([slow]) == ["SUCCESS"])


# --- Fields


class FieldsCoroutineJob(Job):
    queue_name = "test"
    city = InstanceHashField(indexable=True)
    size = InstanceHashField()


def test_reading_its_own_fields_costs_a_coroutine_no_command() -> None:
    found: list[Any] = []

    async def read(job: Any, queue: Any) -> None:
        before = client().info("stats")["total_commands_processed"]
        values = [job.city.hget(), job.size.hget(), job.identifier.hget(), *job.hmget("city", "size", "priority")]
        after = client().info("stats")["total_commands_processed"]
        found.extend([values, after - before])

    FieldsCoroutineJob.add_job("1", priority=4, city="Genève")

    work(1, callback=read)

    assert found == [["Genève", None, "1", "Genève", None, "4"], 1]  # the one that asks


def test_a_coroutine_sees_what_it_has_written_and_the_status_as_it_is() -> None:
    found: list[Any] = []

    async def write(job: Any, queue: Any) -> None:
        job.city.hset("Bern")
        job.hmset(size="3")
        found.extend([job.city.hget(), job.hmget("size", "identifier"), job.status.hget()])
        job.size.hincrby(2)
        job.city.delete()
        client().hset(job.key, "status", STATUSES.CANCELED)
        found.extend([job.city.hget(), job.size.hget(), job.status.hget()])

    FieldsCoroutineJob.add_job("1", city="Genève")

    work(1, callback=write)

    assert found == ["Bern", ["3", "1"], STATUSES.RUNNING, None, "5", STATUSES.CANCELED]


# --- Time limits and cancellation


def limit_by_class() -> Any:
    class TimedJob(CoroutineJob):
        job_timeout = 0.05

    return TimedJob.add_job("hold")


LIMITS: dict[str, Any] = {
    "class": (limit_by_class, {}),
    "add_job": (lambda: CoroutineJob.add_job("hold", job_timeout=0.05), {}),
    "worker": (lambda: CoroutineJob.add_job("hold"), {"job_timeout": 0.05}),
}


@pytest.mark.parametrize("where", LIMITS)
def test_a_coroutine_that_takes_too_long_is_cancelled(where: str, gate: Gate) -> None:
    add, options = LIMITS[where]
    job = add()

    work(1, **options)

    assert statuses([job]) == ["ERROR"]
    assert [name for name, _ in errors()] == ["JobTimeout"]
    assert (len(gate.passed), gate.within) == (1, [])


def test_a_coroutine_that_answers_in_spite_of_its_cancellation_is_a_success() -> None:
    async def insist(job: Any, queue: Any) -> str:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "done"

    job = CoroutineJob.add_job("1", job_timeout=0.05)

    worker = work(1, callback=insist, worker_class=ResultsWorker)

    assert worker.results == ["done"]
    assert statuses([job]) == ["SUCCESS"]


def test_a_coroutine_that_goes_on_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "CANCEL_AGAIN_SECONDS", 0.05)
    times: list[int] = []

    async def resist(job: Any, queue: Any) -> None:
        while len(times) < 3:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                times.append(1)
        await asyncio.sleep(1000)

    CoroutineJob.add_job("1", job_timeout=0.05)

    work(1, callback=resist)

    assert [name for name, _ in errors()] == ["JobTimeout"]


def test_a_plain_function_with_a_time_limit_is_refused_unless_that_is_allowed() -> None:
    jobs = [PlainRunJob.add_job("1", job_timeout=5)]
    work(1)
    assert [name for name, _ in errors()] == ["ConfigurationException"]

    jobs.append(PlainRunJob.add_job("2", job_timeout=5))
    work(1, allow_unenforced_timeouts=True)
    assert statuses(jobs) == ["ERROR", "SUCCESS"]


def test_a_coroutine_is_cancelled_when_its_job_is(gate: Gate, log: Log) -> None:
    class ToldCoroutineJob(CoroutineJob):
        async def on_skipped(self, queue: Any) -> None:
            self.calls.append(await asyncio.to_thread(self.status.hget))

    job, other = ToldCoroutineJob.add_job("hold"), CoroutineJob.add_job("hold 2")

    with Running(idle()):
        wait_until(lambda: len(gate.within) == 2)
        job.cancel()
        wait_until(lambda: CoroutineJob.calls == [STATUSES.CANCELED])
        assert gate.within == ["hold 2"]
        gate.is_open = True
        wait_until(lambda: statuses([job, other]) == ["CANCELED", "SUCCESS"])

    assert errors() == []
    assert leased() == []
    assert log.tracebacks == []


def test_a_job_that_has_expired_is_not_run() -> None:
    job = CoroutineJob.add_job("fail", expires=0.001)
    other = CoroutineJob.add_job("2")

    with Running(idle()):
        wait_until(lambda: statuses([job, other]) == ["CANCELED", "SUCCESS"])


# --- Queues


def test_jobs_begin_in_the_order_of_queues_and_priorities() -> None:
    begun: list[str] = []

    class NotingWorker(AsyncWorker):
        def _start_task(self, queue: Any, job: Any) -> None:  # once begun they run at the same time, in any order
            begun.append(job.identifier.hget())
            super()._start_task(queue, job)

    for name, queue_name, priority in [
        ("c", "two", 0),
        ("d", "one", -1),
        ("a", "one", 5),
        ("b", "two", 3),
        ("e", "two", -2),
    ]:
        CoroutineJob.add_job(name, queue_name=queue_name, priority=priority)

    work(5, ["one", "two"], worker_class=NotingWorker)

    assert begun == ["a", "b", "c", "d", "e"]


def test_new_queues_and_priorities_are_found_while_it_runs() -> None:
    with Running(idle(queues=["test", "later"])):
        jobs = [CoroutineJob.add_job("1")]
        wait_until(lambda: statuses(jobs) == ["SUCCESS"])
        jobs += [CoroutineJob.add_job("2", priority=7), CoroutineJob.add_job("3", queue_name="later")]
        wait_until(lambda: statuses(jobs) == ["SUCCESS"] * 3)


def test_delayed_jobs_run_when_they_are_due_beside_one_that_runs(gate: Gate) -> None:
    held = CoroutineJob.add_job("hold")
    with Running(idle()):
        wait_until(lambda: gate.within)
        job = CoroutineJob.add_job("later", delayed_for=0.1)
        wait_until(lambda: statuses([held, job]) == ["RUNNING", "SUCCESS"])
        gate.is_open = True


def test_what_is_no_job_does_not_stand_in_the_way() -> None:
    queue = Queue.get_queue("test")
    queue.waiting.rpush("nowhere.Nothing:1", f"{CoroutineJob.get_model_repr()}:999", "rubbish")
    job = CoroutineJob.add_job("1")
    broken = Queue.get_queue("broken")
    client().set(broken.waiting.key, "a string")

    with Running(idle(queues=["broken", "test"])):
        wait_until(lambda: statuses([job]) == ["SUCCESS"])
        wait_until(lambda: not queue.waiting.lmembers())

    assert leased() == []


# --- The loop


def test_a_blocked_loop_is_told_once_with_the_culprit_and_not_without_one(log: Log) -> None:
    async def block(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "block":
            wait_until(lambda: any("in block" in message for message in log.messages))
            is_told_again = threading.Event()
            is_told_again.wait(0.3)

    CoroutineJob.add_job("quick")
    CoroutineJob.add_job("block")

    work(2, callback=block, blocked_seconds=0.1, concurrency=1)

    # on a busy machine it may be blocked at other times, too, by nobody's fault
    told = [message for message in log.messages if "has been blocked" in message and "in block" in message]
    assert len(told) == 1


def test_an_idle_worker_sends_at_most_two_commands_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "EARLY_SECONDS", 1000)  # that it lives it says along with another command
    monkeypatch.setattr(claiming, "FIRST_LOOK_SECONDS", (1000.0, 1000.0))  # what is done once a minute
    monkeypatch.setattr(expiring, "FIRST_LOOK_SECONDS", (1000.0, 1000.0))
    Queue.get_queue("test")
    with Running(idle()):
        wait_until_idle()
        client().config_resetstat()
        seconds, micros = client().time()
        wait_until(lambda: sent("blpop") >= 2)
        later, more = client().time()
        elapsed = later - seconds + (more - micros) / 1e6

    assert sent("blpop") + sent("evalsha") <= 2 * elapsed + 2


def sent(command: str) -> int:
    """How often a command was sent since the statistics began."""
    return int(client().info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def test_a_thousand_jobs_cost_far_less_than_a_call_each() -> None:
    for number in range(1000):
        CoroutineJob.add_job(str(number))
    client().config_resetstat()

    work(1000, concurrency=100)

    assert sent("evalsha") < 100


def test_jobs_see_the_context_of_their_start_and_run_in_a_task_of_their_own() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    found: list[Any] = []

    class ContextWorker(AsyncWorker):
        async def job_started(self, job: Any, queue: Any) -> None:
            variable.set(job.identifier.hget())
            await super().job_started(job, queue)

    async def look(job: Any, queue: Any) -> None:
        await asyncio.sleep(0)
        found.append((job.identifier.hget(), variable.get(), asyncio.current_task()))

    for number in range(3):
        CoroutineJob.add_job(str(number))

    work(3, callback=look, worker_class=ContextWorker)

    assert all(identifier == value for identifier, value, _ in found)
    assert len({id(task) for _, _, task in found}) == 3
    assert variable.get() == "none"


# --- What goes wrong


def test_a_full_worker_does_not_take_rings_from_an_idle_one(gate: Gate) -> None:
    full, other = idle(concurrency=1), idle(concurrency=1)
    first = CoroutineJob.add_job("hold 1")
    with Running(full):
        wait_until(lambda: len(gate.within) == 1)
        wait_until_idle(0)
        with Running(other):
            wait_until_idle()
            second = CoroutineJob.add_job("hold 2")
            wait_until(lambda: len(gate.within) == 2)
            assert other.num_loops == 1
            gate.is_open = True
            wait_until(lambda: statuses([first, second]) == ["SUCCESS"] * 2)


def test_a_worker_that_cannot_renew_its_leases_claims_nothing(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = idle()
    with Running(worker):
        CoroutineJob.add_job("hold")
        wait_until(lambda: gate.within)
        monkeypatch.setattr(type(worker._heartbeat), "is_failing", property(lambda beat: True))
        gate.is_open = True
        wait_until(lambda: Queue.get_queue("test").success.llen() == 1)
        job = CoroutineJob.add_job("later")
        wait_until(lambda: worker._ring is None)
        assert statuses([job]) == ["WAITING"]
        monkeypatch.undo()
        wait_until(lambda: statuses([job]) == ["SUCCESS"])


def test_cut_connections_lose_nothing_and_run_nothing_twice(gate: Gate) -> None:
    runs: list[str] = []

    async def run_slowly(job: Any, queue: Any) -> None:
        runs.append(job.identifier.hget())
        await asyncio.sleep(0.001)

    jobs = [CoroutineJob.add_job(str(number)) for number in range(300)]
    with Running(idle(concurrency=10, callback=run_slowly)):
        for count in range(0, 300, 50):
            wait_until(lambda count=count: len(runs) >= count)
            client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: Queue.get_queue("test").success.llen() == 300)

    assert statuses(jobs) == ["SUCCESS"] * 300
    assert sorted(map(int, runs)) == list(range(300))
    assert leased() == []


def test_a_lease_that_is_lost_meanwhile_is_told_and_nothing_is_recorded(gate: Gate, log: Log) -> None:
    job = CoroutineJob.add_job("hold")
    with Running(idle()):
        wait_until(lambda: gate.within)
        for key in ("jobs:leases", "jobs:claims"):
            client().delete(key)
        gate.is_open = True
        wait_until(lambda: any("lease" in message for message in log.messages))

    assert statuses([job]) == ["RUNNING"]


# --- Processes that a job forks; another master


@pytest.mark.parametrize("is_plain", [False, True], ids=["coroutine", "plain"])
def test_a_process_that_a_job_forks_ends_and_the_worker_goes_on(is_plain: bool) -> None:
    children: list[int] = []

    def fork(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "forks":
            pid = os.fork()
            if pid:
                children.append(pid)

    async def fork_in_the_loop(job: Any, queue: Any) -> None:
        fork(job, queue)

    first, second = CoroutineJob.add_job("forks"), CoroutineJob.add_job("after")

    work(2, callback=fork if is_plain else fork_in_the_loop)

    assert [first.status.hget(), second.status.hget()] == [STATUSES.SUCCESS] * 2
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def test_the_connections_to_what_was_the_master_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asend, refusals, left = transitions.asend, [ReadOnlyError("a replica")], []

    async def refuse_once(client: Any, call: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await asend(client, call)

    async def note(client: Any, error: Exception) -> None:
        left.append(type(error))

    monkeypatch.setattr(transitions, "asend", refuse_once)
    monkeypatch.setattr(asynchronous, "leave_replica", note)
    job = CoroutineJob.add_job("1")

    work(1)

    assert left == [ReadOnlyError]
    assert job.status.hget() == STATUSES.SUCCESS


def test_a_coroutine_that_makes_another_error_of_its_cancellation_has_run_out_of_time() -> None:
    async def convert(job: Any, queue: Any) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            raise ConnectionError("gone") from None

    CoroutineJob.add_job("1", job_timeout=0.05)

    work(1, callback=convert)

    assert [name for name, _ in errors()] == ["JobTimeout"]
