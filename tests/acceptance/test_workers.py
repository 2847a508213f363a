"""Real worker processes: many at once, killed, and told to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Queue

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until
from .jobs import CREW, CountedJob, HeldJob, connection

pytestmark = pytest.mark.usefixtures("database")

QUICK_HEART = "--worker-class=tests.acceptance.jobs.QuickHeartWorker"


def start(redis_server: RedisServer, *arguments: str) -> WorkerProcess:
    return WorkerProcess("--job-modules=tests.acceptance.jobs", *arguments, database=redis_server.url)


@contextmanager
def started(redis_server: RedisServer, count: int, *arguments: str) -> Iterator[list[WorkerProcess]]:
    """So many worker processes."""
    with ExitStack() as stack:
        yield [stack.enter_context(start(redis_server, *arguments)) for _ in range(count)]


def runs() -> list[tuple[str, int]]:
    """The job and the process of each run so far."""
    return [(pk, int(pid)) for pk, pid in (text.split() for text in connection().lrange("test:runs", 0, -1))]


def open_the_doors() -> None:
    """Let all held jobs end, those of later too."""
    connection().set("test:go", "1")
    connection().rpush("test:doors", *["go"] * 10)


def leased() -> int:
    return int(connection().zcard("jobs:leases")) + int(connection().hlen("jobs:claims"))


def test_several_processes_run_each_job_exactly_once_and_by_priority(redis_server: RedisServer) -> None:
    jobs = [CountedJob.add_job(str(number), priority=number % 3) for number in range(300)]
    pks = sorted(job.pk.get() for job in jobs)

    with started(redis_server, CREW, "--queues=counted", "--timeout=5") as workers:
        wait_until(lambda: connection().llen("test:runs") >= 300, PROCESS_SECONDS, "300 runs")
        wait_until(lambda: len(CountedJob.collection(status=STATUSES.SUCCESS)) == 300, message="300 successes")
        codes = [worker.stop() for worker in workers]

    assert sorted(pk for pk, _ in runs()) == pks
    assert connection().lrange("test:too-early", 0, -1) == []
    assert {pid for _, pid in runs()} == {worker.pid for worker in workers}
    assert codes == [0] * CREW
    queues = [Queue.get_queue("counted", priority) for priority in range(3)]
    assert [queue.success.llen() for queue in queues] == [100, 100, 100]
    assert len(CountedJob.collection(queued="1")) == 0
    assert leased() == 0


def test_the_job_of_a_killed_worker_is_run_once_more_by_another(redis_server: RedisServer) -> None:
    job, second = HeldJob.add_job("one"), HeldJob.add_job("two")
    with started(redis_server, 1, "--queues=held", QUICK_HEART) as (victim,):
        wait_until(runs, PROCESS_SECONDS)
        victim.kill()
    assert job.status.hget() == STATUSES.RUNNING

    with started(redis_server, 1, "--queues=held", QUICK_HEART, "--max-loops=2") as (heir,):
        # the first is taken away from the dead while the heir runs the second, or before
        heir.wait_for_output("starting")
        open_the_doors()
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS, "the job of the dead worker is done")
        assert heir.wait() == 0

    assert [pid for pk, pid in runs() if pk == job.pk.get()] == [victim.pid, heir.pid]
    assert [pid for pk, pid in runs() if pk == second.pk.get()] == [heir.pid]
    assert job.hmget("tries", "queued") == ["2", None]
    assert Queue.get_queue("held").success.llen() == 2
    assert leased() == 0


def test_a_worker_that_waits_takes_over_from_one_that_is_killed(redis_server: RedisServer) -> None:
    job = HeldJob.add_job("one")
    with started(redis_server, 2, "--queues=held", QUICK_HEART) as workers:
        wait_until(runs, PROCESS_SECONDS)
        for worker in workers:
            worker.wait_for_output("Run started.")
        victim = next(worker for worker in workers if worker.pid == runs()[0][1])
        heir = next(worker for worker in workers if worker is not victim)
        victim.kill()
        wait_until(lambda: len(runs()) == 2, PROCESS_SECONDS, "the job runs again")
        open_the_doors()
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS)
        assert heir.stop() == 0
        assert f"{job.ident} is given back: the lease of its worker lapsed" in heir.output

    assert runs() == [(job.pk.get(), victim.pid), (job.pk.get(), heir.pid)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_w61_a_signal_lets_the_job_end_and_takes_no_other(number: signal.Signals, redis_server: RedisServer) -> None:
    job, second = HeldJob.add_job("one"), HeldJob.add_job("two")
    with started(redis_server, 1, "--queues=held") as (worker,):
        wait_until(runs, PROCESS_SECONDS)
        worker.send_signal(number)
        worker.wait_for_output(f"Caught {number.name}")
        assert job.status.hget() == STATUSES.RUNNING
        assert worker.is_running()
        open_the_doors()

        assert worker.wait() == 0

        assert "success, in" in worker.output
        assert "Run terminated, with 1 loops" in worker.output
    assert (job.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.WAITING)
    assert Queue.get_queue("held").waiting.lmembers() == [second.ident]
    assert leased() == 0


def test_w10_a_worker_that_does_not_terminate_gracefully_is_ended_by_sigterm_within_its_job(
    redis_server: RedisServer,
) -> None:
    job: Any = HeldJob.add_job("one")
    with started(redis_server, 1, "--queues=held", "--no-terminate-gracefuly") as (worker,):
        wait_until(runs, PROCESS_SECONDS)

        assert worker.stop(signal.SIGTERM) == -signal.SIGTERM

    # not lost: its lease will lapse
    assert job.status.hget() == STATUSES.RUNNING
    assert connection().zscore("jobs:leases", job.ident) is not None
