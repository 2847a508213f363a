"""What the fields of a model mean for a script.

A *recipe* tells a script where the records of a model are and which index entries follow a change of a field. A
*record* is a whole new instance, with everything to write for it. Both come from the fields that the model declares,
so subclasses may add, re-declare and index fields as they like. An index that is not one of limpyd's plain ones
cannot be described: it is `foreign`, and `repair_index` brings it in step after the script.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from limpyd import fields as limpyd_fields
from limpyd.contrib.indexes import MultiIndexes
from limpyd.fields import FieldLock
from limpyd.indexes import BaseIndex, EqualIndex, NumberRangeIndex, TextRangeIndex

from . import lua, run_options, uniqueness
from .exceptions import ConfigurationException, InvalidArgument
from .statuses import STATUSES
from .utils import check_on

MAX_ARGUMENTS = 1000  # of one command in a script; Lua cannot unpack more than some 8,000 (an even number, for pairs)
LONGEST_SECONDS = 36525 * 86400  # a century
MAX_PRIORITY = 2**53  # the integers that Lua and the scores of Redis hold exactly

# The fields that transitions write; the registry knows the indexes of these alone.
TRANSITION_FIELDS = (
    "identifier",
    "status",
    "priority",
    "start",
    "end",
    "tries",
    "delayed_until",
    "queued",
    "queue_key",
    "recoveries",
    "cancel_reason",
)
MOST_SHAPES = 20  # sets of names for which scripts are made for a class
MOST_ALIKE = 50  # fields that a script of add_alike writes: Lua cannot hold more than some 120 in one expression
KEPT = ("keep_success", "keep_errors")  # how long the records of ended jobs are kept, for scripts in seconds
JOB_OPTIONS = ("lease_seconds", "max_recoveries")  # attributes of a class of jobs that scripts must know
EDGES = ("parents", "waits_for", "children", "workflow")
KEYS_OF_JOBS = ("parents", "waits_for", "children", "saved_result")  # fields of each job that have keys of their own
QUEUE_FIELDS = ("name", "priority")


def to_text(name: str, value: Any) -> str:
    """A value as Redis stores it.

    Raises:
        InvalidArgument: not a string (str or UTF-8 bytes) nor a number, or a string that UTF-8 cannot hold.
    """
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            if not value.isascii():
                value.encode()
            return str(value)
    except UnicodeError:
        raise InvalidArgument(name, value, "a string that can be written in UTF-8") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    raise InvalidArgument(name, value, "a string or a number")


def to_priority(value: Any) -> str:
    """A priority as Redis stores it.

    Raises:
        InvalidArgument: not an integer (or the text of one), or beyond 2^53.
    """
    accepted = "an integer between -2^53 and 2^53"
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or abs(number) > MAX_PRIORITY:
        raise InvalidArgument("priority", value, accepted)
    return str(number)


def to_queue_name(value: Any) -> str:
    """The name of a queue.

    Raises:
        InvalidArgument: empty, not a string, or with a comma, NUL or newline in it.
    """
    if not isinstance(value, str) or not value or set(value) & set(",\0\n\r"):
        raise InvalidArgument("queue_name", value, "a string that is not empty, without comma, NUL and newline")
    return to_text("queue_name", value)


def _has_methods_of(index: BaseIndex, base: type, *names: str) -> bool:
    return all(getattr(type(index), name) is getattr(base, name) for name in names)


def _is_equal(index: BaseIndex) -> bool:
    return isinstance(index, EqualIndex) and _has_methods_of(
        index, EqualIndex, "add", "remove", "get_storage_key", "normalize_value", "transform_value"
    )


def _is_range(index: BaseIndex, base: type) -> bool:
    methods = ("add", "remove", "store", "unstore", "get_storage_key", "normalize_value", "prepare_data_to_store")
    return isinstance(index, base) and _has_methods_of(index, base, *methods, "transform_value")


def _describe(index: BaseIndex) -> list[str]:
    """How a script keeps an index in step when all that it knows is the old and the new value."""
    if index.transform is None:
        if _is_equal(index):
            return ["equal", index.get_storage_key("")]
        if _is_range(index, TextRangeIndex):
            return ["text", index.get_storage_key(""), index.separator]
        if _is_range(index, NumberRangeIndex) and not index.raise_if_not_float:
            return ["number", index.get_storage_key("")]
    return ["foreign"]


def get_model_repr(model: type) -> str:
    """`module.ClassName`, the first part of an ident."""
    return f"{model.__module__}.{model.__name__}"


@cache
def recipe(model: Any, only: tuple[str, ...] | None = None) -> str:
    """The recipe of a model as JSON, for its hash fields or for some of them.

    Shape: `{"repr": "app.MailJob", "key": "jobs:mailjob", "indexes": {"status": [["equal", "jobs:mailjob:status:"]]}}`.
    """
    names = model._instancehash_fields if only is None else [name for name in only if model.has_field(name)]
    indexes = {name: [_describe(index) for index in model.get_field(name)._indexes] for name in names}
    described = {name: kinds for name, kinds in indexes.items() if kinds}
    repr_ = model.get_model_repr() if hasattr(model, "get_model_repr") else get_model_repr(model)
    return json.dumps({"repr": repr_, "key": model._name, "indexes": described}, sort_keys=True)


@cache
def job_recipe(model: Any) -> str:
    """The recipe of a class of jobs, as the registry holds it: with its own `lease_seconds`, `max_recoveries` and KEPT.

    Raises:
        ConfigurationException: one of these is not accepted.
    """
    options = {name: getattr(model, name, None) for name in JOB_OPTIONS}
    for name, value in options.items():
        check_job_option(model.__name__, name, value)
    said = class_run_options(model)  # checked as soon as the class is used
    class_uniqueness(model)
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: said[name] for name in KEPT if name in said}
    if not has_run_options(model):
        given["has_own_run_options"] = True
    if not has_cancel_reason(model):
        given["has_own_cancel_reason"] = True
    if not has_follow_up(model):
        given["has_own_follow_up"] = True
    if not has_edges(model):
        given["has_own_edges"] = True
    if not has_progress(model):
        given["has_own_progress"] = True
    if not has_saved_result(model):
        given["has_own_saved_result"] = True
    if own := _own_of_class(model):
        given["own"] = own
    if not has_waiting_since(model):
        given["has_own_waiting_since"] = True
    if names_task(model):
        given["task"] = model._task_field
    return json.dumps({**json.loads(recipe(model, TRANSITION_FIELDS)), **given}, sort_keys=True)


def _own_of_class(model: Any) -> dict[str, Any]:
    """What a class of jobs declares beyond Job, as far as it has to be removed with a job: `indexes` and `keys`."""
    known = {*TRANSITION_FIELDS, *(EDGES if has_edges(model) else ())}
    in_hash = model._instancehash_fields
    keys = [name for name in model._fields if name not in in_hash and name not in KEYS_OF_JOBS]
    keys = [name for name in keys if not isinstance(model.get_field(name), limpyd_fields.PKField)]
    indexes = {name: _describe_own(model, name) for name in model._fields if name in keys or name not in known}
    own = {"indexes": {name: kinds for name, kinds in indexes.items() if kinds}, "keys": keys}
    return {part: found for part, found in own.items() if found}


def _describe_own(model: Any, name: str) -> list[list[str]]:
    kinds = [_describe(index) for index in getattr(model.get_field(name), "_indexes", ())]
    is_in_hash = name in model._instancehash_fields
    return kinds if is_in_hash else [["foreign"] for _ in kinds]  # many values, which no recipe tells


def has_run_options(model: Any) -> bool:
    """Is `run_options` the field of ours, rather than one that a subclass has for its own ends?"""
    return model.has_field(run_options.FIELD) and hasattr(model.get_field(run_options.FIELD), "holds_run_options")


def has_cancel_reason(model: Any) -> bool:
    """As `has_run_options`, for `cancel_reason`: a field that is the user's own is not written."""
    return model.has_field("cancel_reason") and hasattr(model.get_field("cancel_reason"), "holds_cancel_reason")


