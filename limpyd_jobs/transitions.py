"""The transitions, without I/O: each builder says which script to run on what, and how to read its reply.

`send` runs a call through `redis.Redis`, `asend` through `redis.asyncio.Redis`; whoever has another kind of connection
sends `Call.command()` and gives the reply to `Call.read`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import count, islice
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from limpyd.exceptions import DoesNotExist
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError

from . import lua, wire
from .exceptions import (
    InvalidArgument,
    JobAlreadyExists,
    JobAlreadyQueued,
    JobChanged,
    JobNotInStatus,
    LeaseLost,
    LimpydJobsException,
    WrongKeyType,
)
from .statuses import Cancellation

NO_CLASS = "local CLASS = nil\n"  # for scripts that are made for a class, where there is none
FEW_VALUES = 20  # that are quicker packed one by one than with all of their command

T = TypeVar("T")
U = TypeVar("U")
Reply = list[Any]


@dataclass
class Call(Generic[T]):
    """A script, what it is called with, and what its reply means.

    Attributes:
        keys, args: by the names that the header of the script gives them, in its order; a list, the last one, spreads.
        made_for: what a script that is made for a class of jobs knows of it.
        packed: the EVALSHA command as Redis reads it, where most of it has been made before.
    """

    script: str
    keys: Mapping[str, str]
    args: Mapping[str, str | Sequence[str]]
    read: Callable[[Reply], T]
    made_for: str = ""
    packed: bytes | None = None

    def arguments(self) -> list[str]:
        """KEYS and ARGV as one list, ready to be sent after their number of keys."""
        flat: list[Any] = [*self.keys.values(), *self.args.values()]
        if not isinstance(flat[-1], (str, bytes)):
            flat.extend(flat.pop())
        return flat

    def command(self) -> list[Any]:
        """The EVALSHA command, for connections of any kind."""
        return ["EVALSHA", lua.load(self.script, self.made_for).sha, len(self.keys), *self.arguments()]


class SentCall(Generic[T]):
    """A call on its way: its reply is read later, when Redis has done it."""

    def __init__(self, client: Any, call: Call[T]) -> None:
        self._client, self._call = client, call
        self._sent = wire.Sent(client, call.command)

    def read(self) -> T:
        """The value of the call; it is sent again when the connection broke. Raises as `send`."""
        reply = self._sent.reply()
        return send(self._client, self._call) if reply is None else self._call.read(reply)

    def drop(self) -> None:
        """Leave its reply unread."""
        self._sent.drop()


def then(call: Call[T], change: Callable[[T], U]) -> Call[U]:
    """A call whose reply means something else."""
    return Call(call.script, call.keys, call.args, lambda reply: change(call.read(reply)), call.made_for, call.packed)


def send(client: Any, call: Call[T]) -> T:
    """Run a call in one round trip (two, the first time that a server sees the script).

    Within a limpyd pipeline it is sent at once, on a connection of its own: a transition needs its reply.
    """
    if type(client) is not Redis and isinstance(client, Pipeline):
        client = Redis(connection_pool=client.connection_pool)
    try:
        reply = wire.execute(client, call.command, call.packed)
    except NoScriptError:
        text = lua.load(call.script, call.made_for).text
        reply = wire.execute(client, lambda: ["EVAL", text, *call.command()[2:]])
    except UnicodeEncodeError:  # something that Redis holds and that is not UTF-8
        return send(client, _with_bytes(call))
    return call.read(reply)


def send_all(client: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """Run several calls in one round trip, one after the other; answers of each its value, or what is raised."""
    pipeline = client.pipeline(transaction=False)
    for call in calls:
        pipeline.execute_command(*call.command())
    try:
        replies = pipeline.execute(raise_on_error=False)
    except UnicodeEncodeError:  # as in `send`; nothing was sent
        replies = [NoScriptError()] * len(calls)
    return [_value(client, call, reply) for call, reply in zip(calls, replies, strict=True)]


def _value(client: Any, call: Call[Any], reply: Any) -> Any:
    """What a call comes to, of which the reply is here; one whose script was not known there is sent by itself."""
    try:
        if isinstance(reply, NoScriptError):
            return send(client, call)
        return reply if isinstance(reply, Exception) else call.read(reply)
    except Exception as error:
        return error


async def asend(client: Any, call: Call[T]) -> T:
    """As `send`, through a client of `redis.asyncio` (see aio.py)."""
    try:
        reply = await client.execute_command(*call.command())
    except NoScriptError:
        text = lua.load(call.script, call.made_for).text
        reply = await client.execute_command("EVAL", text, *call.command()[2:])
    except UnicodeEncodeError:  # as in `send`
        return await asend(client, _with_bytes(call))
    return call.read(reply)


def _with_bytes(call: Call[T]) -> Call[T]:
    return replace(call, args={name: _bytes(value) for name, value in call.args.items()})


def _bytes(value: Any) -> Any:
    """A text as the bytes that it was read from; of a list, each."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else [_bytes(item) for item in value]


# --- Values that travel


@dataclass(frozen=True)
class Change:
    """A field whose foreign indexes have yet to learn of a write; '' stands for no value.

    '' as `field`: the job has ended, and has children that have yet to be told, by `follow_up` in the namespace `old`.
    """

    repr: str
    pk: str
    field: str
    old: str
    new: str


Changes = tuple[Change, ...]


class Target(NamedTuple):
    """A queue by name and priority, as the scripts that may have to create it get it.

    Attributes:
        model: the key prefix of the queue model, `jobs:queue`.
    """

    namespace: str
    model: str
    recipe: str
    record: str
    name: str
    priority: str


class Subject(NamedTuple):
    """A class of jobs, and one job of it.

    Attributes:
        key: the key prefix of the class, `jobs:job`.
    """

    repr: str
    key: str
    recipe: str
    pk: str = ""


class Delay(NamedTuple):
    """When a job may start: `kind` is '' (at once), 'until' (a score) or 'for' (seconds from now, by Redis' clock)."""

    kind: str = ""
    value: str = ""


class Hold(NamedTuple):
    """A lease on a job that waits to be placed by the caller; without a token, nothing is held."""

    token: str = ""
    lease_seconds: float = 30


