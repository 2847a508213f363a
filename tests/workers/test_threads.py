"""A worker with threads: several jobs at a time, and each has the story that it has without."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from redis.exceptions import ConnectionError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin
from limpyd_jobs.exceptions import ConfigurationException, LimpydJobsException

from ..base import RedisServer, wait_until
from ..proxy import Proxy
from .base import DEADLINE_SECONDS, Log, Running, client, idle, leased, run, work

pytestmark = pytest.mark.usefixtures("database")


class ThreadsJob(Job):
    queue_name = "test"


class ThreadedHooksJob(Job):
    """Notes the thread of its run and of each of its hooks."""

    queue_name = "test"
    threads: ClassVar[dict[str, set[str]]] = {}

    def _note(self) -> None:
        self.threads.setdefault(self.identifier.hget(), set()).add(threading.current_thread().name)

    def run(self, queue: Any) -> None:
        self._note()

    def on_started(self, queue: Any) -> None:
        self._note()

    def on_success(self, queue: Any, result: Any) -> None:
        self._note()


class ThreadedChainJob(Job):
    """Adds the next one at its end, when the worker has had the time to find nothing else."""

    queue_name = "test"

    def run(self, queue: Any) -> None:
        if self.identifier.hget() == "first":
            wait_until(lambda: queue.get_connection().info("clients")["blocked_clients"])
            ThreadedChainJob.add_job("second")


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, no job is leased, and the invariants hold."""
    yield
    assert leased() == []
    assert [str(problem) for problem in admin.check()] == []


def add(*names: str, **values: Any) -> list[Any]:
    return [ThreadsJob.add_job(name, **values) for name in names]


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def statuses(jobs: list[Any]) -> Counter[str]:
    return Counter(job.status.hget() for job in jobs)


class Crew:
    """A callback that holds its jobs until so many run at a time, and counts those."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.most = self.now = 0
        self.lock = threading.Lock()
        self.is_full = threading.Event()

    def __call__(self, job: Any, queue: Any) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self.wanted:
                self.is_full.set()
        self.is_full.wait(DEADLINE_SECONDS)
        time.sleep(random.uniform(0, 0.002))
        with self.lock:
            self.now -= 1


class Gate:
    """A callback that notes the jobs that have begun, and holds them until it is opened."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.is_open = threading.Event()

    def __call__(self, job: Any, queue: Any) -> None:
        self.begun.append(job.identifier.hget())
        assert self.is_open.wait(DEADLINE_SECONDS)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.begun) >= count, message=f"{count} jobs have begun")


# --- How many at a time


@pytest.mark.parametrize("threads", [2, 7])
def test_so_many_jobs_run_at_a_time_and_never_more(threads: int) -> None:
    jobs = add(*numbers(60))
    crew = Crew(threads)

    work(60, threads=threads, callback=crew)

    assert crew.most == threads
    assert statuses(jobs) == {STATUSES.SUCCESS: 60}


def test_a_free_thread_takes_the_next_job_while_the_others_run() -> None:
    add("holds", *numbers(20))
    gate, ran = Gate(), []

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "holds":
            gate(job, queue)
        ran.append(job.identifier.hget())

    with Running(idle(threads=2, callback=callback)):
        wait_until(lambda: len(ran) == 20)
        gate.is_open.set()
        wait_until(lambda: ran[-1] == "holds")


def test_free_threads_are_filled_by_one_claim() -> None:
    add(*numbers(5))
    gate = Gate()
    worker = idle(threads=5, callback=gate)
    with Running(worker):
        gate.wait_for(5)
        made = worker._claims_made
        gate.is_open.set()
    assert made == 5


@pytest.mark.parametrize("max_loops", [1, 5, 7])
def test_max_loops_is_exact(max_loops: int) -> None:
    jobs = add(*numbers(20))

    work(max_loops, threads=3, callback=Crew(1))

    assert statuses(jobs) == {STATUSES.SUCCESS: max_loops, STATUSES.WAITING: 20 - max_loops}
    assert {job.tries.hget() for job in jobs[max_loops:]} == {None}


def test_a_burst_runs_also_what_its_last_jobs_add() -> None:
    ThreadedChainJob.add_job("first")

    run(idle(threads=3, burst=True))

    assert len(ThreadedChainJob.collection(status=STATUSES.SUCCESS)) == 2


def test_a_burst_ends_soon_after_its_last_job() -> None:
    add(*numbers(10))
    worker = idle(threads=3, burst=True, callback=Crew(3))

    run(worker)

    assert worker.is_drained and worker.num_loops == 10


