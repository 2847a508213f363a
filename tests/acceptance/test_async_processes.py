"""The worker of an event loop as a process of its own: its command, signals, what becomes of many running jobs."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue
from limpyd_jobs.workers import AsyncWorker

from ..base import PROCESS_SECONDS, Process, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

HERE = "tests.acceptance.test_async_processes"


def connection() -> Any:
    return Queue.get_connection()


class AsyncHeldJob(Job):
    """Runs until the test lets it go, and notes its start."""

    queue_name = "async"

    async def run(self, queue: Any) -> None:
        await asyncio.to_thread(connection().rpush, "test:runs", self.identifier.hget())
        while not await asyncio.to_thread(connection().exists, "test:go"):
            await asyncio.sleep(0.01)


class CarefulJob(AsyncHeldJob):
    """Cleans up after itself, for which it has to wait."""

    async def run(self, queue: Any) -> None:
        try:
            await super().run(queue)
        finally:
            await asyncio.sleep(0.01)
            print(f"cleaned up {self.identifier.hget()}", flush=True)


async def hold(job: Any, queue: Any) -> None:
    await AsyncHeldJob.run(job, queue)


class QuickAsyncWorker(AsyncWorker):
    lease_seconds = 1


@contextmanager
def started(server: RedisServer, *arguments: str, environment: Any = None) -> Iterator[WorkerProcess]:
    options = (f"--job-modules={HERE}", "--queues=async", *arguments)
    with WorkerProcess(*options, database=server.url, environment=environment) as process:
        yield process


def runs() -> list[str]:
    return list(connection().lrange("test:runs", 0, -1))


def add(count: int, model: Any = AsyncHeldJob) -> list[Any]:
    return [model.add_job(str(number)) for number in range(count)]


def statuses(jobs: list[Any]) -> list[str]:
    return [STATUSES.by_value(job.status.hget()) for job in jobs]


def leased() -> int:
    return int(connection().zcard("jobs:leases")) + int(connection().hlen("jobs:claims"))


def let_go() -> None:
    connection().set("test:go", "1")


@pytest.mark.parametrize("argument", ["--async", f"--callback={HERE}.hold", f"--worker-class={HERE}.QuickAsyncWorker"])
def test_the_command_starts_one_that_runs_many_jobs_at_a_time(argument: str, redis_server: RedisServer) -> None:
    jobs = add(5)

    with started(redis_server, argument, "--concurrency=4") as process:
        wait_until(lambda: len(runs()) == 4, PROCESS_SECONDS)
        let_go()
        wait_until(lambda: statuses(jobs) == ["SUCCESS"] * 5, PROCESS_SECONDS)
        assert process.stop() == 0, process.output

    assert sorted(runs()) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_worker_ends_at_a_signal(number: signal.Signals, redis_server: RedisServer) -> None:
    Queue.get_queue("async")

    with started(redis_server, "--async") as process:
        process.wait_for_output("Run started")
        wait_until(lambda: connection().info("clients")["blocked_clients"] == 1)

        assert process.stop(number) == 0, process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_that_runs_end_and_takes_no_more(number: signal.Signals, redis_server: RedisServer) -> None:
    jobs = add(6)

    with started(redis_server, "--async", "--concurrency=3") as process:
        wait_until(lambda: len(runs()) == 3, PROCESS_SECONDS)
        process.send_signal(number)
        process.wait_for_output(f"Caught {number.name}")
        let_go()
        assert process.wait() == 0, process.output

    assert statuses(jobs) == ["SUCCESS"] * 3 + ["WAITING"] * 3
    assert leased() == 0


@pytest.mark.parametrize("how", ["SIGQUIT", "stop_timeout"])
def test_what_runs_is_given_back_in_its_order_and_its_tries_are_not_counted(
    how: str, redis_server: RedisServer
) -> None:
    jobs = add(8)
    options = ["--stop-timeout=0.05"] if how == "stop_timeout" else []

    with started(redis_server, "--async", "--concurrency=5", *options) as process:
        wait_until(lambda: len(runs()) == 5, PROCESS_SECONDS)

        assert process.stop(signal.SIGTERM if how == "stop_timeout" else signal.SIGQUIT) == 3, process.output

        assert process.output.count("is given back") == 5

    assert statuses(jobs) == ["WAITING"] * 8
    assert [job.tries.hget() for job in jobs] == [None] * 8
    assert Queue.get_queue("async").waiting.lmembers() == [job.ident for job in jobs]
    assert leased() == 0


def test_a_sigint_that_is_not_graceful_gives_all_back_and_lets_coroutines_clean_up(redis_server: RedisServer) -> None:
    jobs = add(6, CarefulJob)
    strict = {"PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error"}

    with started(redis_server, "--async", "--concurrency=4", "--no-terminate-gracefuly", environment=strict) as process:
        wait_until(lambda: len(runs()) == 4, PROCESS_SECONDS)

        assert process.stop(signal.SIGINT) != 0

        output = process.output
    assert "KeyboardInterrupt" in output
    assert [f"cleaned up {number}" in output for number in range(4)] == [True] * 4
    for complaint in ("never awaited", "was destroyed", "was never retrieved", "Event loop is closed"):
        assert complaint not in output
    assert statuses(jobs) == ["WAITING"] * 6
    assert Queue.get_queue("async").waiting.lmembers() == [job.ident for job in jobs]
    assert leased() == 0


def test_the_jobs_of_a_killed_worker_are_run_by_another(redis_server: RedisServer) -> None:
    jobs = add(5)
    quick = f"--worker-class={HERE}.QuickAsyncWorker"

    with started(redis_server, quick) as victim:
        wait_until(lambda: len(runs()) == 5, PROCESS_SECONDS)
        victim.kill()
    assert statuses(jobs) == ["RUNNING"] * 5

    let_go()
    with started(redis_server, quick) as heir:
        wait_until(lambda: statuses(jobs) == ["SUCCESS"] * 5, PROCESS_SECONDS)
        assert heir.stop() == 0

    assert [job.tries.hget() for job in jobs] == ["2"] * 5
    assert leased() == 0


def test_redis_may_be_killed_and_come_back_while_jobs_run() -> None:
    with RedisServer(tcp=True, appendonly=True, options={"appendfsync": "always"}) as server:
        former = dict(Job.database.connection_settings)
        Job.database.connect(**server.settings)
        try:
            jobs = [Job.add_job(str(number), "async") for number in range(20)]
            with started(server, f"--callback={HERE}.rest", "--concurrency=20") as process:
                wait_until(lambda: len(runs()) == 20, PROCESS_SECONDS)
                server.restart(server.kill)
                wait_until(lambda: statuses(jobs) == ["SUCCESS"] * 20, PROCESS_SECONDS)
                assert process.stop() == 0, process.output
                assert "Traceback" not in process.output
            assert [job.tries.hget() for job in jobs] == ["1"] * 20
        finally:
            Job.database.reset(**former)


async def rest(job: Any, queue: Any) -> None:
    connection().rpush("test:runs", job.identifier.hget())
    await asyncio.sleep(0.5)  # the time in which the test kills Redis


def test_a_worker_that_is_to_stop_gives_up_ends_that_it_cannot_record() -> None:
    with RedisServer(tcp=True) as server:
        former = dict(Job.database.connection_settings)
        Job.database.connect(**server.settings)
        try:
            jobs = add(3)
            prelude = "from limpyd_jobs.workers import claiming as c, life as l; "
            prelude += "c.LAST_TRIES_SECONDS = l.LAST_TRIES_SECONDS = 0.2"
            program = (
                f"import sys, logging; {prelude}\nfrom limpyd_jobs.models import BaseJobsModel\n"
                "BaseJobsModel.database.connect(sys.argv[1])\nlogging.basicConfig(format='%(message)s')\n"
                f"import {HERE} as here, asyncio\nasync def run(job, queue):\n"
                "    await asyncio.to_thread(here.connection().rpush, 'test:runs', job.identifier.hget())\n"
                "    while not worker.end_forced: await asyncio.sleep(0.01)\n"
                f"worker = here.AsyncWorker('async', callback=run, job_modules='{HERE}')\n"
                "worker.run()\nprint('run ended')\n"
            )
            with Process([sys.executable, "-c", program, server.url]) as process:
                wait_until(lambda: len(runs()) == 3, PROCESS_SECONDS)
                server.kill()
                process.send_signal(signal.SIGTERM)
                assert process.wait() == 0, process.output
                assert "run ended" in process.output
            assert len(jobs) == 3
        finally:
            Job.database.reset(**former)


def test_a_blocking_job_does_not_lose_its_lease(redis_server: RedisServer) -> None:
    job = Job.add_job("1", "async")
    quick = (f"--worker-class={HERE}.QuickAsyncWorker", f"--callback={HERE}.block")

    with started(redis_server, *quick, "--max-loops=1") as process, started(redis_server, *quick) as other:
        wait_until(lambda: statuses([job]) == ["SUCCESS"], PROCESS_SECONDS)
        other.stop()
        process.stop()

    assert len(runs()) == 1
    assert job.tries.hget() == "1"
    assert len(Error.collection()) == 0


async def block(job: Any, queue: Any) -> None:
    connection().rpush("test:runs", job.identifier.hget())
    time.sleep(1.5)  # longer than its lease
