"""Reading records as they are stored, also of classes that this process does not have.

Where the records of a class of jobs are, and which plain indexes they have, the registry `jobs:models` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from redis.exceptions import OutOfMemoryError, ResponseError

from .. import recipes
from ..exceptions import ConfigurationException, InvalidArgument
from ..models import Error, Job, Queue
from .records import JobRecord, texts

T = TypeVar("T")
AT_ONCE = 500  # records that are read in one round trip
MEMBERS = 1000  # of a set or a list that are read by one command

# Fields that a class may have declared for its own ends -> what its recipe says then.
SHADOWED = {
    "run_options": "has_own_run_options",
    "cancel_reason": "has_own_cancel_reason",
    "follow_up": "has_own_follow_up",
    "parents": "has_own_edges",
    "waits_for": "has_own_edges",
    "children": "has_own_edges",
    "workflow": "has_own_edges",
    "progress": "has_own_progress",
    "saved_result": "has_own_saved_result",
    "waiting_since": "has_own_waiting_since",
}
TASK_JOB = "limpyd_jobs.tasks.models.TaskJob"  # registered by versions whose recipes do not name the field of the task


@dataclass(frozen=True)
class JobKind:
    """A class of jobs, as it is known without its code.

    Attributes:
        names: what the idents of its jobs begin with, the one of new idents first; several when the class has moved.
        key: what the keys of its records begin with: `jobs:mailjob`.
        sets: field -> what the keys of the sets begin with that index it; only fields with a plain index.
        own: names of fields of ours that the class has for something else.
        task: the field that names the task of a call; None: its jobs are no calls.
    """

    names: tuple[str, ...]
    key: str
    sets: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    task: str | None = None

    @property
    def name(self) -> str:
        """`my.module.MailJob`."""
        return self.names[0]

    def owns(self, name: str) -> bool:
        """Has the class a field of this name for its own ends, where that of ours would be?"""
        return name in self.own

    def ident(self, pk: str) -> str:
        """The ident of one of its jobs."""
        return f"{self.name}:{pk}"

    def hash_key(self, pk: str) -> str:
        """Where the fields of one of its jobs are."""
        return f"{self.key}:{pk}:hash"

    def is_named(self, job_class: str) -> bool:
        """Is this its name, with its module or alone?"""
        return any(job_class in (name, name.rpartition(".")[2]) for name in self.names)


@dataclass(frozen=True)
class QueueRef:
    """A queue, as it is stored.

    Attributes:
        key: what its keys begin with, and what the field `queue_key` of its jobs holds: `jobs:queue:3`.
    """

    key: str
    name: str
    priority: int


def chunks(items: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """The items, at most `size` at a time."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def escaped(text: str) -> str:
    """The pattern, for SCAN, that matches just this text."""
    return "".join(f"\\{character}" if character in "*?[]\\^" else character for character in text)


def client_of(queue_model: Any) -> Any:
    """The client of the database that is meant."""
    return queue_model.database.connection


def ask(client: Any, commands: Iterable[Sequence[Any]]) -> Iterator[Any]:
    """The replies to commands, AT_ONCE in a round trip. That to a key of a wrong type is its error, not raised."""
    for chunk in chunks(commands):
        pipeline = client.pipeline(transaction=False)
        for command in chunk:
            pipeline.execute_command(*command)
        for reply in pipeline.execute(raise_on_error=False):
            if isinstance(reply, Exception) and not is_wrong_type(reply):
                raise reply
            yield reply


def execute_together(pipeline: Any, raise_on_error: bool = True) -> list[Any]:
    """The replies to a transaction that only reads.

    A Redis whose memory is full refuses transactions: then the same commands, in one round trip, but not in one moment.
    """
    commands = list(pipeline.command_stack)
    try:
        return list(pipeline.execute(raise_on_error))
    except OutOfMemoryError:
        pipeline.transaction, pipeline.command_stack = False, commands
        return list(pipeline.execute(raise_on_error))


def is_wrong_type(reply: Any) -> bool:
    """Is this the error of something else under a key of ours?"""
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


# --- Whole keys, in pages