def has_follow_up(model: Any) -> bool:
    """As `has_run_options`, for `follow_up`: a field that is the user's own says nothing to us."""
    return model.has_field("follow_up") and hasattr(model.get_field("follow_up"), "holds_follow_up")


def has_progress(model: Any) -> bool:
    """As `has_run_options`, for `progress`: a field that is the user's own is not written."""
    return model.has_field("progress") and hasattr(model.get_field("progress"), "holds_progress")


def has_waiting_since(model: Any) -> bool:
    """As `has_run_options`, for `waiting_since`: a field that is the user's own is neither written nor read."""
    return model.has_field("waiting_since") and hasattr(model.get_field("waiting_since"), "holds_waiting_since")


def names_task(model: Any) -> bool:
    """Is there a field whose value, rather than the class, says what a job does?"""
    name = getattr(model, "_task_field", None)
    return name is not None and name in model._instancehash_fields


def has_saved_result(model: Any) -> bool:
    """As `has_run_options`, for `saved_result`: no result is saved where that is a field of the user's own."""
    return model.has_field("saved_result") and hasattr(model.get_field("saved_result"), "holds_saved_result")


@cache
def has_edges(model: Any) -> bool:
    """As `has_run_options`, for what says which jobs come after which."""
    fields = [model.get_field(name) for name in EDGES if model.has_field(name)]
    return has_follow_up(model) and len(fields) == len(EDGES) and all(hasattr(field, "holds_edges") for field in fields)


