"""Workers whose jobs run in children: whatever a job does to its process, its story is that of any other job."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Cancellation, Error, Job, JobTimeout, Queue, Retry, admin
from limpyd_jobs.exceptions import ConfigurationException, JobProcessDied
from limpyd_jobs.workers import Worker, blocking

from ..base import wait_until
from .base import Log, Running, client, idle, leased, run, work

pytestmark = pytest.mark.usefixtures("database")


class IsolatingJob(Job):
    """Notes its hooks, and the process in which they are called."""

    queue_name = "test"
    calls: ClassVar[list[Any]] = []

    def on_success(self, queue: Any, result: Any) -> None:
        self.calls.append(("success", os.getpid(), result))

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.calls.append(("error", os.getpid(), exception))

    def on_skipped(self, queue: Any) -> None:
        self.calls.append(("skipped", os.getpid(), None))

    def on_requeued(self, queue: Any) -> None:
        self.calls.append(("requeued", os.getpid(), None))


class AlwaysIsolatedJob(Job):
    queue_name = "test"
    isolate = True


class NeverIsolatedJob(Job):
    queue_name = "test"
    isolate = False


class CanceledIsolatedJob(Job):
    """Is canceled when it has started, and runs when the heartbeat has seen that."""

    queue_name = "test"
    seen: ClassVar[Callable[[], bool]] = staticmethod(lambda: True)

    def on_started(self, queue: Any) -> None:
        self.cancel()
        wait_until(type(self).seen)

    def run(self, queue: Any) -> None:
        time.sleep(60)


class PreparingWorker(Worker):
    def after_fork(self) -> None:
        client().rpush("test:forks", os.getpid())


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no process is left, no job is leased, and the invariants hold."""
    IsolatingJob.calls.clear()
    before = children()
    yield
    assert leased() == []
    assert [str(problem) for problem in admin.check()] == []
    assert children() == before


def children() -> list[str]:
    """The processes that this one has started, dead ones that nobody has waited for among them."""
    return sorted(pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split())


def isolate(jobs: int = 1, **options: Any) -> Worker:
    return work(jobs, **{"isolate": True, **options})


def raising(error: BaseException) -> Callable[[Any, Any], Any]:
    def callback(job: Any, queue: Any) -> Any:
        raise error

    return callback


def hooks() -> list[str]:
    return [name for name, _, _ in IsolatingJob.calls]


def the_error(job: Any) -> Any:
    (error,) = Error.collection_for_job(job).instances()
    return error


# --- Results and errors


def test_a_job_runs_in_a_child_and_its_hooks_in_the_worker() -> None:
    job = IsolatingJob.add_job("one")

    isolate(callback=lambda job, queue: {"pid": os.getpid()})

    ((name, pid, result),) = IsolatingJob.calls
    assert (name, pid) == ("success", os.getpid())
    assert result["pid"] != os.getpid()
    assert job.hmget("status", "queued", "tries") == [STATUSES.SUCCESS, None, "1"]


def test_an_error_of_the_child_comes_with_its_class_and_its_traceback() -> None:
    job = IsolatingJob.add_job("one")

    def raise_deep_inside(job: Any, queue: Any) -> None:
        raise KeyError("which")

    isolate(callback=raise_deep_inside)

    ((name, pid, error),) = IsolatingJob.calls
    assert (name, pid, type(error), error.args) == ("error", os.getpid(), KeyError, ("which",))
    assert the_error(job).type.hget() == "KeyError"
    assert "raise_deep_inside" in the_error(job).traceback.hget()


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x"), StopIteration("x")], ids=repr
)
def test_what_else_a_job_raises_is_its_error(error: BaseException) -> None:
    job, other = IsolatingJob.add_job("one"), IsolatingJob.add_job("two")

    isolate(2, callback=lambda running, queue: raising(error)(None, None) if running.pk.get() == "1" else None)

    assert the_error(job).type.hget() == type(error).__name__
    assert other.status.hget() == STATUSES.SUCCESS


