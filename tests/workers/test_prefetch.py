"""A worker that claims several jobs at once: the story of each is the same as without."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from limpyd import fields
from limpyd.contrib.indexes import DateTimeIndex
from limpyd.indexes import EqualIndex
from redis.exceptions import ConnectionError, TimeoutError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, recipes, transitions, wire
from limpyd_jobs.exceptions import ConfigurationException
from limpyd_jobs.utils import parse_datetime, pauses, utcnow
from limpyd_jobs.workers import ahead, outage

from ..base import RedisServer, wait_until
from ..proxy import Proxy
from .base import Log, Running, client, idle, leased, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database")


class PrefetchJob(Job):
    queue_name = "test"
    lost: ClassVar[list[str]] = []

    def on_lease_lost(self, queue: Any) -> None:
        self.lost.append(self.identifier.hget())


class StartedJob(Job):
    """One that looks at itself when it begins."""

    queue_name = "test"
    seen: ClassVar[list[Any]] = []

    def on_started(self, queue: Any) -> None:
        self.seen.append([self.identifier.hget(), *self.hmget("status", "tries"), bool(self.start.hget())])


class SuccessJob(Job):
    """One that looks at itself when it has ended."""

    queue_name = "test"
    seen: ClassVar[list[Any]] = []

    def on_success(self, queue: Any, result: Any) -> None:
        self.seen.append([self.identifier.hget(), *self.hmget("status", "tries", "queued"), bool(self.end.hget())])


class ForeignJob(Job):
    """One with indexes that no script knows."""

    queue_name = "test"
    status = fields.InstanceHashField(
        indexable=True, indexes=[EqualIndex.configure(transform=lambda value: value.upper())]
    )
    end = fields.InstanceHashField(indexable=True, indexes=[DateTimeIndex])


class BriefLeaseJob(Job):
    queue_name = "test"
    lease_seconds = 1.2


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries."""
    monkeypatch.setattr(outage, "pauses", lambda: pauses(0.01, 0.05))


@pytest.fixture(autouse=True)
def clean_lists() -> None:
    for noted in (PrefetchJob.lost, StartedJob.seen, SuccessJob.seen):
        noted.clear()


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


def send(call: transitions.Call[Any]) -> Any:
    return transitions.send(client(), call)


def recover(max_recoveries: int = 3) -> Any:
    return send(transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, max_recoveries))


def lapse(*jobs: Any) -> None:
    """Let the leases of some jobs lapse, and give them back."""
    client().zadd("jobs:leases", {job.ident: 1 for job in jobs})
    assert set(recover().idents) == {job.ident for job in jobs}


def write_elsewhere(job: Any, status: str) -> None:
    """Write a status as another process does: this one does not know of it."""
    pk, recipe = job.pk.get(), recipes.recipe(type(job))
    send(transitions.write(f"{job._name}:{pk}:hash", recipe, pk, True, "hset", ["status", status]))


def add(count: int, model: Any = PrefetchJob, first: int = 0, **more: Any) -> list[Any]:
    return [model.add_job(str(number), **more) for number in range(first, first + count)]


def waiting(priority: int = 0) -> list[str]:
    found: list[str] = Queue.get_queue("test", priority).waiting.lmembers()
    return found


def idents(jobs: Any) -> list[str]:
    return [job.ident for job in jobs]


class Runs(list[str]):
    """A callback that notes what is run, and does what is given for some identifiers."""

    def __init__(self, **deeds: Any) -> None:
        super().__init__()
        self.deeds = {name.lstrip("_"): deed for name, deed in deeds.items()}

    def __call__(self, job: Any, queue: Any) -> Any:
        name = job._claim.identifier
        self.append(name)
        return self.deeds[name](job, queue) if name in self.deeds else None


