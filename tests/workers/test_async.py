"""The worker of an event loop: what runs at the same time, what its hooks may be, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Error, Job
from limpyd_jobs.exceptions import LimpydJobsException
from limpyd_jobs.workers import AsyncWorker

from ..base import wait_until
from .base import Running, leased
from .base import idle as idle_of
from .base import work as work_of

pytestmark = pytest.mark.usefixtures("database")

work: Any = partial(work_of, worker_class=AsyncWorker)


def idle(worker_class: type[AsyncWorker] = AsyncWorker, queues: Any = "test", **options: Any) -> Any:
    return idle_of(worker_class, queues, **options)


class Gate:
    """Counts the coroutines that are within, and holds them until it is opened; for any loop and any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_open = False
        self.within: list[str] = []
        self.most = 0
        self.passed: list[str] = []

    async def hold(self, name: str) -> None:
        self.within.append(name)
        self.most = max(self.most, len(self.within))
        try:
            while not self.is_open:
                await asyncio.sleep(0.002)
        finally:
            self.within.remove(name)
            self.passed.append(name)


class CoroutineJob(Job):
    """Does what its identifier says."""

    queue_name = "test"
    gate: ClassVar[Gate]
    calls: ClassVar[list[Any]]

    async def run(self, queue: Any) -> Any:
        identifier = self.identifier.hget()
        what = identifier.partition(" ")[0]
        if what == "hold":
            await self.gate.hold(identifier)
        if what == "fail":
            raise ValueError("boo")
        return f"result of {identifier}"


class PlainJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> Any:
        if self.identifier.hget().partition(" ")[0] == "fail":
            raise ValueError("boo")
        return f"result of {self.identifier.hget()}"


@pytest.fixture(autouse=True)
def gate() -> Iterator[Gate]:
    """Open at the end of each test: nothing waits for it any more."""
    CoroutineJob.gate = gate = Gate()
    CoroutineJob.calls = []
    yield gate
    gate.is_open = True


def statuses(jobs: list[Any]) -> list[str]:
    return [STATUSES.by_value(job.status.hget()) for job in jobs]


def errors() -> list[tuple[str, str]]:
    """Type and message of the errors that are saved."""
    return [(error.type.hget(), error.message.hget()) for error in (Error.get(pk) for pk in Error.collection())]


class PlainHooksWorker(AsyncWorker):
    """Each hook is plain, calls that of its parent, and waits for its end."""

    requeue_times = 1
    requeue_delay_delta = 0

    def job_started(self, job: Any, queue: Any) -> None:
        super().job_started(job, queue)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        super().job_success(job, queue, job_result)

    def job_error(self, job: Any, queue: Any, exception: Any, trace: Any = None) -> None:
        super().job_error(job, queue, exception, trace)

    def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: Any = None) -> None:
        super().requeue_job(job, queue, priority, delayed_for)

    def job_success_message(self, job: Any, queue: Any, job_result: Any) -> str:
        return f"well done: {super().job_success_message(job, queue, job_result)}"


class PlainHooksJob(PlainJob):
    queue_name = "test"

    def on_started(self, queue: Any) -> None:
        CoroutineJob.calls.append("on_started")

    def on_success(self, queue: Any, result: Any) -> None:
        CoroutineJob.calls.append("on_success")

    def on_error(self, queue: Any, exception: Any, trace: Any) -> None:
        CoroutineJob.calls.append("on_error")

    def on_requeued(self, queue: Any) -> None:
        CoroutineJob.calls.append("on_requeued")


@pytest.mark.parametrize("identifier", ["well", "fail"])
def test_plain_hooks_that_call_others_do_not_wait_for_their_own_threads(identifier: str) -> None:
    jobs = [PlainHooksJob.add_job(f"{identifier} {number}") for number in range(6)]
    runs = 1 if identifier == "well" else 2

    work(6 * runs, concurrency=2, worker_class=PlainHooksWorker)

    assert statuses(jobs) == ["SUCCESS" if identifier == "well" else "ERROR"] * 6
    assert leased() == []


def test_200_plain_jobs_with_plain_hooks_run_100_at_a_time() -> None:
    jobs = [PlainHooksJob.add_job(str(number)) for number in range(200)]

    work(200, concurrency=100, worker_class=PlainHooksWorker)

    assert statuses(jobs) == ["SUCCESS"] * 200
    assert CoroutineJob.calls.count("on_success") == 200


def test_a_get_job_that_raises_for_one_job_does_not_keep_the_others_from_running() -> None:
    jobs = [CoroutineJob.add_job(str(number)) for number in range(5)]

    class PickyWorker(AsyncWorker):
        def get_job(self, job_ident: str) -> Any:
            if job_ident == jobs[1].ident:
                raise ValueError("not this one")
            return super().get_job(job_ident)

    with Running(idle(worker_class=PickyWorker)):
        wait_until(lambda: statuses(jobs) == ["SUCCESS", "ERROR", "SUCCESS", "SUCCESS", "SUCCESS"])
        wait_until(lambda: not leased())


def test_a_job_that_is_canceled_while_its_start_is_told_does_not_run_to_its_end(gate: Gate) -> None:
    job = CoroutineJob.add_job("hold")

    class CancelingWorker(AsyncWorker):
        async def job_started(self, job: Any, queue: Any) -> None:
            await super().job_started(job, queue)
            await asyncio.to_thread(job.cancel)
            while self._heartbeat is not None and not self._heartbeat._told:
                await asyncio.sleep(0.002)

    with Running(idle(worker_class=CancelingWorker)) as worker:
        wait_until(lambda: statuses([job]) == ["CANCELED"])
        wait_until(lambda: not leased())
        wait_until(lambda: not worker._canceled)

    assert not gate.is_open


def test_a_run_within_an_event_loop_is_refused_before_anything_is_done() -> None:
    worker = idle()

    async def embed() -> None:
        worker.run()

    with pytest.raises(LimpydJobsException, match=r"AsyncWorker.run\(\) cannot be called within an event loop"):
        asyncio.run(embed())
    assert worker.status is None

    worker.end_forced = True
    worker.run()
    assert worker.status == "terminated"


def test_tasks_that_jobs_leave_behind_are_cancelled_at_the_end_of_the_worker() -> None:
    left: list[Any] = []
    cleaned: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    async def leave(job: Any, queue: Any) -> None:
        left.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)

    CoroutineJob.add_job("1")

    work(1, callback=leave)

    assert left[0].cancelled()
    assert cleaned == ["up"]


def test_a_signal_that_comes_while_the_worker_is_made_ends_its_run() -> None:
    class SlowWorker(AsyncWorker):
        def handle_end_signal(self) -> None:
            super().handle_end_signal()
            os.kill(os.getpid(), signal.SIGTERM)

    worker = SlowWorker("test")
    worker.run()

    assert worker.status == "terminated"
