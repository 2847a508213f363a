"""Acting on one job. On all that a filter finds: see operating.py.

The class of a job does it where it can be had, since its hooks count (`requeue`, `enqueue_or_delay`, `cancel`, `delete`
of its own); else the scripts do it alone, by what the registry `jobs:models` says of the class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from limpyd.exceptions import DoesNotExist

from .. import recipes, transitions
from ..additions import OPTIONS as ADDING
from ..additions import to_delay
from ..database import is_outage
from ..exceptions import InvalidArgument, JobChanged, JobClassError, JobNotFound, JobNotInStatus
from ..fields import Writes
from ..models import Job, Queue, _overrides, _parse_until, _tell_children, all_job_models, repair_indexes
from ..statuses import ENDS, STATUSES, Cancellation
from ..transitions import Call, Hold, Subject, seen_as
from ..utils import compute_delayed_until
from ..workers.retention import class_of
from .finding import get_job
from .reading import client_of, queue_models
from .records import JobRecord
from .removing import FAR, NOT_HERE, Remover

RETRY_FOR = 5  # how long something is tried again while Redis cannot be used, in seconds
TRIES = 20  # of what others may come before

# The statuses in which something can be done to a job.
ACCEPTED: dict[str, tuple[str, ...]] = {
    "requeue": ENDS,
    "cancel": (STATUSES.WAITING, STATUSES.DELAYED, STATUSES.BLOCKED, STATUSES.RUNNING),
    "move": (STATUSES.WAITING, STATUSES.DELAYED),
    "delete": tuple(STATUSES.values()),
    "purge": ENDS,
}

# What `fields` of a new job may not hold: what each job has, but for its one option, and what `add` has arguments for.
NOT_GIVEN = {*Job._fields, *ADDING} - {"cancel_on_error"}


@dataclass(frozen=True)
class Planned:
    """What the scripts do to a job, without its class.

    Attributes:
        queue_model, queue: where it is put, if it is: the queue may have to be made.
    """

    call: Call[Any]
    queue_model: Any
    queue: str | None = None


class Actor:
    """Acts on jobs of a namespace, as they were read: what has changed since is left alone, and JobChanged is raised.

    Each method answers why there was nothing to do; '' when it was done. `cancel` answers a `Cancellation`.
    """

    def __init__(self, queue_model: Any = Queue) -> None:
        self._queue_model, self._namespace = queue_model, queue_model.namespace or ""
        self._client = client_of(queue_model)
        self._recipes: dict[str, str] = {}
        self._subjects: dict[str, Subject] = {}
        self._models: dict[str, Any] = {}
        self._id, self._targets = os.urandom(8).hex(), dict[tuple[Any, str, int], transitions.Target]()

    def requeue(self, record: JobRecord, **options: Any) -> str:
        """Put a job that has ended in a queue: the one that it was in last when None is given.

        Args:
            options: `queue`, `priority`, `delayed_for`, `delayed_until`.
        """
        answer: str = self._act("requeue", record, options)
        return answer

    def move(self, record: JobRecord, **options: Any) -> str:
        """Put a job that waits, or is delayed, in another queue, or at another priority: `queue`, `priority`."""
        answer: str = self._act("move", record, options)
        return answer

    def cancel(self, record: JobRecord, reason: str | None = None) -> Cancellation:
        """See to it that a job is not run."""
        answer: Cancellation = self._act("cancel", record, {"reason": reason})
        return answer

    def act_on(self, kind: str, records: Sequence[JobRecord], **options: Any) -> list[Any]:
        """Act on some jobs in their order; of each, what the method answers, or the exception that it raises.

        Those in a row whose classes have nothing to say go in one round trip.
        """
        answers: list[Any] = [None] * len(records)
        together: dict[int, Planned] = {}
        for place, record in enumerate(records):
            try:
                planned: Any = self._plan(kind, record, options, place)
                if planned is None:
                    self._send_together(together, answers)
                    planned = self._ask_class(kind, record, options)
            except Exception as error:
                planned = error
            if isinstance(planned, Planned):
                together[place] = planned
            else:
                answers[place] = planned
        self._send_together(together, answers)
        return answers

    def _send_together(self, together: dict[int, Planned], answers: list[Any]) -> None:
        """Send what was planned, and forget it; while Redis cannot be used, again: each call may be repeated."""
        calls = [planned.call for planned in together.values()]

        def send(client: Any) -> list[Any]:
            replies = transitions.send_all(client, calls)
            for reply in replies:
                if isinstance(reply, Exception) and is_outage(reply):
                    raise reply
            return replies

        replies = self._queue_model._patiently(send, RETRY_FOR) if calls else []
        for (place, planned), reply in zip(together.items(), replies, strict=True):
            try:
                answers[place] = self._read(planned, reply)
            except Exception as error:
                answers[place] = error
        together.clear()

    def _act(self, kind: str, record: JobRecord, options: Mapping[str, Any]) -> Any:
        planned = self._plan(kind, record, options)
        if planned is None:
            return self._ask_class(kind, record, options)
        if not isinstance(planned, Planned):
            return planned
        return self._read(planned, planned.queue_model._send(planned.call, RETRY_FOR))

    def _read(self, planned: Planned, reply: Any) -> Any:
        """What a reply says; the call is sent again when its queue has to be made before."""
        if isinstance(reply, Exception):
            raise reply
        if planned.queue is None:
            Writes.count += 1  # whoever has claimed jobs ahead looks at them again
            cancellation, changes = reply
            repair_indexes(changes)
            return cancellation
        for _ in range(TRIES):
            if reply.kind != "NO_QUEUE":
                break
            planned.queue_model.get_queue(planned.queue, reply.queue_priority)
            reply = planned.queue_model._send(planned.call, RETRY_FOR)  # if another client changes the priority: again
        repair_indexes(reply.changes)
        return ""

    # --- What is to be done

    def _plan(self, kind: str, record: JobRecord, options: Mapping[str, Any], place: int = 0) -> Planned | str | None:
        """What the scripts do; or why there is nothing to do. None: the class of the job has to be asked.

        Args:
            place: among those that are sent together.
        """
        if kind == "cancel":
            return self._plan_cancel(record, **options)
        _check_status(record, kind)
        if kind == "requeue":
            return self._plan_requeue(record, place, **options)
        queue, priority = options.get("queue"), options.get("priority")
        if queue in (None, record.queue) and priority in (None, record.priority):
            return "it is there already"
        return self._plan_entry(record, queue, priority, _until_of(record))

    def _plan_requeue(
        self,
        record: JobRecord,
        place: int,
        queue: str | None = None,
        priority: int | None = None,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
    ) -> Planned | None:
        until = compute_delayed_until(delayed_for, delayed_until)
        if record.status != STATUSES.ERROR:
            return self._plan_entry(record, queue, priority, until)
        target = self._target(record, queue, priority, "requeue", "enqueue_or_delay")
        if target is None:
            return None
        queue_model, to = target
        delay, worker = to_delay(delayed_for, until), f"{self._id}/{place}"  # the next ones may have the name again
        call = transitions.requeue(
            self._subject(record), to, priority is None, delay, "", Hold(), worker, _seen(record)
        )
        return Planned(call, queue_model, to.name)

    def _plan_entry(
        self, record: JobRecord, queue: str | None, priority: int | None, until: datetime | None
    ) -> Planned | None:
        target = self._target(record, queue, priority, "enqueue_or_delay")
        if target is None:
            return None
        queue_model, to = target
        delay, is_own = to_delay(None, until), priority is None
        call = transitions.move(self._subject(record), to, is_own, False, delay, "", Hold(), _seen(record))
        return Planned(call, queue_model, to.name)

    def _plan_cancel(self, record: JobRecord, reason: str | None = None) -> Planned | None:
        model, queue_model = self._model_of(record), self._queue_model_of(record)
        if model is not None and "cancel" not in model._fields:
            has_no_reason = reason is not None and not recipes.has_cancel_reason(model)
            if has_no_reason or _overrides(model, Job, "cancel"):
                return None
        text = recipes.to_text("reason", reason or "canceled")
        recipe, subject = recipes.queue_recipe(queue_model), self._subject(record)
        return Planned(transitions.cancel(subject, self._namespace, recipe, text, _seen(record)), queue_model)

    def _ask_class(self, kind: str, record: JobRecord, options: Mapping[str, Any]) -> Any:
        """Have the class of a job do it, as it has methods of its own for that."""
        model, queue_model = self._model_of(record), self._queue_model_of(record)
        job, of_queue = self._seen(model, record), _queue_of(model, queue_model)
        if kind == "cancel":
            return job.cancel(options.get("reason"), **of_queue)
        name, priority = options.get("queue") or record.queue, options.get("priority")
        delays = {name: options.get(name) for name in ("delayed_for", "delayed_until")}
        if kind == "requeue" and record.status == STATUSES.ERROR:
            job.requeue(name, priority, **delays, **of_queue)
        else:
            until = _until_of(record) if kind == "move" else compute_delayed_until(**delays)
            job.enqueue_or_delay(name, priority, delayed_until=until, **of_queue)
        return ""

    def remove(self, remover: Remover, records: Sequence[JobRecord], **more: Any) -> list[str]:
        """Remove some jobs; answers of each what was done, see remove.lua."""
        jobs = [(record, self._model_of(record), json.loads(self._recipe_of(record))) for record in records]
        deleted = {
            record.ident for record, model, _ in jobs if _has_own_delete(model) and self._delete(remover, record)
        }
        results = remover.remove(jobs, **more)
        for record, result in zip(records, results, strict=True):
            if result == "MORE":
                _tell_children(self._queue_model, self._namespace, record.ident)
        pairs = zip(records, results, strict=True)
        return ["REMOVED" if result == "GONE" and record.ident in deleted else result for record, result in pairs]

    def _delete(self, remover: Remover, record: JobRecord) -> bool:
        """Have the class of a job delete its record, if it may be; answers whether it did."""
        model = self._model_of(record)
        if remover.remove([(record, model, {})], looks=True) != ["REMOVED"]:
            return False
        if record.status not in ENDS:
            self.cancel(record)
        model.from_pk(_pk(record)).delete()
        return True

    # --- What is known of classes

    def _model_of(self, record: JobRecord) -> Any:
        """The class of a job; None when it cannot be had, or is of another database or namespace."""
        name = record.ident.partition(":")[0]
        if name not in self._models:
            model = class_of(record.ident)
            is_meant = model is not None and model.database is self._queue_model.database
            key = json.loads(self._registered(name) or "{}").get("key", model._name) if is_meant else None
            self._models[name] = model if is_meant and key == model._name else None
        return self._models[name]

    def _registered(self, name: str) -> str | None:
        text: str | None = self._client.hget(f"{self._namespace}:models", name)
        return text

    def _recipe_of(self, record: JobRecord) -> str:
        """The recipe of the class of a job. Raises JobClassError: it is in no registry, and cannot be had."""
        name, model = record.ident.partition(":")[0], self._model_of(record)
        if model is not None:
            return recipes.job_recipe(model)
        if name not in self._recipes:
            text = self._registered(name)
            if text is None:
                raise JobClassError(
                    record.ident, "it is not here, nor in the registry: name its directory with --pythonpath"
                )
            self._recipes[name] = text
        return self._recipes[name]

    def _subject(self, record: JobRecord) -> Subject:
        """A job, for the scripts. Raises JobClassError: it has an index that only its class can keep in step."""
        name, pk = record.ident.partition(":")[0], _pk(record)
        if name not in self._subjects:
            self._subjects[name] = self._class_subject(record)
        return self._subjects[name]._replace(pk=pk)

    def _class_subject(self, record: JobRecord) -> Subject:
        model = self._model_of(record)
        if model is not None:
            subject: Subject = model._class_subject()
            return subject
        text = self._recipe_of(record)
        recipe = json.loads(text)
        if any(kind[0] == "foreign" for kinds in recipe["indexes"].values() for kind in kinds):
            raise JobClassError(record.ident, NOT_HERE)
        return Subject(recipe["repr"], recipe["key"], text, "")

    @staticmethod
    def _seen(model: Any, record: JobRecord) -> Any:
        """A job that acts only as long as it is as it was read."""
        job = model.from_pk(_pk(record))
        job._seen = _seen(record)
        return job

    def _queue_model_of(self, record: JobRecord) -> Any:
        """The class of the queue that a job is in.

        Raises:
            JobClassError: it cannot be had.
        """
        model, key = self._model_of(record), record.fields.get("queue_key", "").rpartition(":")[0]
        own = model.queue_model if model is not None else self._queue_model
        for queue_model in (own, *queue_models(self._queue_model)):
            if queue_model.database is self._queue_model.database and key in ("", queue_model._name):
                return queue_model
        raise JobClassError(record.ident, f"nor that of its queues, {key}: name its directory with --pythonpath")

    def _target(
        self, record: JobRecord, queue: str | None, priority: int | None, *hooks: str
    ) -> tuple[Any, transitions.Target] | None:
        """The class of the queue that a job is put in, and that queue; None: the class of the job has to be asked.

        Args:
            hooks: methods of its own with which it would have to be.
        """
        model, queue_model, name = self._model_of(record), self._queue_model_of(record), queue or record.queue
        if model is not None and (name is None or _overrides(model, Job, *hooks) or _places_itself(queue_model)):
            return None
        if name is None:
            raise InvalidArgument("queue", name, f"the name of one: that of {record.ident} is not known")
        key = (queue_model, name, priority or 0)
        if key not in self._targets:
            self._targets[key] = queue_model._target_for_jobs(name, priority or 0)
        return queue_model, self._targets[key]


def _places_itself(queue_model: Any) -> bool:
    return _overrides(queue_model, Queue, "enqueue_job", "delay_job", "get_queue")


def _until_of(record: JobRecord) -> datetime | None:
    return _parse_until(record.delayed_until) if record.status == STATUSES.DELAYED else None


def _pk(record: JobRecord) -> str:
    return record.ident.partition(":")[2]


def _seen(record: JobRecord) -> str:
    return seen_as(record.status, record.end)


def _has_own_delete(model: Any) -> bool:
    return model is not None and model.delete is not Job.delete


def _queue_of(model: Any, queue_model: Any) -> dict[str, Any]:
    """The argument that names a class of queues, where it is not the class' own anyway."""
    return {} if queue_model is model.queue_model else {"queue_model": queue_model}