def test_the_claims_of_a_worker_that_must_stop_and_have_not_begun_are_given_back() -> None:
    jobs = add(*numbers(4))

    class Stopping(Worker):
        def set_status(self, status: str) -> None:
            super().set_status(status)
            if status == "running":  # one of its four claims is accepted
                self.end_forced = True

    run(idle(Stopping, threads=4, callback=Crew(1)))

    found = statuses(jobs)
    assert found[STATUSES.SUCCESS] >= 1 and found[STATUSES.SUCCESS] + found[STATUSES.WAITING] == 4
    waiting = [job for job in jobs if job.status.hget() == STATUSES.WAITING]
    assert client().lrange("jobs:queue:1:waiting", 0, -1) == [job.ident for job in waiting]
    assert {tuple(job.hmget("tries", "start", "recoveries")) for job in waiting} <= {(None, None, None)}


# --- Order


def test_jobs_begin_in_the_order_of_their_priority() -> None:
    for number in random.sample(range(30), 30):
        ThreadsJob.add_job(str(number), priority=number // 3)
    begun = []

    class Noting(Worker):
        def _handle(self, queue: Any, job: Any) -> None:
            begun.append(int(job.priority.hget()))
            super()._handle(queue, job)

    work(30, worker_class=Noting, threads=4, callback=Crew(1))

    assert begun == sorted(begun, reverse=True)


# --- Hooks


def test_run_and_hooks_of_a_job_are_called_in_one_thread_of_the_worker() -> None:
    ThreadedHooksJob.threads.clear()
    for name in numbers(20):
        ThreadedHooksJob.add_job(name)

    work(20, threads=4)

    assert {len(found) for found in ThreadedHooksJob.threads.values()} == {1}
    assert all(name.startswith("limpyd-jobs-hand-") for found in ThreadedHooksJob.threads.values() for name in found)
    assert len(ThreadedHooksJob.threads) == 20


def test_hooks_of_the_worker_are_called_once_for_each_job_with_its_result() -> None:
    add(*numbers(50))
    results: dict[str, Any] = {}

    class Noting(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> Any:
            assert results.setdefault(job.identifier.hget(), job_result) == job_result
            return super().job_success(job, queue, job_result)

    work(50, worker_class=Noting, threads=8, callback=lambda job, queue: f"result {job.identifier.hget()}")

    assert results == {name: f"result {name}" for name in numbers(50)}


def test_a_hook_that_raises_ends_neither_the_thread_nor_the_worker(log: Log) -> None:
    jobs = add(*numbers(10))

    class Failing(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> Any:
            raise SystemExit("a hook")

    work(10, worker_class=Failing, threads=3, callback=Crew(1))

    assert statuses(jobs) == {STATUSES.SUCCESS: 10}
    assert len(log.tracebacks) == 10


def test_the_numbers_of_each_job_are_its_own() -> None:
    jobs = add(*numbers(40))

    def callback(job: Any, queue: Any) -> None:
        if int(job.identifier.hget()) % 2:
            raise ValueError(job.identifier.hget())

    work(40, threads=6, callback=callback)

    assert statuses(jobs) == {STATUSES.SUCCESS: 20, STATUSES.ERROR: 20}
    assert {error.identifier.hget(): error.message.hget() for error in Error.collection().instances()} == {
        name: name for name in numbers(40)[1::2]
    }
    assert {job.tries.hget() for job in jobs} == {"1"}
    assert {bool(job.start.hget() and job.end.hget()) for job in jobs} == {True}


# --- What jobs do


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x"), StopIteration(1)],
)
def test_whatever_a_job_raises_is_its_error_alone(error: BaseException) -> None:
    jobs = add(*numbers(9))

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "4":
            raise error

    work(9, threads=3, callback=callback)

    assert statuses(jobs) == {STATUSES.SUCCESS: 8, STATUSES.ERROR: 1}
    assert [one.type.hget() for one in Error.collection_for_job(jobs[4]).instances()] == [type(error).__name__]


def test_jobs_that_cancel_delay_and_requeue_themselves_go_where_they_want() -> None:
    def callback(job: Any, queue: Any) -> None:
        what = job.identifier.hget().partition(" ")[0]
        if what == "cancels":
            job.cancel()
        elif what == "delays":
            job.status.hset(STATUSES.DELAYED)
        elif what == "moves":
            job.enqueue_or_delay("elsewhere")
        elif what == "deletes":
            job.delete()

    jobs = {what: add(*(f"{what} {n}" for n in range(4))) for what in ("cancels", "delays", "moves", "deletes")}

    work(16, threads=4, callback=callback)

    assert statuses(jobs["cancels"]) == {STATUSES.CANCELED: 4}
    assert statuses(jobs["delays"]) == {STATUSES.DELAYED: 4}
    assert statuses(jobs["moves"]) == {STATUSES.WAITING: 4}
    assert Queue.get_queue("elsewhere").waiting.llen() == 4
    assert not {job.pk.get() for job in jobs["deletes"]} & set(ThreadsJob.collection())


def test_a_job_may_add_its_own_identifier_again_and_gets_itself() -> None:
    add(*numbers(6))
    found = []

    def callback(job: Any, queue: Any) -> None:
        found.append(ThreadsJob.add_job(job.identifier.hget()).pk.get() == job.pk.get())

    work(6, threads=3, callback=callback)

    assert found == [True] * 6
    assert len(ThreadsJob.collection()) == 6


def test_a_job_that_failed_is_requeued() -> None:
    jobs = add(*numbers(6))

    def callback(job: Any, queue: Any) -> None:
        if job.tries.hget() == "1":
            raise ValueError

    work(12, threads=3, callback=callback, requeue_times=1, requeue_delay_delta=0)

    assert statuses(jobs) == {STATUSES.SUCCESS: 6}
    assert {job.tries.hget() for job in jobs} == {"2"}


@pytest.mark.parametrize("end", ["returns", "exits", "raises", "raises a RedisError", "interrupts"])
def test_a_process_that_a_job_forks_ends_and_the_worker_goes_on(end: str) -> None:
    jobs = add(*numbers(6))
    children: list[tuple[int, int]] = []

    def callback(job: Any, queue: Any) -> None:
        if job.identifier.hget() != "2":
            return
        child = os.fork()
        if child:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not (found := os.waitpid(child, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.005)
            children.append(found)
        elif end == "exits":
            os._exit(0)
        elif end == "raises":
            raise ValueError
        elif end == "raises a RedisError":
            raise ConnectionError
        elif end == "interrupts":
            raise KeyboardInterrupt

    work(6, threads=3, callback=callback)

    assert [os.waitstatus_to_exitcode(status) for _, status in children] == [0]
    assert statuses(jobs) == {STATUSES.SUCCESS: 6}


# --- Leases


def test_the_leases_of_all_that_runs_are_renewed(log: Log) -> None:
    jobs = add(*numbers(4))
    gate = Gate()
    with Running(idle(threads=4, callback=gate, lease_seconds=1)), Running(idle(lease_seconds=1, callback=gate)):
        gate.wait_for(4)
        first = client().zscore("jobs:leases", jobs[0].ident)
        wait_until(lambda: client().zscore("jobs:leases", jobs[0].ident) > first + 1.2, message="longer than a lease")
        gate.is_open.set()

    assert Counter(gate.begun) == dict.fromkeys(numbers(4), 1)
    assert statuses(jobs) == {STATUSES.SUCCESS: 4}


def test_a_lost_lease_ends_nothing_but_that_job(log: Log) -> None:
    jobs = add(*numbers(3))
    gate = Gate()
    with Running(idle(threads=3, callback=gate)):
        gate.wait_for(3)
        client().hdel("jobs:claims", jobs[1].ident)
        client().zrem("jobs:leases", jobs[1].ident)
        gate.is_open.set()

    assert statuses([jobs[0], jobs[2]]) == {STATUSES.SUCCESS: 2}
    assert jobs[1].status.hget() == STATUSES.RUNNING
    assert [line for line in log.lines if jobs[1].ident in line and "lease" in line]
    client().delete(*client().keys("jobs:*"))  # nobody owns that job any more, which `books` would tell


def test_an_outage_while_several_run_loses_none(redis_server: RedisServer, database: Any, log: Log) -> None:
    jobs = add(*numbers(8))
    gate = Gate()
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        database.reset(host="127.0.0.1", port=proxy.port, db=0)
        with Running(idle(threads=4, callback=gate)):
            gate.wait_for(4)
            proxy.refuse()
            proxy.break_all()
            gate.is_open.set()
            wait_until(lambda: any("Redis cannot be used" in line for line in log.lines))
            proxy.accept()
            wait_until(lambda: redis_server.client().llen("jobs:queue:1:success") == 8)
        database.reset(**redis_server.settings)

    assert statuses(jobs) == {STATUSES.SUCCESS: 8}
    assert {job.tries.hget() for job in jobs} == {"1"}


# --- Limits, retention


def test_max_memory_ends_the_worker_after_the_jobs_that_run(log: Log) -> None:
    jobs = add(*numbers(30))
    worker = idle(threads=3, callback=Crew(3), max_memory=1)

    run(worker)

    assert worker.num_loops < 10
    assert statuses(jobs)[STATUSES.SUCCESS] == worker.num_loops
    assert [line for line in log.lines if "max_memory" in line]


def test_histories_are_kept_short(log: Log) -> None:
    add(*numbers(80))

    work(80, threads=6, callback=Crew(1), keep_success=10)

    assert client().llen("jobs:queue:1:success") <= 30
    assert log.tracebacks == []


# --- What is refused


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prefetch": 5}, "threads and prefetch"),
        ({"isolate": True}, "threads and isolate"),
        ({"job_timeout": 5}, "job_timeout"),
    ],
)
def test_what_threads_cannot_do_is_refused_at_the_start(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationException, match=named):
        idle(threads=2, **options)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, int, 1001])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: Any) -> None:
    with pytest.raises(ConfigurationException, match="threads"):
        idle(threads=threads)