def test_a_result_that_cannot_travel_is_told_in_the_log(log: Log) -> None:
    job = IsolatingJob.add_job("one")

    isolate(callback=lambda job, queue: threading.Lock())

    assert job.status.hget() == STATUSES.SUCCESS
    assert IsolatingJob.calls[0][2] is None
    assert log.level_of("its result is lost") == "WARNING"
    assert job.ident in next(line for line in log.lines if "its result is lost" in line)


def test_a_coroutine_is_run_in_the_child() -> None:
    IsolatingJob.add_job("one")

    async def callback(job: Any, queue: Any) -> int:
        return os.getpid()

    isolate(callback=callback)

    assert IsolatingJob.calls[0][2] not in (None, os.getpid())


def test_what_the_child_logs_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    IsolatingJob.add_job("one")
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("limpyd-jobs").addHandler(handler)
    try:
        isolate(callback=lambda job, queue: logging.getLogger("limpyd-jobs").warning("from the child"))
    finally:
        logging.getLogger("limpyd-jobs").removeHandler(handler)

    assert capfd.readouterr().err.count("from the child") == 1


# --- Deaths


def end_in_a_segmentation_fault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


DEATHS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "segfault": (end_in_a_segmentation_fault, -signal.SIGSEGV, "SIGSEGV"),
    "exit": (lambda: os._exit(7), 7, "7"),
    "exit with 0": (lambda: os._exit(0), 0, "0"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL, "SIGKILL"),
    "abort": (os.abort, -signal.SIGABRT, "SIGABRT"),
}


@pytest.mark.parametrize("death", list(DEATHS))
def test_the_death_of_the_child_is_the_error_of_its_job_and_named(death: str) -> None:
    die, code, name = DEATHS[death]
    job, other = IsolatingJob.add_job("one"), IsolatingJob.add_job("two")

    def callback(running: Any, queue: Any) -> None:
        if running.pk.get() == job.pk.get():
            die()

    isolate(2, callback=callback)

    error = IsolatingJob.calls[0][2]
    assert isinstance(error, JobProcessDied) and error.code == code
    assert the_error(job).type.hget() == "JobProcessDied"
    assert name in the_error(job).message.hget()
    assert [job.status.hget(), other.status.hget()] == [STATUSES.ERROR, STATUSES.SUCCESS]


def test_a_job_that_may_not_have_so_much_memory_is_in_error() -> None:
    job = IsolatingJob.add_job("one")

    def callback(job: Any, queue: Any) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
        bytearray(1 << 31)

    isolate(callback=callback)

    assert the_error(job).type.hget() == "MemoryError"


def test_a_job_whose_process_died_is_requeued() -> None:
    job = IsolatingJob.add_job("one", requeue_times=1, requeue_delay_delta=0, retry_on=JobProcessDied)

    isolate(2, callback=lambda job, queue: os._exit(1) if job.tries.hget() == "1" else None)

    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "2"]
    assert hooks() == ["error", "requeued", "success"]


def test_a_retry_that_a_job_asks_for_holds() -> None:
    job = IsolatingJob.add_job("one")

    isolate(callback=raising(Retry(delayed_for=60)))

    assert job.status.hget() == STATUSES.DELAYED
    assert hooks() == ["requeued"]


def test_a_job_that_takes_too_long_is_killed_whatever_it_catches() -> None:
    job = IsolatingJob.add_job("one")

    def callback(job: Any, queue: Any) -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)

    isolate(callback=callback, job_timeout=0.1)

    assert type(IsolatingJob.calls[0][2]) is JobTimeout
    assert the_error(job).type.hget() == "JobTimeout"
    assert job.ident in the_error(job).message.hget() and "0.1 seconds" in the_error(job).message.hget()


def test_isolated_jobs_have_their_limit_also_in_a_worker_that_runs_in_a_thread() -> None:
    job = IsolatingJob.add_job("one", job_timeout=0.1)
    with Running(idle(isolate=True, callback=lambda job, queue: time.sleep(60))):
        wait_until(lambda: job.status.hget() == STATUSES.ERROR)
    assert the_error(job).type.hget() == "JobTimeout"


# --- What a job does to itself


