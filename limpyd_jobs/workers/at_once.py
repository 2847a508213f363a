"""Jobs that are run by whoever makes them, at once: a worker for one job, which it has not claimed from any queue."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from .. import recipes, transitions
from ..aio import async_client
from ..exceptions import InvalidArgument, JobNotInStatus, LimpydJobsException
from ..models import Job, executors
from ..retries import Retries
from ..statuses import STATUSES
from ..transitions import Claim, End, Ended
from ..utils import now_text
from .asynchronous import CONNECTIONS, AsyncWorker
from .blocking import Worker
from .life import JobLife

NOT_OF_THE_JOB = (KeyboardInterrupt, asyncio.CancelledError)  # they are meant for whoever called, too
RESULT_SECONDS = 3600.0
# What `add_job` takes that says something of a place in a queue, of others that are queued, or of a turn to wait for.
IN_QUEUES_ONLY = (
    "after",
    "delayed_for",
    "delayed_until",
    "expires",
    "if_parent_fails",
    "if_queued",
    "limit_key",
    "max_concurrency",
    "prepend",
    "rate_limit",
    "retry_for",
    "unique_for",
)


@dataclass(frozen=True)
class Order:
    """A job to be executed: all that it will be, checked.

    Attributes:
        queue: for its hooks and its history; None for none.
        queue_model: of it, or of those that there could be.
    """

    model: Any
    queue_model: Any
    identifier: str
    queue: Any
    queue_name: str
    record: recipes.Record
    start: str


def to_order(model: Any, identifier: str | None, queue_name: str | None, queue_model: Any, fields: Any) -> Order:
    """Take the arguments of `Job.execute_now`.

    Raises:
        InvalidArgument: one is not accepted.
    """
    left_out = [name for name in IN_QUEUES_ONLY if Job.has_field(name) or not model.has_field(name)]
    for name in left_out:
        if fields.get(name) is not None:
            raise InvalidArgument(name, fields[name], "left out: a job that is executed at once is in no queue")
    text = recipes.to_text("identifier", os.urandom(8).hex() if identifier is None else identifier)
    queue_model, start = model._get_queue_model(queue_model), now_text()
    is_named = queue_name is not None or bool(model.queue_name)
    name = model._get_queue_name(queue_name) if is_named else ""
    way = model._known_way(queue_model, name or "-", 0)  # of which only what it makes of the fields is used
    said = way.with_run_options(fields)
    given = {name: value for name, value in said.items() if name not in left_out}  # that its class says, or None
    own = {"identifier": text, "status": STATUSES.RUNNING, "tries": 1, "start": start}
    record = recipes.Record(model, {"added": start, **given, **own})
    return Order(model, queue_model, text, queue_model.get_queue(name) if name else None, name, record, start)


class _AtOnce(JobLife):
    """What the workers for one job have in common."""

    runs_for_caller = True

    def __init__(self, order: Order) -> None:
        super().__init__([order.queue_name or "-"], queue_model=order.queue_model, terminate_gracefuly=False)
        self._order = order
        self._may_claim_early = False  # by anybody who asks
        self.run_defaults.setdefault("save_result", RESULT_SECONDS)  # whoever waits for its end wants to know
        self._next: Claim | None = None  # of the job, which is to run again
        self.error: BaseException | None = None  # that the job ended with

    def set_logger(self) -> None:
        """Leave the level of the logger to the program."""
        self.logger = logging.getLogger(self.logger_name)

    def _make(self) -> Any:
        """Create the job, which this worker holds from then on."""
        order, model = self._order, self._order.model
        token, lease = self._token(1), model.lease_seconds or self.lease_seconds
        call = transitions.execute(
            self._namespace, model._class_subject(), token, lease, order.record.text, order.queue_name
        )
        pk = model._send(call, model.retry_for)
        job = model.from_pk(pk)
        queue_key = f"{order.queue._name}:{order.queue.pk.get()}" if order.queue is not None else ""
        claim = Claim(
            job.ident,
            token,
            self._worker_key,
            queue_key,
            order.queue_name,
            STATUSES.WAITING,
            order.identifier,
            tries=1,
            start=order.start,
            lease_seconds=lease,
        )
        self._hold(claim)
        order.record.write_late(job)
        return self._held_by(job, claim)

    def _held_by(self, job: Any, claim: Claim) -> Any:
        job._claim, job._cached_status, job._began = claim, STATUSES.WAITING, now_text()
        return job

    def _next_try(self) -> Any:
        """The job, to be run once more; None when it has ended."""
        claim, self._next = self._next, None
        if claim is None:
            return None
        self.error = None
        return self._held_by(self._order.model.from_pk(claim.ident.partition(":")[2]), claim)

    @staticmethod
    def _place_of(job: Any, queue: Any) -> str:
        """As each message about a job begins; without a queue there is a dash."""
        return Worker._place_of(job, queue) if queue is not None else f"[-|{job.pk.get()}|{job.identifier.hget()}]"

    async def _end_in_error(
        self, queue: Any, job: Any, exception: BaseException, trace: str | None, is_ours: bool
    ) -> None:
        self.error = exception
        await super()._end_in_error(queue, job, exception, trace, is_ours)

    def _retries_of(self, job: Any) -> Retries:
        """As for any worker, but that a job which asks for it is not tried for ever."""
        found = super()._retries_of(job)
        if found.requeue_times is not None:
            return found
        return replace(found, requeue_times=len(found.backoff.delays) if found.backoff else 0)

    async def _must_not_be_requeued(self, job: Any) -> bool:
        return isinstance(self.error, NOT_OF_THE_JOB) or await super()._must_not_be_requeued(job)

    async def _finish(self, job: Any, end: End) -> Ended:
        return await JobLife._finish(self, job, end)

    async def _requeue(self, job: Any, queue: Any, priority: int, delayed_for: float | timedelta | None) -> None:
        """There is no queue to put it in: it runs again, in the hands of this worker, which does not wait."""
        claim, start = job._claim, now_text()
        token = self._token(claim.tries + 1)
        ended = await self._end_alone(transitions.retry(self._namespace, claim, token, start))
        if ended.kind == "CHANGED":
            raise JobNotInStatus(claim.ident, ended.status, "retry")
        job._last_claim, job._claim = claim, None
        if ended.kind == "GONE":
            return
        self._next = claim._replace(token=token, start=start, tries=claim.tries + 1)
        self._hold(self._next)
        await self._repair(ended.changes)
        await self._call_job_hook(job, "on_requeued", queue)
        await self._log_message(job, self.job_requeue_message, queue, outcome="requeued")

    async def _skip_canceled(self, job: Any, queue: Any, refused: JobNotInStatus) -> None:
        """As for any worker; but nobody has let go of the job yet."""
        if refused.status != STATUSES.CANCELED:
            raise refused
        job._cached_status = STATUSES.CANCELED
        await self._pass_over(queue, job)

    async def _queue_name_for(self, job: Any, queue: Any) -> str:
        """Of a job that asks to be delayed.

        Raises:
            LimpydJobsException: it has none.
        """
        if not self._order.queue_name:
            raise LimpydJobsException(f"{self._ident_of(job)} cannot be delayed: it was executed without a queue")
        return self._order.queue_name

    def _must_give_up(self) -> bool:
        """Has the end been tried for as long as a producer tries?"""
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._order.model.retry_for
        return time.monotonic() > self._give_up_at

    def _give_back_held(self) -> None:
        """There is nowhere to give it back to."""

    def _outcome(self, job: Any, raises: bool) -> Any:
        """The job; or its exception, if that is wanted, or is no matter of the job alone."""
        if self.error is not None and (raises or isinstance(self.error, NOT_OF_THE_JOB)):
            raise self.error
        return job


class _AtOnceInThread(_AtOnce, Worker):
    """Runs one job in the thread that asks for it."""

    def execute_order(self) -> Any:
        """Make the job, and run it until it has ended."""
        heartbeat = self._heartbeat = self._new_heartbeat()
        job = next_one = self._make()
        heartbeat.start()
        try:
            while next_one is not None:
                job = next_one
                self._drive(self._process_taken(self._order.queue, job))
                next_one = self._next_try()
        finally:
            heartbeat.stop()
        return job


class _AtOnceInLoop(_AtOnce, AsyncWorker):
    """Runs one job in the event loop that asks for it."""

    async def execute_order(self) -> Any:
        """As in a thread."""
        self._begin_loop(asyncio.get_running_loop())
        self._client = async_client(self.connection, CONNECTIONS)
        heartbeat = self._heartbeat = self._new_heartbeat()
        try:
            job = next_one = await asyncio.to_thread(self._make)
            heartbeat.watch_canceled(self._cancel_from_thread)
            heartbeat.start()
            try:
                while next_one is not None:
                    job = next_one
                    await self._load([job])
                    await self._process_taken(self._order.queue, job)
                    job._loaded = None
                    next_one = self._next_try()
            finally:
                await asyncio.to_thread(heartbeat.stop)
        finally:
            await self._client.aclose()
            self._end_loop()
        return job


def execute(
    model: Any, identifier: str | None, queue_name: str | None, queue_model: Any, raises: bool, fields: Any
) -> Any:
    """See `Job.execute_now`."""
    worker = _AtOnceInThread(to_order(model, identifier, queue_name, queue_model, fields))
    return worker._outcome(worker.execute_order(), raises)


async def aexecute(
    model: Any, identifier: str | None, queue_name: str | None, queue_model: Any, raises: bool, fields: Any
) -> Any:
    """See `Job.aexecute_now`."""
    make = partial(to_order, model, identifier, queue_name, queue_model, fields)
    worker = _AtOnceInLoop(await asyncio.to_thread(make))
    return worker._outcome(await worker.execute_order(), raises)


executors.execute, executors.aexecute = execute, aexecute
