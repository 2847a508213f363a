"""Real worker processes with threads, with isolated jobs and with time limits: signals, kills."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, admin

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

OPTIONS = (
    "--queues=parallel",
    "--job-modules=tests.acceptance.test_threads_processes",
    "--max-loops=100000",
    "--no-title",
)
SHORT_LEASE = "--lease-seconds=1"  # where a worker dies; else a busy machine may lose it


class ParallelJob(Job):
    """Notes its run, and does what its identifier begins with."""

    queue_name = "parallel"

    def run(self, queue: Any) -> None:
        name = self.identifier.hget()
        client().rpush("test:runs", f"{name}|{os.getpid()}")
        if name.startswith("holds"):
            while not client().exists("test:go"):
                time.sleep(0.02)
        elif name.startswith("exits"):
            os._exit(9)


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no job is leased, and the invariants hold."""
    yield
    assert int(client().zcard("jobs:leases")) + int(client().hlen("jobs:claims")) == 0
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return Job.get_connection()


@contextmanager
def started(redis_server: RedisServer, *arguments: str) -> Iterator[WorkerProcess]:
    with WorkerProcess(*OPTIONS, *arguments, database=redis_server.url) as process:
        yield process


def runs() -> list[str]:
    return [text.rpartition("|")[0] for text in client().lrange("test:runs", 0, -1)]


def pids() -> list[int]:
    return [int(text.rpartition("|")[2]) for text in client().lrange("test:runs", 0, -1)]


def add(*names: str, **values: Any) -> list[Any]:
    return [ParallelJob.add_job(name, **values) for name in names]


def held(count: int) -> list[str]:
    return [f"holds {number}" for number in range(count)]


def statuses(jobs: list[Any]) -> Counter[str]:
    return Counter(job.status.hget() for job in jobs)


def waiting() -> list[str]:
    found: list[str] = Queue.get_queue("parallel").waiting.lmembers()
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_the_doors() -> None:
    client().set("test:go", "1")


# --- Threads


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda value: value.name)
def test_a_signal_lets_all_threads_end_and_no_more_begin(number: signal.Signals, redis_server: RedisServer) -> None:
    jobs, rest = add(*held(3)), add("a", "b")
    with started(redis_server, "--threads=3") as worker:
        wait_until(lambda: len(runs()) == 3, PROCESS_SECONDS)
        worker.send_signal(number)
        worker.wait_for_output(f"Caught {number.name}")
        open_the_doors()
        assert worker.wait() == 0, worker.output
        assert "with 3 loops" in worker.output

    assert statuses(jobs) == {STATUSES.SUCCESS: 3}
    assert waiting() == [job.ident for job in rest]


def test_sigquit_gives_all_threads_jobs_back_in_their_order(redis_server: RedisServer) -> None:
    jobs, rest = add(*held(3)), add("a")
    with started(redis_server, "--threads=3") as worker:
        wait_until(lambda: len(runs()) == 3, PROCESS_SECONDS)
        assert worker.stop(signal.SIGQUIT) == 3, worker.output
        assert worker.output.count("is given back") == 3

    assert waiting() == [job.ident for job in [*jobs, *rest]]
    assert {tuple(job.hmget("status", "tries", "start", "recoveries")) for job in jobs} == {
        (STATUSES.WAITING, None, None, None)
    }


def test_threads_that_do_not_end_in_time_are_left_and_their_jobs_given_back(redis_server: RedisServer) -> None:
    jobs = add("quick", *held(2))
    with started(redis_server, "--threads=3", "--stop-timeout=0.3") as worker:
        wait_until(lambda: len(runs()) == 3 and jobs[0].status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS)
        assert worker.stop(signal.SIGTERM) == 3, worker.output

    assert waiting() == [job.ident for job in jobs[1:]]


def test_an_interrupt_without_grace_gives_all_back_at_once(redis_server: RedisServer) -> None:
    jobs = add(*held(3))
    with started(redis_server, "--threads=3", "--no-terminate-gracefully") as worker:
        wait_until(lambda: len(runs()) == 3, PROCESS_SECONDS)
        assert worker.stop(signal.SIGINT) != 0

    assert waiting() == [job.ident for job in jobs]
    assert {job.tries.hget() for job in jobs} == {None}


def test_what_all_threads_of_a_killed_worker_ran_is_run_by_another(redis_server: RedisServer) -> None:
    jobs = add(*held(4))
    with started(redis_server, "--threads=4", SHORT_LEASE) as victim:
        wait_until(lambda: len(runs()) == 4, PROCESS_SECONDS)
        victim.kill()
    open_the_doors()

    with started(redis_server, "--threads=4", SHORT_LEASE) as heir:
        wait_until(lambda: statuses(jobs) == {STATUSES.SUCCESS: 4}, PROCESS_SECONDS)
        assert heir.stop() == 0

    assert Counter(runs()) == dict.fromkeys(held(4), 2)


def test_many_jobs_run_once_each_in_the_threads_of_two_processes(redis_server: RedisServer) -> None:
    names = [str(number) for number in range(600)]
    add(*names)
    with started(redis_server, "--threads=5") as first, started(redis_server, "--threads=5") as second:
        wait_until(lambda: Queue.get_queue("parallel").success.llen() == 600, PROCESS_SECONDS)
        assert [first.stop(), second.stop()] == [0, 0]

    assert Counter(runs()) == dict.fromkeys(names, 1)


