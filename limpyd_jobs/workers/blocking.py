"""The worker: one process, one job at a time."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from limpyd.exceptions import DoesNotExist
from redis.exceptions import RedisError

from .. import recipes, transitions
from ..exceptions import JobClassError, LeaseLost, LimpydJobsException
from ..models import Error, Job, Queue, _overrides, repair_indexes
from ..statuses import STATUSES
from ..transitions import Claim, Taken
from ..utils import parse_datetime, score_to_datetime, utcnow
from .base import BaseWorker, new_worker_key
from .doorbell import Doorbell
from .heartbeat import Heartbeat
from .outage import Outage

POLL_SECONDS = 1  # how often the waiting lists themselves are looked at, for programs that fill them and do not ring
DELAY_SECONDS = 60  # of a job that asks to be delayed and does not say until when


class _StatusChanged(BaseException):  # so that no `except Exception` of an override takes it
    """The job was canceled or delayed while it ran: no success is recorded."""

    def __init__(self, status: str) -> None:
        self.status = status


class Worker(BaseWorker):
    """Takes the jobs of some queues by priority, runs each, and records what became of it.

    For each job: a claim (it is RUNNING, and leased to this worker), the callback, and one of `job_success`,
    `job_error`, `job_skipped`, `job_delayed`. Each of these writes first, in one transition, then logs its message,
    then calls the method of the job (`on_success`...).
    """

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        super().__init__(queues, **kwargs)
        self._key = new_worker_key()
        self._claims_made = 0
        self._held: dict[str, Claim] = {}
        self._known_queues: dict[str, Any] = {}
        self._next_due: float | None = None  # by the monotonic clock, as all that follow
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = self._recovered = float("-inf")
        self._said_no_queues = False
        self._doorbell: Doorbell | None = None
        self._outage = Outage(lambda message: self.log(message, level="error"))
        own_keys = _overrides(type(self), Worker, "update_keys")
        self._has_own_keys = own_keys or _overrides(self.queue_model, Queue, "get_waiting_keys", "get_all_by_priority")
        self._has_own_success = _overrides(type(self), Worker, "job_success")

    @property
    def connection(self) -> Any:
        """The connection of the queues."""
        return self.queue_model.get_connection()

    @property
    def _namespace(self) -> str:
        return self.queue_model.namespace or ""

    def _send(self, call: transitions.Call[Any]) -> Any:
        return transitions.send(self.connection, call)

    # --- The queues

    def update_keys(self) -> None:
        """Set `keys`, the waiting lists of the queues, highest priority first."""
        self.keys = self.queue_model.get_waiting_keys(self.queues)
        if not self.keys and not self._said_no_queues:
            self.log("No queues yet", level="warning")
        self._said_no_queues = not self.keys

    def count_waiting_jobs(self) -> int:
        """How many jobs wait in the queues of this worker."""
        return int(self.queue_model.count_waiting_jobs(self.queues))

    def count_delayed_jobs(self) -> int:
        """How many jobs are delayed in the queues of this worker."""
        return int(self.queue_model.count_delayed_jobs(self.queues))

    def get_queue(self, queue_redis_key: str) -> Any:
        """The queue of a waiting list.

        Raises:
            DoesNotExist: no queue has this waiting list.
        """
        if queue_redis_key not in self._known_queues:
            prefix, suffix = f"{self.queue_model._name}:", ":waiting"
            pk = queue_redis_key.removeprefix(prefix).removesuffix(suffix)
            if not pk or f"{prefix}{pk}{suffix}" != queue_redis_key:
                raise DoesNotExist(f"No queue found with waiting key {queue_redis_key}")
            self._known_queues[queue_redis_key] = self.queue_model(pk)
        return self._known_queues[queue_redis_key]

    def requeue_delayed_jobs(self) -> None:
        """Let the queues of this worker move their delayed jobs that are due to the waiting lists."""
        self._next_due = None
        for queue in self._queues_to_promote():
            for ident, reason in queue.requeue_delayed_jobs():
                self.log(f"Unable to requeue {ident}: {reason}")

    def _queues_to_promote(self) -> list[Any]:
        """Those with due jobs; from time to time all with delayed ones, for programs that do not note what is due."""
        if self._is_time("_looked_at_delayed", self.fetch_delayed_delay):
            queues = self.queue_model.get_all_by_priority(self.queues)
            sizes = self._ask(lambda pipeline: [pipeline.zcard(queue.delayed.key) for queue in queues])
            return [queue for queue, size in zip(queues, sizes, strict=True) if size]
        dues = [self._side("due", name) for name in self.queues]
        (seconds, micros), *found = self._ask(
            lambda pipeline: [pipeline.time(), *(pipeline.zrange(key, 0, 999, withscores=True) for key in dues)]
        )
        now = seconds + micros / 1_000_000
        return [self.queue_model.from_pk(pk) for pairs in found for pk, due in pairs if due <= now]

    def _ask(self, fill: Callable[[Any], Any]) -> list[Any]:
        pipeline = self.connection.pipeline(transaction=False)
        fill(pipeline)
        result: list[Any] = pipeline.execute()
        return result

    def _side(self, kind: str, name: str) -> str:
        return f"{self._namespace}:{kind}:{self.queue_model._name[len(self._namespace) + 1 :]}:{name}"

    def _is_time(self, attribute: str, delay: float) -> bool:
        """Has `delay` passed since this last was true?"""
        now = time.monotonic()
        if now - getattr(self, attribute) < delay:
            return False
        setattr(self, attribute, now)
        return True

    # --- The run

    def run(self) -> None:
        """Take and run jobs until `must_stop`.

        Raises:
            LimpydJobsException: the worker has run already.
        """
        if self.status is not None:
            self.set_status("aborted")
            raise LimpydJobsException("This worker run is already terminated")
        self.start_date = utcnow()
        if self.max_duration is not None:
            self.wanted_end_date = self.start_date + self.max_duration
        self.set_status("starting")
        try:
            self._run()
            self.end_date = utcnow()
            self.set_status("terminated")
            self.run_ended()
        finally:
            if self.terminate_gracefuly:
                self.stop_handling_end_signal()

    def _run(self) -> None:
        if self.must_stop():
            return
        heartbeat = self._new_heartbeat()
        self._doorbell = Doorbell(self.connection, [self._side("doorbell", name) for name in self.queues], self._alarm)
        heartbeat.start()
        try:
            self._prepare_queues()
            if not self.must_stop():
                self.run_started()
                self._main_loop()
        finally:
            heartbeat.stop()
            self._doorbell.close()
            self._doorbell = None

    def _new_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self.connection,
            self._namespace,
            self.lease_seconds,
            self._held,
            on_lost=lambda claim: self.log(f"The lease of {claim.ident} is lost", level="warning"),
            on_error=lambda error: self.log(f"Unable to renew leases: {error}", level="error"),
        )

    def _prepare_queues(self) -> None:
        """Wait until one of the queues exists, and let their delayed jobs in."""
        while not self.must_stop():
            try:
                self._refresh_keys()
                if self.keys:
                    self.requeue_delayed_jobs()
                    return
                self._wait(POLL_SECONDS)
                self._outage.end()
            except RedisError as error:
                self._alarm.wait(self._outage.next_pause(error))

    def _refresh_keys(self) -> None:
        self._updated_keys = time.monotonic()
        self.update_keys()

    def _main_loop(self) -> None:
        while not self.must_stop():
            self.set_status("waiting")
            try:
                found = self.wait_for_job()
                if found is not None:
                    self.num_loops += 1
                    self._process(*found)
            except RedisError as error:
                # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
                self._alarm.wait(self._outage.next_pause(error))
            except Exception:  # an override of a method that takes jobs
                self.logger.exception("[%s] Unable to get job", self.id)
                self._alarm.wait(self._outage.next_pause(None))

    # --- Taking a job

    def wait_for_job(self) -> tuple[Any, Any] | None:
        """Wait for a job and take it.

        Returns:
            The queue and the job, which is leased to this worker; None after `timeout` seconds (0: never), or when the
            worker must stop.
        """
        deadline = time.monotonic() + self.timeout if self.timeout else float("inf")
        is_first = True
        while True:
            self._do_rounds()
            found = self._take()
            if found is not None:
                return found
            if is_first:
                self._tell_status()
            is_first = False
            left = min(deadline, self._wanted_end()) - time.monotonic()
            if left <= 0 or self.must_stop():
                return None
            self._wait(min(left, POLL_SECONDS), self._seconds_until_due())

    def _do_rounds(self) -> None:
        """What is to be done from time to time, between two jobs."""
        if self._is_time("_updated_keys", self.fetch_priorities_delay):
            self._refresh_keys()
        is_due = self._next_due is not None and time.monotonic() >= self._next_due
        if is_due or time.monotonic() - self._looked_at_delayed >= self.fetch_delayed_delay:
            self.requeue_delayed_jobs()
        if self._is_time("_recovered", self.lease_seconds / 3 * random.uniform(0.8, 1.2)):
            self._recover()

    def _recover(self) -> None:
        recovered = self._send(transitions.recover(self._namespace, self.queue_model._name))
        repair_indexes(recovered.changes)
        for ident in recovered.idents:
            self.log(f"{ident} is given back: the lease of its worker lapsed", level="warning")

    def _wanted_end(self) -> float:
        if self.wanted_end_date is None:
            return float("inf")
        return time.monotonic() + (self.wanted_end_date - utcnow()).total_seconds()

    def _seconds_until_due(self) -> float:
        # Not less than 20 ms: while a worker of version 2 holds the lock of a queue, its due jobs stay due.
        return float("inf") if self._next_due is None else max(self._next_due - time.monotonic(), 0.02)

    def _wait(self, seconds: float, until_due: float = float("inf")) -> None:
        if self._doorbell is None:  # `wait_for_job` is called without `run`
            keys = [self._side("doorbell", name) for name in self.queues]
            self._doorbell = Doorbell(self.connection, keys, self._alarm)
        self._doorbell.wait(min(seconds, until_due), is_exact=until_due < seconds)

    def _take(self) -> tuple[Any, Any] | None:
        """Claim a job if there is one, going past entries that cannot be run."""
        while True:
            taken = self._send(self._claim_call())
            self._claims_made += 1  # while no reply comes, the token stays: the claim may have been made
            self._outage.end()
            if taken.next_due is not None:
                self._next_due = time.monotonic() + taken.next_due
            if taken.kind == "EMPTY":
                return None
            if taken.kind == "UNKNOWN":
                self._resolve(taken)
            elif taken.kind == "GONE":
                self.log(f"Unable to get job: no record of {taken.ident}", level="error")
            else:
                return self._taken(taken)
            if self.must_stop():
                return None

    def _claim_call(self) -> transitions.Call[Taken]:
        looks_at_keys = self._has_own_keys or self._is_time("_looked_at_keys", POLL_SECONDS)
        return transitions.claim(
            self._namespace,
            self.queue_model._name,
            f"{self._key}-{self._claims_made + 1}",
            self._key,
            self.lease_seconds,
            str(utcnow()),
            self.queues,
            self.keys if looks_at_keys else (),
            self._has_own_keys,
        )

    def _taken(self, taken: Taken) -> tuple[Any, Any]:
        claim = taken.claim
        if claim is not None:
            self._held[claim.ident] = claim
            repair_indexes(claim.changes)
        self.set_status("running")
        key = f"{taken.queue_key}:waiting"
        if key not in self.keys and not self._has_own_keys:
            self._refresh_keys()
        try:
            queue, job = self.get_queue(key), self.get_job(taken.ident)
        except RedisError:
            raise
        except Exception as error:  # of an override
            self._held.pop(taken.ident, None)
            self._fail_unseen(taken, error)
            raise
        job._claim, job._cached_status = claim, taken.status
        return queue, job

    def get_job(self, job_ident: str) -> Any:
        """The job of an ident.

        Raises:
            JobClassError, DoesNotExist: it cannot be had.
        """
        if job_ident in self._held:  # the claim has just seen its record
            return Job.class_of(job_ident).from_pk(job_ident.partition(":")[2])._named_by(job_ident)
        return Job.get_from_ident(job_ident)

    def _resolve(self, taken: Taken) -> None:
        """Teach the registry a class that it does not know; reject the ident when nobody can."""
        try:
            Job.class_of(taken.ident).register(self._namespace, taken.ident.partition(":")[0])
        except JobClassError as error:
            self.log(f"Unable to get job: {error}", level="error")
            self._reject(taken, error)

    def _reject(self, taken: Taken, error: JobClassError) -> None:
        record = self._record_of_unseen(taken, error)
        self._send(transitions.reject(self._namespace, taken.queue_key, taken.ident, record))

    def _fail_unseen(self, taken: Taken, error: Exception) -> None:
        """Record the error of a job that was claimed and cannot be had."""
        if taken.claim is not None:
            record = self._record_of_unseen(taken, error)
            self._send(transitions.fail(self._namespace, taken.claim, str(utcnow()), None, record))

    def _record_of_unseen(self, taken: Taken, error: Exception) -> str:
        """The Error of a job of which there is only the ident."""
        if not self.save_errors:
            return ""
        model_repr, _, pk = taken.ident.partition(":")
        name = taken.queue_name or self.connection.hget(f"{taken.queue_key}:hash", "name") or ""
        values = Error._values(name, model_repr, pk, taken.claim.identifier if taken.claim else "", error, None, None)
        return recipes.Record(self.error_model, values).text

    # --- Running a job

    def _process(self, queue: Any, job: Any) -> None:
        """Do with a taken job what its status says."""
        self.set_status("running")
        claim = job._claim
        try:
            job._cached_status = job._cached_status or job.status.hget()
            if job._cached_status == STATUSES.WAITING:
                self._run_job(queue, job)
            else:
                self._pass_over(queue, job)
        finally:
            if claim is not None:
                self._held.pop(claim.ident, None)

    def _pass_over(self, queue: Any, job: Any) -> None:
        """Delay a job whose status asks for it, or let go of it."""
        if job._cached_status == STATUSES.DELAYED:
            self._call(job, queue, self.job_delayed)
            self._settle(job, queue, self._delay)
        else:
            self._call(job, queue, self.job_skipped)
            self._settle(job, queue, self._skip)

    def _run_job(self, queue: Any, job: Any) -> None:
        self._call(job, queue, self.job_started)
        is_ours = job._claim is not None
        try:
            result = self.callback(job, queue)
        except Exception as exception:
            trace = traceback.format_exc() if self.save_tracebacks else None
            self._failed(queue, job, exception, trace, is_ours)
        else:
            self._succeeded(queue, job, result, is_ours)

    def _failed(self, queue: Any, job: Any, exception: Exception, trace: str | None, is_ours: bool) -> None:
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            self._tell(job, self.job_error_message, queue, True, exception, trace, level="error")
            return
        self._call(job, queue, self.job_error, exception, trace)
        self._settle(job, queue, self._fail_plainly, exception, trace)

    def _succeeded(self, queue: Any, job: Any, result: Any, is_ours: bool) -> None:
        """Success, unless the job was canceled or delayed meanwhile: a plain worker learns that from the transition."""
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            return
        try:
            if self._has_own_success:
                self._raise_if_changed(job.status.hget())
            self._call(job, queue, self.job_success, result)
            self._settle(job, queue, self._finish)
        except _StatusChanged as changed:
            job._cached_status = changed.status
        if job._cached_status in (STATUSES.CANCELED, STATUSES.DELAYED):
            self._pass_over(queue, job)

    def _moved_itself(self, job: Any, queue: Any) -> None:
        """The callback put the job in a queue again: that is where it stays, and this run records no end."""
        self.log(f"{self._place_of(job, queue)} was put in a queue again by its own run")

    @staticmethod
    def _raise_if_changed(status: str | None) -> None:
        if status in (STATUSES.CANCELED, STATUSES.DELAYED):
            raise _StatusChanged(status)

    def _call(self, job: Any, queue: Any, hook: Callable[..., Any], *args: Any) -> None:
        """Call a hook of this worker; what it raises is logged, and ends nothing."""
        try:
            hook(job, queue, *args)
        except LeaseLost as lost:
            self._lost(job, queue, lost)
        except Exception:
            self.logger.exception("[%s] %s raised, in %s", self.id, job.ident, hook.__name__)

    def _lost(self, job: Any, queue: Any, lost: LeaseLost) -> None:
        job._claim = None
        self.log(str(lost), level="warning")
        self._call_job(job, "on_lease_lost", queue)

    def _tell(self, job: Any, message: Callable[..., str], *args: Any, level: str = "info") -> None:
        """Log a message about a job; one that raises is logged itself, and ends nothing."""
        try:
            text = message(job, *args)
        except Exception:
            self.logger.exception("[%s] %s raised, in %s", self.id, job.ident, getattr(message, "__name__", message))
        else:
            self.log(text, level=level)

    def _call_job(self, job: Any, name: str, *args: Any) -> None:
        """Call a method of the job, if it has it; what it raises is logged, and ends nothing."""
        method = getattr(job, name, None)
        if method is None:
            return
        try:
            method(*args)
        except Exception:
            self.logger.exception("[%s] %s raised, in %s", self.id, job.ident, name)

    def _settle(self, job: Any, queue: Any, write: Callable[..., Any], *args: Any) -> None:
        """Record the end of a job whose hook did not, because it is overridden or raised before it came to that."""
        if job._claim is None:
            return
        try:
            if not job._is_written:
                write(job, queue, *args)
            if job._claim is not None:
                self._skip(job, queue)
        except LeaseLost as lost:
            self._lost(job, queue, lost)

    def _skip(self, job: Any, queue: Any) -> None:
        claim = self._claim_of(job)
        ended = self._send(transitions.skip(self._namespace, claim))
        self._release(job)
        repair_indexes(ended.changes)

    def _claim_of(self, job: Any) -> Claim:
        """The claim on a job; one without a token for a job that was not taken from a queue by this worker."""
        return job._claim or Claim(job.ident, "", "", job.queue_key.hget() or "")

    @staticmethod
    def _release(job: Any) -> None:
        job._last_claim, job._claim = job._claim, None

    # --- What becomes of a job: write, log, call

    def job_started(self, job: Any, queue: Any) -> None:
        """A job is about to run: it is RUNNING."""
        if job._claim is None:  # taken by an override of wait_for_job
            job.hmset(start=str(utcnow()), status=STATUSES.RUNNING)
            job.tries.hincrby(1)
        self._tell(job, self.job_started_message, queue)
        self._call_job(job, "on_started", queue)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        """A job ended well: it is in SUCCESS, and in the list `success` of its queue."""
        self._finish(job, queue)
        self._tell(job, self.job_success_message, queue, job_result)
        self._call_job(job, "on_success", queue, job_result)

    def _finish(self, job: Any, queue: Any) -> None:
        claim = self._claim_for(job, queue)
        end = utcnow()
        ended = self._send(transitions.finish(self._namespace, claim, str(end)))
        if ended.kind == "CHANGED":
            raise _StatusChanged(ended.status)
        job._cached_status, job._is_written = STATUSES.SUCCESS, True
        if claim.start:
            job._cached_duration = end - parse_datetime(claim.start)
        self._release(job)
        repair_indexes(ended.changes)

    def _claim_for(self, job: Any, queue: Any) -> Claim:
        """As `_claim_of`, with the queue that the hook was called with."""
        return job._claim or Claim(job.ident, "", "", f"{queue._name}:{queue.pk.get()}")

    def job_error(self, job: Any, queue: Any, exception: Exception, trace: str | None = None) -> None:
        """A job failed: it is in ERROR, in the list `errors` of its queue, with an Error; then requeued, if allowed."""
        ended = self._fail(job, queue, exception, trace)
        self._tell(job, self.job_error_message, queue, ended.to_be_requeued, exception, trace, level="error")
        self._call_job(job, "on_error", queue, exception, trace)
        if ended.to_be_requeued:
            self._requeue(job, queue, ended)

    def _requeue(self, job: Any, queue: Any, ended: transitions.Ended) -> None:
        wanted = int(ended.priority) + self.requeue_priority_delta
        priority = max(-recipes.MAX_PRIORITY, min(wanted, recipes.MAX_PRIORITY))
        self.requeue_job(job, queue, priority, delayed_for=self.requeue_delay_delta)

    def _fail(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> transitions.Ended:
        claim = self._claim_for(job, queue)
        record = self._error_record(job, queue, exception, trace) if self.save_errors else None
        text = record.text if record and not record.late else ""
        times = None if self._must_not_be_requeued(job) else self.requeue_times
        call = transitions.fail(self._namespace, claim, str(utcnow()), times, text)
        ended: transitions.Ended = self._send(call)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        if not ended.to_be_requeued:
            self._release(job)
        repair_indexes(ended.changes)
        if self.save_errors and not text:
            fields = self.additional_error_fields(job, queue, exception, trace)
            self.error_model.add_error(queue.name.hget(), job, exception, trace=trace, **fields)
        return ended

    def _fail_plainly(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> None:
        """As `_fail`, without anything that a subclass may have made to raise."""
        call = transitions.fail(self._namespace, self._claim_for(job, queue), str(utcnow()), None, "")
        ended = self._send(call)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        repair_indexes(ended.changes)
        if ended.to_be_requeued:  # it had been recorded, and the reply was lost
            self._call(job, queue, self._requeue, ended)
        elif self.save_errors and ended.kind == "OK":
            self._call(job, queue, self._save_error, exception, trace)
        if not ended.to_be_requeued:
            self._release(job)

    def _save_error(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> None:
        self.error_model.add_error(queue.name.hget(), job, exception, trace=trace)

    def _error_record(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> recipes.Record | None:
        """The Error as the transition writes it; None when a subclass wants to do that itself."""
        if _overrides(self.error_model, Error, "add_error"):
            return None
        fields = self.additional_error_fields(job, queue, exception, trace)
        name = job._claim.queue_name if job._claim else queue.name.hget()
        return recipes.Record(
            self.error_model, self.error_model.fields_for(name, job, exception, trace=trace, **fields)
        )

    @staticmethod
    def _must_not_be_requeued(job: Any) -> bool:
        """What only Python knows of it: the script looks at the field `cancel_on_error` and at `tries`."""
        if _overrides(type(job), Job, "must_be_cancelled_on_error"):
            return bool(job.must_be_cancelled_on_error)
        return bool(job.always_cancel_on_error)

    def requeue_job(self, job: Any, queue: Any, priority: int, delayed_for: float | timedelta | None = None) -> None:
        """Put a job that failed back in its queue."""
        name = job._claim.queue_name if job._claim and job._claim.queue_name else queue.name.hget()
        last = job._claim
        job.requeue(queue_name=name, priority=priority, delayed_for=delayed_for, queue_model=self.queue_model)
        job._last_claim = last
        self._call_job(job, "on_requeued", queue)
        self._tell(job, self.job_requeue_message, queue)

    def job_skipped(self, job: Any, queue: Any) -> None:
        """A job is not run, or was canceled while it ran: it is no longer queued."""
        try:
            self._skip(job, queue)
        except LeaseLost:
            if job._claim is not None:
                raise  # else it runs elsewhere, and this was a second entry of it
        self._tell(job, self.job_skipped_message, queue, level="warning")
        self._call_job(job, "on_skipped", queue)

    def job_delayed(self, job: Any, queue: Any) -> None:
        """A job asked to be delayed, by its status: until its `delayed_until`, or for a minute."""
        self._delay(job, queue)
        self._tell(job, self.job_delayed_message, queue, level="warning")
        self._call_job(job, "on_delayed", queue)

    def _delay(self, job: Any, queue: Any) -> None:
        last = job._claim
        name = last.queue_name if last and last.queue_name else queue.name.hget()
        until = self._delayed_until_of(job)
        job.enqueue_or_delay(queue_name=name, delayed_until=until, queue_model=self.queue_model)
        job._last_claim = last

    def _delayed_until_of(self, job: Any) -> Any:
        try:
            return parse_datetime(job.delayed_until.hget() or "")
        except ValueError:
            seconds, micros = self.connection.time()
            return score_to_datetime(seconds + micros / 1_000_000 + DELAY_SECONDS)
