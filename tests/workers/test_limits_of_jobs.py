"""Limits with real workers: what runs at the same time, in which order, and when the next one starts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Retry, Worker, admin
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.limits import RateLimit
from limpyd_jobs.workers import AsyncWorker

from ..base import wait_until
from .base import Running, client, idle, leased, run, wait_until_idle, work

pytestmark = pytest.mark.usefixtures("database")


class Crowd:
    """Counts who is in at the same time.

    Attributes:
        wanted: how many of a key have to be in at once before the first of them leaves.
    """

    def __init__(self, **wanted: int) -> None:
        self.lock = threading.Lock()
        self.wanted = Counter(wanted)
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []

    def enter(self, key: str, name: str) -> None:
        with self.lock:
            self.inside[key] += 1
            self.most[key] = max(self.most[key], self.inside[key])
            self.order.append(name)

    def may_leave(self, key: str) -> bool:
        return self.most[key] >= self.wanted[key]

    def leave(self, key: str) -> None:
        with self.lock:
            self.inside[key] -= 1


class ClaimLimitsJob(Job):
    """One of three at the same time."""

    queue_name = "test"
    max_concurrency = 3
    crowd: ClassVar[Crowd] = Crowd()

    def run(self, queue: Any) -> None:
        key = self.run_option("limit_key")
        self.crowd.enter(key, self.identifier.hget())
        time.sleep(0.002)
        wait_until(lambda: self.crowd.may_leave(key))
        self.crowd.leave(key)


class AsyncClaimLimitsJob(ClaimLimitsJob):
    """The same for an event loop."""

    async def run(self, queue: Any) -> None:  # type: ignore[override]
        key = self.run_option("limit_key")
        self.crowd.enter(key, "")
        await asyncio.sleep(0.002)
        while not self.crowd.may_leave(key):
            await asyncio.sleep(0.002)
        self.crowd.leave(key)


class LimitedHeldJob(Job):
    """Runs until the test lets it go."""

    queue_name = "test"
    max_concurrency = 1
    doors: ClassVar[dict[str, threading.Event]] = {}

    def run(self, queue: Any) -> None:
        assert self.doors[self.identifier.hget()].wait(10)


class LimitedRateJob(Job):
    """Three in a second; notes when it was claimed, by the clock of Redis."""

    queue_name = "test"
    rate_limit = "3/1s"

    def run(self, queue: Any) -> None:
        key = f"jobs:limit:{self.run_option('limit_key')}:rate"
        client().rpush("test:starts", repr(client().zscore(key, self._claim.token)))


class LimitedPlainJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no job is leased, no place is held, and the invariants hold."""
    ClaimLimitsJob.crowd = Crowd()
    LimitedHeldJob.doors = {}
    yield
    assert leased() == []
    client().delete("test:starts")
    assert [str(problem) for problem in admin.check()] == []


KEY = ClaimLimitsJob.get_model_repr()


def all_succeeded(model: Any, count: int) -> bool:
    return len(model.collection(status=STATUSES.SUCCESS)) == count


def run_all(model: Any, count: int, *workers: Worker) -> None:
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(Running(worker))
        wait_until(lambda: all_succeeded(model, count), 20, f"{count} successes")


# --- At the same time


def test_eight_threads_never_run_more_than_may_and_run_all() -> None:
    ClaimLimitsJob.crowd = Crowd(**{KEY: 3})
    ClaimLimitsJob.add_jobs(str(number) for number in range(100))

    run_all(ClaimLimitsJob, 100, idle(threads=8))

    assert ClaimLimitsJob.crowd.most == {KEY: 3}


def test_an_event_loop_for_fifty_never_runs_more_than_may_and_runs_all() -> None:
    ClaimLimitsJob.crowd = Crowd(**{AsyncClaimLimitsJob.get_model_repr(): 3, "user": 5})
    AsyncClaimLimitsJob.add_jobs(str(number) for number in range(200))
    AsyncClaimLimitsJob.add_jobs(
        {"identifier": f"user {number}", "limit_key": "user", "max_concurrency": 5} for number in range(100)
    )

    run_all(AsyncClaimLimitsJob, 300, idle(AsyncWorker, concurrency=50))

    assert ClaimLimitsJob.crowd.most == {AsyncClaimLimitsJob.get_model_repr(): 3, "user": 5}


