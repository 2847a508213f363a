"""Queues that are paused, and those that are drained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Worker, admin
from limpyd_jobs.admin import pausing
from limpyd_jobs.exceptions import InvalidArgument, WrongKeyType
from limpyd_jobs.testing import run_until_empty
from limpyd_jobs.workers import AsyncWorker, ahead, blocking

from ..base import wait_until
from .base import Running, client, idle, leased, run, wait_until_idle

pytestmark = pytest.mark.usefixtures("database")


class PausedJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        pass


class LimitedPausedJob(PausedJob):
    max_concurrency = 1
    limit_key = "one"


class KeysWorker(Worker):
    """One that decides itself where it looks."""

    def update_keys(self) -> None:
        super().update_keys()


KINDS: dict[str, tuple[type[Worker], dict[str, Any]]] = {
    "plain": (Worker, {}),
    "prefetch": (Worker, {"prefetch": 5}),
    "threads": (Worker, {"threads": 2}),
    "event loop": (AsyncWorker, {}),
    "own keys": (KeysWorker, {}),
}


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []


def burst(*queues: str, kind: str = "plain", **options: Any) -> Worker:
    """Run a worker until nothing is left to do for it."""
    worker_class, more = KINDS[kind]
    worker = worker_class(list(queues or ["test"]), burst=True, terminate_gracefully=False, **more, **options)
    run(worker)
    return worker


def statuses(*jobs: Any) -> list[str]:
    return [STATUSES.by_value(job.status.hget()) for job in jobs]


def waiting(name: str = "test", priority: int = 0) -> list[str]:
    found: list[str] = Queue.get_queue(name, priority).waiting.lrange(0, -1)
    return found


# --- What workers take


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_worker_takes_from_a_paused_queue_whatever_its_priority(kind: str) -> None:
    held = [PausedJob.add_job(str(number), priority=number) for number in range(3)]
    other = PausedJob.add_job("other", "other")
    admin.pause("test")

    worker = burst("test", "other", kind=kind)

    assert (worker.num_loops, statuses(other)) == (1, ["SUCCESS"])
    assert statuses(*held) == ["WAITING"] * 3

    assert admin.resume("test")
    assert burst("test", kind=kind).num_loops == 3
    assert statuses(*held) == ["SUCCESS"] * 3


def test_a_worker_that_records_an_end_claims_nothing_from_a_queue_that_was_paused_meanwhile() -> None:
    jobs = [PausedJob.add_job(str(number)) for number in range(3)]

    burst(callback=lambda job, queue: admin.pause("test"))

    assert statuses(*jobs) == ["SUCCESS", "WAITING", "WAITING"]
    assert waiting() == [job.ident for job in jobs[1:]]


def test_jobs_that_were_claimed_ahead_go_back_to_the_head_of_a_paused_queue_in_their_order() -> None:
    jobs = [PausedJob.add_job(str(number)) for number in range(8)]

    def pause_in_the_third(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "2":
            admin.pause("test")
            time.sleep(ahead.LOOK_SECONDS * 2)

    burst(kind="prefetch", callback=pause_in_the_third)

    assert statuses(*jobs) == ["SUCCESS"] * 3 + ["WAITING"] * 5
    assert waiting() == [job.ident for job in jobs[3:]]
    assert leased() == []
    assert [job.tries.hget() for job in jobs[3:]] == [None] * 5

    admin.resume("test")
    assert burst(kind="prefetch").num_loops == 5


def test_what_was_claimed_ahead_from_another_queue_still_runs() -> None:
    others = [PausedJob.add_job(str(number), "other") for number in range(3)]
    paused = [PausedJob.add_job(f"p{number}") for number in range(2)]

    def pause(job: Any, queue: Any) -> None:
        admin.pause("test")
        time.sleep(ahead.LOOK_SECONDS * 2)

    burst("other", "test", kind="prefetch", callback=pause)

    assert statuses(*others, *paused) == ["SUCCESS"] * 3 + ["WAITING"] * 2


def test_an_idle_worker_takes_at_once_when_its_queue_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "POLL_SECONDS", 60)  # else it would look by itself
    job = PausedJob.add_job("a")
    admin.pause("test")

    with Running(idle()):
        wait_until_idle()
        admin.resume("test")
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)


def test_what_is_added_or_becomes_due_waits_and_what_fails_waits_again() -> None:
    admin.pause("test")
    added = PausedJob.add_job("added")
    due = PausedJob.add_job("due", delayed_for=1000)
    queue = Queue.get_queue("test")
    client().zadd(queue.delayed.key, {due.ident: 1000})
    due.delayed_until.hset("1970-01-01 00:16:40")
    client().zadd("jobs:due:queue:test", {queue.pk.get(): 1000})

    worker = burst()

    assert (worker.num_loops, statuses(added, due)) == (0, ["WAITING", "WAITING"])
    assert waiting() == [added.ident, due.ident]


def test_a_queue_can_be_paused_before_it_exists_and_leaves_nothing_behind() -> None:
    admin.pause("test")
    assert admin.check() == []
    job = PausedJob.add_job("a")

    assert burst().num_loops == 0
    assert admin.resume("test")
    assert burst().num_loops == 1
    assert statuses(job) == ["SUCCESS"]
    assert client().exists("jobs:paused", "jobs:ready:queue:test") == 0


def test_what_their_limits_do_not_let_start_in_a_paused_queue_is_in_nobodys_way() -> None:
    jobs = [LimitedPausedJob.add_job(name, name[0]) for name in ("a1", "a2", "b1")]
    done: list[str] = []

    def work(job: Any, queue: Any) -> None:
        done.append(job.identifier.hget())
        if len(done) == 1:
            Worker("b", terminate_gracefully=False)._take_job()  # so that it is parked
            Worker("a", terminate_gracefully=False)._take_job()
            admin.pause("a")

    burst("a", "b", callback=work)
    assert (done, statuses(*jobs)) == (["a1", "b1"], ["SUCCESS", "WAITING", "SUCCESS"])

    admin.resume("a")
    burst("a", "b", callback=work)
    assert done == ["a1", "b1", "a2"]


def test_jobs_that_are_executed_at_once_and_the_runs_of_tests_know_of_pauses_what_workers_do() -> None:
    job = PausedJob.add_job("a")
    admin.pause("test")

    assert run_until_empty("test") == []
    assert statuses(job, PausedJob.execute_now("b")) == ["WAITING", "SUCCESS"]


def test_a_queue_can_be_paused_and_a_worker_seen_when_the_memory_of_redis_is_full() -> None:
    PausedJob.add_job("a")
    seen: list[int] = []
    client().config_set("maxmemory", 1)
    try:
        admin.pause("test")
        admin.resume("test")
        burst(callback=lambda job, queue: seen.append(len(admin.workers())))
    finally:
        client().config_set("maxmemory", 0)
    assert seen == [1]


# --- What is said of a pause


def test_a_pause_says_since_when_why_and_by_whom_and_a_second_one_keeps_the_time() -> None:
    first = admin.pause("test", "the mail server is down", by="ann")
    client().hset("jobs:paused", "queue:test", '{"since":"2001-02-03 04:05:06","reason":"x","by":"ann"}')
    second = admin.pause("test", "still", by="bob")

    assert (first.queue, first.reason, first.by) == ("test", "the mail server is down", "ann")
    assert second == admin.Pause("test", "2001-02-03 04:05:06", "still", "bob")
    assert admin.paused() == {"test": second}
    assert "@" in admin.pause("other").by

    assert [admin.resume("test"), admin.resume("test")] == [True, False]
    assert list(admin.paused()) == ["other"]


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_is_no_name_cannot_be_paused_resumed_or_drained(name: Any) -> None:
    for ask in (admin.pause, admin.resume, lambda queue: admin.drain([queue])):
        with pytest.raises(InvalidArgument):
            ask(name)
    with pytest.raises(InvalidArgument):
        admin.pause("test", reason=object())  # type: ignore[arg-type]
    assert admin.paused() == {}


def test_a_pause_that_cannot_be_written_is_not_half_written() -> None:
    client().set("jobs:ready:queue:test", "x")
    for ask in (admin.pause, admin.resume):
        with pytest.raises(WrongKeyType):
            ask("test")
    client().delete("jobs:ready:queue:test")
    client().set("jobs:paused", "x")
    for ask in (admin.pause, admin.resume):
        with pytest.raises(WrongKeyType):
            ask("test")
    client().delete("jobs:paused")


@pytest.mark.parametrize(
    ("half", "says"),
    [
        (("zrem", "jobs:ready:queue:test", ""), "workers take its jobs"),
        (("hdel", "jobs:paused", "queue:test"), "nobody takes its jobs"),
    ],
)
def test_half_a_pause_is_in_the_books(half: tuple[str, ...], says: str) -> None:
    PausedJob.add_job("a")
    admin.pause("test")

    client().execute_command(*half)

    [problem] = [one for one in admin.check() if one.kind == "pause"]
    assert (problem.subject, says in problem.detail) == ("test", True)
    admin.resume("test")


# --- Draining


def test_what_is_left_is_what_waits_is_parked_is_due_or_runs() -> None:
    for name in ("1", "2"):
        PausedJob.add_job(name)
    PausedJob.add_job("elsewhere", "other")
    PausedJob.add_job("later", priority=3, delayed_for=1000)
    late = PausedJob.add_job("late", priority=3, delayed_for=500)
    client().zadd(Queue.get_queue("test", 3).delayed.key, {late.ident: 1000})
    for name in ("runs", "is parked"):
        LimitedPausedJob.add_job(name, priority=9)
        Worker("test", terminate_gracefully=False)._take_job()

    # the second worker has parked a job, and taken the next one
    assert admin.left(["test"]) == admin.Left(waiting=2, delayed=1, running=2)
    assert admin.left(["test"], delayed=True) == admin.Left(waiting=2, delayed=2, running=2)
    assert admin.left(["other"]).count == 1
    assert admin.drain(["nosuch"]).count == 0
    assert admin.drain(["test"], timeout=0).count == 5
    client().zadd("jobs:due:queue:test", {Queue.get_queue("test", 3).pk.get(): 1000})


def test_a_queue_is_drained_when_its_last_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "LOOK_SECONDS", 0.01)
    PausedJob.add_jobs([str(number) for number in range(5)])
    seen: list[int] = []

    assert admin.drain(["test"], timeout=0, on_progress=lambda left: seen.append(left.count)).count == 5
    with Running(idle()):
        assert admin.drain(["test"], on_progress=lambda left: seen.append(left.count)) == admin.Left()

    assert (seen[0], seen[-1]) == (5, 0)
