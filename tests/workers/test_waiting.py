"""An idle worker takes a job at once, and ends at once: W14, W15, W25, W42, W61, W62.

What must be the doorbell's work and not the poll's is shown with a poll of 30 seconds.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Worker, wire
from limpyd_jobs.utils import score_to_datetime, utcnow
from limpyd_jobs.workers import AsyncWorker, blocking
from limpyd_jobs.workers.doorbell import Alarm, Doorbell

from ..base import Process, RedisServer, wait_until
from .base import DEADLINE_SECONDS, Running, client, idle, wait_until_idle

pytestmark = pytest.mark.usefixtures("database")

AT_ONCE_SECONDS = 3  # it is 50 ms on a machine with nothing else to do, and no other way is shorter than the poll
END_SECONDS = 15  # of a process, which also leaves Python
POLL_SECONDS = 30  # patched: what happens before is not the poll

# A worker process with a poll of 30 seconds.
PATIENT_PROGRAM = f"""
from limpyd_jobs.workers import AsyncWorker, blocking
from limpyd_jobs.workers.doorbell import Alarm
blocking.POLL_SECONDS = {POLL_SECONDS}
from limpyd_jobs.scripts.worker import main
main()
"""


class WaitingJob(Job):
    started_at: dict[str, float] = {}

    def run(self, queue: Any) -> None:
        self.started_at[self.identifier.hget()] = time.time()


@pytest.fixture(autouse=True)
def started_at() -> dict[str, float]:
    WaitingJob.started_at.clear()
    return WaitingJob.started_at


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers poll so rarely that only the doorbell can have woken them."""
    monkeypatch.setattr(blocking, "POLL_SECONDS", POLL_SECONDS)


@pytest.fixture
def worker(patient: None) -> Iterator[Worker]:
    """A worker that waits for a job of the queue `test`, or of `other`, which does not exist yet."""
    Queue.get_queue("test")
    with Running(idle(queues="test,other")) as running:
        wait_until_idle()
        yield running


def assert_starts_at_once(identifier: str, wanted: float) -> None:
    wait_until(lambda: identifier in WaitingJob.started_at, message=f"{identifier} starts")
    late = WaitingJob.started_at[identifier] - wanted
    assert late < AT_ONCE_SECONDS, f"{identifier} started {late} seconds late"


# --- Jobs


def test_an_idle_worker_takes_a_job_at_once(worker: Worker) -> None:
    added = time.time()
    WaitingJob.add_job("one", "test")

    assert_starts_at_once("one", added)


def test_w14_an_idle_worker_takes_a_job_of_a_new_priority_at_once(worker: Worker) -> None:
    added = time.time()
    WaitingJob.add_job("one", "test", priority=7)

    assert_starts_at_once("one", added)


def test_w14_an_idle_worker_takes_a_job_of_a_new_queue_at_once(worker: Worker) -> None:
    added = time.time()
    WaitingJob.add_job("one", "other")

    assert_starts_at_once("one", added)


def test_w14_the_keys_know_the_new_queue_by_then(worker: Worker) -> None:
    WaitingJob.add_job("one", "other", priority=7)

    assert_starts_at_once("one", time.time())
    assert Queue.get_queue("other", 7).waiting.key in worker.keys


def test_w62_a_worker_without_any_queue_takes_the_first_job_at_once(patient: None) -> None:
    with Running(idle()) as worker:
        wait_until_idle()
        assert worker.status == "starting"
        added = time.time()
        WaitingJob.add_job("one", "test")

        assert_starts_at_once("one", added)


def test_an_idle_worker_takes_one_job_after_the_other(worker: Worker, started_at: dict[str, float]) -> None:
    for round_number in range(20):
        WaitingJob.add_job(str(round_number), "test", priority=round_number % 3)
        wait_until(lambda number=str(round_number): number in started_at)

    wait_until_idle()
    assert worker.num_loops == 20


def vigils_of(worker: Any) -> list[bool]:
    """Does it wait for Redis awake: at the begin of its run, and afterwards?"""
    vigils: list[Any] = []
    WaitingJob.add_job("one", queue_name="test")
    worker.run_ended = lambda: vigils.append(wire.this_thread.vigil)
    worker.run_started = lambda: vigils.append(wire.this_thread.vigil)
    worker.run()
    return [vigil is not None for vigil in vigils]


def test_a_plain_worker_waits_awake_for_redis() -> None:
    assert vigils_of(idle(max_loops=1)) == [wire.CAN_BE_AWAKE, False]


def test_workers_in_whose_process_something_else_may_run_sleep() -> None:
    found: list[list[bool]] = []
    thread = threading.Thread(target=lambda: found.append(vigils_of(idle(max_loops=1))))
    thread.start()
    thread.join()

    assert found == [[False, False]]
    assert vigils_of(idle(threads=2, max_loops=1)) == [False, False]
    assert vigils_of(AsyncWorker("test", max_loops=1)) == [False, False]