def test_a_burst_with_threads_ends_by_itself(redis_server: RedisServer) -> None:
    jobs = add(*(str(number) for number in range(50)))
    with started(redis_server, "--threads=4", "--burst") as worker:
        assert worker.wait() == 0, worker.output
    assert statuses(jobs) == {STATUSES.SUCCESS: 50}


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--threads=2", "--prefetch=5"), "threads and prefetch"),
        (("--threads=2", "--isolate"), "threads and isolate"),
        (("--isolate", "--prefetch=5"), "isolate and prefetch"),
        (("--threads=2", "--job-timeout=5"), "job_timeout"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_the_command(
    arguments: tuple[str, ...], named: str, redis_server: RedisServer
) -> None:
    with started(redis_server, *arguments) as worker:
        assert worker.wait() != 0, worker.output
        assert named in worker.output and "Traceback" not in worker.output


def test_the_command_runs_jobs_without_their_limit_where_that_is_allowed(redis_server: RedisServer) -> None:
    (job,) = add("limited", job_timeout=0.001)
    with started(redis_server, "--threads=2", "--job-timeout=5", "--allow-unenforced-timeouts", "--burst") as worker:
        assert worker.wait() == 0, worker.output
    assert job.status.hget() == STATUSES.SUCCESS


# --- Time limits


def test_a_job_that_hangs_is_ended_and_the_next_one_runs(redis_server: RedisServer) -> None:
    jobs = [*add("holds"), *add("next", job_timeout=60)]  # the limit of the worker is too short for a busy machine
    with started(redis_server, "--job-timeout=0.3", "--burst") as worker:
        assert worker.wait() == 0, worker.output

    assert [job.status.hget() for job in jobs] == [STATUSES.ERROR, STATUSES.SUCCESS]
    assert [error.type.hget() for error in Error.collection().instances()] == ["JobTimeout"]


# --- Isolated jobs


def test_sigterm_lets_an_isolated_job_end(redis_server: RedisServer) -> None:
    (job,) = add("holds")
    with started(redis_server, "--isolate") as worker:
        wait_until(lambda: len(runs()) == 1, PROCESS_SECONDS)
        worker.send_signal(signal.SIGTERM)
        worker.wait_for_output("Caught SIGTERM")
        os.kill(pids()[0], signal.SIGTERM)  # as a supervisor does, which sends it to all processes
        open_the_doors()
        assert worker.wait() == 0, worker.output

    assert pids()[0] != worker.pid
    assert job.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize("number, options", [(signal.SIGQUIT, ()), (signal.SIGTERM, ("--stop-timeout=0.3",))], ids=str)
def test_an_isolated_job_that_must_not_go_on_is_killed_and_given_back(
    number: signal.Signals, options: tuple[str, ...], redis_server: RedisServer
) -> None:
    (job,) = add("holds")
    with started(redis_server, "--isolate", *options) as worker:
        wait_until(lambda: len(runs()) == 1, PROCESS_SECONDS)
        assert worker.stop(number) == 3, worker.output

    wait_until(lambda: not is_alive(pids()[0]))
    assert job.hmget("status", "tries") == [STATUSES.WAITING, None]
    assert waiting() == [job.ident]


def test_an_interrupt_without_grace_kills_the_isolated_job_and_gives_it_back(redis_server: RedisServer) -> None:
    (job,) = add("holds")
    with started(redis_server, "--isolate", "--no-terminate-gracefully") as worker:
        wait_until(lambda: len(runs()) == 1, PROCESS_SECONDS)
        assert worker.stop(signal.SIGINT) != 0

    wait_until(lambda: not is_alive(pids()[0]))
    assert waiting() == [job.ident]


def test_the_isolated_job_of_a_killed_worker_dies_with_it_and_runs_elsewhere(redis_server: RedisServer) -> None:
    (job,) = add("holds")
    with started(redis_server, "--isolate", SHORT_LEASE) as victim:
        wait_until(lambda: len(runs()) == 1, PROCESS_SECONDS)
        victim.kill()
        wait_until(lambda: not is_alive(pids()[0]))
    open_the_doors()

    with started(redis_server, "--isolate", SHORT_LEASE) as heir:
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS)
        assert heir.stop() == 0
    assert runs() == ["holds", "holds"]


def test_deaths_of_isolated_jobs_end_nothing_else(redis_server: RedisServer) -> None:
    jobs = add(*(f"{'exits' if number % 3 == 0 else 'job'} {number}" for number in range(12)))
    with started(redis_server, "--isolate", "--burst") as worker:
        assert worker.wait() == 0, worker.output

    assert statuses(jobs) == {STATUSES.ERROR: 4, STATUSES.SUCCESS: 8}
    assert {error.type.hget() for error in Error.collection().instances()} == {"JobProcessDied"}
    assert max(Counter(runs()).values()) == 1


def test_a_job_is_canceled_from_outside_and_its_process_killed(redis_server: RedisServer) -> None:
    (job,) = add("holds")
    with started(redis_server, "--isolate") as worker:
        wait_until(lambda: len(runs()) == 1, PROCESS_SECONDS)
        job.cancel("from outside")
        wait_until(lambda: not is_alive(pids()[0]))
        worker.wait_for_output("job skipped (current status: CANCELED)")
        assert worker.stop() == 0

    assert job.hmget("status", "queued", "cancel_reason") == [STATUSES.CANCELED, None, "from outside"]
    assert len(Error.collection()) == 0
