"""Waiting for jobs: what is an end, who is told of it, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
import redis
from limpyd import fields

from limpyd_jobs import STATUSES, Job, admin, waiting
from limpyd_jobs.exceptions import DatabaseException, InvalidArgument, LimpydJobsException, WaitTimeout
from limpyd_jobs.waiting import as_completed, await_all, await_any, await_completed, wait_all, wait_any

from ..base import PATIENCE_SECONDS, RedisServer, wait_until
from .support import connection, fail, run_worker

pytestmark = pytest.mark.usefixtures("database", "books")

LONG = 30  # seconds that no test waits for


class WaitedJob(Job):
    queue_name = "q"


class OtherWaitedJob(WaitedJob):
    """Of another class, and so with other keys."""


class UntoldWaitedJob(WaitedJob):
    """Its field `follow_up` is none of ours: nobody may tell of its end."""

    follow_up = fields.InstanceHashField()


@pytest.fixture
def books() -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []
    wait_until(lambda: listeners() == 0, message="no subscription is left behind")


def nothing(*_: Any) -> None:
    pass


def listeners() -> int:
    """How many subscriptions to channels of jobs there are."""
    return len(connection().pubsub_channels("jobs:*"))


def asked(job: Any) -> bool:
    """Has somebody asked to be told of the end of a job, and listens?"""
    return "w" in (job.follow_up.hget() or "") and listeners() > 0


class Waiter(threading.Thread):
    """Calls something in a thread, and holds what it returns or raises."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self.result, self.error = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def answer(self) -> Any:
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "it still waits"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def no_looks(monkeypatch: Any) -> None:
    """Nobody looks twice: what is found was told."""
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 1000.0)


@contextmanager
def waiter_for(job: Any, call: Callable[[], Any]) -> Iterator[Waiter]:
    waiter = Waiter(call)
    wait_until(lambda: asked(job), message="it waits")
    yield waiter


# --- What is an end


@pytest.mark.usefixtures("no_looks")
def test_a_success_is_an_end() -> None:
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        run_worker("q", callback=nothing)

    assert waiter.answer() is True


@pytest.mark.usefixtures("no_looks")
def test_an_error_is_an_end() -> None:
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        run_worker("q", callback=fail)

    assert waiter.answer() is True


@pytest.mark.usefixtures("no_looks")
def test_a_cancellation_is_an_end() -> None:
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        job.cancel()

    assert waiter.answer() is True


@pytest.mark.usefixtures("no_looks")
def test_an_error_that_is_retried_is_no_end() -> None:
    job = WaitedJob.add_job("a", requeue_times=1, requeue_delay_delta=0)
    ends = []

    with waiter_for(job, lambda: (job.wait(LONG), ends.append(job.tries.hget()))) as waiter:
        run_worker("q", callback=fail, loops=2)

    waiter.answer()
    assert ends == ["2"]


def test_an_error_whose_job_is_about_to_be_requeued_is_no_end_for_a_look() -> None:
    job = WaitedJob.add_job("a")
    job.status.hset(STATUSES.ERROR)  # still queued

    assert job.wait(0) is False

    job.status.hset(STATUSES.WAITING)


def test_a_job_that_has_ended_is_not_waited_for(monkeypatch: Any) -> None:
    job = WaitedJob.add_job("a")
    run_worker("q", callback=nothing)
    monkeypatch.setattr(waiting._Ears, "subscribe", None)

    assert job.wait() is True
    assert job.follow_up.hget() is None


def test_a_record_that_is_gone_counts_as_ended() -> None:
    job, other = WaitedJob.add_job("a"), WaitedJob.add_job("b")
    run_worker("q", callback=nothing, loops=2)
    Job.get_from_ident(job.ident).delete()

    assert job.wait(0) is True
    assert wait_all([job, other], 0) is True


def test_the_end_of_a_job_that_nobody_tells_of_is_found_by_a_look(monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.02)
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        connection().lrem("jobs:queue:1:waiting", 0, job.ident)
        job.follow_up.hdel()
        job.queued.hdel()
        job.status.hset(STATUSES.SUCCESS)

    assert waiter.answer() is True


