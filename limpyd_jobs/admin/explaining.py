"""Why a job does not run: one sentence, with its evidence.

A *clause* is such a sentence without its subject: "is delayed until ...". So it can be said of the job itself ("It is
delayed until ...") and of one that another job waits for ("..., which is delayed until ...").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..models import Queue
from ..statuses import STATUSES
from ..utils import datetime_to_score, parse_datetime
from .errors import find_errors
from .finding import get_job
from .reading import ask, is_wrong_type, kind_of
from .records import ErrorFilter, ErrorRecord, JobRecord
from .sight import DEEPEST, Sight, Surroundings
from .wording import duration, local, number_of, utc

LONGEST_CHAIN = 20  # jobs of which each waits for the next one
PARENTS_LOOKED_AT = 100
NAMED = 3  # workers, or jobs, in a sentence
HOLDERS_LOOKED_AT = 10
LOOK_SECONDS = 30  # after which parked jobs are looked at again, at the latest: see docs/limits.md
BOOKS = "the books are wrong: run `limpyd-jobs check`"
STOPPING = ("aborted", "ending", "terminated")
PARENT_FAILED = "parent failed: "  # what `cancel_reason` begins with when the job that it waited for has failed

# What may be in the way of a job, in a word: docs/explain.md says more of each.
REASONS = (
    "running",
    "worker-lost",
    "no-lease",
    "claimed-ahead",
    "moving",
    "paused",
    "no-workers",
    "not-heard",
    "workers-stop",
    "limit",
    "rate",
    "unknown-class",
    "busy",
    "next",
    "behind",
    "delayed",
    "due",
    "waits-for",
    "parent-failed",
    "telling",
    "canceled",
    "expired",
    "failed",
    "succeeded",
    "no-queue",
    "broken",
    "lost",
)


@dataclass(frozen=True)
class Explanation:
    """Why a job does not run, where it runs, or how it ended.

    Attributes:
        sentence: for people.
        reason: one of REASONS, for programs.
        evidence: what the sentence was made from: texts, numbers, lists and dicts of these. `also`: what else is in
            the way, as reasons.
        starts_in: about how many seconds it takes until the job starts; None when nobody can tell.
    """

    ident: str
    sentence: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    starts_in: float | None = None

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class _Cause:
    """One thing that is in the way of a job, or what has become of it."""

    reason: str
    clause: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    starts_in: float | None = None


def explain(ident: str, queue_model: Any = Queue) -> Explanation:
    """Say in one sentence why a job does not run, where it runs, or how it ended. Reads only.

    Args:
        ident: `module.Class:7`, a primary key alone or an identifier, as `get_job` takes them.
    Raises:
        JobNotFound: there is no such job.
    """
    record = get_job(ident, queue_model=queue_model)
    cause = _Explainer(Surroundings(queue_model)).cause_of(record.ident)
    return Explanation(record.ident, f"It {cause.clause}.", cause.reason, cause.evidence, cause.starts_in)


class _Explainer:
    """Explains a job, and those that it waits for."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.seen: list[str] = []  # from the job that was asked about to the one that it waits for in the end

    def cause_of(self, ident: str) -> _Cause:
        sight = self.around.look(ident)
        if sight is None:
            return _Cause("lost", "has no record that can be read", {})
        self.seen.append(ident)
        explain_status: dict[str, Callable[[Sight], _Cause]] = {
            STATUSES.RUNNING: self._running,
            STATUSES.WAITING: self._waiting,
            STATUSES.DELAYED: self._delayed,
            STATUSES.BLOCKED: self._blocked,
            STATUSES.SUCCESS: _succeeded,
            STATUSES.ERROR: self._failed,
            STATUSES.CANCELED: self._canceled,
        }
        found = explain_status.get(sight.status, _without_status)(sight)
        return replace(found, evidence={"status": STATUSES.by_value(sight.status, "none"), **found.evidence})

    # --- leased

    def _running(self, sight: Sight) -> _Cause:
        if sight.lease_until is None:
            clause = f"is RUNNING, and nobody has a lease on it: a worker of version 2 runs it, or {BOOKS}"
            return _Cause("no-lease", clause, {"since": sight.fields.get("start")})
        lost = self._worker_lost(sight)
        if lost is not None:
            return lost
        start = sight.fields.get("start")
        since = f"since {_seconds_of(start)} UTC ({_ago(start, sight.now)})" if start else "since a moment"
        evidence = {"since": start, "lease_until": utc(sight.lease_until), **self._worker_evidence(sight)}
        if "queue_key" not in sight.fields and sight.worker_id not in self.around.workers:
            return _Cause(
                "running", f"has been running {since}, executed at once by the process that made it", evidence
            )
        return _Cause("running", f"has been running {since} on {self._name_worker(sight.worker_id)}", evidence)

    def _worker_lost(self, sight: Sight) -> _Cause | None:
        """Is it in the hands of a worker that is gone?"""
        left = (sight.lease_until or 0.0) - sight.now
        is_known = sight.worker_id in self.around.workers
        if left > 0 and (is_known or "queue_key" not in sight.fields):
            return None
        evidence = {"lease_until": utc(sight.lease_until or 0.0), **self._worker_evidence(sight)}
        if left > 0:
            when = f"it is given back when its lease lapses, in {duration(left)}"
        elif self.around.workers:
            when = f"its lease lapsed {duration(left)} ago, and the next worker that looks gives it back"
        else:
            when = f"its lease lapsed {duration(left)} ago, and no worker is alive to give it back"
        starts_in = max(left, 0.0) if self.around.workers else None
        return _Cause("worker-lost", f"was taken by a worker that is gone; {when}", evidence, starts_in)

    def _worker_evidence(self, sight: Sight) -> dict[str, Any]:
        worker = self.around.workers.get(sight.worker_id)
        if worker is None:
            return {"worker": sight.worker_id}
        return {"worker": worker.id, "host": worker.host, "pid": worker.pid, "heartbeat_age": worker.heartbeat_age}

    def _name_worker(self, worker_id: str) -> str:
        worker = self.around.workers.get(worker_id)
        if worker is None:
            return f"the worker {worker_id}"
        return f"{worker.host}:{worker.pid} (last heartbeat {duration(worker.heartbeat_age)} ago)"

    def _leased(self, sight: Sight) -> _Cause | None:
        """Is it in the hands of a process, though it does not run?"""
        if sight.lease_until is None:
            return None
        if sight.worker_id and sight.status == STATUSES.WAITING:
            return self._worker_lost(sight) or self._claimed_ahead(sight)
        left = sight.lease_until - sight.now
        evidence = {"lease_until": utc(sight.lease_until), **self._worker_evidence(sight)}
        when = f"for {duration(left)} at most" if left > 0 else "and is late: the next worker that looks does it"
        return _Cause("moving", f"is being put in its queue by the process that has it, {when}", evidence)

    def _claimed_ahead(self, sight: Sight) -> _Cause:
        worker = self.around.workers[sight.worker_id]
        runs = f", which runs {_named_jobs(worker.jobs)}" if worker.jobs else ""
        clause = f"was claimed ahead by {self._name_worker(worker.id)}{runs}, and begins after that"
        jobs = [{"ident": job.ident, "since": job.since} for job in worker.jobs]
        return _Cause("claimed-ahead", clause, {**self._worker_evidence(sight), "jobs": jobs})

    # --- waiting

    def _waiting(self, sight: Sight) -> _Cause:
        return self._leased(sight) or self._misplaced(sight) or self._joined(list(self._obstacles(sight)))

    def _misplaced(self, sight: Sight) -> _Cause | None:
        """Is it where no worker finds it?"""
        key = sight.fields.get("queue_key")
        if sight.broken is not None:
            clause = f"is in a queue that workers leave alone: something of another type is under {sight.broken}"
            return _Cause("broken", clause, {"key": sight.broken})
        if sight.queue is None and key is not None:
            return _Cause(
                "no-queue", f"was in {key}, a queue that has been deleted: no worker finds it", {"queue": key}
            )
        is_somewhere = sight.ahead is not None or sight.due is not None or sight.is_parked or sight.is_deep
        if not is_somewhere:
            name = STATUSES.by_value(sight.status, "no status")
            return _Cause("lost", f"is {name}, and in no place; {BOOKS}", _queue_evidence(sight))
        return None

    def _joined(self, causes: list[_Cause]) -> _Cause:
        """What is in the way first, and what else is."""
        first, *others = causes
        clause = "; besides, it ".join(cause.clause for cause in causes)
        evidence: dict[str, Any] = {}
        for cause in reversed(causes):
            evidence |= cause.evidence
        if others:
            evidence["also"] = [cause.reason for cause in others]
        return _Cause(first.reason, clause, evidence, first.starts_in if not others else None)

    def _obstacles(self, sight: Sight) -> Iterator[_Cause]:
        expires = sight.run_options.get("expires")
        if isinstance(expires, (int, float)) and expires <= sight.now:
            clause = f"expired at {utc(expires)} UTC, and ends when a worker comes to it"
            yield _Cause("expired", clause, {"expires": utc(expires)})
        yield from self._obstacles_of_queue(sight)
        if sight.is_parked:
            yield self._parked(sight)
        elif sight.status == STATUSES.DELAYED:
            clause = (
                f"was told to wait until {sight.fields.get('delayed_until')} UTC: the worker that takes it delays it"
            )
            yield _Cause("delayed", clause, {"until": sight.fields.get("delayed_until")})
        else:
            if not sight.is_registered:
                clause = f"is of the class {sight.kind.name}, which no worker knows yet: one must be able to import it"
                yield _Cause("unknown-class", clause, {"class": sight.kind.name})
            yield self._in_line(sight)

    def _obstacles_of_queue(self, sight: Sight) -> Iterator[_Cause]:
        """Why no worker takes anything of its queue."""
        name = sight.queue.name if sight.queue else ""
        pause = self.around.pauses.get(name)
        if pause is not None:
            by, why = f" by {pause.by}" if pause.by else "", f" ({pause.reason})" if pause.reason else ""
            clause = f"is in {name!r}, which was paused at {pause.since} UTC{by}{why}"
            evidence = {"since": pause.since, "by": pause.by, "pause_reason": pause.reason}
            yield _Cause("paused", clause, {"queue": name, **evidence})
        listeners = self.around.listeners_of(name)
        if not self.around.workers:
            yield _Cause("no-workers", f"waits in {name!r}, and no worker is alive", {"queue": name})
        elif not listeners:
            others = sorted({queue for worker in self.around.workers.values() for queue in worker.queues})
            alive = len(self.around.workers)
            who = "the one that is alive listens" if alive == 1 else f"the {alive:,} that are alive listen"
            clause = f"waits in {name!r}, on which no worker listens: {who} on {_named(others)}"
            yield _Cause("not-heard", clause, {"queue": name, "heard": others[:PARENTS_LOOKED_AT]})
        elif all(worker.status in STOPPING for worker in listeners):
            names = [f"{worker.host}:{worker.pid}" for worker in listeners]
            clause = f"waits in {name!r}, and all workers that listen on it are about to end: {_named(names)}"
            yield _Cause("workers-stop", clause, {"queue": name, "workers": names})

    def _in_line(self, sight: Sight) -> _Cause:
        """How far it is from the head of its queue."""
        assert sight.queue is not None
        evidence = _queue_evidence(sight)
        before = self.around.waiting_before(sight.queue)
        rate = self.around.started_per_second(sight.queue.name)
        evidence |= {"higher": before, "started_per_second": rate}
        if sight.ahead is None:
            clause = f"is behind more than {number_of(DEEPEST, 'job')} in {sight.queue.name!r}, {_pace(rate)}"
            return _Cause("behind", clause, {**evidence, "ahead": None})
        count = before + sight.ahead
        evidence["ahead"] = count
        if count == 0:
            return self._first_in_line(sight, evidence)
        of = "of its own and higher priorities " if before else ""
        starts_in = count / rate if rate else None
        about = (
            f"it starts in about {duration(starts_in)}" if starts_in is not None else "nobody can say when it starts"
        )
        clause = f"is behind {number_of(count, 'job')} {of}in {sight.queue.name!r}, {_pace(rate)}: {about}"
        return _Cause("behind", clause, evidence, starts_in)

    def _first_in_line(self, sight: Sight, evidence: dict[str, Any]) -> _Cause:
        assert sight.queue is not None
        name = sight.queue.name
        listeners = self.around.listeners_of(name)
        busy = [worker for worker in listeners if len(worker.jobs) >= _capacity(worker.options)]
        if not listeners or len(busy) < len(listeners):
            return _Cause("next", f"is the next one of {name!r}", evidence, 0.0 if listeners else None)
        doing = [f"{worker.host}:{worker.pid} with {_named_jobs(worker.jobs)}" for worker in busy]
        who = "the worker that listens is" if len(busy) == 1 else f"the {len(busy)} workers that listen are"
        evidence["workers"] = [
            {"worker": worker.id, "jobs": [{"ident": job.ident, "since": job.since} for job in worker.jobs]}
            for worker in busy[:HOLDERS_LOOKED_AT]
        ]
        return _Cause("busy", f"is the next one of {name!r}, and {who} busy: {_named(doing)}", evidence)

    # --- limits

    def _parked(self, sight: Sight) -> _Cause:
        """Which of its limits does not let it start."""
        key = str(sight.limit.get("key"))
        limits = sight.limit.get("limits") or {}
        before = self.around.client.zrank(f"{self._limit_key(key)}:parked", _parked_name(sight))
        evidence = {**_queue_evidence(sight), "limit_key": key, "parked_before": before}
        most, rate = limits.get("most"), limits.get("rate")
        if most:
            held = int(self.around.client.zcard(f"{self._limit_key(key)}:held"))
            if held >= most:
                return self._limit_full(sight, key, int(most), held, evidence)
        if rate:
            wait = self._wait_for_rate(key, int(rate[0]), float(rate[1]), sight.now)
            if wait > 0:
                return _rate_used_up(key, rate, wait, before or 0, evidence)
        clause = f"may start by its limit {key!r}, and is brought back to its queue within {LOOK_SECONDS} seconds"
        return _Cause("limit", clause, evidence, float(LOOK_SECONDS))

    def _limit_key(self, key: str) -> str:
        return f"{self.around.namespace}:limit:{key}"

    def _limit_full(self, sight: Sight, key: str, most: int, held: int, evidence: dict[str, Any]) -> _Cause:
        idents = self.around.client.zrange(f"{self._limit_key(key)}:held", 0, HOLDERS_LOOKED_AT - 1)
        holders = list(self._holders(idents))
        named = _named([_name_holder(holder, sight.now) for holder in holders], held)
        before = evidence["parked_before"]
        behind = f", behind {number_of(before, 'job')} that came before it" if before else ""
        clause = f"waits for room under the limit {key!r}{behind}: {most} may run at the same time, and {named} do"
        return _Cause("limit", clause, {**evidence, "max_concurrency": most, "held": held, "holders": holders})

    def _holders(self, idents: list[str]) -> Iterator[dict[str, Any]]:
        """Who holds a place: the job, its worker, and since when it runs."""
        tokens = self.around.client.hmget(f"{self.around.namespace}:claims", idents) if idents else []
        records = self.around.records(idents)
        for ident, token in zip(idents, tokens, strict=True):
            record = records[ident]
            worker = self.around.workers.get((token or "").rpartition("-")[0])
            yield {
                "ident": ident,
                "worker": f"{worker.host}:{worker.pid}" if worker else None,
                "since": record.start if record else None,
            }

    def _wait_for_rate(self, key: str, count: int, seconds: float, now: float) -> float:
        """In how many seconds the next job may start; 0 for now."""
        starts = self.around.client.zrevrange(f"{self._limit_key(key)}:rate", count - 1, count - 1, withscores=True)
        return max(float(starts[0][1]) + seconds - now, 0.0) if starts else 0.0

    # --- delayed

    def _delayed(self, sight: Sight) -> _Cause:
        found = self._leased(sight) or self._misplaced(sight)
        if found is not None:
            return found
        if sight.due is None:
            return self._joined(list(self._obstacles(sight)))
        retry = self._retry_of(sight)
        causes = [_delay(sight, sight.due, str(retry.pop("clause", "")), retry), *self._obstacles_of_queue(sight)]
        if sight.due <= sight.now and len(causes) > 1:
            causes = [*causes[1:], causes[0]]  # it is the queue that keeps it
        return self._joined(causes)

    def _retry_of(self, sight: Sight) -> dict[str, Any]:
        """Of a job that has failed before: what it failed with."""
        tries = sight.fields.get("tries", "0")
        error = self._last_error(sight.ident) if tries not in ("", "0") else None
        if error is None:
            return {}
        return {"clause": f", after try {tries} failed with {_name_error(error)}", "tries": tries, "error": error}

    # --- blocked

    def _blocked(self, sight: Sight) -> _Cause:
        key = f"{sight.kind.key}:{sight.pk}:waits_for"
        _, idents = self.around.client.sscan(key, count=PARENTS_LOOKED_AT)
        idents = sorted(idents)[:PARENTS_LOOKED_AT]
        count = int(self.around.client.scard(key))
        parents = self.around.records(idents)
        evidence = {
            "waits_for": [{"ident": ident, "status": _status_of(record)} for ident, record in parents.items()],
            "count": count,
        }
        if not count:
            return _Cause("lost", f"is BLOCKED, and waits for no job; {BOOKS}", evidence)
        for ident, record in parents.items():
            if _has_ended_badly(record):
                return self._parent_failed(sight, ident, evidence)
        for ident, record in parents.items():
            if record is not None and record.status != STATUSES.SUCCESS:
                return self._waits_for(ident, count - 1, evidence)
        return self._untold(idents, evidence)

    def _parent_failed(self, sight: Sight, ident: str, evidence: dict[str, Any]) -> _Cause:
        if sight.run_options.get("if_parent_fails") != "wait":
            return self._untold([ident], evidence)
        error = self._last_error(ident)
        why = f" with {_name_error(error)}" if error else ""
        clause = f"waits for {ident}, which failed{why}: requeue that one, or cancel this one"
        return _Cause("parent-failed", clause, {**evidence, "parent": ident, "error": error})

    def _waits_for(self, ident: str, others: int, evidence: dict[str, Any]) -> _Cause:
        """Follow the first one that has not ended, to what keeps it."""
        more = f" and {number_of(others, 'other')}" if others else ""
        if ident in self.seen or len(self.seen) >= LONGEST_CHAIN:
            clause = f"waits for {ident}{more}, at the end of a chain of {len(self.seen)} jobs"
            return _Cause("waits-for", clause, {**evidence, "chain": [ident]})
        cause = self.cause_of(ident)
        chain = [ident, *cause.evidence.get("chain", [])]
        last = cause.evidence.get("last", {"ident": ident, "reason": cause.reason, "clause": cause.clause})
        if len(chain) == 1:
            clause = f"waits for {ident}{more}, which {last['clause']}"
        else:
            by = f", through {number_of(len(chain) - 2, 'more job')}," if len(chain) > 2 else ""
            clause = f"waits for {ident}{more}, and so{by} for {chain[-1]}, which {last['clause']}"
        return _Cause("waits-for", clause, {**evidence, "chain": chain, "last": last})

    def _untold(self, idents: list[str], evidence: dict[str, Any]) -> _Cause:
        """All that it waits for have ended: is it about to be told?"""
        replies = ask(self.around.client, (("ZSCORE", f"{self.around.namespace}:followups", one) for one in idents))
        if any(reply is not None and not is_wrong_type(reply) for reply in replies):
            clause = f"waits for {idents[0]}, which has ended: workers are telling the jobs that wait for it"
            return _Cause("telling", clause, evidence)
        return _Cause("lost", f"waits for {idents[0]}, which has ended, and will not hear of it; {BOOKS}", evidence)

    # --- ended

    def _failed(self, sight: Sight) -> _Cause:
        error = self._last_error(sight.ident)
        why = f" with {_name_error(error)}" if error else ""
        evidence = {"tries": sight.fields.get("tries"), "error": error, "end": sight.fields.get("end")}
        if sight.is_queued:
            return _Cause("moving", f"failed{why}, and its worker is about to put it in its queue again", evidence)
        when = f"at {_seconds_of(sight.fields['end'])} UTC" if "end" in sight.fields else "at some time"
        tries = f", in try {sight.fields['tries']}" if "tries" in sight.fields else ""
        return _Cause("failed", f"failed {when}{tries}{why}, and is not tried again", evidence)

    def _canceled(self, sight: Sight) -> _Cause:
        reason = sight.fields.get("cancel_reason") or "nobody has said why"
        evidence: dict[str, Any] = {"cancel_reason": sight.fields.get("cancel_reason")}
        if sight.is_queued:
            clause = f"is canceled ({reason}), and leaves its queue when a worker comes to it"
            return _Cause("canceled", clause, {**evidence, **_queue_evidence(sight)})
        if reason == "expired":
            expires = sight.run_options.get("expires")
            since = f", at {utc(expires)} UTC" if isinstance(expires, (int, float)) else ""
            return _Cause("expired", f"expired{since}, before a worker came to it", evidence)
        if reason.startswith(PARENT_FAILED):
            parent = reason.removeprefix(PARENT_FAILED)
            error = self._last_error(parent)
            why = f" with {_name_error(error)}" if error else ""
            clause = f"was canceled because {parent}, which it waited for, failed{why}"
            return _Cause("parent-failed", clause, {**evidence, "parent": parent, "error": error})
        return _Cause("canceled", f"was canceled: {reason}", evidence)

    def _last_error(self, ident: str) -> dict[str, Any] | None:
        """What a job failed with last."""
        kind, pk = kind_of(self.around.kinds, ident) or (None, "")
        found: list[ErrorRecord] = []
        for name in kind.names if kind else ():
            found += find_errors(ErrorFilter(job=f"{name}:{pk}"), 1, queue_model=self.around.queue_model).items
        if not found:
            return None
        error = max(found, key=lambda one: one.date_time)
        return {"type": error.type, "message": error.message, "code": error.code, "date_time": error.date_time}


