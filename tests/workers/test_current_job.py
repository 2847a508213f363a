"""The job that runs here, as code deep inside of it asks for it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from limpyd_jobs import Job
from limpyd_jobs.models import current_job
from limpyd_jobs.workers import AsyncConsumer, AsyncWorker

from .base import work

pytestmark = pytest.mark.usefixtures("database")


class CurrentPlainJob(Job):
    queue_name = "test"
    seen: ClassVar[dict[str, Any]] = {}

    def run(self, queue: Any) -> str:
        self.seen[self.identifier.hget()] = current_job()
        return current_job().ident

    def on_success(self, queue: Any, result: Any) -> None:
        self.seen["hook"] = current_job()
        self.seen["result"] = result


class CurrentAsyncJob(Job):
    queue_name = "test"
    seen: ClassVar[dict[str, Any]] = {}

    async def run(self, queue: Any) -> None:
        await asyncio.sleep(0)  # so that others run meanwhile
        self.seen[self.identifier.hget()] = current_job()


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    CurrentPlainJob.seen.clear()
    CurrentAsyncJob.seen.clear()


def test_there_is_none_outside_of_a_job() -> None:
    CurrentPlainJob.add_job("a")

    work(1)

    assert current_job() is None


def test_it_is_the_job_whose_run_asks_and_its_hooks() -> None:
    job = CurrentPlainJob.add_job("a")

    work(1)

    assert [CurrentPlainJob.seen[name].ident for name in ("a", "hook")] == [job.ident] * 2


def test_it_is_that_of_each_thread() -> None:
    jobs = {name: CurrentPlainJob.add_job(name) for name in ("a", "b", "c")}

    work(3, threads=3)

    assert {name: CurrentPlainJob.seen[name].ident for name in jobs} == {name: job.ident for name, job in jobs.items()}


def test_it_is_that_of_each_coroutine_and_of_each_thread_of_a_loop() -> None:
    jobs = {name: CurrentAsyncJob.add_job(name) for name in ("a", "b", "c")}
    plain = CurrentPlainJob.add_job("d")

    work(4, worker_class=AsyncWorker)

    found = {name: CurrentAsyncJob.seen[name].ident for name in jobs}
    assert found == {name: job.ident for name, job in jobs.items()}
    assert CurrentPlainJob.seen["d"].ident == plain.ident


def test_it_is_known_in_the_process_of_an_isolated_job() -> None:
    job = CurrentPlainJob.add_job("a")

    work(1, isolate=True)

    assert CurrentPlainJob.seen["result"] == job.ident


def test_it_is_that_of_the_block_of_a_consumer() -> None:
    added = CurrentPlainJob.add_job("a")

    async def consume() -> tuple[str, Any]:
        async with AsyncConsumer("test") as jobs, await anext(jobs):
            inside = current_job().ident
        return inside, current_job()

    assert asyncio.run(asyncio.wait_for(consume(), 10)) == (added.ident, None)