def test_a_job_with_a_time_limit_is_in_error_and_does_not_run(log: Log) -> None:
    limited, (free,) = ThreadsJob.add_job("limited", job_timeout=5), add("free")
    ran: list[str] = []

    work(2, threads=2, callback=lambda job, queue: ran.append(job.identifier.hget()))

    assert ran == ["free"]
    assert [limited.status.hget(), free.status.hget()] == [STATUSES.ERROR, STATUSES.SUCCESS]
    (error,) = Error.collection_for_job(limited).instances()
    assert error.type.hget() == "ConfigurationException" and "5 seconds" in error.message.hget()


def test_a_job_with_a_time_limit_runs_without_it_where_that_is_allowed() -> None:
    limited = ThreadsJob.add_job("limited", job_timeout=0.001)

    work(1, threads=2, allow_unenforced_timeouts=True, job_timeout=5, callback=lambda job, queue: time.sleep(0.01))

    assert limited.status.hget() == STATUSES.SUCCESS


class IsolatedThreadsJob(Job):
    queue_name = "test"
    isolate = True


def test_a_job_whose_class_is_isolated_is_in_error_and_does_not_run() -> None:
    job, (other,) = IsolatedThreadsJob.add_job("one"), add("two")

    work(2, threads=2, callback=lambda job, queue: None)

    assert [job.status.hget(), other.status.hget()] == [STATUSES.ERROR, STATUSES.SUCCESS]
    assert [error.type.hget() for error in Error.collection_for_job(job).instances()] == ["ConfigurationException"]