_ENDED_BADLY = (STATUSES.ERROR, STATUSES.CANCELED)


def _succeeded(sight: Sight) -> _Cause:
    start, end = sight.fields.get("start"), sight.fields.get("end")
    lasted = f", after a run of {duration(_score(end) - _score(start))}" if start and end else ""
    return _Cause("succeeded", f"ended well at {_seconds_of(end)} UTC{lasted}", {"start": start, "end": end})


def _without_status(sight: Sight) -> _Cause:
    return _Cause("lost", f"has no status that there is ({sight.status!r}); {BOOKS}", {})


def _delay(sight: Sight, due: float, retry: str, evidence: Mapping[str, Any]) -> _Cause:
    found = {**_queue_evidence(sight), "until": utc(due), "until_local": local(due) or utc(due), **evidence}
    if due > sight.now:
        here = f", {local(due)} here" if local(due) else ""
        clause = f"is delayed until {utc(due)} UTC{here} (in {duration(due - sight.now)}){retry}"
        return _Cause("delayed", clause, found, due - sight.now)
    clause = (
        f"was delayed until {utc(due)} UTC ({duration(sight.now - due)} ago){retry}: a worker that looks lets it wait"
    )
    return _Cause("due", clause, found, 0.0)


def _rate_used_up(key: str, rate: Any, wait: float, before: int, evidence: dict[str, Any]) -> _Cause:
    count, seconds = int(rate[0]), float(rate[1])
    behind = f", behind {number_of(before, 'job')} that came before it" if before else ""
    clause = (
        f"waits for the rate of {key!r}{behind}: it allows {number_of(count, 'start')} in {duration(seconds)},"
        f" and the next one in {duration(wait)}"
    )
    starts_in = wait + before // count * seconds
    return _Cause("rate", clause, {**evidence, "rate_limit": [count, seconds], "next_in": wait}, starts_in)


