"""What each thing costs in round trips, by the counters of the server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin
from limpyd_jobs.workers import LOGGER_NAME, ahead, claiming, expiring, heartbeat, presence

from ..base import RedisServer, wait_until
from .base import Log, Running, client, idle, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database")

FEW, MANY = 20, 70  # jobs: what begins and ends a run is in both, so the difference is what the jobs cost


class BudgetJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        pass


class SuccessHookJob(BudgetJob):
    def on_success(self, queue: Any, result: Any) -> None:
        pass


class StartHookJob(BudgetJob):
    def on_started(self, queue: Any) -> None:
        pass


class FailingJob(BudgetJob):
    def run(self, queue: Any) -> None:
        raise ValueError("boom")


class SuccessWorker(Worker):
    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        super().job_success(job, queue, job_result)


@pytest.fixture(autouse=True)
def warm(database: Any) -> Iterator[None]:
    """The scripts are in the server, and the connections made, as in a program that has run for a while."""
    for model in (BudgetJob, SuccessHookJob, StartHookJob, FailingJob):
        model.add_job("warm", "warm")
        work(1, "warm")
        model.add_job("warm", "warm")
        work(1, "warm", prefetch=2, requeue_times=1)
        model.add_job("warm", "warm", delayed_for=1000)
    client().flushdb()
    yield
    assert [str(problem) for problem in admin.check()] == []


class Count:
    """How many times something was sent to the server within a block: what it has read from its clients.

    Whatever is sent as a whole and is not long is one read. `scripts` counts the calls of scripts, whatever they hold.
    """

    def __init__(self) -> None:
        self.reads = self.scripts = 0


@contextmanager
def counted() -> Iterator[Count]:
    count = Count()
    scripts, before = calls_of_scripts(), reads()
    yield count
    count.reads = reads() - before - 1  # the INFO itself
    count.scripts = calls_of_scripts() - scripts


def reads() -> int:
    return int(client().info("stats")["total_reads_processed"])


def calls_of_scripts() -> int:
    stats = client().info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


def test_the_counter_counts_what_is_sent() -> None:
    with counted() as count:
        for _ in range(7):
            client().ping()

    assert count.reads == 7


# --- Adding


def add(identifier: str = "a", **more: Any) -> Callable[[], Any]:
    return lambda: BudgetJob.add_job(identifier, **more)


@pytest.mark.parametrize(
    "before, added",
    [
        ([add("other")], add()),
        ([], add()),
        ([add()], add()),
        ([add()], add(prepend=True)),
        ([add(), add("other", priority=5)], add(priority=5)),
        ([add()], add(priority=7)),
        ([add("other")], add(delayed_for=100)),
        ([], add(delayed_for=100)),
        ([add("other")], add(queue_name="never seen", priority=3)),
        ([add(delayed_for=100)], add(delayed_for=50, prepend=True)),
    ],
    ids=[
        "new",
        "the very first",
        "existing",
        "existing, to the head",
        "existing, to a higher priority",
        "existing, to a new queue",
        "delayed",
        "delayed, in a new queue",
        "new, in a new queue",
        "existing, delayed anew",
    ],
)
def test_adding_a_job_costs_one_round_trip(before: list[Any], added: Any) -> None:
    for one in before:
        one()

    with counted() as count:
        added()

    assert (count.reads, count.scripts) == (1, 1)


def test_adding_a_thousand_jobs_costs_four_round_trips_at_most() -> None:
    with counted() as count:
        new, existing = BudgetJob.add_jobs(str(number) for number in range(1000))

    assert (new, existing) == (1000, 0)
    assert 1 <= count.scripts <= 4
    assert len(BudgetJob.collection(queued="1")) == 1000


# --- Running

NOW_AND_THEN = [
    (ahead, "LOOK_SECONDS"),
    (ahead, "LINGER_SECONDS"),
    (heartbeat, "BESIDE_SECONDS"),
    (presence, "NOTE_SECONDS"),
    (presence, "EARLY_SECONDS"),
]


@contextmanager
def jobs_alone() -> Iterator[None]:
    """Leave out what a worker does now and then, however many jobs it runs: slow ones would pay for that."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in NOW_AND_THEN:
            patch.setattr(module, name, 1000)
        for module in (claiming, expiring):
            patch.setattr(module, "FIRST_LOOK_SECONDS", (1000.0, 1000.0))
        patch.setattr(Worker, "lease_seconds", 3000)
        yield


def cost(jobs: int, model: Any = BudgetJob, worker_class: type[Worker] = Worker, **options: Any) -> int:
    """The round trips of a worker that runs so many jobs, with its start and its end."""
    client().flushdb()
    for number in range(jobs):
        model.add_job(str(number))
    loops = options.pop("loops", jobs)
    with jobs_alone(), counted() as count:
        work(loops, worker_class=worker_class, **options)
    assert len(model.collection(queued="1")) == 0
    return count.reads


def cost_per_job(*args: Any, **options: Any) -> float:
    cost(FEW, *args, **options)  # so that Redis knows the scripts: a long one takes it several reads
    few, many = cost(FEW, *args, **options), cost(MANY, *args, **options)
    return (many - few) / (MANY - FEW)


