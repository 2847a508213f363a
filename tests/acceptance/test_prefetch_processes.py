"""Real worker processes that claim several jobs at once: killed, ended, told to end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, admin

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

OPTIONS = (
    "--queues=prefetched",
    "--prefetch=20",
    "--job-modules=tests.acceptance.test_prefetch_processes",
    "--max-loops=100000",
    "--no-title",
)
SHORT_LEASE = "--lease-seconds=1"  # where a worker dies; else a busy machine may lose it
DEATHS = {"exits": lambda: os._exit(9), "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL)}


class PrefetchedJob(Job):
    """Notes its run, and does what its identifier begins with."""

    queue_name = "prefetched"

    def run(self, queue: Any) -> None:
        name = self._claim.identifier if self._claim else ""
        client().rpush("test:runs", f"{name}|{os.getpid()}")
        if name.startswith("holds"):
            while not client().exists("test:go"):
                client().blpop(["test:doors"], 1)
        if name.startswith("slow"):
            time.sleep(0.1)
        for start, die in DEATHS.items():
            if name.startswith(start):
                die()


class NeverBackPrefetchedJob(PrefetchedJob):
    """One that is given back never."""

    max_recoveries = 0


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return Job.get_connection()


def start(redis_server: RedisServer, *arguments: str) -> WorkerProcess:
    return WorkerProcess(*OPTIONS, *arguments, database=redis_server.url)


@contextmanager
def started(redis_server: RedisServer, *arguments: str) -> Iterator[WorkerProcess]:
    with start(redis_server, *arguments) as process:
        yield process


def runs() -> list[str]:
    return [text.rpartition("|")[0] for text in client().lrange("test:runs", 0, -1)]


def add(*names: str, model: Any = PrefetchedJob) -> list[Any]:
    return [model.add_job(name) for name in names]


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def statuses(jobs: list[Any]) -> set[str]:
    return {job.status.hget() for job in jobs}


def leased() -> int:
    return int(client().zcard("jobs:leases")) + int(client().hlen("jobs:claims"))


def open_the_doors() -> None:
    client().set("test:go", "1")
    client().rpush("test:doors", "go")


def run_until_done(redis_server: RedisServer, jobs: list[Any], *arguments: str) -> int:
    """Start one worker after another until all jobs have ended; answers how many of them died."""
    arguments, deaths = (SHORT_LEASE, *arguments), 0
    with ExitStack() as stack:
        process = stack.enter_context(start(redis_server, *arguments))

        def is_done() -> bool:
            nonlocal process, deaths
            if not process.is_running():
                deaths += 1
                process = stack.enter_context(start(redis_server, *arguments))
            return statuses(jobs) <= {STATUSES.SUCCESS, STATUSES.ERROR}

        wait_until(is_done, 90, "all jobs have ended")
        assert process.stop() == 0, process.output
    return deaths


def test_what_a_killed_worker_had_claimed_is_run_by_another(redis_server: RedisServer) -> None:
    jobs = add(*numbers(5), "holds", *numbers(40, 5))
    with started(redis_server, SHORT_LEASE) as victim:
        wait_until(lambda: "holds" in runs(), PROCESS_SECONDS)
        victim.kill()
    open_the_doors()
    assert leased() > 0

    with started(redis_server, SHORT_LEASE) as heir:
        wait_until(lambda: statuses(jobs) == {STATUSES.SUCCESS}, PROCESS_SECONDS, "all jobs are done")
        assert heir.stop() == 0

    counts = Counter(runs())
    assert set(counts) == {"holds", *numbers(45)}
    assert counts["holds"] == 2
    assert [name for name in numbers(40, 5) if counts[name] != 1] == []  # they had not begun
    assert leased() == 0
    assert client().llen("jobs:queue:1:success") == len(jobs)


def test_a_killed_worker_takes_none_of_many_with_it(redis_server: RedisServer) -> None:
    jobs = add(*numbers(3000))
    with started(redis_server, SHORT_LEASE) as victim:
        wait_until(lambda: len(runs()) > 100, PROCESS_SECONDS)
        victim.kill()

    with started(redis_server) as first, started(redis_server) as second:
        wait_until(
            lambda: len(PrefetchedJob.collection(status=STATUSES.SUCCESS)) == 3000, PROCESS_SECONDS, "all jobs are done"
        )
        assert [first.stop(), second.stop()] == [0, 0]

    assert set(runs()) == set(numbers(3000))
    assert sorted(client().lrange("jobs:queue:1:success", 0, -1)) == sorted(job.ident for job in jobs)
    assert leased() == 0


@pytest.mark.parametrize("death", sorted(DEATHS))
def test_a_job_that_ends_its_worker_takes_few_workers_and_no_other_job_with_it(
    death: str, redis_server: RedisServer
) -> None:
    before, (deadly,), after = add(*numbers(4)), add(death), add(*numbers(20, 4))

    deaths = run_until_done(redis_server, [*before, deadly, *after], "--max-recoveries=2")

    assert statuses([*before, *after]) == {STATUSES.SUCCESS}
    assert deadly.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert [error.type.hget() for error in Error.collection_for_job(deadly).instances()] == ["WorkerLost"]
    assert deaths <= 3
    assert Counter(runs())[death] <= 3
    assert [name for name in numbers(20, 4) if Counter(runs())[name] != 1] == []
    assert leased() == 0


@pytest.mark.parametrize("kind", [["--threads=8"], ["--async", "--concurrency=8"]], ids=["threads", "async"])
def test_a_deadly_job_dooms_none_of_those_that_run_beside_it(kind: list[str], redis_server: RedisServer) -> None:
    beside = add(*[f"slow {number}" for number in range(4)])
    deadly = add("exits")
    beside += add(*[f"slow {number}" for number in range(4, 12)])

    deaths = run_until_done(redis_server, [*beside, *deadly], "--prefetch=0", *kind, "--max-recoveries=1")

    assert statuses(beside) == {STATUSES.SUCCESS}
    assert statuses(deadly) == {STATUSES.ERROR}
    assert deaths == 2
    assert leased() == 0


def test_two_deadly_jobs_of_one_batch_doom_no_other(redis_server: RedisServer) -> None:
    jobs = add(*numbers(3))
    deadly = add("exits first")
    jobs += add(*numbers(3, 3))
    deadly += add("exits second")
    jobs += add(*numbers(3, 6))

    deaths = run_until_done(redis_server, [*jobs, *deadly], "--max-recoveries=1")

    assert statuses(jobs) == {STATUSES.SUCCESS}
    assert statuses(deadly) == {STATUSES.ERROR}
    assert deaths <= 4


def test_with_no_recoveries_a_deadly_job_is_in_error_at_once_and_dooms_no_other(redis_server: RedisServer) -> None:
    before, (deadly,), after = add(*numbers(4)), add("exits"), add(*numbers(10, 4))

    deaths = run_until_done(redis_server, [*before, deadly, *after], "--max-recoveries=0")

    assert statuses([*before, *after]) == {STATUSES.SUCCESS}
    assert deadly.status.hget() == STATUSES.ERROR
    assert [error.type.hget() for error in Error.collection_for_job(deadly).instances()] == ["WorkerLost"]
    assert (deaths, Counter(runs())["exits"]) == (1, 1)


def test_a_deadly_job_whose_class_is_given_back_never_dooms_no_other(redis_server: RedisServer) -> None:
    before, (deadly,), after = add(*numbers(4)), add("exits", model=NeverBackPrefetchedJob), add(*numbers(10, 4))
    careful = NeverBackPrefetchedJob.add_job("careful")

    deaths = run_until_done(redis_server, [*before, deadly, *after, careful])

    assert statuses([*before, *after, careful]) == {STATUSES.SUCCESS}
    assert deadly.status.hget() == STATUSES.ERROR
    assert (deaths, Counter(runs())["exits"]) == (1, 1)


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 0)], ids=lambda value: getattr(value, "name", "")
)
def test_a_signal_lets_the_job_end_and_gives_the_rest_back_in_its_order(
    number: signal.Signals, code: int, redis_server: RedisServer
) -> None:
    done, (held,), rest = add(*numbers(3)), add("holds"), add(*numbers(50, 3))
    with started(redis_server) as worker:
        wait_until(lambda: "holds" in runs(), PROCESS_SECONDS)
        worker.send_signal(number)
        worker.wait_for_output(f"Caught {number.name}")
        open_the_doors()

        assert worker.wait() == code, worker.output

    assert statuses([*done, held]) == {STATUSES.SUCCESS}
    assert client().lrange("jobs:queue:1:waiting", 0, -1) == [job.ident for job in rest]
    assert {tuple(job.hmget("status", "tries", "start", "recoveries")) for job in rest} == {
        (STATUSES.WAITING, None, None, None)
    }
    assert leased() == 0


def test_sigquit_gives_the_job_and_the_rest_back_in_their_order(redis_server: RedisServer) -> None:
    done, (held,), rest = add(*numbers(3)), add("holds"), add(*numbers(50, 3))
    with started(redis_server) as worker:
        wait_until(lambda: held.status.hget() == STATUSES.RUNNING, PROCESS_SECONDS, "the job is noted as running")

        assert worker.stop(signal.SIGQUIT) == 3, worker.output

    assert statuses(done) == {STATUSES.SUCCESS}
    assert client().lrange("jobs:queue:1:waiting", 0, -1) == [job.ident for job in [held, *rest]]
    assert {tuple(job.hmget("status", "tries", "start", "recoveries")) for job in [held, *rest]} == {
        (STATUSES.WAITING, None, None, None)
    }
    assert leased() == 0


def test_an_interrupt_gives_the_job_and_the_rest_back_in_their_order(redis_server: RedisServer) -> None:
    done, (held,), rest = add(*numbers(3)), add("holds"), add(*numbers(30, 3))
    with started(redis_server, "--no-terminate-gracefully") as worker:
        wait_until(lambda: held.status.hget() == STATUSES.RUNNING, PROCESS_SECONDS, "the job is noted as running")

        assert worker.stop(signal.SIGINT) != 0

    assert statuses(done) == {STATUSES.SUCCESS}
    assert client().lrange("jobs:queue:1:waiting", 0, -1) == [job.ident for job in [held, *rest]]
    assert leased() == 0


def test_two_processes_share_a_queue_and_run_each_job_once(redis_server: RedisServer) -> None:
    add(*numbers(2000))
    with started(redis_server) as first, started(redis_server) as second:
        wait_until(
            lambda: len(PrefetchedJob.collection(status=STATUSES.SUCCESS)) == 2000, PROCESS_SECONDS, "all jobs are done"
        )
        assert [first.stop(), second.stop()] == [0, 0]

    assert len(runs()) == len(set(runs())) == 2000
    assert Queue.get_queue("prefetched").success.llen() == 2000
    assert leased() == 0