@cache
def stored_run_options(model: Any) -> frozenset[str]:
    """The options of a run that `add_job` takes, and stores, for a class of jobs: those that are no fields of it."""
    if not has_run_options(model):
        return frozenset()
    names = frozenset(name for name in run_options.NAMES if not model.has_field(name))
    return names if has_saved_result(model) else names - {"save_result"}


@cache
def class_run_options(model: Any) -> dict[str, Any]:
    """What a class of jobs says of its runs, in uniform kinds; fields, methods and properties are the user's own.

    Raises:
        ConfigurationException: a value is not accepted.
    """
    found = _class_options(model, run_options.NAMES, run_options.check)
    if found.get("save_result") and not has_saved_result(model):
        raise ConfigurationException(
            f"Invalid {model.__name__}.save_result: it is stored in the field saved_result, which {model.__name__}"
            " declares for something else"
        )
    stored = [name for name in run_options.OF_NEW_JOBS if name in found]
    if stored and not has_run_options(model):
        raise ConfigurationException(
            f"Invalid {model.__name__}.{stored[0]}: it is stored in the field run_options, which {model.__name__}"
            " declares for something else"
        )
    return found


def _class_options(model: Any, names: Iterable[str], check: Callable[[str, Any], Any]) -> dict[str, Any]:
    found = {}
    for name in names:
        value = inspect.getattr_static(model, name, None)
        if value is not None and not model.has_field(name) and not hasattr(type(value), "__get__"):
            found[name] = check_on(model.__name__, check, name, value)
    return found


@cache
def class_uniqueness(model: Any) -> dict[str, Any]:
    """What a class of jobs says of how an identifier is unique. Raises ConfigurationException."""
    return _class_options(model, uniqueness.NAMES, uniqueness.check)


@cache
def uniqueness_names(model: Any) -> frozenset[str]:
    """The options of uniqueness that `add_job` takes for a class of jobs: those that are no fields of it."""
    return frozenset(name for name in uniqueness.NAMES if not model.has_field(name))


def options_of_new_jobs(model: Any) -> dict[str, Any]:
    """What a class says of its runs that is stored with each new job."""
    return {name: value for name, value in class_run_options(model).items() if name in run_options.OF_NEW_JOBS}


def guessed_job_recipe(job_model: Any, namespace: str, model_repr: str) -> str:
    """What a class of jobs that cannot be had means for a script, if it declares no index that Job has not.

    Args:
        job_model: Job.
    """
    key = f"{namespace}:{model_repr.rpartition('.')[2].lower()}"
    known: dict[str, Any] = json.loads(job_recipe(job_model))
    text = json.dumps({**known, "repr": model_repr, "key": key})
    return text.replace(f'"{job_model._name}:', f'"{key}:')


