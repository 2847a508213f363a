"""Workers with several jobs at a time: the replies to ends that were on their way together are lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, transitions
from limpyd_jobs.workers import AsyncWorker

from .base import Log, leased, work

pytestmark = pytest.mark.usefixtures("database")

JOBS = 2
TIMEOUT_SECONDS = 1  # the ends of successes come one after the other in an event loop
KINDS: dict[str, dict[str, Any]] = {
    "threads": {"worker_class": Worker, "threads": JOBS},
    "event loop": {"worker_class": AsyncWorker, "concurrency": JOBS},
}


class RepliesJob(Job):
    """Fails in its first run, or does not, as its identifier says; notes what it is told of its end."""

    queue_name = "test"
    told: list[str] = []

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("fails") and self.tries.hget() == "1":
            raise ValueError("boom")

    def on_success(self, queue: Any, result: Any) -> None:
        self.told.append("success")

    def on_error(self, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.told.append("error")

    def on_lease_lost(self, queue: Any) -> None:
        self.told.append("lease lost")


def records_ends(call: transitions.Call[Any]) -> int:
    """Of how many jobs a call records the end."""
    return int(call.args["counts"].split()[3]) if call.script == "exchange" else call.script in ("fail", "finish")


class LostReplies:
    """The ends of the first jobs are all recorded before anybody learns that the replies are lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = 0
        self.are_all_recorded = threading.Event()
        self._send, self._asend = transitions.send, transitions.asend
        monkeypatch.setattr(transitions, "send", self.send)
        monkeypatch.setattr(transitions, "asend", self.asend)

    def send(self, client: Any, call: transitions.Call[Any]) -> Any:
        reply = self._send(client, call)
        if self.is_lost(call):
            self.are_all_recorded.wait(TIMEOUT_SECONDS)
            raise redis.ConnectionError("the reply is lost")
        return reply

    async def asend(self, client: Any, call: transitions.Call[Any]) -> Any:
        reply = await self._asend(client, call)
        if self.is_lost(call):
            await asyncio.to_thread(self.are_all_recorded.wait, TIMEOUT_SECONDS)
            raise redis.ConnectionError("the reply is lost")
        return reply

    def is_lost(self, call: transitions.Call[Any]) -> bool:
        ends = records_ends(call)
        if not ends or self.are_all_recorded.is_set():
            return False
        self.recorded += ends
        if self.recorded >= JOBS:
            self.are_all_recorded.set()
        return True


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    RepliesJob.told.clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("fails 1", "fails 2"), ("fails", "succeeds"), ("succeeds 1", "succeeds 2")])
def test_ends_whose_replies_are_lost_together_are_recorded_and_told_once(
    names: tuple[str, str], kind: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    jobs = [RepliesJob.add_job(name) for name in names]
    failures = sum(name.startswith("fails") for name in names)

    lost = LostReplies(monkeypatch)
    work(JOBS, **KINDS[kind])

    assert lost.are_all_recorded.is_set()
    assert sorted(RepliesJob.told) == ["error"] * failures + ["success"] * (JOBS - failures)
    assert len(Error.collection()) == Queue.get_queue("test").errors.llen() == failures
    assert Queue.get_queue("test").success.llen() == JOBS - failures
    assert sorted(job.status.hget() for job in jobs) == sorted(
        [STATUSES.ERROR] * failures + [STATUSES.SUCCESS] * (JOBS - failures)
    )
    assert (leased(), admin.check()) == ([], [])


@pytest.mark.parametrize("kind", KINDS)
def test_errors_whose_replies_are_lost_together_are_recorded_once_and_requeued(
    kind: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    jobs = [RepliesJob.add_job(name) for name in ("fails 1", "fails 2")]

    LostReplies(monkeypatch)
    work(2 * JOBS, requeue_times=1, requeue_delay_delta=0, **KINDS[kind])

    assert sorted(RepliesJob.told) == ["error"] * JOBS + ["success"] * JOBS
    assert len(Error.collection()) == Queue.get_queue("test").errors.llen() == JOBS
    assert {(job.status.hget(), job.tries.hget()) for job in jobs} == {(STATUSES.SUCCESS, "2")}
    assert (leased(), admin.check()) == ([], [])


def test_many_jobs_leave_no_more_notes_of_their_ends_than_run_at_a_time() -> None:
    for number in range(10):
        RepliesJob.add_job(f"fails {number}")

    work(10, threads=JOBS)

    assert len(Queue.get_connection().keys("jobs:done:*")) <= JOBS