def test_the_end_that_nobody_told_of_is_found_at_the_deadline(monkeypatch: Any) -> None:
    has_ended = threading.Event()

    def tell_nothing(*_: Any) -> list[Any]:
        has_ended.wait(LONG)  # so that the deadline is not there before: the worker may take longer than that
        return []

    monkeypatch.setattr(waiting._Waiting, "_told", tell_nothing)
    job = WaitedJob.add_job("a")
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 1000.0)

    with waiter_for(job, lambda: job.wait(1)) as waiter:
        run_worker("q", callback=nothing)
        has_ended.set()

    assert waiter.answer() is True


def test_a_job_that_does_not_end_in_time_is_not_done() -> None:
    assert WaitedJob.add_job("a").wait(0.05) is False


def test_a_timeout_may_be_a_timedelta() -> None:
    assert WaitedJob.add_job("a").wait(timedelta(milliseconds=20)) is False


# --- Until it has started


@pytest.mark.usefixtures("no_looks")
def test_one_may_wait_until_a_job_has_started() -> None:
    job = WaitedJob.add_job("a")
    may_end = threading.Event()

    with waiter_for(job, lambda: job.wait(LONG, until="started")) as waiter:
        worker = Waiter(lambda: run_worker("q", callback=lambda *_: may_end.wait(10)))

    assert waiter.answer() is True
    assert job.status.hget() == STATUSES.RUNNING
    assert job.wait(0) is False
    may_end.set()
    worker.answer()


def test_a_job_that_runs_or_has_ended_has_started() -> None:
    job, waits = WaitedJob.add_job("a"), WaitedJob.add_job("b", "other")
    seen = []
    run_worker("q", callback=lambda job, queue: seen.append(WaitedJob.get(job.pk.get()).wait(0, until="started")))

    assert seen == [True]
    assert job.wait(0, until="started") is True
    assert waits.wait(0, until="started") is False


# --- Many


@pytest.mark.usefixtures("no_looks")
def test_jobs_of_several_classes_are_waited_for_together() -> None:
    jobs = [WaitedJob.add_job("a"), OtherWaitedJob.add_job("a"), WaitedJob.add_job("b")]

    with waiter_for(jobs[-1], lambda: wait_all(iter(jobs), LONG)) as waiter:
        run_worker("q", callback=nothing, loops=3)

    assert waiter.answer() is True


def test_not_all_jobs_have_ended_when_one_has_not() -> None:
    jobs = [WaitedJob.add_job("a"), WaitedJob.add_job("b")]
    run_worker("q", callback=nothing)

    assert wait_all(jobs, 0.05) is False


@pytest.mark.usefixtures("no_looks")
def test_any_of_the_jobs_that_has_ended_is_returned() -> None:
    jobs = [WaitedJob.add_job("a"), WaitedJob.add_job("b")]

    with waiter_for(jobs[1], lambda: wait_any(jobs, LONG)) as waiter:
        run_worker("q", callback=nothing)

    assert [one is jobs[0] for one in waiter.answer()] == [True]
    assert wait_any(jobs[1:], 0.02) == []


def test_no_jobs_at_all_have_ended() -> None:
    assert wait_all([]) is True
    assert wait_any([]) == []
    assert list(as_completed([])) == []


@pytest.mark.usefixtures("no_looks")
def test_jobs_come_in_the_order_in_which_they_end() -> None:
    names = ["a", "b", "c", "d"]
    jobs = {name: WaitedJob.add_job(name, priority=number) for number, name in enumerate(names)}
    run_worker("q", callback=nothing, loops=2)

    order = as_completed([*jobs.values(), jobs["a"]], LONG)
    found = [next(order), next(order)]
    with waiter_for(jobs["a"], lambda: list(order)) as waiter:
        run_worker("q", callback=nothing, loops=2)

    assert [one.identifier.hget() for one in found + waiter.answer()] == ["d", "c", "b", "a"]