def _check_status(record: JobRecord, kind: str) -> None:
    if record.status not in ACCEPTED[kind]:
        raise JobNotInStatus(record.ident, record.status, kind)


def _until_done(ident: str, queue_model: Any, act: Callable[[JobRecord], Any]) -> Any:
    """Act on a job as it is now, though others change it meanwhile."""
    for _ in range(TRIES):
        record = get_job(ident, queue_model)
        try:
            return act(record)
        except JobChanged as error:
            refused = error
        except DoesNotExist:
            raise JobNotFound(ident, "it is gone") from None
    raise refused


# --- The functions


def add(
    job_class: str,
    identifier: str,
    queue: str | None = None,
    priority: int = 0,
    delayed_for: float | timedelta | None = None,
    delayed_until: datetime | None = None,
    prepend: bool = False,
    fields: Mapping[str, Any] | None = None,
    queue_model: Any = None,
) -> str:
    """Add a job. Answers its ident, or that of the one that is queued with this identifier.

    Args:
        job_class: the ident of a class that can be had here (`my.module.MailJob`), or its name alone.
        queue: the class' own when None.
        fields: further ones of its class, and options of its runs.
        the others: as for `Job.add_job`.
        queue_model: the class' own when None.
    Raises:
        JobClassError: the class cannot be had. InvalidArgument: a field is none that may be given. Others: as
            `Job.add_job`.
    """
    for name, value in (fields or {}).items():
        if name in NOT_GIVEN:
            raise InvalidArgument(name, value, "a field of its class: this is one that each job has, and is not given")
    model = _class_named(job_class)
    delays = {"delayed_for": delayed_for, "delayed_until": delayed_until}
    job = model.add_job(identifier, queue, priority, queue_model, prepend, **delays, **(fields or {}))
    return str(job.ident)