def test_w15_an_idle_worker_takes_a_delayed_job_when_it_is_due(worker: Worker) -> None:
    job = WaitingJob.add_job("one", "test", delayed_for=0.3)
    _, due = Queue.get_queue("test").first_delayed
    assert job.status.hget() == STATUSES.DELAYED

    assert_starts_at_once("one", due)
    assert WaitingJob.started_at["one"] >= due - 0.05


def test_w15_an_idle_worker_takes_a_delayed_job_of_a_new_queue_and_priority_when_it_is_due(worker: Worker) -> None:
    WaitingJob.add_job("one", "other", priority=9, delayed_for=0.2)
    _, due = Queue.get_queue("other", 9).first_delayed

    assert_starts_at_once("one", due)


def test_w15_a_job_that_is_due_before_the_one_waited_for_starts_when_it_is_due(worker: Worker) -> None:
    WaitingJob.add_job("later", "test", delayed_for=60)
    wait_until_idle()
    WaitingJob.add_job("sooner", "test", delayed_for=0.2)
    _, due = Queue.get_queue("test").first_delayed

    assert_starts_at_once("sooner", due)


def test_w15_a_job_delayed_by_a_queue_object_starts_when_it_is_due(worker: Worker) -> None:
    job, queue = WaitingJob.add_job("one", "test", delayed_for=60), Queue.get_queue("test")
    wait_until_idle()
    due = time.time() + 0.2
    queue.delay_job(job, score_to_datetime(due))

    assert_starts_at_once("one", due)


def test_w15_a_job_that_became_due_before_the_worker_started_is_taken_at_once(patient: None) -> None:
    job, queue = WaitingJob.add_job("one", "test", delayed_for=60), Queue.get_queue("test")
    queue.delayed.zadd({job.ident: 1})
    job.delayed_until.hset("1970-01-01 00:00:01")
    started = time.time()

    with Running(idle()):
        assert_starts_at_once("one", started)


def test_w15_a_delayed_job_of_a_program_that_does_not_ring_is_seen_after_fetch_delayed_delay(patient: None) -> None:
    queue = Queue.get_queue("test")
    with Running(idle(fetch_delayed_delay=0.1, timeout=0.1)):
        wait_until_idle()
        job = WaitingJob(identifier="one", status=STATUSES.DELAYED, queued="1")
        client().zadd(queue.delayed.key, {job.ident: time.time() - 1})

        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)


def test_w18_a_requeued_job_starts_when_it_is_due(patient: None) -> None:
    def fail_at_first(job: Any, queue: Any) -> None:
        job.run(queue)
        if job.tries.hget() == "1":
            raise ValueError("not yet")

    job = WaitingJob.add_job("one", "test")
    started = time.time()

    with Running(idle(callback=fail_at_first, requeue_times=1, requeue_delay_delta=0.2)):
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert 0.2 <= WaitingJob.started_at["one"] - started < 0.2 + 2 * AT_ONCE_SECONDS


def test_each_of_several_idle_workers_takes_one_of_several_jobs(patient: None) -> None:
    Queue.get_queue("test")
    together = threading.Barrier(3)

    def meet(job: Any, queue: Any) -> None:
        together.wait(DEADLINE_SECONDS)  # passes only when three jobs run at once

    workers = [Running(idle(callback=meet)) for _ in range(3)]
    for running in workers:
        running.__enter__()
    try:
        wait_until_idle(3)
        jobs = [WaitingJob.add_job(str(number), "test") for number in range(3)]
        wait_until(lambda: all(job.status.hget() != STATUSES.WAITING for job in jobs))
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in jobs))
    finally:
        for running in workers:
            running.__exit__()


def test_a_job_pushed_by_another_program_is_taken_within_about_a_second() -> None:
    queue = Queue.get_queue("test")
    with Running(idle()):
        wait_until_idle()
        job = WaitingJob(identifier="one", status=STATUSES.WAITING, queued="1", added=str(utcnow()))
        client().rpush(queue.waiting.key, job.ident)

        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, 10)  # a third of the `timeout` of the worker


def test_w14_a_job_pushed_in_a_queue_that_another_program_made_is_taken_after_fetch_priorities_delay() -> None:
    Queue.get_queue("test")
    with Running(idle(fetch_priorities_delay=0.2)):
        wait_until_idle()
        queue = Queue(name="test", priority=7)
        job = WaitingJob(identifier="one", status=STATUSES.WAITING, queued="1", added=str(utcnow()))
        client().rpush(queue.waiting.key, job.ident)

        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, 10)  # without it that would be 25 seconds