class Addition(NamedTuple):
    """A job to be added.

    Attributes:
        texts, sets, rest: of its recipes.Record.
    """

    target: Target
    identifier: str
    texts: Sequence[str]
    sets: Sequence[str]
    rest: str = ""
    prepend: bool = False
    delay: Delay = Delay()
    hold: Hold = Hold()


class Claim(NamedTuple):
    """A job that this process holds: what the claim answered, and the token that proves it.

    Attributes:
        run_options: the text of its field; '' when it has none, None when it was not asked for.
        is_last_chance: its lease has lapsed as often as it may: if its worker is lost once more, it is given up.
    """

    ident: str
    token: str
    worker: str
    queue_key: str
    queue_name: str = ""
    status: str = ""
    identifier: str = ""
    priority: str = "0"
    tries: int = 0
    cancel_on_error: str = ""
    start: str = ""
    lease_seconds: float = 30
    changes: Changes = ()
    run_options: str | None = None
    is_last_chance: bool = False


class Added(NamedTuple):
    """What `add` did: `kind` is NEW, MOVED, EXISTING, or NO_QUEUE (of `queue_priority`)."""

    kind: str
    pk: str
    changes: Changes = ()
    queue_priority: str = ""


Answer: TypeAlias = "str | Added | Exception"


@dataclass(frozen=True)
class Moved:
    """What `move` or `requeue` did: `kind` is OK, or NO_QUEUE (of `queue_priority`)."""

    kind: str
    queue_key: str
    priority: str = ""
    delayed_until: str = ""
    changes: Changes = ()
    queue_priority: str = ""


class Taken(NamedTuple):
    """What `claim` found: `kind` is CLAIMED, STALE, GONE, UNKNOWN, UNREADABLE, BROKEN, PARKED or EMPTY.

    Attributes:
        queue_key: of BROKEN, the key that is to be left alone.
        broken_key: of BROKEN and UNREADABLE, where something of another type is.
        next_due: seconds until the first delayed job is due, or a parked one may start, None when there is none.
        is_ahead: leased, and still WAITING.
    """

    kind: str
    next_due: float | None = None
    ident: str = ""
    queue_key: str = ""
    queue_name: str = ""
    status: str = ""
    claim: Claim | None = None
    broken_key: str = ""
    is_ahead: bool = False


class History(NamedTuple):
    """The list `success` or `errors` of a queue, after a job was added.

    Attributes:
        length: how many idents it has; -1: it is not a list; -2: its queue was deleted.
        keep: what the queue says to keep of it, as text; '' when it says nothing.
    """

    length: int = 0
    keep: str = ""


class Ended(NamedTuple):
    """What `finish`, `fail` or `skip` did: `kind` is OK, ALREADY, LOST, GONE, or CHANGED to `status`."""

    kind: str
    status: str = ""
    error_pk: str = ""
    to_be_requeued: bool = False
    priority: str = "0"
    history: History = History()
    changes: Changes = ()


@dataclass(frozen=True)
class Promoted:
    """What `promote` did: `kind` is OK, UNKNOWN (of `ident`) or LOCKED; `gone` are idents without a record."""

    kind: str
    has_more: bool = False
    ident: str = ""
    is_due: bool = False
    gone: tuple[str, ...] = ()
    changes: Changes = ()


@dataclass(frozen=True)
class Doomed:
    """A job that `recover` did not give back: `held` is the caller's, who records the error with `fail`.

    Attributes:
        reason: LOST (its workers died, too often), HOMELESS (its queue was deleted) or ALONE (it was in none).
        recoveries: how often its lease lapsed.
    """

    held: Claim
    reason: str
    recoveries: int


@dataclass(frozen=True)
class Past:
    """An entry of a history that is not kept.

    Attributes:
        job: the removal of its record (see recipes.removal), None to keep it.
        errors: the removals of its Errors.
        values: what the job had in some fields; one that has others by now is kept.
    """

    ident: str
    job: dict[str, Any] | None
    errors: list[dict[str, Any]]
    values: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Recovered:
    """What `recover` did: `idents` wait or are delayed, `unknown` are of unknown classes."""

    idents: tuple[str, ...]
    doomed: tuple[Doomed, ...] = ()
    unknown: tuple[str, ...] = ()
    changes: Changes = ()


class Renewed(NamedTuple):
    """What `renew` found: the idents that belong to somebody else, and those whose jobs were canceled."""

    lost: tuple[str, ...] = ()
    canceled: tuple[str, ...] = ()


# --- Reading replies


def _changes(items: Sequence[str]) -> Changes:
    return tuple(Change(*items[start : start + 5]) for start in range(0, len(items), 5))


def _exists(kind: Any, what: str) -> Any:
    """Replies that mean the same for all transitions, as exceptions."""
    if kind == "GONE":
        raise DoesNotExist(f"No {what}")
    return kind


def _not_taken(reply: Reply, what: str) -> None:
    _not_broken(reply)
    if reply[0] == "TAKEN":
        raise JobAlreadyExists(f"The value of {reply[1]!r} belongs to another {what}; nothing was written")


def _has_parents(reply: Reply) -> None:
    if reply[0] == "NO_PARENT":
        accepted = (
            "jobs that exist, of classes whose fields parents, waits_for, children, follow_up and workflow are ours"
        )
        raise InvalidArgument("after", reply[1], accepted)


def _not_broken(reply: Reply) -> None:
    if reply[0] == "BROKEN":
        raise WrongKeyType(reply[1])


# --- Builders


def _keys(namespace: str) -> dict[str, str]:
    return {"models": f"{namespace}:models"}


