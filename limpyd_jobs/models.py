"""The records: queues, jobs and errors. All are limpyd models, made to be queried and subclassed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

from limpyd import fields
from limpyd.contrib.indexes import SimpleDateTimeIndex
from limpyd.contrib.related import RelatedModel
from limpyd.exceptions import DoesNotExist
from limpyd.model import RedisModel
from redis.exceptions import RedisError, ResponseError

from . import aio, recipes, run_options, transitions, waiting, wire
from .additions import (
    OPTIONS,
    AddedJobs,
    AlikeJobs,
    AnyJobs,
    Chunk,
    Specs,
    Terms,
    Way,
    first,
    idents_of,
    to_delay,
)
from .database import JobsDatabase, is_outage, leave_replica
from .exceptions import (
    ConfigurationException,
    DatabaseException,
    InvalidArgument,
    JobCanceled,
    JobClassError,
    JobFailed,
    JobNotInStatus,
    LimpydJobsException,
    NoResult,
)
from .fields import (
    CancelReasonField,
    EdgesField,
    FollowUpField,
    InstanceHashField,
    Loaded,
    ProgressField,
    RunOptionsField,
    SavedResultField,
    WaitingSinceField,
    WorkflowField,
    Writes,
    needs_limpyd,
    upgrade,
    write,
)
from .instruments import seen_adding
from .modules import allowed_modules, is_dotted_name
from .outcomes import Progress, Track, progress_text, read_progress, read_result, result_text, total_of
from .retries import Retries
from .statuses import STATUSES, Cancellation
from .transitions import Added, Addition, Changes, Claim, Delay, Hold, Subject, Target
from .utils import (
    check_datetime,
    compute_delayed_until,
    datetime_to_score,
    parse_datetime,
    pauses,
    utcnow,
)

__all__ = [
    "STATUSES",
    "BaseJobsModel",
    "Error",
    "Job",
    "LimpydJobsException",
    "Queue",
    "WorkerInfo",
    "datetime_to_score",
]


T = TypeVar("T")
NOT_GIVEN: Any = object()
LONGEST_PK = 1000
TELL_AGAIN_SECONDS = 60
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _copied(field: Any) -> Any:
    """A field for an instance. A primary key is asked for by most jobs, and has nothing that must not be shared."""
    if type(field) not in (fields.PKField, fields.AutoPKField):
        return field.__copy__()
    copied = object.__new__(type(field))
    copied.__dict__.update(field.__dict__)
    return copied


_templates: dict[Any, dict[str, Any]] = {}  # of classes: what is copied for an instance that is asked for a field


def _note_templates(model: Any) -> dict[str, Any]:
    names = [name for name in model._fields if not hasattr(model, name)]
    return _templates.setdefault(model, {name: getattr(model, f"_redis_attr_{name}") for name in names})


RETRIES = {one.name for one in dataclass_fields(Retries)}


def _no_fields() -> tuple[Any, ...]:
    return ()


logger = logging.getLogger("limpyd-jobs")


class _UnsentEnds(threading.local):
    """What the worker in this thread has to do before a job is put in a queue: it may hold back the end of that one."""

    settle: Callable[[], None] | None = None


unsent_ends = _UnsentEnds()

running_job: ContextVar[Any] = ContextVar("running_job", default=None)  # set by whoever runs a job, around it alone


def current_job() -> Any:
    """The job that runs here: in this thread, this coroutine, or this process of an isolated job; None outside."""
    return running_job.get()


class _Executors:
    """How jobs are executed at once. That is the work of workers, who come after this layer and fill it in."""

    execute: Callable[..., Any]
    aexecute: Callable[..., Any]


executors = _Executors()


class _Patience:
    """How long a call is tried again while Redis cannot be used, for `retry_for` seconds."""

    def __init__(self, retry_for: float) -> None:
        self._give_up_at = time.monotonic() + retry_for
        self._waits: Iterator[float] | None = None

    def pause_after(self, error: BaseException) -> float | None:
        """The seconds until the next try; None when there is none: it is no outage, or it takes too long."""
        self._waits = self._waits or pauses(longest=1)
        pause = next(self._waits)
        return pause if is_outage(error) and time.monotonic() + pause <= self._give_up_at else None


class _OfClassOrInstance:
    """A method of limpyd that is one for a class, and another one for its instances.

    limpyd puts the latter into each instance. That holds itself then, and stays until Python looks for such cycles.
    """

    def __init__(self, of_class: Any, of_instance: str) -> None:
        self._of_class, self._of_instance = of_class, of_instance

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self._of_class.__get__(None, owner) if instance is None else getattr(instance, self._of_instance)


INSTANCE_METHODS = {"get_field": "get_instance_field", "get_fields": "get_instance_fields"}


class BaseJobsModel(RelatedModel):
    """The base of all our models: one database, one namespace, fields whose writes are atomic."""

    database = JobsDatabase(host="localhost", port=6379, db=0)
    namespace = "jobs"
    abstract = True
    get_field = _OfClassOrInstance(vars(RedisModel)["get_field"], INSTANCE_METHODS["get_field"])
    get_fields = _OfClassOrInstance(vars(RedisModel)["get_fields"], INSTANCE_METHODS["get_fields"])

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for value in list(vars(cls).values()):
            upgrade(value)
        for name, of_instance in INSTANCE_METHODS.items():  # one of a subclass is for the class, too
            if name in vars(cls):
                setattr(cls, name, _OfClassOrInstance(vars(cls)[name], of_instance))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # limpyd copies every field of the class for every instance; `__getattr__` attaches those that are used.
        self.get_class_fields = _no_fields
        super().__init__(*args, **kwargs)
        del self.get_field, self.get_fields, self.get_class_fields

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        template = (_templates.get(cls) or _note_templates(cls)).get(name)
        if template is not None:
            return self._attached_field(name, template)
        if hasattr(cls, name):
            return object.__getattribute__(self, name)  # a property that raised AttributeError: let it say why
        if name == "pk":
            return getattr(self, cls._redis_attr_pk.name)
        raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")

    def _attached_field(self, name: str, template: Any) -> Any:
        field = _copied(template)
        field._attach_to_instance(self)
        self.__dict__[name] = field  # at last: another thread may ask for it meanwhile
        return field

    def _drop_fields(self) -> None:
        """Let go of the fields that were asked for, as they hold this instance; whoever asks again gets new ones."""
        known = self.__dict__
        for name in _templates.get(type(self), ()):
            if name in known and getattr(known[name], "_instance", None) is self:
                del known[name]

    @property
    def must_exist(self) -> bool:
        """May the record have gone, so that a write must not begin another one?"""
        return False

    @classmethod
    def get_model_repr(cls) -> str:
        """`module.ClassName`: what the idents of this class begin with."""
        return recipes.get_model_repr(cls)

    @classmethod
    def from_pk(cls, pk: str) -> Any:
        """The instance of a record that is known to exist, without asking Redis."""
        model: Any = cls
        relations = getattr(model.database, "_relations", {})
        if cls.__init__ is not BaseJobsModel.__init__ or model._name.lower() in relations:
            instance = model.lazy_connect(pk)
            instance._connected = True
            return instance
        instance = cls.__new__(cls)  # what limpyd's `__init__` does without arguments, in a fifth of its time
        instance.__dict__.update(
            _init_fields=set(),
            _pk=model._redis_attr_pk.normalize(pk),
            _connected=True,
            related_collections=[],
        )
        return instance

    def set_fields(self, **values: Any) -> None:
        """Write several fields, of any type.

        Raises:
            InvalidArgument: an unknown field; nothing was written.
        """
        for name in values:
            if not self.has_field(name):
                raise InvalidArgument(
                    name, values[name], f"a field of {type(self).__name__}: there is none of this name"
                )
            recipes.check_value(self.get_class_field(name), values[name])
        for name, value in values.items():
            self.get_field(name).proxy_set(value)

    def hmset(self, **values: Any) -> Any:
        """Write several fields of the hash and their indexes, in one transition where no index is foreign."""
        model: Any = type(self)
        is_plain = all(name in model._instancehash_fields for name in values)
        if not values or not is_plain or any(needs_limpyd(model, *item) for item in values.items()):
            return super().hmset(**values)
        texts = [text for name, value in values.items() for text in (name, recipes.to_text(name, value))]
        write(self, "hset", list(values), texts)
        return True

    def hdel(self, *names: str) -> Any:
        """Delete several fields of the hash and their index entries. Returns how many there were."""
        model: Any = type(self)
        is_plain = all(name in model._instancehash_fields for name in names)
        if not names or not is_plain or any(needs_limpyd(model, name) for name in names):
            return super().hdel(*names)
        return write(self, "hdel", names, list(names))

    @classmethod
    def _send(cls, call: transitions.Call[Any], retry_for: float = 0) -> Any:
        """Send a call; while Redis cannot be used, again for `retry_for` seconds: only what is safe to repeat."""
        return cls._patiently(lambda client: transitions.send(client, call), retry_for)

    @classmethod
    def _patiently(cls, send: Callable[[Any], Any], retry_for: float) -> Any:
        patience = _Patience(retry_for)
        while True:
            try:
                if unsent_ends.settle is not None:
                    unsent_ends.settle()
                return send(cls.database.connection)
            except (RedisError, DatabaseException) as error:
                leave_replica(cls.database, error)
                pause = patience.pause_after(error)
                if pause is None:
                    raise
            time.sleep(pause)

    @classmethod
    def _send_ahead(cls, call: transitions.Call[T]) -> transitions.SentCall[T] | None:
        """Send a call whose reply is read later; None when it is to be sent patiently, and waited for.

        Until then it keeps a connection, which is too much of a small pool.
        """
        try:
            if unsent_ends.settle is not None:
                unsent_ends.settle()
            client = cls.database.connection
            is_pool_small = client.connection_pool.max_connections < wire.SHARE
            return None if is_pool_small else transitions.SentCall(client, call)
        except (RedisError, DatabaseException):  # as it will be said to whoever is patient, if it lasts
            return None

    @classmethod
    async def _asend(cls, call: transitions.Call[T], retry_for: float = 0) -> T:
        """As `_send`, through the client of `redis.asyncio` for the running event loop."""
        patience = _Patience(retry_for)
        while True:
            try:
                client = await aio.async_connection(cls.database)
                try:
                    return await transitions.asend(client, call)
                except RedisError as error:
                    await aio.leave_replica(client, error)
                    raise
            except (RedisError, DatabaseException) as error:
                pause = patience.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    @classmethod
    def _create(cls, **values: Any) -> Any:
        """A new record in one transition.

        Raises:
            InvalidArgument, JobAlreadyExists: nothing was written.
        """
        record = recipes.Record(cls, values)
        instance = cls.from_pk(cls._send(transitions.create(cls._name, record.text)))
        record.write_late(instance)
        return instance


def _overrides(model: type, base: type, *names: str) -> bool:
    """Does a subclass have its own version of one of these methods?"""

    def plain(owner: type, name: str) -> Any:
        method = getattr(owner, name)
        return getattr(method, "__func__", method)

    return any(plain(model, name) is not plain(base, name) for name in names)


class Queue(BaseJobsModel):
    """The jobs of one name and one priority.

    Many queues share a name; a worker listens to all of them, higher priorities first. The lists and the sorted set
    hold idents; the score of a delayed job is when it is due, in seconds since the epoch.
    """

    name = InstanceHashField(indexable=True)
    priority = InstanceHashField(indexable=True, default=0)
    waiting = fields.ListField()
    success = fields.ListField()
    errors = fields.ListField()
    delayed = fields.SortedSetField()
    keep_success = InstanceHashField()  # how much of `success` is kept: `1000` jobs, or for `7d`; see parse_keep
    keep_errors = InstanceHashField()  # the same for `errors`

    _told_of: ClassVar[dict[str, float]] = {}  # names whose index is broken -> when to say it again

    @property
    def error(self) -> Any:
        """`errors`, under the name that the documentation of version 2 has in one place."""
        return self.errors

    @classmethod
    def get_queue(cls, name: str, priority: int | str = 0, **fields_if_new: Any) -> Any:
        """The queue with a name and a priority, created when there is none.

        Args:
            fields_if_new: further fields of a new queue; ignored when it exists.
        Raises:
            InvalidArgument: the name, the priority or a field is not accepted.
        Redis: get_queue.lua.
        """
        target, record = cls._target(name, priority, fields_if_new)
        pk, is_new = cls._send(transitions.get_queue(target))
        queue = cls.from_pk(pk)
        if is_new and record:
            record.write_late(queue)
        return queue

    @classmethod
    def _target(
        cls, name: str, priority: Any, fields_if_new: Mapping[str, Any] | None = None
    ) -> tuple[Target, recipes.Record | None]:
        """A queue for the scripts, and the record that they create; None when its primary key must be given."""
        name, text = recipes.to_queue_name(name), recipes.to_priority(priority)
        values = {**(fields_if_new or {}), "name": name, "priority": text}
        record = recipes.Record(cls, values) if recipes.has_pk(cls, values) else None
        record_text = record.text if record else "null"
        return Target(cls.namespace or "", cls._name, recipes.queue_recipe(cls), record_text, name, text), record

    @classmethod
    def _target_for_jobs(cls, name: str, priority: Any) -> Target:
        """As `_target`, for a script that may create the queue while it moves a job."""
        target, record = cls._target(name, priority)
        if record and record.late:  # limpyd has to write some of it
            cls.get_queue(name, target.priority)
        return target

    def delay_job(self, job: Job, delayed_until: datetime) -> None:
        """Put a job in the delayed set; it leaves any other place.

        Args:
            delayed_until: naive datetimes are UTC.
        Raises:
            InvalidArgument: not a datetime. JobNotInStatus: the job runs. Nothing was written.
        Redis: place.lua.
        """
        until = check_datetime("delayed_until", delayed_until)
        self._place(job, False, Delay("until", repr(datetime_to_score(until))))

    def enqueue_job(self, job: Job, prepend: bool = False) -> None:
        """Put a job at the end of the waiting list, or at its start; it leaves any other place.

        Raises:
            JobNotInStatus: the job runs; nothing was written.
        Redis: place.lua.
        """
        self._place(job, prepend, Delay())

    def _place(self, job: Job, prepend: bool, delay: Delay) -> None:
        subject, model = job._subject(), type(self)
        if job._note_begun is not None:
            job._note_begun(job)
        call = transitions.place(
            subject, model.namespace or "", recipes.queue_recipe(model), self.pk.get(), prepend, delay, job._token
        )
        changes = self._send(call)
        job._claim = None
        repair_indexes(changes)

    @staticmethod
    def _get_iterable_for_names(names: str | Iterable[str]) -> list[str]:
        if not isinstance(names, (str, Iterable)) or isinstance(names, bytes):
            raise InvalidArgument("names", names, "the name of a queue, or several")
        return [names] if isinstance(names, str) else list(names)

    @classmethod
    def get_all(cls, names: str | Iterable[str]) -> list[Any]:
        """The queues with these names, of all priorities."""

        def age(pk: str) -> tuple[int, str]:
            return (len(pk), pk) if pk.isdigit() else (0, pk)

        found = (sorted(cls._pks_of(name), key=age) for name in cls._get_iterable_for_names(names))
        return [cls.from_pk(pk) for pks in found for pk in pks]

    @classmethod
    def _pks_of(cls, name: str) -> Iterable[str]:
        try:
            return list(cls.collection(name=name))
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            if time.monotonic() >= cls._told_of.get(name, 0):
                cls._told_of[name] = time.monotonic() + TELL_AGAIN_SECONDS
                logger.error("The queues of the name %r cannot be found: Redis has no set under their index", name)
            return []

    @classmethod
    def get_all_by_priority(cls, names: str | Iterable[str]) -> list[Any]:
        """The queues with these names, highest priority first; equal ones in the order of the names given.

        One whose record is not a hash is left out.
        """
        queues = cls.get_all(cls._get_iterable_for_names(names))
        pipeline = cls._raw_pipeline()
        for queue in queues:
            pipeline.hget(queue.key, "priority")
        replies = pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
                raise reply
        pairs = [pair for pair in zip(replies, queues, strict=True) if not isinstance(pair[0], Exception)]
        return [queue for _, queue in sorted(pairs, key=lambda pair: -_number(pair[0]))]

    @classmethod
    def get_waiting_keys(cls, names: str | Iterable[str]) -> list[str]:
        """The keys of the waiting lists of these names, in the order in which a worker takes from them."""
        return [queue.waiting.key for queue in cls.get_all_by_priority(names)]

    @classmethod
    def count_waiting_jobs(cls, names: str | Iterable[str]) -> int:
        """How many jobs wait under these names, all priorities together; not those that are parked."""
        return cls._count(names, "llen", "waiting")

    @classmethod
    def count_delayed_jobs(cls, names: str | Iterable[str]) -> int:
        """How many jobs are delayed under these names, all priorities together."""
        return cls._count(names, "zcard", "delayed")

    @classmethod
    def count_parked_jobs(cls) -> dict[str, int]:
        """How many jobs may not start yet, by the key of their limit, in all queues; see docs/limits.md.

        They are WAITING, but in no waiting list: `count_waiting_jobs` does not count them.
        """
        namespace, pipeline = cls.namespace or "", cls._raw_pipeline()
        keys = cls.get_connection().zrange(f"{namespace}:limits:due", 0, -1)
        for key in keys:
            pipeline.zcard(f"{namespace}:limit:{key}:parked")
        return {key: count for key, count in zip(keys, pipeline.execute(), strict=True) if count}

    @classmethod
    def _count(cls, names: str | Iterable[str], command: str, field: str) -> int:
        pipeline = cls._raw_pipeline()
        for name in cls._get_iterable_for_names(names):
            for pk in cls.collection(name=name):
                getattr(pipeline, command)(f"{cls._name}:{pk}:{field}")
        return sum(pipeline.execute())

    @classmethod
    def _raw_pipeline(cls) -> Any:
        return cls.database.connection.pipeline(transaction=False)

    @property
    def first_delayed(self) -> tuple[str, float] | None:
        """The ident and the score of the first job to be due, or None."""
        found = self.delayed.zrange(0, 0, withscores=True)
        return (found[0][0], found[0][1]) if found else None

    @property
    def first_delayed_time(self) -> float | None:
        """When the first delayed job is due, in seconds since the epoch, or None."""
        first = self.first_delayed
        return first[1] if first else None

    def requeue_delayed_jobs(self) -> list[tuple[str, str]]:
        """Move the delayed jobs that are due, by the clock of Redis, to the waiting list.

        Returns:
            The failures: the ident of each job that cannot be had, and why. One whose record is gone is dropped; one
            whose class is unknown goes to the waiting list, where a worker moves it to the errors.
        Redis: promote.lua.
        """
        model, gone = type(self), list[str]()
        unresolvable: set[str] = set()
        failures: list[tuple[str, str]] = []
        while True:
            call = transitions.promote(
                model.namespace or "", model._name, self.pk.get(), unresolvable=tuple(unresolvable)
            )
            done = self._send(call)
            if done.kind == "UNKNOWN":
                try:
                    Job.class_of(done.ident).register(model.namespace or "", done.ident.partition(":")[0])
                except JobClassError as error:
                    unresolvable.add(done.ident)
                    failures += [(done.ident, error.reason)] if done.is_due else []
                continue
            repair_indexes(done.changes)
            gone.extend(done.gone)
            if not done.has_more:
                break
        return [(ident, _missing(ident)) for ident in gone] + failures


class _GivingWay:
    """A method or a property of ours that gives way to a field of its name, which a subclass may have had before."""

    def __init__(self, ours: Any) -> None:
        self._ours = ours
        self.__doc__ = ours.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None and self._name in owner._fields:
            return instance._attached_field(self._name, getattr(owner, f"_redis_attr_{self._name}"))
        return self._ours.__get__(instance, owner)


def _giving_way(ours: T) -> T:
    return cast(T, _GivingWay(ours))


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0


def _missing(ident: str) -> str:
    model_repr, _, pk = ident.partition(":")
    return f"No {model_repr.rpartition('.')[2]} found with pk {pk}"


def all_job_models() -> Iterator[Any]:
    """Job and all its subclasses that this process has imported."""
    yield Job
    yield from _subclasses(Job)


def is_pk(text: str) -> bool:
    """Can this be the primary key of a job? At most 1,000 characters, none of them a control character."""
    return 0 < len(text) <= LONGEST_PK and not CONTROL_CHARACTERS.search(text)


def _import_allowed(ident: str, module_name: str) -> Any:
    if not allowed_modules.allows(module_name):
        hint = f"allow it with --job-modules={module_name}, or import it in the worker"
        raise JobClassError(ident, f"the module {module_name} is not imported, and may not be: {hint}")
    try:
        return import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module raises while it is imported
        raise JobClassError(ident, printable(error) or type(error).__name__) from error


_classes: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # found before, by their repr


def _subclasses(model: Any) -> Iterator[Any]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


class Job(BaseJobsModel):
    """Something to do: the record, and in `run` the doing.

    A subclass must be at the first level of a module, so that a worker finds it by the ident of its jobs.
    """

    identifier = InstanceHashField(indexable=True)
    status = InstanceHashField(indexable=True)
    priority = InstanceHashField(indexable=True, default=0)
    added = InstanceHashField()
    start = InstanceHashField()
    end = InstanceHashField()
    tries = InstanceHashField()
    delayed_until = InstanceHashField()
    queued = InstanceHashField(indexable=True)
    cancel_on_error = InstanceHashField()
    queue_key = InstanceHashField()  # the key prefix of the queue that it is, or was last, in: `jobs:queue:3`
    waiting_since = WaitingSinceField()  # when it last began to wait, by the clock of Redis; nothing: when it was added
    recoveries = InstanceHashField()  # how often the lease lapsed while it ran, or may have
    cancel_reason = CancelReasonField()  # "canceled", "expired", or what `cancel` was told
    run_options = RunOptionsField()  # what `add_job` was told of its runs, as JSON; read it with `run_option`
    progress = ProgressField()  # how far it has come, as JSON; written by `update`, read by `get_progress`
    saved_result = SavedResultField()  # what it answered, see outcomes.py; read it with `get_result`
    follow_up = FollowUpField()  # who is to be told of its end: `w`, those who wait for it; `c`, jobs that wait for it
    workflow = WorkflowField(indexable=True)  # the id of the workflow that it was added with
    parents = EdgesField()  # idents of the jobs that it comes after
    waits_for = EdgesField()  # those of them that keep it from its queue
    children = EdgesField()  # idents of the jobs that come after it

    queue_model: Any = Queue
    queue_name: str | None = None
    _task_field: str | None = None  # which field says what a job does, where that is not the class
    always_cancel_on_error = False
    isolate: bool | None = None  # in a process of its own; what the worker says when None
    lease_seconds: float | None = None  # the worker's own when None
    max_recoveries: int | None = None  # the worker's own when None
    result_serializer = "json"  # of what it answers, if that is saved: a name, see serializers.py
    retry_for: float = 5  # how long a producer tries again while Redis cannot be used, in seconds

    # Options of the runs, where `add_job` does not say; without them the worker's own hold (see docs/retries.md). They
    # are not set here, so that a subclass may have fields of these names.
    job_timeout: float | timedelta | None
    expires: float | timedelta | None
    requeue_times: int | None
    requeue_delay_delta: float | timedelta | None
    backoff: Any
    retry_on: Any
    no_retry_on: Any
    # for how long the record is kept after the end, in seconds or like "1d"; `keep_errors` also of canceled jobs
    keep_success: float | timedelta | str | None
    keep_errors: float | timedelta | str | None
    if_parent_fails: str | None  # `cancel` (the default), `run` or `wait`: see docs/workflows.md
    save_result: bool | float | timedelta | str | None
    max_concurrency: int | None  # this and what follows: see docs/limits.md
    rate_limit: str | None
    limit_key: str | None

    # How an identifier is unique, where `add_job` does not say (see docs/uniqueness.md).
    unique_for: float | timedelta | None
    if_queued: str | None

    # What this process knows from the transition that gave it the job; not stored.
    _claim: Claim | None = None
    _moved: transitions.Moved | None = None
    _last_claim: Claim | None = None
    _cached_status: str | None = None
    _is_written = False
    _is_in_doubt = False
    _is_ahead = False  # claimed ahead: it is WAITING in Redis
    _ends_later = False
    _trace: str | None = None  # of an error in another process
    _is_coroutine: bool | None = None  # does `run` give a coroutine? None: that is to be seen from `run` itself
    _outer: Any = None  # what `running_job` was before, for a job that comes from an AsyncConsumer
    _handed: Any = None  # how to tell the end of a job to the AsyncConsumer that it came from
    _loaded: Loaded | None = None  # the fields, as the worker of an event loop has read them
    _extra = ""  # what is to be stored with its success, see transitions.End
    _lost_result: str | None = None  # why its result did not come out of the process in which it was isolated
    _note_begun: Callable[[Any], None] | None = None  # to be called before the job moves itself
    _began = ""  # when this process has begun to run it, if it was claimed before; and when that run ended
    _ended = ""
    _has_run = False  # whoever has its lease by now, recording its end will tell
    _seen = ""  # as it was read: what puts it in a queue, or cancels it, is to be done only if it is so still
    _said: tuple[str, dict[str, Any]] = ("", {})  # the text of `run_options` that was read last, and what it says

    @property
    def must_exist(self) -> bool:
        """The record of a job that a worker runs, or ran, may be removed: by its retention, or by another program."""
        return self._claim is not None or self._last_claim is not None

    @property
    def _run_time(self) -> timedelta | None:
        """How long its run has lasted, if it has ended in this process."""
        claim = self._claim or self._last_claim
        began = self._began or (claim.start if claim else "")
        return parse_datetime(self._ended) - parse_datetime(began) if began and self._ended else None

    @property
    def ident(self) -> str:
        """What queues hold: the class and the primary key, `limpyd_jobs.models.Job:1`."""
        return f"{self.get_model_repr()}:{self.pk.get()}"

    @classmethod
    def class_of(cls, ident: str) -> Any:
        """The class that an ident names: one that this process knows, or of a module that it may import.

        Raises:
            JobClassError: the ident is none; there is no such class; it is not a concrete subclass of Job; or its
                module is not imported yet, and not among the allowed ones (`modules.allowed_modules`).
        """
        model_repr, separator, pk = ident.partition(":")
        known = _classes.get(model_repr)
        if known is not None and pk.isdecimal() and len(pk) <= LONGEST_PK:
            return known
        module_name, dot, name = model_repr.rpartition(".")
        if not separator or not dot or not is_dotted_name(model_repr) or not is_pk(pk):
            raise JobClassError(ident, "it is not of the form module.Class:pk")
        for model in all_job_models():
            if model.get_model_repr() == model_repr and not model.abstract:
                _classes[model_repr] = model
                return model
        module = sys.modules.get(module_name) or _import_allowed(ident, module_name)
        if not issubclass(type(module), ModuleType):
            raise JobClassError(ident, f"{module_name} is not a module")
        # nothing in the module is touched, not even its `__class__`, before it is known to be a class of ours
        model = object.__getattribute__(module, "__dict__").get(name)
        if not issubclass(type(model), type) or Job not in type.mro(model) or model.abstract:
            raise JobClassError(ident, f"{model_repr} is not a subclass of Job")
        return model

    @staticmethod
    def is_known(ident: str) -> bool:
        """Has this process found the class of an ident before?"""
        return ident.partition(":")[0] in _classes

    @classmethod
    def get_from_ident(cls, ident: str) -> Any:
        """The job of an ident, as an instance of the class that it names.

        Raises:
            JobClassError: the class cannot be had. DoesNotExist: the job cannot.
        """
        return cls.class_of(ident).get(ident.partition(":")[2])

    @classmethod
    def register(cls, namespace: str, model_repr: str | None = None) -> None:
        """Tell the scripts that work in a namespace of queues what this class means.

        Args:
            model_repr: another name that it can be imported by, of a module where it was before.
        """
        cls._send(transitions.register(namespace, cls._class_subject(model_repr=model_repr)))

    @classmethod
    def _class_subject(cls, pk: str = "", model_repr: str | None = None) -> Subject:
        model: Any = cls
        return Subject(model_repr or cls.get_model_repr(), model._name, recipes.job_recipe(model), pk)

    def _subject(self) -> Subject:
        return self._class_subject(self.pk.get())

    def hmget(self, *args: str) -> Any:
        """The values of some fields, in one round trip."""
        is_valid = self._loaded is not None and args and set(args) <= set(self._instancehash_fields)
        if self._loaded is not None and is_valid and self._loaded.knows(*args):
            return [self._loaded.values.get(name) for name in args]
        return super().hmget(*args)

    async def __aenter__(self) -> Any:
        if self._handed is None:
            raise LimpydJobsException("`async with` is for jobs that come from an AsyncConsumer")
        self._handed.enter()
        self._outer = running_job.set(self)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        running_job.reset(self._outer)
        return bool(await self._handed.leave(error))

    def _knowledge(self) -> tuple[Any, ...]:
        """What the process of an isolated job tells of it at its end."""
        return self._claim is None, self._moved, self._cached_status

    def _take_knowledge(self, knowledge: tuple[Any, ...]) -> None:
        is_released, self._moved, self._cached_status = knowledge
        if is_released:
            self._last_claim, self._claim = self._claim or self._last_claim, None

    @property
    def _token(self) -> str:
        return self._claim.token if self._claim else ""

    @property
    def _is_held(self) -> bool:
        """Has this process a lease on it that is no worker's: it is to be placed in a queue?"""
        return self._claim is not None and not self._claim.worker

    @property
    def _patience(self) -> float:
        """How long a transition of this job is tried again; a worker sees to that itself."""
        return 0 if self._claim is not None and self._claim.worker else self.retry_for

    @classmethod
    def _get_queue_name(cls, queue_name: str | None = None) -> str:
        name = queue_name or cls.queue_name
        if queue_name is None and not name:
            raise LimpydJobsException("Queue's name not defined: give queue_name, or set it on the class")
        return recipes.to_queue_name(queue_name if queue_name is not None else name)

    def _next_queue_name(self, queue_name: str | None) -> str:
        """Where the job itself is put again, if nobody says where."""
        return self._get_queue_name(queue_name)

    @classmethod
    def _get_queue_model(cls, queue_model: Any = None) -> Any:
        model = cls.queue_model if queue_model is None else queue_model
        if not isinstance(model, type) or not issubclass(model, Queue):
            raise InvalidArgument("queue_model", model, "a subclass of Queue")
        return model

    @classmethod
    def _has_own_placing(cls, queue_model: Any) -> bool:
        """Does a subclass of ours or of the queue want to be called when a job enters a queue?"""
        own_queue = _overrides(queue_model, Queue, "enqueue_job", "delay_job", "get_queue")
        return own_queue or _overrides(cls, Job, "enqueue_or_delay")

    @classmethod
    @seen_adding
    def add_job(
        cls,
        identifier: str,
        queue_name: str | None = None,
        priority: int | str = 0,
        queue_model: Any = None,
        prepend: bool = False,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
        retry_for: float | None = None,
        after: Any = None,
        **fields_if_new: Any,
    ) -> Any:
        """Add a job to a queue, unless one with its identifier is queued already.

        The existing job stays as it is while it runs, and when its priority is as high; else it moves to the queue
        given here. Returns the job, new or existing.

        Args:
            queue_name: the class' own when None.
            priority: higher runs sooner; an integer of at most 2^53.
            prepend: at the start of the waiting list; an existing job moves there.
            delayed_for: from now, in seconds (int, float) or a timedelta; not with `delayed_until`.
            delayed_until: naive datetimes are UTC. In the past: at once.
            retry_for: how long to try again while Redis cannot be used, in seconds; the class' own (5) when None. After
                that the error of redis-py is raised, and the job may be there or not: adding it again is safe. A try
                that gets no reply ends with the timeout of the socket (5 seconds).
            after: a job, an ident, or an iterable of these: it enters its queue when all of them have ended well; until
                then it is BLOCKED. What it does if one of them fails, `if_parent_fails` says: see docs/workflows.md.
            fields_if_new: further fields of a new job, and options of its runs (`job_timeout`, `expires`,
                `requeue_times`, `requeue_delay_delta`, `backoff`, `retry_on`, `no_retry_on`: see docs/retries.md;
                `save_result`: see docs/results.md; `keep_success`, `keep_errors`: see docs/retention.md;
                `max_concurrency`, `rate_limit`, `limit_key`: see docs/limits.md); ignored when it exists.
                `unique_for` and `if_queued` say how the identifier is unique: see docs/uniqueness.md.
        Raises:
            LimpydJobsException: no queue name.
            InvalidArgument: a value is not accepted. JobAlreadyExists: a unique value is taken. WrongKeyType: something
                else is under the keys of the queue. JobAlreadyQueued: `if_queued="raise"`. Nothing was written.
        Redis: add.lua.
        """
        way = cls._way(queue_model, queue_name, priority)
        text = recipes.to_text("identifier", identifier)
        patience = _seconds("retry_for", cls.retry_for if retry_for is None else retry_for)
        parents = idents_of(after) if after is not None else ()
        fields = way.with_run_options(fields_if_new, bool(parents))
        if delayed_for is None and delayed_until is None and not parents:
            call = way.alike_call(text, fields, prepend)
            if call is not None:
                return cls.from_pk(cls._send_added(call, way, patience).pk)
        return cls._add_any(way, text, fields, prepend, delayed_for, delayed_until, patience, parents)[0]

    @classmethod
    @seen_adding
    async def aadd_job(
        cls,
        identifier: str,
        queue_name: str | None = None,
        priority: int | str = 0,
        queue_model: Any = None,
        prepend: bool = False,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
        retry_for: float | None = None,
        after: Any = None,
        **fields_if_new: Any,
    ) -> Any:
        """As `add_job`, for a coroutine: through `redis.asyncio`, so that the event loop goes on meanwhile.

        What has to be done in Python (own methods of a queue, fields and indexes that no script knows, a queue of
        another priority) is done by `add_job`, in a thread. The fields of the job that it returns are read as ever:
        each is a round trip that blocks.
        """
        way = cls._known_way(queue_model, queue_name, priority)
        text = recipes.to_text("identifier", identifier)
        patience = _seconds("retry_for", cls.retry_for if retry_for is None else retry_for)
        parents = idents_of(after)
        fields = way.with_run_options(fields_if_new, bool(parents))
        call = way.plain_call(text, fields, prepend, delayed_for, delayed_until, parents)
        added = Added("NO_QUEUE", "") if call is None else await cls._asend(call, patience)
        if added.kind == "NO_QUEUE":
            where = (queue_name, priority, queue_model, prepend, delayed_for, delayed_until, retry_for, parents)
            return await asyncio.to_thread(cls.add_job, identifier, *where, **fields_if_new)
        if added.changes:
            await asyncio.to_thread(repair_indexes, added.changes)
        return cls.from_pk(added.pk)

    @classmethod
    def _add_any(
        cls,
        way: Way,
        identifier: str,
        fields_if_new: Mapping[str, Any],
        prepend: bool,
        delayed_for: Any,
        delayed_until: Any,
        retry_for: float,
        after: Sequence[str] = (),
    ) -> tuple[Any, str]:
        """Add a job of any kind; answers it and what was done."""
        addition, record = way.addition(identifier, fields_if_new, prepend, delayed_for, delayed_until, after)
        call = transitions.then(transitions.add(way.subject, [addition]), first)
        added = cls._send_added(call, way, retry_for)
        job = cls.from_pk(added.pk)
        if way.is_held or record.late:
            cls._place_added(job, added.kind, addition, record, way)
        return job, added.kind

    @classmethod
    def _send_added(cls, call: transitions.Call[Added], way: Way, retry_for: float) -> Added:
        added: Added = cls._send_with_queue(call, way.queue_model, way.name, retry_for)
        if added.changes:
            repair_indexes(added.changes)
        return added

    @classmethod
    @seen_adding
    def add_jobs(
        cls,
        specs: Iterable[Any],
        queue_name: str | None = None,
        priority: int | str = 0,
        queue_model: Any = None,
        prepend: bool = False,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
        retry_for: float | None = None,
        after: Any = None,
    ) -> AddedJobs:
        """Add many jobs, each as `add_job` does and in the order given, with one round trip for some hundreds.

        Each job is added wholly or not at all, and what is stored is what `add_job` stores.

        Args:
            specs: an iterable of any length, read as it goes: identifiers, or mappings of the arguments of `add_job`
                (`identifier`, fields of the job, those below but `retry_for`), which win over those given here.
            retry_for: as for `add_job`, for each round trip. After a lost reply what it added counts as existing.
        Returns:
            How many were new, and how many identifiers were queued already.
        Raises:
            LimpydJobsException, RedisError: as `add_job`, for the first job that cannot be added. Those before it are
                added, of those after it some may be: adding all of them again is safe.
        Redis: add_alike.lua, add.lua.
        """
        if isinstance(specs, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(specs, Iterable):
            raise InvalidArgument("specs", specs, "an iterable of identifiers or mappings")
        patience = _seconds("retry_for", cls.retry_for if retry_for is None else retry_for)
        parents = idents_of(after)
        options = (queue_name, priority, queue_model, prepend, delayed_for, delayed_until, parents)
        read, bulk = Specs(cls, dict(zip(OPTIONS, options, strict=True))).read, _Bulk(cls, patience)
        with bulk:
            for given in specs:
                bulk.add(*read(given))
        return AddedJobs(bulk.counts["NEW"], bulk.counts["EXISTING"] + bulk.counts["MOVED"])

    @classmethod
    async def aadd_jobs(cls, specs: Iterable[Any], *args: Any, **kwargs: Any) -> AddedJobs:
        """As `add_jobs`, with the same arguments, for a coroutine: in a thread, where `specs` is read, too.

        A coroutine that is cancelled meanwhile does not end it: the jobs are added all the same.
        """
        return await asyncio.to_thread(cls.add_jobs, specs, *args, **kwargs)

    @_giving_way
    @classmethod
    def execute_now(
        cls,
        identifier: str | None = None,
        queue_name: str | None = None,
        queue_model: Any = None,
        raises: bool = False,
        **fields: Any,
    ) -> Any:
        """Make a job and run it here and now, in no queue; what is called, written and logged is what a worker does.

        A job that fails and may be tried again is, at once and up to its `requeue_times`. Its error is recorded, not
        raised. See docs/testing.md.

        Args:
            identifier: random when None. It is not *queued*: it may be that of another job.
            queue_name: of the queue that its hooks get, and in whose history it is afterwards; the class' own when
                None. Without one it has no history, and its hooks get None.
            raises: raise the exception of the last try, once it is recorded.
            fields: as `fields_if_new` of `add_job`.
        Returns:
            The job, which has ended; or was put in a queue by its own run.
        Raises:
            InvalidArgument, JobAlreadyExists: nothing was written.
            KeyboardInterrupt: of its run, when it is recorded.
        Redis: execute.lua, retry.lua.
        """
        return executors.execute(cls, identifier, queue_name, queue_model, raises, fields)

    @_giving_way
    @classmethod
    async def aexecute_now(
        cls,
        identifier: str | None = None,
        queue_name: str | None = None,
        queue_model: Any = None,
        raises: bool = False,
        **fields: Any,
    ) -> Any:
        """As `execute_now`, in the running event loop: coroutine functions are awaited there, others run in threads.

        Raises:
            asyncio.CancelledError: the caller was cancelled: so is the job, which is in ERROR.
        """
        return await executors.aexecute(cls, identifier, queue_name, queue_model, raises, fields)

    @classmethod
    def _way(cls, queue_model: Any, queue_name: str | None, priority: int | str) -> Way:
        """Where jobs are added to, with all that has to be there before."""
        way = cls._known_way(queue_model, queue_name, priority)
        if way.is_queue_late:
            way.queue_model.get_queue(way.name, way.target.priority)
        return way

    @classmethod
    def _known_way(cls, queue_model: Any, queue_name: str | None, priority: int | str) -> Way:
        """Where jobs are added to; remembered, as most jobs go where others went."""
        model: Any = cls
        found = (
            model,
            cls.queue_model if queue_model is None else queue_model,
            queue_name if queue_name is not None else cls.queue_name,
        )
        key = (*found, priority, type(priority))
        try:
            return _ways[key]
        except (KeyError, TypeError):  # TypeError: something that cannot be a key, and is refused below
            pass
        queue_model, name = cls._get_queue_model(queue_model), cls._get_queue_name(queue_name)
        target, record = queue_model._target(name, priority)
        is_late = bool(record and record.late)
        is_held, defaults = cls._has_own_placing(queue_model), recipes.options_of_new_jobs(model)
        unique = recipes.class_uniqueness(model)
        way = Way(model, queue_model, name, target, cls._class_subject(), is_held, is_late, defaults, unique)
        if len(_ways) >= MAX_WAYS:
            _ways.clear()
        return _ways.setdefault(key, way)

    @classmethod
    def _place_added(cls, job: Any, kind: str, addition: Addition, record: recipes.Record, way: Way) -> None:
        """Do what the script left to Python, for a job that is held: foreign fields, and the methods of the user."""
        if kind == "EXISTING":
            return
        job._claim = Claim(job.ident, addition.hold.token, "", "")
        if kind == "NEW":
            record.write_late(job)
        current, until_text = job.hmget("priority", "delayed_until")  # as the script wrote it, by the clock of Redis
        try:
            job.enqueue_or_delay(way.name, int(current), _parse_until(until_text), addition.prepend, way.queue_model)
        except JobNotInStatus as refused:
            if refused.status != STATUSES.CANCELED:  # else it was added, and somebody has canceled it since
                raise
        job._claim = None

    def run(self, queue: Any) -> Any:
        """Do it. Override this; what it returns goes to `job_success` of the worker, and to `on_success`."""
        raise NotImplementedError("You must implement your own action")

    @classmethod
    def worker_started(cls) -> None:
        """Called in each process where a worker of this namespace starts, on each class that has its own."""

    def _own_isolate(self) -> bool | None:
        """Is it to run in a process of its own? None: what the worker says."""
        own = type(self).isolate
        return own if isinstance(own, bool) else None

    @property
    def must_be_cancelled_on_error(self) -> bool:
        """Must the job not be requeued when it fails?"""
        return self.always_cancel_on_error or bool(self.cancel_on_error.hget())

    def run_option(self, name: str) -> Any:
        """What holds for the runs of this job: its own option, or its class'; None when neither says: the worker's.

        Without a round trip in the worker that has claimed it. Durations are in seconds, `expires` is in seconds since
        the epoch, `backoff` a `retries.Backoff`, `rate_limit` a `limits.RateLimit`, the exceptions are their names.

        Raises:
            InvalidArgument: there is no such option.
        """
        if name not in run_options.NAMES:
            raise InvalidArgument("name", name, f"one of {', '.join(run_options.NAMES)}")
        is_stored = name in run_options.OF_NEW_JOBS
        return self._own_run_options().get(name) if is_stored else self._run_options().get(name)

    @property
    def _says_how_to_run(self) -> bool:
        """May there be a run option that is not the worker's?"""
        claim, model = self._claim, cast(Any, type(self))
        return claim is None or claim.run_options != "" or bool(recipes.class_run_options(model))

    def effective_retries(self, default: Retries) -> Retries:
        """What holds for the retries of this job.

        Args:
            default: what the worker says.
        """
        found = {name: value for name, value in self._run_options().items() if name in RETRIES}
        return replace(default, **found) if found else default

    def _run_options(self) -> Mapping[str, Any]:
        """What the job says of its runs, and its class; of the latter, `OF_NEW_JOBS` are meant for new jobs alone."""
        model: Any = type(self)
        own, of_class = self._own_run_options(), recipes.class_run_options(model)
        return {**of_class, **own} if own else of_class

    def _own_run_options(self) -> dict[str, Any]:
        """What `add_job` was told. What cannot be read says nothing, and is told of in the log, once."""
        text = self._run_options_text()
        if text != self._said[0]:
            try:
                self._said = text, run_options.read(text) if text else {}
            except ValueError:
                self._said = text, {}
                logger.warning("The field run_options of %s cannot be read, and is ignored: %r", self.ident, text[:100])
        return self._said[1]

    def _run_options_text(self) -> str:
        if not recipes.has_run_options(type(self)):
            return ""
        claim = self._claim or self._last_claim
        known = claim.run_options if claim is not None else None
        return (self.run_options.hget() or "") if known is None else known

    @_giving_way
    def get_carried(self) -> dict[str, Any]:
        """What instruments have had come along when it was added (see instruments.py).

        Without a round trip in the worker that has claimed it.
        """
        return run_options.read_carried(self._run_options_text())

    @_giving_way
    def cancel(self, reason: str | None = None, queue_model: Any = None) -> Cancellation:
        """See to it that the job is not run.

        One that waits or is delayed is canceled at once. Of one that runs the status becomes CANCELED: its worker
        interrupts it if it can, and at its end counts it as canceled, not as a success. If it raises an error of its
        own, it is in ERROR, and not requeued.

        Args:
            reason: what its field `cancel_reason` gets; "canceled" when None.
            queue_model: of the queue that it is in; the class' own when None.
        Returns:
            CANCELED; REQUESTED when a process has the job; ENDED when it was too late, and nothing was written.
        Raises:
            DoesNotExist: the record is gone. InvalidArgument: the reason is not a text, or the class has a field
                `cancel_reason` of its own. WrongKeyType: something else is under an index. Nothing was written.
        Redis: cancel.lua.
        """
        if reason is not None and not isinstance(reason, str):
            raise InvalidArgument("reason", reason, "a string")
        if reason is not None and not recipes.has_cancel_reason(type(self)):
            accepted = f"None: {type(self).__name__} has a field cancel_reason of its own, where no reason is stored"
            raise InvalidArgument("reason", reason, accepted)
        queue_model = self._get_queue_model(queue_model)
        text = recipes.to_text("reason", reason or "canceled")
        queue_recipe = recipes.queue_recipe(queue_model)
        call = transitions.cancel(self._subject(), queue_model.namespace or "", queue_recipe, text, self._seen)
        cancellation, changes = self._send(call, self._patience)
        Writes.count += 1  # whoever has claimed jobs ahead looks at them again
        repair_indexes(changes)
        return cancellation  # type: ignore[no-any-return]

    @_giving_way
    def get_parents(self) -> list[Any]:
        """The jobs that it comes after, in no order; without those that have been deleted. Raises JobClassError."""
        return _existing(self.parents.smembers())

    @_giving_way
    def get_children(self) -> list[Any]:
        """The jobs that come after it, in no order; without those that have been deleted. Raises JobClassError."""
        return _existing(self.children.smembers())

    def delete(self) -> Any:
        """Delete the record. Jobs that wait for it are told first, as if it had been canceled."""
        model: Any = type(self)
        if recipes.has_edges(model) and "c" in (self.follow_up.hget() or ""):
            _tell_children(model, self.queue_model.namespace or "", self.ident)
        return super().delete()

    @_giving_way
    def wait(self, timeout: float | timedelta | None = None, until: str = "done") -> bool:
        """Wait until the job has ended. Returns whether it has; see `limpyd_jobs.waiting.wait_all`.

        Args:
            timeout: in seconds, or a timedelta; None: without end.
            until: "started": until it runs, or has ended.
        Raises:
            InvalidArgument: a value is not accepted. LimpydJobsException: the job runs here, and waits for itself.
        Redis: watch.lua.
        """
        return waiting.wait_all([self], timeout, until)

    @_giving_way
    async def await_until(self, until: str = "done", timeout: float | timedelta | None = None) -> bool:
        """As `wait`, for a coroutine: `await job.await_until("done", timeout=5)`."""
        return await waiting.await_all([self], timeout, until)

    def _state(self) -> str:
        """The name of its status in small letters: "waiting", "running"...; what is no status of ours, as it is.

        Raises:
            DoesNotExist: the record is gone.
        """
        status = self.status.hget()
        if status is None:
            raise DoesNotExist(f"No job found with ident {self.ident}")
        return STATUSES.by_value(status, status).lower()

    state: str = cast(Any, _GivingWay(property(_state)))

    @_giving_way
    def update(self, percent: float | None = None, note: str | None = None) -> bool:
        """Say how far the job has come: from its run, or from wherever it is done.

        What is None stays as it was said before. All of it is forgotten when the job is put in a queue again, or given
        back.

        Args:
            percent: 0 to 100.
            note: what it does, for people.
        Returns:
            False when nothing was written, because this process runs the job no more, or its record is gone.
        Raises:
            InvalidArgument: a value is not accepted. LimpydJobsException: the class has a field `progress` of its own.
        Redis: update.lua.
        """
        return bool(self._send(self._update_call(percent, note), self.retry_for))

    @_giving_way
    async def aupdate(self, percent: float | None = None, note: str | None = None) -> bool:
        """As `update`, for a coroutine."""
        return await self._asend(self._update_call(percent, note), self.retry_for)

    def _update_call(self, percent: float | None, note: str | None) -> transitions.Call[bool]:
        if not recipes.has_progress(type(self)):
            raise LimpydJobsException(f"{type(self).__name__} has a field progress of its own, where nothing is noted")
        claim = self._claim or self._last_claim
        namespace, text = self._get_queue_model().namespace or "", progress_text(percent, note)
        return transitions.update(namespace, self._subject(), claim.token if claim else "", text)

    @_giving_way
    def get_progress(self) -> Progress | None:
        """How far the job has come; None when it has not said."""
        return read_progress(self.progress.hget()) if recipes.has_progress(type(self)) else None

    @_giving_way
    async def aget_progress(self) -> Progress | None:
        """As `get_progress`, for a coroutine."""
        client: Any = await aio.async_connection(self.database)
        return read_progress(await client.hget(self.key, "progress")) if recipes.has_progress(type(self)) else None

    @_giving_way
    def track(self, items: Iterable[T] | AsyncIterable[T], total: int | None = None) -> Track[T]:
        """The same items, for a loop that is reported as the percentage of the job: `for user in job.track(users)`.

        A few times a second at most, and at the end. `async for` takes both kinds of iterables.

        Args:
            total: how many there are; the length of the iterable when None.
        Raises:
            InvalidArgument: there is neither.
        """
        model: Any = type(self)
        report = partial(Job.update, self) if model.has_field("update") else self.update
        areport = partial(Job.aupdate, self) if model.has_field("aupdate") else self.aupdate
        return Track(items, total_of(items, total), report, areport)

    @_giving_way
    def get_result(self, default: Any = NOT_GIVEN, annotation: Any = Any, error_model: Any = None) -> Any:
        """What the job answered, if that is saved; see docs/results.md.

        Args:
            default: for a job that has not ended, or whose result was not saved or has expired.
            annotation: a type hint; it makes a dataclass of a dict again, and so on (see serializers.restore).
            error_model: in which the errors of the job are; Error when None.
        Raises:
            JobFailed: the job failed; with what its last Error says. JobCanceled: it was canceled.
            NoResult: there is none, and no default. ResultNotStored: the job ended well, but its result could not be
                stored; also with a default.
            NotDecodable: something else was written there. InvalidArgument: no serializer here reads it.
        """
        replies = self._patiently(lambda client: self._ask_for_result(client.pipeline(transaction=False)).execute(), 0)
        return self._result_of(replies, default, annotation, error_model)

    @_giving_way
    async def aget_result(self, default: Any = NOT_GIVEN, annotation: Any = Any, error_model: Any = None) -> Any:
        """As `get_result`, for a coroutine."""
        client: Any = await aio.async_connection(self.database)
        replies = await self._ask_for_result(client.pipeline(transaction=False)).execute()
        if replies[0][0] == STATUSES.ERROR:  # its Error is read by limpyd
            return await asyncio.to_thread(self._result_of, replies, default, annotation, error_model)
        return self._result_of(replies, default, annotation, error_model)

    def _ask_for_result(self, pipeline: Any) -> Any:
        pipeline.hmget(self.key, "status", "queued", "cancel_reason")
        if recipes.has_saved_result(type(self)):
            pipeline.get(self.saved_result.key)
        return pipeline

    def _result_of(self, replies: list[Any], default: Any, annotation: Any, error_model: Any) -> Any:
        status, queued, reason = replies[0]
        text = replies[1] if len(replies) > 1 else None
        if status == STATUSES.SUCCESS and text is not None:
            return read_result(self.ident, text, annotation)
        if status == STATUSES.ERROR and not queued:
            raise self._failure(Error if error_model is None else error_model)
        if status == STATUSES.CANCELED and not queued:
            raise JobCanceled(self.ident, reason if recipes.has_cancel_reason(type(self)) else None)
        if default is not NOT_GIVEN:
            return default
        if status == STATUSES.SUCCESS:
            raise NoResult(self.ident, "it was not saved (see save_result), or has expired")
        raise NoResult(self.ident, "its record is gone" if status is None else "it has not ended")

    def _failure(self, error_model: Any) -> JobFailed:
        """What its last Error says."""
        found = error_model.collection(job_model_repr=self.get_model_repr(), job_pk=self.pk.get())
        pks = sorted(found, key=lambda pk: (len(pk), pk))
        values = error_model.from_pk(pks[-1]).hmget("type", "message", "traceback", "code") if pks else ()
        return JobFailed(self.ident, *values)

    def _result_text(self, value: Any) -> str:
        """What is stored of its result; raises LimpydJobsException when that cannot be."""
        return result_text(value, self.result_serializer)

    @property
    def duration(self) -> timedelta | None:
        """How long it ran, or None before its end."""
        start, end = self.hmget("start", "end")
        return parse_datetime(end) - parse_datetime(start) if start and end else None

    def requeue(
        self,
        queue_name: str | None = None,
        priority: int | str | None = None,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
        queue_model: Any = None,
    ) -> None:
        """Put a job that failed back in a queue, now or later.

        Args:
            priority: higher runs sooner; the job's own when None.
            delayed_for: from now, in seconds (int, float) or a timedelta; not with `delayed_until`.
            delayed_until: naive datetimes are UTC.
        Raises:
            LimpydJobsException: no queue name.
            JobNotInStatus: the job is not in ERROR. JobAlreadyQueued: another one with its identifier is queued.
                Nothing was written.
        Redis: requeue.lua. `queue.errors` keeps its entry: it is a history.
        """
        queue_model = self._get_queue_model(queue_model)
        name, until = self._next_queue_name(queue_name), compute_delayed_until(delayed_for, delayed_until)
        target = queue_model._target_for_jobs(name, 0 if priority is None else priority)
        is_held = self._has_own_placing(queue_model)
        hold = Hold(os.urandom(8).hex()) if is_held else Hold()
        delay = to_delay(delayed_for, until)
        worker = self._claim.worker if self._claim and self._claim.worker else os.urandom(8).hex()
        if not self._is_held:  # else it is repeated, after an outage: all but the placing is done
            call = transitions.requeue(
                self._subject(), target, priority is None, delay, self._token, hold, worker, self._seen
            )
            moved = self._send_with_queue(call, queue_model, name, self._patience)
            self._claim = Claim(self.ident, hold.token, "", moved.queue_key) if is_held else None
            self._moved, self._loaded, self._seen = moved, None, ""
            repair_indexes(moved.changes)
        if is_held and self._moved:
            self.enqueue_or_delay(name, priority, _parse_until(self._moved.delayed_until), queue_model=queue_model)
            self._claim = None

    def enqueue_or_delay(
        self,
        queue_name: str | None = None,
        priority: int | str | None = None,
        delayed_until: datetime | str | None = None,
        prepend: bool = False,
        queue_model: Any = None,
    ) -> None:
        """Put the job in the delayed set of a queue when `delayed_until` is in the future, else in its waiting list.

        `add_job` and `requeue` do the same within their own transition; they call this method when it is overridden.

        Args:
            priority: the job's own when None.
            delayed_until: a datetime or its representation; naive ones are UTC.
            prepend: at the start of the waiting list; only if not delayed.
        Raises:
            LimpydJobsException: no queue name.
            InvalidArgument: a value is not accepted. JobNotInStatus: the job runs. JobAlreadyQueued: another one with
                its identifier is queued. Nothing was written.
            JobNotInStatus: also when this process has it and it was canceled meanwhile. Then it ends canceled.
        Redis: move.lua.
        """
        queue_model = self._get_queue_model(queue_model)
        name, until = self._next_queue_name(queue_name), _parse_until(delayed_until)
        target = queue_model._target_for_jobs(name, 0 if priority is None else priority)
        is_held = _overrides(queue_model, Queue, "enqueue_job", "delay_job", "get_queue")
        hold = Hold(os.urandom(8).hex()) if is_held else Hold()
        delay = to_delay(None, until)
        if self._note_begun is not None:
            self._note_begun(self)
        is_own = priority is None
        call = transitions.move(self._subject(), target, is_own, prepend, delay, self._token, hold, self._seen)
        try:
            moved = self._send_with_queue(call, queue_model, name, self._patience)
        except JobNotInStatus as refused:
            if refused.status == STATUSES.CANCELED:
                self._note_canceled()
            raise
        self._claim = Claim(self.ident, hold.token, "", moved.queue_key) if is_held else None
        self._moved, self._loaded, self._seen = moved, None, ""
        repair_indexes(moved.changes)
        if is_held:
            self._place_by_hooks(queue_model, name, _parse_until(moved.delayed_until), prepend)

    def _note_canceled(self) -> None:
        """It was canceled while this process had it, and the script has let go of it."""
        self._last_claim, self._claim = self._claim, None
        self._cached_status, self._loaded = STATUSES.CANCELED, None

    @classmethod
    def _send_with_queue(cls, call: transitions.Call[Any], queue_model: Any, name: str, retry_for: float) -> Any:
        """Send a call that may need a queue of another priority than given: only the script knows the job's own.

        Raises:
            ConfigurationException: `get_queue` is overridden, and does not make the queue that it is asked for.
        """
        made: set[str] = set()  # several: another client may change the priority meanwhile
        while (done := cls._send(call, retry_for)).kind == "NO_QUEUE":
            if done.queue_priority in made:
                wanted = f"{queue_model.__name__}.get_queue({name!r}, {done.queue_priority})"
                raise ConfigurationException(f"{wanted} made no queue of this name and priority; nothing was written")
            queue_model.get_queue(name, done.queue_priority)
            made.add(done.queue_priority)
        return done

    def _place_by_hooks(self, queue_model: Any, name: str, until: datetime | None, prepend: bool) -> None:
        queue = queue_model.get_queue(name, int(self.priority.hget() or 0))
        if until is not None:
            queue.delay_job(self, until)
        else:
            queue.enqueue_job(self, prepend)
        self._claim = None


_SentJobs: TypeAlias = transitions.SentCall[list[Any]]


class _Bulk:
    """Adds jobs in chunks, one after the other: while Redis works on one, the next one is made.

    Attributes:
        counts: of what was done, by kind.
    """

    def __init__(self, model: Any, retry_for: float) -> None:
        self.counts: Counter[str] = Counter()
        self._model, self._retry_for = model, retry_for
        self._chunk = Chunk()
        self._errors: list[Exception] = []  # of single jobs
        self._finish: Callable[[], None] | None = None  # what remains to be done for the chunk that was sent

    def __enter__(self) -> _Bulk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None or issubclass(kind, Exception):  # what came before an error is added
            self._wait()
            self._send(self._chunk)
            self._wait()
        else:
            with contextlib.suppress(Exception):  # its connection must not stay with a reply that nobody reads
                self._wait()

    def add(self, terms: Terms, identifier: str) -> None:
        """Take a job. Errors as for `Job.add_job`, also for those that were taken before."""
        is_taken = self._chunk.add(terms, identifier)
        if not is_taken or self._chunk.is_full:
            self._wait()
            chunk, self._chunk = self._chunk, Chunk()
            self._send(chunk)
            if not is_taken:
                self._wait()
                self._add_alone(terms, identifier)

    def _send(self, chunk: Chunk) -> None:
        """Send a chunk; what remains to be done for it, `_wait` does."""
        if not chunk.groups:
            return
        *others, last = chunk.groups
        for group in others:  # one after the other, as the jobs are added in the order given
            self._add_group(group)
        sent = self._model._send_ahead(last.call(0))
        self._finish = partial(self._add_last, last, sent)
        if sent is None:
            self._wait()

    def _wait(self) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

    def _add_last(self, group: AlikeJobs | AnyJobs, sent: _SentJobs | None) -> None:
        """Add the last group of a chunk; the error of the first job that could not be added is raised."""
        self._add_group(group, sent)
        if self._errors:
            raise self._errors[0]

    def _add_group(self, group: AlikeJobs | AnyJobs, sent: _SentJobs | None = None) -> None:
        """Add some jobs.

        Args:
            sent: the call that adds them all, if it is on its way.
        """
        place = new = 0

        def send(client: Any) -> list[Any]:
            """Answers for those from `place` on; an outage is raised when it comes first."""
            nonlocal sent
            ahead, sent = sent, None
            answers = transitions.send(client, group.call(place)) if ahead is None else ahead.read()
            answer = answers[0]
            if isinstance(answer, Exception) and is_outage(answer):
                raise answer
            return answers

        try:
            while place < group.size:
                for answer in self._model._patiently(send, self._retry_for):
                    if isinstance(answer, str):
                        new += 1
                    elif isinstance(answer, Exception) and is_outage(answer):
                        break  # it comes first in the next call, which waits
                    else:
                        self._take_answer(group, place, answer)
                    place += 1
        finally:
            if sent is not None:  # what comes before a call could not be done
                sent.drop()
        self.counts["NEW"] += new

    def _take_answer(self, group: AlikeJobs | AnyJobs, place: int, answer: Any) -> None:
        if isinstance(answer, Exception):
            self._errors.append(answer)
        elif answer.kind == "NO_QUEUE":
            self._add_alone(*group.terms_of(place))
        else:
            self.counts[answer.kind] += 1
            if answer.changes:
                repair_indexes(answer.changes)

    def _add_alone(self, terms: Terms, identifier: str) -> None:
        """Add a job that cannot go with others."""
        where = (terms.prepend, *terms.delays, self._retry_for, terms.after)
        added = self._model._add_any(terms.way, identifier, terms.fields, *where)
        self.counts[added[1]] += 1


MAX_WAYS = 1000
_ways: dict[Any, Way] = {}


def _seconds(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise InvalidArgument(argument, value, "a number of seconds, 0 or more")
    return value


def _parse_until(value: datetime | str | None) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        return check_datetime("delayed_until", parse_datetime(value) if isinstance(value, str) else value)
    except (OverflowError, ValueError):
        raise InvalidArgument("delayed_until", value, "a datetime object, or its string representation") from None


class Error(BaseJobsModel):
    """What went wrong, when, in which job: made to be filtered for reports."""

    job_model_repr = InstanceHashField(indexable=True)
    job_pk = InstanceHashField(indexable=True)
    identifier = InstanceHashField(indexable=True)
    queue_name = InstanceHashField(indexable=True)
    date_time = InstanceHashField(indexable=True, indexes=[SimpleDateTimeIndex])
    date = InstanceHashField(indexable=True)  # deprecated by date_time, kept
    time = InstanceHashField()  # deprecated by date_time, kept
    type = InstanceHashField(indexable=True)
    code = InstanceHashField(indexable=True)
    message = InstanceHashField()
    traceback = InstanceHashField()

    @classmethod
    def add_error(
        cls,
        queue_name: str,
        job: Job,
        error: BaseException,
        when: datetime | None = None,
        trace: str | None = None,
        **additional_fields: Any,
    ) -> Any:
        """Write down the error of a job.

        Args:
            when: now when None; naive datetimes are UTC.
            trace: the traceback as text.
            additional_fields: of a subclass.
        Redis: create.lua.
        """
        return cls._create(**cls.fields_for(queue_name, job, error, when, trace, **additional_fields))

    @classmethod
    def fields_for(
        cls,
        queue_name: str,
        job: Job,
        error: BaseException,
        when: datetime | None = None,
        trace: str | None = None,
        **additional_fields: Any,
    ) -> dict[str, Any]:
        """The values of the fields of a new Error; arguments as `add_error`."""
        if job._claim:  # no round trip, and right for a job that has deleted itself, too
            pk, identifier = job._claim.ident.partition(":")[2], job._claim.identifier
        else:
            pk, identifier = job.pk.get(), job.identifier.hget() or ""
        values = cls._values(queue_name, job.get_model_repr(), pk, identifier, error, when, trace)
        return {**values, **additional_fields}

    @staticmethod
    def _values(
        queue_name: str,
        job_model_repr: str,
        job_pk: str,
        identifier: str,
        error: BaseException,
        when: datetime | None,
        trace: str | None,
    ) -> dict[str, Any]:
        moment = utcnow() if when is None else check_datetime("when", when)
        values = {
            "queue_name": queue_name,
            "job_model_repr": job_model_repr,
            "job_pk": job_pk,
            "identifier": identifier,
            "date_time": str(moment),
            "date": str(moment.date()),
            "time": str(moment.time()),
            "type": shortened(class_name(error), MAX_CODE),
            "message": shortened(printable(error), MAX_MESSAGE),
        }
        code = _code_of(error)
        if code is not None:
            values["code"] = shortened(printable(code), MAX_CODE)
        if trace:
            values["traceback"] = shortened(printable(trace), MAX_TRACEBACK)
        return values

    @classmethod
    def collection_for_job(cls, job: Job) -> Any:
        """The collection of the errors of all jobs with the class and the identifier of this one."""
        return cls.collection(job_model_repr=job.get_model_repr(), identifier=job.identifier.hget())

    @property
    def datetime(self) -> datetime:
        """When it happened, as a naive UTC datetime."""
        return parse_datetime(self.date_time.hget())


# What an Error holds at most, in characters; of what is longer the start and the end are kept.
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 100_000
MAX_CODE = 500


class WorkerInfo(BaseJobsModel):
    """A worker that is alive, as it was some seconds ago.

    Each worker writes its own every few seconds, and not at each change (see workers/presence.py). So `status` and
    `jobs` may be old; `admin.workers()` shows the jobs of this moment. It goes at the end of the worker, and some
    seconds after one that was killed. Written by note_worker.lua; what programs write here is written over.

    The keys are in the namespace and the database of the queues of the worker: this class shows those in its own.
    """

    id = fields.PKField()  # the key of the worker, with which the tokens of its claims begin
    kind = InstanceHashField()  # the name of its class
    host = InstanceHashField(indexable=True)
    pid = InstanceHashField()
    version = InstanceHashField()
    queues = InstanceHashField()  # JSON, as are `options`, `jobs` and `counts`
    options = InstanceHashField()  # those in force, by their names; no passwords
    started = InstanceHashField()  # UTC, as `heartbeat`
    status = InstanceHashField(indexable=True)  # as `Worker.status`
    jobs = InstanceHashField()  # the ident and the start of each that runs, twenty at most
    counts = InstanceHashField()  # since the start: jobs that ran, errors
    memory = InstanceHashField()  # resident bytes
    heartbeat = InstanceHashField()  # when this was written, by the clock of Redis


@cache
def worker_recipe(namespace: str) -> str:
    """The recipe of the records of the workers of a namespace."""
    text: str = recipes.recipe(WorkerInfo)
    return text.replace(json.dumps(WorkerInfo._name)[1:-1], json.dumps(worker_key(namespace))[1:-1])


def worker_key(namespace: str) -> str:
    """What the keys of the records of workers begin with: `jobs:workerinfo`."""
    return f"{namespace}:{WorkerInfo._name.rpartition(':')[2]}"


def _code_of(error: BaseException) -> Any:
    try:
        return getattr(error, "code", None)
    except BaseException:  # a property of the user's
        return None


def has_plain_error_indexes(model: Any) -> bool:
    """Can the errors of a job be found in a model of errors, by the indexes that Error declares?"""
    names = ("job_model_repr", "job_pk")
    return all(recipes.has_equal_index(model, name) for name in names)


def printable(value: Any) -> str:
    """The text of any object, whatever its `__str__` does, as UTF-8 can hold it."""
    try:
        text = str(value)
    except BaseException as error:  # an exception of a job may do anything
        text = f"<{class_name(value)}, whose text raises {class_name(error)}>"
    return str.encode(text, "utf-8", "backslashreplace").decode()


def class_name(value: Any) -> str:
    """The name of the class of any object, whatever its metaclass does."""
    return str(type.__dict__["__name__"].__get__(type(value)))


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters: of a longer one the start and the end, and how much is left out."""
    if len(text) <= limit:
        return text
    cut = f"\n... {len(text) - limit} characters left out ...\n"
    kept = max(limit - len(cut), 0)
    return text[: kept - kept // 2] + cut + text[len(text) - kept // 2 :]


def repair_indexes(changes: Changes) -> None:
    """Do what a script has left to do: bring the indexes that it does not know in step, go on with children of jobs."""
    for change in changes:
        try:
            model = Job.class_of(f"{change.repr}:{change.pk}")
        except JobClassError as error:  # this process does not have the class that declares the index
            if change.field:
                logger.warning("%s; its index on %s has to be rebuilt", error, change.field)
            continue
        if not change.field:
            with contextlib.suppress(RedisError):  # the workers go on with it from time to time
                _tell_children(model, change.old)
            continue
        recipes.repair_index(model, change.pk, change.field, (change.old, change.new))


def _existing(idents: Iterable[str]) -> list[Any]:
    found = []
    for ident in idents:
        with contextlib.suppress(DoesNotExist):
            found.append(Job.get_from_ident(ident))
    return found


def _tell_children(model: Any, namespace: str, deleted: str = "") -> None:
    """Go on telling the children of jobs that these have ended, some hundreds a call.

    Args:
        deleted: the ident of a job that is about to be deleted.
    """
    while True:
        done = model._send(transitions.follow_up(namespace, deleted))
        repair_indexes(done.changes)
        if not done.has_more:
            break
