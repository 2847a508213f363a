"""The worker: one process, one job at a time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

from limpyd.exceptions import DoesNotExist
from redis.exceptions import RedisError, ResponseError

from .. import recipes, transitions, wire
from ..database import is_outage, leave_replica
from ..exceptions import (
    ConfigurationException,
    DatabaseException,
    JobClassError,
    LeaseLost,
    LimpydJobsException,
    QueueDeleted,
    WorkerLost,
    WrongKeyType,
)
from ..models import Error, Job, Queue, _overrides, all_job_models, printable, repair_indexes, unsent_ends
from ..modules import ANY, allowed_modules, is_dotted_name
from ..statuses import STATUSES
from ..transitions import Claim, Doomed, End, Ended, Exchanged, Taken
from ..utils import parse_datetime, pauses, score_to_datetime, utcnow
from .ahead import Ahead, Done, Fetch, Look
from .base import FLUSH_SECONDS, BaseWorker, format_trace, new_worker_key, try_for
from .doorbell import Alarm, Doorbell
from .heartbeat import Heartbeat, own_client
from .outage import Outage
from .retention import Retention

LAST_TRIES_SECONDS = 5  # for recording an end, when the worker must stop
POLL_SECONDS = 1  # how often the waiting lists themselves are looked at, for programs that fill them and do not ring
FAILING_SECONDS = 0.5  # how often a worker that cannot renew its leases looks whether it can again
BROKEN_SECONDS = 60  # how long a queue is left alone when something else is under one of its keys
AROUND_SECONDS = 0.1  # how often a busy worker asks when the next delayed job is due
LONG_REFRESH_SECONDS = 0.05  # of the keys: above that it is not done for each new queue
DELAY_SECONDS = 60  # of a job that asks to be delayed and does not say until when


class _StatusChanged(BaseException):  # so that no `except Exception` of an override takes it
    """The job was canceled or delayed while it ran: no success is recorded."""

    def __init__(self, status: str) -> None:
        self.status = status


def _has_method(job: Any, name: str) -> bool:
    """Has a job a hook of its own? Without asking for it: a model looks for what it has not among its fields."""
    return hasattr(type(job), name) or name in job.__dict__


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
        self._looked_around = float("-inf")
        self._recover_after = self.lease_seconds / 3
        self._known_caller: transitions.Caller | None = None
        self._claimed_at = utcnow()  # by the clock of this machine
        self._made_for = transitions.NO_CLASS  # what the next exchange knows of the class of the last job
        self._known_keys: frozenset[str] = frozenset()
        self._refresh_seconds = 0.0  # what the last refresh of the keys took
        self._poll_seconds: float = POLL_SECONDS
        self._give_up_at: float | None = None  # trying to record an end; once for all that is left to record
        self._said_no_queues = False
        self._broken: dict[str, float] = {}  # keys of a wrong type -> when to look at them again
        self._was_interrupted = False
        self._outage = Outage(lambda message: self.log(message, level="error"))
        keep = {"success": self.keep_success, "errors": self.keep_errors}
        self._retention = Retention(self.queue_model, self.error_model, keep, self.log)
        own_keys = _overrides(type(self), Worker, "update_keys")
        self._has_own_keys = own_keys or _overrides(self.queue_model, Queue, "get_waiting_keys", "get_all_by_priority")
        self._has_own_success = _overrides(type(self), Worker, "job_success")
        self._has_own_start = _overrides(type(self), Worker, "job_started")
        # what looks between two jobs, or decides about the next one, must find it untouched
        steps = ("job_success", "wait_for_job", "must_stop", "set_status", "requeue_delayed_jobs")
        own_steps = (*steps, "job_success_message", "job_started_message")
        self._may_claim_early = not self._has_own_keys and not _overrides(type(self), Worker, *own_steps)
        self._may_end_together = self.prefetch > 1 and self._may_claim_early

    def _prepare_process(self) -> None:
        """What a worker must not share with another: after a fork it is another one."""
        self._pid = os.getpid()
        self._worker_key = new_worker_key()
        self._claims_made = 0
        self._held_claims: dict[str, Claim] = {}
        self._current_job: Any = None
        self._alarm = Alarm()
        self._doorbell: Doorbell | None = None
        self._heartbeat: Heartbeat | None = None
        self._ahead = Ahead(self._settle_from_thread)

    @property
    def connection(self) -> Any:
        """The connection of the queues."""
        return self.queue_model.get_connection()

    @property
    def _namespace(self) -> str:
        return self.queue_model.namespace or ""

    def _send_call(self, call: transitions.Call[Any]) -> Any:
        return transitions.send(self.connection, call)

    def _end_alone(self, call: transitions.Call[Any]) -> Any:
        """Record the end of one job, after those that were to be sent with others."""
        if self._ahead.unsent or self._ahead.fetch is not None:
            self._until_answered(self._settle)
        return self._until_answered(lambda: self._send_call(call))

    def _until_answered(self, send: Callable[[], Any]) -> Any:
        """Record an end, again and again until Redis answers; each of these transitions is safe to repeat.

        A worker that must stop gives up after a while: the lease of the job lapses then, and it runs again.
        """
        while True:
            try:
                result = send()
            except (RedisError, DatabaseException) as error:
                if not is_outage(error):
                    raise
                if self.end_forced and self._give_up_at is None:
                    self._give_up_at = time.monotonic() + LAST_TRIES_SECONDS
                if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                    raise
                self._alarm.wait(self._pause_after(error))
            else:
                self._give_up_at = None
                self._outage.end()
                return result

    def _pause_after(self, error: Exception) -> float:
        """How long to wait before the next try, in seconds."""
        leave_replica(self.queue_model.database, error)
        return self._outage.next_pause(error)

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
            try:
                failures = queue.requeue_delayed_jobs()
            except WrongKeyType as error:
                self._set_aside(error.key)
            else:
                for ident, reason in failures:
                    self.log(f"Unable to requeue {ident}: {reason}")

    def _set_aside(self, key: str, broken_key: str = "") -> None:
        """Leave what a key belongs to alone for a while, and say why: something of another type is under `broken_key`.

        Args:
            broken_key: the key itself when not given.
        """
        if key not in self._broken_keys():
            self.log(f"{WrongKeyType(broken_key or key)}; it is left alone for {BROKEN_SECONDS} seconds", level="error")
        self._broken[key] = time.monotonic() + BROKEN_SECONDS

    def _broken_keys(self) -> list[str]:
        """The keys that are left alone."""
        if not self._broken:
            return []
        now = time.monotonic()
        self._broken = {key: until for key, until in self._broken.items() if until > now}
        return list(self._broken)

    def _queues_to_promote(self) -> list[Any]:
        """Those with due jobs; from time to time all with delayed ones, for programs that do not note what is due."""
        if self._is_time("_looked_at_delayed", self.fetch_delayed_delay):
            queues = self.queue_model.get_all_by_priority(self.queues)
            sizes = self._ask_keys("zcard", [queue.delayed.key for queue in queues])
            return [queue for queue, size in zip(queues, sizes, strict=True) if size]
        seconds, micros = self.connection.time()
        now = seconds + micros / 1_000_000
        keys = [self._side_key("due", name) for name in self.queues]
        found = self._ask_keys("zrangebyscore", keys, "-inf", now, 0, 100)
        pairs = zip(self.queues, keys, found, strict=True)
        return self._still_named([(name, key, pk) for name, key, pks in pairs for pk in pks or ()])

    def _ask_keys(self, command: str, keys: list[str], *args: Any) -> list[Any]:
        """The replies for some keys; None for those of a wrong type, which are left alone for a while."""
        broken = set(self._broken_keys())
        good = [key for key in keys if key not in broken]
        pipeline = self.connection.pipeline(transaction=False)
        for key in good:
            getattr(pipeline, command)(key, *args)
        replies = dict(zip(good, pipeline.execute(raise_on_error=False), strict=True))
        for key, reply in replies.items():
            if isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply):
                self._set_aside(key)
                replies[key] = None
            elif isinstance(reply, Exception):
                raise reply
        return [replies.get(key) for key in keys]

    def _still_named(self, noted: list[tuple[str, str, str]]) -> list[Any]:
        """The queues that have the name under which something is noted; of the others the note is forgotten."""
        queues = [self.queue_model.from_pk(pk) for _, _, pk in noted]
        names = self._ask_keys("hget", [queue.key for queue in queues], "name")
        found = []
        for (name, key, pk), queue, current in zip(noted, queues, names, strict=True):
            if current == name:
                found.append(queue)
            else:
                self.connection.zrem(key, pk)
        return found

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
            with self._noticing_interrupts():
                self._run_prepared()
            self.end_date = utcnow()
            self.set_status("terminated")
            self.run_ended()
        finally:
            self._end_stopping()
            if self.terminate_gracefuly:
                self.stop_handling_end_signal()

    def _end_stopping(self) -> None:
        """Do without what was to end the process later; if it has begun to, leave it to that."""
        if self._stopping is not None and self._pid == os.getpid():
            if isinstance(self._stopping, threading.Timer):
                self._stopping.cancel()
            self._stopping.join()

    @contextlib.contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        """Tell a KeyboardInterrupt of SIGINT, which ends the worker, from one that a job raises itself."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == self._interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._was_interrupted = True
        signal.default_int_handler(signum, frame)

    def stop_now(self) -> None:
        """Give the job back to the head of its queue, its try not counted, and end the process with the exit code 3."""
        try:
            # the last ones may not be among those that are held yet, and the next ones be under way
            made = self._claims_made
            last = made + max(self.prefetch, 1)
            tokens = [claim.token for claim in list(self._held_claims.values())]
            tokens += [self._token(number) for number in range(made, last + 1)]
            self._send_ends_quickly()
            idents = self._give_back(tokens[::-1])  # each goes to the head: the first one comes last
            try_for(FLUSH_SECONDS, lambda: self._tell_given_back(idents))
        finally:
            super().stop_now()

    def _send_ends_quickly(self) -> None:
        """Record what has ended before the rest is given back; if that cannot be done soon, it runs again."""
        if self._ahead.unsent and self._ahead.lock.acquire(timeout=FLUSH_SECONDS):
            with contextlib.suppress(RedisError, DatabaseException):
                self._send_call(self._exchange_call(list(self._ahead.unsent), 0, False))

    def _tell_given_back(self, idents: Iterable[str]) -> None:
        for ident in idents:
            self.log(f"{ident} is given back: this worker ends at once", level="warning")

    def _give_back(self, tokens: list[str]) -> tuple[str, ...]:
        """Give jobs back by their tokens; answers which. If Redis cannot be used, their leases lapse."""
        client = own_client(self.connection, LAST_TRIES_SECONDS)
        give_up_at = time.monotonic() + LAST_TRIES_SECONDS
        call = transitions.release(self._namespace, self.queue_model._name, tokens)
        for pause in pauses():
            try:
                idents, changes = transitions.send(client, call)
            except RedisError as error:
                if not is_outage(error) or time.monotonic() + pause > give_up_at:
                    break
                time.sleep(pause)
            else:
                repair_indexes(changes)
                return idents
        return ()

    def _run_prepared(self) -> None:
        if self.must_stop() or not self._wait_for_database():
            return
        self._heartbeat = heartbeat = self._new_heartbeat()
        self._doorbell = Doorbell(
            self.connection, [self._side_key("doorbell", name) for name in self.queues], self._alarm
        )
        heartbeat.start()
        unsent_ends.settle = self._settle_for_adding if self.prefetch > 1 else None
        try:
            self._prepare_queues()
            if not self.must_stop():
                self.run_started()
                self._main_loop()
        finally:
            self._leave_nothing()
            heartbeat.stop()
            self._heartbeat = None
            self._doorbell.close()
            self._doorbell = None

    def _leave_nothing(self) -> None:
        """Record the ends that are left, and give back what was claimed ahead and has not begun."""
        if self._pid != os.getpid():
            return
        self._ahead.stop()
        unsent_ends.settle = None
        try:
            with self._ahead.sending():
                self._receive()
        except (RedisError, DatabaseException):
            pass  # what it recorded and claimed is asked for again below
        try:
            self._settle()
        except (RedisError, DatabaseException) as error:
            self.log(f"What has ended last is not recorded, and will run again: {error}", level="error")
        self._give_back_held()

    def _give_back_held(self) -> None:
        """Give back what is claimed and has not ended, in its order, also where the reply to the claim is missing."""
        ended = {one.end.held.token for one in self._ahead.unsent}
        tokens = [claim.token for claim in list(self._held_claims.values()) if claim.token not in ended]
        self._ahead.claims.clear()
        tokens += [self._token(self._claims_made + number) for number in range(1, max(self.prefetch, 1) + 1)]
        self._give_back(tokens[::-1])

    def _wait_for_database(self) -> bool:
        """Wait until the database answers, if it is used for the first time; False when the worker must stop before."""
        while not self.must_stop():
            try:
                return self.connection is not None
            except DatabaseException as error:
                if not is_outage(error):
                    raise
                self._alarm.wait(self._outage.next_pause(error))
        return False

    def _new_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self.connection,
            self._namespace,
            self.lease_seconds,
            self._held_claims,
            on_lost=self._warn_of_lost_lease,
            log=lambda message: self.log(message, level="error"),
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
                    self._warn_of_risks()
                    self._refresh_registry()
                    self.requeue_delayed_jobs()
                    return
                if self.burst:
                    self.end_burst()
                    return
                self._wait_for_ring(POLL_SECONDS)
                self._outage.end()
            except (RedisError, DatabaseException) as error:
                self._alarm.wait(self._pause_after(error))

    def _warn_of_risks(self) -> None:
        """Say at the start what this worker does not protect from."""
        if self.stop_timeout is not None and not self._handles_signals:
            message = "stop_timeout has no effect: this worker does not handle signals"
            self.log(f"{message} (terminate_gracefully is off, or it is not in the main thread)", level="warning")
        if ANY in allowed_modules.names:
            message = "job_modules is *: whoever can write to Redis can have any module imported here"
            self.log(message, level="warning")
        self._warn_of_eviction()

    def _warn_of_eviction(self) -> None:
        """Say it when Redis may remove keys by itself: jobs, and what is known of them."""
        with contextlib.suppress(ResponseError):  # not every user of Redis may ask
            policy = self.connection.info("memory").get("maxmemory_policy", "noeviction")
            if policy != "noeviction":
                self.log(f"Redis may evict jobs: its maxmemory-policy is {policy}, not noeviction", level="warning")

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
        self._known_keys = frozenset(self.keys)
        self._refresh_seconds = time.monotonic() - self._updated_keys

    def _main_loop(self) -> None:
        while not self.must_stop():
            if self._pid != os.getpid():
                raise SystemExit(1)  # a process that a job has forked
            self.set_status("waiting")
            try:
                found = self.wait_for_job()
                if found is not None:
                    self.num_loops += 1
                    self._process_taken(*found)
                    self.check_memory()
            except (RedisError, DatabaseException) as error:
                # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
                pause = self._pause_after(error)
                if not self.must_stop():
                    self._alarm.wait(pause)
            except Exception:  # an override of a method that takes jobs
                self._log_exception("Unable to get job")
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
            found = self._look_for_job() or (self._look_for_last_job() if self.burst else None)
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

    def _look_for_job(self) -> tuple[Any, Any] | None:
        if self._heartbeat is not None and self._heartbeat.is_failing:
            self._alarm.wait(FAILING_SECONDS)  # what it takes now it may not be able to keep
            return None
        self._do_rounds()
        return self._take_job()

    def _look_for_last_job(self) -> tuple[Any, Any] | None:
        """With `burst`, when no job was found: look once more, also where programs put jobs that do not ring."""
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = float("-inf")
        found = self._look_for_job()
        is_due = self._next_due is not None and time.monotonic() >= self._next_due and not self._broken_keys()
        is_failing = self._heartbeat is not None and self._heartbeat.is_failing  # then it has not looked
        if found is None and not (is_due or is_failing or self.must_stop()):
            self.end_burst()
        return found

    def _do_rounds(self) -> None:
        """What is to be done from time to time, between two jobs."""
        now = time.monotonic()
        if now - self._updated_keys >= self.fetch_priorities_delay:
            self._refresh_keys()
        is_due = self._next_due is not None and now >= self._next_due
        if is_due or now - self._looked_at_delayed >= self.fetch_delayed_delay:
            self.requeue_delayed_jobs()
        if now - self._recovered_at >= self._recover_after:
            self._recovered_at = now
            self._recover_after = self.lease_seconds / 3 * random.uniform(0.8, 1.2)
            self._recover_lapsed()
        self._retention.trim()

    def _recover_lapsed(self) -> None:
        call = transitions.recover(
            self._namespace,
            self.queue_model._name,
            new_worker_key(),
            self._worker_key,
            self.lease_seconds,
            self.max_recoveries,
        )
        done = self._send_call(call)
        repair_indexes(done.changes)
        for ident in done.idents:
            self.log(f"{ident} is given back: the lease of its worker lapsed", level="warning")
        for doomed in done.doomed:
            self._end_doomed(doomed)
        for ident in done.unknown:
            try:
                Job.class_of(ident).register(self._namespace)
            except JobClassError as error:
                self.log(f"Unable to give {ident} back: {error}", level="error")

    def _end_doomed(self, doomed: Doomed) -> None:
        """Record the error of a job that is not given back. When that fails, its lease lapses, and it comes again."""
        ident = doomed.held.ident
        error = WorkerLost(ident, doomed.recoveries) if doomed.reason == "LOST" else QueueDeleted(ident)
        self.log(f"{error}: it is in error", level="error")
        with contextlib.suppress(LeaseLost):
            self._write_error_of_unseen(doomed.held, error)

    def _wanted_end(self) -> float:
        if self.wanted_end_date is None:
            return float("inf")
        return time.monotonic() + (self.wanted_end_date - utcnow()).total_seconds()

    def _seconds_until_due(self) -> float:
        # Not less than 20 ms: while a worker of version 2 holds the lock of a queue, its due jobs stay due.
        # Nor than a second while something is wrong with a queue: its jobs stay due, too.
        shortest = 1 if self._broken_keys() else 0.02
        return float("inf") if self._next_due is None else max(self._next_due - time.monotonic(), shortest)

    def _wait_for_ring(self, seconds: float, until_due: float = float("inf")) -> None:
        if self._doorbell is None:  # `wait_for_job` is called without `run`
            keys = [self._side_key("doorbell", name) for name in self.queues]
            self._doorbell = Doorbell(self.connection, keys, self._alarm)
        self._doorbell.wait(min(seconds, until_due), is_exact=until_due < seconds)

    def _take_job(self) -> tuple[Any, Any] | None:
        """Claim a job if there is one, going past entries that cannot be run."""
        while True:
            taken = self._next_taken()
            if taken.kind == "EMPTY":
                return None
            if taken.kind in ("CLAIMED", "STALE"):
                found = self._accept_taken(taken)
                if found is not None:
                    found[1]._is_ahead = taken.is_ahead
                    return found
            else:
                self._clear_away(taken)
            if self.must_stop():
                return None

    def _next_taken(self) -> Taken:
        """What comes next."""
        ahead = self._ahead
        while True:
            self._tell_ends()
            if self.prefetch > 1:
                self._fetch_ahead()
            if not ahead.claims:
                self._settle(claims_count=self._claims_wanted())
            elif ahead.claims[0].is_ahead and ahead.must_look:
                self._look_at_claims()
            taken = ahead.claims.popleft()
            claim = taken.claim
            if taken.is_ahead:
                taken = taken._replace(status=ahead.statuses.pop(taken.ident, taken.status))
            if claim is None or self._held_claims.get(claim.ident) is claim:  # else its lease was lost meanwhile
                return taken

    def _claims_wanted(self) -> int:
        if self._heartbeat is None:  # `wait_for_job` is called without `run`: nobody renews what is not asked for
            return 1
        left = self.max_loops - self.num_loops - len(self._ahead.claims)
        return max(min(self.prefetch - len(self._ahead.claims), left), 1)

    def _fetch_ahead(self) -> None:
        """When half of the claims are used up, ask for more, and read the reply when they are needed."""
        ahead = self._ahead
        if ahead.fetch is not None:
            if not ahead.claims:
                with ahead.sending():
                    self._receive()
                self._tell_ends()
        elif 0 < len(ahead.claims) <= self.prefetch // 2 and ahead.may_have_more and self._may_fetch():
            with ahead.sending():
                done, claims_count = list(ahead.unsent), self._claims_wanted()
                call = self._exchange_call(done, claims_count, self._looks_at_keys(), first_runs=False)
                look = ahead.new_look()
                ahead.fetch = Fetch(transitions.SentCall(self.connection, call), done, claims_count, look)

    def _may_fetch(self) -> bool:
        is_due = self._next_due is not None and time.monotonic() >= self._next_due
        is_last = self.num_loops + len(self._ahead.claims) >= self.max_loops
        is_failing = self._heartbeat is None or self._heartbeat.is_failing
        # a fetch keeps a connection while jobs run
        is_pool_small = self.connection.connection_pool.max_connections < wire.SHARE
        return self._may_claim_early and not (is_due or is_last or is_failing or is_pool_small or self.must_stop())

    def _receive(self) -> None:
        """Read the reply to what was asked ahead, if anything was. Under the lock of `_ahead`."""
        fetch, self._ahead.fetch = self._ahead.fetch, None
        if fetch is not None:
            self._note_exchanged(fetch.done, fetch.sent.read(), fetch.claims_count, fetch.look)
            self._outage.end()

    def _look_at_claims(self) -> None:
        """See whether jobs that were claimed ahead are still to be run: a canceled one does not begin."""
        self._ahead.look = self._ahead.new_look()
        hashes: dict[str, str] = {}
        for taken in list(self._ahead.claims):
            with contextlib.suppress(JobClassError):  # it is in error when its turn comes
                if taken.is_ahead:
                    hashes[taken.ident] = f"{Job.class_of(taken.ident)._name}:{taken.ident.partition(':')[2]}:hash"
        found = self._ask_keys("hget", list(hashes.values()), "status")
        self._ahead.statuses.update({ident: status or "" for ident, status in zip(hashes, found, strict=True)})

    def _tell_ends(self) -> None:
        """Tell of the ends that were sent with others."""
        while self._ahead.sent:
            self._tell_end(self._ahead.sent.popleft())

    def _settle(self, claims_count: int = 0) -> None:
        """Send the ends that are left, and tell of them; claim the next jobs, up to `claims_count`."""
        ahead = self._ahead
        while True:
            with ahead.sending():
                self._receive()
                exchanged = self._exchange(claims_count)
            self._tell_ends()
            if exchanged is None or exchanged.claims or not claims_count:
                return
            # an end was refused, and nothing was claimed: now that it is seen to, ask again

    def _exchange(self, claims_count: int) -> Exchanged | None:
        """Send the ends that are left, and claim; None when there is nothing to do. Under the lock of `_ahead`."""
        done = list(self._ahead.unsent)
        if not claims_count and not done:
            return None
        started, looks_at_keys = time.monotonic(), claims_count > 0 and self._looks_at_keys()
        look = self._ahead.new_look()
        call = self._exchange_call(done, claims_count, looks_at_keys)
        exchanged: Exchanged = (
            self._send_call(call) if claims_count else self._until_answered(lambda: self._send_call(call))
        )
        if looks_at_keys:  # with thousands of queues less often, so that it takes 2% of the time at most
            self._poll_seconds = max(POLL_SECONDS, 50 * (time.monotonic() - started))
        self._outage.end()
        self._note_exchanged(done, exchanged, claims_count, look)
        return exchanged

    def _note_exchanged(
        self, done: list[Done], exchanged: Exchanged, claims_count: int, look: Look | None = None
    ) -> None:
        """Take note of what was recorded and claimed. Under the lock of `_ahead`.

        Args:
            look: from when on what it says of the claims may be old.
        """
        for outcome in exchanged.ends:
            if isinstance(outcome, RedisError) and is_outage(outcome):
                raise outcome  # all of it is sent again
        ahead = self._ahead
        del ahead.unsent[: len(done)]
        for one, outcome in zip(done, exchanged.ends, strict=True):
            one.outcome = outcome
            ahead.sent.append(one)
        if exchanged.claims:  # while no reply comes, the tokens stay: the claims may have been made
            self._claims_made += claims_count
            ahead.look = min(look or ahead.new_look(), ahead.look if ahead.claims else ahead.new_look())
        for position, taken in enumerate(exchanged.claims):
            if taken.next_due is not None:
                self._next_due = time.monotonic() + taken.next_due
            if taken.claim is not None:
                self._hold(taken.claim)
                ahead.statuses.pop(taken.ident, None)
            if position == 0 or taken.kind in ("CLAIMED", "STALE", "GONE"):  # else the next claim will find it first
                ahead.claims.append(taken)
        if claims_count:
            claims = exchanged.claims
            ahead.may_have_more = len(claims) == claims_count and claims[-1].kind == "CLAIMED"

    def _exchange_call(
        self, done: list[Done], claims_count: int, looks_at_keys: bool, first_runs: bool = True
    ) -> transitions.Call[Exchanged]:
        now = time.monotonic()
        looks_around = claims_count > 0 and (looks_at_keys or now - self._looked_around >= AROUND_SECONDS)
        if looks_around:
            self._looked_around = now
        keys: Any = self.keys if looks_at_keys else ()
        if claims_count:
            self._claimed_at = utcnow()
        start = str(self._claimed_at)
        if claims_count == 1 and not done:
            claim = transitions.claim(
                self._namespace,
                self.queue_model._name,
                self._token(self._claims_made + 1),
                self._worker_key,
                self.lease_seconds,
                start,
                self.queues,
                keys,
                self._has_own_keys,
                self._broken_keys(),
                looks_around,
            )
            return transitions.then(claim, lambda taken: Exchanged((), (taken,)))
        ends, number = [one.end for one in done], self._claims_made + 1
        return transitions.exchange(
            self._caller(),
            ends,
            number,
            claims_count,
            start,
            keys,
            self._broken_keys(),
            looks_around,
            self._made_for,
            first_runs,
        )

    def _caller(self) -> transitions.Caller:
        found = self._known_caller
        if found is None or found.worker != self._worker_key:  # another one after a fork
            found = self._known_caller = transitions.Caller(
                self._namespace,
                self.queue_model._name,
                self._worker_key,
                repr(self.lease_seconds),
                str(self.max_recoveries),
                "1" if self._has_own_keys else "0",
                tuple(self.queues),
            )
        return found

    def _clear_away(self, taken: Taken) -> None:
        """See to what stands in the way of the next job."""
        if taken.kind == "UNKNOWN":
            self._resolve_class(taken)
        elif taken.kind == "UNREADABLE":
            self._reject_ident(taken, WrongKeyType(taken.broken_key))
        elif taken.kind == "BROKEN":
            self._set_aside(taken.queue_key, taken.broken_key)
        else:
            self.log(f"Unable to get job: no record of {taken.ident}", level="error")

    def _looks_at_keys(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at_keys >= self._poll_seconds:
            self._looked_at_keys = now
            return True
        return self._has_own_keys

    def _token(self, number: int) -> str:
        """The token of the first claim, the second..."""
        return f"{self._worker_key}-{number}"

    def _accept_taken(self, taken: Taken) -> tuple[Any, Any] | None:
        """The queue and the job of a claim. When that fails, the lease lapses, or the job is in error at once.

        Returns:
            None when the class of the job cannot be had: it is in error.
        """
        try:
            if taken.claim is not None and taken.claim.changes:
                repair_indexes(taken.claim.changes)
            self.set_status("running")
            key = f"{taken.queue_key}:waiting"
            if key not in self._known_keys and not self._has_own_keys:
                self._refresh_keys_for(key)
            queue, job = self.get_queue(key), self.get_job(taken.ident)
        except BaseException as error:
            self._held_claims.pop(taken.ident, None)
            if isinstance(error, Exception) and not isinstance(error, RedisError) and taken.claim is not None:
                self._write_error_of_unseen(taken.claim, error)
                if isinstance(error, JobClassError):
                    self.log(f"Unable to get job: {error}", level="error")
                    return None
            raise  # of an override
        job._claim, job._cached_status = taken.claim, taken.status
        job._began = self._claimed_at if taken.claim is not None else None  # or later, if it was claimed ahead
        self._note_class(job)
        return queue, job

    def _refresh_keys_for(self, key: str) -> None:
        """There is a new queue. With thousands of them, looking for all takes 2% of the time at most."""
        pause = 50 * self._refresh_seconds if self._refresh_seconds > LONG_REFRESH_SECONDS else 0
        if key not in self.keys and time.monotonic() - self._updated_keys >= pause:
            self._refresh_keys()

    def _note_class(self, job: Any) -> None:
        """What the next exchange knows of the class of the last job, if it is one of ours."""
        model: Any = type(job)
        self._made_for = transitions.NO_CLASS
        with contextlib.suppress(ConfigurationException):  # it is told where the class is registered
            if issubclass(model, Job):
                self._made_for = recipes.plain_life(model, self.queue_model)

    def _let_go(self, claim: Claim) -> None:
        """A claim is over; the same job may have been claimed again meanwhile."""
        if self._held_claims.get(claim.ident) is claim:
            self._held_claims.pop(claim.ident, None)

    def _hold(self, claim: Claim) -> None:
        self._held_claims[claim.ident] = claim
        if self._heartbeat is not None:
            self._heartbeat.follow(claim)

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
            self._reject_ident(taken, error)

    def _reject_ident(self, taken: Taken, error: LimpydJobsException) -> None:
        """Move an ident that nobody can run to the errors of its queue, with an Error."""
        self.log(f"Unable to get job: {error}", level="error")
        name = self.connection.hget(f"{taken.queue_key}:hash", "name") or ""
        record = self._record_of_unseen(taken.ident, name, "", error)
        text, recipe = record.text if record else "", ""
        model_repr = taken.ident.partition(":")[0]
        if isinstance(error, JobClassError) and is_dotted_name(model_repr):
            recipe = recipes.guessed_job_recipe(Job, self._namespace, model_repr)
        call = transitions.reject(self._namespace, taken.queue_key, taken.ident, text, str(utcnow()), recipe)
        ended = self._send_call(call)
        if ended.kind == "OK":
            self._retention.note(taken.queue_key, "errors", ended.history)
        self._write_late(record, ended.error_pk)

    def _write_error_of_unseen(self, claim: Claim, error: Exception) -> None:
        """Record the error of a job that this worker holds and cannot have."""
        record = self._record_of_unseen(claim.ident, claim.queue_name, claim.identifier, error)
        text = record.text if record else ""
        self._settle()  # else what is repeated of it would not be known any more
        ended = self._send_call(transitions.fail(self._namespace, claim, str(utcnow()), None, text))
        self._note_history(claim, "errors", ended)
        self._tell_unsaved(claim, ended, text)
        repair_indexes(ended.changes)
        self._write_late(record, ended.error_pk)

    def _record_of_unseen(
        self, ident: str, queue_name: str, identifier: str, error: Exception
    ) -> recipes.Record | None:
        """The Error of a job of which there is only the ident; an Error model that refuses it is logged."""
        if not self.save_errors:
            return None
        model_repr, _, pk = ident.partition(":")
        name, model_repr, pk, identifier = (printable(text) for text in (queue_name, model_repr, pk, identifier))
        try:
            values = Error._values(name, model_repr, pk, identifier, error, None, None)
            return recipes.Record(self.error_model, values)
        except (LimpydJobsException, ValueError):
            self._log_exception(f"Unable to save the error of {ident}")
            return None

    def _write_late(self, record: recipes.Record | None, error_pk: str) -> None:
        if record is not None and error_pk:
            record.write_late(self.error_model.from_pk(error_pk))

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
            if claim is not None and not job._ends_later:  # else it is kept until its end is recorded
                self._let_go(claim)

    def _pass_over(self, queue: Any, job: Any) -> None:
        """Delay a job whose status asks for it, or let go of it."""
        if job._cached_status == STATUSES.DELAYED:
            self._call_hook(job, queue, self.job_delayed)
            self._settle_end(job, queue, self._write_delay)
        else:
            self._call_hook(job, queue, self.job_skipped)
            self._settle_end(job, queue, self._write_skip)

    def _run_job(self, queue: Any, job: Any) -> None:
        if job._is_ahead and not self._begin(job, queue):
            return
        self._call_hook(job, queue, self.job_started)
        is_ours = job._claim is not None
        self._was_interrupted = False
        try:
            result = self.callback(job, queue)
        except BaseException as exception:  # of every kind: what a job raises is its error, not the end of the worker
            if self._must_not_be_caught(exception):
                if self._pid == os.getpid() and job._claim:
                    self._give_back_held()
                raise
            trace = format_trace() if self.save_tracebacks else None
            self._end_in_error(queue, job, exception, trace, is_ours)
        else:
            if self._pid != os.getpid():
                raise SystemExit  # a process that the job has forked: the end of the job is not its business
            self._end_in_success(queue, job, result, is_ours)

    def _begin(self, job: Any, queue: Any) -> bool:
        """A job that was claimed ahead runs now, if it may: that is noted when it takes long, or with its end.

        Where a hook looks at its start, it is noted before.
        """
        job._began = utcnow()
        with self._ahead.lock:
            self._ahead.running = job._claim._replace(start=str(job._began))
        job._note_begun = lambda: self._note_begun(job, queue)
        if not self._has_own_start and not _has_method(job, "on_started"):
            self._ahead.wake()
            return True
        self._call_hook(job, queue, self._note_begun)
        if job._claim is not None and job._cached_status != STATUSES.WAITING:
            self._pass_over(queue, job)
        return job._claim is not None

    def _note_begun(self, job: Any, queue: Any) -> None:
        """Note in Redis that a job that was claimed ahead runs, unless that has been done.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        if job._is_ahead and self._pid == os.getpid():
            job._is_ahead, job._note_begun = False, None
            with self._ahead.lock:
                running, self._ahead.running = self._ahead.running, None
            if running is not None:
                ended = self._end_alone(transitions.begin(self._namespace, running, running.start))
                repair_indexes(ended.changes)
                if ended.kind in ("CHANGED", "GONE"):
                    job._cached_status = ended.status

    def _settle_for_adding(self) -> None:
        """Send the ends that are left: a job that is about to be added may have the identifier of one of them."""
        if self._pid != os.getpid():
            return  # a process that a job has forked: the ends are not its business
        if (self._ahead.unsent or self._ahead.fetch is not None) and not self._ahead.is_sending:
            with self._ahead.sending():
                self._receive()
                done = list(self._ahead.unsent)
                if done:
                    self._note_exchanged(done, self._send_call(self._exchange_call(done, 0, False)), 0)

    def _settle_from_thread(self) -> None:
        """Send what has been waiting for a while: the ends, and that the running job runs."""
        ahead = self._ahead
        with ahead.sending():
            self._receive()
            if ahead.unsent:
                done = list(ahead.unsent)
                self._note_exchanged(done, self._send_call(self._exchange_call(done, 0, False)), 0)
            if ahead.running is not None:
                call = transitions.begin(self._namespace, ahead.running, ahead.running.start)
                with contextlib.suppress(LeaseLost):  # it is found at the end
                    repair_indexes(self._send_call(call).changes)
                ahead.running = None

    def _end_in_error(self, queue: Any, job: Any, exception: BaseException, trace: str | None, is_ours: bool) -> None:
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            self._log_message(job, self.job_error_message, queue, True, exception, trace, level="error")
            return
        if job._is_ahead:
            self._call_hook(job, queue, self._note_begun)
            if job._claim is None:
                return
        self._call_hook(job, queue, self.job_error, exception, trace)
        self._settle_end(job, queue, self._write_plain_error, exception, trace)

    def _end_in_success(self, queue: Any, job: Any, result: Any, is_ours: bool) -> None:
        """Success, unless the job was canceled or delayed meanwhile: a plain worker learns that from the transition."""
        if is_ours and job._claim is None:
            self._moved_itself(job, queue)
            return
        if self._may_end_together and job._claim is not None and not _has_method(job, "on_success"):
            self._end_later(job, queue, result)
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

    def _end_later(self, job: Any, queue: Any, result: Any) -> None:
        """Leave the end of a job to be sent with others."""
        ended = utcnow()
        with self._ahead.lock:
            running, self._ahead.running = self._ahead.running, None
            start = running.start if job._is_ahead and running is not None else ""
            self._ahead.unsent.append(Done(job, queue, result, End(job._claim, start, str(ended))))
        job._cached_duration = ended - (job._began or parse_datetime(job._claim.start))
        job._ends_later = True
        self._ahead.wake()

    def _tell_end(self, done: Done) -> None:
        """What `job_success` does after the write, for an end that was sent with others."""
        job, queue, outcome = done.job, done.queue, done.outcome
        former, self._current_job = self._current_job, job
        try:
            if isinstance(outcome, LeaseLost):
                self._tell_lost_lease(job, queue, outcome)
            elif isinstance(outcome, Exception):
                self.log(f"The end of {done.end.held.ident} cannot be recorded: {outcome}", level="error")
            elif outcome is not None and outcome.kind == "CHANGED":
                job._cached_status = outcome.status
                self._pass_over(queue, job)
            elif outcome is not None:
                self._take_note_of_success(job, done.end.held, outcome)
                self._log_message(job, self.job_success_message, queue, done.result)
        finally:
            self._current_job = former
            self._let_go(done.end.held)

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
        except BaseException as error:
            if self._must_not_be_caught(error):
                raise
            job._is_in_doubt = isinstance(error, RedisError)  # a requeue may be pending: then `recover` makes it
            self._log_exception(f"{self._ident_of(job)} raised, in {hook.__name__}")

    def _must_not_be_caught(self, error: BaseException) -> bool:
        """Is it no error of a job or a hook: a message of ours, SIGINT, the end of a process that a job has forked?"""
        is_interrupt = self._was_interrupted and isinstance(error, KeyboardInterrupt)
        return is_interrupt or isinstance(error, _StatusChanged) or self._pid != os.getpid()

    def _tell_lost_lease(self, job: Any, queue: Any, lost: LeaseLost) -> None:
        job._claim = None
        self.log(str(lost), level="warning")
        self._call_job_hook(job, "on_lease_lost", queue)

    def _log_message(self, job: Any, message: Callable[..., str], *args: Any, level: str = "info") -> None:
        """Log a message about a job; one that raises is logged itself, and ends nothing."""
        if not self._is_heard(level):
            return
        try:
            text = message(job, *args)
        except Exception:
            name = getattr(message, "__name__", message)
            self._log_exception(f"{self._ident_of(job)} raised, in {name}")
        else:
            self.log(text, level=level)

    def _call_job_hook(self, job: Any, name: str, *args: Any) -> None:
        """Call a method of the job, if it has it; what it raises is logged, and ends nothing."""
        if not _has_method(job, name):
            return
        method = getattr(job, name)
        try:
            method(*args)
        except BaseException as error:
            if self._must_not_be_caught(error):
                raise
            self._log_exception(f"{self._ident_of(job)} raised, in {name}")

    def _settle_end(self, job: Any, queue: Any, write: Callable[..., Any], *args: Any) -> None:
        """Record the end of a job whose hook did not, because it is overridden or raised before it came to that."""
        if job._claim is None:
            return
        try:
            if not job._is_written:
                write(job, queue, *args)
            if job._claim is not None and job._claim.worker and not job._is_in_doubt:  # else `recover` places it
                self._write_skip(job, queue)
        except LeaseLost as lost:
            self._tell_lost_lease(job, queue, lost)

    def _write_skip(self, job: Any, queue: Any) -> None:
        ended = self._end_alone(transitions.skip(self._namespace, self._claim_for(job, queue)))
        self._release_claim(job)
        repair_indexes(ended.changes)

    def _claim_for(self, job: Any, queue: Any) -> Claim:
        """The claim on a job; one without a token for a job that was not taken from a queue by this worker."""
        return job._claim or Claim(job.ident, "", "", f"{queue._name}:{queue.pk.get()}")

    def _release_claim(self, job: Any) -> None:
        if job._claim is not None:
            self._let_go(job._claim)
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
        self._note_begun(job, queue)
        claim = self._claim_for(job, queue)
        end = utcnow()
        ended = self._finish(job, End(claim, "", str(end)))
        if ended.kind == "CHANGED":
            raise _StatusChanged(ended.status)
        if claim.start:
            job._cached_duration = end - (job._began or parse_datetime(claim.start))
        self._take_note_of_success(job, claim, ended)

    def _take_note_of_success(self, job: Any, claim: Claim, ended: Ended) -> None:
        job._cached_status, job._is_written = STATUSES.SUCCESS, True
        self._note_history(claim, "success", ended)
        self._release_claim(job)
        if ended.changes:
            repair_indexes(ended.changes)

    def _finish(self, job: Any, end: End) -> Ended:
        """Record a success; where nobody looks before the next job, claim that with it.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        if not self._claims_next(job):
            call = transitions.finish(self._namespace, end.held, end.end)
            ended: Ended = self._end_alone(call)
            return ended
        with self._ahead.sending():
            done = [Done(job, None, None, end)]
            exchange = self._exchange_call(done, 1, self._looks_at_keys())
            self._note_exchanged(done, self._until_answered(lambda: self._send_call(exchange)), 1)
            outcome = self._ahead.sent.pop().outcome
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome

    def _claims_next(self, job: Any) -> bool:
        """Can the next job be claimed with the end of this one: no hook looks in between, and nothing else is due?"""
        if not self._may_claim_early or job._claim is None or _has_method(job, "on_success"):
            return False
        if self._ahead.claims or self._ahead.unsent or self._ahead.fetch is not None:
            return False
        if self._heartbeat is None or self._heartbeat.is_failing or self.must_stop():
            return False
        return self._next_due is None or time.monotonic() < self._next_due

    def _tell_unsaved(self, claim: Claim, ended: transitions.Ended, record: str) -> None:
        if record and ended.kind == "OK" and not ended.error_pk:
            self.log(f"The error of {claim.ident} is not saved: Redis does not accept its record", level="error")

    def _note_history(self, claim: Claim, name: str, ended: transitions.Ended) -> None:
        if ended.kind == "OK":
            self._retention.note(claim.queue_key, name, ended.history)

    def job_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None = None) -> None:
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

    def _write_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> transitions.Ended:
        claim = self._claim_for(job, queue)
        record = self._error_record(job, queue, exception, trace) if self.save_errors else None
        text = record.text if record and not record.late else ""
        times = None if self._must_not_be_requeued(job) else self.requeue_times
        call = transitions.fail(self._namespace, claim, str(utcnow()), times, text)
        ended: Ended = self._end_alone(call)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        self._note_history(claim, "errors", ended)
        self._tell_unsaved(claim, ended, text)
        if not ended.to_be_requeued:
            self._release_claim(job)
        repair_indexes(ended.changes)
        if self.save_errors and not text:
            fields = self.additional_error_fields(job, queue, exception, trace)
            self.error_model.add_error(queue.name.hget(), job, exception, trace=trace, **fields)
        return ended

    def _write_plain_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> None:
        """As `_write_error`, without anything that a subclass may have made to raise."""
        claim = self._claim_for(job, queue)
        ended = self._end_alone(transitions.fail(self._namespace, claim, str(utcnow()), None, ""))
        self._note_history(claim, "errors", ended)
        job._cached_status, job._is_written = STATUSES.ERROR, True
        repair_indexes(ended.changes)
        if ended.to_be_requeued:  # it had been recorded, and the reply was lost
            self._call_hook(job, queue, self._requeue_failed, ended)
        elif self.save_errors and ended.kind == "OK":
            self._call_hook(job, queue, self._save_error, exception, trace)
        if not ended.to_be_requeued:
            self._release_claim(job)

    def _save_error(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> None:
        self.error_model.add_error(queue.name.hget(), job, exception, trace=trace)

    def _error_record(self, job: Any, queue: Any, exception: BaseException, trace: str | None) -> recipes.Record | None:
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
        self._until_answered(
            lambda: job.enqueue_or_delay(queue_name=name, delayed_until=until, queue_model=self.queue_model)
        )
        job._last_claim = last

    def _delayed_until_of(self, job: Any) -> Any:
        try:
            return parse_datetime(job.delayed_until.hget() or "")
        except ValueError:
            seconds, micros = self.connection.time()
            return score_to_datetime(seconds + micros / 1_000_000 + DELAY_SECONDS)
