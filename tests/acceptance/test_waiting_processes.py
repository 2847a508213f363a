"""Waiting for jobs that real worker processes run, also when these are killed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from limpyd_jobs import STATUSES, waiting
from limpyd_jobs.waiting import as_completed, await_completed, wait_all

from ..base import RedisServer, wait_until
from .jobs import AwaitedJob, HeldJob, connection
from .test_workers import QUICK_HEART, open_the_doors, start

pytestmark = pytest.mark.usefixtures("database", "no_looks")

LONG = 30  # seconds that no test waits for


@pytest.fixture
def no_looks(monkeypatch: Any) -> None:
    """Nobody looks twice: what is found was told."""
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 1000.0)


@pytest.mark.parametrize("options", [[], ["--prefetch=50"], ["--threads=4"], ["--async"]], ids=" ".join)
def test_all_jobs_are_told_of_whatever_the_kind_of_the_worker(redis_server: RedisServer, options: list[str]) -> None:
    jobs = [AwaitedJob.add_job("fails" if number == 50 else str(number)) for number in range(300)]

    with start(redis_server, "--queues=awaited", "--requeue-times=0", *options):
        found = list(as_completed(jobs, LONG))

    assert sorted(job.pk.get() for job in found) == sorted(job.pk.get() for job in jobs)
    assert jobs[50].status.hget() == STATUSES.ERROR
    assert len(AwaitedJob.collection(status=STATUSES.SUCCESS)) == 299


def test_coroutines_are_told_too(redis_server: RedisServer) -> None:
    jobs = [AwaitedJob.add_job(str(number)) for number in range(100)]

    async def main() -> int:
        return len([job async for job in await_completed(jobs, LONG)])

    with start(redis_server, "--queues=awaited"):
        assert asyncio.run(main()) == 100


def test_a_job_whose_worker_is_killed_has_ended_when_another_one_has_run_it(redis_server: RedisServer) -> None:
    job = HeldJob.add_job("a")
    ended: list[bool] = []

    with start(redis_server, "--queues=held", QUICK_HEART) as first:
        assert job.wait(LONG, until="started")
        waiter = threading.Thread(target=lambda: ended.append(wait_all([job], LONG)))
        waiter.start()
        wait_until(lambda: connection().llen("test:runs") == 1)
        first.kill()
        with start(redis_server, "--queues=held", QUICK_HEART):
            wait_until(lambda: connection().llen("test:runs") == 2)
            assert ended == []
            open_the_doors()
            waiter.join(LONG)

    assert ended == [True]
    assert job.status.hget() == STATUSES.SUCCESS