@pytest.mark.parametrize("seconds", [-1, 0, 0.0005, 0.001, 0.0015])
def test_the_shortest_wait_is_not_one_for_ever(seconds: float) -> None:
    bell = Doorbell(client(), ["jobs:doorbell:queue:test"], Alarm())

    assert not bell.wait(seconds)
    wait_until_idle(0)
    bell.close()


def test_an_idle_worker_asks_little_of_redis(worker: Worker) -> None:
    before = client().info("stats")["total_commands_processed"]
    time.sleep(0.3)
    after = client().info("stats")["total_commands_processed"]

    assert after - before <= 5


@pytest.mark.parametrize("change", ["renamed", "deleted"])
def test_a_queue_with_due_jobs_that_was_renamed_or_deleted_does_not_keep_a_worker_busy(
    change: str, patient: None
) -> None:
    queue = Queue.get_queue("test")
    WaitingJob.add_job("one", "test", delayed_for=100)
    WaitingJob.add_job("two", "test", priority=1, delayed_for=100)
    pk = queue.pk.get()
    client().zadd("jobs:due:queue:test", {pk: 1})
    queue.name.hset("other") if change == "renamed" else queue.delete()
    before = client().info("stats")

    with Running(idle()):
        wait_until(lambda: client().zscore("jobs:due:queue:test", pk) is None, message="the note is forgotten")
        wait_until_idle()
        after = client().info("stats")

    # 50 scripts and new connections a second, while the note is there
    assert after["total_connections_received"] - before["total_connections_received"] < 5


# --- The end


@pytest.mark.parametrize("delayed_for", [None, 60])
def test_w61_a_job_that_comes_when_a_waiting_worker_is_told_to_stop_is_left_to_others(
    delayed_for: int | None, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Alarm.ring

    def ring_after_a_job(self: Alarm) -> None:
        WaitingJob.add_job("late", "test")  # at the moment when `end_forced` is true and the worker still sleeps
        ring(self)

    WaitingJob.add_job("one", "test", delayed_for=delayed_for) if delayed_for else Queue.get_queue("test")
    running = Running(idle(timeout=30))
    with running as worker:
        wait_until_idle()
        monkeypatch.setattr(Alarm, "ring", ring_after_a_job)
        worker.end_forced = True
        running.join()

    (late,) = WaitingJob.collection(identifier="late").instances()
    assert late.hmget("status", "tries") == [STATUSES.WAITING, None]
    assert worker.num_loops == 0


def test_w25_end_forced_from_another_thread_ends_a_waiting_worker_at_once(patient: None) -> None:
    Queue.get_queue("test")
    running = Running(idle(timeout=30))
    with running as worker:
        wait_until_idle()
        asked = time.monotonic()
        worker.end_forced = True
        running.join()

    assert time.monotonic() - asked < AT_ONCE_SECONDS
    assert worker.status == "terminated"


def test_w25_w62_end_forced_ends_a_worker_that_waits_for_its_queues_at_once(patient: None) -> None:
    running = Running(idle(timeout=30))
    with running as worker:
        wait_until_idle()
        asked = time.monotonic()
        worker.end_forced = True
        running.join()

    assert time.monotonic() - asked < AT_ONCE_SECONDS
    assert worker.status == "terminated"


def test_w25_end_forced_ends_a_worker_that_waits_for_a_delayed_job_at_once(patient: None) -> None:
    WaitingJob.add_job("one", "test", delayed_for=60)
    running = Running(idle(timeout=30))
    with running as worker:
        wait_until_idle()
        asked = time.monotonic()
        worker.end_forced = True
        running.join()

    assert time.monotonic() - asked < AT_ONCE_SECONDS
    assert worker.status == "terminated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_w61_a_signal_ends_an_idle_process_at_once(number: signal.Signals, redis_server: RedisServer) -> None:
    Queue.get_queue("test")
    arguments = [sys.executable, "-c", PATIENT_PROGRAM, "--queues=test", "--timeout=30"]
    with Process(arguments, environment={"LIMPYD_JOBS_DATABASE": redis_server.url}) as process:
        process.wait_for_output("Run started.")
        wait_until_idle()
        asked = time.monotonic()

        assert process.stop(number) == 0

        assert time.monotonic() - asked < END_SECONDS
        assert f"Caught {number.name}" in process.output
        assert "Run terminated, with 0 loops" in process.output


def test_w61_a_signal_ends_a_process_that_waits_for_its_queues_at_once(redis_server: RedisServer) -> None:
    arguments = [sys.executable, "-c", PATIENT_PROGRAM, "--queues=test", "--timeout=30"]
    with Process(arguments, environment={"LIMPYD_JOBS_DATABASE": redis_server.url}) as process:
        wait_until_idle()
        asked = time.monotonic()

        assert process.stop(signal.SIGTERM) == 0

        assert time.monotonic() - asked < END_SECONDS
