"""How jobs are added: one, or many in few calls.

Most jobs are alike: they wait, and their fields have plain indexes or none. A script that is made for their class
writes those (add_alike.lua); any other job goes by add.lua.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from . import limits, recipes, run_options, transitions, uniqueness
from .exceptions import InvalidArgument
from .instruments import instruments, what_to_carry
from .transitions import Added, Addition, Answer, Call, Delay, Hold, Subject, Target
from .utils import compute_delayed_until, datetime_to_score, utcnow

WRITTEN_BY_ADD = ("status", "queued", "delayed_until", "queue_key")
NOT_REPLACED = (*WRITTEN_BY_ADD, "identifier", "priority", "added")  # of a queued job, by those of a new one
CHUNK_JOBS = 500  # that one round trip adds: a few milliseconds of Redis' time
CHUNK_CHARACTERS = 500_000  # of their values, at which a chunk is full, too
OPTIONS = ("queue_name", "priority", "queue_model", "prepend", "delayed_for", "delayed_until", "after")
POLICY = "if_parent_fails"
MOST_PARENTS = 10_000

Spec: TypeAlias = "Mapping[str, Any]"


class AddedJobs(NamedTuple):
    """How many jobs were new, and how many identifiers were queued already."""

    new: int
    existing: int


@dataclass(frozen=True)
class Way:
    """Where jobs of a class are added to, checked and in the words of the scripts.

    Attributes:
        is_held: whether methods of the user place the jobs in the queue.
        is_queue_late: whether limpyd has to write some of a new queue, before it gets its first job.
        run_defaults: what the class says of the runs of each new job.
        uniqueness: of the class, where a call does not say.
    """

    model: Any
    queue_model: Any
    name: str
    target: Target
    subject: Subject
    is_held: bool
    is_queue_late: bool
    run_defaults: Mapping[str, Any] = field(default_factory=dict)
    uniqueness: Mapping[str, Any] = field(default_factory=dict)

    def with_run_options(self, fields_if_new: Mapping[str, Any], has_parents: bool = False) -> Mapping[str, Any]:
        """The further fields of a new job, where what is said of its runs is put together in one.

        Args:
            has_parents: whether it comes after others.
        Raises:
            InvalidArgument: a value is not accepted.
        """
        if self.uniqueness:
            fields_if_new = {**self.uniqueness, **fields_if_new}
        if not self.run_defaults and not fields_if_new and not has_parents and not instruments:
            return fields_if_new
        names = recipes.stored_run_options(self.model).intersection(fields_if_new)
        given = {name: fields_if_new[name] for name in names if fields_if_new[name] is not None}
        fields = {name: value for name, value in fields_if_new.items() if name not in names} if names else fields_if_new
        if run_options.FIELD in fields:
            if given:
                accepted = f"given alone, without {', '.join(sorted(given))}"
                raise InvalidArgument(run_options.FIELD, fields[run_options.FIELD], accepted)
            return fields
        if given or self.run_defaults:
            given = limits.with_key({**self.run_defaults, **given}, self.subject.repr)
        policy = recipes.class_run_options(self.model).get(POLICY) if has_parents else None
        if policy is not None and POLICY in recipes.stored_run_options(self.model):
            given.setdefault(POLICY, policy)
        carried = what_to_carry() if instruments and recipes.has_run_options(self.model) else None
        if not given and not carried:
            return fields
        return {**fields, run_options.FIELD: run_options.to_text(given, carried=carried)}

    def made_for(self, fields: Iterable[str]) -> str | None:
        """What add_alike.lua must know to add jobs with these further fields; None: they need an `addition` each."""
        if self.is_held or not recipes.uniqueness_names(self.model).isdisjoint(fields):
            return None
        return recipes.alike(self.model, ("identifier", "added", *fields))

    def plain_call(
        self,
        identifier: str,
        fields_if_new: Mapping[str, Any],
        prepend: Any,
        delayed_for: Any,
        delayed_until: Any,
        after: Sequence[str] = (),
    ) -> Call[Added] | None:
        """What adds a job in one call; None: some of it is left to Python. Arguments and errors as `addition`."""
        if self.is_held or self.is_queue_late:
            return None
        if delayed_for is None and delayed_until is None and not after:
            alike = self.alike_call(identifier, fields_if_new, prepend)
            if alike is not None:
                return alike
        addition, _ = self.addition(identifier, fields_if_new, prepend, delayed_for, delayed_until, after)
        return None if addition.hold.token else transitions.then(transitions.add(self.subject, [addition]), first)

    def alike_call(self, identifier: str, fields_if_new: Mapping[str, Any], prepend: Any) -> Call[Added] | None:
        """What adds a job that waits and is like others of its class; None when it is not."""
        names = tuple(sorted(fields_if_new)) if fields_if_new else ()
        made_for = self.made_for(names)
        if made_for is None:
            return None
        values = [identifier, str(utcnow()), *(recipes.to_text(name, fields_if_new[name]) for name in names)]
        return transitions.then(transitions.add_alike(made_for, self.target, bool(prepend), values), first)

    def addition(
        self,
        identifier: str,
        fields_if_new: Mapping[str, Any],
        prepend: Any,
        delayed_for: Any,
        delayed_until: Any,
        after: Sequence[str] = (),
    ) -> tuple[Addition, recipes.Record]:
        """A job for add.lua, and its record. Arguments and errors as for `Job.add_job`; `after`: idents."""
        values = {"added": str(utcnow()), **fields_if_new, "identifier": identifier, "priority": self.target.priority}
        for name in WRITTEN_BY_ADD:
            values.pop(name, None)
        asked = {name: values.pop(name) for name in recipes.uniqueness_names(self.model) if name in values}
        record = recipes.Record(self.model, values)
        if asked:
            given = [name for name in fields_if_new if name in values]
            if run_options.only_carries(values.get(run_options.FIELD)):
                given.remove(run_options.FIELD)  # what comes along must not replace the options of another job
            self.make_unique(record, asked, given, bool(after))
        if after:
            self.check_may_wait(record, prepend)
            record.come_after(after, policy_of(values))
        hold = Hold(os.urandom(8).hex()) if self.is_held or record.late else Hold()
        delay = to_delay(delayed_for, compute_delayed_until(delayed_for, delayed_until))
        addition = Addition(self.target, identifier, record.hash, record.sets, record.rest, bool(prepend), delay, hold)
        return addition, record

    def make_unique(
        self, record: recipes.Record, asked: Mapping[str, Any], given: Iterable[str], has_parents: bool
    ) -> None:
        """Say in a record how its identifier is unique.

        Args:
            asked: options, see uniqueness.py.
            given: the fields that the caller has given.
            has_parents: whether the job comes after others.
        Raises:
            InvalidArgument: a value is not accepted, or cannot be done for this class.
        """
        found = {name: uniqueness.check(name, value) for name, value in asked.items()}
        seconds, choice = found.get("unique_for"), found.get("if_queued") or "keep"
        if seconds is None and choice == "keep":
            return
        if choice == "rerun":
            self.check_may_rerun(record, has_parents)
        if choice == "replace":
            pk_names = ("pk", self.model.get_field("pk").name)
            kept = {*NOT_REPLACED, *pk_names}
            replacement = record.replacement(name for name in given if name not in kept)
        else:
            replacement = None
        record.be_unique(
            {
                "if_queued": choice,
                "milliseconds": None if seconds is None else max(int(seconds * 1000), 1),
                "once": os.urandom(8).hex() if choice in ("rerun", "raise") else "",
                "replacement": replacement,
            }
        )

    def check_may_rerun(self, record: recipes.Record, has_parents: bool) -> None:
        """Raise InvalidArgument when no script can put the job in its queue by itself, later."""
        if has_parents:
            raise InvalidArgument("if_queued", "rerun", "something else for a job that comes after others")
        if not recipes.has_edges(self.model) or not recipes.has_run_options(self.model):
            names = ", ".join((*recipes.EDGES, "follow_up", run_options.FIELD))
            accepted = f"something else: {self.model.__name__} has fields of its own among {names}"
            raise InvalidArgument("if_queued", "rerun", accepted)
        if self.is_held or record.late:
            accepted = f"something else: methods of {self.model.__name__}, or of its queue, place or index its jobs"
            raise InvalidArgument("if_queued", "rerun", accepted)

    def check_may_wait(self, record: recipes.Record, prepend: Any) -> None:
        """Raise InvalidArgument when a script cannot put the job in its queue by itself, later."""
        name = self.model.__name__
        if not recipes.has_edges(self.model):
            names = ", ".join((*recipes.EDGES, "follow_up"))
            raise InvalidArgument("after", name, f"for jobs of a class without fields of its own called {names}")
        if self.is_held or record.late:
            raise InvalidArgument(
                "after",
                name,
                "for jobs whose fields, and whose way into a queue, are not left to methods of their class",
            )
        if prepend:
            raise InvalidArgument("prepend", prepend, "False for a job that comes after others")


def policy_of(values: Mapping[str, Any]) -> str:
    """What a new job does if one of its parents fails, by its fields: what scripts read in them."""
    text = values.get(run_options.FIELD) or "{}"
    return str(run_options.read(text).get(POLICY, "cancel"))


def idents_of(after: Any, argument: str = "after") -> tuple[str, ...]:
    """The idents of some jobs, each once.

    Args:
        after: a job, an ident, or an iterable of these; None for none.
    Raises:
        InvalidArgument: something else, or too many.
    """
    accepted = f"a job, an ident, or at most {MOST_PARENTS} of these"
    try:
        many = () if after is None else [after] if isinstance(after, str) or hasattr(after, "ident") else list(after)
    except TypeError:
        raise InvalidArgument(argument, after, accepted) from None
    idents = tuple(dict.fromkeys(getattr(one, "ident", one) for one in many))
    if len(idents) > MOST_PARENTS or not all(isinstance(ident, str) and ":" in ident for ident in idents):
        raise InvalidArgument(argument, after, accepted)
    return tuple(recipes.to_text(argument, ident) for ident in idents)


def to_delay(delayed_for: float | timedelta | None, until: datetime | None) -> Delay:
    """When a job may start, for a script."""
    if delayed_for is not None:
        seconds = delayed_for.total_seconds() if isinstance(delayed_for, timedelta) else float(delayed_for)
        return Delay("for", repr(seconds))
    return Delay() if until is None else Delay("until", repr(datetime_to_score(until)))


def first(answers: list[Answer]) -> Added:
    """What was done for the only job of a call; its error is raised."""
    answer = answers[0]
    if isinstance(answer, str):
        return Added("NEW", answer)
    if isinstance(answer, Exception):
        raise answer
    return answer


@dataclass
class AlikeJobs:
    """Jobs in a row that go to one queue and have the same fields: those of `made_for`; see transitions.add_alike."""

    way: Way
    prepend: bool
    names: tuple[str, ...]
    made_for: str
    values: list[str] = field(default_factory=list)

    @property
    def _width(self) -> int:
        return 2 + len(self.names)

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.values) // self._width

    def call(self, start: int) -> Call[list[Answer]]:
        """The call that adds those from a place on."""
        values = self.values[start * self._width :] if start else self.values
        return transitions.add_alike(self.made_for, self.way.target, self.prepend, values)

    def spec_of(self, place: int) -> tuple[Way, Spec]:
        """Where one of them goes, and the arguments of `add_job`."""
        values = self.values[place * self._width : (place + 1) * self._width]
        given = dict(zip(("identifier", "added", *self.names), values, strict=True))
        return self.way, {**given, "prepend": self.prepend, "delayed_for": None, "delayed_until": None, "after": None}


@dataclass
class AnyJobs:
    """Jobs in a row that go to queues of one model; see transitions.add."""

    queue_model: Any
    additions: list[Addition] = field(default_factory=list)
    specs: list[tuple[Way, Spec]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.additions)

    def call(self, start: int) -> Call[list[Answer]]:
        """The call that adds those from a place on."""
        return transitions.add(self.specs[0][0].subject, self.additions[start:])

    def spec_of(self, place: int) -> tuple[Way, Spec]:
        """Where one of them goes, and the arguments of `add_job`."""
        return self.specs[place]


class Chunk:
    """Some jobs, in their order, in as few groups as can be: each takes a call."""

    def __init__(self) -> None:
        self.groups: list[AlikeJobs | AnyJobs] = []
        self._jobs = self._characters = 0

    @property
    def is_full(self) -> bool:
        """Is it time to send it?"""
        return self._jobs >= CHUNK_JOBS or self._characters >= CHUNK_CHARACTERS

    def add(self, way: Way, spec: Spec) -> bool:
        """Take a job; False for one that cannot go with others: it has to be added alone.

        Args:
            spec: the arguments of `add_job`.
        Raises:
            InvalidArgument: as `add_job`; the job is not taken.
        """
        text, prepend = recipes.to_text("identifier", spec["identifier"]), bool(spec["prepend"])
        after, delays = idents_of(spec["after"]), (spec["delayed_for"], spec["delayed_until"])
        fields = way.with_run_options(fields_of(spec), bool(after))
        if delays == (None, None) and not after and self._add_alike(way, text, prepend, fields):
            return True
        addition, record = way.addition(text, fields, prepend, *delays, after)
        if addition.hold.token:
            return False
        group = self.groups[-1] if self.groups else None
        if not isinstance(group, AnyJobs) or group.queue_model is not way.queue_model:
            group = AnyJobs(way.queue_model)
            self.groups.append(group)
        group.additions.append(addition)
        group.specs.append((way, spec))
        self._count(sum(map(len, record.hash)) + len(record.rest))
        return True

    def _add_alike(self, way: Way, identifier: str, prepend: bool, fields: Mapping[str, Any]) -> bool:
        names = tuple(sorted(fields)) if fields else ()
        group = self.groups[-1] if self.groups else None
        is_alike = (
            isinstance(group, AlikeJobs) and group.way is way and group.prepend == prepend and group.names == names
        )
        made_for = group.made_for if is_alike else way.made_for(names)  # type: ignore[union-attr]
        if made_for is None or (self.groups and not is_alike):  # the rest of the chunk goes in one call, whatever it is
            return False
        values = [identifier, str(utcnow()), *(recipes.to_text(name, fields[name]) for name in names)]
        if not is_alike:
            group = AlikeJobs(way, prepend, names, made_for)
            self.groups.append(group)
        group.values += values  # type: ignore[union-attr]
        self._count(sum(map(len, values)) if fields else len(identifier))
        return True

    def _count(self, characters: int) -> None:
        self._jobs += 1
        self._characters += characters


def fields_of(spec: Spec) -> dict[str, Any]:
    """The further fields of a new job."""
    return {name: value for name, value in spec.items() if name != "identifier" and name not in OPTIONS}


def to_spec(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `add_job` for one of many.

    Raises:
        InvalidArgument: neither an identifier nor a mapping that has one.
    """
    if isinstance(given, Mapping):
        if "identifier" in given and all(isinstance(name, str) for name in given):
            return {**defaults, **given}
    elif isinstance(given, (str, bytes, int, float)) and not isinstance(given, bool):
        return {**defaults, "identifier": given}
    raise InvalidArgument("specs", given, "identifiers, or mappings of the arguments of add_job, with an identifier")