def add(subject: Subject, additions: Sequence[Addition]) -> Call[list[Answer]]:
    """Create jobs of a class in queues of one model, each unless its identifier is queued already.

    Answers what was done for each, up to one with NO_QUEUE: the primary key of a new one, or what else was done, or
    JobAlreadyExists, WrongKeyType or ResponseError, if it could not be added.
    """
    first = additions[0].target
    numbers: dict[Target, str] = {}
    jobs: list[str] = []
    for target, identifier, texts, sets, rest, prepend, delay, hold in additions:
        number = numbers.get(target) or numbers.setdefault(target, str(len(numbers) + 1))
        jobs += (number, identifier, "1" if prepend else "0", delay.kind, delay.value, hold.token)
        jobs += (repr(hold.lease_seconds), rest, str(len(sets)), str(len(texts)), *sets, *texts)
    targets = [text for target in numbers for text in (target.name, target.priority, target.record)]
    args: dict[str, str | Sequence[str]] = {
        "namespace": first.namespace,
        "repr": subject.repr,
        "key": subject.key,
        "recipe": subject.recipe,
        "queue_model": first.model,
        "queue_recipe": first.recipe,
        "targets_count": str(len(numbers)),
        "targets_and_jobs": targets + jobs,
    }
    return Call("add", _keys(first.namespace), args, _read_all_added)


def add_alike(made_for: str, target: Target, prepend: bool, values: Sequence[str]) -> Call[list[Answer]]:
    """Create jobs of a class that wait in a queue, each unless its identifier is queued already. Answers as `add`.

    Args:
        made_for: see recipes.alike.
        values: of each job in turn, for each of the fields that the script is made for.
    """
    args: dict[str, str | Sequence[str]] = {
        "namespace": target.namespace,
        "queue_model": target.model,
        "queue_recipe": target.recipe,
        "queue_name": target.name,
        "priority": target.priority,
        "queue_record": target.record,
        "prepend": "1" if prepend else "0",
        "values": values,
    }
    call = Call("add_alike", _keys(target.namespace), args, _read_all_added, made_for)
    if len(values) <= FEW_VALUES:
        call.packed = _packed_alike(made_for, target, prepend, len(values)) + wire.pack(values)
    return call


@lru_cache(1000)
def _packed_alike(made_for: str, target: Target, prepend: bool, count: int) -> bytes:
    """What the commands begin with that add jobs of a class to a queue: all but their values."""
    command = add_alike(made_for, target, prepend, [""] * (FEW_VALUES + 1)).command()[: -FEW_VALUES - 1]
    return b"*%d\r\n" % (len(command) + count) + wire.pack(command)


def forget_packed() -> None:
    """The scripts are other ones from now on."""
    _packed_alike.cache_clear()


def _read_added(reply: Reply) -> Added:
    kind, text = reply[0], reply[1]
    if kind == "NO_QUEUE":
        return Added(kind, "", queue_priority=text)
    if kind == "FAILED":
        raise ResponseError(text)
    if kind == "QUEUED":
        raise JobAlreadyQueued(f"a job with the identifier {reply[2]!r}", text, is_queued=reply[3] == "1")
    _has_parents(reply)
    _not_taken(reply, "job")
    return Added(kind, text, _changes(reply[2:]) if len(reply) > 2 else ())


def _read_all_added(replies: Sequence[Reply | str]) -> list[Answer]:
    return [reply if isinstance(reply, str) else _added_or_error(reply) for reply in replies]


def _added_or_error(reply: Reply) -> Added | Exception:
    try:
        return _read_added(reply)
    except (LimpydJobsException, ResponseError) as error:
        return error


def get_queue(target: Target) -> Call[tuple[str, bool]]:
    """The primary key of the queue with a name and a priority, and whether it was created.

    Raises JobAlreadyExists on reading, or ValueError: it must be created, and the target has no record.
    """

    def read(reply: Reply) -> tuple[str, bool]:
        _not_taken(reply, "queue")
        if reply[0] == "NO_RECORD":
            raise ValueError(f"There is no queue {target.name!r} with priority {target.priority}: its pk must be given")
        return reply[1], reply[0] == "NEW"

    args = {
        "namespace": target.namespace,
        "queue_recipe": target.recipe,
        "queue_record": target.record,
        "name": target.name,
        "priority": target.priority,
    }
    return Call("get_queue", _keys(target.namespace), args, read)


def create(model_key: str, record: str) -> Call[str]:
    """The primary key of a new record."""

    def read(reply: Reply) -> str:
        _not_taken(reply, "record")
        return str(reply[1])

    return Call("create", {"collection": f"{model_key}:collection"}, {"record": record}, read)


def execute(
    namespace: str, subject: Subject, token: str, lease_seconds: float, record: str, queue_name: str = ""
) -> Call[str]:
    """Create a job that the caller runs at once, under a token unlike any other; its primary key.

    Args:
        queue_name: under which it is counted.
    """

    def read(reply: Reply) -> str:
        _not_taken(reply, "job")
        return str(reply[1])

    args = {
        "namespace": namespace,
        "repr": subject.repr,
        "recipe": subject.recipe,
        "token": token,
        "lease_seconds": repr(lease_seconds),
        "record": record,
        "queue_name": queue_name,
    }
    return Call("execute", _keys(namespace), args, read)


def write(
    hash_key: str,
    recipe: str,
    pk: str,
    must_exist: bool,
    command: str,
    names_and_values: Sequence[str],
    ends_in: str | None = None,
) -> Call[Any]:
    """Change fields of a record. Raises DoesNotExist on reading.

    Args:
        ends_in: the namespace of the queues, when this may be the end of a job that others follow.
    """

    def read(reply: Any) -> Any:
        return _exists(reply, f"record found with pk {pk}")

    args = {
        "recipe": recipe,
        "pk": pk,
        "must_exist": "1" if must_exist else "0",
        "namespace": ends_in or "",
        "may_end": "0" if ends_in is None else "1",
        "command": command,
        "names_and_values": names_and_values,
    }
    return Call("write", {"hash": hash_key}, args, read)


def _read_moved(subject: Subject, transition: str) -> Callable[[Reply], Moved]:
    def read(reply: Reply) -> Moved:
        kind, ident = reply[0], f"{subject.repr}:{subject.pk}"
        _exists(kind, f"job found with ident {ident}")
        _not_broken(reply)
        if kind == "RUNNING":
            raise JobNotInStatus(ident, "r", transition)
        if kind == "LOST":
            raise LeaseLost(ident)
        if kind == "QUEUED":
            raise JobAlreadyQueued(ident, f"{subject.repr}:{reply[1]}")
        if kind == "NOT_IN_STATUS":
            raise JobNotInStatus(ident, reply[1] or None, transition)
        if kind == "CHANGED":
            raise JobChanged(ident, reply[1] or None, transition)
        if kind == "NO_QUEUE":
            return Moved(kind, "", queue_priority=reply[1])
        return Moved(kind, reply[1], reply[2], reply[3], _changes(reply[4:]))

    return read