def check_job_option(owner: str, name: str, value: Any) -> None:
    """Raise ConfigurationException when a number of seconds, or of recoveries, cannot be used; None is accepted."""
    if value is None:
        return
    if name == "lease_seconds":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= LONGEST_SECONDS:
            raise ConfigurationException(f"Invalid {owner}.{name}: {value!r}: must be more than 0, and finite")
    elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PRIORITY:
        raise ConfigurationException(f"Invalid {owner}.{name}: {value!r}: must be an integer, 0 or more")


def queue_recipe(model: Any) -> str:
    """The recipe of a class of queues."""
    return recipe(model, QUEUE_FIELDS)


@cache
def has_foreign_index(model: Any, name: str) -> bool:
    """Is there an index on this field that a script cannot keep in step?"""
    return any(_describe(index) == ["foreign"] for index in model.get_field(name)._indexes)


@cache
def has_equal_index(model: Any, name: str) -> bool:
    """Can the records with a value of this field be found in a plain set?"""
    return bool(model.has_field(name)) and any(
        _describe(index)[0] == "equal" for index in model.get_field(name)._indexes[:1]
    )


@cache
def has_number_index(model: Any, name: str) -> bool:
    """Is there an index on this field whose scores Lua may read in another way than Python?"""
    return any(_describe(index)[0] == "number" for index in model.get_field(name)._indexes)


def repair_index(model: Any, pk: str, name: str, values: Iterable[str]) -> None:
    """Bring the foreign indexes of a field in step with its hash.

    Whoever comes last sees the last value, so writers that overlap end with a right index.

    Args:
        values: those that the field had, and may still be found under.
    """
    field = model.lazy_connect(pk).get_field(name)
    with FieldLock(field):
        current = field.hget()
        for index in model.get_field(name)._indexes:
            if _describe(index) != ["foreign"]:
                continue
            for value in set(values) - {current, "", None}:
                index.remove(pk, value)
            if current is not None:
                index.add(pk, current, check_uniqueness=False)
            index._reset_rollback_cache(pk)


def _entries(index: BaseIndex, parts: tuple[Any, ...]) -> list[list[str]] | None:
    """The index entries of a value of a new record, whose key is not known yet; None: a foreign index."""
    if isinstance(index, MultiIndexes) and _has_methods_of(index, MultiIndexes, "add", "prepare_args"):
        found = [_entries(part, tuple(index.prepare_args(parts))) for part in index._indexes]
        return None if None in found else [entry for entries in found for entry in entries or []]
    if _is_equal(index):
        return [["SADD", index.get_storage_key(*parts)]]
    if _is_range(index, TextRangeIndex):
        member, score = index.prepare_data_to_store("", parts[-1])
        return [["ZADD", index.get_storage_key(*parts), repr(float(score)), member]]
    if _is_range(index, NumberRangeIndex):
        _, score = index.prepare_data_to_store("", parts[-1])
        return [["ZADD", index.get_storage_key(*parts), repr(float(score)), ""]]
    return None


def index_entries(field: Any, pk: str, value: Any) -> Iterator[list[str]]:
    """The entries of a value in the indexes of a field that can be described: command, key, and score and prefix."""
    # limpyd knows how each type of field splits into the values that are indexed
    many = [value] if isinstance(value, str) else value
    for parts in field._prepare_index_data(pk, many) if many else ():
        for index in field._indexes:
            yield from _entries(index, parts) or ()


@cache
def indexed_names(model: Any, others: tuple[str, ...] = ()) -> list[str]:
    """The fields in the hash of a model that have an index, after some others that it has."""
    indexed = (name for name in model._instancehash_fields if model.get_field(name)._indexes)
    return list(dict.fromkeys([*(name for name in others if model.has_field(name)), *indexed]))


