"""Acting on one job. On all that a filter finds: see operating.py.

The class of a job does it where it can be had, since its hooks count (`requeue`, `enqueue_or_delay`, `cancel`, `delete`
of its own); else the scripts do it alone, by what the registry `jobs:models` says of the class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from limpyd.exceptions import DoesNotExist

from .. import recipes, transitions
from ..additions import OPTIONS as ADDING
from ..additions import to_delay
from ..exceptions import InvalidArgument, JobChanged, JobClassError, JobNotFound, JobNotInStatus
from ..models import Job, Queue, _parse_until, _tell_children, all_job_models, repair_indexes
from ..statuses import ENDS, STATUSES, Cancellation
from ..transitions import Call, Hold, Moved, Subject, seen_as
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


class Actor:
    """Acts on jobs of a namespace, as they were read: what has changed since is left alone, and JobChanged is raised.

    Each method answers why there was nothing to do; '' when it was done.
    """

    def __init__(self, queue_model: Any = Queue) -> None:
        self._queue_model, self._namespace = queue_model, queue_model.namespace or ""
        self._client = client_of(queue_model)
        self._recipes: dict[str, str] = {}
        self._models: dict[str, Any] = {}

    def requeue(
        self,
        record: JobRecord,
        queue: str | None = None,
        priority: int | None = None,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
    ) -> str:
        """Put a job that has ended in a queue: the one that it was in last when None."""
        _check_status(record, "requeue")
        until = compute_delayed_until(delayed_for, delayed_until)
        if record.status != STATUSES.ERROR:
            return self._enter(record, queue, priority, until)
        model, queue_model = self._model_of(record), self._queue_model_of(record)
        name = queue or record.queue
        if model is not None:
            arguments = {"delayed_for": delayed_for, "delayed_until": delayed_until, **_queue_of(model, queue_model)}
            self._seen(model, record).requeue(name, priority, **arguments)
            return ""
        subject, target = self._subject(record), self._target(queue_model, name, priority, record)
        delay, worker, seen = to_delay(delayed_for, until), os.urandom(8).hex(), _seen(record)
        self._send_moving(
            transitions.requeue(subject, target, priority is None, delay, "", Hold(), worker, seen), queue_model, name
        )
        return ""

    def move(self, record: JobRecord, queue: str | None = None, priority: int | None = None) -> str:
        """Put a job that waits, or is delayed, in another queue, or at another priority."""
        _check_status(record, "move")
        if queue in (None, record.queue) and priority in (None, record.priority):
            return "it is there already"
        is_delayed = record.status == STATUSES.DELAYED
        return self._enter(record, queue, priority, _parse_until(record.delayed_until) if is_delayed else None)

    def _enter(self, record: JobRecord, queue: str | None, priority: int | None, until: datetime | None) -> str:
        model, queue_model = self._model_of(record), self._queue_model_of(record)
        name = queue or record.queue
        if model is not None:
            arguments = {"delayed_until": until, **_queue_of(model, queue_model)}
            self._seen(model, record).enqueue_or_delay(name, priority, **arguments)
            return ""
        subject, target = self._subject(record), self._target(queue_model, name, priority, record)
        delay, seen = to_delay(None, until), _seen(record)
        self._send_moving(
            transitions.move(subject, target, priority is None, False, delay, "", Hold(), seen), queue_model, name
        )
        return ""

    def cancel(self, record: JobRecord, reason: str | None = None) -> Cancellation:
        """See to it that a job is not run."""
        model, queue_model = self._model_of(record), self._queue_model_of(record)
        if model is not None and "cancel" not in model._fields:
            answer: Cancellation = self._seen(model, record).cancel(reason, **_queue_of(model, queue_model))
            return answer
        text = recipes.to_text("reason", reason or "canceled")
        recipe, subject = recipes.queue_recipe(queue_model), self._subject(record)
        call = transitions.cancel(subject, self._namespace, recipe, text, _seen(record))
        cancellation, changes = queue_model._send(call, RETRY_FOR)
        repair_indexes(changes)
        return cancellation  # type: ignore[no-any-return]

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
        """A job, for the scripts. Raises JobClassError: it has an index that no script can keep in step."""
        text = self._recipe_of(record)
        recipe = json.loads(text)
        if any(kind[0] == "foreign" for kinds in recipe["indexes"].values() for kind in kinds):
            raise JobClassError(record.ident, NOT_HERE)
        return Subject(recipe["repr"], recipe["key"], text, _pk(record))

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

    @staticmethod
    def _target(queue_model: Any, name: str | None, priority: int | None, record: JobRecord) -> transitions.Target:
        if name is None:
            raise InvalidArgument("queue", name, f"the name of one: that of {record.ident} is not known")
        target: transitions.Target = queue_model._target_for_jobs(name, 0 if priority is None else priority)
        return target

    def _send_moving(self, call: Call[Moved], queue_model: Any, name: str | None) -> None:
        for _ in range(TRIES):
            moved = queue_model._send(call, RETRY_FOR)
            if moved.kind != "NO_QUEUE":
                return repair_indexes(moved.changes)
            queue_model.get_queue(
                name, moved.queue_priority
            )  # another priority, if another client changes it meanwhile


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
    _until_done(ident, queue_model, lambda found: actor.requeue(found, queue, priority, delayed_for, delayed_until))


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
    _until_done(ident, queue_model, lambda found: actor.move(found, queue, priority))


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