def _moving(
    subject: Subject, target: Target, keeps_priority: bool, delay: Delay, token: str, hold: Hold, **more: str
) -> dict[str, str | Sequence[str]]:
    return {
        "namespace": target.namespace,
        "repr": subject.repr,
        "recipe": subject.recipe,
        "pk": subject.pk,
        "queue_recipe": target.recipe,
        "queue_record": target.record,
        "queue_name": target.name,
        "priority": "" if keeps_priority else target.priority,
        "delay_kind": delay.kind,
        "delay_value": delay.value,
        "token": token,
        "hold": hold.token,
        "lease_seconds": repr(hold.lease_seconds),
        **more,
    }


def seen_as(status: str | None, end: str | None) -> str:
    """A job as it was read, for `move`, `requeue` and `cancel`: they act only if it is so still."""
    return f"{status or ''}={end or ''}"


def move(
    subject: Subject,
    target: Target,
    keeps_priority: bool,
    prepend: bool,
    delay: Delay,
    token: str,
    hold: Hold,
    seen: str = "",
) -> Call[Moved]:
    """Put a job in a queue, from wherever it is; `seen`: see `seen_as`.

    Raises JobNotInStatus (it runs, or JobChanged), JobAlreadyQueued, WrongKeyType or DoesNotExist on reading.
    """
    more = {"prepend": "1" if prepend else "0", "seen": seen}
    args = _moving(subject, target, keeps_priority, delay, token, hold, **more)
    return Call("move", _keys(target.namespace), args, _read_moved(subject, "move"))


def requeue(
    subject: Subject,
    target: Target,
    keeps_priority: bool,
    delay: Delay,
    token: str,
    hold: Hold,
    worker: str,
    seen: str = "",
) -> Call[Moved]:
    """Put a job that failed back; `worker` (the holder, or a random name) is where a repeated call finds it done.

    `seen`: see `seen_as`. Raises JobNotInStatus, JobAlreadyQueued, WrongKeyType or DoesNotExist on reading.
    """
    args = _moving(subject, target, keeps_priority, delay, token, hold, worker=worker, seen=seen)
    return Call("requeue", _keys(target.namespace), args, _read_moved(subject, "requeue"))


def cancel(
    subject: Subject, namespace: str, queue_recipe: str, reason: str, seen: str = ""
) -> Call[tuple[Cancellation, Changes]]:
    """See to it that a job is not run; `seen`: see `seen_as`.

    Raises WrongKeyType, DoesNotExist or JobChanged on reading.
    """

    def read(reply: Reply) -> tuple[Cancellation, Changes]:
        _not_broken(reply)
        ident = f"{subject.repr}:{subject.pk}"
        kind = _exists(reply[0], f"job found with ident {ident}")
        if kind == "CHANGED":
            raise JobChanged(ident, reply[1] or None, "cancel")
        return Cancellation[kind], _changes(reply[1:])

    args = {
        "namespace": namespace,
        "repr": subject.repr,
        "recipe": subject.recipe,
        "pk": subject.pk,
        "queue_recipe": queue_recipe,
        "reason": reason,
        "seen": seen,
    }
    return Call("cancel", _keys(namespace), args, read)


def place(
    subject: Subject, namespace: str, queue_recipe: str, queue_pk: str, prepend: bool, delay: Delay, token: str
) -> Call[Changes]:
    """Put a job in one queue.

    Raises JobNotInStatus (it runs), JobAlreadyQueued, WrongKeyType or DoesNotExist on reading.
    """

    def read(reply: Reply) -> Changes:
        ident = f"{subject.repr}:{subject.pk}"
        _exists(reply[0], f"job found with ident {ident}, or no queue with pk {queue_pk}")
        _not_broken(reply)
        if reply[0] in ("RUNNING", "NOT_IN_STATUS"):
            raise JobNotInStatus(ident, reply[1] if len(reply) > 1 else "r", "place")
        if reply[0] == "QUEUED":
            raise JobAlreadyQueued(ident, f"{subject.repr}:{reply[1]}")
        return _changes(reply[1:])

    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "repr": subject.repr,
        "recipe": subject.recipe,
        "pk": subject.pk,
        "queue_recipe": queue_recipe,
        "queue_pk": queue_pk,
        "prepend": "1" if prepend else "0",
        "delay_kind": delay.kind,
        "delay_value": delay.value,
        "token": token,
    }
    return Call("place", _keys(namespace), args, read)


def claim(
    namespace: str,
    queue_model: str,
    token: str,
    worker: str,
    lease_seconds: float,
    start: str,
    names: Sequence[str],
    keys: Sequence[str] = (),
    by_keys: bool = False,
    broken: Iterable[str] = (),
    looks_around: bool = True,
) -> Call[Taken]:
    """Take the next job.

    Args:
        looks_around: see to the delayed jobs and the indexes, too: once in a while is enough.
        queue_model: the key prefix of the queue model, `jobs:queue`.
        start: what the field `start` of the job becomes.
        names: of queues, in the order of preference between equal priorities.
        keys: of waiting lists to look at too; with `by_keys` in their order, and nowhere else.
        broken: keys that are known to be of a wrong type; their queues are passed over.
    """

    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "queue_model": queue_model,
        "token": token,
        "lease_seconds": repr(lease_seconds),
        "start": start,
        "looks_around": "1" if looks_around else "0",
        "by_keys": "1" if by_keys else "0",
        "names_count": str(len(names)),
        "keys_count": str(len(keys)),
        "names_keys_and_broken": [*names, *keys, *broken],
    }
    return Call("claim", _keys(namespace), args, lambda reply: _taken(reply, token, worker, start))


