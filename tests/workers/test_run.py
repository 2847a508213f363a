"""The run of a worker: its state, its ends, what it takes: W8, W9, W12 to W18, W20 to W30, W34, W36 to W45, W55 to W60,
W62, W63."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Job, LimpydJobsException, Queue, Worker
from limpyd_jobs.utils import utcnow

from ..base import wait_until
from .base import Log, Running, idle, leased, run, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database")


class RunJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> str:
        if self.identifier.hget().startswith("bad"):
            raise ValueError("boo")
        return f"result of {self.identifier.hget()}"


def add(*identifiers: str, **options: Any) -> list[Any]:
    return [RunJob.add_job(identifier, **options) for identifier in identifiers]


def make_due(job: Any) -> None:
    """Let the time pass, for a delayed job."""
    queue = Queue.get_queue("test", int(job.priority.hget()))
    queue.delayed.zadd({job.ident: 1})
    job.delayed_until.hset("1970-01-01 00:00:01")


# --- The state


def test_w20_keys_are_the_waiting_lists_highest_priority_first() -> None:
    queues = [Queue.get_queue("test", priority) for priority in (0, 10, 9, -1)]
    worker = Worker("test,missing")

    worker.update_keys()

    low, ten, nine, negative = [queue.waiting.key for queue in queues]
    assert worker.keys == [ten, nine, low, negative]


def test_w20_keys_of_equal_priority_are_in_the_order_of_the_names() -> None:
    alpha, beta = Queue.get_queue("alpha").waiting.key, Queue.get_queue("beta").waiting.key
    worker = Worker("beta,alpha")

    worker.update_keys()

    assert worker.keys == [beta, alpha]


def test_w20_jobs_of_equal_priority_are_taken_in_the_order_of_the_names() -> None:
    calls: list[str] = []
    RunJob.add_job("of alpha", "alpha")
    RunJob.add_job("of beta", "beta")

    work(2, "beta,alpha", callback=lambda job, queue: calls.append(job.identifier.hget()))

    assert calls == ["of beta", "of alpha"]


def test_w21_the_status_goes_from_none_to_terminated() -> None:
    seen: list[str] = []

    class StatusWorker(Worker):
        def set_status(self, status: str) -> None:
            super().set_status(status)
            seen.append(status)

    add("one", "two")
    worker = StatusWorker("test", max_loops=2)
    assert worker.status is None

    run(worker)

    changes = [status for position, status in enumerate(seen) if seen[position - 1 : position] != [status]]
    assert changes == ["starting", "waiting", "running", "waiting", "running", "terminated"]
    assert worker.status == "terminated"


def test_w21_the_status_is_running_while_a_job_runs() -> None:
    seen: list[str | None] = []
    add("one")
    worker = Worker("test", max_loops=1, callback=lambda job, queue: seen.append(worker.status))

    run(worker)

    assert seen == ["running"]


def test_w22_a_second_run_is_refused() -> None:
    Queue.get_queue("test")
    worker = Worker("test", max_loops=0)
    worker.run()

    with pytest.raises(LimpydJobsException, match="already terminated"):
        worker.run()

    assert worker.status == "aborted"


def test_w24_num_loops_counts_jobs_that_succeed_fail_or_are_skipped() -> None:
    add("good", "bad")
    (canceled,) = add("canceled")
    canceled.status.hset(STATUSES.CANCELED)
    worker = Worker("test", max_loops=3)
    assert worker.num_loops == 0

    run(worker)

    assert worker.num_loops == 3
    assert Queue.count_waiting_jobs("test") == 0


def test_w25_end_forced_stops_after_the_current_job() -> None:
    first, second = add("one", "two")
    worker = Worker("test", callback=lambda job, queue: setattr(worker, "end_forced", True))
    assert worker.end_forced is False

    run(worker)

    assert worker.end_forced is True
    assert (first.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.WAITING)


def test_w25_end_forced_before_the_run_ends_it_before_the_first_job() -> None:
    (job,) = add("one")
    worker = Worker("test")
    worker.end_forced = True

    run(worker)

    assert (worker.status, worker.num_loops) == ("terminated", 0)
    assert job.status.hget() == STATUSES.WAITING


def test_w26_w40_a_signal_sets_end_signal_caught_and_end_forced() -> None:
    worker = Worker("test")
    assert worker.end_signal_caught is False

    worker.catch_end_signal(signal.SIGTERM, None)

    assert worker.end_signal_caught is True
    assert worker.end_forced is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_w26_a_signal_during_a_job_lets_it_finish_and_takes_no_other(number: signal.Signals, log: Log) -> None:
    first, second = add("one", "two")
    worker = Worker("test", callback=lambda job, queue: os.kill(os.getpid(), number))

    run(worker)

    assert worker.end_signal_caught is True
    assert (first.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.WAITING)
    assert any(f"Caught {number.name}" in line for line in log.lines)


def test_w27_w28_the_dates_of_a_run() -> None:
    Queue.get_queue("test")
    worker = Worker("test", max_loops=0)
    assert (worker.start_date, worker.end_date) == (None, None)
    before = utcnow()

    run(worker)

    assert worker.start_date is not None
    assert worker.end_date is not None
    assert before <= worker.start_date <= worker.end_date <= utcnow()


def test_w29_wanted_end_date_is_the_start_plus_max_duration() -> None:
    Queue.get_queue("test")
    worker = Worker("test", max_loops=0, max_duration=5)

    run(worker)

    assert worker.start_date is not None
    assert worker.wanted_end_date == worker.start_date + timedelta(seconds=5)


def test_w29_there_is_no_wanted_end_date_without_max_duration() -> None:
    Queue.get_queue("test")
    worker = Worker("test", max_loops=0)

    run(worker)

    assert worker.wanted_end_date is None


def test_w30_connection_is_the_connection_to_redis(database: Any) -> None:
    database.connection.set("here", "1")

    assert Worker("test").connection.get("here") == "1"


def test_w55_the_id_names_the_worker_in_the_log(log: Log) -> None:
    worker = Worker("test")

    worker.log("hello")

    assert isinstance(worker.id, str)
    assert log.messages == [f"[{worker.id}] hello"]


def test_w55_what_another_thread_logs_for_a_worker_has_the_same_id(log: Log) -> None:
    add("one")
    worker = Worker("test", max_loops=1, callback=lambda job, queue: talk())

    def talk() -> None:
        worker.log("from the job")
        thread = threading.Thread(target=lambda: worker.log("from elsewhere"))
        thread.start()
        thread.join()

    run(worker)

    told = [message for message in log.messages if "from " in message]
    assert told == [f"[{worker.id}] from the job", f"[{worker.id}] from elsewhere"]


def test_w56_elapsed_grows_during_the_run_and_is_frozen_after_it() -> None:
    add("one")
    during: list[Any] = []
    worker = Worker("test", max_loops=1, callback=lambda job, queue: during.append(worker.elapsed))
    assert worker.elapsed is None

    run(worker)

    assert worker.start_date is not None
    assert worker.end_date is not None
    assert worker.elapsed == worker.end_date - worker.start_date
    assert timedelta() < during[0] < worker.elapsed


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_w57_log_takes_a_level(level: str, log: Log) -> None:
    worker = Worker("test", logger_level=1)

    worker.log("hello", level=level)

    assert log.level_of("hello") == level.upper()


def test_w57_log_is_info_by_default(log: Log) -> None:
    Worker("test").log("hello")

    assert log.level_of("hello") == "INFO"


def test_w58_set_status_changes_the_status() -> None:
    worker = Worker("test")

    worker.set_status("thinking")

    assert worker.status == "thinking"


def test_w59_w60_the_jobs_of_the_queues_of_the_worker_are_counted() -> None:
    RunJob.add_job("one", "alpha", 1)
    RunJob.add_job("two", "alpha", 2)
    RunJob.add_job("three", "beta")
    RunJob.add_job("other", "other")
    RunJob.add_job("later", "beta", delayed_for=60)
    RunJob.add_job("other later", "other", delayed_for=60)
    worker = Worker("alpha,beta,missing")

    assert worker.count_waiting_jobs() == 3
    assert worker.count_delayed_jobs() == 1


# --- The end of a run


def test_w8_the_worker_ends_after_max_loops() -> None:
    add("one", "two", "three")

    worker = work(2)

    assert worker.status == "terminated"
    assert Queue.count_waiting_jobs("test") == 1


def test_w9_the_worker_ends_after_max_duration_although_it_waits() -> None:
    Queue.get_queue("test")
    worker = Worker("test", max_duration=0.2, timeout=30)

    run(worker)

    assert worker.elapsed is not None
    assert timedelta(seconds=0.2) <= worker.elapsed < timedelta(seconds=20)


def test_w9_a_job_that_outlasts_max_duration_is_the_last() -> None:
    first, second = add("one", "two")
    worker = Worker("test", max_duration=60, callback=lambda job, queue: let_it_pass())

    def let_it_pass() -> None:
        worker.wanted_end_date = utcnow() - timedelta(seconds=1)

    run(worker)

    assert (first.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.WAITING)


def test_w13_wait_for_job_gives_none_after_the_timeout() -> None:
    Queue.get_queue("test")

    assert Worker("test", timeout=0.1).wait_for_job() is None


def test_w13_a_timeout_is_no_loop() -> None:
    Queue.get_queue("test")
    waits: list[Any] = []

    class PatientWorker(Worker):
        def wait_for_job(self) -> Any:
            found = super().wait_for_job()
            waits.append(found)
            self.end_forced = len(waits) == 3
            return found

    worker = PatientWorker("test", timeout=0.02)

    run(worker)

    assert waits == [None, None, None]
    assert worker.num_loops == 0


def test_w13_a_timeout_of_0_is_none_at_all() -> None:
    Queue.get_queue("test")
    returned: list[Any] = []

    class EndlessWorker(Worker):
        def wait_for_job(self) -> Any:
            found = super().wait_for_job()
            returned.append(found and found[1].identifier.hget())
            return found

    with Running(idle(EndlessWorker, timeout=0)):
        wait_until_idle()
        assert returned == []
        add("one")
        wait_until(lambda: returned)

    assert returned[0] == "one"


def test_w34_the_former_handlers_are_back_after_the_run() -> None:
    def handler(number: int, frame: Any) -> None:
        pass

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Queue.get_queue("test")
    worker = Worker("test", max_loops=0)
    assert signal.getsignal(signal.SIGINT) == worker.catch_end_signal

    run(worker)

    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_w34_the_former_handlers_are_back_when_the_run_raises() -> None:
    before = signal.getsignal(signal.SIGINT)

    class FailingWorker(Worker):
        def run_started(self) -> None:
            raise RuntimeError("boo")

    Queue.get_queue("test")
    with pytest.raises(RuntimeError):
        FailingWorker("test").run()

    assert signal.getsignal(signal.SIGINT) == before


def test_w34_stop_handling_end_signal_is_not_called_without_terminate_gracefully() -> None:
    calls: list[str] = []

    class CountingWorker(Worker):
        def stop_handling_end_signal(self) -> None:
            calls.append("stop")
            super().stop_handling_end_signal()

    Queue.get_queue("test")
    run(CountingWorker("test", max_loops=0, terminate_gracefully=False))
    assert calls == []
    run(CountingWorker("test", max_loops=0))
    assert calls == ["stop"]


def test_w34_a_worker_in_a_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    Queue.get_queue("test")
    made: list[Worker] = []

    def make_and_run() -> None:
        made.append(Worker("test", max_loops=0))
        made[0].run()

    thread = threading.Thread(target=make_and_run)
    thread.start()
    thread.join()

    assert made[0].status == "terminated"
    assert signal.getsignal(signal.SIGINT) == before


def test_w36_must_stop_is_false_at_first() -> None:
    assert Worker("test").must_stop() is False


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("end_signal_caught", True),
        ("end_forced", True),
        ("num_loops", 10),
        ("wanted_end_date", utcnow() - timedelta(seconds=1)),
    ],
)
def test_w36_must_stop_is_true_for_each_of_its_reasons(attribute: str, value: Any) -> None:
    worker = Worker("test", max_loops=10)

    setattr(worker, attribute, value)

    assert worker.must_stop() is True


def test_w36_an_override_of_must_stop_ends_the_run() -> None:
    add("one", "two", "three")

    class StoppingWorker(Worker):
        def must_stop(self) -> bool:
            return super().must_stop() or self.num_loops == 2

    worker = StoppingWorker("test")
    run(worker)

    assert worker.num_loops == 2


# --- Taking a job


def test_w37_wait_for_job_gives_the_queue_and_the_job() -> None:
    (added,) = add("one", priority=3)
    worker = Worker("test")

    queue, job = worker.wait_for_job() or (None, None)

    assert type(queue) is Queue
    assert (queue.name.hget(), queue.priority.hget()) == ("test", "3")
    assert type(job) is RunJob
    assert job.pk.get() == added.pk.get()
    assert Queue.count_waiting_jobs("test") == 0


def test_w38_get_job_gives_the_job_of_an_ident_as_its_class() -> None:
    (added,) = add("one")

    job = Worker("test").get_job(added.ident)

    assert type(job) is RunJob
    assert job.identifier.hget() == "one"


def test_w38_get_job_of_a_missing_record_raises() -> None:
    with pytest.raises(DoesNotExist):
        Worker("test").get_job(f"{RunJob.get_model_repr()}:12345")


def test_w38_get_job_can_be_overridden() -> None:
    add("one")
    got: list[str] = []

    class GettingWorker(Worker):
        def get_job(self, job_ident: str) -> Any:
            got.append(job_ident)
            return super().get_job(job_ident)

    work(1, worker_class=GettingWorker)

    assert got == [f"{RunJob.get_model_repr()}:1"]


def test_w38_a_get_job_that_raises_does_not_end_the_worker_nor_hold_the_job(log: Log) -> None:
    bad, good = add("bad to get", "good")

    class UnableWorker(Worker):
        def get_job(self, job_ident: str) -> Any:
            if job_ident == bad.ident:
                raise ValueError("unable")
            return super().get_job(job_ident)

    with Running(idle(UnableWorker, lease_seconds=0.3)) as worker:
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)
        # the worker lives and beats; but not for the job that it does not run
        wait_until(lambda: bad.ident not in leased(), message="the job is let go")
        assert worker.status != "terminated"

    assert any("Unable to get job" in line for line in log.lines)
    assert "ValueError('unable')" in log.tracebacks


def test_w39_get_queue_gives_the_queue_of_a_waiting_key() -> None:
    added = Queue.get_queue("test", 3)

    queue = Worker("test").get_queue(added.waiting.key)

    assert type(queue) is Queue
    assert queue.pk.get() == added.pk.get()


@pytest.mark.parametrize(
    "key", ["jobs:queue:12345:waiting", "jobs:queue:waiting", "elsewhere:1:waiting", "", "jobs:queue:1"]
)
def test_w39_get_queue_of_an_unknown_key_raises(key: str) -> None:
    Queue.get_queue("test")

    with pytest.raises(DoesNotExist):
        Worker("test").get_queue(key)


def test_w41_execute_calls_the_run_of_the_job() -> None:
    (job,) = add("one")
    queue = Queue.get_queue("test")

    assert Worker("test").execute(job, queue) == "result of one"


def test_w41_execute_can_be_overridden() -> None:
    add("one")
    results: list[Any] = []

    class ExecutingWorker(Worker):
        def execute(self, job: Any, queue: Any) -> str:
            return super().execute(job, queue).upper()

        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            super().job_success(job, queue, job_result)
            results.append(job_result)

    work(1, worker_class=ExecutingWorker)

    assert results == ["RESULT OF ONE"]


def test_w12_what_the_callback_raises_makes_an_error() -> None:
    (job,) = add("bad")

    work(1)

    queue = Queue.get_queue("test")
    assert (job.status.hget(), job.queued.hget()) == (STATUSES.ERROR, None)
    assert (queue.errors.lmembers(), queue.success.lmembers()) == ([job.ident], [])
    assert leased() == []


def test_w12_a_callback_that_returns_makes_a_success() -> None:
    (job,) = add("good")

    work(1)

    queue = Queue.get_queue("test")
    assert (job.status.hget(), job.queued.hget()) == (STATUSES.SUCCESS, None)
    assert (queue.success.lmembers(), queue.errors.lmembers()) == ([job.ident], [])
    assert leased() == []


def test_w42_update_keys_can_be_called_by_hand() -> None:
    worker = Worker("test")
    worker.update_keys()
    assert worker.keys == []
    queue = Queue.get_queue("test")

    worker.update_keys()

    assert worker.keys == [queue.waiting.key]


def test_w42_update_keys_is_called_at_the_start_and_at_intervals() -> None:
    Queue.get_queue("test")
    calls: list[int] = []

    class UpdatingWorker(Worker):
        def update_keys(self) -> None:
            calls.append(self.num_loops)
            super().update_keys()
            self.end_forced = len(calls) == 4

    run(UpdatingWorker("test", fetch_priorities_delay=0.02, timeout=0.02))

    assert len(calls) == 4


def test_w42_an_override_of_update_keys_decides_what_is_taken_and_in_which_order() -> None:
    low, high = add("low")[0], add("high", priority=5)[0]
    RunJob.add_job("never", "test", priority=9)
    taken: list[str] = []

    class BackwardsWorker(Worker):
        def update_keys(self) -> None:
            self.keys = [Queue.get_queue("test", priority).waiting.key for priority in (0, 5)]

    work(2, worker_class=BackwardsWorker, callback=lambda job, queue: taken.append(job.ident))

    assert taken == [low.ident, high.ident]
    assert Queue.count_waiting_jobs("test") == 1


def test_w43_run_takes_jobs_by_priority_and_then_by_age() -> None:
    for identifier, priority in (("a", 0), ("b", 10), ("c", -1), ("d", 9), ("e", 0), ("f", 10)):
        add(identifier, priority=priority)
    taken: list[str] = []

    work(6, callback=lambda job, queue: taken.append(job.identifier.hget()))

    assert taken == ["b", "f", "d", "a", "e", "c"]


def test_w43_a_job_writes_its_start_end_and_tries() -> None:
    (job,) = add("one")
    before = str(utcnow())

    work(1)

    start, end, tries = job.hmget("start", "end", "tries")
    assert before <= start <= end <= str(utcnow())
    assert tries == "1"


def test_w44_run_started_is_called_when_the_keys_are_known_and_before_the_first_job(log: Log) -> None:
    add("one")
    seen: list[Any] = []

    class StartedWorker(Worker):
        def run_started(self) -> None:
            seen.append((self.status, bool(self.keys), self.num_loops))
            super().run_started()

    work(1, worker_class=StartedWorker)

    assert seen == [("starting", True, 0)]
    assert log.lines[0] == "Run started."
    assert log.level_of("Run started.") == "INFO"


def test_w45_run_ended_is_called_at_the_end(log: Log) -> None:
    add("one")
    seen: list[Any] = []

    class EndedWorker(Worker):
        def run_ended(self) -> None:
            seen.append((self.status, self.end_date is not None))
            super().run_ended()

    worker = work(1, worker_class=EndedWorker)

    assert seen == [("terminated", True)]
    assert log.lines[-1] == f"Run terminated, with 1 loops (duration={worker.elapsed})"
    assert log.level_of("Run terminated") == "INFO"


def test_w62_a_worker_waits_for_a_queue_that_does_not_exist_yet() -> None:
    with Running(idle()) as worker:
        wait_until_idle()
        assert (worker.status, worker.is_held_up) == ("starting", True)
        (job,) = add("one")
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)


# --- Requeuing


def test_w16_a_failed_job_is_not_requeued_by_default() -> None:
    (job,) = add("bad")

    work(1)

    assert job.hmget("status", "tries", "queued") == [STATUSES.ERROR, "1", None]
    assert Queue.count_waiting_jobs("test") == Queue.count_delayed_jobs("test") == 0


def test_w16_w63_a_failing_job_is_requeued_exactly_requeue_times() -> None:
    (job,) = add("bad")

    work(3, requeue_times=2, requeue_delay_delta=0)

    assert job.hmget("status", "tries", "queued") == [STATUSES.ERROR, "3", None]
    assert Queue.count_waiting_jobs("test") == Queue.count_delayed_jobs("test") == 0
    assert leased() == []


def test_w16_each_failure_is_in_the_errors_of_the_queue_where_it_happened() -> None:
    (job,) = add("bad")

    work(3, requeue_times=2, requeue_delay_delta=0)

    assert [Queue.get_queue("test", priority).errors.lmembers() for priority in (0, -1, -2)] == [[job.ident]] * 3


def test_w16_a_job_that_succeeds_at_last_is_a_success() -> None:
    (job,) = add("one")
    runs: list[str] = []

    def fail_at_first(job: Any, queue: Any) -> None:
        runs.append(job.tries.hget())
        if len(runs) < 3:
            raise ValueError("not yet")

    work(3, requeue_times=5, requeue_delay_delta=0, callback=fail_at_first)

    assert runs == ["1", "2", "3"]
    assert job.hmget("status", "queued") == [STATUSES.SUCCESS, None]


@pytest.mark.parametrize(("delta", "priority"), [(-1, "4"), (-5, "0"), (2, "7"), (0, "5")])
def test_w17_the_priority_changes_with_each_requeue(delta: int, priority: str) -> None:
    (job,) = add("bad", priority=5)

    work(1, requeue_times=1, requeue_delay_delta=0, requeue_priority_delta=delta)

    assert job.priority.hget() == priority
    assert Queue.get_queue("test", int(priority)).waiting.lmembers() == [job.ident]


def test_w17_the_priority_changes_by_one_less_by_default() -> None:
    (job,) = add("bad")

    work(1, requeue_times=1)

    assert job.priority.hget() == "-1"


def test_w18_a_requeued_job_is_delayed_30_seconds_by_default() -> None:
    (job,) = add("bad")

    work(1, requeue_times=1)

    ident, score = Queue.get_queue("test", -1).first_delayed
    assert ident == job.ident
    assert job.status.hget() == STATUSES.DELAYED
    assert job.queued.hget() == "1"
    seconds, micros = Worker("test").connection.time()
    assert 25 < score - seconds - micros / 1_000_000 <= 30


def test_w18_the_delay_can_be_a_timedelta() -> None:
    (job,) = add("bad")

    work(1, requeue_times=1, requeue_delay_delta=timedelta(hours=1))

    assert job.status.hget() == STATUSES.DELAYED


def test_w18_without_a_delay_the_job_waits_at_once() -> None:
    (job,) = add("bad")

    work(1, requeue_times=1, requeue_delay_delta=0)

    assert job.hmget("status", "delayed_until") == [STATUSES.WAITING, None]


def test_w18_a_requeued_job_runs_again_when_it_is_due() -> None:
    (job,) = add("bad")
    work(1, requeue_times=1)
    make_due(job)

    work(1, requeue_times=1)

    assert job.hmget("status", "tries") == [STATUSES.ERROR, "2"]


@pytest.mark.parametrize("value", ["1", "0", "False"])
def test_w63_a_job_with_cancel_on_error_is_not_requeued(value: str) -> None:
    (job,) = add("bad", cancel_on_error=value)

    work(1, requeue_times=5)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]


def test_w63_a_job_that_sets_cancel_on_error_while_it_runs_is_not_requeued() -> None:
    (job,) = add("bad")

    def give_up(job: Any, queue: Any) -> None:
        job.cancel_on_error.hset(1)
        raise ValueError("boo")

    work(1, requeue_times=5, callback=give_up)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]


class NeverAgainJob(RunJob):
    always_cancel_on_error = True


class OnMondaysJob(RunJob):
    @property
    def must_be_cancelled_on_error(self) -> bool:
        return self.identifier.hget() == "bad monday"


def test_w63_a_job_of_a_class_with_always_cancel_on_error_is_not_requeued() -> None:
    job = NeverAgainJob.add_job("bad")

    work(1, requeue_times=5)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]


def test_w63_an_override_of_must_be_cancelled_on_error_decides() -> None:
    monday, tuesday = OnMondaysJob.add_job("bad monday"), OnMondaysJob.add_job("bad tuesday")

    work(2, requeue_times=5)

    assert (monday.status.hget(), tuesday.status.hget()) == (STATUSES.ERROR, STATUSES.DELAYED)


# --- What a run changes in its process


@pytest.fixture
def threshold() -> Iterator[tuple[int, int, int]]:
    former = gc.get_threshold()
    yield former
    gc.set_threshold(*former)


@pytest.mark.parametrize(("chosen", "inside"), [(700, 10_000), (2000, 10_000), (500, 500), (0, 0), (50_000, 50_000)])
def test_cycles_are_looked_for_rarely_while_a_worker_runs_unless_the_program_says_how_often(
    threshold: Any, chosen: int, inside: int
) -> None:
    gc.set_threshold(chosen, 9, 8)
    seen: list[Any] = []
    RunJob.add_job("one")

    work(1, callback=lambda job, queue: seen.append(gc.get_threshold()))

    assert seen == [(inside, 9, 8)]
    assert gc.get_threshold() == (chosen, 9, 8)


def test_what_a_job_says_of_looking_for_cycles_holds_after_the_run(threshold: Any) -> None:
    RunJob.add_job("one")

    work(1, callback=lambda job, queue: gc.set_threshold(123, 4, 5))

    assert gc.get_threshold() == (123, 4, 5)


@pytest.mark.parametrize("options", [{}, {"prefetch": 3}, {"threads": 2}])
def test_a_job_that_has_run_leaves_no_cycle_behind(threshold: Any, options: dict[str, Any]) -> None:
    seen: list[Any] = []

    def look(job: Any, queue: Any) -> None:
        assert (job.identifier.hget(), job.status.hget(), job.pk.get()) != ("", "", "")
        assert job.get_field("priority").hget() == "0"
        seen.append(weakref.ref(job))

    add("one", "two", "three", "four")
    gc.collect()
    gc.disable()
    try:
        work(4, callback=look, **options)
        left = [ref() for ref in seen if ref() is not None]
    finally:
        gc.enable()

    assert len(seen) == 4
    assert left == []


@pytest.mark.parametrize("get", [lambda pk: RunJob(pk), lambda pk: RunJob.get(pk=pk), RunJob.from_pk])
def test_an_instance_gives_its_own_fields_and_its_class_those_of_the_class(get: Any) -> None:
    (job,) = add("one")

    found = get(job.pk.get())

    assert found.get_field("identifier").hget() == "one"
    assert {field.name for field in found.get_fields()} == {field.name for field in RunJob.get_fields()}
    assert all(field._instance is found for field in found.fields)
    assert RunJob.get_field("identifier") is RunJob.get_class_field("identifier")


@pytest.mark.parametrize("options", [{}, {"prefetch": 3}, {"threads": 2}])
def test_a_job_that_has_failed_leaves_no_cycle_behind(threshold: Any, options: dict[str, Any]) -> None:
    seen: list[Any] = []

    def fail(job: Any, queue: Any) -> None:
        seen.append(weakref.ref(job))
        raise ValueError(job.identifier.hget())

    add("one", "two", "three", "four")
    gc.collect()
    gc.disable()
    try:
        work(4, callback=fail, **options)
        left = [ref() for ref in seen if ref() is not None]
    finally:
        gc.enable()

    assert len(seen) == 4
    assert left == []


class AliasJob(RunJob):
    """One that knows its fields by other names, too; as in limpyd, for the class alone."""

    @classmethod
    def get_field(cls, name: str) -> Any:
        return super().get_field({"rank": "priority"}.get(name, name))

    @classmethod
    def get_class_field(cls, name: str) -> Any:
        return cls.get_field(name)


def test_a_class_may_have_methods_of_its_own_for_its_fields() -> None:
    job = AliasJob.add_job("one")

    assert AliasJob.get_field("rank").name == "priority"
    assert job.get_field("priority").hget() == "0"
    job.set_fields(priority=3)
    assert [field.hget() for field in job.get_fields() if field.name == "priority"] == ["3"]


@pytest.mark.parametrize("options", [{}, {"prefetch": 3}])
def test_a_job_may_be_copied_while_it_runs_and_after(options: dict[str, Any]) -> None:
    copies: list[Any] = []
    add("one", "two", "three")

    worker = work(3, callback=lambda job, queue: copies.extend([copy.deepcopy(job), job]), **options)

    copies += [copy.deepcopy(job) for job in copies]
    assert {job.identifier.hget() for job in copies} == {"one", "two", "three"}
    assert worker.num_errors == 0


def test_what_a_job_has_under_the_name_of_a_field_stays() -> None:
    kept: list[Any] = []
    add("one")

    def replace(job: Any, queue: Any) -> None:
        job.priority = 7
        kept.append((job, job.identifier))

    work(1, callback=replace)

    ((job, field),) = kept
    assert job.priority == 7
    assert field.hget() == job.identifier.hget() == "one"