@pytest.mark.parametrize("prefetch", [0, 5])
def test_jobs_that_move_cancel_delay_and_delete_themselves_go_where_they_want(prefetch: int, log: Log) -> None:
    model = AlwaysIsolatedJob
    jobs = {name: model.add_job(name) for name in ("moves", "cancels", "delays", "deletes", "requeued", "ends")}

    def callback(job: Any, queue: Any) -> None:
        assert os.getpid() != parent
        name = job.identifier.hget()
        if name == "moves":
            job.enqueue_or_delay("elsewhere", priority=3)
        elif name == "cancels":
            job.cancel("of itself")
            time.sleep(0.01)
        elif name == "delays":
            job.status.hset(STATUSES.DELAYED)
        elif name == "deletes":
            job.delete()
        elif name == "requeued":
            job.enqueue_or_delay(delayed_until=None, queue_name="test", priority=-5)

    parent = os.getpid()
    work(6, callback=callback, prefetch=prefetch)

    assert jobs["moves"].hmget("status", "priority") == [STATUSES.WAITING, "3"]
    assert Queue.get_queue("elsewhere", 3).waiting.lmembers() == [jobs["moves"].ident]
    assert jobs["cancels"].hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "of itself"]
    assert jobs["delays"].status.hget() == STATUSES.DELAYED
    assert jobs["deletes"].pk.get() not in model.collection()
    assert jobs["requeued"].hmget("status", "priority") == [STATUSES.WAITING, "-5"]
    assert jobs["ends"].status.hget() == STATUSES.SUCCESS
    assert log.tracebacks == []


def test_a_job_may_add_jobs_and_look_at_itself() -> None:
    IsolatingJob.add_job("one")

    def callback(job: Any, queue: Any) -> Any:
        NeverIsolatedJob.add_job("added", queue_name="later")
        return [*job.hmget("identifier", "status"), queue.name.hget(), queue.waiting.llen()]

    isolate(callback=callback)

    assert IsolatingJob.calls[0][2] == ["one", STATUSES.RUNNING, "test", 0]
    assert Queue.get_queue("later").waiting.llen() == 1


# --- Cancel


def test_a_job_that_is_canceled_is_killed_and_skipped(log: Log) -> None:
    job = IsolatingJob.add_job("one")

    def callback(job: Any, queue: Any) -> None:
        client().set("test:pid", os.getpid())
        time.sleep(60)

    with Running(idle(isolate=True, callback=callback)):
        pid = int(wait_until(lambda: client().get("test:pid")))
        assert job.cancel("no more") is Cancellation.REQUESTED
        wait_until(lambda: hooks() == ["skipped"])

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "no more"]
    assert len(Error.collection()) == 0
    assert Queue.get_queue("test").errors.llen() == 0
    assert not Path(f"/proc/{pid}").exists()
    assert log.tracebacks == []


def test_a_job_that_was_canceled_before_its_fork_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    warm, job = IsolatingJob.add_job("first of all"), CanceledIsolatedJob.add_job("one")
    worker = idle(isolate=True, max_loops=2, lease_seconds=1)
    monkeypatch.setattr(IsolatingJob, "run", lambda self, queue: None, raising=False)

    def is_told() -> bool:
        return worker._heartbeat is not None and bool(worker._heartbeat._told)

    monkeypatch.setattr(CanceledIsolatedJob, "seen", staticmethod(is_told))
    run(worker)

    assert [warm.status.hget(), job.status.hget()] == [STATUSES.SUCCESS, STATUSES.CANCELED]


def test_the_job_after_a_canceled_one_runs() -> None:
    IsolatingJob.add_job("canceled"), IsolatingJob.add_job("next")

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "canceled":
            job.cancel()
            time.sleep(60)

    isolate(2, callback=callback)

    assert hooks() == ["skipped", "success"]


# --- Leases


def test_the_lease_of_a_long_job_is_renewed() -> None:
    job = IsolatingJob.add_job("one")
    runs: list[Any] = []

    def callback(job: Any, queue: Any) -> None:
        client().rpush("test:runs", os.getpid())
        while not client().exists("test:go"):
            time.sleep(0.01)

    with Running(idle(isolate=True, lease_seconds=1, callback=callback)):
        wait_until(lambda: client().llen("test:runs"))
        with Running(idle(lease_seconds=1, callback=lambda job, queue: runs.append(1))):
            first = client().zscore("jobs:leases", job.ident)
            wait_until(lambda: client().zscore("jobs:leases", job.ident) > first + 1.2)
            client().set("test:go", 1)
            wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert (client().llen("test:runs"), runs) == (1, [])