def removal(model: Any, pk: str, values: Mapping[str, str | None]) -> dict[str, Any]:
    """What a script removes with a record: its index entries, and the keys of its fields.

    Args:
        values: of the indexed fields in its hash.
    """
    commands = []
    others = [name for name in model._fields if name not in model._instancehash_fields]
    own_keys = [name for name in others if not isinstance(model.get_field(name), limpyd_fields.PKField)]
    found = {**values, **{name: _other_value(model, pk, name) for name in own_keys}}
    for name, value in found.items():
        for command, key, *more in index_entries(model.get_field(name), pk, value) if value is not None else ():
            commands.append(["SREM", key, pk] if command == "SADD" else ["ZREM", key, f"{more[1]}{pk}"])
    return {"key": model._name, "pk": pk, "index": commands, "keys": own_keys}


def removal_by_recipe(known: Mapping[str, Any], pk: str, values: Mapping[str, str | None]) -> dict[str, Any] | None:
    """As `removal`, of a job whose class cannot be had; None: it has an index that no recipe describes.

    Args:
        known: the recipe of its class.
    """
    key, own = known["key"], known.get("own", {})
    indexes = {**known["indexes"], **own.get("indexes", {})}
    if not known.get("has_own_edges"):
        indexes.setdefault("workflow", [["equal", f"{key}:workflow:"]])
    found = [(kinds, value) for name, kinds in indexes.items() if (value := values.get(name)) is not None]
    if any(kind[0] == "foreign" for many in indexes.values() for kind in many):
        return None
    commands = [_removal_of(kind, value, pk) for kinds, value in found for kind in kinds]
    return {"key": key, "pk": pk, "index": commands, "keys": [*KEYS_OF_JOBS, *own.get("keys", ())]}


def _removal_of(kind: list[str], value: str, pk: str) -> list[str]:
    if kind[0] == "equal":
        return ["SREM", kind[1] + value, pk]
    return ["ZREM", kind[1], f"{value}{kind[2]}{pk}" if kind[0] == "text" else pk]


def _other_value(model: Any, pk: str, name: str) -> Any:
    """The value of a field with a key of its own, where it is needed: for its index."""
    return model.from_pk(pk).get_field(name).proxy_get() if model.get_field(name)._indexes else None


def _unique(index: BaseIndex, name: str, value: str) -> list[str] | None:
    """How a script finds out whether a unique value is taken; None: it cannot."""
    if _is_equal(index):
        return [name, "equal", index.get_storage_key(value)]
    if _is_range(index, TextRangeIndex):
        return [name, "text", index.get_storage_key(value), index.prepare_data_to_store("", value)[0]]
    if _is_range(index, NumberRangeIndex):
        return [name, "number", index.get_storage_key(value), repr(float(index.normalize_value(value)))]
    return None


def has_pk(model: Any, values: Mapping[str, Any]) -> bool:
    """Can a record be made of these values: is the primary key among them, or made by Redis?"""
    field = model.get_field("pk")
    return bool(field._auto_increment) or "pk" in values or field.name in values


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _texts(name: str, values: Iterable[Any]) -> list[str]:
    return [to_text(name, value) for value in values]


def _score(name: str, value: Any) -> str:
    try:
        score = float(to_text(name, value))
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise InvalidArgument(name, value, "a number, as the score of a member")
    return repr(score)


def check_value(field: Any, value: Any) -> None:
    """Raise InvalidArgument when a field cannot hold a value."""
    if not isinstance(field, limpyd_fields.InstanceHashField):
        _command(field, value)
        return
    text = to_text(field.name, _from_python(field, value))
    if has_number_index(field._model, field.name) and _is_nan(text):
        raise InvalidArgument(field.name, value, "a number that its index can hold")


def _is_nan(text: str) -> bool:
    try:
        return math.isnan(float(text))
    except ValueError:
        return False


def _from_python(field: Any, value: Any) -> Any:
    """What limpyd makes of a value, which may be an instance of a related model."""
    return field.from_python(to_text(field.name, value) if isinstance(value, bytes) else value)