@pytest.fixture(params=["heard", "unheard"])
def listening(request: pytest.FixtureRequest) -> Iterator[str]:
    """With somebody who listens to the log, and without."""
    logger, handler = logging.getLogger(LOGGER_NAME), Log()
    level, propagate = logger.level, logger.propagate
    if request.param == "heard":
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    else:
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
    yield request.param
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate
    assert any("success" in line or "error" in line for line in handler.lines) == (request.param == "heard")


def test_a_successful_job_costs_one_round_trip_logging_included(listening: str) -> None:
    assert cost_per_job() == 1


def test_beginning_and_ending_a_run_costs_a_few_round_trips(listening: str) -> None:
    assert cost(1) <= 25


def test_a_job_costs_two_round_trips_where_the_worker_looks_in_between(listening: str) -> None:
    assert 2 <= cost_per_job(worker_class=SuccessWorker) <= 3  # it also asks whether the job was canceled


def test_a_job_costs_two_round_trips_where_the_job_looks_in_between(listening: str) -> None:
    assert cost_per_job(SuccessHookJob) == 2


def test_a_hook_at_the_start_costs_nothing_more() -> None:
    assert cost_per_job(StartHookJob) == 1


@pytest.mark.parametrize("save_tracebacks", [True, False])
def test_an_error_with_its_record_costs_two_round_trips(listening: str, save_tracebacks: bool) -> None:
    assert cost_per_job(FailingJob, save_tracebacks=save_tracebacks) <= 2

    assert len(Error.collection()) == MANY


def test_an_error_that_is_requeued_costs_three_round_trips(listening: str) -> None:
    options = {"requeue_times": 1, "requeue_delay_delta": 0}
    few = cost(FEW, FailingJob, loops=2 * FEW, **options)
    many = cost(MANY, FailingJob, loops=2 * MANY, **options)

    # each job fails twice: once requeued, once for good
    assert (many - few) / (MANY - FEW) <= 3 + 2
    assert len(Error.collection()) == 2 * MANY
    assert len(FailingJob.collection(status=STATUSES.ERROR)) == MANY


def test_an_idle_worker_costs_two_round_trips_a_second_at_most(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "EARLY_SECONDS", 0)  # it says that it lives each time that it begins to wait
    Queue.get_queue("test")
    with Running(idle()):
        wait_until_idle()
        before = client().hget(next(client().scan_iter("jobs:workerinfo:*:hash")), "heartbeat")
        started = time.monotonic()
        with counted() as count:
            time.sleep(3)  # it is what happens in this time that is looked for
            assert before < client().hget(next(client().scan_iter("jobs:workerinfo:*:hash")), "heartbeat")
        seconds = time.monotonic() - started

    assert count.reads - 2 <= 2 * (seconds + 1)  # in three seconds may lie the beginnings of four


# --- With prefetch


def test_five_hundred_jobs_by_fifty_cost_fifty_round_trips_at_most(listening: str) -> None:
    for number in range(500):
        BudgetJob.add_job(str(number))

    with jobs_alone(), counted() as count:
        work(500, prefetch=50)

    assert len(BudgetJob.collection(status=STATUSES.SUCCESS)) == 500
    assert count.scripts <= 50


def test_a_job_of_a_batch_whose_hook_looks_in_between_costs_two_round_trips() -> None:
    assert cost_per_job(SuccessHookJob, prefetch=10) <= 2.5


def test_an_idle_worker_with_prefetch_costs_two_round_trips_a_second_at_most() -> None:
    jobs = [BudgetJob.add_job(str(number)) for number in range(5)]
    with Running(idle(prefetch=50)):
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in jobs))
        wait_until_idle()
        started = time.monotonic()
        with counted() as count:
            time.sleep(3)  # it is what happens in this time that is looked for
        seconds = time.monotonic() - started

    assert count.reads <= 2 * (seconds + 1)  # as above


# --- What is stored does not matter


def test_what_is_stored_makes_neither_adding_nor_running_look_at_more_keys() -> None:
    def calls(step: Any) -> int:
        def count() -> int:
            stats = client().info("commandstats")
            return sum(stats[f"cmdstat_{name}"]["calls"] for name in IN_SCRIPTS if f"cmdstat_{name}" in stats)

        before = count()
        step()
        return count() - before

    def run(jobs: int) -> None:
        Worker("flat", callback=lambda job, queue: None, max_loops=jobs).run()

    def measured(identifier: str) -> tuple[int, int]:
        """Commands of the scripts for adding a job, and for running ten, without the start of the worker."""
        added = calls(lambda: Job.add_job(identifier, "flat"))
        return added, calls(lambda: run(12)) - calls(lambda: run(2))

    Job.add_jobs([f"first {number}" for number in range(20)], "flat")
    run(1)
    few = measured("few")

    Job.add_jobs([f"ended {number}" for number in range(500)], "flat", priority=1)
    Worker("flat", callback=lambda job, queue: None, max_loops=500, prefetch=100).run()
    Job.add_jobs([f"waiting {number}" for number in range(2_000)], "flat")
    for priority in range(-300, 0):
        Job.add_job(f"priority {priority}", "flat", priority=priority)
    many = measured("many")

    assert many[0] <= few[0] + 1  # the doorbell may be full or not
    assert abs(many[1] - few[1]) <= 20


IN_SCRIPTS = (
    "sadd",
    "srem",
    "sinter",
    "scard",
    "hset",
    "hmget",
    "hdel",
    "zadd",
    "zrem",
    "rpush",
    "lpop",
    "lindex",
    "zrevrange",
)