def _queue_evidence(sight: Sight) -> dict[str, Any]:
    if sight.queue is None:
        return {"queue": None}
    return {"queue": sight.queue.name, "priority": sight.queue.priority}


def _parked_name(sight: Sight) -> str:
    """As the sorted set of parked jobs has it, see _common.lua."""
    return f"{int(float(sight.limit.get('number') or 0)):016d} {sight.ident}"


def _pace(rate: float) -> str:
    if not rate:
        return "of which none was started in the last minutes"
    return (
        f"of which about {rate:.2g} are started a second"
        if rate >= 1
        else f"of which one is started every {duration(1 / rate)}"
    )


def _capacity(options: Mapping[str, Any]) -> int:
    """How many jobs a worker runs at the same time, by its options."""
    wanted = [options.get(name) for name in ("threads", "concurrency")]
    return max([int(one) for one in wanted if isinstance(one, int)], default=1)


def _named(names: list[str], count: int | None = None) -> str:
    """Some names, and how many more there are."""
    more = (len(names) if count is None else count) - NAMED
    listed = ", ".join(names[:NAMED])
    return f"{listed} and {more:,} more" if more > 0 else listed or "nothing"


def _named_jobs(jobs: Any) -> str:
    times = [f"{job.ident} ({duration(job.seconds)})" if job.seconds is not None else job.ident for job in jobs]
    return _named(times)


def _name_holder(holder: Mapping[str, Any], now: float) -> str:
    facts = [holder["worker"], _ago(holder["since"], now) if holder["since"] else None]
    known = ", ".join(fact for fact in facts if fact)
    return f"{holder['ident']} ({known})" if known else str(holder["ident"])


def _name_error(error: Mapping[str, Any]) -> str:
    lines = str(error["message"] or "").splitlines() or [""]
    return f"{error['type']}: {lines[0][:200]}" if lines[0] else str(error["type"])


def _score(text: str | None) -> float:
    try:
        return datetime_to_score(parse_datetime(text or ""))
    except ValueError:  # programs may write to it
        return 0.0


def _seconds_of(text: str | None) -> str:
    """A time without fractions of a second."""
    return (text or "some time").partition(".")[0]


def _ago(text: str, now: float) -> str:
    return f"{duration(now - _score(text))} ago"


def _status_of(record: JobRecord | None) -> str | None:
    return STATUSES.by_value(record.status, "none") if record else None


def _has_ended_badly(record: JobRecord | None) -> bool:
    return record is not None and record.status in _ENDED_BADLY and not record.fields.get("queued")
