"""Random sequences of public operations by several clients, with workers that vanish between any two steps.

After each step the books are right, and no job went from a status to one that does not follow it. The workers are of
all kinds: some claim one job at a time, others several that run at once; some record each end alone, others several
together, with the next claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
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

from limpyd_jobs import STATUSES, Cancellation, Job, Queue, Retry, Worker, admin, transitions, uniqueness
from limpyd_jobs.admin import numbers
from limpyd_jobs.aio import async_client
from limpyd_jobs.exceptions import JobAlreadyQueued, JobNotInStatus, LeaseLost
from limpyd_jobs.statuses import FOLLOWERS
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers import AsyncWorker, at_once
from limpyd_jobs.workers.asynchronous import new_event_loop

NAMES = ("mail", "print")
identifiers = st.sampled_from(["a", "b", "c", "d"])
names = st.sampled_from(NAMES)
priorities = st.sampled_from([-1, 0, 1, 10])
delays = st.sampled_from([None, -5, 0, 500])
picks = st.integers(min_value=0, max_value=50)
# what a run comes to; one that hangs has a job_timeout, or fails
fates = st.sampled_from(["succeeds", "succeeds", "fails", "retries", "retries later", "hangs"])
counts = st.integers(min_value=1, max_value=4)
ERRORS: dict[str, Callable[[], Exception]] = {
    "fails": lambda: ValueError("boom"),
    "retries": lambda: Retry("again"),
    "retries later": lambda: Retry("later", delayed_for=500),
}


class MachineJob(Job):
    """A job of its own class, so that nothing else is in the way."""

    fate = "succeeds"  # of those that are executed at once: the others get a callback

    def run(self, queue: Any) -> None:
        if self.fate != "succeeds":
            raise ERRORS[self.fate]()


class PlacingJob(MachineJob):
    """One that wants to know when it enters a queue: so it is held, and placed in a second step. Answers are kept."""

    save_result = True

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        super().enqueue_or_delay(*args, **kwargs)


MODELS = (MachineJob, PlacingJob)
LIMITS: tuple[dict[str, Any], ...] = (
    {"max_concurrency": 1, "limit_key": "places"},
    {"max_concurrency": 2, "limit_key": "places"},
    {"max_concurrency": 2, "limit_key": "starts", "rate_limit": "2/h"},
)

Taken = tuple[Any, Any]  # a queue and a job
OPTIONS: dict[str, Any] = {
    "terminate_gracefuly": False,
    "lease_seconds": 1000,
    "logger_name": "machine",
    "logger_level": 100,
}


class Actor:
    """A worker that is stepped by hand: it claims one job at a time, and records the end of each alone."""

    worker_class: type[Worker] = Worker
    more_options: dict[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        self.worker = self.worker_class(NAMES, **OPTIONS, **self.more_options, **options)

    def take(self, count: int) -> list[Taken]:
        """Claim up to so many jobs, where that is possible in one call."""
        found = self.worker._take_job()
        return [found] if found else []

    def end(self, taken: Sequence[Taken], fates: Sequence[str]) -> None:
        """Run jobs that were taken."""
        for (queue, job), fate in zip(taken, fates, strict=True):
            self.worker.callback = partial(self.meet, fate)
            self.drive(self.worker._process_taken(queue, job))

    def meet(self, fate: str, job: Any, queue: Any) -> None:
        """The callback."""
        if fate == "hangs" and job.run_option("job_timeout"):
            time.sleep(60)
        elif fate != "succeeds":
            raise ERRORS.get(fate, ERRORS["fails"])()

    def drive(self, steps: Any) -> Any:
        return self.worker._drive(steps)

    def close(self) -> None:
        """Nothing of it is left."""


class ManyAtOnce(Actor):
    """A worker with threads: it claims several jobs in one call. They are run one after the other here."""

    more_options = {"threads": 4, "allow_unenforced_timeouts": True}

    def take(self, count: int) -> list[Taken]:
        self.worker._settle(claims_count=count)
        found = []
        while self.worker._ahead.claims:
            found.append(self.worker._take_job())
        return [pair for pair in found if pair]

    def meet(self, fate: str, job: Any, queue: Any) -> None:
        super().meet("fails" if fate == "hangs" else fate, job, queue)  # threads have no time limit


class InLoop(Actor):
    """A worker with an event loop: it claims several jobs in one call, and records several successes in one."""

    worker_class = AsyncWorker

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        worker: Any = self.worker
        worker._begin_loop(new_event_loop())
        worker._client = async_client(worker.connection, 4)
        worker._is_callback_async, worker._runs_jobs = True, False
        self.loop_worker = worker

    def take(self, count: int) -> list[Taken]:
        found: list[Taken] = self.drive(self._take(count))
        return found

    async def _take(self, count: int) -> list[Taken]:
        found = await self.loop_worker._exchange_claims(count)
        accepted = [await self.loop_worker._accept(one) for one in found]
        jobs = [pair for pair in accepted if pair]
        await self.loop_worker._load([job for _, job in jobs])
        return jobs

    def end(self, taken: Sequence[Taken], fates: Sequence[str]) -> None:
        chosen = {id(job): fate for (_, job), fate in zip(taken, fates, strict=True)}

        async def callback(job: Any, queue: Any) -> None:
            if chosen[id(job)] == "hangs" and job.run_option("job_timeout"):
                await asyncio.Event().wait()
            self.meet(chosen[id(job)], job, queue)

        self.worker.callback = callback
        self.drive(self._end(taken))

    async def _end(self, taken: Sequence[Taken]) -> None:
        """Send the successes together, once all other jobs have ended."""
        worker = self.loop_worker
        tasks = {asyncio.ensure_future(worker._process_taken(queue, job)) for queue, job in taken}
        for task in tasks:
            task.add_done_callback(lambda _: worker._woken.set())
        while left := [task for task in tasks if not task.done()]:
            worker._woken.clear()
            if len(worker._ahead.unsent) < len(left):
                await worker._woken.wait()
            else:
                await worker._exchange_claims(0)
                await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.result()

    def close(self) -> None:
        self.drive(self.loop_worker._client.aclose())
        self.loop_worker._close_loop(self.loop_worker._loop)
        self.loop_worker._end_loop()


CASTS: dict[str, tuple[type[Actor], type[Actor], type[Actor]]] = {
    "one at a time": (Actor, Actor, Actor),
    "threads": (ManyAtOnce, ManyAtOnce, ManyAtOnce),
    "event loops": (InLoop, InLoop, InLoop),
    "all kinds": (Actor, ManyAtOnce, InLoop),
}


class Books(RuleBasedStateMachine):
    """Clients: this process as producer, and three workers that are stepped by hand."""

    cast = CASTS["one at a time"]

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[Actor, Any, Any]] = []
        self.actors: list[Actor] = []

    @initialize()
    def start(self) -> None:
        MachineJob.database.connection.flushdb()
        retries: tuple[dict[str, Any], ...] = (
            {"requeue_times": 0},
            {"requeue_times": 3},
            {"requeue_times": 3, "requeue_delay_delta": 500, "backoff": "exponential"},
        )
        self.actors = [actor(**options) for actor, options in zip(self.cast, retries, strict=True)]

    def teardown(self) -> None:
        for actor in self.actors:
            actor.close()

    def worker(self, who: int) -> Worker:
        return self.actors[who % len(self.actors)].worker

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
        retries=st.sampled_from(
            [
                {},
                {},
                {"job_timeout": 0.01},
                {"requeue_times": 2, "backoff": [0, 500]},
                {"requeue_times": 2, "no_retry_on": ["ValueError"]},
                *LIMITS,
                *LIMITS,
            ]
        ),
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
        retries: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        before = {job.ident: job.hgetall() for job in self.jobs(STATUSES.RUNNING)}
        options = {"prepend": prepend, "delayed_for": delay, "expires": expires, **retries}
        job = model.add_job(identifier, name, priority, **options)
        assert job.identifier.hget() == identifier
        if job.ident in before:
            assert job.hgetall() == before[job.ident], "a running job is returned unchanged"

    @rule(
        identifier=identifiers,
        choice=st.sampled_from(uniqueness.CHOICES),
        unique_for=st.sampled_from([None, None, 500]),
        priority=priorities,
        delay=delays,
        prepend=st.booleans(),
        limits=st.sampled_from([{}, {"job_timeout": 5}, *LIMITS]),
    )
    def add_by_choice(
        self,
        identifier: str,
        choice: str,
        unique_for: int | None,
        priority: int,
        delay: int | None,
        prepend: bool,
        limits: dict[str, Any],
    ) -> None:
        before = {job.ident: job.hgetall() for job in self.jobs(STATUSES.RUNNING)}
        is_queued = bool(MachineJob.collection(identifier=identifier, queued="1"))
        options = {"prepend": prepend, "delayed_for": delay, "if_queued": choice, "unique_for": unique_for, **limits}
        try:
            job = MachineJob.add_job(identifier, "mail", priority, cancel_on_error=priority, **options)
        except JobAlreadyQueued as error:
            assert choice == "raise" and (error.is_queued or unique_for) and is_queued >= error.is_queued
            return
        assert job.identifier.hget() == identifier
        if job.ident in before:
            assert choice in ("keep", "replace") and job.hgetall() == before[job.ident]
        elif (
            choice == "replace" and job.status.hget() in (STATUSES.WAITING, STATUSES.DELAYED) and not self.is_held(job)
        ):
            assert job.cancel_on_error.hget() == str(priority)

    @rule(
        identifier=identifiers,
        numbers=st.lists(picks, max_size=3),
        policy=st.sampled_from(["cancel", "run", "wait"]),
        delay=delays,
    )
    def add_after(self, identifier: str, numbers: list[int], policy: str, delay: int | None) -> None:
        after = {job.ident: job for number in numbers if (job := self.pick(number))}
        before = {job.ident for job in self.jobs()}
        job = MachineJob.add_job(identifier, "mail", after=after.values(), if_parent_fails=policy, delayed_for=delay)
        if job.ident not in before:
            assert job.parents.smembers() == after.keys()
            assert (job.status.hget() == STATUSES.BLOCKED) == bool(job.waits_for.scard())

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

    @rule(who=picks)
    def fill_a_limit(self, who: int) -> None:
        for identifier in "abcd":
            self.add(MachineJob, identifier, "mail", 10, True, None, retries=LIMITS[0])
        self.take(who, 4)
        self.take(who, 4)

    @rule()
    def cancel_whom_a_limit_has_called(self) -> None:
        places = MachineJob.database.connection.hgetall("jobs:limits:jobs")
        for ident in [ident for ident, text in places.items() if json.loads(text)["state"] == "called"]:
            Job.get_from_ident(ident).cancel()

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

    @rule(model=st.sampled_from(MODELS), identifier=identifiers, fate=fates, times=st.sampled_from([0, 2]))
    def execute(self, model: Any, identifier: str, fate: str, times: int) -> None:
        """At once; one that hangs dies with its process."""
        MachineJob.fate = fate
        if fate == "hangs":
            at_once._AtOnceInThread(at_once.to_order(model, identifier, None, None, {}))._make()
        else:
            job = model.execute_now(identifier, requeue_times=times)
            assert job.status.hget() == (STATUSES.SUCCESS if fate == "succeeds" else STATUSES.ERROR)

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
                assert is_held or job.status.hget() == STATUSES.BLOCKED
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
                assert is_held or job.status.hget() == STATUSES.BLOCKED
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
        if job and not job.queued.hget() and not self.is_held(job):
            job.delete()

    # --- Pauses

    @rule(name=names)
    def pause(self, name: str) -> None:
        admin.pause(name)

    @rule(name=names)
    def resume(self, name: str) -> None:
        was_paused = name in admin.paused()
        assert admin.resume(name) == was_paused

    # --- An operator

    @rule(number=picks, name=names, priority=priorities, act=st.sampled_from(["requeue", "move", "delete"]))
    def act_as_an_operator(self, number: int, name: str, priority: int, act: str) -> None:
        if job := self.pick(number):
            is_held = self.is_held(job)
            try:
                if act == "delete":
                    admin.delete(job.ident)
                else:
                    getattr(admin, act)(job.ident, name, priority)
            except JobNotInStatus as error:
                assert is_held or error.status in (STATUSES.BLOCKED, STATUSES.RUNNING) or act != "delete"
            except JobAlreadyQueued:
                assert self.has_rival(job)
            else:
                assert not is_held or act == "requeue"

    @rule(number=picks)
    def settle(self, number: int) -> None:
        """The repair agrees with the check: nothing is wrong."""
        if job := self.pick(number):
            call = transitions.settle("jobs", job.ident, [], [])
            assert transitions.send(job.connection, call).steps == ()

    # --- Workers

    @rule(who=picks, count=counts)
    def take(self, who: int, count: int) -> None:
        actor, paused = self.actors[who % len(self.actors)], admin.paused()
        found = actor.take(count)
        assert not [queue for queue, _ in found if queue.name.hget() in paused], "nothing is taken from a paused queue"
        self.running += [(actor, *pair) for pair in found]

    @rule(who=picks, fate=fates)
    def take_and_end(self, who: int, fate: str) -> None:
        """The plain case, often, so that a run gets somewhere."""
        self.take(who, 1)
        if self.running:
            self.end(len(self.running) - 1, [fate])

    @rule(who=picks, fates=st.lists(fates, min_size=4, max_size=4))
    def take_several_and_end_them(self, who: int, fates: list[str]) -> None:
        self.take(who, 4)
        if self.running:
            self.end(len(self.running) - 1, fates)

    @rule(identifier=identifiers, who=picks)
    def add_and_fail(self, identifier: str, who: int) -> None:
        self.add(MachineJob, identifier, "mail", 10, True, None)
        self.take_and_end(who, "fails")

    def next_running(self, number: int) -> tuple[Actor, Any, Any]:
        return self.running.pop(number % len(self.running))

    def next_of_one_worker(self, number: int, count: int) -> tuple[Actor, list[Taken]]:
        """Up to so many jobs of the same worker; none of them is there twice."""
        chosen = self.running[number % len(self.running)][0]
        found: dict[str, tuple[Actor, Any, Any]] = {}
        for entry in reversed(self.running):
            if entry[0] is chosen and len(found) < count:
                found.setdefault(entry[2].ident, entry)
        self.running = [entry for entry in self.running if not any(entry is one for one in found.values())]
        return chosen, [(queue, job) for _, queue, job in found.values()]

    @precondition(lambda self: self.running)
    @rule(number=picks, fates=st.lists(fates, min_size=1, max_size=4))
    def end(self, number: int, fates: list[str]) -> None:
        """One job ends, or several of a worker do, together where it does so."""
        actor, taken = self.next_of_one_worker(number, len(fates))
        before = [
            (job.status.hget(), job._claim is not None and self.holder(job) == job._claim.token) for _, job in taken
        ]
        actor.end(taken, fates[: len(taken)])
        for (_, job), fate, (status, is_ours) in zip(taken, fates, before, strict=False):
            self.check_end(job, fate, status, is_ours)

    @staticmethod
    def check_end(job: Any, fate: str, before: str, is_ours: bool) -> None:
        fails = fate != "succeeds"
        if is_ours and before == STATUSES.CANCELED:
            assert job.status.hget() == (STATUSES.ERROR if fails and job._is_written else STATUSES.CANCELED)
        elif is_ours and before == STATUSES.RUNNING and not fails:
            assert job.status.hget() == STATUSES.SUCCESS
        elif is_ours and before == STATUSES.RUNNING:
            assert job.status.hget() in (STATUSES.ERROR, STATUSES.WAITING, STATUSES.DELAYED)
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
    @rule(number=picks, count=counts)
    def end_at_once(self, number: int, count: int) -> None:
        """A worker gives back what runs, as at SIGQUIT."""
        actor, taken = self.next_of_one_worker(number, count)
        jobs = [job for _, job in taken if job._claim is not None]
        ours = [job for job in jobs if self.holder(job) == job._claim.token]
        running = {job.ident: tries_of(job) for job in ours if job.status.hget() == STATUSES.RUNNING}
        given_back = actor.worker._give_back([job._claim.token for job in jobs])
        assert running.keys() <= set(given_back) <= {job.ident for job in ours}
        for job in ours:
            if job.ident in running:
                assert job.status.hget() == STATUSES.WAITING
                assert tries_of(job) == running[job.ident] - 1

    @rule(who=picks, name=st.sampled_from(["success", "errors"]), keep=st.sampled_from([0, 1, 3, timedelta()]))
    def shorten_the_histories(self, who: int, name: str, keep: Any) -> None:
        unfinished = self.unfinished()
        for queue in Queue.get_all(NAMES):
            self.worker(who)._retention._trim_history(queue.key.rpartition(":")[0], name, keep)
        assert unfinished == self.unfinished()

    def unfinished(self) -> set[str]:
        """Without what is BLOCKED: that ends with a record that it waits for."""
        return {job.ident for job in self.jobs() if job.queued.hget() and job.status.hget() != STATUSES.BLOCKED}

    @rule(number=picks, who=picks)
    def forget_a_job(self, number: int, who: int) -> None:
        """The time of being kept of a job is over: it goes if it has ended, and only then."""
        if job := self.pick(number):
            has_ended = not job.queued.hget() and not self.is_held(job)
            MachineJob.database.connection.zadd("jobs:expiring", {job.ident: 1})
            self.worker(who)._expiring.trim()
            assert has_ended == (job.pk.get() not in type(job).collection())
            assert not MachineJob.database.connection.exists("jobs:expiring")

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def vanish_between_error_and_requeue(self, number: int) -> None:
        actor, queue, job = self.next_running(number)
        if job._cached_status == STATUSES.WAITING:
            with contextlib.suppress(LeaseLost):
                actor.drive(actor.worker._write_error(job, queue, ValueError("boom"), None))

    @precondition(lambda self: self.running)
    @rule(number=picks)
    def repeat_the_end(self, number: int) -> None:
        """The reply of the first was lost."""
        actor, queue, job = self.next_running(number)
        if job._claim is None:
            return
        call = transitions.finish("jobs", job._claim, str(utcnow()))
        length = queue.success.llen()
        try:
            first = actor.worker._send_call(call)
        except LeaseLost:
            return
        if first.kind == "OK":
            assert actor.worker._send_call(call).kind == "ALREADY"
            assert queue.success.llen() == length + 1

    @precondition(lambda self: self.running)
    @rule(number=picks, percent=st.integers(min_value=0, max_value=100))
    def say_how_far(self, number: int, percent: int) -> None:
        job = self.running[number % len(self.running)][2]
        assert job.update(percent) == (job._claim is None or self.holder(job) == job._claim.token)

    # --- Time

    @rule()
    def leases_lapse(self) -> None:
        client = MachineJob.database.connection
        for ident in client.zrange("jobs:leases", 0, -1):
            client.zadd("jobs:leases", {ident: 1})

    @rule(who=picks)
    def recover(self, who: int) -> None:
        self.worker(who)._recover_lapsed()

    @rule()
    def delayed_jobs_become_due(self) -> None:
        client, now = MachineJob.database.connection, time.time()
        for name in NAMES:
            for queue in Queue.get_all(name):
                for ident in queue.delayed.zmembers():
                    client.zadd(queue.delayed.key, {ident: now - 10.5})
                    client.zadd(f"jobs:due:queue:{name}", {queue.pk.get(): now - 10.5})

    @rule()
    def rates_allow_more(self) -> None:
        client = MachineJob.database.connection
        client.delete("jobs:limit:starts:rate")
        if client.zscore("jobs:limits:due", "starts") is not None:
            client.zadd("jobs:limits:due", {"starts": 1})

    @rule(who=picks)
    def promote(self, who: int) -> None:
        self.worker(who).requeue_delayed_jobs()

    # --- What holds after each step

    @invariant()
    def the_books_are_right(self) -> None:
        assert [str(problem) for problem in admin.check()] == []

    @invariant()
    def no_more_run_than_may_and_nobody_waits_for_a_place_that_is_free(self) -> None:
        client = MachineJob.database.connection
        places = [json.loads(text) for text in client.hvals("jobs:limits:jobs")]
        for key in ("places", "starts"):
            states = [place["state"] for place in places if place["key"] == key]
            assert states.count("held") <= 2
            assert key == "starts" or "parked" not in states or {"held", "called"}.intersection(states)

    @invariant()
    def results_go_with_ends(self) -> None:
        for job in self.jobs():
            if job.saved_result.get() is not None:
                assert job.connection.hget(job.key, "status") in (STATUSES.SUCCESS, STATUSES.CANCELED)


def tries_of(job: Any) -> int:
    """As it is by now: what a worker with an event loop has read of its job is older."""
    return int(job.connection.hget(job.key, "tries") or 0)


def statuses() -> dict[str, str]:
    found = [model.from_pk(pk) for model in MODELS for pk in model.collection()]
    return {job.ident: job.connection.hget(job.key, "status") for job in found}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cast", CASTS)
def test_the_books_are_right_after_any_sequence(cast: str, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send, changing = transitions.send, threading.RLock()

    def checked_send(client: Any, call: transitions.Call[Any]) -> Any:
        """Each transition leads from a status to one that may follow it; `write` is what users do by hand."""
        if call.script == "write":
            return send(client, call)
        with changing, checking(call):  # in several threads; two changes would look like one
            return send(client, call)

    async def checked_asend(client: Any, call: transitions.Call[Any]) -> Any:
        return checked_send(MachineJob.database.connection, call)  # at once, so that what runs repeats itself

    monkeypatch.setattr(transitions, "send", checked_send)
    monkeypatch.setattr(transitions, "asend", checked_asend)
    count = 8 if settings.default.derandomize else 100  # who looks for new ones has time
    run_state_machine_as_test(
        type("BooksOfThese", (Books,), {"cast": CASTS[cast]}),
        settings=settings(
            max_examples=count, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def counted() -> Counter[str]:
    """How many were counted by now, by the letter of the kind."""
    client, found = MachineJob.database.connection, Counter[str]()
    for key in client.scan_iter("jobs:numbers:[0-9]*", count=1000):
        for name, text in client.hgetall(key).items():
            found[name[0]] += int(text) // numbers.ONE if name[1] != " " else int(text)
    return found


@contextlib.contextmanager
def checking(call: transitions.Call[Any]) -> Iterator[None]:
    before, counted_before = statuses(), counted()
    try:
        yield
    finally:
        changes = []
        for ident, status in statuses().items():
            former = before.get(ident)
            assert former in (None, status) or status in FOLLOWERS[former], (
                f"{call.script}: {ident}: {former} to {status}"
            )
            changes += [(former, status)] if status != former else []
        check_counts(call, Counter(changes), counted() - counted_before)


def check_counts(call: transitions.Call[Any], changes: Counter[Any], counted: Counter[str]) -> None:
    """What happened was counted, and no more."""

    def happened(*letters: str) -> int:
        return sum(count for (_, status), count in changes.items() if status in letters)

    new = sum(count for (former, _), count in changes.items() if former is None)
    started = happened(STATUSES.RUNNING) + changes[STATUSES.WAITING, STATUSES.SUCCESS]
    facts = f"{call.script}: {dict(changes)}, counted: {dict(counted)}"
    assert (counted["a"], counted["s"], counted["e"]) == (new, happened("s"), happened("e")), facts
    # the run of a job that was canceled since it was claimed ahead is told with its end
    assert counted["w"] == started or (call.script == "exchange" and counted["w"] > started), facts