def _command(field: Any, value: Any) -> tuple[list[str], list[tuple[Any, ...]]] | None:
    """The command that writes a field with a key of its own, and its values as indexes see them; None: unknown kind."""
    name, kind = field.name, type(field)
    if kind is limpyd_fields.StringField:
        text = to_text(name, value)
        return ["SET", name, text], [(text,)]
    if kind in (limpyd_fields.ListField, limpyd_fields.SetField):
        texts = _texts(name, _as_list(value))
        return ["RPUSH" if kind is limpyd_fields.ListField else "SADD", name, *texts], [(text,) for text in texts]
    if kind not in (limpyd_fields.HashField, limpyd_fields.SortedSetField):
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(name, value, "a mapping")
    if kind is limpyd_fields.HashField:
        pairs = [(to_text(name, key), to_text(name, item)) for key, item in value.items()]
        return ["HSET", name, *(text for pair in pairs for text in pair)], list(pairs)
    else:
        scores = {to_text(name, member): _score(name, score) for member, score in value.items()}
        flat = [text for member, score in scores.items() for text in (score, member)]
        return ["ZADD", name, *flat], [(member,) for member in scores]


@cache
def set_prefixes(model: Any, name: str) -> tuple[str, ...] | None:
    """The keys, without the value, of the sets that index a plain field of the hash; None: it is of another kind."""
    field = model.get_field(name)
    is_plain = isinstance(field, limpyd_fields.InstanceHashField) and not field.unique
    kinds = [_describe(index) for index in field._indexes]
    if not is_plain or type(field).from_python is not limpyd_fields.InstanceHashField.from_python:
        return None
    return tuple(kind[1] for kind in kinds) if all(kind[0] == "equal" for kind in kinds) else None


@cache
def queued_prefixes(model: Any) -> tuple[str, str]:
    """What the keys of the indexes begin with that find a queued job by its identifier; '' where one is not plain."""
    if not has_equal_index(model, "identifier") or not has_equal_index(model, "queued"):
        return "", ""
    first = (model.get_field(name)._indexes[0] for name in ("identifier", "queued"))
    by_identifier, by_queued = (index.get_storage_key("") for index in first)
    return by_identifier, by_queued


@cache
def _defaults(model: Any) -> dict[str, Any]:
    return {field.name: field.default for field in model.get_fields() if hasattr(field, "default")}


@cache
def _pk_names(model: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("pk", model.get_field("pk").name)))


@cache
def plain_life(model: Any, queue_model: Any) -> str:
    """What exchange.lua needs to know of a class of jobs to go its quick way, in Lua; nothing when they are not plain.

    Args:
        queue_model: of the queues that the worker takes from.
    """
    prefixes = {name: set_prefixes(model, name) for name in TRANSITION_FIELDS}
    others = [found for name, found in prefixes.items() if name not in ("identifier", "priority", "status", "queued")]
    status, queued = prefixes["status"] or (), prefixes["queued"] or ()
    namespace = queue_model.namespace or ""
    has_own = not has_run_options(model) or not has_waiting_since(model)
    if has_own or len(status) != 1 or len(queued) != 1 or others != [()] * len(others):
        return "local CLASS = nil\n"
    known = {
        "repr": model.get_model_repr(),
        "prefix": f"{model.get_model_repr()}:",
        "key": model._name,
        "recipe": job_recipe(model),
        "namespace": namespace,
        "queue_model": queue_model._name,
        "status": status[0],
        "queued": queued[0],
        "ready": f":ready:{queue_model._name[len(namespace) + 1 :]}:",
    }
    parts = [f"{name} = {lua.quoted(text)}" for name, text in known.items()]
    if names_task(model):
        parts.append(f"task = {lua.quoted(model._task_field)}")
    if model.lease_seconds is not None:
        parts.append(f"lease_seconds = {lua.quoted(repr(model.lease_seconds))}")
    if model.max_recoveries is not None:
        parts.append(f"max_recoveries = {model.max_recoveries}")
    if "keep_success" in class_run_options(model):
        parts.append(f"keep_success = {class_run_options(model)['keep_success']!r}")
    return f"local CLASS = {{{', '.join(parts)}}}\n"


_alike: dict[Any, dict[tuple[str, ...], str | None]] = {}