def _taken(reply: Reply, token: str, worker: str, start: str) -> Taken:
    kind = reply[0]
    if kind == "CLAIMED":
        _, ident, queue_key, name, due, status, identifier, priority, tries, cancel, seconds, how, said = reply[:13]
        changes = _changes(reply[13:]) if len(reply) > 13 else ()
        known = (ident, token, worker, queue_key, name, status, identifier, priority, _integer(tries), cancel, start)
        held = Claim(*known, float(seconds), changes, said, how == "2")
        return Taken(kind, _seconds(due), ident, queue_key, name, status, held, "", how == "1")
    if kind == "EMPTY":
        return Taken(kind, _seconds(reply[1]))
    if kind == "PARKED":
        return Taken(kind)
    if kind == "BROKEN":
        return Taken(kind, queue_key=reply[1], broken_key=reply[-1])
    if kind == "UNREADABLE":
        return Taken(kind, None, reply[1], reply[2], broken_key=reply[3])
    if kind == "UNKNOWN":
        return Taken(kind, None, reply[1], reply[2])
    _, ident, queue_key, name, due, *rest = reply
    return Taken(kind, _seconds(due), ident, queue_key, name, rest[0] if rest else "")


class End(NamedTuple):
    """A success to be recorded.

    Attributes:
        start: '' unless the job was claimed ahead.
        extra: what is stored with it, as `extra_text` makes it; '' for nothing.
    """

    held: Claim
    start: str
    end: str
    extra: str = ""


def extra_text(result: str, result_seconds: float | None) -> str:
    """What is stored with a success, for its `End`.

    Args:
        result: what the job answered, as outcomes.result_text makes it.
        result_seconds: for how long; None: for as long as its record.
    """
    return _json({"result": result, "result_seconds": result_seconds})


class Exchanged(NamedTuple):
    """What `exchange` did: for each end what was recorded, or LeaseLost, or ResponseError when it could not be; and the
    claims, all CLAIMED but the last."""

    ends: Sequence[Ended | Exception]
    claims: Sequence[Taken]


@dataclass(frozen=True)
class Caller:
    """What a worker says in each exchange.

    Attributes:
        worker: its key.
        lease_seconds, max_recoveries: of classes of jobs that do not say.
        by_keys, names: as for `claim`.
    """

    namespace: str
    queue_model: str
    worker: str
    lease_seconds: float
    max_recoveries: int
    by_keys: bool
    names: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        """What the script looks at when something is not plain, as JSON."""
        return _json(
            {
                "namespace": self.namespace,
                "queue_model": self.queue_model,
                "max_recoveries": self.max_recoveries,
                "by_keys": self.by_keys,
            }
        )

    @cached_property
    def lease_text(self) -> str:
        """The seconds of a lease, as a script gets them."""
        return repr(self.lease_seconds)


def exchange(
    caller: Caller,
    ends: Sequence[End],
    number: int,
    claims_count: int,
    start: str,
    keys: Sequence[str] = (),
    broken: Sequence[str] = (),
    looks_around: bool = True,
    made_for: str = NO_CLASS,
    runs_count: int = 1,
) -> Call[Exchanged]:
    """Record successes and claim the next jobs; unless one of the former is LOST, GONE or CHANGED.

    Args:
        number: of the first claim: the tokens are `worker-number` and so on.
        claims_count: how many jobs at most; the first `runs_count` are to run now, the others are claimed ahead.
        start, keys, broken, looks_around: as for `claim`.
        made_for: see recipes.plain_life.
    """
    last = [*caller.names]
    for held, begun, end, extra in ends:
        last += (held.ident, held.token, held.queue_key, begun, end, extra)
    if keys or broken:
        last += [*keys, *broken]
    around = "1" if looks_around else "0"
    args: dict[str, str | Sequence[str]] = {
        "caller": caller.text,
        "worker": caller.worker,
        "lease_seconds": caller.lease_text,
        "start": start,
        "number": str(number),
        "counts": f"{claims_count} {runs_count} {len(caller.names)} {len(ends)} {len(keys)} {around}",
        "names_ends_keys_and_broken": last,
    }

    def read(replies: Reply) -> Exchanged:
        ended = [_ended(reply, end.held) for reply, end in zip(replies[0], ends, strict=True)]
        tokens = count(number)
        return Exchanged(ended, [_exchanged(reply, caller, next(tokens), start) for reply in replies[1]])

    return Call("exchange", _keys(caller.namespace), args, read, made_for)


def _exchanged(reply: Reply, caller: Caller, number: int, start: str) -> Taken:
    """What was claimed under a number, the quick way or the other one."""
    kind, token, worker = reply[0], f"{caller.worker}-{number}", caller.worker
    if kind not in ("RUNS", "AHEAD"):
        return _taken(reply, token, worker, start)
    _, ident, queue_key, tries, identifier, priority, *more = reply
    name, said, cancel, seconds = caller.names[0], "", "", caller.lease_seconds
    if more:
        said, cancel, seconds = more[0], more[1], float(more[2]) if len(more) > 2 else seconds
    known = (ident, token, worker, queue_key, name, "w", identifier, priority, _integer(tries), cancel, start)
    held = Claim(*known, seconds, (), said)
    return Taken("CLAIMED", None, ident, queue_key, name, "w", held, "", kind == "AHEAD")


def _ended(reply: Reply, held: Claim) -> Ended | Exception:
    if reply[0] == "LOST":
        return LeaseLost(held.ident)
    if reply[0] == "FAILED":
        return ResponseError(reply[1])
    return _finished(reply)


def _finished(reply: Reply) -> Ended:
    kind = reply[0]
    if kind == "CHANGED":
        return Ended(kind, reply[1])
    if kind == "OK":
        history = History(int(reply[1]), reply[2])
        return Ended(kind, "", "", False, "0", history, _changes(reply[3:]) if len(reply) > 3 else ())
    return Ended(kind)


def _integer(text: str) -> int:
    """A count from a record, which may hold anything."""
    try:
        return int(text)
    except ValueError:
        return 0


def _seconds(text: str) -> float | None:
    return float(text) if text and text != "?" else None


def finish(namespace: str, held: Claim, end: str, extra: str = "") -> Call[Ended]:
    """Record the success of a job. Raises LeaseLost on reading.

    Args:
        extra: as of an `End`.
    """
    args = {
        "namespace": namespace,
        "ident": held.ident,
        "token": held.token,
        "worker": held.worker,
        "queue": held.queue_key,
        "end": end,
        "extra": extra,
    }

    def read(reply: Reply) -> Ended:
        _not_lost(reply[0], held)
        return _finished(reply)

    return Call("finish", _keys(namespace), args, read)


