"""How jobs are added: one, or many in few calls.

Most jobs are alike: they wait, and their fields have plain indexes or none. A script that is made for their class
writes those (add_alike.lua); any other job goes by add.lua.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from . import limits, recipes, run_options, transitions, uniqueness
from .exceptions import InvalidArgument
from .instruments import instruments, what_to_carry
from .transitions import Added, Addition, Answer, Call, Delay, Hold, Subject, Target
from .utils import compute_delayed_until, datetime_to_score, now_text

WRITTEN_BY_ADD = ("status", "queued", "delayed_until", "queue_key")
NOT_REPLACED = (*WRITTEN_BY_ADD, "identifier", "priority", "added")  # of a queued job, by those of a new one
CHUNK_JOBS = 500  # that one round trip adds: a few milliseconds of Redis' time
CHUNK_CHARACTERS = 500_000  # of their values, at which a chunk is full, too
OPTIONS = ("queue_name", "priority", "queue_model", "prepend", "delayed_for", "delayed_until", "after")
NO_FIELDS = frozenset(("identifier", *OPTIONS))
POLICY = "if_parent_fails"
MOST_PARENTS = 10_000


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

    @property
    def is_constant(self) -> bool:
        """Is there nothing to be done, or to be found out, anew for each job, as when it expires?"""
        return not self.is_queue_late and not self.run_defaults

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
        values = [identifier, now_text(), *(recipes.to_text(name, fields_if_new[name]) for name in names)]
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
        values = {"added": now_text(), **fields_if_new, "identifier": identifier, "priority": self.target.priority}
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


_NO_PARENTS: tuple[str, ...] = ()


def idents_of(after: Any, argument: str = "after") -> tuple[str, ...]:
    """The idents of some jobs, each once.

    Args:
        after: a job, an ident, or an iterable of these; None for none.
    Raises:
        InvalidArgument: something else, or too many.
    """
    if after is None or after is _NO_PARENTS:
        return _NO_PARENTS
    accepted = f"a job, an ident, or at most {MOST_PARENTS} of these"
    try:
        many = [after] if isinstance(after, str) or hasattr(after, "ident") else list(after)
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


class Terms(NamedTuple):
    """All that is said of a new job but its identifier; jobs may share them.

    Attributes:
        after: idents.
        fields: further ones, where what is said of its runs is put together in one.
        made_for: what add_alike.lua must know to add it; None: it needs an `addition`.
        names, texts: of its fields as that script gets them.
    """

    way: Way
    prepend: bool
    delays: tuple[Any, Any]
    after: tuple[str, ...]
    fields: Mapping[str, Any]
    made_for: str | None
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def to_terms(way: Way, options: Mapping[str, Any], fields: Mapping[str, Any]) -> Terms:
    """What is said of a new job.

    Args:
        options: of `add_job`, as OPTIONS names them.
        fields: as `fields_if_new` of `add_job`.
    Raises:
        InvalidArgument: a value is not accepted.
    """
    prepend, delays = bool(options["prepend"]), (options["delayed_for"], options["delayed_until"])
    after = idents_of(options["after"])
    fields = way.with_run_options(fields, bool(after))
    names = tuple(sorted(fields)) if fields else ()
    made_for = None if after or delays != (None, None) else way.made_for(names)
    if made_for is None:
        return Terms(way, prepend, delays, after, fields, None)
    texts = tuple([recipes.to_text(name, fields[name]) for name in names])
    return Terms(way, prepend, delays, after, fields, made_for, names, texts)


class Specs:
    """Reads what `add_jobs` is given, one job after the other.

    Args:
        model: of the jobs.
        options: of the call, which hold where a job says nothing: of `add_job`, as OPTIONS names them.
    """

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        self._model, self._options = model, options
        self._terms: Terms | None = None  # of those that are no more than an identifier

    def read(self, given: Any) -> tuple[Terms, str]:
        """What is said of a job, and its identifier.

        Raises:
            LimpydJobsException: as `add_job`.
            InvalidArgument: neither an identifier nor a mapping that has one; or as `add_job`.
        """
        if isinstance(given, (str, bytes, int, float)) and not isinstance(given, bool):
            terms = self._terms
            if terms is None or instruments:  # what comes along may be another thing for each job
                terms = to_terms(self._way(self._options), self._options, {})
                self._terms = terms if terms.way.is_constant and not instruments else None
            return terms, recipes.to_text("identifier", given)
        if isinstance(given, Mapping) and "identifier" in given and all(isinstance(name, str) for name in given):
            options = {**self._options, **given}
            way, identifier = self._way(options), recipes.to_text("identifier", given["identifier"])
            fields = {name: value for name, value in given.items() if name not in NO_FIELDS}
            return to_terms(way, options, fields), identifier
        accepted = "identifiers, or mappings of the arguments of add_job, with an identifier"
        raise InvalidArgument("specs", given, accepted)

    def _way(self, options: Mapping[str, Any]) -> Way:
        way: Way = self._model._way(options["queue_model"], options["queue_name"], options["priority"])
        return way


class AlikeJobs:
    """Jobs in a row that go to one queue and have the same fields; see transitions.add_alike.

    Args:
        terms: of the first one.
    """

    def __init__(self, terms: Terms, made_for: str) -> None:
        self._terms, self._made_for = terms, made_for
        self._width = 2 + len(terms.names)
        self._values: list[str] = []

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self._values) // self._width

    def takes(self, terms: Terms) -> bool:
        """Can a job be one of them?"""
        ours = self._terms
        if terms is ours:
            return True
        is_alike = terms.made_for == self._made_for and terms.way is ours.way
        return is_alike and terms.prepend == ours.prepend

    def add(self, terms: Terms, identifier: str) -> None:
        """Take a job."""
        self._values += (identifier, now_text(), *terms.texts)

    def call(self, start: int) -> Call[list[Answer]]:
        """The call that adds those from a place on."""
        values = self._values[start * self._width :] if start else self._values
        return transitions.add_alike(self._made_for, self._terms.way.target, self._terms.prepend, values)

    def terms_of(self, place: int) -> tuple[Terms, str]:
        """What is said of one of them, and its identifier."""
        identifier, *values = self._values[place * self._width : (place + 1) * self._width]
        return self._terms._replace(fields=dict(zip(("added", *self._terms.names), values, strict=True))), identifier


class AnyJobs:
    """Jobs in a row that go to queues of one model; see transitions.add."""

    def __init__(self) -> None:
        self._additions: list[Addition] = []
        self._jobs: list[tuple[Terms, str]] = []

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self._additions)

    def takes(self, terms: Terms) -> bool:
        """Can a job be one of them?"""
        return not self._jobs or self._jobs[0][0].way.queue_model is terms.way.queue_model

    def add(self, addition: Addition, terms: Terms, identifier: str) -> None:
        """Take a job."""
        self._additions.append(addition)
        self._jobs.append((terms, identifier))

    def call(self, start: int) -> Call[list[Answer]]:
        """The call that adds those from a place on."""
        return transitions.add(self._jobs[0][0].way.subject, self._additions[start:])

    def terms_of(self, place: int) -> tuple[Terms, str]:
        """What is said of one of them, and its identifier."""
        return self._jobs[place]


class Chunk:
    """Some jobs, in their order, in as few groups as can be: each takes a call."""

    def __init__(self) -> None:
        self.groups: list[AlikeJobs | AnyJobs] = []
        self._jobs = self._characters = 0

    @property
    def is_full(self) -> bool:
        """Is it time to send it?"""
        return self._jobs >= CHUNK_JOBS or self._characters >= CHUNK_CHARACTERS

    def add(self, terms: Terms, identifier: str) -> bool:
        """Take a job; False for one that cannot go with others: it has to be added alone.

        Raises:
            InvalidArgument: as `add_job`; the job is not taken.
        """
        if not self.groups and terms.made_for is not None:
            self.groups.append(AlikeJobs(terms, terms.made_for))
        group = self.groups[-1] if self.groups else None
        if not isinstance(group, AlikeJobs) or not group.takes(terms):
            return self._add_any(terms, identifier)  # the rest of the chunk goes in one call, whatever it is
        group.add(terms, identifier)
        self._count(len(identifier) + (sum(map(len, terms.texts)) if terms.texts else 0))
        return True

    def _add_any(self, terms: Terms, identifier: str) -> bool:
        addition, record = terms.way.addition(identifier, terms.fields, terms.prepend, *terms.delays, terms.after)
        if addition.hold.token:
            return False
        group = self.groups[-1] if self.groups else None
        if not isinstance(group, AnyJobs) or not group.takes(terms):
            group = AnyJobs()
            self.groups.append(group)
        group.add(addition, terms, identifier)
        self._count(sum(map(len, record.hash)) + len(record.rest))
        return True

    def _count(self, characters: int) -> None:
        self._jobs += 1
        self._characters += characters