def names(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def statuses(jobs: Any) -> list[str]:
    return [job.status.hget() for job in jobs]


def all_succeeded(jobs: Any) -> bool:
    return set(statuses(jobs)) == {STATUSES.SUCCESS}


# --- In their order


@pytest.mark.parametrize("prefetch", [2, 3, 7, 50, 1000])
def test_all_jobs_run_once_and_in_their_order(prefetch: int) -> None:
    jobs, runs = add(120), Runs()

    work(120, prefetch=prefetch, callback=runs)

    assert runs == names(120)
    assert all_succeeded(jobs)
    assert Queue.get_queue("test").success.lmembers() == idents(jobs)
    assert {tuple(job.hmget("tries", "queued", "recoveries")) for job in jobs} == {("1", None, None)}
    assert all(job.start.hget() <= job.end.hget() for job in jobs)
    assert leased() == []


def test_priorities_hold_within_a_batch() -> None:
    low, high = add(5, priority=1), add(5, first=5, priority=9)
    runs = Runs()

    work(10, prefetch=10, callback=runs)

    assert runs == [*names(5, 5), *names(5)]
    assert all_succeeded(low + high)


def test_jobs_of_several_classes_alternate_in_one_batch() -> None:
    models = [PrefetchJob, StartedJob, SuccessJob, ForeignJob, BriefLeaseJob]
    jobs = [models[number % 5].add_job(str(number)) for number in range(50)]
    runs = Runs()

    work(50, prefetch=10, callback=runs)

    assert runs == names(50)
    assert all_succeeded(jobs)
    assert {job.tries.hget() for job in jobs} == {"1"}


@pytest.mark.parametrize("prefetch", [2, 5, 50])
@pytest.mark.parametrize("loops", [1, 4, 5, 6, 13])
def test_max_loops_is_exact_and_what_is_left_waits_in_its_order(loops: int, prefetch: int) -> None:
    jobs, runs = add(20), Runs()

    work(loops, prefetch=prefetch, callback=runs)

    assert runs == names(loops)
    assert waiting() == idents(jobs[loops:])
    assert {tuple(job.hmget("status", "tries", "start")) for job in jobs[loops:]} == {("w", None, None)}
    assert leased() == []


def test_what_has_not_begun_when_the_worker_is_told_to_end_is_back_at_the_head_in_its_order() -> None:
    jobs, runs, worker = add(20), Runs(), idle(prefetch=10)
    worker.callback = runs
    runs.deeds["3"] = lambda job, queue: setattr(worker, "end_forced", True)

    worker.run()

    assert runs == names(4)
    assert all_succeeded(jobs[:4])
    assert waiting() == idents(jobs[4:])
    assert {tuple(job.hmget("status", "tries", "start", "queued")) for job in jobs[4:]} == {("w", None, None, "1")}
    assert leased() == []


def test_what_has_not_begun_goes_back_to_the_queue_of_its_priority() -> None:
    high, low, worker = add(3, priority=5), add(3, first=3, priority=1), idle(prefetch=10)
    worker.callback = Runs(_1=lambda job, queue: setattr(worker, "end_forced", True))

    worker.run()

    assert (waiting(5), waiting(1)) == (idents(high[2:]), idents(low))


def test_a_canceled_job_of_a_batch_that_is_given_back_is_let_go() -> None:
    jobs, worker = add(4), idle(prefetch=10)

    def end(job: Any, queue: Any) -> None:
        write_elsewhere(jobs[2], STATUSES.CANCELED)
        worker.end_forced = True

    worker.callback = Runs(_0=end)
    worker.run()

    assert waiting() == idents([jobs[1], jobs[3]])
    assert jobs[2].hmget("status", "queued") == [STATUSES.CANCELED, None]


# --- What changes while a batch is under way


def places(job: Any) -> int:
    return waiting().count(job.ident) + (job.ident in leased())


def test_a_job_that_is_canceled_by_an_earlier_one_does_not_begin(log: Log) -> None:
    jobs = add(3)
    runs = Runs(_0=lambda job, queue: jobs[1].status.hset(STATUSES.CANCELED))

    work(3, prefetch=10, callback=runs)

    assert runs == ["0", "2"]
    assert jobs[1].hmget("status", "queued", "tries", "start") == [STATUSES.CANCELED, None, None, None]
    assert places(jobs[1]) == 0
    assert sum("job skipped (current status: CANCELED)" in line for line in log.lines) == 1


def test_a_job_that_is_canceled_elsewhere_while_an_earlier_one_runs_does_not_begin() -> None:
    jobs = add(3)

    def take_long(job: Any, queue: Any) -> None:
        wait_until(lambda: job.status.hget() == STATUSES.RUNNING)
        write_elsewhere(jobs[1], STATUSES.CANCELED)
        time.sleep(2 * ahead.LOOK_SECONDS)  # less is within what it is documented not to see

    runs = Runs(_0=take_long)
    work(3, prefetch=10, callback=runs)

    assert runs == ["0", "2"]
    assert jobs[1].hmget("status", "queued", "tries") == [STATUSES.CANCELED, None, None]
    assert places(jobs[1]) == 0


def test_a_job_that_is_deleted_by_an_earlier_one_does_not_begin() -> None:
    jobs = add(3)
    runs = Runs(_0=lambda job, queue: jobs[1].delete())

    work(3, prefetch=10, callback=runs)

    assert runs == ["0", "2"]
    assert leased() == []


def test_a_job_that_is_delayed_by_an_earlier_one_does_not_begin() -> None:
    jobs = add(3)
    runs = Runs(_0=lambda job, queue: jobs[1].status.hset(STATUSES.DELAYED))

    work(3, prefetch=10, callback=runs)

    assert runs == ["0", "2"]
    assert jobs[1].hmget("status", "tries", "start") == [STATUSES.DELAYED, None, None]
    assert Queue.get_queue("test").delayed.zscore(jobs[1].ident) is not None


def test_a_job_that_is_added_in_the_middle_with_a_higher_priority_runs_a_batch_later_at_most() -> None:
    add(40)
    runs = Runs(_2=lambda job, queue: PrefetchJob.add_job("urgent", priority=9))

    work(41, prefetch=10, callback=runs)

    assert runs.index("urgent") <= 3 + 2 * 10
    assert sorted(runs) == sorted([*names(40), "urgent"])


def test_a_delayed_job_that_becomes_due_in_the_middle_runs() -> None:
    add(3)
    late = PrefetchJob.add_job("late", delayed_for=0.2)

    with Running(idle(prefetch=10)) as worker:
        worker.callback = Runs()
        wait_until(lambda: late.status.hget() == STATUSES.SUCCESS)


def test_a_job_that_an_earlier_one_adds_again_after_its_end_is_not_forgotten() -> None:
    add(3)
    added: list[str] = []

    def add_again(job: Any, queue: Any) -> None:
        if not added:
            added.append(PrefetchJob.add_job("0").pk.get())

    runs = Runs(_1=add_again)
    with Running(idle(prefetch=10, callback=runs)):
        wait_until(lambda: len(runs) >= 3)
        wait_until_idle()

    assert runs.count("0") == 2


GONE_MODULE = "a_module_that_is_not_here"


def test_a_class_that_cannot_be_had_does_not_stop_the_batch(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = add(1)
    ident = f"{GONE_MODULE}.PrefetchJob:{PrefetchJob.add_job('1').pk.get()}"
    recipe = client().hget("jobs:models", PrefetchJob.get_model_repr())
    client().hset("jobs:models", f"{GONE_MODULE}.PrefetchJob", recipe.replace(__name__, GONE_MODULE))
    queue = Queue.get_queue("test")
    queue.waiting.rpop()
    queue.waiting.rpush(ident)
    jobs += add(2, first=2)
    runs = Runs(_0=lambda job, queue: time.sleep(2 * ahead.LOOK_SECONDS))

    with Running(idle(prefetch=10, callback=runs)):
        wait_until(lambda: all_succeeded(jobs))

    assert runs == ["0", "2", "3"]
    assert queue.errors.lmembers() == [ident]
    client().hdel("jobs:models", f"{GONE_MODULE}.PrefetchJob")


# --- Errors and hooks


def boom(job: Any, queue: Any) -> None:
    raise ValueError("boom")


def test_an_error_in_the_middle_is_recorded_with_its_error_and_tries() -> None:
    jobs = add(5)

    work(5, prefetch=10, callback=Runs(_2=boom))

    assert statuses(jobs) == ["s", "s", "e", "s", "s"]
    assert jobs[2].hmget("tries", "queued") == ["1", None]
    assert jobs[2].start.hget() <= jobs[2].end.hget()
    assert [error.message.hget() for error in Error.collection_for_job(jobs[2]).instances()] == ["boom"]
    assert {job.tries.hget() for job in jobs} == {"1"}


def test_a_job_that_fails_in_the_middle_is_requeued_and_tried_again() -> None:
    jobs = add(5)
    runs = Runs(_2=boom)

    work(6, prefetch=10, callback=runs, requeue_times=1, requeue_delay_delta=0)

    assert runs == [*names(5), "2"]
    assert jobs[2].hmget("status", "tries", "queued") == [STATUSES.ERROR, "2", None]
    assert len(Error.collection_for_job(jobs[2])) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_a_job_raises_is_its_own_error(error: type[BaseException]) -> None:
    jobs = add(4)

    def raise_it(job: Any, queue: Any) -> None:
        raise error("mine")

    work(4, prefetch=10, callback=Runs(_1=raise_it))

    assert statuses(jobs) == ["s", "e", "s", "s"]
    assert jobs[1].tries.hget() == "1"


def test_on_started_sees_its_job_running() -> None:
    add(5, StartedJob)

    work(5, prefetch=10, callback=Runs())

    assert StartedJob.seen == [[name, STATUSES.RUNNING, "1", True] for name in names(5)]


def test_on_success_sees_its_job_in_success() -> None:
    add(5, SuccessJob)

    work(5, prefetch=10, callback=Runs())

    assert SuccessJob.seen == [[name, STATUSES.SUCCESS, "1", None, True] for name in names(5)]


def test_hooks_of_the_worker_see_what_is_in_redis() -> None:
    seen: list[Any] = []

    class LookingWorker(Worker):
        def job_started(self, job: Any, queue: Any) -> None:
            seen.append(("started", *job.hmget("identifier", "status", "tries")))
            super().job_started(job, queue)

        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            seen.append(("before", *job.hmget("identifier", "status", "tries")))
            super().job_success(job, queue, job_result)
            seen.append(("after", *job.hmget("identifier", "status", "tries")))

    add(3)
    work(3, worker_class=LookingWorker, prefetch=10, callback=Runs())

    expected = []
    for name in names(3):
        expected += [("started", name, "r", "1"), ("before", name, "r", "1"), ("after", name, "s", "1")]
    assert seen == expected


def test_a_callback_may_put_its_own_job_in_the_queue_again() -> None:
    jobs = add(3)
    times: list[str] = []

    def once_more(job: Any, queue: Any) -> None:
        times.append("again")
        if len(times) == 1:
            job.enqueue_or_delay()

    runs = Runs(_1=once_more)
    work(4, prefetch=10, callback=runs)

    assert runs == ["0", "1", "2", "1"]
    assert all_succeeded(jobs)


def test_a_callback_may_delay_its_own_job() -> None:
    jobs = add(3)

    work(
        3,
        prefetch=10,
        callback=Runs(_1=lambda job, queue: job.enqueue_or_delay(delayed_until=utcnow() + timedelta(hours=1))),
    )

    assert statuses(jobs) == ["s", "d", "s"]
    assert leased() == []


@pytest.mark.parametrize("how", ["status", "move"])
def test_a_job_that_its_own_run_delays_has_had_a_try(how: str) -> None:
    jobs = add(2)

    def delay(job: Any, queue: Any) -> None:
        if how == "status":
            job.status.hset(STATUSES.DELAYED)
        else:
            job.enqueue_or_delay(delayed_until=utcnow() + timedelta(hours=1))

    work(2, prefetch=10, callback=Runs(_1=delay))

    assert jobs[1].hmget("status", "tries") == [STATUSES.DELAYED, "1"]


def test_each_job_is_logged_once_as_starting_and_once_as_success_in_this_order(log: Log) -> None:
    add(30)

    work(30, prefetch=10, callback=Runs())

    for number in names(30):
        lines = [line for line in log.lines if f"|{number}] " in line]
        assert [line.partition("] ")[2].partition(",")[0] for line in lines] == ["starting", "success"]


def test_the_duration_is_that_of_the_job_alone(log: Log) -> None:
    first, second, third = add(3)
    slept: list[datetime] = []

    def sleep(job: Any, queue: Any) -> None:
        slept.append(utcnow())
        time.sleep(0.1)
        slept.append(utcnow())

    work(3, prefetch=10, callback=Runs(_1=sleep))

    assert parse_datetime(first.end.hget()) <= slept[0] < slept[1] <= parse_datetime(third.start.hget())
    assert second.duration >= slept[1] - slept[0]
    (line,) = [line for line in log.lines if "|1] success" in line]
    assert float(line.partition("in 0:00:")[2]) >= (slept[1] - slept[0]).total_seconds()


def test_a_job_is_noted_as_running_and_the_ends_before_it_are_recorded_within_a_moment() -> None:
    jobs, go = add(8), threading.Event()

    with Running(idle(prefetch=10, callback=Runs(_4=lambda job, queue: go.wait(60)))):
        wait_until(lambda: statuses(jobs) == list("ssssrwww"))
        assert jobs[4].hmget("tries", "queued") == ["1", "1"]
        assert jobs[4].start.hget()
        assert Queue.get_queue("test").success.lmembers() == idents(jobs[:4])
        go.set()
        wait_until(lambda: all_succeeded(jobs))

    assert {job.tries.hget() for job in jobs} == {"1"}


def test_histories_are_kept_as_short_as_with_one_job_at_a_time() -> None:
    jobs = add(40)

    work(40, prefetch=10, callback=Runs(), keep_success=5)

    left = Queue.get_queue("test").success.lmembers()
    assert left == [f"{PrefetchJob.get_model_repr()}:{number}" for number in range(41 - len(left), 41)]
    assert 5 <= len(left) <= 15
    assert len(PrefetchJob.collection()) == len(left)
    assert len(jobs) == 40


# --- Leases


@pytest.mark.parametrize("model", [PrefetchJob, BriefLeaseJob])
def test_the_leases_of_what_has_not_begun_are_kept(model: Any) -> None:
    jobs = add(6, model)
    lease_seconds = BriefLeaseJob.lease_seconds

    def take_longer_than_a_lease(job: Any, queue: Any) -> None:
        first = client().zscore("jobs:leases", jobs[-1].ident)
        wait_until(lambda: client().zscore("jobs:leases", jobs[-1].ident) > first + 1.2 * lease_seconds)

    ran, other = Runs(_0=take_longer_than_a_lease), Runs()

    with Running(idle(prefetch=10, lease_seconds=lease_seconds, callback=ran)):
        wait_until(lambda: ran)
        with Running(idle(prefetch=10, lease_seconds=lease_seconds, callback=other)):
            wait_until(lambda: all_succeeded(jobs))

    assert (ran, other) == (names(6), [])


def test_a_job_whose_lease_was_lost_is_dropped_when_the_heart_has_noticed() -> None:
    jobs = add(3)
    worker = idle(prefetch=10, lease_seconds=1)

    def lose(job: Any, queue: Any) -> None:
        if job._claim.tries == 1 and job._claim.identifier == "0":
            lapse(jobs[1])
            taken = send(transitions.claim("jobs", "jobs:queue", "other-1", "other", 30, "now", ["test"]))
            assert taken.ident == jobs[1].ident
            wait_until(lambda: jobs[1].ident not in worker._held_claims)

    runs = Runs(_0=lose)
    worker.callback = runs
    with Running(worker):
        wait_until(lambda: jobs[2].status.hget() == STATUSES.SUCCESS)

    assert runs == ["0", "2"]
    assert jobs[1].hmget("status", "tries") == [STATUSES.RUNNING, "1"]
    send(transitions.release("jobs", "jobs:queue", ["other-1"]))


def test_a_job_whose_lease_is_lost_while_it_runs_is_told(log: Log) -> None:
    jobs = add(3)

    def lose(job: Any, queue: Any) -> None:
        lapse(jobs[1])
        send(transitions.claim("jobs", "jobs:queue", "other-1", "other", 30, "now", ["test"]))

    work(3, prefetch=10, callback=Runs(_1=lose))

    assert PrefetchJob.lost == ["1"]
    assert statuses(jobs) == ["s", "r", "s"]
    assert sum(f"The lease of {jobs[1].ident} is lost" in line for line in log.lines) == 1
    send(transitions.release("jobs", "jobs:queue", ["other-1"]))


def test_two_workers_run_each_job_of_a_queue_once() -> None:
    jobs, first, second = add(300), Runs(), Runs()

    with Running(idle(prefetch=10, callback=first)), Running(idle(prefetch=10, callback=second)):
        wait_until(lambda: all_succeeded(jobs), 20)

    assert sorted(first + second, key=int) == names(300)


def test_foreign_indexes_follow() -> None:
    jobs = add(12, ForeignJob)

    work(12, prefetch=5, callback=Runs(_3=boom))

    assert len(ForeignJob.collection(status="S")) == 11
    assert list(ForeignJob.collection(status="E")) == [jobs[3].pk.get()]
    assert len(ForeignJob.collection(end__gt="2001-01-01 00:00:00")) == 12


def test_stop_now_records_the_ends_and_gives_the_rest_back(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, codes = add(6), []
    monkeypatch.setattr("limpyd_jobs.workers.base.end_process", codes.append)
    worker = idle(prefetch=10)

    def stop(job: Any, queue: Any) -> None:
        worker.end_forced = True
        worker.stop_now()
        raise_in_thread.set()
        release.wait(10)

    raise_in_thread, release = threading.Event(), threading.Event()
    worker.callback = Runs(_2=stop)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert raise_in_thread.wait(10)

    assert codes == [3]
    assert statuses(jobs) == list("sswwww")
    assert waiting() == idents(jobs[2:])
    assert {tuple(job.hmget("tries", "start")) for job in jobs[2:]} == {(None, None)}
    assert leased() == []
    if worker._ahead.is_sending:  # the process would be at its end
        worker._ahead.lock.release()
    release.set()
    thread.join(10)
    if worker._heartbeat is not None:  # it would go on to tell that this worker lives
        worker._heartbeat.stop()


@pytest.mark.parametrize("prefetch", [-1, 1001, "x", True, 1.5])
def test_a_prefetch_that_means_nothing_is_refused(prefetch: Any) -> None:
    with pytest.raises(ConfigurationException, match="prefetch"):
        Worker("test", prefetch=prefetch, terminate_gracefully=False)


# --- Outages


def has_one_end_each(jobs: list[Any]) -> None:
    assert all_succeeded(jobs)
    assert sorted(Queue.get_queue("test").success.lmembers()) == sorted(idents(jobs))
    assert {job.queued.hget() for job in jobs} == {None}
    assert leased() == []


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("script", ["exchange", "begin", "release", "renew"])
def test_calls_that_fail_and_lost_replies_change_nothing(
    script: str, when: str, error: Any, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    jobs, real, rng = add(60) + add(10, StartedJob, 60), transitions.send, random.Random(7)

    def fail_often(connection: Any, call: transitions.Call[Any]) -> Any:
        fails = call.script == script and rng.random() < 0.4
        if fails and when == "before":
            raise error("broken")
        found = real(connection, call)
        if fails:
            raise error("no reply")
        return found

    monkeypatch.setattr(transitions, "send", fail_often)
    runs = Runs(_7=lambda job, queue: time.sleep(0.05), _30=lambda job, queue: time.sleep(0.05))
    with Running(idle(prefetch=8, callback=runs)):
        wait_until(lambda: all_succeeded(jobs), 20)
        monkeypatch.setattr(transitions, "send", real)

    assert runs == names(70)
    has_one_end_each(jobs)
    assert {job.tries.hget() for job in jobs} == {"1"}
    assert PrefetchJob.lost == []
    assert not any("is lost" in line for line in log.lines)


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError])
def test_replies_to_what_was_asked_ahead_that_are_lost_change_nothing(
    error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, real, rng = add(100), wire.Sent.reply, random.Random(3)

    def forget(self: Any) -> Any:
        found = real(self)
        if rng.random() < 0.5:
            if error is ConnectionError:
                return None  # as it answers then
            raise error("no reply")
        return found

    monkeypatch.setattr(wire.Sent, "reply", forget)
    runs = Runs()
    with Running(idle(prefetch=8, callback=runs)):
        wait_until(lambda: all_succeeded(jobs), 20)

    assert runs == names(100)
    has_one_end_each(jobs)
    assert {job.tries.hget() for job in jobs} == {"1"}


def test_a_worker_that_ends_records_its_ends_although_the_reply_to_what_it_asked_ahead_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, real, worker = add(20), wire.Sent.reply, idle(prefetch=4)

    def forget(self: Any) -> Any:
        real(self)
        raise TimeoutError("no reply")

    monkeypatch.setattr(wire.Sent, "reply", forget)
    monkeypatch.setattr(ahead, "LINGER_SECONDS", 10)
    worker.callback = runs = Runs(_2=lambda job, queue: setattr(worker, "end_forced", True))
    worker.run()

    assert runs == names(3)
    assert statuses(jobs[:3]) == ["s"] * 3
    assert waiting() == idents(jobs[3:])
    assert leased() == []


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_a_connection_that_breaks_again_and_again_loses_no_job(
    fault: Any, redis_server: RedisServer, database: Any
) -> None:
    jobs = add(200)
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        database.reset(host="127.0.0.1", port=proxy.port, db=0)
        runs = Runs()
        worker = idle(prefetch=10, callback=runs)
        with Running(worker):
            wait_until(lambda: len(runs) > 5)
            proxy.fail_at_random({fault: 0.2}, random.Random(5))
            wait_until(lambda: len(set(runs)) == 200, 20)
            proxy.calm()
        database.reset(**redis_server.settings)

    assert runs == names(200)
    has_one_end_each(jobs)


def test_a_server_that_is_down_for_a_moment_loses_no_job(database: Any) -> None:
    with RedisServer(appendonly=True) as server:
        former = dict(database.connection_settings)
        database.reset(**server.settings)
        try:
            jobs, go = add(40), threading.Event()
            runs = Runs(_5=lambda job, queue: go.wait(60))
            with Running(idle(prefetch=10, callback=runs)):
                wait_until(lambda: statuses(jobs)[:6] == list("sssssr"))
                server.restart()
                go.set()
                wait_until(lambda: all_succeeded(jobs), 20)
            assert runs == names(40)
            has_one_end_each(jobs)
        finally:
            database.reset(**former)


# --- Bad moments


def test_a_begin_whose_reply_is_lost_counts_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = add(2)
    lost = threading.Event()
    real = transitions.send

    def forget(connection: Any, call: transitions.Call[Any]) -> Any:
        found = real(connection, call)
        if call.script == "begin" and not lost.is_set():
            lost.set()
            raise TimeoutError("no reply")
        return found

    monkeypatch.setattr(transitions, "send", forget)
    work(2, prefetch=10, callback=Runs(_1=lambda job, queue: lost.wait(10)))

    assert [job.hmget("status", "tries") for job in jobs] == [[STATUSES.SUCCESS, "1"]] * 2


def test_claims_that_come_while_the_others_are_looked_at_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = add(20)
    runs = Runs()
    worker = idle(prefetch=4, callback=runs)
    send_call, looks = worker._send_call, []

    def look_slowly(call: Any) -> Any:
        found = send_call(call)
        if call.script == "look":
            looks.append(worker._ahead.fetch is not None)
            worker._settle_from_thread()
        return found

    monkeypatch.setattr(worker, "_send_call", look_slowly)
    monkeypatch.setattr(ahead, "LOOK_SECONDS", 0)
    with Running(worker):
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in jobs))

    assert sorted(runs, key=int) == [str(number) for number in range(20)]
    assert any(looks)  # more were on their way


def test_a_job_that_is_added_again_by_a_later_one_runs_again() -> None:
    first, _, _ = add(3)

    def again(job: Any, queue: Any) -> None:
        wait_until(lambda: first.status.hget() == STATUSES.SUCCESS)
        first.enqueue_or_delay()

    runs = Runs(_2=again)
    with Running(idle(prefetch=10, callback=runs)):
        wait_until(lambda: len(runs) == 4)
        wait_until(lambda: first.status.hget() == STATUSES.SUCCESS)
    assert runs == ["0", "1", "2", "0"]


def test_a_job_whose_lease_was_lost_before_it_begins_is_not_begun(log: Log) -> None:
    jobs = add(2, StartedJob)

    def lose(job: Any, queue: Any) -> None:
        if job._claim.identifier == "0" and job._claim.tries == 1:
            lapse(jobs[1])

    runs = Runs(_0=lose)
    with Running(idle(prefetch=10, callback=runs)):
        wait_until(lambda: jobs[1].status.hget() == STATUSES.SUCCESS)
        wait_until(lambda: not waiting() and not leased())
    assert runs == ["0", "1"]
    assert jobs[1].tries.hget() == "1"


def test_a_job_that_is_canceled_elsewhere_before_it_begins_is_not_run() -> None:
    jobs = add(2, StartedJob)
    runs = Runs(_0=lambda job, queue: write_elsewhere(jobs[1], STATUSES.CANCELED))
    work(2, prefetch=10, callback=runs)
    assert runs == ["0"]
    assert jobs[1].hmget("status", "queued", "tries") == [STATUSES.CANCELED, None, None]


def test_a_record_that_breaks_while_its_job_runs_does_not_stop_the_others(log: Log) -> None:
    jobs = add(6)

    def breaks(job: Any, queue: Any) -> None:
        client().rename(f"jobs:prefetchjob:{job.pk.get()}:hash", "saved")
        client().set(f"jobs:prefetchjob:{job.pk.get()}:hash", "x")

    with Running(idle(prefetch=3, callback=Runs(_1=breaks))):
        try:
            wait_until(lambda: [job.status.hget() for job in jobs[2:]] == [STATUSES.SUCCESS] * 4)
        finally:
            client().delete(f"jobs:prefetchjob:{jobs[1].pk.get()}:hash")
            client().rename("saved", f"jobs:prefetchjob:{jobs[1].pk.get()}:hash")


# --- In the middle of a long queue


def test_ends_are_told_while_there_is_more_to_do() -> None:
    """Jobs of some milliseconds: the thread sends their ends, and the worker must come to tell of them."""
    add(300)
    untold: list[int] = []

    def run(job: Any, queue: Any) -> None:
        time.sleep(0.002)
        untold.append(len(worker._ahead.sent))

    worker = idle(prefetch=20, callback=run, max_loops=300)
    worker.run()

    assert max(untold) <= 60
    assert worker._held_claims == {}


def test_a_delayed_job_that_becomes_due_does_not_wait_for_the_whole_queue() -> None:
    add(400)
    ran: list[str] = []

    def run(job: Any, queue: Any) -> None:
        ran.append(job.identifier.hget())
        time.sleep(0.005)
        if len(ran) == 10:
            PrefetchJob.add_job("due", "test", priority=100, delayed_for=0.1)

    work(401, prefetch=20, callback=run)

    assert ran.index("due") < 300


def test_a_job_that_this_process_cancels_while_its_claim_is_on_the_way_is_not_begun() -> None:
    jobs = add(60)
    ran: list[str] = []

    def run(job: Any, queue: Any) -> None:
        ran.append(job.pk.get())
        if job.pk.get() == jobs[17].pk.get():
            for other in jobs[20:24]:
                other.status.hset(STATUSES.CANCELED)

    work(60, prefetch=20, callback=run)

    assert not {job.pk.get() for job in jobs[20:24]} & set(ran)
    assert [job.status.hget() for job in jobs[20:24]] == [STATUSES.CANCELED] * 4
