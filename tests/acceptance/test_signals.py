"""Signals, and processes that jobs start, which are no workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue

from ..base import PROCESS_SECONDS, Process, RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("database")

# A worker, in a program of its own, whose callback does what the identifier of the job says.
PROGRAM = """
import logging, multiprocessing, os, sys, time
from limpyd_jobs import Worker
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.database.connect(sys.argv[1])
logging.basicConfig(format="%(message)s", level="INFO")
options = eval(sys.argv[2])

def hold(client):
    while not client.exists("test:go"):
        client.blpop(["test:doors"], 1)

def run(job, queue):
    what, client = job.identifier.hget(), queue.connection
    client.rpush("test:runs", f"{what} {os.getpid()}")
    if what == "forks and exits":
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
    elif what == "forks and goes on":
        if os.fork() == 0:
            return
        os.wait()
    elif what == "forks and raises":
        if os.fork() == 0:
            raise ValueError
        os.wait()
    elif what == "ends a child":
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        child = context.Process(target=lambda: (ready.set(), time.sleep(1000)))
        child.start()
        ready.wait(20)
        child.terminate()
        child.join(20)
        client.rpush("test:codes", str(child.exitcode))
    elif what == "holds":
        hold(client)

worker = Worker("signals", callback=run, job_modules="tests.acceptance.test_signals", **options)
if len(sys.argv) > 3:
    exec(sys.argv[3])
