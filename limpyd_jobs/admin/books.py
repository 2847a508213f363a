"""The check of the books: is each job in one place, and does everything that is noted say so?"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import tee
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from .. import recipes
from ..exceptions import JobClassError
from ..models import BaseJobsModel, Job, Queue, WorkerInfo, worker_key
from ..statuses import STATUSES
from .reading import MEMBERS, ask, chunks, each_of_list, each_of_set, escaped, hash_of, is_wrong_type, sorted_set_of

T = TypeVar("T")
WRONG_TYPE = "something of another type is under it"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in the books.

    Attributes:
        kind: `place` (a job is nowhere, in several places, or where its status does not belong), `lease`, `limit`
            (who is parked or holds a place is not noted so), `index`, `queue` (a worker would find its jobs late),
            `identifier` (queued twice), `edge` (a job waits for one that will not tell it), `pause` (half of it is
            written), `class` (its jobs cannot be looked at) or `key` (nothing owns it).
        subject: the ident or the key that it is about.
        detail: what is wrong, in a sentence.
        ident: of the job that has to be looked at, if it is one.
        places: where it was found, in the words of settle.lua: a kind, a key and a member each.
        model, field, member: of an index, the key prefix of the model, the field, and what is wrong in it; of a pause,
            that of the model of queues.
    """

    kind: str
    subject: str
    detail: str
    ident: str = ""
    places: tuple[tuple[str, str, str], ...] = ()
    model: str = ""
    field: str = ""
    member: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.detail}"


def doubtful(queue_model: Any = Queue) -> list[Problem]:
    """What seems to be wrong, of which much may be only what has changed while it was read.

    Most of that is wrong in one reading only, since other jobs have changed in the next one.
    """
    found = list(_Books(queue_model).problems())
    if not found:
        return []
    again = {_name_of(problem) for problem in _Books(queue_model).problems()}
    return [problem for problem in found if _name_of(problem) in again]


def _name_of(problem: Problem) -> tuple[str, ...]:
    return problem.kind, problem.subject, problem.ident, problem.member


def _models(base: Any) -> Iterator[Any]:
    for model in base.__subclasses__():
        if not model.abstract:
            yield model
        yield from _models(model)


def models_of(queue_model: Any) -> list[Any]:
    """The models that this process has, or may import, of the records in a namespace."""
    namespace = queue_model.namespace or ""
    known = dict(hash_of(queue_model.database.connection, f"{namespace}:models"))
    for model_repr in known:
        with suppress(JobClassError):  # the check says so
            Job.class_of(f"{model_repr}:0")
    return [
        model
        for model in _models(BaseJobsModel)
        if ((model.namespace or "") == namespace or recipes.get_model_repr(model) in known)
        and model.database is queue_model.database
    ]


LIMPYDS_OWN = (":lock-for-update:", ":__index__:", ":__collection__:")  # its locks, its temporary keys
OWN_KEYS = (
    *("models", "tasks", "leases", "claims", "expiring", "followups"),
    *("operations", "paused", "workers", "numbers:total"),
)
SIDE_KINDS = ("doorbell", "ready", "due", "queues")  # what is kept for a name of queues

# Where a job may be, by its status; `None` is nowhere.
PLACES: dict[str, tuple[str | None, ...]] = {
    STATUSES.WAITING: ("waiting", "parked", "leased"),
    STATUSES.DELAYED: ("delayed", "waiting", "parked", "leased"),
    STATUSES.RUNNING: ("leased",),
    STATUSES.SUCCESS: (None,),
    STATUSES.ERROR: (None, "leased"),
    STATUSES.CANCELED: (None, "waiting", "delayed", "parked", "leased"),
    STATUSES.BLOCKED: (None,),
}


def _key_in(recipe: str) -> str | None:
    """The key prefix of a class, by its recipe; None: that is none."""
    try:
        return str(json.loads(recipe)["key"])
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class _Edge:
    """A job that waits for another.

    Attributes:
        child, parent: their idents.
        may_wait_on: does it go on waiting if the parent fails?
    """

    child: str
    parent: str
    may_wait_on: bool