def _history(items: Sequence[str]) -> History:
    return History(int(items[0]), items[1]) if items else History()


def _not_lost(kind: str, held: Claim) -> str:
    if kind == "LOST":
        raise LeaseLost(held.ident)
    return kind


def fail(namespace: str, held: Claim, end: str, requeue_times: int | None, record: str) -> Call[Ended]:
    """Record the error of a job. Raises LeaseLost or JobAlreadyExists on reading.

    Args:
        requeue_times: how often it may be requeued after errors, None: not at all.
        record: its Error, or ''.
    """
    args = {
        "namespace": namespace,
        "ident": held.ident,
        "token": held.token,
        "worker": held.worker,
        "queue": held.queue_key,
        "end": end,
        "requeue_times": "" if requeue_times is None else str(requeue_times),
        "record": record,
    }

    def read(reply: Reply) -> Ended:
        _not_taken(reply, "error")
        kind = _not_lost(reply[0], held)
        if kind == "GONE":
            return Ended(kind)
        _, error_pk, to_be_requeued, priority, *more = reply
        history, changes = _history(more[:2]), _changes(more[2:])
        return Ended(kind, "e", error_pk, to_be_requeued == "1", str(_integer(priority)), history, changes)

    return Call("fail", _keys(namespace), args, read)


def begin(namespace: str, held: Claim, start: str) -> Call[Ended]:
    """Note that a job that was claimed ahead runs now; CHANGED when it must not. Raises LeaseLost on reading."""
    args = {
        "namespace": namespace,
        "ident": held.ident,
        "token": held.token,
        "worker": held.worker,
        "start": start,
    }

    return Call("begin", _keys(namespace), args, lambda reply: _begun(reply, held))


def _begun(reply: Reply, held: Claim) -> Ended:
    kind = _not_lost(reply[0], held)
    return Ended(kind, reply[1]) if kind == "CHANGED" else Ended(kind, changes=_changes(reply[1:]))


def retry(namespace: str, held: Claim, next_token: str, start: str) -> Call[Ended]:
    """Run a job again that failed and is still held, under another token; CHANGED when it must not.

    Raises LeaseLost on reading.
    """
    args = {
        "namespace": namespace,
        "ident": held.ident,
        "token": held.token,
        "next_token": next_token,
        "start": start,
        "queue_name": held.queue_name,
    }

    return Call("retry", _keys(namespace), args, lambda reply: _begun(reply, held))


def update(namespace: str, subject: Subject, token: str, progress: str) -> Call[bool]:
    """Note how far a job has come. Answers whether that is written: not when the job is gone, or held by another.

    Args:
        progress: as outcomes.progress_text makes it.
    """
    args = {
        "namespace": namespace,
        "ident": f"{subject.repr}:{subject.pk}",
        "key": subject.key,
        "token": token,
        "progress": progress,
    }
    return Call("update", _keys(namespace), args, lambda reply: bool(reply[0] == "OK"))


def skip(namespace: str, held: Claim) -> Call[Ended]:
    """Let go of a job that is not to be run. Raises LeaseLost on reading."""
    args = {"namespace": namespace, "ident": held.ident, "token": held.token, "worker": held.worker}
    return Call(
        "skip",
        _keys(namespace),
        args,
        lambda reply: Ended(_not_lost(reply[0], held), changes=_changes(reply[1:])),
    )


def promote(
    namespace: str, queue_model: str, queue_pk: str, limit: int = 100, unresolvable: Sequence[str] = ()
) -> Call[Promoted]:
    """Move the due jobs of a queue to its waiting list, `limit` of them at most. Raises WrongKeyType on reading."""

    def read(reply: Reply) -> Promoted:
        kind = reply[0]
        if kind == "UNKNOWN":
            return Promoted(kind, ident=reply[1], is_due=reply[2] == "1")
        _not_broken(reply)
        if kind == "LOCKED":
            return Promoted(kind)
        rest = reply[4:]
        length = int(reply[3])
        return Promoted(kind, reply[1] == "1", gone=tuple(rest[length:]), changes=_changes(rest[:length]))

    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "queue_model": queue_model,
        "queue_pk": queue_pk,
        "limit": str(limit),
        "unresolvable": list(unresolvable),
    }
    return Call("promote", _keys(namespace), args, read)


def recover(
    namespace: str, queue_model: str, token: str, worker: str, lease_seconds: float, max_recoveries: int
) -> Call[Recovered]:
    """Give the jobs whose lease lapsed back.

    Args:
        token: unlike any other; the doomed jobs are held under it and a number.
        lease_seconds: for the doomed jobs.
        max_recoveries: how often a job is given back, if its class does not say.
    """

    def read(reply: Reply) -> Recovered:
        counts, rest = [int(count) for count in reply[1:4]], iter(reply[4:])
        idents = tuple(islice(rest, counts[0]))
        doomed = tuple(_doomed(list(islice(rest, 7)), worker) for _ in range(counts[1]))
        unknown = tuple(islice(rest, counts[2]))
        return Recovered(idents, doomed, unknown, _changes(list(rest)))

    args = {
        "namespace": namespace,
        "queue_model": queue_model,
        "token": token,
        "lease_seconds": repr(lease_seconds),
        "max_recoveries": str(max_recoveries),
    }
    return Call("recover", _keys(namespace), args, read)


def _doomed(items: Sequence[str], worker: str) -> Doomed:
    ident, token, reason, queue, name, identifier, recoveries = items
    return Doomed(Claim(ident, token, worker, queue, name, identifier=identifier), reason, _integer(recoveries))


def release(namespace: str, queue_model: str, tokens: Sequence[str]) -> Call[tuple[tuple[str, ...], Changes]]:
    """Give the jobs that are held under some tokens back to the head of their queues, without counting the try.

    Answers the idents of those that were given back, and the changes of their indexes.
    """

    def read(reply: Reply) -> tuple[tuple[str, ...], Changes]:
        end = 2 + int(reply[1])
        return tuple(reply[2:end]), _changes(reply[end:])

    args: dict[str, str | Sequence[str]] = {"namespace": namespace, "queue_model": queue_model, "tokens": tokens}
    return Call("release", _keys(namespace), args, read)