def test_jobs_that_do_not_end_in_time_are_an_error_after_those_that_did() -> None:
    jobs = [WaitedJob.add_job("a"), WaitedJob.add_job("b")]
    run_worker("q", callback=nothing)
    order = as_completed(jobs, 0.05)

    assert next(order) is jobs[0]
    with pytest.raises(WaitTimeout, match="1 of 2 jobs have not ended") as raised:
        next(order)
    assert (raised.value.missing, raised.value.count) == (1, 2)


def test_an_iteration_that_is_given_up_leaves_no_subscription() -> None:
    jobs = [WaitedJob.add_job("a"), WaitedJob.add_job("b"), WaitedJob.add_job("c")]
    order = as_completed(jobs, LONG)

    with waiter_for(jobs[2], lambda: next(order)) as waiter:
        run_worker("q", callback=nothing)
    waiter.answer()
    order.close()  # type: ignore[attr-defined]

    wait_until(lambda: listeners() == 0)


@pytest.mark.usefixtures("no_looks")
def test_ten_thousand_jobs_are_waited_for_at_once() -> None:
    WaitedJob.add_jobs(str(number) for number in range(10_000))
    jobs = [WaitedJob.from_pk(pk) for pk in WaitedJob.collection()]
    order = as_completed(jobs, LONG)

    with waiter_for(jobs[-1], lambda: list(islice(order, 500))) as waiter:
        run_worker("q", callback=nothing, loops=500, prefetch=100)

    assert {one.pk.get() for one in waiter.answer()} == set(WaitedJob.collection(status=STATUSES.SUCCESS))
    order.close()  # type: ignore[attr-defined]


def test_many_threads_wait_at_once() -> None:
    jobs = [WaitedJob.add_job(str(number)) for number in range(30)]
    waiters = [Waiter(lambda job=job: job.wait(LONG)) for job in jobs]  # type: ignore[misc]
    wait_until(lambda: listeners() == 30)

    run_worker("q", callback=nothing, loops=30)

    assert [waiter.answer() for waiter in waiters] == [True] * 30


# --- Coroutines


@pytest.mark.usefixtures("no_looks")
def test_coroutines_wait_for_jobs() -> None:
    jobs = [WaitedJob.add_job("a"), WaitedJob.add_job("b"), OtherWaitedJob.add_job("c")]

    async def main() -> list[Any]:
        waits = [job.await_until(timeout=LONG) for job in jobs]
        more = [await_all(jobs, LONG), await_any(jobs[2:], LONG), jobs[0].await_until("started", LONG), names()]
        results = asyncio.gather(*waits, *more)
        await asyncio.to_thread(wait_until, lambda: all(asked(job) for job in jobs) and listening(7))
        await asyncio.to_thread(run_worker, "q", callback=nothing, loops=3)
        return await results

    async def names() -> list[str]:
        return [job.identifier.hget() async for job in await_completed(jobs, LONG)]

    def listening(count: int) -> bool:
        return len([one for one in connection().client_list() if int(one["sub"])]) == count

    assert asyncio.run(main()) == [True, True, True, True, [jobs[2]], True, ["a", "b", "c"]]


def test_a_coroutine_that_waits_too_long_is_told_so() -> None:
    job = WaitedJob.add_job("a")

    async def main() -> None:
        assert await job.await_until(timeout=0.02) is False
        assert await await_any([job], 0.02) == []
        with pytest.raises(WaitTimeout):
            async for _ in await_completed([job], 0.02):
                pass

    asyncio.run(main())


def test_a_coroutine_that_is_cancelled_leaves_no_subscription() -> None:
    job = WaitedJob.add_job("a")

    async def main() -> None:
        task = asyncio.create_task(job.await_until())
        await asyncio.to_thread(wait_until, lambda: asked(job))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: listeners() == 0)

    asyncio.run(main())


# --- What may go wrong


