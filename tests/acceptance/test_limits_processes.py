"""Limits across processes: of workers that are killed, of isolated jobs, and of several workers at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

HERE = "tests.acceptance.test_limits_processes"


def client() -> Any:
    return Queue.get_connection()


class LimitsCrowdJob(Job):
    """Notes how many run at the same time."""

    queue_name = "limits"
    max_concurrency = 2

    def run(self, queue: Any) -> None:
        client().rpush("test:inside", client().incr("test:count"))
        time.sleep(0.002)
        client().decr("test:count")


class LimitsHeldJob(Job):
    """Runs until the test lets it go, and notes its start."""

    queue_name = "limits"
    max_concurrency = 1

    def run(self, queue: Any) -> None:
        client().rpush("test:runs", f"{self.identifier.hget()} {os.getpid()}")
        while not client().exists("test:go"):
            time.sleep(0.01)


class LimitsDyingJob(LimitsHeldJob):
    """Takes its process down, if that is its own."""

    isolate = True

    def run(self, queue: Any) -> None:
        if self.identifier.hget() == "dies":
            os.kill(os.getpid(), signal.SIGKILL)


class LimitsQuickWorker(Worker):
    """A worker whose jobs are given to others a second after its death."""

    lease_seconds = 1


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test the invariants hold, and no place is held."""
    yield
    client().delete(*client().keys("test:*") or ["test:none"])
    assert [str(problem) for problem in admin.check()] == []
    assert client().exists("jobs:limits:jobs") == 0


def start(redis_server: RedisServer, *arguments: str) -> WorkerProcess:
    options = ("--queues=limits", f"--job-modules={HERE}", f"--worker-class={HERE}.LimitsQuickWorker")
    return WorkerProcess(*options, *arguments, database=redis_server.url)


def runs() -> list[str]:
    return [text.partition(" ")[0] for text in client().lrange("test:runs", 0, -1)]


def are_done(jobs: list[Any]) -> bool:
    return all(job.status.hget() == STATUSES.SUCCESS for job in jobs)


def test_two_processes_with_threads_never_run_more_than_may_and_run_all(redis_server: RedisServer) -> None:
    Queue.get_queue("limits")
    with ExitStack() as stack:
        workers = [stack.enter_context(start(redis_server, f"--threads={count}")) for count in (1, 4)]
        for worker in workers:
            worker.wait_for_output("Run started.")
        jobs = [LimitsCrowdJob.add_job(str(number)) for number in range(200)]
        wait_until(lambda: are_done(jobs), PROCESS_SECONDS, "all jobs have run")
        assert [worker.stop() for worker in workers] == [0, 0]

    inside = [int(text) for text in client().lrange("test:inside", 0, -1)]
    assert len(inside) == 200
    assert max(inside) <= 2


def test_the_place_of_a_worker_that_is_killed_is_free_when_its_lease_lapses(redis_server: RedisServer) -> None:
    jobs = [LimitsHeldJob.add_job(name) for name in ("a", "b", "c")]
    with start(redis_server) as victim, start(redis_server) as heir:
        wait_until(
            lambda: runs() == ["a"] and Queue.count_parked_jobs() == {LimitsHeldJob.get_model_repr(): 2},
            PROCESS_SECONDS,
        )
        killed = next(worker for worker in (victim, heir) if client().lindex("test:runs", 0).endswith(f" {worker.pid}"))
        killed.kill()
        wait_until(lambda: len(runs()) == 2, PROCESS_SECONDS, "another job has the place")
        client().set("test:go", "1")
        wait_until(lambda: are_done(jobs), PROCESS_SECONDS, "all jobs have run")
        assert next(worker for worker in (victim, heir) if worker is not killed).stop() == 0

    assert runs() == ["a", "a", "b", "c"]


def test_a_worker_that_must_end_at_once_gives_its_place_back(redis_server: RedisServer) -> None:
    jobs = [LimitsHeldJob.add_job(name) for name in ("a", "b")]
    with start(redis_server) as first:
        wait_until(lambda: runs() == ["a"], PROCESS_SECONDS)
        assert first.stop(signal.SIGQUIT) == 3
    client().set("test:go", "1")

    with start(redis_server) as second:
        wait_until(lambda: are_done(jobs), PROCESS_SECONDS)
        assert second.stop() == 0

    assert runs() == ["a", "a", "b"]


def test_an_isolated_job_that_is_killed_frees_its_place_at_once(redis_server: RedisServer) -> None:
    LimitsDyingJob.add_job("dies")
    others = [LimitsDyingJob.add_job(name) for name in ("b", "c")]

    with start(redis_server) as worker:
        wait_until(lambda: are_done(others), PROCESS_SECONDS, "the others have run")
        assert worker.stop() == 0

    assert len(Error.collection()) == 1


def test_a_burst_of_several_processes_comes_through_all_jobs_of_a_key(redis_server: RedisServer) -> None:
    jobs = [LimitsCrowdJob.add_job(str(number), max_concurrency=1) for number in range(60)]

    with start(redis_server, "--burst", "--processes=2") as pool:
        assert pool.wait(30) == 0

    assert are_done(jobs)
    assert {int(text) for text in client().lrange("test:inside", 0, -1)} == {1}