def test_several_workers_of_all_kinds_never_run_more_than_may_and_run_all() -> None:
    ClaimLimitsJob.add_jobs(str(number) for number in range(200))

    run_all(
        ClaimLimitsJob,
        200,
        idle(),
        idle(prefetch=10),
        idle(threads=4),
        idle(AsyncWorker, concurrency=10),
    )

    assert ClaimLimitsJob.crowd.most[KEY] <= 3


def test_parked_jobs_run_by_priority_and_then_in_their_order() -> None:
    LimitedHeldJob.doors = {"door": threading.Event()}
    LimitedHeldJob.add_job("door", limit_key=KEY)
    with Running(idle(threads=2)):
        wait_until(lambda: LimitedHeldJob.collection(status=STATUSES.RUNNING))
        for name, priority in (("c", 0), ("low", -3), ("a", 5), ("b", 5), ("d", 0)):
            ClaimLimitsJob.add_job(name, priority=priority, max_concurrency=1)
            wait_until(lambda: not Queue.count_waiting_jobs("test"))
        assert Queue.count_parked_jobs() == {KEY: 5}
        LimitedHeldJob.doors["door"].set()
        wait_until(lambda: all_succeeded(ClaimLimitsJob, 5))

    assert ClaimLimitsJob.crowd.order == ["a", "b", "c", "d", "low"]


def test_a_freed_place_wakes_a_worker_that_waits() -> None:
    LimitedHeldJob.doors = {"first": threading.Event(), "second": threading.Event()}
    LimitedHeldJob.doors["second"].set()
    LimitedHeldJob.add_job("first")
    with Running(idle(max_loops=1, timeout=60)):
        wait_until(lambda: LimitedHeldJob.collection(status=STATUSES.RUNNING))
        with Running(idle(timeout=60)):
            LimitedHeldJob.add_job("second")
            wait_until(lambda: Queue.count_parked_jobs())
            wait_until_idle()
            LimitedHeldJob.doors["first"].set()
            wait_until(lambda: all_succeeded(LimitedHeldJob, 2))


def test_a_retry_that_waits_holds_no_place() -> None:
    class_ran: list[str] = []

    def callback(job: Any, queue: Any) -> None:
        class_ran.append(job.identifier.hget())
        if len(class_ran) == 1:
            raise Retry("later", delayed_for=1000)

    LimitedHeldJob.add_job("a")
    LimitedHeldJob.add_job("b")

    work(2, callback=callback)

    assert class_ran == ["a", "b"]
    assert client().exists("jobs:limits:jobs") == 0


def test_a_flood_of_one_key_is_put_aside_and_other_jobs_run() -> None:
    LimitedHeldJob.doors = {"first": threading.Event()}
    LimitedHeldJob.add_job("first")
    with Running(idle(threads=2)):
        wait_until(lambda: LimitedHeldJob.collection(status=STATUSES.RUNNING))
        ClaimLimitsJob.add_jobs(
            {"identifier": str(number), "limit_key": LimitedHeldJob.get_model_repr(), "max_concurrency": 1}
            for number in range(1000)
        )
        LimitedPlainJob.add_job("plain")
        wait_until(lambda: all_succeeded(LimitedPlainJob, 1))
        assert Queue.count_parked_jobs() == {LimitedHeldJob.get_model_repr(): 1000}
        for job in ClaimLimitsJob.collection().instances():
            job.cancel()
        LimitedHeldJob.doors["first"].set()
        wait_until(lambda: all_succeeded(LimitedHeldJob, 1))

    assert Queue.count_parked_jobs() == {}


def test_a_burst_comes_through_the_jobs_of_a_key_one_by_one() -> None:
    ClaimLimitsJob.add_jobs({"identifier": str(number), "max_concurrency": 1} for number in range(20))

    run(Worker("test", burst=True, terminate_gracefully=False))

    assert all_succeeded(ClaimLimitsJob, 20)
    assert ClaimLimitsJob.crowd.order == [str(number) for number in range(20)]


# --- In a time


def starts() -> list[float]:
    return sorted(float(text) for text in client().lrange("test:starts", 0, -1))