def _class_named(name: str) -> Any:
    if "." in name:
        try:
            return Job.class_of(f"{name}:1")
        except JobClassError as error:
            raise JobClassError(name, error.reason) from error
    found = [model for model in all_job_models() if model.__name__ == name and not model.abstract]
    if len(found) != 1:
        which = ", ".join(model.get_model_repr() for model in found)
        reason = f"it may be any of {which}" if found else "no class of this name is imported: give its module, too"
        raise JobClassError(name, reason)
    return found[0]


def requeue(
    ident: str,
    queue: str | None = None,
    priority: int | None = None,
    delayed_for: float | timedelta | None = None,
    delayed_until: datetime | None = None,
    queue_model: Any = Queue,
) -> None:
    """Put a job that has ended back in a queue, now or later: one that failed, was canceled, or is to run once more.

    Args:
        ident: as for `get_job`.
        queue: the one that it was in last when None.
        priority: its own when None.
        delayed_for: from now, in seconds or a timedelta; not with `delayed_until`.
        delayed_until: naive datetimes are UTC.
    Raises:
        JobNotFound: there is none. JobNotInStatus: it has not ended. JobAlreadyQueued: another one with its identifier
            is queued. JobClassError: its class cannot be had, and is needed. Nothing was written.
    Redis: requeue.lua, move.lua.
    """
    actor = Actor(queue_model)
    options = {"queue": queue, "priority": priority, "delayed_for": delayed_for, "delayed_until": delayed_until}
    _until_done(ident, queue_model, lambda found: actor.requeue(found, **options))