def alike(model: Any, names: tuple[str, ...]) -> str | None:
    """What add_alike.lua needs to know of a class of jobs, in Lua; None when its new jobs need more than it can write.

    Redis keeps each script for ever: so there are MOST_SHAPES of a class, for the names that come first.

    Args:
        names: the fields in which the jobs differ, the first of which is `identifier`.
    """
    known = _alike.setdefault(model, {})
    if names not in known:
        if len(known) >= MOST_SHAPES:
            return None
        known[names] = _describe_alike(model, names)
    return known[names]


def _describe_alike(model: Any, names: tuple[str, ...]) -> str | None:
    own = ("priority", "status", "queued", "queue_key", "delayed_until", *_pk_names(model))
    if set(own) & set(names) or not all(model.has_field(name) for name in names):
        return None
    same = {**_defaults(model), "status": STATUSES.WAITING, "queued": "1"}
    written = ("priority", "queue_key", "delayed_until")  # by the script
    same = {name: value for name, value in same.items() if name not in (*names, *written)}
    prefixes = {name: set_prefixes(model, name) for name in (*names, *same, *written)}
    by_identifier, by_queued = queued_prefixes(model)
    is_plain = by_identifier and by_queued and model.get_field("pk")._auto_increment and len(prefixes) <= MOST_ALIKE
    if not is_plain or None in prefixes.values() or prefixes["queue_key"] or prefixes["delayed_until"]:
        return None
    values = {name: f"ARGV[at + {position}]" for position, name in enumerate(names)}
    texts = {name: lua.quoted(to_text(name, value)) for name, value in same.items()}
    shared = {**texts, "priority": "priority"}
    pairs = [f"{lua.quoted(name)}, {value}" for name, value in {**values, **shared}.items()]
    own_sets = [f"{lua.quoted(prefix)} .. {values[name]}" for name in names for prefix in prefixes[name] or ()]
    shared_sets = [lua.quoted(prefix + to_text(name, same[name])) for name in same for prefix in prefixes[name] or ()]
    shared_sets += [f"{lua.quoted(prefix)} .. priority" for prefix in prefixes["priority"] or ()]
    known = {
        "repr": model.get_model_repr(),
        "key": model._name,
        "recipe": job_recipe(model),
        "by_identifier": by_identifier,
        "by_queued": by_queued,
    }
    described = ", ".join([f"width = {len(names)}", *(f"{name} = {lua.quoted(text)}" for name, text in known.items())])
    task = shared.get(model._task_field, values.get(model._task_field)) if names_task(model) else None
    own_writes = "; ".join(f"call(command, {key}, pk)" for key in own_sets)
    shared_writes = "; ".join(f"call(command, {key}, ...)" for key in shared_sets)
    return (
        f"local CLASS = {{{described}}}\n"
        f"local function texts_of(at, priority) return {', '.join(pairs)} end\n"
        f"local function task_of(at) return {task or lua.quoted(model.get_model_repr())} end\n"
        f"local function in_own_sets(call, command, at, pk) {own_writes} end\n"
        f"local function in_shared_sets(call, command, priority, ...) {shared_writes} end\n"
    )


