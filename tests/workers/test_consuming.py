"""`async for job in ...`, `async with job`: jobs that are done by the coroutine that asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Error, Job, JobTimeout, Queue, Retry
from limpyd_jobs.exceptions import ConfigurationException, LimpydJobsException
from limpyd_jobs.workers import AsyncConsumer

from .base import DEADLINE_SECONDS, Log, client


class ConsumedJob(Job):
    queue_name = "test"

    data = fields.InstanceHashField()


@pytest.fixture(autouse=True)
def _on_a_database(database: Any) -> None:
    pass


def go(steps: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(steps, DEADLINE_SECONDS))


def statuses(*jobs: Any) -> list[str]:
    return [job.status.hget() for job in jobs]


def leased() -> int:
    return int(client().zcard("jobs:leases"))


async def ask(**options: Any) -> list[str]:
    """Do all jobs that are waiting; answers their identifiers, in order."""
    done = []
    async with AsyncConsumer("test", burst=True, **options) as jobs:
        async for job in jobs:
            async with job:
                done.append(job.identifier.hget())
    return done


def test_a_job_whose_block_is_left_is_a_success() -> None:
    first, second = ConsumedJob.add_job("one"), ConsumedJob.add_job("two")

    assert go(ask()) == ["one", "two"]
    assert statuses(first, second) == [STATUSES.SUCCESS] * 2
    assert leased() == 0


def test_the_end_is_recorded_when_the_block_is_left() -> None:
    async def one() -> list[str]:
        job = await ConsumedJob.aadd_job("one")
        async with AsyncConsumer("test") as jobs:
            async with await anext(jobs):
                during = statuses(job)
            return during + statuses(job)

    assert go(one()) == [STATUSES.RUNNING, STATUSES.SUCCESS]


def test_a_job_whose_block_raises_fails_and_the_exception_goes_on() -> None:
    job = ConsumedJob.add_job("one")

    async def fail() -> None:
        async with AsyncConsumer("test") as jobs, await anext(jobs):
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        go(fail())
    assert statuses(job) == [STATUSES.ERROR]
    (error,) = Error.instances()
    assert error.hmget("type", "message") == ["ValueError", "boom"]
    assert 'raise ValueError("boom")' in error.traceback.hget()


def test_a_wish_to_be_retried_is_no_error() -> None:
    job = ConsumedJob.add_job("one")

    async def retry() -> None:
        async with AsyncConsumer("test") as jobs, await anext(jobs):
            raise Retry(delayed_for=60)

    go(retry())
    assert statuses(job) == [STATUSES.DELAYED]
    assert list(Error.collection()) == []


def test_a_job_that_nobody_begins_is_given_back() -> None:
    job = ConsumedJob.add_job("one")

    async def leave() -> Any:
        async with AsyncConsumer("test") as jobs:
            return await anext(jobs)

    taken = go(leave())
    assert statuses(job) == [STATUSES.WAITING]
    assert job.tries.hget() in (None, "0")
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]
    with pytest.raises(LimpydJobsException):
        go(taken.__aenter__())


def test_a_block_that_is_cancelled_gives_its_job_back() -> None:
    job = ConsumedJob.add_job("one")

    async def consume(has_begun: asyncio.Event) -> None:
        async with AsyncConsumer("test") as jobs:
            async for taken in jobs:
                async with taken:
                    has_begun.set()
                    await asyncio.Event().wait()

    async def cancel() -> None:
        has_begun = asyncio.Event()
        task = asyncio.create_task(consume(has_begun))
        await has_begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    go(cancel())
    assert statuses(job) == [STATUSES.WAITING]
    assert leased() == 0
    assert list(Error.collection()) == []


def test_a_block_whose_time_is_over_is_cancelled() -> None:
    job = ConsumedJob.add_job("one", job_timeout=0.05)

    async def hang() -> None:
        async with AsyncConsumer("test") as jobs, await anext(jobs):
            await asyncio.Event().wait()

    with pytest.raises(JobTimeout):
        go(hang())
    assert statuses(job) == [STATUSES.ERROR]
    assert [error.type.hget() for error in Error.instances()] == ["JobTimeout"]


def test_a_block_whose_job_is_canceled_ends_and_the_next_job_comes() -> None:
    canceled, other = ConsumedJob.add_job("one"), ConsumedJob.add_job("two")

    async def consume() -> list[str]:
        ended = []
        async with AsyncConsumer("test", burst=True) as jobs:
            async for job in jobs:
                async with job:
                    if job.pk.get() == canceled.pk.get():
                        await asyncio.to_thread(canceled.cancel)
                        await asyncio.Event().wait()
                ended.append(job.identifier.hget())
        return ended

    assert go(consume()) == ["one", "two"]
    assert statuses(canceled, other) == [STATUSES.CANCELED, STATUSES.SUCCESS]
    assert list(Error.collection()) == []


def test_no_job_is_claimed_before_somebody_asks() -> None:
    async def look() -> tuple[int, int]:
        await ConsumedJob.aadd_jobs(map(str, range(3)))
        async with AsyncConsumer("test") as jobs:
            await anext(jobs)
            one = leased()
            await asyncio.gather(anext(jobs), anext(jobs))
            return one, leased()

    assert go(look()) == (1, 3)


def test_whoever_stops_asking_takes_no_job_with_him() -> None:
    async def look() -> str:
        async with AsyncConsumer("test") as jobs:
            asking = asyncio.create_task(anext(jobs))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await ConsumedJob.aadd_job("one")
            async with await anext(jobs) as job:
                return str(job.identifier.hget())

    assert go(look()) == "one"


def test_a_job_that_was_canceled_before_is_passed_over() -> None:
    canceled, other = ConsumedJob.add_job("one"), ConsumedJob.add_job("two")
    canceled.status.hset(STATUSES.CANCELED)

    async def take() -> str:
        async with AsyncConsumer("test") as jobs, await anext(jobs) as job:
            return str(job.identifier.hget())

    assert go(take()) == "two"
    assert statuses(canceled, other) == [STATUSES.CANCELED, STATUSES.SUCCESS]


def test_several_tasks_share_a_consumer() -> None:
    ConsumedJob.add_jobs(map(str, range(20)))
    running = most = 0

    async def one(jobs: AsyncConsumer, all_at_work: asyncio.Event) -> None:
        nonlocal running, most
        async for job in jobs:
            async with job:
                running += 1
                most = max(most, running)
                if running == 4:
                    all_at_work.set()
                await asyncio.wait_for(all_at_work.wait(), DEADLINE_SECONDS)
                running -= 1

    async def consume() -> None:
        all_at_work = asyncio.Event()
        async with AsyncConsumer("test", burst=True) as jobs:
            await asyncio.gather(*[one(jobs, all_at_work) for _ in range(4)])

    go(consume())
    assert most == 4
    assert {job.status.hget() for job in ConsumedJob.instances()} == {STATUSES.SUCCESS}


def test_fields_are_read_without_a_round_trip_and_are_right_afterwards() -> None:
    ConsumedJob.add_job("one", data="x")

    async def consume() -> tuple[int, list[Any]]:
        async with AsyncConsumer("test") as jobs:
            job = await anext(jobs)
            async with job:
                before = client().info("stats")["total_commands_processed"]
                found = [job.data.hget(), job.identifier.hget(), job.end.hget(), *job.hmget("data", "tries")]
                used = client().info("stats")["total_commands_processed"] - before
            return used, [*found, job.status.hget(), bool(job.end.hget())]

    used, found = go(consume())
    assert found == ["x", "one", None, "x", "1", STATUSES.SUCCESS, True]
    assert used <= 1  # the question itself


def test_a_consumer_ends_with_its_block_though_a_job_runs_elsewhere(log: Log) -> None:
    async def leave() -> str:
        await ConsumedJob.aadd_job("one")
        async with AsyncConsumer("test") as jobs:
            job = await anext(jobs)
            await job.__aenter__()
        await job.__aexit__(None, None, None)
        return str(job.status.hget())

    assert go(leave()) == STATUSES.WAITING


def test_what_a_consumer_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigurationException, match="callback"):
        AsyncConsumer("test", callback=print)
    with pytest.raises(LimpydJobsException, match="async with"):
        AsyncConsumer("test").run()
    with pytest.raises(LimpydJobsException, match="AsyncConsumer"):
        go(ConsumedJob.add_job("one").__aenter__())
    with pytest.raises(LimpydJobsException, match="async with"):
        go(AsyncConsumer("test").__anext__())


def test_a_job_is_begun_once() -> None:
    ConsumedJob.add_job("one")

    async def twice() -> None:
        async with AsyncConsumer("test") as jobs, await anext(jobs) as job, job:
            pass

    with pytest.raises(LimpydJobsException, match="begun"):
        go(twice())


def test_giving_up_to_ask_stops_nobody_else() -> None:
    ConsumedJob.add_jobs(map(str, range(20)))

    async def consume() -> list[str]:
        done: list[str] = []
        async with AsyncConsumer("test") as jobs:
            for turns in range(20):
                asking = asyncio.ensure_future(anext(jobs))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                if not asking.cancelled():
                    async with asking.result() as job:
                        done.append(job.identifier.hget())
            while len(done) < 20:
                async with await anext(jobs) as job:
                    done.append(job.identifier.hget())
        return done

    assert sorted(go(consume()), key=int) == list(map(str, range(20)))


@pytest.mark.parametrize("turns", range(0, 40, 2))
def test_a_consumer_that_is_left_while_a_job_comes_ends(turns: int) -> None:
    job = ConsumedJob.add_job("one")

    async def leave() -> None:
        async with AsyncConsumer("test") as jobs:
            await asyncio.to_thread(lambda: None)
            asking = asyncio.ensure_future(anext(jobs))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    go(leave())
    assert statuses(job) == [STATUSES.WAITING]
    assert leased() == 0


def test_blocks_in_other_tasks_are_cancelled_and_given_back_when_a_consumer_is_left() -> None:
    job = ConsumedJob.add_job("one")
    ended: list[str] = []

    async def do(jobs: AsyncConsumer, has_begun: asyncio.Event) -> None:
        async with await anext(jobs):
            has_begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    async def leave() -> None:
        has_begun = asyncio.Event()
        async with AsyncConsumer("test") as jobs:
            task = asyncio.create_task(do(jobs, has_begun))
            await has_begun.wait()
        await asyncio.gather(task, return_exceptions=True)

    go(leave())
    assert ended == ["cancelled"]
    assert statuses(job) == [STATUSES.WAITING]


@pytest.mark.parametrize("makes", ["an error", "nothing"])
def test_whatever_a_block_makes_of_its_cancellation_its_time_was_over(makes: str) -> None:
    job = ConsumedJob.add_job("one", job_timeout=0.05)

    async def hang() -> int:
        async with AsyncConsumer("test") as jobs:
            with pytest.raises(JobTimeout):
                async with await anext(jobs):
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        if makes == "an error":
                            raise ValueError("mine") from None
        task = asyncio.current_task()
        return task.cancelling() if task is not None and hasattr(task, "cancelling") else 0

    assert go(hang()) == 0  # so that what is around the block does not take itself for cancelled
    assert statuses(job) == [STATUSES.ERROR]
    assert [error.type.hget() for error in Error.instances()] == ["JobTimeout"]


def test_many_tasks_that_ask_are_served_to_the_last_job() -> None:
    ConsumedJob.add_jobs(map(str, range(300)))
    done: list[str] = []

    async def do(jobs: AsyncConsumer) -> None:
        async for job in jobs:
            async with job:
                done.append(job.identifier.hget())

    async def consume() -> None:
        async with AsyncConsumer("test", burst=True) as jobs:
            await asyncio.gather(*[do(jobs) for _ in range(10)])

    go(consume())
    assert sorted(done, key=int) == list(map(str, range(300)))