# --- Who is isolated


def test_a_class_may_be_isolated_in_a_plain_worker_and_not_in_one_that_isolates() -> None:
    AlwaysIsolatedJob.add_job("one"), NeverIsolatedJob.add_job("two")
    seen: dict[str, Any] = {}

    class Noting(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> Any:
            seen[job.identifier.hget()] = job_result == os.getpid()
            return super().job_success(job, queue, job_result)

    work(2, worker_class=Noting, callback=lambda job, queue: os.getpid())
    assert seen == {"one": False, "two": True}

    AlwaysIsolatedJob.add_job("one"), NeverIsolatedJob.add_job("two")
    isolate(2, worker_class=Noting, callback=lambda job, queue: os.getpid())
    assert seen == {"one": False, "two": True}


def test_isolation_of_all_and_prefetch_are_refused_together() -> None:
    with pytest.raises(ConfigurationException, match="isolate and prefetch"):
        idle(isolate=True, prefetch=10)


def test_isolated_jobs_among_others_that_were_claimed_ahead_run_once_each() -> None:
    names = [str(number) for number in range(30)]
    jobs = [
        (AlwaysIsolatedJob if number % 5 == 0 else NeverIsolatedJob).add_job(name) for number, name in enumerate(names)
    ]

    work(30, prefetch=7, callback=lambda job, queue: client().rpush("test:runs", job.identifier.hget()))

    assert client().lrange("test:runs", 0, -1) == names
    assert {tuple(job.hmget("status", "tries")) for job in jobs} == {(STATUSES.SUCCESS, "1")}


def test_nothing_is_left_to_be_sent_at_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the thread that sends ends might hold a lock of the connection pool then, and the child would wait."""
    for number in range(20):
        (AlwaysIsolatedJob if number % 3 == 2 else NeverIsolatedJob).add_job(str(number))
    found = []

    class Watched(blocking.IsolatedRun):
        def wait(self) -> Any:
            ahead = worker._ahead
            found.append((list(ahead.unsent), ahead.fetch, ahead.running))
            return super().wait()

    monkeypatch.setattr(blocking, "IsolatedRun", Watched)
    worker = idle(prefetch=6, max_loops=20, callback=lambda job, queue: None)
    run(worker)

    assert found == [([], None, None)] * 6


def test_the_child_is_prepared_by_the_worker() -> None:
    IsolatingJob.add_job("one"), IsolatingJob.add_job("two")

    isolate(2, worker_class=PreparingWorker, callback=lambda job, queue: os.getpid())

    assert client().lrange("test:forks", 0, -1) == [str(result) for _, _, result in IsolatingJob.calls]


def test_an_error_in_the_preparation_is_that_of_the_job() -> None:
    job = IsolatingJob.add_job("one")

    class Failing(Worker):
        def after_fork(self) -> None:
            raise OSError("no file")

    isolate(worker_class=Failing, callback=lambda job, queue: None)

    assert the_error(job).message.hget() == "no file"


# --- Many


def test_a_hundred_jobs_in_a_burst_leave_no_process_and_no_descriptor() -> None:
    IsolatingJob.add_job("first")
    isolate(callback=lambda job, queue: None)  # what a worker leaves open for the next one is open then
    jobs = [IsolatingJob.add_job(str(number)) for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    worker = idle(isolate=True, burst=True, callback=lambda job, queue: job.identifier.hget())

    run(worker)

    assert worker.is_drained
    assert [result for _, _, result in IsolatingJob.calls][1:] == [str(number) for number in range(100)]
    assert {job.status.hget() for job in jobs} == {STATUSES.SUCCESS}
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_child_uses_redis_while_the_threads_of_its_worker_do(log: Log) -> None:
    for number in range(25):
        IsolatingJob.add_job(str(number))

    isolate(25, lease_seconds=0.06, callback=lambda job, queue: client().incr("test:count"))

    assert [result for _, _, result in IsolatingJob.calls] == list(range(1, 26))
    assert log.tracebacks == []