def _json(value: Any) -> str:
    """A value for a script; what is not UTF-8 stays as it was read."""
    return json.dumps(value, ensure_ascii=False)


def _entry(past: Past, more: Mapping[str, Any]) -> list[str]:
    """What is to be removed, as `purge` and `forget` get it."""
    pairs = [(name, "" if value is None else f"={value}") for name, value in past.values.items()]
    texts = [text for pair in pairs for text in pair]
    return [past.ident, _json({"job": past.job, "errors": past.errors, **more}), str(len(pairs)), *texts]


def purge(namespace: str, queue_key: str, history: str, past: Iterable[Past]) -> Call[tuple[int, frozenset[str]]]:
    """Remove the oldest entries of a history, `success` or `errors`, with what goes with them.

    Answers how many were removed, and of which of them the record was kept, because it has changed.
    """
    entries = [text for one in past for text in _entry(one, {})]

    def read(reply: Reply) -> tuple[int, frozenset[str]]:
        return int(reply[1]), frozenset(reply[2:])

    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "queue": queue_key,
        "history": history,
        "entries": entries,
    }
    return Call("purge", _keys(namespace), args, read)


def forget(namespace: str, past: Iterable[tuple[Past, bool]]) -> Call[tuple[int, frozenset[str]]]:
    """Remove ended jobs that were kept for a time of their own.

    Answers to how many it came, and which of them were removed.

    Args:
        past: each with whether these are all of its errors.
    """

    def read(reply: Reply) -> tuple[int, frozenset[str]]:
        return int(reply[1]), frozenset(reply[2:])

    entries = [text for one, is_all in past for text in _entry(one, {"is_all": is_all})]
    args: dict[str, str | Sequence[str]] = {"namespace": namespace, "entries": entries}
    return Call("forget", _keys(namespace), args, read)


def remove(
    namespace: str,
    queue_recipe: str,
    past: Iterable[tuple[Past, bool]],
    is_forced: bool = False,
    spares: bool = False,
    reach: int = 1000,
    looks: bool = False,
) -> Call[tuple[list[str], Changes]]:
    """Remove jobs wherever they are, or Errors alone.

    Answers of each what was done: REMOVED, GONE, RUNNING, CHANGED, NEEDED or MORE (see remove.lua).

    Args:
        past: each with whether these are all of its errors.
        is_forced: also those that a process has.
        spares: not those that ended well, and whose children have yet to run.
        reach: how many entries of a history are looked at, from each end.
        looks: only say what would be done.
    """
    given = list(past)

    def read(reply: Reply) -> tuple[list[str], Changes]:
        return reply[1 : 1 + len(given)], _changes(reply[1 + len(given) :])

    entries = [
        text for one, is_all in given for text in _entry(one, {"is_all": is_all, "spares": spares, "looks": looks})
    ]
    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "queue_recipe": queue_recipe,
        "forced": "1" if is_forced else "0",
        "reach": str(reach),
        "entries": entries,
    }
    return Call("remove", _keys(namespace), args, read)


def renew(namespace: str, held: Iterable[Claim], asks_canceled: bool = False) -> Call[Renewed]:
    """Prolong leases.

    Args:
        asks_canceled: see which of the jobs are CANCELED by now, too.
    """

    def read(reply: Reply) -> Renewed:
        end = 2 + int(reply[1])
        return Renewed(tuple(reply[2:end]), tuple(reply[end:]))

    triples = [text for one in held for text in (one.ident, one.token, repr(one.lease_seconds))]
    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "asks_canceled": "1" if asks_canceled else "0",
        "idents_tokens_and_seconds": triples,
    }
    return Call("renew", _keys(namespace), args, read)


def watch(namespace: str, hashes_and_marks: Iterable[tuple[str, bool]]) -> Call[list[tuple[str, str]]]:
    """Ask to be told of the ends of jobs. Answers of each its state, ENDED, GONE, RUNNING or OPEN, and its `end`.

    Args:
        hashes_and_marks: of each job the key of its hash, and whether its field `follow_up` is ours.
    """

    def read(reply: Reply) -> list[tuple[str, str]]:
        return list(zip(reply[::2], reply[1::2], strict=True))

    flat = [text for key, is_ours in hashes_and_marks for text in (key, "1" if is_ours else "0")]
    args: dict[str, str | Sequence[str]] = {"namespace": namespace, "hashes_and_marks": flat}
    return Call("watch", _keys(namespace), args, read)


def look(namespace: str, marks: Sequence[str], hashes: Sequence[str]) -> Call[tuple[set[int], dict[int, str]]]:
    """See whether jobs that were claimed ahead may still begin.

    Answers the places of the names that are paused, and of each job that is not WAITING its place and its status.

    Args:
        marks: the keys of the sets `ready` of some names of queues.
        hashes: the keys of the hashes of the jobs.
    """

    def read(reply: Reply) -> tuple[set[int], dict[int, str]]:
        paused, others = reply
        statuses = zip(others[::2], others[1::2], strict=True)
        return {int(place) - 1 for place in paused}, {int(place) - 1: status for place, status in statuses}

    args: dict[str, str | Sequence[str]] = {"marks_count": str(len(marks)), "marks_and_hashes": [*marks, *hashes]}
    return Call("look", _keys(namespace), args, read)


def reject(namespace: str, queue_key: str, ident: str, record: str, end: str, recipe: str = "") -> Call[Ended]:
    """Move an ident that nobody can run to the errors of its queue.

    Args:
        record: its Error, or ''.
        recipe: what its class probably means, or ''.
    """

    def read(reply: Reply) -> Ended:
        _not_taken(reply, "error")
        if reply[0] != "OK":
            return Ended(reply[0])
        return Ended(reply[0], error_pk=reply[1], history=_history(reply[2:]))

    args = {
        "namespace": namespace,
        "queue": queue_key,
        "ident": ident,
        "record": record,
        "end": end,
        "recipe": recipe,
    }
    return Call("reject", _keys(namespace), args, read)


