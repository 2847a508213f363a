"""The worker: one process, one job at a time."""

from __future__ import annotations

import contextlib
import os
import random
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from limpyd.exceptions import DoesNotExist
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from .. import recipes, transitions
from ..exceptions import JobClassError, LeaseLost, LimpydJobsException
from ..models import Error, Job, Queue, _overrides, all_job_models, repair_indexes
from ..statuses import STATUSES
from ..transitions import Claim, Taken
from ..utils import parse_datetime, score_to_datetime, utcnow
from .base import BaseWorker, new_worker_key
from .doorbell import Alarm, Doorbell
from .heartbeat import Heartbeat
from .outage import Outage

LAST_TRIES_SECONDS = 5  # for recording an end, when the worker must stop
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
        self._prepare_process()
        self._known_queues: dict[str, Any] = {}
        self._next_due: float | None = None  # by the monotonic clock, as all that follow
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = self._recovered_at = float("-inf")
        self._poll_seconds: float = POLL_SECONDS
        self._give_up_at: float | None = None  # trying to record an end; once for all that is left to record
        self._said_no_queues = False
        self._outage = Outage(lambda message: self.log(message, level="error"))
        own_keys = _overrides(type(self), Worker, "update_keys")
        self._has_own_keys = own_keys or _overrides(self.queue_model, Queue, "get_waiting_keys", "get_all_by_priority")
        self._has_own_success = _overrides(type(self), Worker, "job_success")

    def _prepare_process(self) -> None:
        """What a worker must not share with another: after a fork it is another one."""
        self._pid = os.getpid()
        self._worker_key = new_worker_key()
        self._claims_made = 0
        self._held_claims: dict[str, Claim] = {}
        self._current_job: Any = None
        self._alarm = Alarm()
        self._doorbell: Doorbell | None = None

    @property
    def connection(self) -> Any:
        """The connection of the queues."""
        return self.queue_model.get_connection()

    @property
    def _namespace(self) -> str:
        return self.queue_model.namespace or ""

    def _send_call(self, call: transitions.Call[Any]) -> Any:
        return transitions.send(self.connection, call)

    def _until_answered(self, send: Callable[[], Any]) -> Any:
        """Record an end, again and again until Redis answers; each of these transitions is safe to repeat.

        A worker that must stop gives up after a while: the lease of the job lapses then, and it runs again.
        """
        while True:
            try:
                result = send()
            except (ConnectionError, TimeoutError) as error:
                if self.end_forced and self._give_up_at is None:
                    self._give_up_at = time.monotonic() + LAST_TRIES_SECONDS
                if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                    raise
                self._alarm.wait(self._outage.next_pause(error))
            else:
                self._give_up_at = None
                self._outage.end()
                return result

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
            sizes = self._ask_pipeline(lambda pipeline: [pipeline.zcard(queue.delayed.key) for queue in queues])
            return [queue for queue, size in zip(queues, sizes, strict=True) if size]
        keys = [self._side_key("due", name) for name in self.queues]
        (seconds, micros), *found = self._ask_pipeline(
            lambda pipeline: [pipeline.time(), *(pipeline.zrange(key, 0, 99, withscores=True) for key in keys)]
        )
        now = seconds + micros / 1_000_000
        noted = [
            (name, key, pk)
            for name, key, pairs in zip(self.queues, keys, found, strict=True)
            for pk, due in pairs
            if due <= now
        ]
        return self._still_named(noted)

    def _still_named(self, noted: list[tuple[str, str, str]]) -> list[Any]:
        """The queues that have the name under which something is noted; of the others the note is forgotten."""
        queues = [self.queue_model.from_pk(pk) for _, _, pk in noted]
        names = self._ask_pipeline(lambda pipeline: [pipeline.hget(queue.key, "name") for queue in queues])
        found = []
        for (name, key, pk), queue, current in zip(noted, queues, names, strict=True):
            if current == name:
                found.append(queue)
            else:
                self.connection.zrem(key, pk)
        return found

    def _ask_pipeline(self, fill: Callable[[Any], Any]) -> list[Any]:
        pipeline = self.connection.pipeline(transaction=False)
        fill(pipeline)
        result: list[Any] = pipeline.execute()
        return result

    def _side_key(self, kind: str, name: str) -> str:
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
        if self._pid != os.getpid():
            self._prepare_process()
        self.start_date = utcnow()
        if self.max_duration is not None:
            self.wanted_end_date = self.start_date + self.max_duration
        self.set_status("starting")
        try:
            self._run_prepared()
            self.end_date = utcnow()
            self.set_status("terminated")
            self.run_ended()
        finally:
            if self.terminate_gracefuly:
                self.stop_handling_end_signal()

    def _run_prepared(self) -> None:
        if self.must_stop():
            return
        heartbeat = self._new_heartbeat()
        self._doorbell = Doorbell(
            self.connection, [self._side_key("doorbell", name) for name in self.queues], self._alarm
        )
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
            self._held_claims,
            on_lost=self._warn_of_lost_lease,
            on_error=lambda error: self.log(f"Unable to renew leases: {error}", level="error"),
        )

    def _warn_of_lost_lease(self, claim: Claim) -> None:
        """Called by the heartbeat: unless the job has given its lease back itself, in its run or at its end."""
        if self._current_job is not None and self._current_job._claim is claim:
            self.log(f"The lease of {claim.ident} is lost", level="warning")

    def _prepare_queues(self) -> None:
        """Wait until one of the queues exists, and let their delayed jobs in."""
        while not self.must_stop():
            try:
                self._refresh_keys()
                if self.keys:
                    self._refresh_registry()
                    self.requeue_delayed_jobs()
                    return
                self._wait_for_ring(POLL_SECONDS)
                self._outage.end()
            except RedisError as error:
                self._alarm.wait(self._outage.next_pause(error))

    def _refresh_registry(self) -> None:
        """Tell the registry what the classes that it knows mean now: their code may be newer here."""
        known = self.connection.hgetall(f"{self._namespace}:models")
        for model in all_job_models():
            recipe = known.get(model.get_model_repr())
            if recipe is not None and recipe != recipes.job_recipe(model):
                model.register(self._namespace)

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
                    self._process_taken(*found)
            except RedisError as error:
                # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
                pause = self._outage.next_pause(error)
                if not self.must_stop():
                    self._alarm.wait(pause)
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
            found = self._take_job()
            if found is not None:
                return found
            if is_first:
                self._tell_status()
            is_first = False
            left = min(deadline, self._wanted_end()) - time.monotonic()
            if left > 0 and not self.must_stop():
                self._wait_for_ring(min(left, POLL_SECONDS), self._seconds_until_due())
            if left <= 0 or self.must_stop():
                return None

    def _do_rounds(self) -> None:
        """What is to be done from time to time, between two jobs."""
        if self._is_time("_updated_keys", self.fetch_priorities_delay):
            self._refresh_keys()
        is_due = self._next_due is not None and time.monotonic() >= self._next_due
        if is_due or time.monotonic() - self._looked_at_delayed >= self.fetch_delayed_delay:
            self.requeue_delayed_jobs()
        if self._is_time("_recovered_at", self.lease_seconds / 3 * random.uniform(0.8, 1.2)):
            self._recover_lapsed()

    def _recover_lapsed(self) -> None:
        done = self._send_call(transitions.recover(self._namespace, self.queue_model._name, str(utcnow())))
        repair_indexes(done.changes)
        for ident in done.idents:
            self.log(f"{ident} is given back: the lease of its worker lapsed", level="warning")
        for ident in done.homeless:
            self.log(f"{ident} is in error: the lease of its worker lapsed, and its queue is gone", level="error")
            self._save_error_of_unseen(ident, "", LeaseLost(ident))
        for ident in done.unknown:
            with contextlib.suppress(JobClassError):
                Job.class_of(ident).register(self._namespace)

    def _wanted_end(self) -> float:
        if self.wanted_end_date is None:
            return float("inf")
        return time.monotonic() + (self.wanted_end_date - utcnow()).total_seconds()

    def _seconds_until_due(self) -> float:
        # Not less than 20 ms: while a worker of version 2 holds the lock of a queue, its due jobs stay due.
        return float("inf") if self._next_due is None else max(self._next_due - time.monotonic(), 0.02)

    def _wait_for_ring(self, seconds: float, until_due: float = float("inf")) -> None:
        if self._doorbell is None:  # `wait_for_job` is called without `run`
            keys = [self._side_key("doorbell", name) for name in self.queues]
            self._doorbell = Doorbell(self.connection, keys, self._alarm)
        self._doorbell.wait(min(seconds, until_due), is_exact=until_due < seconds)

    def _take_job(self) -> tuple[Any, Any] | None:
        """Claim a job if there is one, going past entries that cannot be run."""
        while True:
            started, looks_at_keys = time.monotonic(), self._looks_at_keys()
            taken = self._send_call(self._claim_call(looks_at_keys))
            if looks_at_keys:  # with thousands of queues less often, so that it takes 2% of the time at most
                self._poll_seconds = max(POLL_SECONDS, 50 * (time.monotonic() - started))
            self._claims_made += 1  # while no reply comes, the token stays: the claim may have been made
            self._outage.end()
            if taken.next_due is not None:
                self._next_due = time.monotonic() + taken.next_due
            if taken.kind == "EMPTY":
                return None
            if taken.kind == "UNKNOWN":
                self._resolve_class(taken)
            elif taken.kind == "GONE":
                self.log(f"Unable to get job: no record of {taken.ident}", level="error")
            else:
                return self._accept_taken(taken)
            if self.must_stop():
                return None

    def _looks_at_keys(self) -> bool:
        return self._has_own_keys or self._is_time("_looked_at_keys", self._poll_seconds)

    def _claim_call(self, looks_at_keys: bool) -> transitions.Call[Taken]:
        return transitions.claim(
            self._namespace,
            self.queue_model._name,
            f"{self._worker_key}-{self._claims_made + 1}",
            self._worker_key,
            self.lease_seconds,
            str(utcnow()),
            self.queues,
            self.keys if looks_at_keys else (),
            self._has_own_keys,
        )

    def _accept_taken(self, taken: Taken) -> tuple[Any, Any]:
        """The queue and the job of a claim. When that fails, the lease lapses, or the job is in error at once."""
        try:
            if taken.claim is not None:
                self._held_claims[taken.ident] = taken.claim
                repair_indexes(taken.claim.changes)
            self.set_status("running")
            key = f"{taken.queue_key}:waiting"
            if key not in self.keys and not self._has_own_keys:
                self._refresh_keys()
            queue, job = self.get_queue(key), self.get_job(taken.ident)
        except BaseException as error:
            self._held_claims.pop(taken.ident, None)
            if isinstance(error, Exception) and not isinstance(error, RedisError):  # of an override
                self._write_error_of_unseen(taken, error)
            raise
        job._claim, job._cached_status = taken.claim, taken.status
        return queue, job

    def get_job(self, job_ident: str) -> Any:
        """The job of an ident.

        Raises:
            JobClassError, DoesNotExist: it cannot be had.
        """
        if job_ident in self._held_claims:  # the claim has just seen its record
            return Job.class_of(job_ident).from_pk(job_ident.partition(":")[2])
        return Job.get_from_ident(job_ident)

    def _resolve_class(self, taken: Taken) -> None:
        """Teach the registry a class that it does not know; reject the ident when nobody can."""
        try:
            Job.class_of(taken.ident).register(self._namespace, taken.ident.partition(":")[0])
        except JobClassError as error:
            self.log(f"Unable to get job: {error}", level="error")
            self._reject_ident(taken, error)

    def _reject_ident(self, taken: Taken, error: JobClassError) -> None:
        name = self.connection.hget(f"{taken.queue_key}:hash", "name") or ""
        if self._send_call(transitions.reject(self._namespace, taken.queue_key, taken.ident, "")):
            self._save_error_of_unseen(taken.ident, name, error)

    def _write_error_of_unseen(self, taken: Taken, error: Exception) -> None:
        """Record the error of a job that was claimed and cannot be had."""
        if taken.claim is not None:
            self._send_call(transitions.fail(self._namespace, taken.claim, str(utcnow()), None, ""))
            self._save_error_of_unseen(taken.ident, taken.queue_name, error, taken.claim.identifier)

    def _save_error_of_unseen(self, ident: str, queue_name: str, error: Exception, identifier: str = "") -> None:
        """Save the Error of a job of which there is only the ident; an Error model that refuses it is logged."""
        if not self.save_errors:
            return
        model_repr, _, pk = ident.partition(":")
        try:
            self.error_model._create(**Error._values(queue_name, model_repr, pk, identifier, error, None, None))
        except (LimpydJobsException, ValueError):
            self.logger.exception("[%s] Unable to save the error of %s", self.id, ident)

    # --- Running a job

    def _process_taken(self, queue: Any, job: Any) -> None:
        """Do with a taken job what its status says."""
        self.set_status("running")
        claim, self._current_job = job._claim, job
        try:
            job._cached_status = job._cached_status or job.status.hget()
            if job._cached_status == STATUSES.WAITING:
                self._run_job(queue, job)
            else:
                self._pass_over(queue, job)
        finally:
            self._current_job = None
            if claim is not None:
                self._held_claims.pop(claim.ident, None)

    def _pass_over(self, queue: Any, job: Any) -> None:
        """Delay a job whose status asks for it, or let go of it."""
        if job._cached_status == STATUSES.DELAYED:
            self._call_hook(job, queue, self.job_delayed)
            self._settle_end(job, queue, self._write_delay)
        else:
            self._call_hook(job, queue, self.job_skipped)
            self._settle_end(job, queue, self._write_skip)

    def _run_job(self, queue: Any, job: Any) -> None:
        self._call_hook(job, queue, self.job_started)
        is_ours = job._claim is not None
        try:
            result = self.callback(job, queue)
        except Exception as exception:
            trace = traceback.format_exc() if self.save_tracebacks else None
            self._end_in_error(queue, job, exception, trace, is_ours)
        else:
            self._end_in_success(queue, job, result, is_ours)

    def _end_in_error(self, queue: Any, job: Any, exception: Exception, trace: str | None, is_ours: bool) -> None:
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            self._log_message(job, self.job_error_message, queue, True, exception, trace, level="error")
            return
        self._call_hook(job, queue, self.job_error, exception, trace)
        self._settle_end(job, queue, self._write_plain_error, exception, trace)

    def _end_in_success(self, queue: Any, job: Any, result: Any, is_ours: bool) -> None:
        """Success, unless the job was canceled or delayed meanwhile: a plain worker learns that from the transition."""
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            return
        try:
            if self._has_own_success:
                self._raise_if_changed(job.status.hget())
            self._call_hook(job, queue, self.job_success, result)
            self._settle_end(job, queue, self._write_success)
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

    def _call_hook(self, job: Any, queue: Any, hook: Callable[..., Any], *args: Any) -> None:
        """Call a hook of this worker; what it raises is logged, and ends nothing."""
        try:
            hook(job, queue, *args)
        except LeaseLost as lost:
            self._tell_lost_lease(job, queue, lost)
        except Exception as error:
            job._is_in_doubt = isinstance(error, RedisError)  # a requeue may be pending: then `recover` makes it
            self.logger.exception("[%s] %s raised, in %s", self.id, self._ident_of(job), hook.__name__)

    def _tell_lost_lease(self, job: Any, queue: Any, lost: LeaseLost) -> None:
        job._claim = None
        self.log(str(lost), level="warning")
        self._call_job_hook(job, "on_lease_lost", queue)

    def _log_message(self, job: Any, message: Callable[..., str], *args: Any, level: str = "info") -> None:
        """Log a message about a job; one that raises is logged itself, and ends nothing."""
        try:
            text = message(job, *args)
        except Exception:
            name = getattr(message, "__name__", message)
            self.logger.exception("[%s] %s raised, in %s", self.id, self._ident_of(job), name)
        else:
            self.log(text, level=level)

    def _call_job_hook(self, job: Any, name: str, *args: Any) -> None:
        """Call a method of the job, if it has it; what it raises is logged, and ends nothing."""
        method = getattr(job, name, None)
        if method is None:
            return
        try:
            method(*args)
        except Exception:
            self.logger.exception("[%s] %s raised, in %s", self.id, self._ident_of(job), name)

    def _settle_end(self, job: Any, queue: Any, write: Callable[..., Any], *args: Any) -> None:
        """Record the end of a job whose hook did not, because it is overridden or raised before it came to that."""
        if job._claim is None:
            return
        try:
            if not job._is_written:
                write(job, queue, *args)
            if job._claim is not None and not job._is_in_doubt:
                self._write_skip(job, queue)
        except LeaseLost as lost:
            self._tell_lost_lease(job, queue, lost)

    def _write_skip(self, job: Any, queue: Any) -> None:
        call = transitions.skip(self._namespace, self._claim_for(job, queue))
        ended = self._until_answered(lambda: self._send_call(call))
        self._release_claim(job)
        repair_indexes(ended.changes)

    def _claim_for(self, job: Any, queue: Any) -> Claim:
        """The claim on a job; one without a token for a job that was not taken from a queue by this worker."""
        return job._claim or Claim(job.ident, "", "", f"{queue._name}:{queue.pk.get()}")

    def _release_claim(self, job: Any) -> None:
        if job._claim is not None:
            self._held_claims.pop(job._claim.ident, None)
        job._last_claim, job._claim = job._claim, None

    # --- What becomes of a job: write, log, call

    def job_started(self, job: Any, queue: Any) -> None:
        """A job is about to run: it is RUNNING."""
        if job._claim is None:  # taken by an override of wait_for_job
            job.hmset(start=str(utcnow()), status=STATUSES.RUNNING)
            job.tries.hincrby(1)
        self._log_message(job, self.job_started_message, queue)
        self._call_job_hook(job, "on_started", queue)

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        """A job ended well: it is in SUCCESS, and in the list `success` of its queue."""
        self._write_success(job, queue)
        self._log_message(job, self.job_success_message, queue, job_result)
        self._call_job_hook(job, "on_success", queue, job_result)

    def _write_success(self, job: Any, queue: Any) -> None:
        claim = self._claim_for(job, queue)
        end = utcnow()
        call = transitions.finish(self._namespace, claim, str(end))
        ended = self._until_answered(lambda: self._send_call(call))
        if ended.kind == "CHANGED":
            raise _StatusChanged(ended.status)
        job._cached_status, job._is_written = STATUSES.SUCCESS, True
        if claim.start:
            job._cached_duration = end - parse_datetime(claim.start)
        self._release_claim(job)
        repair_indexes(ended.changes)

    def job_error(self, job: Any, queue: Any, exception: Exception, trace: str | None = None) -> None:
        """A job failed: it is in ERROR, in the list `errors` of its queue, with an Error; then requeued, if allowed."""
        ended = self._write_error(job, queue, exception, trace)
        self._log_message(job, self.job_error_message, queue, ended.to_be_requeued, exception, trace, level="error")
        self._call_job_hook(job, "on_error", queue, exception, trace)
        if ended.to_be_requeued:
            self._requeue_failed(job, queue, ended)

    def _requeue_failed(self, job: Any, queue: Any, ended: transitions.Ended) -> None:
        wanted = int(ended.priority) + self.requeue_priority_delta
        priority = max(-recipes.MAX_PRIORITY, min(wanted, recipes.MAX_PRIORITY))
        self.requeue_job(job, queue, priority, delayed_for=self.requeue_delay_delta)

    def _write_error(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> transitions.Ended:
        claim = self._claim_for(job, queue)
        record = self._error_record(job, queue, exception, trace) if self.save_errors else None
        text = record.text if record and not record.late else ""
        times = None if self._must_not_be_requeued(job) else self.requeue_times
        call = transitions.fail(self._namespace, claim, str(utcnow()), times, text)
        ended: transitions.Ended = self._until_answered(lambda: self._send_call(call))
        job._cached_status, job._is_written = STATUSES.ERROR, True
        if not ended.to_be_requeued:
            self._release_claim(job)
        repair_indexes(ended.changes)
        if self.save_errors and not text:
            fields = self.additional_error_fields(job, queue, exception, trace)
            self.error_model.add_error(queue.name.hget(), job, exception, trace=trace, **fields)
        return ended

    def _write_plain_error(self, job: Any, queue: Any, exception: Exception, trace: str | None) -> None:
        """As `_write_error`, without anything that a subclass may have made to raise."""
        call = transitions.fail(self._namespace, self._claim_for(job, queue), str(utcnow()), None, "")
        ended = self._until_answered(lambda: self._send_call(call))
        job._cached_status, job._is_written = STATUSES.ERROR, True
        repair_indexes(ended.changes)
        if ended.to_be_requeued:  # it had been recorded, and the reply was lost
            self._call_hook(job, queue, self._requeue_failed, ended)
        elif self.save_errors and ended.kind == "OK":
            self._call_hook(job, queue, self._save_error, exception, trace)
        if not ended.to_be_requeued:
            self._release_claim(job)

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
        self._until_answered(
            lambda: job.requeue(
                queue_name=name, priority=priority, delayed_for=delayed_for, queue_model=self.queue_model
            )
        )
        job._last_claim = last
        self._call_job_hook(job, "on_requeued", queue)
        self._log_message(job, self.job_requeue_message, queue)

    def job_skipped(self, job: Any, queue: Any) -> None:
        """A job is not run, or was canceled while it ran: it is no longer queued."""
        try:
            self._write_skip(job, queue)
        except LeaseLost:
            if job._claim is not None:
                raise  # else it runs elsewhere, and this was a second entry of it
        self._log_message(job, self.job_skipped_message, queue, level="warning")
        self._call_job_hook(job, "on_skipped", queue)

    def job_delayed(self, job: Any, queue: Any) -> None:
        """A job asked to be delayed, by its status: until its `delayed_until`, or for a minute."""
        self._write_delay(job, queue)
        self._log_message(job, self.job_delayed_message, queue, level="warning")
        self._call_job_hook(job, "on_delayed", queue)

    def _write_delay(self, job: Any, queue: Any) -> None:
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
