"""Random sequences of public operations by several clients, with workers that vanish between any two steps.

After each step the books are right, and no job went from a status to one that does not follow it.
"""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from limpyd_jobs import STATUSES, Cancellation, Job, Queue, Worker, admin, transitions
from limpyd_jobs.exceptions import JobAlreadyQueued, JobNotInStatus, LeaseLost
from limpyd_jobs.statuses import FOLLOWERS
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers.life import run_now

NAMES = ("mail", "print")
identifiers = st.sampled_from(["a", "b", "c", "d"])
names = st.sampled_from(NAMES)
priorities = st.sampled_from([-1, 0, 1, 10])
delays = st.sampled_from([None, -5, 0, 500])
picks = st.integers(min_value=0, max_value=50)


class MachineJob(Job):
    """A job of its own class, so that nothing else is in the way."""


class PlacingJob(MachineJob):
    """One that wants to know when it enters a queue: so it is held, and placed in a second step."""

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        super().enqueue_or_delay(*args, **kwargs)


MODELS = (MachineJob, PlacingJob)


class Books(RuleBasedStateMachine):
    """Clients: this process as producer, and three workers that are stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[Worker, Any, Any]] = []

    @initialize()
    def start(self) -> None:
        MachineJob.database.connection.flushdb()
        self.workers = [
            Worker(
                NAMES,
                terminate_gracefuly=False,
                requeue_times=times,
                requeue_delay_delta=delay,
                lease_seconds=1000,
                logger_name="machine",
                logger_level=100,
            )
            for times, delay in ((0, 0), (3, 0), (3, 500))
        ]

    # --- What this needs

    def jobs(self, *statuses: str) -> list[Any]:
        found = [model.from_pk(pk) for model in MODELS for pk in sorted(model.collection(), key=int)]
        return [job for job in found if not statuses or job.status.hget() in statuses]

    def pick(self, number: int, *statuses: str) -> Any:
        found = self.jobs(*statuses)
        return found[number % len(found)] if found else None

    # --- Producers

    @rule(
        model=st.sampled_from(MODELS),
        identifier=identifiers,
        name=names,
        priority=priorities,
        prepend=st.booleans(),
        delay=delays,
        expires=st.sampled_from([None, None, 0, 500]),
    )
    def add(
        self,
        model: Any,
        identifier: str,
        name: str,
        priority: int,
        prepend: bool,
        delay: int | None,
        expires: int | None = None,
    ) -> None:
        before = {job.ident: job.hgetall() for job in self.jobs(STATUSES.RUNNING)}
        job = model.add_job(identifier, name, priority, prepend=prepend, delayed_for=delay, expires=expires)
        assert job.identifier.hget() == identifier
        if job.ident in before:
            assert job.hgetall() == before[job.ident], "a running job is returned unchanged"

    @rule(number=picks, priority=priorities)
    def write_the_priority(self, number: int, priority: int) -> None:
        if job := self.pick(number):
            job.priority.hset(priority)

    @rule(number=picks)
    def cancel(self, number: int) -> None:
        if job := self.pick(number):
            before, is_held = job.status.hget(), self.is_held(job)
            answer = job.cancel()
            if is_held and before not in (STATUSES.SUCCESS,):
                assert (answer, job.status.hget()) == (Cancellation.REQUESTED, STATUSES.CANCELED)
            elif before in (STATUSES.SUCCESS, STATUSES.ERROR):
                assert (answer, job.status.hget()) == (Cancellation.ENDED, before)
            else:
                assert answer is Cancellation.CANCELED
                assert (job.status.hget(), job.queued.hget()) == (STATUSES.CANCELED, None)

    @rule(number=picks)
    def write_the_cancel(self, number: int) -> None:
        if job := self.pick(number, STATUSES.WAITING, STATUSES.DELAYED, STATUSES.RUNNING):
            job.status.hset(STATUSES.CANCELED)

    @rule(number=picks)
    def cancel_a_running_one(self, number: int) -> None:
        if job := self.pick(number, STATUSES.RUNNING):
            job.status.hset(STATUSES.CANCELED)

    @rule(number=picks)
    def add_what_failed_again_and_requeue_it(self, number: int) -> None:
        if job := self.pick(number, STATUSES.ERROR):
            type(job).add_job(job.identifier.hget(), "print")
            self.requeue_this(job, "mail", None, None)

    @rule(number=picks, seconds=st.sampled_from([None, -100, 500]))
    def ask_to_be_delayed(self, number: int, seconds: int | None) -> None:
        if job := self.pick(number, STATUSES.RUNNING):
            until = "" if seconds is None else str(utcnow() + timedelta(seconds=seconds))
            job.hmset(delayed_until=until, status=STATUSES.DELAYED)

    @rule(number=picks, name=names, priority=st.none() | priorities, delay=delays)
    def requeue(self, number: int, name: str, priority: int | None, delay: int | None) -> None:
        if job := self.pick(number):
            self.requeue_this(job, name, priority, delay)

    def requeue_this(self, job: Any, name: str, priority: int | None, delay: int | None) -> None:
        status, is_held = job.status.hget(), self.is_held(job)
        try:
            job.requeue(name, priority, delayed_for=delay)
        except JobNotInStatus:
            assert status != STATUSES.ERROR or is_held
        except JobAlreadyQueued:
            assert self.has_rival(job)
        else:
            assert status == STATUSES.ERROR and not is_held

    def is_held(self, job: Any) -> bool:
        return self.holder(job) is not None

    @rule(number=picks, name=names, priority=st.none() | priorities, delay=delays, prepend=st.booleans())
    def move(self, number: int, name: str, priority: int | None, delay: int | None, prepend: bool) -> None:
        if job := self.pick(number):
            until = None if delay is None else utcnow() + timedelta(seconds=delay)
            is_held = self.is_held(job)
            try:
                job.enqueue_or_delay(name, priority, until, prepend)
            except JobNotInStatus:
                assert is_held
            except JobAlreadyQueued:
                assert self.has_rival(job)
            else:
                assert not is_held

    @rule(number=picks, name=names, priority=priorities, prepend=st.booleans(), delay=st.sampled_from([None, 500]))
    def place(self, number: int, name: str, priority: int, prepend: bool, delay: int | None) -> None:
        if job := self.pick(number):
            queue, is_held = Queue.get_queue(name, priority), self.is_held(job)
            try:
                if delay is None:
                    queue.enqueue_job(job, prepend)
                else:
                    queue.delay_job(job, utcnow() + timedelta(seconds=delay))
            except JobNotInStatus:
                assert is_held
            except JobAlreadyQueued:
                assert self.has_rival(job)
            else:
                assert not is_held

    def has_rival(self, job: Any) -> bool:
        queued = set(type(job).collection(identifier=job.identifier.hget(), queued="1"))
        return bool(queued - {job.pk.get()})

    @rule(number=picks)
    def delete_an_ended_job(self, number: int) -> None:
        job = self.pick(number, STATUSES.SUCCESS, STATUSES.ERROR, STATUSES.CANCELED)
        if job and not job.queued.hget():
            job.delete()

    # --- Workers

    @rule(who=picks)
    def take(self, who: int) -> None:
        worker = self.workers[who % len(self.workers)]
        if found := worker._take_job():
            self.running.append((worker, *found))

    @rule(who=picks, fails=st.booleans())
    def take_and_end(self, who: int, fails: bool) -> None:
        """The plain case, often, so that a run gets somewhere."""
        self.take(who)
        if self.running:
            self.end(len(self.running) - 1, fails)

    @rule(identifier=identifiers, who=picks)
    def add_and_fail(self, identifier: str, who: int) -> None:
        self.add(MachineJob, identifier, "mail", 10, True, None)
        self.take_and_end(who, True)

    def next_running(self, number: int) -> tuple[Worker, Any, Any]:
        return self.running.pop(number % len(self.running))

    @precondition(lambda self: self.running)
    @rule(number=picks, fails=st.booleans())
    def end(self, number: int, fails: bool) -> None:
        worker, queue, job = self.next_running(number)

        def callback(job: Any, queue: Any) -> None:
            if fails:
                raise ValueError("boom")

        before, is_ours = job.status.hget(), job._claim is not None and self.holder(job) == job._claim.token
        worker.callback = callback
        worker._handle(queue, job)
        if is_ours and before == STATUSES.CANCELED:
            assert job.status.hget() == (STATUSES.ERROR if fails and job._is_written else STATUSES.CANCELED)
        elif is_ours and before == STATUSES.RUNNING and not fails:
            assert job.status.hget() == STATUSES.SUCCESS
        elif not is_ours:
            assert job.status.hget() == before, "only the holder of a lease records an end"

    def holder(self, job: Any) -> str | None:
        token: str | None = job.connection.hget("jobs:claims", job.ident)
        return token

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def vanish(self, number: int) -> None:
        self.next_running(number)

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def end_at_once(self, number: int) -> None:
        worker, _, job = self.next_running(number)
        if job._claim is None:
            return
        is_ours, status = self.holder(job) == job._claim.token, job.status.hget()
        tries = int(job.tries.hget() or 0)
        given_back = worker._give_back([job._claim.token])
        if is_ours and status == STATUSES.RUNNING:
            assert given_back == (job.ident,)
            assert (job.status.hget(), int(job.tries.hget() or 0)) == (STATUSES.WAITING, tries - 1)
        elif not is_ours:
            assert given_back == ()

    @rule(who=picks, name=st.sampled_from(["success", "errors"]), keep=st.sampled_from([0, 1, 3, timedelta()]))
    def shorten_the_histories(self, who: int, name: str, keep: Any) -> None:
        unfinished = {job.ident for job in self.jobs() if job.queued.hget()}
        for queue in Queue.get_all(NAMES):
            self.workers[who % len(self.workers)]._retention._trim_history(queue.key.rpartition(":")[0], name, keep)
        assert unfinished == {job.ident for job in self.jobs() if job.queued.hget()}

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def vanish_between_error_and_requeue(self, number: int) -> None:
        worker, queue, job = self.next_running(number)
        if job._cached_status == STATUSES.WAITING:
            with contextlib.suppress(LeaseLost):
                run_now(worker._write_error(job, queue, ValueError("boom"), None))

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def repeat_the_end(self, number: int) -> None:
        """The reply of the first was lost."""
        worker, queue, job = self.next_running(number)
        if job._claim is None:
            return
        call = transitions.finish("jobs", job._claim, str(utcnow()))
        length = queue.success.llen()
        try:
            first = worker._send_call(call)
        except LeaseLost:
            return
        if first.kind == "OK":
            assert worker._send_call(call).kind == "ALREADY"
            assert queue.success.llen() == length + 1

    # --- Time

    @rule()
    def leases_lapse(self) -> None:
        client = MachineJob.database.connection
        for ident in client.zrange("jobs:leases", 0, -1):
            client.zadd("jobs:leases", {ident: 1})

    @rule(who=picks)
    def recover(self, who: int) -> None:
        self.workers[who % len(self.workers)]._recover_lapsed()

    @rule()
    def delayed_jobs_become_due(self) -> None:
        client, now = MachineJob.database.connection, time.time()
        for name in NAMES:
            for queue in Queue.get_all(name):
                for ident in queue.delayed.zmembers():
                    client.zadd(queue.delayed.key, {ident: now - 10.5})
                    client.zadd(f"jobs:due:queue:{name}", {queue.pk.get(): now - 10.5})

    @rule(who=picks)
    def promote(self, who: int) -> None:
        self.workers[who % len(self.workers)].requeue_delayed_jobs()

    # --- What holds after each step

    @invariant()
    def the_books_are_right(self) -> None:
        assert [str(problem) for problem in admin.check()] == []


def statuses() -> dict[str, str]:
    found = [model.from_pk(pk) for model in MODELS for pk in model.collection()]
    return {job.ident: job.connection.hget(job.key, "status") for job in found}


@pytest.mark.timeout(600)
def test_the_books_are_right_after_any_sequence(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send = transitions.send

    def checked_send(client: Any, call: transitions.Call[Any]) -> Any:
        """Each transition leads from a status to one that may follow it; `write` is what users do by hand."""
        if call.script == "write":
            return send(client, call)
        before = statuses()
        try:
            return send(client, call)
        finally:
            for ident, status in statuses().items():
                former = before.get(ident, status)
                assert status == former or status in FOLLOWERS[former], f"{call.script}: {ident}: {former} to {status}"

    monkeypatch.setattr(transitions, "send", checked_send)
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