def register(namespace: str, subject: Subject) -> Call[None]:
    """Tell the registry what a class of jobs means."""
    args = {"namespace": namespace, "repr": subject.repr, "recipe": subject.recipe}
    return Call("register", _keys(namespace), args, lambda reply: None)


class Settled(NamedTuple):
    """What `settle` answered: `kind` is FINE, PLAN (of `steps`), DONE or UNKNOWN."""

    kind: str
    steps: tuple[str, ...] = ()
    changes: Changes = ()


def settle(namespace: str, ident: str, steps: Sequence[str], places: Iterable[tuple[str, str, str]]) -> Call[Settled]:
    """Put one job in order.

    Args:
        steps: what it answered before, to be done; none: to be asked.
        places: where the job was found, see settle.lua.
    """

    def read(reply: Reply) -> Settled:
        kind = reply[0]
        if kind == "PLAN":
            return Settled(kind, tuple(reply[1:]))
        return Settled(kind, changes=_changes(reply[1:]))

    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "ident": ident,
        "plan": "".join(f"{step}\n" for step in steps),
        "places": [text for place in places for text in place],
    }
    return Call("settle", _keys(namespace), args, read)


def note_queue(namespace: str, queue_model: str, queue_pk: str, is_meant: bool) -> Call[bool]:
    """Write down what a queue holds. Answers whether that was not noted right.

    Args:
        is_meant: False: only look.
    """
    args = {
        "namespace": namespace,
        "queue_model": queue_model,
        "queue_pk": queue_pk,
        "is_meant": "1" if is_meant else "0",
    }
    return Call("note_queue", _keys(namespace), args, lambda reply: bool(reply[0] == "WRONG"))


def pause(namespace: str, queue_model: str, name: str, reason: str, by: str) -> Call[str]:
    """Have no worker take jobs of the queues of a name. Answers what is noted, as JSON.

    Raises WrongKeyType on reading.
    """

    def read(reply: Reply) -> str:
        _not_broken(reply)
        return str(reply[1])

    args = {"namespace": namespace, "queue_model": queue_model, "name": name, "reason": reason, "by": by}
    return Call("pause", _keys(namespace), args, read)


def resume(namespace: str, queue_model: str, name: str) -> Call[bool]:
    """Have workers take the jobs of the queues of a name again. Was it paused? Raises WrongKeyType on reading."""

    def read(reply: Reply) -> bool:
        _not_broken(reply)
        return bool(reply[1] == "1")

    return Call("resume", _keys(namespace), {"namespace": namespace, "queue_model": queue_model, "name": name}, read)


def note_worker(
    namespace: str, recipe: str, pk: str = "", seconds: float = 0, values: Mapping[str, str] | None = None
) -> Call[None]:
    """Write down what a worker does, for so many seconds; without values, forget it. Those whose time is over go."""
    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "recipe": recipe,
        "pk": pk,
        "seconds": repr(seconds),
        "names_and_values": [text for pair in (values or {}).items() for text in pair],
    }
    return Call("note_worker", _keys(namespace), args, lambda reply: None)


class FollowedUp(NamedTuple):
    """What `follow_up` did: is there more to do at once, and idents of `unknown` classes."""

    has_more: bool
    unknown: tuple[str, ...] = ()
    changes: Changes = ()


def follow_up(namespace: str, deleted: str = "") -> Call[FollowedUp]:
    """Go on telling the children of jobs that these have ended.

    Args:
        deleted: the ident of a job that is about to be deleted: its children are told that it was canceled.
    """

    def read(reply: Reply) -> FollowedUp:
        end = 3 + int(reply[2])
        return FollowedUp(reply[1] == "1", tuple(reply[3:end]), _changes(reply[end:]))

    return Call("follow_up", _keys(namespace), {"namespace": namespace, "deleted": deleted}, read)


class RolledUp(NamedTuple):
    """What `roll_up` did: the `minute` that it is by the clock of Redis, and the last one that was added."""

    minute: int
    rolled: int

    @property
    def has_more(self) -> bool:
        """Are there minutes left that are over?"""
        return self.rolled < self.minute - 1


def roll_up(namespace: str) -> Call[RolledUp]:
    """Add the numbers of minutes that are over to their hours and to the total. Raises WrongKeyType on reading."""

    def read(reply: Reply) -> RolledUp:
        _not_broken(reply)
        return RolledUp(int(reply[1]), int(reply[2]))

    return Call("roll_up", _keys(namespace), {"namespace": namespace}, read)


class Created(NamedTuple):
    """What `workflow` did: `kind` is OK, ALREADY, TAKEN (of `field`), or NO_QUEUE (of the target of this `number`)."""

    kind: str
    number: int = 0
    field: str = ""
    changes: Changes = ()


def workflow(
    namespace: str, classes: Sequence[Subject], targets: Sequence[Target], jobs: Sequence[Mapping[str, Any]]
) -> Call[Created]:
    """Create jobs that come after one another: all, or none.

    Raises InvalidArgument, JobAlreadyQueued, WrongKeyType or ResponseError on reading.

    Args:
        jobs: in the words of the script.
    """

    def read(reply: Reply) -> Created:
        kind = reply[0]
        if kind == "FAILED":
            raise ResponseError(reply[1])
        if kind == "QUEUED":
            raise JobAlreadyQueued(f"a job with the identifier {reply[2]!r}", reply[1])
        _has_parents(reply)
        _not_broken(reply)
        if kind == "TAKEN":
            return Created(kind, field=reply[1])
        if kind == "NO_QUEUE":
            return Created(kind, int(reply[1]) - 1)
        return Created(kind, changes=_changes(reply[1:]))

    described = [{"repr": one.repr, "key": one.key, "recipe": one.recipe} for one in classes]
    names = ("model", "recipe", "name", "priority", "record")
    queues = [{name: getattr(target, name) for name in names} for target in targets]
    args: dict[str, str | Sequence[str]] = {
        "namespace": namespace,
        "classes": _json(described),
        "targets": _json(queues),
        "jobs": [_json(job) for job in jobs],
    }
    return Call("workflow", _keys(namespace), args, read)