@pytest.mark.parametrize(
    "options",
    [{}, {"threads": 4}, {"worker_class": AsyncWorker, "concurrency": 10}],
    ids=["one at a time", "threads", "event loop"],
)
def test_in_no_window_do_more_start_than_may(options: dict[str, Any]) -> None:
    LimitedRateJob.add_jobs(str(number) for number in range(8))

    run_all(LimitedRateJob, 8, idle(timeout=60, **options))

    found = starts()
    assert len(found) == 8
    assert all(later - earlier >= 0.99999 for earlier, later in zip(found, found[3:], strict=False))  # as floats


def test_an_idle_worker_wakes_when_the_time_has_come() -> None:
    """Not by its timeout, nor by its polling: it says itself until when it waits."""
    LimitedRateJob.add_jobs(str(number) for number in range(4))
    worker = idle(timeout=60)

    with Running(worker):
        wait_until(lambda: all_succeeded(LimitedRateJob, 3))
        wait_until_idle()
        assert worker._next_due is not None
        wait_until(lambda: all_succeeded(LimitedRateJob, 4))


def test_a_burst_does_not_wait_for_the_time_of_a_rate() -> None:
    LimitedRateJob.add_jobs({"identifier": str(number), "rate_limit": "3/d"} for number in range(5))

    run(Worker("test", burst=True, terminate_gracefully=False))

    assert all_succeeded(LimitedRateJob, 3)
    assert Queue.count_parked_jobs() == {LimitedRateJob.get_model_repr(): 2}


# --- What is accepted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("100/s", RateLimit(100, 1)),
        ("100/m", RateLimit(100, 60)),
        ("7/h", RateLimit(7, 3600)),
        ("1/d", RateLimit(1, 86400)),
        ("5/10s", RateLimit(5, 10)),
        ("5/31d", RateLimit(5, 31 * 86400)),
    ],
)
def test_a_rate_is_read(text: str, wanted: RateLimit) -> None:
    job = LimitedPlainJob.add_job("a", rate_limit=text)

    assert job.run_option("rate_limit") == wanted


@pytest.mark.parametrize(
    "text", ["", "100", "0/s", "100/", "100/w", "5/0s", "-5/s", "1.5/s", "100001/s", "1/32d", 5, ["a", 1], (0, 1)]
)
def test_a_rate_that_cannot_be_read_is_refused_before_anything_is_written(text: Any) -> None:
    with pytest.raises(InvalidArgument, match="rate_limit"):
        LimitedPlainJob.add_job("a", rate_limit=text)

    assert client().keys() == []


@pytest.mark.parametrize("number", [0, -1, 1.5, "3", True, 100_001])
def test_a_number_of_jobs_that_cannot_be_is_refused(number: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_concurrency"):
        LimitedPlainJob.add_job("a", max_concurrency=number)


@pytest.mark.parametrize("key", ["", "x" * 201, 7, "a\nb", "\ud800"])
def test_a_key_that_cannot_be_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match="limit_key"):
        LimitedPlainJob.add_job("a", max_concurrency=1, limit_key=key)


def test_a_key_without_a_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="given with max_concurrency or rate_limit"):
        LimitedPlainJob.add_job("a", limit_key="user:7")


def test_bad_values_of_a_class_are_told_when_it_is_used() -> None:
    class LimitedBadlyJob(Job):
        queue_name = "test"
        rate_limit = "often"

    with pytest.raises(ConfigurationException, match=r"LimitedBadlyJob.rate_limit: 'often'"):
        LimitedBadlyJob.add_job("a")


def test_what_a_job_says_wins_and_the_rest_is_its_class() -> None:
    mine, its = ClaimLimitsJob.add_job("a", limit_key="user:7", rate_limit="5/s"), ClaimLimitsJob.add_job("b")

    names = ("max_concurrency", "rate_limit", "limit_key")
    assert [mine.run_option(name) for name in names] == [3, RateLimit(5, 1), "user:7"]
    assert [its.run_option(name) for name in names] == [3, None, KEY]


def test_a_class_with_a_field_of_the_name_keeps_it() -> None:
    from limpyd_jobs.fields import InstanceHashField

    class LimitedFieldJob(Job):
        queue_name = "test"
        rate_limit = InstanceHashField()  # type: ignore[assignment]

    job = LimitedFieldJob.add_job("a", rate_limit="mine")

    assert (job.rate_limit.hget(), job.run_options.hget()) == ("mine", None)
