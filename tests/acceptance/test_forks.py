"""Workers made once, then run in several processes by a fork."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from limpyd_jobs import STATUSES

from ..base import PROCESS_SECONDS, Process, RedisServer, wait_until
from .jobs import RacesJob, connection

pytestmark = pytest.mark.usefixtures("database")

CHILDREN = 2

# Makes one worker, runs it in the children, prints the id of each child, and how all of them ended.
PROGRAM = f"""
import logging, multiprocessing, os, sys, time
from limpyd_jobs import Worker
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.database.connect(sys.argv[1])
logging.basicConfig(format="%(message)s")

def note(job, queue):
    client = queue.connection
    client.rpush("test:runs", f"{{job.pk.get()}} {{os.getpid()}}")
    client.sadd("test:crew", os.getpid())
    while client.scard("test:crew") < {CHILDREN}:  # hold the first job of each, else one may do all of them
        time.sleep(0.01)

worker = Worker("race", callback=note, max_duration=30, job_modules="tests.acceptance.jobs")

def fork():
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        worker.run()
        code = 0
    finally:
        os._exit(code)

if sys.argv[2] == "os.fork":
    pids = [fork() for _ in range({CHILDREN})]
    print("children", *pids)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
else:
    processes = [multiprocessing.get_context("fork").Process(target=worker.run) for _ in range({CHILDREN})]
    for process in processes:
        process.start()
    print("children", *[process.pid for process in processes])
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
print("ended with", codes)
"""


@contextmanager
def forked(server: RedisServer, how: str) -> Iterator[tuple[Process, list[int]]]:
    """The program, and the ids of its children."""
    pids: list[int] = []
    with Process([sys.executable, "-W", "ignore", "-c", PROGRAM, server.url, how]) as program:
        try:
            program.wait_for_output("children")
            wait_until(lambda: "\n" in program.output.partition("children ")[2])
            pids += [int(text) for text in program.output.split("children ")[1].split("\n")[0].split()]
            yield program, pids
        finally:
            for pid in pids if program.is_running() else ():  # they outlive a parent that is killed
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def runs() -> list[list[str]]:
    """The job and the process of each run so far."""
    return [text.split() for text in connection().lrange("test:runs", 0, -1)]


def succeeded() -> int:
    return len(RacesJob.collection(status=STATUSES.SUCCESS))


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
def test_the_children_of_one_worker_run_each_job_once(how: str, redis_server: RedisServer) -> None:
    jobs = [RacesJob.add_job(str(number)) for number in range(20)]

    with forked(redis_server, how) as (program, pids):
        wait_until(lambda: succeeded() == len(jobs), PROCESS_SECONDS, "all jobs are done")
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        program.wait_for_output("ended with")

    assert Counter(pk for pk, _ in runs()) == Counter(job.pk.get() for job in jobs)
    assert {int(pid) for _, pid in runs()} == set(pids)
    assert {job.tries.hget() for job in jobs} == {"1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_child_of_one_worker_is_stopped_by_a_signal_of_its_own(
    number: signal.Signals, redis_server: RedisServer
) -> None:
    jobs: list[Any] = [RacesJob.add_job(str(number)) for number in range(CHILDREN)]

    with forked(redis_server, "os.fork") as (program, (first, second)):
        wait_until(lambda: succeeded() == len(jobs), PROCESS_SECONDS, "each child has run a job")
        os.kill(first, number)
        wait_until(lambda: program.output.count("Run terminated") == 1, message="the first child ends")
        later = RacesJob.add_job("later")
        wait_until(lambda: later.status.hget() == STATUSES.SUCCESS, message="the other one goes on")
        os.kill(second, number)
        program.wait_for_output("ended with [0, 0]")

    assert runs()[-1] == [later.pk.get(), str(second)]
