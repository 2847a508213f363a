"""Why a job does not run: one sentence, with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..models import Queue
from ..statuses import STATUSES
from ..utils import seconds_of
from ..wording import counted, duration, utc
from .causes import (
    Cause,
    ago,
    capacity,
    delay,
    name_error,
    named,
    named_jobs,
    pace,
    queue_evidence,
    to_the_second,
)
from .errors import find_errors
from .finding import get_job
from .limiting import what_limits
from .reading import ask, is_wrong_type, kind_of
from .records import ErrorFilter, ErrorRecord, JobRecord
from .sight import DEEPEST, Sight, Surroundings

LONGEST_CHAIN = 20  # jobs of which each waits for the next one
PARENTS_LOOKED_AT = 100
WORKERS_SHOWN = 10
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

    def cause_of(self, ident: str) -> Cause:
        sight = self.around.look(ident)
        if sight is None:
            return Cause("lost", "has no record that can be read", {})
        self.seen.append(ident)
        explain_status: dict[str, Callable[[Sight], Cause]] = {
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

    def _running(self, sight: Sight) -> Cause:
        if sight.lease_until is None:
            clause = f"is RUNNING, and nobody has a lease on it: a worker of version 2 runs it, or {BOOKS}"
            return Cause("no-lease", clause, {"since": sight.fields.get("start")})
        lost = self._worker_lost(sight)
        if lost is not None:
            return lost
        start = sight.fields.get("start")
        since = f"since {to_the_second(start)} UTC ({ago(start, sight.now)})" if start else "since a moment"
        evidence = {"since": start, "lease_until": utc(sight.lease_until), **self._worker_evidence(sight)}
        if sight.is_at_once:
            return Cause("running", f"has been running {since}, executed at once by the process that made it", evidence)
        return Cause("running", f"has been running {since} on {self._name_worker(sight.worker_id)}", evidence)

    def _worker_lost(self, sight: Sight) -> Cause | None:
        """Is it in the hands of a worker that is gone?"""
        left = (sight.lease_until or 0.0) - sight.now
        is_known = sight.worker_id in self.around.workers
        if left > 0 and (is_known or sight.is_at_once):
            return None
        evidence = {"lease_until": utc(sight.lease_until or 0.0), **self._worker_evidence(sight)}
        if left > 0:
            when = f"it is given back when its lease lapses, in {duration(left)}"
        elif self.around.workers:
            when = f"its lease lapsed {duration(left)} ago, and the next worker that looks gives it back"
        else:
            when = f"its lease lapsed {duration(left)} ago, and no worker is alive to give it back"
        starts_in = max(left, 0.0) if self.around.workers else None
        return Cause("worker-lost", f"was taken by a worker that is gone; {when}", evidence, starts_in)

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

    def _leased(self, sight: Sight) -> Cause | None:
        """Is it in the hands of a process, though it does not run?"""
        if sight.lease_until is None:
            return None
        if sight.worker_id:
            return self._worker_lost(sight) or self._with_worker(sight)
        left = sight.lease_until - sight.now
        when = f"for {duration(left)} at most" if left > 0 else "and is late: the next worker that looks does it"
        clause = f"is being put in its queue by the process that has it, {when}"
        return Cause("moving", clause, {"lease_until": utc(sight.lease_until)})

    def _with_worker(self, sight: Sight) -> Cause:
        """It was claimed ahead, or has run, and its worker has yet to do something with it."""
        if sight.status == STATUSES.WAITING:
            return self._claimed_ahead(sight)
        evidence, worker = self._worker_evidence(sight), self._name_worker(sight.worker_id)
        if sight.status == STATUSES.DELAYED:
            return Cause("moving", f"asked to be delayed, which {worker} does at the end of its run", evidence)
        error = self._last_error(sight.ident)
        why = f" with {name_error(error)}" if error else ""
        clause = f"failed{why}, and {worker} is about to put it in its queue again"
        return Cause("moving", clause, {**evidence, "error": error})

    def _claimed_ahead(self, sight: Sight) -> Cause:
        worker = self.around.workers[sight.worker_id]
        runs = f", which runs {named_jobs(worker.jobs)}" if worker.jobs else ""
        clause = f"was claimed ahead by {self._name_worker(worker.id)}{runs}, and begins after that"
        jobs = [{"ident": job.ident, "since": job.since} for job in worker.jobs]
        return Cause("claimed-ahead", clause, {**self._worker_evidence(sight), "jobs": jobs})

    # --- waiting

    def _waiting(self, sight: Sight) -> Cause:
        return self._leased(sight) or self._misplaced(sight) or self._joined(list(self._obstacles(sight)))

    def _misplaced(self, sight: Sight) -> Cause | None:
        """Is it where no worker finds it?"""
        key = sight.fields.get("queue_key")
        if sight.broken is not None:
            clause = f"is in a queue that workers leave alone: something of another type is under {sight.broken}"
            return Cause("broken", clause, {"key": sight.broken})
        if sight.queue is None and key is not None:
            return Cause("no-queue", f"was in {key}, a queue that has been deleted: no worker finds it", {"queue": key})
        is_somewhere = sight.ahead is not None or sight.due is not None or sight.is_parked or sight.is_deep
        if not is_somewhere:
            name = STATUSES.by_value(sight.status, "no status")
            return Cause("lost", f"is {name}, and in no place; {BOOKS}", queue_evidence(sight))
        return None

    def _joined(self, causes: list[Cause]) -> Cause:
        """What is in the way first, and what else is."""
        first, *others = causes
        clause = "; besides, it ".join(cause.clause for cause in causes)
        evidence: dict[str, Any] = {}
        for cause in reversed(causes):
            evidence |= cause.evidence
        if others:
            evidence["also"] = [cause.reason for cause in others]
        return Cause(first.reason, clause, evidence, first.starts_in if not others else None)

    def _obstacles(self, sight: Sight) -> Iterator[Cause]:
        expires = sight.run_options.get("expires")
        if isinstance(expires, (int, float)) and expires <= sight.now:
            clause = f"expired at {utc(expires)} UTC, and ends when a worker comes to it"
            yield Cause("expired", clause, {"expires": utc(expires)})
        yield from self._obstacles_of_queue(sight)
        if sight.is_parked:
            yield what_limits(self.around, sight)
        elif sight.status == STATUSES.DELAYED:
            clause = (
                f"was told to wait until {sight.fields.get('delayed_until')} UTC: the worker that takes it delays it"
            )
            yield Cause("delayed", clause, {"until": sight.fields.get("delayed_until")})
        else:
            if not sight.is_registered:
                clause = f"is of the class {sight.kind.name}, which no worker knows yet: one must be able to import it"
                yield Cause("unknown-class", clause, {"class": sight.kind.name})
            yield self._in_line(sight)

    def _obstacles_of_queue(self, sight: Sight) -> Iterator[Cause]:
        """Why no worker takes anything of its queue."""
        name = sight.queue.name if sight.queue else ""
        pause = self.around.pauses.get(name)
        if pause is not None:
            by, why = f" by {pause.by}" if pause.by else "", f" ({pause.reason})" if pause.reason else ""
            clause = f"is in {name!r}, which was paused at {pause.since} UTC{by}{why}"
            evidence = {"since": pause.since, "by": pause.by, "pause_reason": pause.reason}
            yield Cause("paused", clause, {"queue": name, **evidence})
        listeners = self.around.listeners_of(name)
        if not self.around.workers:
            yield Cause("no-workers", f"waits in {name!r}, and no worker is alive", {"queue": name})
        elif not listeners:
            others = sorted({queue for worker in self.around.workers.values() for queue in worker.queues})
            alive = len(self.around.workers)
            who = "the one that is alive listens" if alive == 1 else f"the {alive:,} that are alive listen"
            clause = f"waits in {name!r}, on which no worker listens: {who} on {named(others)}"
            yield Cause("not-heard", clause, {"queue": name, "heard": others[:PARENTS_LOOKED_AT]})
        elif all(worker.status in STOPPING for worker in listeners):
            names = [f"{worker.host}:{worker.pid}" for worker in listeners]
            clause = f"waits in {name!r}, and all workers that listen on it are about to end: {named(names)}"
            yield Cause("workers-stop", clause, {"queue": name, "workers": names})

    def _in_line(self, sight: Sight) -> Cause:
        """How far it is from the head of its queue."""
        assert sight.queue is not None
        evidence = queue_evidence(sight)
        before = self.around.waiting_before(sight.queue)
        rate = self.around.started_per_second(sight.queue.name)
        evidence |= {"higher": before, "started_per_second": rate}
        if sight.ahead is None:
            clause = f"is behind more than {counted(DEEPEST, 'job')} in {sight.queue.name!r}, {pace(rate)}"
            return Cause("behind", clause, {**evidence, "ahead": None})
        count = before + sight.ahead
        evidence["ahead"] = count
        if count == 0:
            return self._first_in_line(sight, evidence)
        of = "of its own and higher priorities " if before else ""
        starts_in = count / rate if rate else None
        about = (
            f"it starts in about {duration(starts_in)}" if starts_in is not None else "nobody can say when it starts"
        )
        clause = f"is behind {counted(count, 'job')} {of}in {sight.queue.name!r}, {pace(rate)}: {about}"
        return Cause("behind", clause, evidence, starts_in)

    def _first_in_line(self, sight: Sight, evidence: dict[str, Any]) -> Cause:
        assert sight.queue is not None
        name = sight.queue.name
        listeners = self.around.listeners_of(name)
        busy = [worker for worker in listeners if len(worker.jobs) >= capacity(worker.options)]
        if not listeners or len(busy) < len(listeners):
            return Cause("next", f"is the next one of {name!r}", evidence, 0.0 if listeners else None)
        doing = [f"{worker.host}:{worker.pid} with {named_jobs(worker.jobs)}" for worker in busy]
        who = "the worker that listens is" if len(busy) == 1 else f"the {len(busy)} workers that listen are"
        evidence["workers"] = [
            {"worker": worker.id, "jobs": [{"ident": job.ident, "since": job.since} for job in worker.jobs]}
            for worker in busy[:WORKERS_SHOWN]
        ]
        return Cause("busy", f"is the next one of {name!r}, and {who} busy: {named(doing)}", evidence)

    # --- delayed

    def _delayed(self, sight: Sight) -> Cause:
        found = self._leased(sight) or self._misplaced(sight)
        if found is not None:
            return found
        if sight.due is None:
            return self._joined(list(self._obstacles(sight)))
        retry = self._retry_of(sight)
        causes = [delay(sight, sight.due, str(retry.pop("clause", "")), retry), *self._obstacles_of_queue(sight)]
        if sight.due <= sight.now and len(causes) > 1:
            causes = [*causes[1:], causes[0]]  # it is the queue that keeps it
        return self._joined(causes)

    def _retry_of(self, sight: Sight) -> dict[str, Any]:
        """Of a job that has failed before: what it failed with."""
        tries = sight.fields.get("tries", "0")
        error = self._last_error(sight.ident) if tries not in ("", "0") else None
        if error is None:
            return {}
        return {"clause": f", after try {tries} failed with {name_error(error)}", "tries": tries, "error": error}

    # --- blocked

    def _blocked(self, sight: Sight) -> Cause:
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
            return Cause("lost", f"is BLOCKED, and waits for no job; {BOOKS}", evidence)
        for ident, record in parents.items():
            if _has_ended_badly(record):
                return self._parent_failed(sight, ident, evidence)
        for ident, record in parents.items():
            if record is not None and record.status != STATUSES.SUCCESS:
                return self._waits_for(ident, count - 1, evidence)
        return self._untold(idents, evidence)

    def _parent_failed(self, sight: Sight, ident: str, evidence: dict[str, Any]) -> Cause:
        if sight.run_options.get("if_parent_fails") != "wait":
            return self._untold([ident], evidence)
        error = self._last_error(ident)
        why = f" with {name_error(error)}" if error else ""
        clause = f"waits for {ident}, which failed{why}: requeue that one, or cancel this one"
        return Cause("parent-failed", clause, {**evidence, "parent": ident, "error": error})

    def _waits_for(self, ident: str, others: int, evidence: dict[str, Any]) -> Cause:
        """Follow the first one that has not ended, to what keeps it."""
        more = f" and {counted(others, 'other')}" if others else ""
        if ident in self.seen or len(self.seen) >= LONGEST_CHAIN:
            clause = f"waits for {ident}{more}, at the end of a chain of {len(self.seen)} jobs"
            return Cause("waits-for", clause, {**evidence, "chain": [ident]})
        cause = self.cause_of(ident)
        chain = [ident, *cause.evidence.get("chain", [])]
        last = cause.evidence.get("last", {"ident": ident, "reason": cause.reason, "clause": cause.clause})
        if len(chain) == 1:
            clause = f"waits for {ident}{more}, which {last['clause']}"
        else:
            by = f", through {counted(len(chain) - 2, 'more job')}," if len(chain) > 2 else ""
            clause = f"waits for {ident}{more}, and so{by} for {chain[-1]}, which {last['clause']}"
        return Cause("waits-for", clause, {**evidence, "chain": chain, "last": last})

    def _untold(self, idents: list[str], evidence: dict[str, Any]) -> Cause:
        """All that it waits for have ended: is it about to be told?"""
        replies = ask(self.around.client, (("ZSCORE", f"{self.around.namespace}:followups", one) for one in idents))
        if any(reply is not None and not is_wrong_type(reply) for reply in replies):
            clause = f"waits for {idents[0]}, which has ended: workers are telling the jobs that wait for it"
            return Cause("telling", clause, evidence)
        return Cause("lost", f"waits for {idents[0]}, which has ended, and will not hear of it; {BOOKS}", evidence)

    # --- ended

    def _failed(self, sight: Sight) -> Cause:
        leased = self._leased(sight)
        if leased is not None:
            return leased
        error = self._last_error(sight.ident)
        why = f" with {name_error(error)}" if error else ""
        evidence = {"tries": sight.fields.get("tries"), "error": error, "end": sight.fields.get("end")}
        when = f"at {to_the_second(sight.fields['end'])} UTC" if "end" in sight.fields else "at some time"
        tries = f", in try {sight.fields['tries']}" if "tries" in sight.fields else ""
        return Cause("failed", f"failed {when}{tries}{why}, and is not tried again", evidence)

    def _canceled(self, sight: Sight) -> Cause:
        reason = sight.fields.get("cancel_reason") or "nobody has said why"
        evidence: dict[str, Any] = {"cancel_reason": sight.fields.get("cancel_reason")}
        if sight.lease_until is not None:
            worker = self._name_worker(sight.worker_id) if sight.worker_id else "the process that has it"
            clause = f"was canceled ({reason}), and is still with {worker}, which is to end it"
            return Cause("canceled", clause, {**evidence, **self._worker_evidence(sight)})
        if sight.is_queued:
            clause = f"is canceled ({reason}), and leaves its queue when a worker comes to it"
            return Cause("canceled", clause, {**evidence, **queue_evidence(sight)})
        if reason == "expired":
            expires = sight.run_options.get("expires")
            since = f", at {utc(expires)} UTC" if isinstance(expires, (int, float)) else ""
            return Cause("expired", f"expired{since}, before a worker came to it", evidence)
        if reason.startswith(PARENT_FAILED):
            parent = reason.removeprefix(PARENT_FAILED)
            error = self._last_error(parent)
            why = f" with {name_error(error)}" if error else ""
            clause = f"was canceled because {parent}, which it waited for, failed{why}"
            return Cause("parent-failed", clause, {**evidence, "parent": parent, "error": error})
        return Cause("canceled", f"was canceled: {reason}", evidence)

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


def _succeeded(sight: Sight) -> Cause:
    start, end = sight.fields.get("start"), sight.fields.get("end")
    begun, ended = seconds_of(start), seconds_of(end)
    lasted = "" if begun is None or ended is None else f", after a run of {duration(ended - begun)}"
    return Cause("succeeded", f"ended well at {to_the_second(end)} UTC{lasted}", {"start": start, "end": end})


def _without_status(sight: Sight) -> Cause:
    return Cause("lost", f"has no status that there is ({sight.status!r}); {BOOKS}", {})


def _status_of(record: JobRecord | None) -> str | None:
    return STATUSES.by_value(record.status, "none") if record else None


def _has_ended_badly(record: JobRecord | None) -> bool:
    return record is not None and record.status in _ENDED_BADLY and not record.fields.get("queued")
