"""What a worker does with a job that it has taken, whichever way it waits: in its thread, or in an event loop.

The steps are coroutines. A worker that runs jobs in its threads goes through them with `run_now`, where nothing ever
waits for an event loop; one that runs them in a loop awaits them. What differs is in a few methods: `_send`, `_pause`,
`_apart`, `_invoke`, `_call`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from redis.exceptions import RedisError

from .. import recipes, transitions
from ..database import is_outage
from ..exceptions import (
    ConfigurationException,
    DatabaseException,
    JobNotInStatus,
    LeaseLost,
    LimpydJobsException,
    Retry,
)
from ..instruments import Around, around, instruments
from ..models import Error, Job, _overrides, class_name, repair_indexes, running_job
from ..outcomes import not_stored_text
from ..retries import Retries
from ..statuses import STATUSES
from ..transitions import Claim, End, Ended
from ..utils import now_text, parse_datetime, score_to_datetime, server_seconds
from . import sentry
from .base import format_trace
from .claiming import LAST_TRIES_SECONDS, Claiming
from .logs import facts_of

T = TypeVar("T")

DELAY_SECONDS = 60  # of a job that asks to be delayed and does not say until when


class StatusChanged(BaseException):  # so that no `except Exception` of an override takes it
    """The job was canceled or delayed while it ran: no success is recorded."""

    def __init__(self, status: str) -> None:
        self.status = status


def run_now(steps: Coroutine[Any, Any, T]) -> T:
    """Go through the steps of a worker that waits for no event loop."""
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    steps.close()
    raise RuntimeError("a step waits for an event loop: it belongs to an AsyncWorker")


def has_method(job: Any, name: str) -> bool:
    """Has a job a hook of its own? Without asking for it: a model looks for what it has not among its fields."""
    return hasattr(type(job), name) or name in job.__dict__


def as_raised(error: BaseException) -> BaseException:
    """What a job has raised: Python makes a RuntimeError of a StopIteration that leaves a coroutine, as a step is."""
    if type(error) is RuntimeError and isinstance(error.__cause__, StopIteration):
        return error.__cause__ if error.args == ("coroutine raised StopIteration",) else error
    return error


class JobLife(Claiming):
    """From a taken job to its end: what is called, written, logged. `Worker` and `AsyncWorker` take the jobs."""

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        super().__init__(queues, **kwargs)
        self._give_up_at: float | None = None  # trying to record an end; once for all that is left to record
        self._was_interrupted = False
        self._has_own_success = _overrides(type(self), JobLife, "job_success")
        self._has_own_start = _overrides(type(self), JobLife, "job_started")

    # --- What depends on how a worker waits

    def _do(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """What a hook of this worker answers to its caller: its steps are done, or to be awaited."""
        raise NotImplementedError

    async def _send(self, call: transitions.Call[Any]) -> Any:
        """Send a transition."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Wait, until the worker is to end at most."""
        raise NotImplementedError

    async def _apart(self, work: Callable[[], Any]) -> Any:
        """Do something that may wait for Redis, as models do, where it holds up nothing else."""
        raise NotImplementedError

    async def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what a subclass may have replaced, or a method of the job; it may be a coroutine function."""
        raise NotImplementedError

    async def _call(self, job: Any, queue: Any) -> Any:
        """Call the callback, or the `run` of the job."""
        raise NotImplementedError

    # --- What depends on whether it claims ahead

    async def _begin(self, job: Any, queue: Any) -> bool:
        """A job that was claimed ahead is to run now: may it?"""
        return True

    def _note_begun(self, job: Any, queue: Any) -> None:
        """Note in Redis that a job that was claimed ahead runs."""

    def _ends_together(self, job: Any) -> bool:
        """May the end of a job be sent with others, after the next ones have begun?"""
        return False

    def _end_later(self, job: Any, queue: Any, result: Any) -> None:
        """Leave the end of a job to be sent with others."""

    # --- Running a job

    async def _process_taken(self, queue: Any, job: Any) -> None:
        """Do with a taken job what its status says."""
        claim = job._claim
        self._at_work[id(job)] = job
        try:
            if not job._cached_status:
                job._cached_status = await self._apart(job.status.hget)
            if job._cached_status == STATUSES.WAITING:
                await self._run_job(queue, job)
            else:
                await self._pass_over(queue, job)
        finally:
            self._at_work.pop(id(job), None)
            if claim is not None:
                self._take_slot_back(claim)
            if not job._ends_later:  # else it is kept until its end is recorded
                if claim is not None:
                    self._let_go(claim)
                job._drop_fields()

    async def _pass_over(self, queue: Any, job: Any) -> None:
        """Delay a job whose status asks for it, or let go of it."""
        if job._cached_status == STATUSES.DELAYED:
            await self._call_hook(job, queue, self.job_delayed)
            await self._settle_end(job, queue, self._write_delay)
        else:
            await self._call_hook(job, queue, self.job_skipped)
            await self._settle_end(job, queue, self._write_skip)

    async def _run_job(self, queue: Any, job: Any) -> None:
        if job._is_ahead and not await self._begin(job, queue):
            return
        if self._looks_at_start(job):
            await self._call_hook(job, queue, self.job_started)
        is_ours = job._claim is not None
        self._was_interrupted = False
        outer = running_job.set(job)
        try:
            is_seen = instruments or sentry.MODULE in sys.modules
            try:
                result = await (self._call_seen(job, queue) if is_seen else self._call(job, queue))
            finally:
                job._has_run = True
        except StatusChanged as changed:  # it was ended as it is canceled
            job._cached_status = changed.status
            await self._pass_over(queue, job)
        except BaseException as exception:  # of every kind: what a job raises is its error, not the end of the worker
            if self._must_not_be_caught(exception):
                if self._is_this_process and job._claim:
                    self._give_back_held()
                raise
            error = as_raised(exception)
            trace = (job._trace or format_trace(error)) if self.save_tracebacks else None
            try:
                await self._end_in_error(queue, job, error, trace, is_ours)
            finally:
                del error  # whose traceback holds this frame
        else:
            if not self._is_this_process:
                raise SystemExit  # a process that the job has forked: the end of the job is not its business
            await self._end_in_success(queue, job, result, is_ours)
        finally:
            running_job.reset(outer)

    async def _call_seen(self, job: Any, queue: Any) -> Any:
        with self._around(job, queue):
            return await self._call(job, queue)

    def _around(self, job: Any, queue: Any) -> Around:
        """What instruments put around the call of a job; most of those of an isolated one are in its own process."""
        return self._instruments_around(job, queue, True if self._is_isolated(job) else None)

    def _instruments_around(self, job: Any, queue: Any, is_outside: bool | None) -> Around:
        return around(job, queue, self, is_outside, sentry.sentry_instruments())

    def _looks_at_start(self, job: Any) -> bool:
        """Does anybody learn that a job begins? Most often nobody does, and these steps are left out."""
        is_told = self._has_own_start or self._is_heard("info") or has_method(job, "on_started")
        return is_told or job._claim is None

    async def _end_in_error(
        self, queue: Any, job: Any, exception: BaseException, trace: str | None, is_ours: bool
    ) -> None:
        self.num_errors += 1
        if is_ours and job._claim is None:
            is_queued = job._cached_status != STATUSES.CANCELED
            await self._log_error(job, queue, is_queued, exception, trace)
            await self._moved_itself(job, queue)
            return
        if job._is_ahead:
            await self._call_hook(job, queue, self._note_begun)
            if job._claim is None:
                return
        await self._call_hook(job, queue, self.job_error, exception, trace)
        await self._settle_end(job, queue, self._write_plain_error, exception, trace)

    async def _end_in_success(self, queue: Any, job: Any, result: Any, is_ours: bool) -> None:
        """Success, unless the job was canceled or delayed meanwhile: a plain worker learns that from the transition."""
        if is_ours and job._claim is None:
            await self._moved_itself(job, queue)
            return
        job._extra = self._extra_of(job, result)
        if self._ends_together(job):
            self._end_later(job, queue, result)
            return
        try:
            if self._has_own_success:
                self._raise_if_changed(await self._apart(job.status.hget))
            await self._call_hook(job, queue, self.job_success, result)
            if job._claim is not None:
                await self._settle_end(job, queue, self._write_success)
        except StatusChanged as changed:
            job._cached_status = changed.status
        if job._cached_status in (STATUSES.CANCELED, STATUSES.DELAYED):
            await self._pass_over(queue, job)

    # --- What is stored with a success

    def _extra_of(self, job: Any, result: Any) -> str:
        """What is stored with the success of a job, for its End: its result, if that is to be saved."""
        own = job.run_option("save_result") if job._says_how_to_run else None
        kept = self.run_defaults.get("save_result") if own is None else own
        if not kept or not recipes.has_saved_result(type(job)):
            return ""
        return transitions.extra_text(self._result_text(job, result), None if kept is True else kept)

    def _result_text(self, job: Any, result: Any) -> str:
        """What is stored of a result; of one that cannot be, why: the work is done, and must not be done again."""
        reason: str | None = job._lost_result
        if reason is None:
            try:
                return str(job._result_text(result))
            except LimpydJobsException as error:
                reason = str(error)
        self._log_about(job, f"{self._ident_of(job)}: its result is not stored: {reason}", level="error")
        return not_stored_text(reason)

    # --- What limits a run

    def _limit_of(self, job: Any) -> float | None:
        """How long the run of a job may last, in seconds."""
        own: float | None = job.run_option("job_timeout") if job._says_how_to_run else None
        return self.run_defaults.get("job_timeout") if own is None else own

    def _is_isolated(self, job: Any) -> bool:
        own: bool | None = job._own_isolate()
        return self.isolate if own is None else own

    def _check_unenforced(self, seconds: float | None) -> None:
        """Refuse a job whose time is limited where nothing can end it, unless that is allowed."""
        if seconds is not None and not self.allow_unenforced_timeouts:
            raise ConfigurationException(
                f"job_timeout ({seconds:g} seconds) cannot be enforced in a thread: isolate the job, make it a "
                "coroutine, or set allow_unenforced_timeouts"
            )

    async def _moved_itself(self, job: Any, queue: Any) -> None:
        """The callback put the job in a queue again: that is where it stays, and this run records no end."""
        if job._cached_status == STATUSES.CANCELED:  # it wanted to, and was refused
            await self._pass_over(queue, job)
        else:
            message = f"{self._place_of(job, queue)} was put in a queue again by its own run"
            self._log_about(job, message, outcome="moved")

    @staticmethod
    def _raise_if_changed(status: str | None) -> None:
        if status in (STATUSES.CANCELED, STATUSES.DELAYED):
            raise StatusChanged(status)

    async def _call_hook(self, job: Any, queue: Any, hook: Callable[..., Any], *args: Any) -> None:
        """Call a hook of this worker; what it raises is logged, and ends nothing."""
        steps = STEPS.get(getattr(hook, "__func__", None))
        try:
            if steps is not None:
                await steps(self, job, queue, *args)
            else:
                await self._invoke(hook, job, queue, *args)
        except BaseException as error:
            await self._tell_raised(job, queue, hook.__name__, error)

    async def _guard(self, job: Any, queue: Any, name: str, doing: Awaitable[Any]) -> None:
        """As `_call_hook`, for something of ours."""
        try:
            await doing
        except BaseException as error:
            await self._tell_raised(job, queue, name, error)

    async def _tell_raised(self, job: Any, queue: Any, name: str, error: BaseException) -> None:
        """Tell of what a hook has raised, while that is handled; what must not be caught is raised again."""
        if isinstance(error, LeaseLost):
            await self._tell_lost_lease(job, queue, error)
            return
        if self._must_not_be_caught(error):
            raise error
        job._is_in_doubt = isinstance(error, RedisError)  # a requeue may be pending: then `recover` makes it
        self._log_exception(f"{self._ident_of(job)} raised, in {name}", job)

    def _must_not_be_caught(self, error: BaseException) -> bool:
        """Is it no error of a job or a hook: a message of ours, SIGINT, the end of a process that a job has forked?"""
        is_interrupt = self._was_interrupted and isinstance(error, KeyboardInterrupt)
        return is_interrupt or isinstance(error, StatusChanged) or not self._is_this_process

    async def _tell_lost_lease(self, job: Any, queue: Any, lost: LeaseLost) -> None:
        facts, job._claim = facts_of(job), None
        self._log_facts({**facts, "outcome": "lost"}, str(lost), level="warning")
        await self._call_job_hook(job, "on_lease_lost", queue)

    async def _log_error(
        self, job: Any, queue: Any, is_requeued: bool, exception: BaseException, trace: str | None
    ) -> None:
        facts = {"outcome": "error", "error": class_name(exception), "traceback": trace, "is_requeued": is_requeued}
        args = (queue, is_requeued, exception, trace)
        await self._log_message(job, self.job_error_message, *args, level="error", **facts)

    async def _log_message(
        self, job: Any, message: Callable[..., str], *args: Any, level: str = "info", **facts: Any
    ) -> None:
        """Log a message about a job; one that raises is logged itself, and ends nothing.

        Args:
            facts: what is told beside the message.
        """
        if not self._is_heard(level):
            return
        try:
            text = await self._invoke(message, job, *args)
        except BaseException as error:
            if self._must_not_be_caught(error):
                raise
            name = getattr(message, "__name__", message)
            self._log_exception(f"{self._ident_of(job)} raised, in {name}", job)
        else:
            run_time = job._run_time if "outcome" in facts else None
            if run_time is not None:
                facts["duration"] = run_time.total_seconds()
            self._log_about(job, text, level, **facts)

    async def _call_job_hook(self, job: Any, name: str, *args: Any) -> None:
        """Call a method of the job, if it has it; what it raises is logged, and ends nothing."""
        if not has_method(job, name):
            return
        try:
            await self._invoke(getattr(job, name), *args)
        except BaseException as error:
            if self._must_not_be_caught(error):
                raise
            self._log_exception(f"{self._ident_of(job)} raised, in {name}", job)

    # --- Recording an end

    async def _until_answered(self, send: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Record an end, again and again until Redis answers; each of these transitions is safe to repeat.

        A worker that must stop gives up after a while: the lease of the job lapses then, and it runs again.
        """
        while True:
            try:
                result = await send(*args)
            except (RedisError, DatabaseException) as error:
                if not is_outage(error):
                    raise
                if self._must_give_up():
                    raise
                await self._rest_after(error)
            else:
                self._give_up_at = None
                self._outage.end()
                return result

    async def _rest_after(self, error: Exception) -> None:
        """Redis cannot be used: wait, before it is tried again."""
        await self._pause(self._pause_after(error))

    def _must_give_up(self) -> bool:
        """Has a worker that must stop tried for long enough?"""
        if self.end_forced and self._give_up_at is None:
            self._give_up_at = time.monotonic() + LAST_TRIES_SECONDS
        return self._give_up_at is not None and time.monotonic() > self._give_up_at

    async def _end_alone(self, call: transitions.Call[Any]) -> Any:
        """Record the end of one job."""
        return await self._until_answered(self._send, call)

    async def _repair(self, changes: Any) -> None:
        if changes:
            await self._apart(lambda: repair_indexes(changes))

    async def _settle_end(self, job: Any, queue: Any, write: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Record the end of a job whose hook did not, because it is overridden or raised before it came to that."""
        if job._claim is None:
            return
        try:
            if not job._is_written:
                await write(job, queue, *args)
            if job._claim is not None and job._claim.worker and not job._is_in_doubt:  # else `recover` places it
                await self._write_skip(job, queue)
        except LeaseLost as lost:
            await self._tell_lost_lease(job, queue, lost)

    async def _write_skip(self, job: Any, queue: Any) -> None:
        ended = await self._end_alone(transitions.skip(self._namespace, self._claim_for(job, queue)))
        self._release_claim(job)
        await self._repair(ended.changes)

    def _claim_for(self, job: Any, queue: Any) -> Claim:
        """The claim on a job; one without a token for a job that was not taken from a queue by this worker."""
        return job._claim or Claim(job.ident, "", "", f"{queue._name}:{queue.pk.get()}")

    def _release_claim(self, job: Any) -> None:
        if job._claim is not None:
            self._let_go(job._claim)
        job._last_claim, job._claim = job._claim or job._last_claim, None

    # --- What becomes of a job: write, log, call

    def job_started(self, job: Any, queue: Any) -> Any:
        """A job is about to run: it is RUNNING."""
        return self._do(self._start(job, queue))

    async def _start(self, job: Any, queue: Any) -> None:
        if job._claim is None:  # taken by an override of wait_for_job
            await self._apart(lambda: self._write_start(job))
        await self._log_message(job, self.job_started_message, queue)
        await self._call_job_hook(job, "on_started", queue)

    @staticmethod
    def _write_start(job: Any) -> None:
        job.hmset(start=now_text(), status=STATUSES.RUNNING)
        job.tries.hincrby(1)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> Any:
        """A job ended well: it is in SUCCESS, and in the list `success` of its queue."""
        return self._do(self._succeed(job, queue, job_result))

    async def _succeed(self, job: Any, queue: Any, job_result: Any) -> None:
        await self._write_success(job, queue)
        if self._is_heard("info"):
            await self._log_message(job, self.job_success_message, queue, job_result, outcome="success")
        if has_method(job, "on_success"):
            await self._call_job_hook(job, "on_success", queue, job_result)

    async def _write_success(self, job: Any, queue: Any) -> None:
        self._note_begun(job, queue)
        claim = self._claim_for(job, queue)
        end = now_text()
        ended = await self._finish(job, End(claim, "", end, job._extra))
        if ended.kind == "CHANGED":
            raise StatusChanged(ended.status)
        job._ended = end
        self._take_note_of_success(job, claim, ended)
        if ended.changes:
            await self._repair(ended.changes)

    def _take_note_of_success(self, job: Any, claim: Claim, ended: Ended) -> None:
        job._cached_status, job._is_written = STATUSES.SUCCESS, True
        self._note_history(claim, "success", ended)
        self._release_claim(job)

    async def _finish(self, job: Any, end: End) -> Ended:
        """Record a success.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        ended: Ended = await self._end_alone(transitions.finish(self._namespace, end.held, end.end, end.extra))
        return ended

    def job_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None = None) -> Any:
        """A job failed: it is in ERROR, in the list `errors` of its queue, with an Error; then requeued, if allowed."""
        return self._do(self._fail(job, queue, exception, trace))

    async def _fail(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> None:
        ended = await self._write_error(job, queue, exception, trace)
        is_requeued = ended.to_be_requeued
        if not (is_requeued and isinstance(exception, Retry)):  # else it is no error, but a wish of the job
            await self._log_error(job, queue, is_requeued, exception, trace)
            await self._call_job_hook(job, "on_error", queue, exception, trace)
        if is_requeued:
            await self._requeue_failed(job, queue, ended, exception)

    async def _requeue_failed(self, job: Any, queue: Any, ended: Ended, exception: BaseException) -> None:
        wanted = int(ended.priority) + self.requeue_priority_delta
        priority = max(-recipes.MAX_PRIORITY, min(wanted, recipes.MAX_PRIORITY))
        delay = self._retries_of(job).delay(self._tries_of(job), exception)
        try:
            await self._invoke(self.requeue_job, job, queue, priority, delayed_for=delay)
        except JobNotInStatus as refused:
            await self._skip_canceled(job, queue, refused)

    async def _skip_canceled(self, job: Any, queue: Any, refused: JobNotInStatus) -> None:
        """Pass over a job that was canceled before it was back in a queue: the script that refused has let go of it."""
        if refused.status != STATUSES.CANCELED:
            raise refused
        self._release_claim(job)
        job._cached_status = STATUSES.CANCELED
        await self._pass_over(queue, job)

    def _retries_of(self, job: Any) -> Retries:
        found: Retries = job.effective_retries(self.default_retries)
        return found

    @staticmethod
    def _tries_of(job: Any) -> int:
        """How often a job has run, this time among them."""
        claim = job._claim or job._last_claim
        return int(claim.tries or 1) if claim else 1

    def _is_retried(self, job: Any, exception: BaseException, times: int | None) -> bool:
        """Is this the wish of a job to run again, which it will? Then no Error is saved."""
        return isinstance(exception, Retry) and times is not None and self._tries_of(job) <= times

    async def _write_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> Ended:
        claim = self._claim_for(job, queue)
        must_not = await self._must_not_be_requeued(job)
        times = None if must_not else self._retries_of(job).limit(exception)
        saves = self.save_errors and not self._is_retried(job, exception, times)
        record = await self._error_record(job, queue, exception, trace) if saves else None
        text = record.text if record and not record.late else ""
        job._ended = now_text()
        call = transitions.fail(self._namespace, claim, job._ended, times, text)
        ended: Ended = await self._end_alone(call)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        self._note_history(claim, "errors", ended)
        self._tell_unsaved(claim, ended, text)
        if not ended.to_be_requeued:
            self._release_claim(job)
            saves = self.save_errors and (saves or ended.kind == "OK")  # it was canceled, and is not retried after all
        await self._repair(ended.changes)
        if saves and not text:
            fields = await self._invoke(self.additional_error_fields, job, queue, exception, trace)
            await self._apart(lambda: self._save_error(job, queue, exception, trace, **fields))
        return ended

    async def _write_plain_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> None:
        """As `_write_error`, without anything that a subclass may have made to raise."""
        claim = self._claim_for(job, queue)
        ended = await self._end_alone(transitions.fail(self._namespace, claim, now_text(), None, ""))
        self._note_history(claim, "errors", ended)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        await self._repair(ended.changes)
        if ended.to_be_requeued:  # it had been recorded, and the reply was lost
            await self._guard(job, queue, "requeue_job", self._requeue_failed(job, queue, ended, exception))
        elif self.save_errors and ended.kind == "OK":
            saving = self._apart(lambda: self._save_error(job, queue, exception, trace))
            await self._guard(job, queue, "add_error", saving)
        if not ended.to_be_requeued:
            self._release_claim(job)

    def _save_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None, **fields: Any) -> None:
        self.error_model.add_error(queue.name.hget(), job, exception, trace=trace, **fields)

    async def _error_record(
        self, job: Any, queue: Any, exception: BaseException, trace: str | None
    ) -> recipes.Record | None:
        """The Error as the transition writes it; None when a subclass wants to do that itself."""
        if _overrides(self.error_model, Error, "add_error"):
            return None
        fields = await self._invoke(self.additional_error_fields, job, queue, exception, trace)
        name = job._claim.queue_name if job._claim else await self._apart(queue.name.hget)
        return recipes.Record(
            self.error_model, self.error_model.fields_for(name, job, exception, trace=trace, **fields)
        )

    async def _must_not_be_requeued(self, job: Any) -> bool:
        """What only Python knows of it: the script looks at the field `cancel_on_error` and at `tries`."""
        if _overrides(type(job), Job, "must_be_cancelled_on_error"):
            return bool(await self._apart(lambda: job.must_be_cancelled_on_error))
        return bool(job.always_cancel_on_error)

    def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: float | timedelta | None = None) -> Any:
        """Put a job that failed back in its queue."""
        return self._do(self._requeue(job, queue, priority, delayed_for))

    async def _requeue(self, job: Any, queue: Any, priority: int, delayed_for: float | timedelta | None) -> None:
        last = job._claim
        name = await self._queue_name_for(job, queue)
        await self._move(
            lambda: job.requeue(
                queue_name=name, priority=priority, delayed_for=delayed_for, queue_model=self.queue_model
            )
        )
        job._last_claim = last
        await self._call_job_hook(job, "on_requeued", queue)
        await self._log_message(job, self.job_requeue_message, queue, outcome="requeued")

    async def _queue_name_for(self, job: Any, queue: Any) -> str:
        if job._claim and job._claim.queue_name:
            name: str = job._claim.queue_name
            return name
        return str(await self._apart(queue.name.hget))

    async def _move(self, move: Callable[[], Any]) -> None:
        await self._until_answered(self._apart, move)

    def job_skipped(self, job: Any, queue: Any) -> Any:
        """A job is not run, or was canceled while it ran: it is no longer queued."""
        return self._do(self._skip(job, queue))

    async def _skip(self, job: Any, queue: Any) -> None:
        try:
            await self._write_skip(job, queue)
        except LeaseLost:
            if job._claim is not None:
                raise  # else it runs elsewhere, and this was a second entry of it
        outcome = "canceled" if job._cached_status == STATUSES.CANCELED else "skipped"
        await self._log_message(job, self.job_skipped_message, queue, level="warning", outcome=outcome)
        await self._call_job_hook(job, "on_skipped", queue)

    def job_delayed(self, job: Any, queue: Any) -> Any:
        """A job asked to be delayed, by its status: until its `delayed_until`, or for a minute."""
        return self._do(self._delay(job, queue))

    async def _delay(self, job: Any, queue: Any) -> None:
        await self._write_delay(job, queue)
        if job._cached_status == STATUSES.CANCELED:
            return
        await self._log_message(job, self.job_delayed_message, queue, level="warning", outcome="delayed")
        await self._call_job_hook(job, "on_delayed", queue)

    async def _write_delay(self, job: Any, queue: Any) -> None:
        last = job._claim
        name = await self._queue_name_for(job, queue)
        until = await self._apart(lambda: self._delayed_until_of(job))
        try:
            await self._move(
                lambda: job.enqueue_or_delay(queue_name=name, delayed_until=until, queue_model=self.queue_model)
            )
        except JobNotInStatus as refused:
            await self._skip_canceled(job, queue, refused)
        job._last_claim = last

    def _delayed_until_of(self, job: Any) -> Any:
        try:
            return parse_datetime(job.delayed_until.hget() or "")
        except ValueError:
            return score_to_datetime(server_seconds(self.connection.time()) + DELAY_SECONDS)


# The hooks of most jobs, which need no call from outside where nobody has replaced them.
STEPS: dict[Any, Callable[..., Awaitable[None]]] = {
    JobLife.job_started: JobLife._start,
    JobLife.job_success: JobLife._succeed,
}
