"""When a worker ends by itself: `burst` and `max_memory`; and what it says of itself at SIGUSR2."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import pytest

from limpyd_jobs import STATUSES, ConfigurationException, Job, Queue, Worker
from limpyd_jobs.workers import base, insight

from ..base import wait_until
from .base import Log, client, leased, run

pytestmark = pytest.mark.usefixtures("database")


class LimitsJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        pass


def worker(**options: Any) -> Worker:
    return Worker("test", **{"terminate_gracefully": False, **options})


def statuses(jobs: list[Job]) -> set[str]:
    return {job.status.hget() for job in jobs}


# --- burst ---


@pytest.mark.parametrize("prefetch", [0, 3])
def test_with_burst_all_that_waits_is_run_and_then_the_worker_ends(prefetch: int, log: Log) -> None:
    jobs = [LimitsJob.add_job(str(number), priority=number % 2) for number in range(8)]

    run(found := worker(burst=True, prefetch=prefetch))

    assert statuses(jobs) == {STATUSES.SUCCESS}
    assert (found.num_loops, found.is_drained, found.end_forced) == (8, True, False)
    assert "Nothing is waiting and nothing is due: stopping" in log.lines
    assert leased() == []


def test_with_burst_and_no_queue_the_worker_ends() -> None:
    run(found := worker(burst=True))

    assert found.is_drained and found.status == "terminated"


def test_with_burst_a_delayed_job_that_is_due_is_run_and_another_left() -> None:
    due = LimitsJob.add_job("due", delayed_for=0.001)
    later = LimitsJob.add_job("later", delayed_for=1000)
    wait_until(lambda: client().time()[0] > client().zscore(f"{Queue.get_queue('test').delayed.key}", due.ident))

    run(found := worker(burst=True))

    assert (due.status.hget(), later.status.hget()) == (STATUSES.SUCCESS, STATUSES.DELAYED)
    assert found.num_loops == 1


def test_with_burst_a_job_of_a_program_that_does_not_ring_is_run() -> None:
    queue = Queue.get_queue("test")
    run(worker(burst=True))  # what it notes of the queue is that it is empty
    job = LimitsJob.add_job("silent")
    client().delete("jobs:ready:queue:test", "jobs:doorbell:queue:test")
    assert queue.waiting.llen() == 1

    run(worker(burst=True))

    assert job.status.hget() == STATUSES.SUCCESS


def test_with_burst_a_job_that_is_put_back_at_once_is_run_again() -> None:
    calls: list[str] = []

    def fail_once(job: Job, queue: Queue) -> None:
        calls.append("run")
        if len(calls) == 1:
            raise ValueError("the first time")

    job = LimitsJob.add_job("fails once")

    run(worker(burst=True, callback=fail_once, requeue_times=1, requeue_delay_delta=0))

    assert (calls, job.status.hget()) == (["run", "run"], STATUSES.SUCCESS)


def test_with_burst_max_loops_comes_first() -> None:
    jobs = [LimitsJob.add_job(str(number)) for number in range(3)]

    run(found := worker(burst=True, max_loops=3))

    assert statuses(jobs) == {STATUSES.SUCCESS}
    assert not found.is_drained


def test_burst_is_true_or_false() -> None:
    with pytest.raises(ConfigurationException, match="Invalid burst: 1: must be True or False"):
        worker(burst=1)


# --- max_memory ---


def test_above_max_memory_the_job_was_the_last_one(log: Log) -> None:
    jobs = [LimitsJob.add_job(str(number)) for number in range(2)]

    run(found := worker(max_memory=1))

    assert [job.status.hget() for job in jobs] == [STATUSES.SUCCESS, STATUSES.WAITING]
    assert found.num_loops == 1
    assert any("MiB, more than max_memory (1): stopping" in line for line in log.lines)


def test_what_was_claimed_ahead_is_given_back_above_max_memory() -> None:
    jobs = [LimitsJob.add_job(str(number)) for number in range(5)]

    run(worker(max_memory=1, prefetch=5))

    assert [job.status.hget() for job in jobs] == [STATUSES.SUCCESS] + [STATUSES.WAITING] * 4
    assert leased() == []


def test_below_max_memory_the_worker_goes_on() -> None:
    jobs = [LimitsJob.add_job(str(number)) for number in range(2)]

    run(worker(max_memory=100_000, max_loops=2))

    assert statuses(jobs) == {STATUSES.SUCCESS}


def test_memory_is_only_measured_when_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "resident_mib", lambda: pytest.fail("measured"))
    LimitsJob.add_job("one")

    run(worker(max_loops=1))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "100"])
def test_max_memory_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(ConfigurationException, match=f"Invalid max_memory: {value!r}: must be an integer, 1 or more"):
        worker(max_memory=value)


def test_the_resident_memory_is_that_of_the_process() -> None:
    before = insight.resident_mib()

    held = b"x" * (64 * insight.MIB)

    assert insight.resident_mib() - before > 50, len(held)


# --- SIGUSR2 ---


def test_at_sigusr2_the_stack_of_each_thread_is_in_the_log(log: Log) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="the\nother", daemon=True)
    thread.start()
    LimitsJob.add_job("one")

    run(
        worker(terminate_gracefully=True, max_loops=1, callback=lambda job, queue: os.kill(os.getpid(), signal.SIGUSR2))
    )
    release.set()

    (text,) = [message for message in log.messages if "Stacks of all threads:" in message]
    first, *lines = text.split("\n")
    assert first.endswith("] Stacks of all threads:")
    assert all(line.startswith("    ") for line in lines)
    assert f"    Thread MainThread ({threading.main_thread().ident}):" in lines
    assert f"    Thread the\\nother ({thread.ident}):" in lines
    assert any("test_limits.py" in line for line in lines)
    assert log.level_of("Stacks of all threads") == logging.getLevelName(logging.CRITICAL)


def test_the_handler_of_sigusr2_is_put_back() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # a worker of another test may have been made and never run
    run(worker(terminate_gracefully=True, burst=True))

    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_a_handler_of_the_program_for_sigusr2_stays() -> None:
    def handler(*arguments: Any) -> None:
        pass

    signal.signal(signal.SIGUSR2, handler)

    made = worker(terminate_gracefully=True, burst=True)

    assert signal.getsignal(signal.SIGUSR2) is handler
    run(made)
    assert signal.getsignal(signal.SIGUSR2) is handler