@pytest.mark.parametrize("timeout", [-1, "5", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        WaitedJob.add_job("a").wait(timeout)


def test_one_waits_until_done_or_started_only() -> None:
    with pytest.raises(InvalidArgument, match=r"until.*'running'.*'done' or 'started'"):
        WaitedJob.add_job("a").wait(until="running")


@pytest.mark.parametrize("jobs", [5, ["jobs:job:1"], "a", [None]])
def test_what_is_no_job_is_refused_at_once(jobs: Any) -> None:
    with pytest.raises(InvalidArgument, match="an iterable of jobs"):
        as_completed(jobs)


def test_a_job_cannot_wait_for_its_own_end() -> None:
    job = WaitedJob.add_job("a")
    errors = []

    def callback(job: Any, queue: Any) -> None:
        with pytest.raises(LimpydJobsException) as raised:
            wait_all([job])
        errors.append(str(raised.value))

    run_worker("q", callback=callback)

    assert errors == [f"{job.ident} runs in this process: it cannot wait for its own end"]


def test_a_connection_that_is_lost_is_made_again_and_what_happened_meanwhile_is_found(monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 1000.0)
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        for number in range(3):
            (listener,) = (one["id"] for one in connection().client_list() if int(one["sub"]))
            connection().client_kill_filter(_id=listener)
            wait_until(
                lambda old=listener: [one["id"] for one in connection().client_list() if int(one["sub"])] != [old]
            )
            wait_until(lambda: asked(job), message=f"it listens again, {number}")
        run_worker("q", callback=nothing)

    assert waiter.answer() is True


@pytest.fixture
def own_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server that the test may stop."""
    with RedisServer(appendonly=True) as server:
        Job.database.connect(**server.settings)
        yield server
        Job.database.connect(**redis_server.settings)


def test_a_server_that_is_away_for_a_while_ends_no_wait(own_server: RedisServer) -> None:
    job = WaitedJob.add_job("a")

    with waiter_for(job, lambda: job.wait(LONG)) as waiter:
        own_server.restart()
        run_worker("q", callback=nothing)

    assert waiter.answer() is True


def test_a_server_that_is_away_at_the_beginning_is_an_error(own_server: RedisServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(WaitedJob, "retry_for", 0.05)
    job = WaitedJob.add_job("a")
    own_server.stop()

    with pytest.raises((redis.ConnectionError, DatabaseException)):
        job.wait(LONG)


def test_a_user_without_channels_finds_the_end_by_looking_often(monkeypatch: Any, redis_server: RedisServer) -> None:
    monkeypatch.setattr(waiting, "UNTOLD_LOOK_SECONDS", 0.02)
    connection().execute_command("ACL", "SETUSER", "silent", "reset", "on", "nopass", "~*", "+@all", "resetchannels")
    Job.database.connect(**redis_server.settings, username="silent", password="x")
    job = WaitedJob.add_job("a")

    waiter = Waiter(lambda: job.wait(LONG))
    wait_until(lambda: job.follow_up.hget())
    run_worker("q", callback=nothing)

    assert waiter.answer() is True
    assert asyncio.run(await_all([WaitedJob.add_job("b")], 0.05)) is False
    Job.database.connect(**redis_server.settings)
    connection().execute_command("ACL", "DELUSER", "silent")


def test_a_job_with_a_field_follow_up_of_its_own_is_looked_at_often(monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "UNTOLD_LOOK_SECONDS", 0.02)
    job = UntoldWaitedJob.add_job("a", follow_up="mine")

    waiter = Waiter(lambda: job.wait(LONG))
    run_worker("q", callback=nothing)

    assert waiter.answer() is True
    assert job.follow_up.hget() == "mine"


def test_a_forked_process_waits_for_a_job_of_its_parent() -> None:
    job = WaitedJob.add_job("a")
    assert job.wait(0) is False

    pid = os.fork()
    if pid == 0:
        os._exit(0 if job.wait(LONG) else 1)
    wait_until(lambda: asked(job))
    run_worker("q", callback=nothing)

    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def without_workers() -> Iterator[None]:
    """A worker that was made, and did not run, handles SIGINT until its process ends."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("without_workers")
def test_an_interrupt_leaves_no_subscription_behind() -> None:
    job = WaitedJob.add_job("a")

    def interrupt() -> None:
        wait_until(lambda: asked(job))
        os.kill(os.getpid(), signal.SIGINT)

    thread = Waiter(interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.wait(LONG)
    thread.answer()

    assert wait_until(lambda: listeners() == 0)