class Record:
    """A whole new instance of a model, ready to be written by one script.

    Args:
        values: by field name; missing ones get their default, the primary key may go as `pk` or by its own name.
    Attributes:
        hash: names and values of its hash, in turn.
        sets: keys of the sets that its primary key goes into.
        late: values of fields whose kind or index a script does not know: limpyd writes them afterwards.
    Raises:
        InvalidArgument: an unknown field, or a value that cannot be stored.
        ValueError: a primary key that must not be given, or must and is not (limpyd's words).
        UniquenessError: a unique value is taken, where only limpyd can tell.
    """

    def __init__(self, model: Any, values: Mapping[str, Any]) -> None:
        self.model = model
        self.hash: list[str] = []
        self.sets: list[str] = []
        self.late: dict[str, Any] = {}
        self._rest: dict[str, Any] = {}
        given = {**_defaults(model), **values}
        self._take_pk(given)
        for name, value in given.items():
            if not model.has_field(name):
                raise InvalidArgument(name, value, f"a field of {model.__name__}: there is none of this name")
            prefixes = set_prefixes(model, name)
            if prefixes is None:
                self._take(model.get_field(name), value)
            else:
                text = to_text(name, value)
                self.hash += (name, text)
                self.sets += [prefix + text for prefix in prefixes]

    @property
    def rest(self) -> str:
        """What is neither in its hash nor in sets, as JSON: its own key, other fields and indexes; '' for nothing."""
        return json.dumps(self._rest) if self._rest else ""

    @property
    def text(self) -> str:
        """All of it, as JSON."""
        return json.dumps({"key": self.model._name, "hash": self.hash, "sets": self.sets, **self._rest})

    def _take_pk(self, given: dict[str, Any]) -> None:
        names = [name for name in _pk_names(self.model) if name in given]
        field = self.model.get_field("pk")
        if not names:
            if not field._auto_increment:
                raise ValueError(f'The pk for {self.model.__name__} is not "auto-increment", you must fill it')
            return
        if field._auto_increment:
            raise ValueError(f'The pk for {self.model.__name__} is "auto-increment", you must not fill it')
        self._rest["pk"] = field.normalize(to_text(names[0], given.pop(names[0])))

    def _take(self, field: Any, value: Any) -> None:
        if isinstance(field, limpyd_fields.InstanceHashField):
            check_value(field, value)
            text = to_text(field.name, _from_python(field, value))
            self.hash += [field.name, text]
            self._take_indexes(field, [(text,)])
            return
        found = _command(field, value)
        if found is None:
            self.late[field.name] = value
        else:
            command, name, *arguments = found[0]
            for start in range(0, len(arguments), MAX_ARGUMENTS):  # none at all for an empty list: no key in Redis
                self._add("commands", [command, name, *arguments[start : start + MAX_ARGUMENTS]])
            self._take_indexes(field, found[1])

    def _add(self, part: str, item: list[str]) -> None:
        self._rest.setdefault(part, []).append(item)

    def _take_indexes(self, field: Any, values: list[tuple[Any, ...]]) -> None:
        for position, index in enumerate(field._indexes):
            for parts in values:
                entries = _entries(index, parts)
                if entries is None:
                    self.late.setdefault(field.name, None)
                for command, *arguments in entries or ():
                    if command == "SADD":
                        self.sets += arguments
                    else:
                        self._add("scores", arguments)
                if field.unique and position == 0:
                    self._take_unique(field, index, parts[-1])

    def _take_unique(self, field: Any, index: BaseIndex, value: str) -> None:
        unique = _unique(index, field.name, value)
        if unique is None:
            field.get_unique_index().check_uniqueness(None, value)
        else:
            self._add("unique", unique)

    def come_after(self, parents: Iterable[str], policy: str) -> None:
        """The job is to come after others.

        Args:
            parents: their idents.
            policy: what it does if one of them fails.
        """
        self._rest.update(after=list(parents), policy=policy)

    def be_unique(self, asked: Mapping[str, Any]) -> None:
        """Say how its identifier is unique, in the words of add.lua."""
        self._rest["uniqueness"] = asked

    def replacement(self, names: Iterable[str]) -> dict[str, Any]:
        """What gives some fields of another record the values of this one, in the words of add.lua.

        Raises:
            InvalidArgument: a script cannot do that to one of these fields.
        """
        in_hash, keys = [], []
        for name in names:
            field = self.model.get_field(name)
            if isinstance(field, limpyd_fields.InstanceHashField):
                in_hash.append(name)
            elif name not in self.late and not field._indexes:
                keys.append(name)
            else:
                raise InvalidArgument("if_queued", "replace", f"something else: {name!r} is indexed, and in no hash")
        indexes = json.loads(recipe(self.model, tuple(in_hash)))["indexes"]
        return {"names": in_hash, "indexes": indexes, "keys": keys}

    def write_late(self, instance: Any) -> None:
        """Write what the script left to limpyd."""
        for name, value in self.late.items():
            field = instance.get_field(name)
            if value is not None:
                field.proxy_set(value)
            elif isinstance(field, limpyd_fields.InstanceHashField):
                repair_index(self.model, instance.pk.get(), name, ())
            else:
                field.index()