worker.run()
print("run ended")
"""


class SignalsJob(Job):
    queue_name = "signals"


def client() -> Any:
    return Job.get_connection()


@contextmanager
def started(server: RedisServer, options: str = "{}", prelude: str = "") -> Iterator[Process]:
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, server.url, options, *([prelude] if prelude else [])]
    with Process(arguments) as process:
        yield process


def runs() -> list[str]:
    return [text.rpartition(" ")[0] for text in client().lrange("test:runs", 0, -1)]


@pytest.mark.parametrize("what", ["forks and exits", "forks and goes on", "forks and raises"])
def test_a_process_that_a_job_forks_is_no_second_worker(what: str, redis_server: RedisServer) -> None:
    job = SignalsJob.add_job(what)
    others = [SignalsJob.add_job(str(number)) for number in range(5)]

    with started(redis_server, "dict(max_loops=6)") as process:
        assert process.wait() == 0, process.output
        output = process.output

    assert {one.status.hget() for one in (job, *others)} == {STATUSES.SUCCESS}
    assert sorted(runs()) == sorted([what, *map(str, range(5))])
    assert "lease" not in output
    assert output.count("success") == 6


@pytest.mark.parametrize("options", ["{}", "dict(stop_timeout=0.01)"])
def test_a_signal_to_a_process_that_a_job_started_is_not_one_to_the_worker(
    options: str, redis_server: RedisServer
) -> None:
    jobs = [SignalsJob.add_job("ends a child"), SignalsJob.add_job("another")]

    with started(redis_server, options) as process:
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in jobs), PROCESS_SECONDS)
        # an idle worker may need longer than its stop_timeout of 10 ms to end, on a busy machine
        assert process.stop() in ((0, 3) if "stop_timeout" in options else (0,)), process.output
        assert "given back" not in process.output

    assert client().lrange("test:codes", 0, -1) == [str(-signal.SIGTERM)]
    assert sorted(runs()) == ["another", "ends a child"]


def test_an_idle_worker_ends_with_three_at_sigquit(redis_server: RedisServer) -> None:
    Queue.get_queue("signals")

    with started(redis_server) as process:
        process.wait_for_output("Run started")

        assert process.stop(signal.SIGQUIT) == 3, process.output


def test_a_worker_whose_log_nobody_reads_ends_at_sigquit(redis_server: RedisServer) -> None:
    job = SignalsJob.add_job("holds")
    prelude = (
        "import threading; reader, writer = os.pipe(); stream = os.fdopen(writer, 'w', 1)\n"
        "logging.getLogger('limpyd-jobs').propagate = False\n"
        "handler = logging.StreamHandler(stream); logging.getLogger('limpyd-jobs').addHandler(handler)\n"
        "threading.Thread(target=lambda: os.write(writer, b'x' * 2**20), daemon=True).start()\n"
        "stuck = lambda: handler.handle(logging.makeLogRecord({'msg': 'y'}))\n"
        "threading.Thread(target=stuck, daemon=True).start()\n"
        "worker.log = lambda *args, **kwargs: None if worker.status != 'running' or not worker.end_forced "
        "else handler.handle(logging.makeLogRecord({'msg': str(args)}))"
    )

    with started(redis_server, prelude=prelude) as process:
        wait_until(lambda: runs() == ["holds"], PROCESS_SECONDS)
        assert process.stop(signal.SIGQUIT) == 3

    assert job.hmget("status", "tries") == [STATUSES.WAITING, None]


def test_a_signal_counts_although_logging_it_raises(redis_server: RedisServer) -> None:
    jobs = [SignalsJob.add_job("holds"), SignalsJob.add_job("second")]
    prelude = "logging.getLogger('limpyd-jobs').addFilter(lambda record: 'Caught' not in record.getMessage() or 1 / 0)"

    with started(redis_server, prelude=prelude) as process:
        wait_until(lambda: runs() == ["holds"], PROCESS_SECONDS)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: _has_handled(process.pid, signal.SIGTERM), message="the signal is delivered")
        client().set("test:go", "1")
        client().rpush("test:doors", "go")
        assert process.wait() == 0, process.output

    assert [job.status.hget() for job in jobs] == [STATUSES.SUCCESS, STATUSES.WAITING]


def _has_handled(pid: int, number: int) -> bool:
    """Is the signal pending no more? (On Linux; elsewhere it is delivered by then, almost surely.)"""
    path = f"/proc/{pid}/status"
    if not os.path.exists(path):
        return True
    with open(path) as status:
        lines = dict(line.split(":", 1) for line in status if ":" in line)
    return not int(lines["ShdPnd"], 16) >> (number - 1) & 1


def test_both_workers_of_a_process_hear_of_a_signal(redis_server: RedisServer) -> None:
    job = SignalsJob.add_job("holds")
    prelude = "other = Worker('signals', callback=run)"

    with started(redis_server, prelude=prelude) as process:
        wait_until(lambda: runs() == ["holds"], PROCESS_SECONDS)
        process.send_signal(signal.SIGTERM)
        process.wait_for_output("Caught SIGTERM", times=2)
        client().set("test:go", "1")
        client().rpush("test:doors", "go")
        assert process.wait() == 0, process.output

    assert job.status.hget() == STATUSES.SUCCESS


def test_an_isolated_job_that_gets_sigusr2_goes_on(redis_server: RedisServer) -> None:
    job = SignalsJob.add_job("holds")
    with started(redis_server, '{"isolate": True, "max_loops": 1}') as process:
        wait_until(runs)
        (run,) = client().lrange("test:runs", 0, -1)

        os.kill(int(run.rpartition(" ")[2]), signal.SIGUSR2)

        process.wait_for_output(", in _call_inside")  # it may be on its way to where it waits
        client().set("test:go", 1)
        assert process.wait() == 0, process.output
    assert job.status.hget() == STATUSES.SUCCESS


def test_a_job_is_given_back_although_sigint_comes_twice(redis_server: RedisServer) -> None:
    job = SignalsJob.add_job("holds")
    again = (
        "give_back = worker._give_back_held\n"
        "worker._give_back_held = lambda: (os.kill(os.getpid(), signal.SIGINT), give_back())"
    )
    with started(redis_server, '{"terminate_gracefully": False}', f"import signal\n{again}") as process:
        wait_until(runs)

        process.stop(signal.SIGINT)

        assert "KeyboardInterrupt" in process.output
    assert job.status.hget() == STATUSES.WAITING


def test_a_worker_that_is_to_stop_while_redis_hangs_ends_with_three(redis_server: RedisServer) -> None:
    with RedisServer(tcp=True) as server:
        former = dict(Job.database.connection_settings)
        Job.database.connect(**server.settings)
        try:
            SignalsJob.add_job("holds")
            with started(server) as process:
                wait_until(lambda: runs() == ["holds"], PROCESS_SECONDS)
                assert server.process is not None
                server.process.send_signal(signal.SIGSTOP)
                assert process.stop(signal.SIGQUIT, timeout=30) == 3
                server.process.send_signal(signal.SIGCONT)
        finally:
            Job.database.reset(**former)
