"""Coroutines in a worker that has no event loop: one loop a thread, kept from job to job."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from limpyd_jobs import Job
from limpyd_jobs.workers.private_loop import PrivateLoop

from .base import work


async def own() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_the_loop_is_kept_for_the_next_coroutine() -> None:
    loops = PrivateLoop()

    first, second = loops.run(own()), loops.run(own())

    assert first is second and not first.is_closed()
    loops.close()
    assert first.is_closed()


def test_each_thread_has_its_own_which_ends_with_it() -> None:
    loops, found = PrivateLoop(), []

    threads = [threading.Thread(target=lambda: found.append(loops.run(own()))) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()

    gc.collect()
    assert [loop.is_closed() for loop in found] == [True, True]


def test_one_that_a_coroutine_has_raised_in_is_not_used_again() -> None:
    loops = PrivateLoop()
    found = []

    async def fail() -> None:
        found.append(asyncio.get_running_loop())
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        loops.run(fail())

    assert found[0].is_closed()
    assert loops.run(own()) is not found[0]
    loops.close()


def test_tasks_that_a_coroutine_leaves_behind_are_cancelled() -> None:
    loops, ends, left = PrivateLoop(), [], []

    async def forget() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cleaned up")

    async def leave() -> None:
        left.append(asyncio.create_task(forget()))
        await asyncio.sleep(0)

    loops.run(leave())

    assert ends == ["cleaned up"]


def test_within_a_loop_that_runs_it_refuses_to_run() -> None:
    loops = PrivateLoop()

    async def nested() -> None:
        steps = own()
        try:
            loops.run(steps)
        finally:
            steps.close()

    with pytest.raises(RuntimeError, match="running event loop"):
        asyncio.run(nested())


class LoopingJob(Job):
    queue_name = "test"

    async def run(self, queue: Any) -> None:
        seen.append(asyncio.get_running_loop())


seen: list[Any] = []


def test_the_jobs_of_a_worker_share_one_which_ends_with_it(database: Any) -> None:
    seen.clear()
    LoopingJob.add_jobs(["a", "b", "c"])

    work(3)

    assert len(seen) == 3 and len(set(map(id, seen))) == 1
    assert seen[0].is_closed()


def test_an_isolated_job_has_a_loop_of_its_own(database: Any) -> None:
    LoopingJob.add_jobs(["a"])

    work(1, callback=lambda job, queue: own(), isolate=True)

    assert Job.collection(status="e").instances() == []
