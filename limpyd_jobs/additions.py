"""How jobs are added: one, or many in few calls.

Most jobs are alike: they wait, and their fields have plain indexes or none. A script that is made for their class
writes those (add_alike.lua); any other job goes by add.lua.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from . import recipes, transitions
from .exceptions import InvalidArgument
from .transitions import Added, Addition, Call, Delay, Hold, Subject, Target
from .utils import compute_delayed_until, datetime_to_score, utcnow

WRITTEN_BY_ADD = ("status", "queued", "delayed_until", "queue_key")
CHUNK_JOBS = 500  # that one round trip adds: a few milliseconds of Redis' time
CHUNK_CHARACTERS = 500_000  # of their values, at which a chunk is full, too
OPTIONS = ("queue_name", "priority", "queue_model", "prepend", "delayed_for", "delayed_until")

Answer: TypeAlias = "Added | Exception"
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
    """

    model: Any
    queue_model: Any
    name: str
    target: Target
    subject: Subject
    is_held: bool

    def made_for(self, fields: Iterable[str]) -> str | None:
        """What add_alike.lua must know to add jobs with these further fields; None: they need an `addition` each."""
        return None if self.is_held else recipes.alike(self.model, ("identifier", "added", *fields))

    def addition(
        self, identifier: str, fields_if_new: Mapping[str, Any], prepend: Any, delayed_for: Any, delayed_until: Any
    ) -> tuple[Addition, recipes.Record]:
        """A job for add.lua, and its record. Arguments and errors as for `Job.add_job`."""
        values = {"added": str(utcnow()), **fields_if_new, "identifier": identifier, "priority": self.target.priority}
        for name in WRITTEN_BY_ADD:
            values.pop(name, None)
        record = recipes.Record(self.model, values)
        hold = Hold(os.urandom(8).hex()) if self.is_held or record.late else Hold()
        delay = to_delay(delayed_for, compute_delayed_until(delayed_for, delayed_until))
        addition = Addition(self.target, identifier, record.hash, record.sets, record.rest, bool(prepend), delay, hold)
        return addition, record


def to_delay(delayed_for: float | timedelta | None, until: datetime | None) -> Delay:
    """When a job may start, for a script."""
    if delayed_for is not None:
        seconds = delayed_for.total_seconds() if isinstance(delayed_for, timedelta) else float(delayed_for)
        return Delay("for", repr(seconds))
    return Delay() if until is None else Delay("until", repr(datetime_to_score(until)))


def first(answers: list[Answer]) -> Added:
    """What was done for the only job of a call; its error is raised."""
    added = answers[0]
    if isinstance(added, Exception):
        raise added
    return added


@dataclass
class Group:
    """Jobs in a row that one call adds.

    Attributes:
        names: of the fields of jobs that are alike beside `identifier` and `added`.
        values: of these jobs in turn; see transitions.add_alike.
        addition: a job that is like no other, with its `spec`: the arguments of `add_job`.
    """

    way: Way
    prepend: bool = False
    names: tuple[str, ...] = ()
    made_for: str = ""
    values: list[str] = field(default_factory=list)
    addition: Addition | None = None
    spec: Spec = field(default_factory=dict)

    def takes(self, way: Way, names: tuple[str, ...], prepend: bool) -> bool:
        """Can another job join?"""
        return self.way is way and self.names == names and self.prepend == prepend and self.addition is None

    def call(self) -> Call[list[Answer]]:
        """The call that adds them."""
        if self.addition is None:
            return transitions.add_alike(self.made_for, self.way.target, self.prepend, self.values)
        return transitions.then(transitions.add(self.way.subject, self.addition), lambda added: [added])

    def spec_of(self, position: int) -> Spec:
        """The arguments of `add_job` for one of them."""
        if self.addition is not None:
            return self.spec
        names = ("identifier", "added", *self.names)
        start = position * len(names)
        values = dict(zip(names, self.values[start : start + len(names)], strict=True))
        return {**values, "prepend": self.prepend, "delayed_for": None, "delayed_until": None}


class Chunk:
    """Jobs that one round trip adds, in their order."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._jobs = self._characters = 0
        self._added = str(utcnow())

    @property
    def is_full(self) -> bool:
        """Is it time to send it?"""
        return self._jobs >= CHUNK_JOBS or self._characters >= CHUNK_CHARACTERS

    def add(self, way: Way, spec: Spec) -> bool:
        """Take a job; False for one that cannot go with others: it has to be added alone.

        Args:
            spec: the arguments of `add_job`.
        """
        text, fields = recipes.to_text("identifier", spec["identifier"]), fields_of(spec)
        prepend, delays = bool(spec["prepend"]), (spec["delayed_for"], spec["delayed_until"])
        if delays == (None, None) and self.add_alike(way, text, fields, prepend):
            return True
        addition, record = way.addition(text, fields, prepend, *delays)
        if addition.hold.token:
            return False
        self.groups.append(Group(way, addition=addition, spec=spec))
        self._jobs += 1
        self._characters += sum(map(len, record.hash)) + len(record.rest)
        return True

    def add_alike(self, way: Way, identifier: str, fields: Mapping[str, Any], prepend: bool) -> bool:
        """Take a job that is to wait; False when it is like no other."""
        names = tuple(fields) if fields else ()
        group = self.groups[-1] if self.groups else None
        if group is None or not group.takes(way, names, prepend):
            made_for = way.made_for(names)
            if made_for is None:
                return False
            group = Group(way, prepend, names, made_for)
            self.groups.append(group)
        group.values += (identifier, self._added)
        self._jobs += 1
        self._characters += len(identifier)
        if fields:
            values = [recipes.to_text(*item) for item in fields.items()]
            group.values += values
            self._characters += sum(map(len, values))
        return True

    def answers(self, replies: Iterable[list[Answer] | Exception]) -> Iterator[tuple[Group, int, Answer]]:
        """What was done for each job, by its group and its place there, from what the calls of the groups answered."""
        for group, reply in zip(self.groups, replies, strict=True):
            if isinstance(reply, Exception):
                yield group, 0, reply
            else:
                for position, answer in enumerate(reply):
                    yield group, position, answer


def fields_of(spec: Spec) -> dict[str, Any]:
    """The further fields of a new job."""
    return {name: value for name, value in spec.items() if name != "identifier" and name not in OPTIONS}


def to_spec(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `add_job` for one of many.

    Raises:
        InvalidArgument: neither an identifier nor a mapping that has one.
    """
    if isinstance(given, Mapping):
        if "identifier" in given:
            return {**defaults, **given}
    elif isinstance(given, (str, bytes, int, float)):
        return {**defaults, "identifier": given}
    raise InvalidArgument("specs", given, "identifiers, or mappings of the arguments of add_job, with an identifier")
