"""The repair of the books: for each problem that `check` finds, what puts it in order, if anything does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import ResponseError, WatchError

from .. import recipes, transitions
from ..exceptions import JobClassError
from ..models import Error, Job, Queue, repair_indexes
from ..statuses import STATUSES
from .books import SIDE_KINDS, WRONG_TYPE, Problem, doubtful, models_of
from .reading import client_of, is_wrong_type

ROUNDS = 5  # of checks: a repair may show what else is wrong
TRIES = 20  # of what others may come before
MOST_MEMBERS = 1000
ORDER = ("class", "key", "lease", "place", "limit", "edge", "identifier", "pause", "queue", "index")

# What the steps of settle.lua do.
STEPS = {
    "leave": "its entry in {} goes",
    "return": "it gets a lease that has lapsed, so that a worker gives it back to its queue as it does with the jobs of"
    " workers that were lost (one of version 2 may still run it)",
    "lapse": "its lease gets a deadline, now: a worker that has it renews it, else the job is given back to its queue",
    "prove": "the token of its lease is noted again",
    "drop": "its lease goes: nobody needs it",
    "untoken": "the token {} goes, which is that of no lease",
    "hold": "it counts under the limit {} while it runs",
    "unhold": "it counts under the limit {} no more: it does not run",
    "forget": "it is noted as parked under {} no more",
    "look": "the workers look at the limit {} again",
    "enter": "it goes to the head of its queue, {}",
    "status": "its status becomes {}, as its place says",
    "mark": "it is marked as queued",
    "unmark": "it is marked as queued no more",
    "queue": "its record says that it is in {}",
    "double": "it is canceled, as {} is queued under its identifier, and stands for both",
    "told": "it is told that {} has ended, or is gone, as at its end",
    "know": "{} is told that it waits for it",
    "release": "it goes to its queue, {}, as it waits for no job",
}
IMPOSSIBLE = {
    "homeless": "nothing: its queue, {}, is gone or cannot be used; requeue it, move it or delete it",
    "rival": "nothing: {} is queued under its identifier; delete one of them",
    "stranger": "nothing: it waits for {}, whose class is not known here; name its directory with --pythonpath",
}
UNKNOWN = "nothing: its class is not known here; name its directory with --pythonpath"
BOTH_RUN = "nothing: a process has each of the two; one of them has to end"
NOT_OURS = (
    "nothing: it may be that of a user, or of a class that is not known here (name its directory with --pythonpath)"
)
LOOK_AT_IT = "nothing: look what it is, and rename or remove it"


@dataclass(frozen=True)
class Repair:
    """What is, was or cannot be done about a problem.

    Attributes:
        text: a sentence: what will be done; or why nothing can be.
        is_possible: False: nothing safe can be done here.
        is_done: it was done.
    """

    problem: Problem
    text: str
    is_possible: bool = True
    is_done: bool = False

    def __str__(self) -> str:
        return f"{self.problem.subject}: {self.text}"


def _always(repair: Repair) -> bool:
    return True


def check(queue_model: Any = Queue) -> list[Problem]:
    """Check the books of a namespace: what is wrong in it, nothing when all is well.

    Each job is in exactly one place, and its status says which; each index equals what the records say; each lease has
    its token; each queue that holds work is known to hold it; no key is without an owner. Reads only.

    Everything is read, in pages; if something seems to be wrong, once more. What is wrong in both readings is then
    looked at for itself, at one moment: so what workers change meanwhile is not reported. Time and memory are
    proportional to the number of records; for a job that is doubtful the waiting list of its queue is looked through.

    Args:
        queue_model: whose namespace and database are checked, with the models that this process has imported.
    """
    repairs = _Repairs(queue_model, _always)
    return [problem for problem in doubtful(queue_model) if repairs.is_there(problem)]


def repair(
    problems: Iterable[Problem] | None = None,
    on_repair: Callable[[Repair], bool] = _always,
    queue_model: Any = Queue,
) -> list[Repair]:
    """Put the books in order, problem by problem; answers what was done, and what cannot be.

    Each problem is looked at again first: one that was only a moment between two states of a worker is left out. Then
    `on_repair` is told what would be done, and decides. What is done then is just that, in one script or transaction,
    or nothing: so it does no harm while workers work. A key is only removed where its name says that it is ours.

    Args:
        problems: as `check` answers them; None: what it finds, again after each round in which something was done.
        on_repair: called for each repair before it is made; also for what is not possible: then its answer means
            nothing.
    """
    if problems is not None:
        return list(_Repairs(queue_model, on_repair).of(problems))
    found: list[Repair] = []
    repairs = _Repairs(queue_model, on_repair)
    for _ in range(ROUNDS):
        done = list(repairs.of(doubtful(queue_model)))
        found += done
        if not any(one.is_done for one in done):
            break
    return found


Plan = tuple[
    str, bool, Callable[[], bool]
]  # what will be done, whether it can be, and how: False if it is not so any more


class _Repairs:
    def __init__(self, queue_model: Any, on_repair: Callable[[Repair], bool]) -> None:
        self._queue_model, self._on_repair = queue_model, on_repair
        self._client, self._namespace = client_of(queue_model), queue_model.namespace or ""
        self._models = {model._name: model for model in models_of(queue_model)}
        self._answered: set[tuple[str, str, str]] = set()  # what needs not be asked again
        self._planners: dict[str, Callable[[Problem], Plan | None]] = {
            **dict.fromkeys(("place", "lease", "limit", "edge"), self._plan_of_job),
            "identifier": self._plan_of_twins,
            "queue": self._plan_of_queue,
            "pause": self._plan_of_pause,
            "class": lambda problem: (UNKNOWN, False, bool),
            "index": self._plan_of_index,
            "key": self._plan_of_key,
        }

    def is_there(self, problem: Problem) -> bool:
        """Is this a problem still? What cannot be looked at is one."""
        try:
            return self._planners[problem.kind](problem) is not None
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return True

    def of(self, problems: Iterable[Problem]) -> Iterator[Repair]:
        """What was done, or cannot be, about each."""
        for problem in sorted(problems, key=lambda problem: ORDER.index(problem.kind)):
            for _ in range(TRIES):
                plan = self._planners[problem.kind](problem)
                if plan is None:
                    break
                text, is_possible, act = plan
                found = Repair(problem, text, is_possible)
                if not self._asks_about(found):
                    break
                if not self._on_repair(found) or not is_possible:
                    if not is_possible:
                        yield found
                    break
                if act():
                    yield replace(found, is_done=True)
                    break
                self._answered.discard(_name_of(found))

    def _asks_about(self, repair: Repair) -> bool:
        """Is this new? What was refused, or is not possible, was told of."""
        is_new = _name_of(repair) not in self._answered
        self._answered.add(_name_of(repair))
        return is_new

    # --- Jobs

    def _plan_of_job(self, problem: Problem) -> Plan | None:
        return self._settle(problem.ident, problem.places)

    def _settle(self, ident: str, places: tuple[tuple[str, str, str], ...]) -> Plan | None:
        settled = self._send_settle(ident, (), places)
        if settled.kind == "FINE":
            return None
        if settled.kind == "UNKNOWN":
            return UNKNOWN, False, bool
        for step in settled.steps:
            word, _, about = step.partition(" ")
            if word in IMPOSSIBLE:
                return IMPOSSIBLE[word].format(about), False, bool
        text = "; ".join(dict.fromkeys(map(_sentence, settled.steps)))

        def act() -> bool:
            done = self._send_settle(ident, settled.steps, places)
            repair_indexes(done.changes)
            return done.kind == "DONE"

        return text, True, act

    def _send_settle(
        self, ident: str, steps: tuple[str, ...], places: tuple[tuple[str, str, str], ...]
    ) -> transitions.Settled:
        call = transitions.settle(self._namespace, ident, steps, places)
        settled = transitions.send(self._client, call)
        if settled.kind != "UNKNOWN":
            return settled
        try:
            Job.class_of(ident).register(self._namespace, ident.partition(":")[0])
        except JobClassError:
            return settled
        return transitions.send(self._client, call)

    def _plan_of_twins(self, problem: Problem) -> Plan | None:
        """Of two jobs that are queued under one identifier the newer one is canceled; the other, if that runs."""
        name, _, pk = problem.ident.partition(":")
        [other] = [key for kind, key, _ in problem.places if kind == "twin"]
        idents = sorted((pk, other), key=lambda one: (len(one), one), reverse=True)
        twins = {idents[0]: idents[1], idents[1]: idents[0]}
        for one, twin in twins.items():
            plan = self._settle(f"{name}:{one}", (("twin", twin, ""),))
            if plan is not None and STEPS["double"].format(f"{name}:{twin}") in plan[0]:
                return plan
        return (BOTH_RUN, False, bool) if self._are_both_queued(name, pk, other) else None

    def _are_both_queued(self, name: str, *pks: str) -> bool:
        model = Job.class_of(f"{name}:{pks[0]}")
        found = [self._client.hmget(f"{model._name}:{pk}:hash", "queued", "identifier", "status") for pk in pks]
        return all(queued == "1" and status != STATUSES.BLOCKED for queued, _, status in found) and (
            found[0][1] == found[1][1]
        )

    # --- Queues

    def _plan_of_queue(self, problem: Problem) -> Plan | None:
        model, _, pk = problem.subject.rpartition(":")

        def note(is_meant: bool) -> bool:
            return transitions.send(self._client, transitions.note_queue(self._namespace, model, pk, is_meant))

        text = "it is noted whether jobs wait in it, and when the first delayed one is due; its workers are woken"
        return (text, True, lambda: note(True)) if note(False) else None

    def _plan_of_pause(self, problem: Problem) -> Plan | None:
        """Half of a pause is written: then the other half is, since it is easily ended by whoever does not want it."""
        short = problem.model[len(self._namespace) + 1 :]
        paused, ready = f"{self._namespace}:paused", f"{self._namespace}:ready:{short}:{problem.subject}"
        field = f"{short}:{problem.subject}"

        def is_half() -> bool:
            return (self._client.zscore(ready, "") is None) == bool(self._client.hexists(paused, field))

        def pause() -> bool:
            transitions.send(
                self._client, transitions.pause(self._namespace, problem.model, problem.subject, "", "admin.repair")
            )
            return True

        if not is_half():
            return None
        return "it is paused, and noted so: resume it, if it is not to be", True, lambda: is_half() and pause()

    # --- Indexes

    def _plan_of_index(self, problem: Problem) -> Plan | None:
        if not self._mend_index(problem, is_meant=False):
            return None
        text = f"its entry {problem.member!r} is written, or removed, as the record says"
        return text, True, lambda: self._mend_index(problem, is_meant=True)

    def _mend_index(self, problem: Problem, is_meant: bool) -> bool:
        """Answers whether the entry was wrong. Written only if the record does not change meanwhile."""
        model, key, member = self._models[problem.model], problem.subject, problem.member
        field, pk = model.get_field(problem.field), self._pk_of(problem)
        hash_key, in_hash = f"{model._name}:{pk}:hash", problem.field in model._instancehash_fields
        with self._client.pipeline() as pipeline:
            for _ in range(TRIES):
                pipeline.watch(hash_key, *(() if in_hash else (f"{model._name}:{pk}:{problem.field}",)))
                exists = pipeline.sismember(f"{model._name}:collection", pk)
                value = pipeline.hget(hash_key, problem.field) if in_hash else model.from_pk(pk).get_field(field.name)
                value = value if in_hash or not exists else value.proxy_get()
                command, wanted = _entry(field, pk, value if exists else None, key, member)
                found = _score_in(pipeline, key, member)
                if wanted == found:
                    return False
                if not is_meant:
                    return True
                command = command or ("ZREM" if pipeline.type(key) == "zset" else "SREM")
                pipeline.multi()
                _write_entry(pipeline, command, key, member, wanted)
                try:
                    pipeline.execute()
                except WatchError:
                    continue
                return True
        return False

    def _pk_of(self, problem: Problem) -> str:
        """The primary key in a member of an index."""
        model, member = self._models[problem.model], problem.member
        if self._client.sismember(f"{model._name}:collection", member):
            return member
        parts = [part for index in model.get_field(problem.field)._indexes for part in (index, *_parts(index))]
        for separator in (getattr(part, "separator", None) for part in parts):
            if separator and separator in member:
                return str(member.rpartition(separator)[2])
        return member

    # --- Keys

    def _plan_of_key(self, problem: Problem) -> Plan | None:
        key = problem.subject
        if not self._client.exists(key):
            return None
        if problem.detail == WRONG_TYPE:
            return LOOK_AT_IT, False, bool
        for planner in (self._plan_of_record, self._plan_of_name, self._plan_of_note):
            is_ours, plan = planner(key)
            if is_ours:
                return plan
        return NOT_OURS, False, bool

    def _plan_of_record(self, key: str) -> tuple[bool, Plan | None]:
        """A key of a record that is in no collection."""
        for name, model in self._models.items():
            pk, _, part = key[len(name) + 1 :].rpartition(":")
            parts = ("hash", *(field for field in model._fields if field not in model._instancehash_fields))
            if key.startswith(f"{name}:") and pk and part in parts:
                return True, self._plan_of_part(model, pk, key)
        return False, None

    def _plan_of_part(self, model: Any, pk: str, key: str) -> Plan | None:
        """The record is whole, then it is put into its collection; or this is a rest."""
        hash_key, collection = f"{model._name}:{pk}:hash", f"{model._name}:collection"
        if not self._is_whole(model, hash_key):
            text = "it is removed: it is what is left of a record that is gone"
            return self._removal(key, text, lambda: not self._is_whole(model, hash_key), hash_key)
        if key != hash_key or self._client.sismember(collection, pk):
            return None  # it belongs to a record that is put into its collection
        text = f"{pk} is put into {collection}, as the record is whole"
        return text, True, lambda: bool(self._client.sadd(collection, pk))

    def _is_whole(self, model: Any, hash_key: str) -> bool:
        """Does a hash say what no record of its model is without?"""
        needed: tuple[str, ...] = ("name",)
        if issubclass(model, Job):
            needed = ("identifier", "status")
        elif issubclass(model, Error):
            needed = ("job_model_repr", "job_pk", "date_time")
        return self._client.type(hash_key) == "hash" and None not in self._client.hmget(hash_key, needed)

    def _plan_of_name(self, key: str) -> tuple[bool, Plan | None]:
        """A key of a name of queues that no queue has."""
        for model in self._models.values():
            short = model._name[len(self._namespace) + 1 :]
            for kind in SIDE_KINDS:
                prefix = f"{self._namespace}:{kind}:{short}:"
                if issubclass(model, Queue) and key.startswith(prefix):
                    return True, self._plan_of_side(model, key, key[len(prefix) :])
        return False, None

    def _plan_of_side(self, model: Any, key: str, name: str) -> Plan | None:
        text = f"it is removed: there is no queue of the name {name!r}"
        return self._removal(key, text, lambda: not list(model.collection(name=name)))

    def _plan_of_note(self, key: str) -> tuple[bool, Plan | None]:
        """A note that should expire, and does not; or places of a limit of which nobody knows."""
        rest = key[len(self._namespace) + 1 :]
        if rest.startswith(("done:", "unique:")) or (rest.startswith("limit:") and rest.endswith(":rate")):
            text = "it is removed: such a note expires, and this one never would"
            return True, self._removal(key, text, lambda: bool(self._client.ttl(key) == -1))
        if rest.startswith("limit:") and rest.endswith((":parked", ":held")):
            text = "it is removed: nothing says that a job is under this limit"
            return True, self._removal(key, text, self._is_unknown(key, rest[len("limit:") :].rpartition(":")[0]))
        return False, None

    def _removal(self, key: str, text: str, is_right: Callable[[], bool], also: str = "") -> Plan | None:
        return (text, True, lambda: self._remove(key, also or key, is_right)) if is_right() else None

    def _is_unknown(self, key: str, limit: str) -> Callable[[], bool]:
        def is_unknown() -> bool:
            if self._client.zscore(f"{self._namespace}:limits:due", limit) is not None:
                return False
            members = self._client.zrange(key, 0, MOST_MEMBERS - 1)
            idents = [member.partition(" ")[2] if key.endswith(":parked") else member for member in members]
            return not any(self._client.hmget(f"{self._namespace}:limits:jobs", idents)) if idents else False

        return is_unknown

    def _remove(self, key: str, also: str, is_right: Callable[[], bool]) -> bool:
        """Remove a key, unless it, or another one, changes while one looks whether that is right."""
        with self._client.pipeline() as pipeline:
            for _ in range(TRIES):
                pipeline.watch(key, also)
                if not is_right():
                    return False
                pipeline.multi()
                pipeline.unlink(key)
                try:
                    return bool(pipeline.execute()[0])
                except WatchError:
                    continue
        return False


def _name_of(repair: Repair) -> tuple[str, str, str]:
    return repair.problem.kind, repair.problem.subject, repair.text


def _sentence(step: str) -> str:
    word, _, about = step.partition(" ")
    return STEPS[word].format(STATUSES.by_value(about, about) if word == "status" else about)


def _parts(index: Any) -> Iterator[Any]:
    yield from getattr(index, "_indexes", ())


def _entry(field: Any, pk: str, value: Any, key: str, member: str) -> tuple[str, float | None]:
    """How a value writes an entry of an index, SADD or ZADD, and with which score, 0 in a set; None: it does not."""
    for command, where, *more in recipes.index_entries(field, pk, value) if value is not None else ():
        score, prefix = more or ("0", "")
        if (where, f"{prefix}{pk}") == (key, member):
            return command, float(score)
    return "", None


def _score_in(pipeline: Any, key: str, member: str) -> float | None:
    """The score of a member, 0 in a set; None when it is not there."""
    if pipeline.type(key) == "zset":
        score: float | None = pipeline.zscore(key, member)
        return score
    return 0.0 if pipeline.sismember(key, member) else None


def _write_entry(pipeline: Any, command: str, key: str, member: str, score: float | None) -> None:
    if command == "ZADD":
        pipeline.zadd(key, {member: score})
    else:
        pipeline.execute_command(command, key, member)
