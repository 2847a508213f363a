"""Results of jobs whose workers are killed: none without its success, and no success without its result."""

from __future__ import annotations

import random
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Queue, admin
from limpyd_jobs.outcomes import read_result

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until
from .jobs import AnsweringJob

pytestmark = pytest.mark.usefixtures("database")

JOBS = 1000
KILLS = 3
KINDS = {"plain": (), "prefetch": ("--prefetch=20",), "threads": ("--threads=4",), "event loop": ("--async",)}


def ended() -> int:
    count: int = Queue.get_queue("answers").success.llen()
    return count


def start(redis_server: RedisServer, *arguments: str) -> WorkerProcess:
    options = ("--queues=answers", "--lease-seconds=1", "--job-modules=tests.acceptance.jobs", "--max-loops=100000")
    return WorkerProcess(*options, "--no-title", *arguments, database=redis_server.url)


def assert_results_go_with_successes() -> None:
    jobs: list[Any] = [AnsweringJob.from_pk(pk) for pk in AnsweringJob.collection()]
    pipeline = AnsweringJob.get_connection().pipeline()
    for job in jobs:
        pipeline.hmget(job.key, "status", "identifier").get(job.saved_result.key)
    replies = iter(pipeline.execute())
    for job, (status, identifier), answer in zip(jobs, replies, replies, strict=False):
        assert (answer is not None) == (status == STATUSES.SUCCESS)
        assert answer is None or read_result(job.ident, answer, Any) == {"answer": identifier}


@pytest.mark.parametrize("kind", KINDS)
def test_successes_and_results_are_stored_together_though_workers_are_killed(
    redis_server: RedisServer, kind: str
) -> None:
    AnsweringJob.add_jobs(map(str, range(JOBS)))
    for number in range(1, KILLS + 1):
        with start(redis_server, *KINDS[kind]) as worker:
            wanted = number * JOBS // (KILLS + 2) + random.randrange(20)
            wait_until(lambda wanted=wanted: ended() >= wanted, PROCESS_SECONDS)  # type: ignore[misc]
            worker.kill()
        assert_results_go_with_successes()
    with start(redis_server, *KINDS[kind]):
        wait_until(lambda: ended() >= JOBS, PROCESS_SECONDS)
    assert_results_go_with_successes()
    assert len(AnsweringJob.collection(status=STATUSES.SUCCESS)) == JOBS
    assert [str(problem) for problem in admin.check()] == []