# --- The worker


def test_a_worker_with_threads_runs_in_a_thread_of_a_program() -> None:
    jobs = add(*numbers(20))
    crew = Crew(3)
    with Running(idle(threads=3, callback=crew)):
        wait_until(lambda: statuses(jobs) == {STATUSES.SUCCESS: 20})
    assert crew.most == 3


def test_a_worker_that_has_run_does_not_run_again() -> None:
    add("one")
    worker = work(1, threads=2, callback=Crew(1))

    with pytest.raises(LimpydJobsException):
        worker.run()


def test_the_threads_of_a_worker_that_has_ended_are_gone() -> None:
    add(*numbers(4))

    work(4, threads=4, callback=Crew(4))

    def left() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("limpyd-jobs-hand")]

    wait_until(lambda: left() == [], message="the threads have ended")


def test_a_worker_that_is_told_to_end_waits_for_all_its_jobs() -> None:
    jobs = add(*numbers(5))
    gate = Gate()
    worker = idle(threads=3, callback=gate)
    running = Running(worker)
    with running:
        gate.wait_for(3)
        worker.end_forced = True
        assert running.thread.is_alive()
        gate.is_open.set()
        running.join()

    assert statuses(jobs) == {STATUSES.SUCCESS: 3, STATUSES.WAITING: 2}
    assert worker.num_loops == 3


def test_many_jobs_of_two_workers_run_once_each() -> None:
    jobs = add(*numbers(400))
    ran: list[str] = []
    callback: Callable[[Any, Any], None] = lambda job, queue: ran.append(job.identifier.hget())  # noqa: E731
    with Running(idle(threads=5, callback=callback)), Running(idle(threads=5, callback=callback)):
        wait_until(lambda: len(Queue.get_queue("test").success.lmembers()) == 400, 20)
    assert Counter(ran) == dict.fromkeys(numbers(400), 1)
    assert statuses(jobs) == {STATUSES.SUCCESS: 400}