def _key_of(ident: str) -> str | None:
    """The key prefix of a job; None: its class cannot be had."""
    try:
        return f"{Job.class_of(ident)._name}:{ident.partition(':')[2]}"
    except JobClassError:
        return None


def _why_not_told(edge: _Edge, values: list[str | None], is_child: bool) -> str | None:
    """Why a job will not hear of the end of one that it waits for; None: it will.

    Args:
        values: the fields `status`, `queued` and `follow_up` of that one.
        is_child: does it know the job?
    """
    status, queued, follow_up = values
    if status is None:
        return "does not exist"
    has_failed = status in (STATUSES.ERROR, STATUSES.CANCELED) and not queued
    if status == STATUSES.SUCCESS or (has_failed and not edge.may_wait_on):
        return "has ended"
    return None if is_child and "c" in (follow_up or "") else "does not know it"


class _Books:
    """One reading of a namespace."""

    def __init__(self, queue_model: Any) -> None:
        self.queue_model = queue_model
        self.client = queue_model.database.connection
        self.namespace = queue_model.namespace or ""
        self.broken: set[str] = set()
        self.known = self._hash(f"{self.namespace}:models")
        self.models = models_of(queue_model)
        self.keys = set(self.client.scan_iter(match=f"{escaped(self.namespace)}:*", count=1000))
        self.sorted_keys = sorted(self.keys)
        self.owned: set[str] = set()
        self.pks = {model: self._set(f"{model._name}:collection") for model in self.models}
        self.holders: set[str] = set()
        self.leased: set[str] = set()
        self.places: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)  # the same for repairs, see Problem

    def problems(self) -> Iterator[Problem]:
        yield from self._check_queues()
        yield from self._check_pauses()
        yield from self._check_leases()
        yield from self._check_limits()
        for model in self.models:
            if issubclass(model, Job):
                yield from self._check_jobs(model)
                yield from self._check_edges(model)
        yield from self._check_classes()
        for ident in self.places:
            yield self._of_job("place", ident, f"it is in {self._where(ident)}, but has no record")
        for model in self.models:
            yield from self._check_indexes(model)
        yield from self._check_keys()
        for key in sorted(self.broken):
            yield Problem("key", key, WRONG_TYPE)

    # --- Reading, a page of each key at a time

    def _pages(self, key: str, read: Callable[[Any, str], Iterator[T]]) -> Iterator[T]:
        try:
            yield from read(self.client, key)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            self.broken.add(key)

    def _list(self, key: str) -> Iterator[str]:
        return self._pages(key, each_of_list)

    def _set(self, key: str) -> set[str]:
        return set(self._pages(key, each_of_set))

    def _hash(self, key: str) -> dict[str, str]:
        return dict(self._pages(key, hash_of))

    def _sorted_set(self, key: str) -> dict[str, float]:
        return dict(self._pages(key, sorted_set_of))

    def _of_job(self, kind: str, ident: str, detail: str, *more: tuple[str, str, str]) -> Problem:
        return Problem(kind, ident, detail, ident, (*self.found.get(ident, ()), *more))

    def _where(self, ident: str) -> str:
        return " and ".join(f"{place} ({key})" for place, key in self.places[ident]) or "no place"

    def _ask(self, commands: Iterable[Sequence[Any]]) -> Iterator[Any]:
        """The replies to commands; of a key of another type it is noted, and nothing is in it."""
        asked, noted = tee(commands)
        for (name, key, *rest), reply in zip(noted, ask(self.client, asked), strict=True):
            if is_wrong_type(reply):
                self.broken.add(key)
                reply = [None] * len(rest) if name == "HMGET" else None
            yield reply

    def _check_classes(self) -> Iterator[Problem]:
        """Of a class that cannot be had here only the registry knows where its jobs are: they are left as they are."""
        here = {recipes.get_model_repr(model) for model in self.models} | {model._name for model in self.models}
        for model_repr, text in sorted(self.known.items()):
            key = _key_in(text)
            if key is None or key in here or model_repr in here:
                continue
            keys = self._keys_below(key)
            self.owned.update(keys)
            for ident in [ident for ident in self.places if ident.partition(":")[0] == model_repr]:
                del self.places[ident]
            if keys:
                yield Problem("class", model_repr, "it cannot be had here, so its jobs are not looked at")

    # --- Queues and leases

    def _check_queues(self) -> Iterator[Problem]:
        for model in self.models:
            if not issubclass(model, Queue):
                continue
            for pk in self.pks[model]:
                yield from self._check_queue(model, pk)

    def _check_queue(self, model: Any, pk: str) -> Iterator[Problem]:
        key = f"{model._name}:{pk}"
        waiting = list(self._list(f"{key}:waiting"))
        delayed = self._sorted_set(f"{key}:delayed")
        for ident in waiting:
            self.places[ident].append(("waiting", key))
            self.found[ident].append(("waiting", key, ""))
        for ident in delayed:
            self.places[ident].append(("delayed", key))
            self.found[ident].append(("delayed", key, ""))
        [(name, priority)] = self._ask([("HMGET", f"{key}:hash", "name", "priority")])
        if name is None:
            return
        ready, due = self._ask([("ZSCORE", self._side(kind, model, name), pk) for kind in ("ready", "due")])
        if waiting and ready != float(priority or 0):
            yield Problem("queue", key, f"jobs wait, and it is noted as ready with {ready}, not {priority}")
        first = min(delayed.values(), default=0)
        if delayed and (due is None or due > first + 0.001):
            yield Problem("queue", key, f"its first job is due at {first}, and it is noted as due at {due}")

    def _check_pauses(self) -> Iterator[Problem]:
        """A name is marked as paused where claims look if it is noted in `paused`, and only then."""
        for model in self.models:
            if issubclass(model, Queue) and (model.namespace or "") == self.namespace:
                prefix = self._side("ready", model, "")
                model_name = model._name[len(self.namespace) + 1 :]
                keys = [key for key in self._keys_below(prefix[:-1]) if self.client.type(key) == "zset"]
                scores = self._ask(("ZSCORE", key, "") for key in keys)
                marked = {
                    key.removeprefix(prefix) for key, score in zip(keys, scores, strict=True) if score is not None
                }
                fields = self._hash(f"{self.namespace}:paused")
                noted = {field.partition(":")[2] for field in fields if field.partition(":")[0] == model_name}
                self.owned |= {f"{prefix}{name}" for name in marked & noted}
                for name in sorted(marked ^ noted):
                    wrong = (
                        "noted, and workers take its jobs" if name in noted else "not noted, and nobody takes its jobs"
                    )
                    yield Problem("pause", name, f"its pause is {wrong}", model=model._name)

    def _side(self, kind: str, model: Any, name: str) -> str:
        return f"{self.namespace}:{kind}:{model._name[len(self.namespace) + 1 :]}:{name}"

    def _check_leases(self) -> Iterator[Problem]:
        claims = self._hash(f"{self.namespace}:claims")
        self.holders = {name[1:] for name in claims if name.startswith("*")}
        claims = {name: value for name, value in claims.items() if not name.startswith("*")}
        self.leased = set(self._sorted_set(f"{self.namespace}:leases"))
        for ident in sorted(self.leased):
            self.places[ident].append(("leased", f"{self.namespace}:leases"))
            token = claims.pop(ident, None)
            if token is None or claims.pop(token, None) != ident:
                yield self._of_job(
                    "lease", ident, "it is leased, and its token is not noted", ("token", token or "", "")
                )
        for left, right in claims.items():
            ident, token = (left, right) if self._is_ident(left) else (right, left)
            places = (*self.found.get(ident, ()), ("token", token, ""))
            yield Problem("lease", left, f"it is noted with {right}, and not leased", ident, places)

    def _is_ident(self, text: str) -> bool:
        name = text.partition(":")[0]
        return name in self.known or any(recipes.get_model_repr(model) == name for model in self.models)

    def _check_limits(self) -> Iterator[Problem]:
        noted = {}
        for ident, text in self._hash(f"{self.namespace}:limits:jobs").items():
            place = json.loads(text)
            noted[ident] = (place["state"], place["key"])
        due = self._sorted_set(f"{self.namespace}:limits:due").keys()
        found = {}
        for limit in sorted({key for _, key in noted.values()} | due):
            prefix = f"{self.namespace}:limit:{limit}"
            for name in self._sorted_set(f"{prefix}:parked"):
                ident = name.partition(" ")[2]
                self.places[ident].append(("parked", f"{prefix}:parked"))
                self.found[ident].append(("parked", limit, name))
                found[ident] = ("parked", limit)
                if limit not in due:
                    yield self._of_job("limit", ident, f"it is parked under {limit!r}, and nobody looks at that")
            for ident in self._sorted_set(f"{prefix}:held"):
                found[ident] = ("held", limit)
                self.found[ident].append(("held", limit, ""))
            self.owned |= {f"{prefix}:parked", f"{prefix}:held"}
        self.owned |= {f"{self.namespace}:limits:{name}" for name in ("jobs", "due")}
        self.owned |= {key for key in self.keys if self._is_rate(key)}
        for ident in sorted(found.keys() | noted):
            state, limit = noted.get(ident, (None, None))
            if state != "called" and found.get(ident) != noted.get(ident):
                detail = f"it is noted as {state} under {limit!r}, and found {found.get(ident)}"
                yield self._of_job("limit", ident, detail)
            elif (state == "held") != (ident in self.holders):
                detail = f"it is noted as {state} under {limit!r}, which its lease does not say"
                yield self._of_job("limit", ident, detail)

    def _is_rate(self, key: str) -> bool:
        is_one = key.startswith(f"{self.namespace}:limit:") and key.endswith(":rate")
        return is_one and bool(self.client.ttl(key) != -1)

    # --- Jobs

    def _check_jobs(self, model: Any) -> Iterator[Problem]:
        names = ("status", "queued", "queue_key", "identifier")
        pks = sorted(self.pks[model])
        queued: dict[tuple[str, bool], str] = {}
        hashes = self._ask(("HMGET", f"{model._name}:{pk}:hash", *names) for pk in pks)
        for pk, (status, is_queued, queue_key, identifier) in zip(pks, hashes, strict=True):
            ident = f"{model.get_model_repr()}:{pk}"
            if f"{model._name}:{pk}:hash" not in self.broken:
                yield from self._check_job(ident, status, is_queued, queue_key)
            self.places.pop(ident, None)
            if is_queued and identifier is not None:
                name = (identifier, status == STATUSES.BLOCKED)  # one may wait for the end of the one that runs
                if name in queued:
                    detail = f"{identifier!r} is queued already, as {queued[name]}"
                    yield self._of_job("identifier", ident, detail, ("twin", queued[name].partition(":")[2], ""))
                queued[name] = ident

    def _check_job(
        self, ident: str, status: str | None, queued: str | None, queue_key: str | None
    ) -> Iterator[Problem]:
        places = self.places.get(ident, [])
        if len(places) > 1:
            yield self._of_job("place", ident, f"it is in {self._where(ident)}")
            return
        place, key = places[0] if places else (None, None)
        name = STATUSES.by_value(status, "no status")
        if status is not None and place not in PLACES.get(status, (None,)):
            yield self._of_job("place", ident, f"it is {name} and in {self._where(ident)}")
        elif status is None and place is not None:
            yield self._of_job("place", ident, f"it has no status and is in {self._where(ident)}")
        elif place == "leased" and queue_key is None and not queued:
            return  # executed at once, in no queue
        elif place is not None and queued != "1":
            yield self._of_job("place", ident, f"it is in {self._where(ident)}, and not marked as queued")
        elif place is None and bool(queued) != (status == STATUSES.BLOCKED):
            marked = "marked as queued, but in no place" if queued else "not marked as queued"
            yield self._of_job("place", ident, f"it is {name} and {marked}")
        elif place in ("waiting", "delayed") and queue_key not in (None, key):
            yield self._of_job("place", ident, f"it is in {self._where(ident)}, and says {queue_key}")

    def _check_edges(self, model: Any) -> Iterator[Problem]:
        """Who waits for others waits for one at least, and each of these will tell it."""
        if not recipes.has_edges(model):
            return
        pks, names = sorted(self.pks[model]), ("status", "run_options")
        hashes = self._ask(("HMGET", f"{model._name}:{pk}:hash", *names) for pk in pks)
        blocked = [
            (pk, text or "") for pk, (status, text) in zip(pks, hashes, strict=True) if status == STATUSES.BLOCKED
        ]
        found = self._read_sets([f"{model._name}:{pk}:waits_for" for pk, _ in blocked])
        edges: list[_Edge] = []
        for (pk, run_options), parents in zip(blocked, found, strict=True):
            ident = f"{model.get_model_repr()}:{pk}"
            if not parents:
                yield self._of_job("edge", ident, "it is BLOCKED, and waits for no job")
            may_wait_on = '"if_parent_fails":"wait"' in run_options
            edges += [_Edge(ident, parent, may_wait_on) for parent in sorted(parents)]
        for edge, reason in self._untold(edges):
            yield self._of_job("edge", edge.child, f"it waits for {edge.parent}, which {reason}")

    def _untold(self, edges: list[_Edge]) -> Iterator[tuple[_Edge, str]]:
        """The jobs that will not hear of the end of one that they wait for, and why."""
        telling = self._sorted_set(f"{self.namespace}:followups").keys()
        keys = {parent: _key_of(parent) for parent in {edge.parent for edge in edges} - telling}
        known = [edge for edge in edges if keys.get(edge.parent)]
        names = ("status", "queued", "follow_up")
        hashes = self._ask(("HMGET", f"{keys[edge.parent]}:hash", *names) for edge in known)
        children = self._ask(("SISMEMBER", f"{keys[edge.parent]}:children", edge.child) for edge in known)
        yield from ((edge, "has a class that cannot be had") for edge in edges if keys.get(edge.parent, "") is None)
        for edge, values, is_child in zip(known, hashes, children, strict=True):
            reason = _why_not_told(edge, values, bool(is_child))
            if reason is not None and not (values[0] == STATUSES.CANCELED and edge.parent in self.leased):
                yield edge, reason

    # --- Indexes and keys

    def _check_indexes(self, model: Any) -> Iterator[Problem]:
        wanted = self._collect_entries(model)
        field_of = {key: field for field, keys in self._index_keys(model).items() for key in keys}
        field_of |= {key: field for field, of_field in wanted.items() for key in of_field}
        scores = {key: members for of_field in wanted.values() for key, members in of_field.items()}
        keys = sorted(field_of)
        self.owned.update(keys)
        unreadable = tuple(pk for pk in self.pks[model] if f"{model._name}:{pk}:hash" in self.broken)
        for key, found in zip(keys, self._read_sets(keys), strict=True):
            for member, detail in _differences(scores.get(key, {}), found):
                if not member.endswith(unreadable):  # nobody knows what that record says
                    where = {"model": model._name, "field": field_of[key], "member": member}
                    yield Problem("index", key, f"{member} {detail}", **where)

    def _read_sets(self, keys: list[str]) -> Iterator[dict[str, float]]:
        """The members of sets and sorted sets, with their scores; without these, 0."""
        for chunk in chunks(keys):
            replies = ask(self.client, (("SSCAN", key, 0, "COUNT", MEMBERS) for key in chunk))
            for key, reply in zip(chunk, replies, strict=True):
                if is_wrong_type(reply):
                    yield self._sorted_set(key)
                else:
                    is_whole = int(reply[0]) == 0  # else a large one, read in pages of its own
                    yield dict.fromkeys(reply[1] if is_whole else self._set(key), 0.0)

    def _collect_entries(self, model: Any) -> dict[str, dict[str, dict[str, float]]]:
        """By field, and by the key of an index, its members with their scores."""
        fields = [field for field in model.get_fields() if getattr(field, "indexable", False)]
        wanted: dict[str, dict[str, dict[str, float]]] = {field.name: defaultdict(dict) for field in fields}
        for field, pk, value in self._values_of(model, fields):
            for _, key, *more in recipes.index_entries(field, pk, value):
                score, prefix = more or ("0", "")
                wanted[field.name][key][f"{prefix}{pk}"] = float(score)
        return wanted

    def _values_of(self, model: Any, fields: list[Any]) -> Iterator[tuple[Any, str, Any]]:
        """Each of some fields, with each primary key and its value there; what is in a hash is read at once."""
        pks = sorted(self.pks[model])
        in_hash = [field for field in fields if field.name in model._instancehash_fields]
        names = [field.name for field in in_hash]
        hashes = self._ask(("HMGET", f"{model._name}:{pk}:hash", *names) for pk in pks if names)
        for pk, values in zip(pks, hashes, strict=False):  # none, where nothing in the hash is indexed
            yield from ((field, pk, value) for field, value in zip(in_hash, values, strict=True))
        for field in fields:
            if field.name not in names:
                yield from ((field, pk, model.from_pk(pk).get_field(field.name).proxy_get()) for pk in pks)

    def _keys_below(self, prefix: str) -> list[str]:
        start = bisect_left(self.sorted_keys, f"{prefix}:")
        return self.sorted_keys[start : bisect_left(self.sorted_keys, f"{prefix};", start)]  # `;` comes after `:`

    def _index_keys(self, model: Any) -> dict[str, set[str]]:
        """The keys of the indexes of each field of a model; those of foreign indexes are taken as they are."""
        found: dict[str, set[str]] = {}
        for field in model.get_fields():
            if not getattr(field, "indexable", False):
                continue
            keys = set(self._keys_below(f"{model._name}:{field.name}"))
            if any(recipes._entries(index, ("",) * field._field_parts) is None for index in field._indexes):
                self.owned |= keys
            else:
                found[field.name] = keys
        return found

    def _check_keys(self) -> Iterator[Problem]:
        self.owned |= {f"{self.namespace}:{name}" for name in OWN_KEYS}
        expiring = tuple(f"{self.namespace}:{kind}:" for kind in ("done", "unique", "numbers"))
        self.owned |= {key for key in self.keys if key.startswith(expiring) and self.client.ttl(key) != -1}
        if WorkerInfo not in self.models:  # else it is looked at as any model
            self.owned |= set(self._keys_below(worker_key(self.namespace)))
        for model in self.models:
            self.owned |= {f"{model._name}:{name}" for name in ("collection", "max_pk", "last_queued")}
            names = ["hash", *(name for name in model._fields if name not in model._instancehash_fields)]
            if issubclass(model, Queue):
                names.append("requeue_all_delayed_ready_jobs")  # a lock of version 2
                hashes = (f"{model._name}:{pk}:hash" for pk in self.pks[model])
                for name in self._ask(("HGET", key, "name") for key in hashes):
                    self.owned |= {self._side(kind, model, name or "") for kind in SIDE_KINDS}
            self.owned |= {f"{model._name}:{pk}:{name}" for pk in self.pks[model] for name in names}
        for key in sorted(self.keys - self.owned):
            is_limpyds = any(part in key for part in LIMPYDS_OWN)
            if not is_limpyds and self.client.exists(key):
                yield Problem("key", key, "no record and no index owns it")


def _differences(wanted: dict[str, float], found: dict[str, float]) -> Iterator[tuple[str, str]]:
    """What is wrong with the members of an index."""
    for member in sorted(wanted.keys() - found.keys()):
        yield member, "is missing"
    for member in sorted(found.keys() - wanted.keys()):
        yield member, "is not of this value, or has no record"
    for member in sorted(name for name in wanted.keys() & found if wanted[name] != found[name]):
        yield member, f"has the score {found[member]}, not {wanted[member]}"