def cancel(ident: str, reason: str | None = None, queue_model: Any = Queue) -> Cancellation:
    """See to it that a job is not run, as `Job.cancel` does.

    Args:
        ident: as for `get_job`.
        reason: what its field `cancel_reason` gets; "canceled" when None.
    Returns:
        CANCELED; REQUESTED when a process has the job; ENDED when it was too late, and nothing was written.
    Raises:
        JobNotFound: there is none. JobClassError: its class cannot be had, and is needed.
    Redis: cancel.lua.
    """
    actor = Actor(queue_model)
    answer: Cancellation = _until_done(ident, queue_model, lambda found: actor.cancel(found, reason))
    return answer


def move(ident: str, queue: str | None = None, priority: int | None = None, queue_model: Any = Queue) -> None:
    """Put a job that waits or is delayed in another queue, or at another priority; its time stays.

    It comes behind those that wait there. A job that is there already stays where it is.

    Args:
        ident: as for `get_job`.
        queue: its own when None.
        priority: its own when None.
    Raises:
        InvalidArgument: neither is given. JobNotFound: there is none. JobNotInStatus: it neither waits nor is delayed.
            JobClassError: its class cannot be had, and is needed. Nothing was written.
    Redis: move.lua.
    """
    if queue is None and priority is None:
        raise InvalidArgument("queue", queue, "the name of another one, or with a priority")
    actor = Actor(queue_model)
    _until_done(ident, queue_model, lambda found: actor.move(found, queue=queue, priority=priority))


def delete(ident: str, is_forced: bool = False, queue_model: Any = Queue) -> None:
    """Remove a job with all that belongs to it: its place in a queue, its entries in histories, its Errors, its record.

    Jobs that wait for it are told that it was canceled. A class with a `delete` of its own is asked to cancel the job
    and to delete its record first. Of histories the 100,000 first and last entries are looked at.

    Args:
        ident: as for `get_job`.
        is_forced: also one that a process has; what that writes of it later is refused.
    Raises:
        JobNotFound: there is none. JobNotInStatus: it runs, and this is not forced. JobClassError: its class cannot be
            had, and is needed. Nothing was removed.
    Redis: remove.lua.
    """
    actor, remover = Actor(queue_model), Remover(queue_model, is_forced)
    for _ in range(TRIES * 10):
        record = get_job(ident, queue_model)
        if record.status == STATUSES.RUNNING and not is_forced:
            raise JobNotInStatus(record.ident, record.status, "delete")
        result = actor.remove(remover, [record], reach=FAR)[0]
        if result == "RUNNING":
            raise JobNotInStatus(record.ident, record.status, "delete")
        if result in ("REMOVED", "GONE"):
            return
    raise JobChanged(record.ident, record.status, "delete")
