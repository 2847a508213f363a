"""Taking jobs: the queues that a worker looks at, its claims and leases, and what is to be done from time to time."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from limpyd.exceptions import DoesNotExist
from redis.exceptions import RedisError, ResponseError

from .. import recipes, transitions
from ..database import is_outage, leave_replica
from ..exceptions import (
    ConfigurationException,
    DatabaseException,
    ExecutionLost,
    JobClassError,
    LeaseLost,
    LimpydJobsException,
    QueueDeleted,
    WorkerLost,
    WrongKeyType,
)
from ..models import Error, Job, Queue, _overrides, all_job_models, class_name, printable, repair_indexes
from ..modules import ANY, allowed_modules, is_dotted_name
from ..transitions import Claim, Doomed, Ended, Exchanged, Taken
from ..utils import now_text, pauses, server_seconds, utcnow
from .ahead import Ahead, Done, Look
from .base import BaseWorker, new_worker_key
from .doorbell import Alarm, Doorbell
from .expiring import FIRST_LOOK_SECONDS, NEXT_STEP_SECONDS, ExpiringJobs
from .heartbeat import Heartbeat, own_client
from .heartbeat_file import renew_file
from .logs import facts_of_claim
from .outage import Outage
from .presence import Presence
from .retention import Retention

LAST_TRIES_SECONDS = 5  # for recording an end, or giving jobs back, when the worker must stop
BROKEN_SECONDS = 60  # how long a queue is left alone when something else is under one of its keys
AROUND_SECONDS = 0.1  # how often a busy worker asks when the next delayed job is due
LONG_REFRESH_SECONDS = 0.05  # of the keys: above that it is not done for each new queue
ROUNDS_SECONDS = 0.01  # between two looks, from one job to the next, whether anything of that is to be done
ROLL_UP_SECONDS = 60  # between two looks whether the numbers of some minutes are to be added up


class Claiming(BaseWorker):
    """The part of a worker that knows Redis: which jobs there are for it, and which are leased to it."""

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        super().__init__(queues, **kwargs)
        self._prepare_process()
        self._known_queues: dict[str, Any] = {}
        self._next_due: float | None = None  # by the monotonic clock, as all that follow
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = self._recovered_at = float("-inf")
        self._looked_around = self._did_rounds = float("-inf")
        self._recover_after = self.lease_seconds / 3
        self._known_caller: transitions.Caller | None = None
        self._made_for = transitions.NO_CLASS  # what the next exchange knows of the class of the last job
        self._noted_class: Any = None
        self._known_keys: frozenset[str] = frozenset()
        self._refresh_seconds = 0.0  # what the last refresh of the keys took
        self._poll_seconds = 0.0  # how often the waiting lists are looked at, see POLL_SECONDS
        self._said_no_queues = self._has_told_classes = False
        self._broken: dict[str, float] = {}  # keys of a wrong type -> when to look at them again
        self._outage = Outage(lambda message: self.log(message, level="error"))
        keep = {"success": self.keep_success, "errors": self.keep_errors}
        self._retention = Retention(self.queue_model, self.error_model, keep, self.log)
        self._expiring = ExpiringJobs(self.queue_model, self.error_model, self.log)
        self._roll_up_at = time.monotonic() + random.uniform(*FIRST_LOOK_SECONDS)
        own_keys = _overrides(type(self), Claiming, "update_keys")
        self._has_own_getting = _overrides(type(self), Claiming, "get_job", "get_queue")
        self._has_own_keys = own_keys or _overrides(self.queue_model, Queue, "get_waiting_keys", "get_all_by_priority")

    def _prepare_process(self) -> None:
        """What a worker must not share with another: after a fork it is another one."""
        self._pid = os.getpid()
        self._worker_key = new_worker_key()
        self._claims_made = 0
        self._held_claims: dict[str, Claim] = {}
        self._slots: list[int] = []  # numbers that running jobs have had
        self._new_slots = itertools.count(1)
        self._at_work: dict[int, Any] = {}  # the jobs of which something is being done, by their `id`
        self._alarm = Alarm()
        self._doorbell: Doorbell | None = None
        self._heartbeat: Heartbeat | None = None
        self._presence: Presence | None = None
        self._ahead = Ahead(self._settle_from_thread)

    def _settle(self) -> None:
        """Send the ends that are left."""

    def _settle_from_thread(self) -> None:
        """Send what has been waiting for a while."""

    @property
    def _runs_many(self) -> bool:
        """May several jobs run at the same time?"""
        return False

    @property
    def _claims_at_once(self) -> int:
        """How many jobs one call may claim."""
        return max(self.prefetch, 1)

    @property
    def connection(self) -> Any:
        """The connection of the queues."""
        return self.queue_model.get_connection()

    @property
    def _namespace(self) -> str:
        return self.queue_model.namespace or ""

    def _send_call(self, call: transitions.Call[Any]) -> Any:
        return transitions.send(self.connection, call)

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
                    self._log_facts({"job": ident}, f"Unable to requeue {ident}: {reason}")

    def _set_aside(self, key: str, broken_key: str = "") -> None:
        """Leave what a key belongs to alone for a while, and say why: something of another type is under `broken_key`.

        Args:
            broken_key: the key itself when not given.
        """
        if key not in self._broken_keys():
            self.log(f"{WrongKeyType(broken_key or key)}; it is left alone for {BROKEN_SECONDS} seconds", level="error")
        self._broken[key] = time.monotonic() + BROKEN_SECONDS

    def _note_move(self) -> None:
        """Called wherever the worker looks for something to do, or waits for Redis: it is not stuck."""
        self._moved_at = time.monotonic()
        if self._presence is None and self.heartbeat_file is not None:  # nobody else renews it yet
            renew_file(self.heartbeat_file)

    def _is_moving(self, seconds: float) -> bool:
        """Has it moved in so many seconds, or does it run a job, which may take as long as it wants?"""
        return bool(self._at_work) or time.monotonic() - self._moved_at < seconds

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
        now = server_seconds(self.connection.time())
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
        """Called by the heartbeat: unless the job has given its lease back itself, or is about to at its end."""
        if any(job._claim is claim and not job._has_run for job in list(self._at_work.values())):
            self._log_facts(facts_of_claim(claim), f"The lease of {claim.ident} is lost", level="warning")

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

    def _tell_classes(self) -> None:
        """Tell the classes of jobs that want to know it that a worker of their namespace starts, once."""
        models = [model for model in all_job_models() if model is not Job and "worker_started" in vars(model)]
        for model in () if self._has_told_classes else models:
            if (model.namespace or "") == self._namespace:
                self._tell_class(model)
        self._has_told_classes = True

    def _tell_class(self, model: Any) -> None:
        """What it wants to write may be refused, or it may raise: jobs are run all the same."""
        try:
            model.worker_started()
        except ResponseError as error:
            self.log(f"{model.__name__}.worker_started: {error}", level="warning")
        except (RedisError, DatabaseException):
            raise  # it is called again when Redis can be used
        except Exception:
            self._log_exception(f"{model.__name__} raised, in worker_started")

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

    # --- What is to be done from time to time

    def _do_rounds(self) -> None:
        """Do what is to be done now. Where the next job is there already, all but retention may wait a moment."""
        now, claims = time.monotonic(), self._ahead.claims
        may_wait = bool(claims) and claims[0].claim is not None and not self._retention.is_due
        if not may_wait or now - self._did_rounds >= ROUNDS_SECONDS:
            self._did_rounds = now
            for do in self._rounds():
                do()

    def _rounds(self) -> Iterator[Callable[[], None]]:
        """What is to be done now, between two jobs."""
        now = time.monotonic()
        if now - self._updated_keys >= self.fetch_priorities_delay:
            yield self._refresh_keys
        is_due = self._next_due is not None and now >= self._next_due
        if is_due or now - self._looked_at_delayed >= self.fetch_delayed_delay:
            yield self.requeue_delayed_jobs
        if now - self._recovered_at >= self._recover_after:
            self._recovered_at = now
            self._recover_after = self.lease_seconds / 3 * random.uniform(0.8, 1.2)
            yield self._recover_lapsed
        if self._retention.is_due:
            yield self._retention.trim
        if self._expiring.is_due:
            yield self._expiring.trim
        if now >= self._roll_up_at:
            yield self._roll_up

    def _roll_up(self) -> None:
        """Add the numbers of the last minutes to their hours, unless another worker has come first."""
        self._roll_up_at = time.monotonic() + ROLL_UP_SECONDS
        try:
            done = self._send_call(transitions.roll_up(self._namespace))
        except WrongKeyType as error:
            self.log(f"The numbers of jobs are not added up: {error}", level="error")
        else:
            self._roll_up_at = time.monotonic() if done.has_more else self._roll_up_at

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
            message = f"{ident} is given back: the lease of its worker lapsed"
            self._log_facts({"job": ident, "outcome": "recovered"}, message, level="warning")
        for doomed in done.doomed:
            self._end_doomed(doomed)
        for ident in done.unknown:
            try:
                Job.class_of(ident).register(self._namespace)
            except JobClassError as error:
                self._log_facts({"job": ident}, f"Unable to give {ident} back: {error}", level="error")
        self._follow_up()

    def _follow_up(self) -> None:
        """Go on with the children of jobs that have ended, where somebody else has not come to the end of it."""
        while True:
            done = self._send_call(transitions.follow_up(self._namespace))
            repair_indexes(done.changes)
            if not done.has_more or self.must_stop():
                break
        for ident in done.unknown:
            try:
                Job.class_of(ident).register(self._namespace)
            except JobClassError as error:
                message = f"Unable to go on with {ident}, whose parents have ended: {error}"
                self._log_facts({"job": ident}, message, level="error")

    def _end_doomed(self, doomed: Doomed) -> None:
        """Record the error of a job that is not given back. When that fails, its lease lapses, and it comes again."""
        ident = doomed.held.ident
        causes = {"LOST": WorkerLost(ident, doomed.recoveries), "ALONE": ExecutionLost(ident)}
        error = causes.get(doomed.reason, QueueDeleted(ident))
        facts = {**facts_of_claim(doomed.held), "outcome": "error", "error": class_name(error)}
        self._log_facts(facts, f"{error}: it is in error", level="error")
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

    # --- Claims

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
            ahead.look = min(look or ahead.new_look(), ahead.look) if ahead.claims else look or ahead.new_look()
        for position, taken in enumerate(exchanged.claims):
            if taken.next_due is not None:
                self._next_due = time.monotonic() + taken.next_due
            claim = taken.claim
            if claim is not None:
                if self._runs_many:
                    claim = self._with_slot(claim)
                    taken = taken._replace(claim=claim)
                self._hold(claim)
                ahead.statuses.pop(taken.ident, None)
            if position == 0 or taken.kind in ("CLAIMED", "STALE", "GONE"):  # else the next claim will find it first
                ahead.claims.append(taken)
        if claims_count:
            claims = exchanged.claims
            ahead.may_have_more = len(claims) == claims_count and claims[-1].kind == "CLAIMED"

    def _exchange_call(
        self, done: list[Done], claims_count: int, looks_at_keys: bool, runs_count: int = 1, start: str = ""
    ) -> transitions.Call[Exchanged]:
        """What records ends and claims the next jobs.

        Args:
            start: of the jobs that are claimed; now when it is not given.
        """
        now = time.monotonic()
        looks_around = claims_count > 0 and (looks_at_keys or now - self._looked_around >= AROUND_SECONDS)
        if looks_around:
            self._looked_around = now
        keys: Any = self.keys if looks_at_keys else ()
        start = start or now_text()
        # where an exchange goes its quick way: around keys, or more than one name, only `claim` looks
        is_quick = not looks_around or (runs_count == len(self.queues) == 1 and not keys)
        is_quick = is_quick and self._made_for != transitions.NO_CLASS
        if claims_count == 1 and not done and not self._runs_many and not is_quick:
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
            transitions.NO_CLASS if self._has_own_keys else self._made_for,
            runs_count,
        )

    def _caller(self) -> transitions.Caller:
        found = self._known_caller
        if found is None or found.worker != self._worker_key:  # another one after a fork
            found = self._known_caller = transitions.Caller(
                self._namespace,
                self.queue_model._name,
                self._worker_key,
                self.lease_seconds,
                self.max_recoveries,
                self._has_own_keys,
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
        elif taken.kind != "PARKED":  # then there is more to look at
            self._log_facts({"job": taken.ident}, f"Unable to get job: no record of {taken.ident}", level="error")

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
            key = f"{taken.queue_key}:waiting"
            if key not in self._known_keys and not self._has_own_keys:
                self._refresh_keys_for(key)
            queue, job = self.get_queue(key), self.get_job(taken.ident)
        except BaseException as error:
            self._held_claims.pop(taken.ident, None)
            if isinstance(error, Exception) and not isinstance(error, RedisError) and taken.claim is not None:
                self._write_error_of_unseen(taken.claim, error)
                if isinstance(error, JobClassError):
                    facts = {**facts_of_claim(taken.claim), "outcome": "error", "error": class_name(error)}
                    self._log_facts(facts, f"Unable to get job: {error}", level="error")
                    return None
            raise  # of an override
        job._claim, job._cached_status = taken.claim, taken.status
        self._note_class(job)
        return queue, job

    def _refresh_keys_for(self, key: str) -> None:
        """There is a new queue. With thousands of them, looking for all takes 2% of the time at most."""
        pause = 50 * self._refresh_seconds if self._refresh_seconds > LONG_REFRESH_SECONDS else 0
        if key not in self.keys and time.monotonic() - self._updated_keys >= pause:
            self._refresh_keys()

    def _is_known(self, taken: Taken) -> bool:
        """Are the queue and the class of a job known, so that accepting it waits for nothing?"""
        is_plain = taken.claim is not None and not taken.claim.changes and not self._has_own_getting
        return is_plain and f"{taken.queue_key}:waiting" in self._known_keys and Job.is_known(taken.ident)

    def _note_class(self, job: Any) -> None:
        """What the next exchange knows of the class of the last job, if it is one of ours."""
        model: Any = type(job)
        if model is self._noted_class:
            return
        self._noted_class, self._made_for = model, transitions.NO_CLASS
        with contextlib.suppress(ConfigurationException):  # it is told where the class is registered
            if issubclass(model, Job):
                self._made_for = recipes.plain_life(model, self.queue_model)

    def _let_go(self, claim: Claim) -> None:
        """A claim is over; the same job may have been claimed again meanwhile."""
        if self._held_claims.get(claim.ident) is claim:
            self._held_claims.pop(claim.ident, None)

    def _with_slot(self, claim: Claim) -> Claim:
        """A claim whose end Redis remembers beside those that may be under way at the same time.

        It remembers the last end of a worker, so that one whose reply is lost can be sent again. Here each job that
        runs has a number of its own, and counts as a worker.
        """
        slot = self._slots.pop() if self._slots else next(self._new_slots)
        return claim._replace(worker=f"{self._worker_key}/{slot}")

    def _take_slot_back(self, claim: Claim) -> None:
        _, separator, slot = claim.worker.partition("/")
        if separator:
            self._slots.append(int(slot))

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
        facts = {"job": taken.ident, "outcome": "error", "error": class_name(error)}
        self._log_facts(facts, f"Unable to get job: {error}", level="error")
        name = self.connection.hget(f"{taken.queue_key}:hash", "name") or ""
        record = self._record_of_unseen(taken.ident, name, "", error)
        text, recipe = record.text if record else "", ""
        model_repr = taken.ident.partition(":")[0]
        if isinstance(error, JobClassError) and is_dotted_name(model_repr):
            recipe = recipes.guessed_job_recipe(Job, self._namespace, model_repr)
        call = transitions.reject(self._namespace, taken.queue_key, taken.ident, text, now_text(), recipe)
        ended = self._send_call(call)
        if ended.kind == "OK":
            self._retention.note(taken.queue_key, "errors", ended.history)
        self._write_late(record, ended.error_pk)

    def _write_error_of_unseen(self, claim: Claim, error: Exception) -> None:
        """Record the error of a job that this worker holds and cannot have."""
        record = self._record_of_unseen(claim.ident, claim.queue_name, claim.identifier, error)
        text = record.text if record else ""
        self._settle()  # else what is repeated of it would not be known any more
        ended = self._send_call(transitions.fail(self._namespace, claim, now_text(), None, text))
        self._note_history(claim, "errors", ended)
        self._tell_unsaved(claim, ended, text)
        repair_indexes(ended.changes)
        self._write_late(record, ended.error_pk)

    def _tell_unsaved(self, claim: Claim, ended: Ended, record: str) -> None:
        if record and ended.kind == "OK" and not ended.error_pk:
            message = f"The error of {claim.ident} is not saved: Redis does not accept its record"
            self._log_facts(facts_of_claim(claim), message, level="error")

    def _note_history(self, claim: Claim, name: str, ended: Ended) -> None:
        if ended.kind == "OK":
            self._retention.note(claim.queue_key, name, ended.history)

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

    def _wait_for_ring(self, seconds: float, until_due: float = float("inf")) -> None:
        if self._doorbell is None:  # `wait_for_job` is called without `run`
            keys = [self._side_key("doorbell", name) for name in self.queues]
            self._doorbell = Doorbell(self.connection, keys, self._alarm)
        if self._expiring.is_due:
            seconds = min(seconds, NEXT_STEP_SECONDS)
        news = self._presence.take_call(is_early=True) if self._presence is not None else None
        self._doorbell.wait(min(seconds, until_due), until_due < seconds, news.command() if news else ())
        if news and self._doorbell is not None and self._presence is not None and self._doorbell.has_refused_news:
            self._presence.note_refused()

    def _wait_for_database(self) -> bool:
        """Wait until the database answers, if it is used for the first time; False when the worker must stop before."""
        while not self.must_stop():
            self._note_move()
            try:
                return self.connection is not None
            except DatabaseException as error:
                if not is_outage(error):
                    raise
                self._note_held_up()
                self._alarm.wait(self._outage.next_pause(error))
        return False

    # --- Giving back

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

    def _give_back_held(self) -> None:
        """Give back what is claimed and has not ended, in its order, also where the reply to the claim is missing."""
        ended = {one.end.held.token for one in self._ahead.unsent}
        tokens = [claim.token for claim in list(self._held_claims.values()) if claim.token not in ended]
        self._ahead.claims.clear()
        tokens += [self._token(self._claims_made + number) for number in range(1, self._claims_at_once + 1)]
        self._give_back(tokens[::-1])

    def _tell_given_back(self, idents: Iterable[str]) -> None:
        for ident in idents:
            message = f"{ident} is given back: this worker ends at once"
            self._log_facts({"job": ident, "outcome": "released"}, message, level="warning")