def each_of_list(client: Any, key: str) -> Iterator[str]:
    """The items of a list, from its end on: what is taken at its head meanwhile shifts nothing.

    What is added at its end does, and is passed over; if that is much, some items come twice.
    """
    before: list[str] = []
    first = -1
    while page := client.lrange(key, first - MEMBERS + 1, first):
        page.reverse()
        yield from _unread(page, before)
        before, first = page, first - MEMBERS


def _unread(page: list[str], before: list[str]) -> list[str]:
    """A page without the items at its start that are the last ones of the page before."""
    for count in range(1, len(page) + 1):
        if before and page[count - 1] == before[-1] and page[:count] == before[-count:]:
            return page[count:]
    return page


def each_of_set(client: Any, key: str) -> Iterator[str]:
    """The members of a set; some perhaps twice."""
    yield from client.sscan_iter(key, count=MEMBERS)


def sorted_set_of(client: Any, key: str) -> Iterator[tuple[str, float]]:
    """The members of a sorted set with their scores, in no order; some perhaps twice."""
    yield from client.zscan_iter(key, count=MEMBERS)


def hash_of(client: Any, key: str) -> Iterator[tuple[str, str]]:
    """The fields of a hash and their values; some perhaps twice."""
    yield from client.hscan_iter(key, count=MEMBERS)


# --- Which models there are


def _all_models(base: Any) -> Iterator[Any]:
    if not base.abstract:
        yield base
    for model in base.__subclasses__():
        yield from _all_models(model)


def _models_of(base: Any, queue_model: Any) -> list[Any]:
    """The imported models of a kind that are in the namespace and the database that are meant."""
    namespace, database = queue_model.namespace or "", queue_model.database
    found = {
        model._name: model
        for model in _all_models(base)
        if (model.namespace or "") == namespace and model.database is database
    }
    return list(found.values())


def queue_models(queue_model: Any) -> list[Any]:
    """The model that is meant, and the others of queues that are imported, of its namespace and database."""
    return [queue_model, *(model for model in _models_of(Queue, queue_model) if model._name != queue_model._name)]


def error_models(queue_model: Any) -> list[Any]:
    """The models of errors that are imported, of the same namespace and database."""
    return _models_of(Error, queue_model)


def job_kinds(queue_model: Any = Queue) -> list[JobKind]:
    """The classes of jobs of a namespace: the registered ones, and those that are imported and had no job yet.

    Two names for the records of one key are one class, which has moved.
    """
    found: dict[str, JobKind] = {}
    namespace = queue_model.namespace or ""
    for name, text in hash_of(client_of(queue_model), f"{namespace}:models"):
        kind = _read_kind(name, text)
        if kind is not None:
            found[kind.key] = _merged(found.get(kind.key), kind)
    for model in _models_of(Job, queue_model):
        kind = _read_kind(model.get_model_repr(), _recipe_of(model))
        if kind is not None:
            found[kind.key] = _merged(kind, found.get(kind.key, kind))
    return sorted(found.values(), key=lambda kind: kind.name)


def _recipe_of(model: Any) -> str:
    try:
        return recipes.job_recipe(model)
    except ConfigurationException:  # an option of the class; its records are read all the same
        return recipes.recipe(model, recipes.TRANSITION_FIELDS)


def _read_kind(name: str, text: str) -> JobKind | None:
    """What a recipe says; None when it is none."""
    try:
        recipe = json.loads(text)
        own_name, key, indexes = str(recipe["repr"]), str(recipe["key"]), dict(recipe["indexes"])
        sets = {name: kinds[0][1] for name, kinds in indexes.items() if kinds and kinds[0][0] == "equal"}
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    own = frozenset(name for name, said in SHADOWED.items() if recipe.get(said))
    task = recipe.get("task") or ("task" if own_name == TASK_JOB else None)
    if task:
        sets.setdefault(task, f"{key}:{task}:")
    return JobKind(tuple(dict.fromkeys((own_name, name))), key, sets, own, task)


def _merged(first: JobKind | None, second: JobKind) -> JobKind:
    if first is None:
        return second
    names = tuple(dict.fromkeys((*first.names, *second.names)))
    return JobKind(names, first.key, first.sets, first.own, first.task)


def kinds_named(kinds: Iterable[JobKind], job_class: str | None) -> list[JobKind]:
    """Those that a filter means.

    Raises:
        InvalidArgument: there is none of this name.
    """
    kinds = list(kinds)
    found = [kind for kind in kinds if job_class is None or kind.is_named(job_class)]
    if not found and job_class is not None:
        names = ", ".join(kind.name for kind in kinds[:10])
        raise InvalidArgument("job_class", job_class, f"the name of a class of jobs, of those known here: {names}")
    return found


def kind_of(kinds: Iterable[JobKind], ident: str) -> tuple[JobKind, str] | None:
    """The class and the primary key of an ident; None: it is of no class that is known here."""
    name, separator, pk = ident.partition(":")
    for kind in kinds:
        if separator and pk and name in kind.names:
            return kind, pk
    return None


# --- Queues


def each_queue(queue_model: Any, names: Iterable[str] = ()) -> Iterator[QueueRef]:
    """The queues of a namespace, or those with these names, in no order. Records that are broken are left out."""
    client, wanted = client_of(queue_model), set(names)
    for model in queue_models(queue_model):
        for page in chunks(_queue_pks(client, model, wanted)):
            hashes = ask(client, (("HMGET", f"{model._name}:{pk}:hash", "name", "priority") for pk in page))
            for pk, values in zip(page, hashes, strict=True):
                if not is_wrong_type(values) and values[0] is not None and (not wanted or values[0] in wanted):
                    yield QueueRef(f"{model._name}:{pk}", values[0], to_integer(values[1]))


def _queue_pks(client: Any, model: Any, names: set[str]) -> Iterator[str]:
    if names and recipes.has_equal_index(model, "name"):
        index = model.get_field("name")._indexes[0]
        keys = [index.get_storage_key(name) for name in sorted(names)]
    else:
        keys = [f"{model._name}:collection"]
    sizes = list(ask(client, (("SCARD", key) for key in keys)))
    for key, size in zip(keys, sizes, strict=True):
        if size and not is_wrong_type(size):
            yield from dict.fromkeys(client.sscan_iter(key, count=MEMBERS))


def queue_names(queues: str | Iterable[str]) -> list[str]:
    """The names of queues, as a user gives them.

    Raises:
        InvalidArgument: one is none.
    """
    return [recipes.to_queue_name(name) for name in texts("queues", queues)]


class QueueNames:
    """The names of queues by their keys, each asked for once."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._known: dict[str, str | None] = {}

    def of(self, keys: Iterable[str]) -> Mapping[str, str | None]:
        """The names; None of a queue that is gone."""
        new = sorted(set(keys) - self._known.keys())
        replies = ask(self._client, (("HGET", f"{key}:hash", "name") for key in new))
        for key, reply in zip(new, replies, strict=True):
            self._known[key] = None if is_wrong_type(reply) else reply
        return self._known


# --- Jobs


def read_jobs(client: Any, jobs: Sequence[tuple[JobKind, str]], names: QueueNames) -> list[JobRecord | None]:
    """Jobs by their classes and primary keys; None for each whose record is gone."""
    hashes = list(ask(client, (("HGETALL", kind.hash_key(pk)) for kind, pk in jobs)))
    keys = [values.get("queue_key") for values in hashes if not is_wrong_type(values)]
    queues = names.of(key for key in keys if key)
    return [_job_record(kind, pk, values, queues) for (kind, pk), values in zip(jobs, hashes, strict=True)]


def _job_record(kind: JobKind, pk: str, values: Any, queues: Mapping[str, str | None]) -> JobRecord | None:
    if is_wrong_type(values):
        fault = f"{kind.hash_key(pk)} is no hash"
        return JobRecord(kind.ident(pk), "", None, "", 0, 0, None, None, None, None, fault=fault)
    if not values:
        return None
    return JobRecord(
        ident=kind.ident(pk),
        identifier=values.get("identifier", ""),
        queue=queues.get(values.get("queue_key", "")),
        status=values.get("status", ""),
        priority=to_integer(values.get("priority")),
        tries=to_integer(values.get("tries")),
        added=values.get("added"),
        start=values.get("start"),
        end=values.get("end"),
        delayed_until=values.get("delayed_until"),
        task=values.get(kind.task) if kind.task else None,
        fields=values,
    )


def to_integer(text: str | None) -> int:
    """A number in a field, without its fraction; 0 for what is none."""
    try:
        return int(float(text or 0))
    except (OverflowError, ValueError):
        return 0
