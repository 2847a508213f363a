"""Workflows: many jobs that come after one another, added in one script, all or none."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any

from limpyd.exceptions import DoesNotExist

from . import recipes, transitions
from .additions import Way, idents_of, policy_of, to_delay
from .exceptions import InvalidArgument, JobAlreadyExists, LimpydJobsException
from .instruments import adding
from .models import Job, _seconds, repair_indexes
from .run_options import FIELD
from .statuses import ENDS, Cancellation
from .utils import compute_delayed_until

MOST_JOBS = 10_000  # of a workflow: about half a second of Redis' time
MOST_EDGES = 50_000  # between them
PAGE = 500
MOST_TRIES = 5  # to find primary keys that nobody else has taken by hand

# The further fields of a job, or a function that gives them, of the idents of the jobs that it comes after.
Fields = Mapping[str, Any] | Callable[[list[str]], Mapping[str, Any]]


class Step:
    """A job of a workflow that has yet to be added.

    Attributes:
        parents: the steps, or idents of jobs, that it comes after.
        pk: known when it is added, or at once if it was reserved.
    """

    def __init__(
        self,
        workflow: Workflow,
        way: Way,
        identifier: str,
        delays: tuple[Any, Any],
        parents: list[Step | str],
        fields: Fields,
    ) -> None:
        self.workflow, self.way, self.identifier, self.delays = workflow, way, identifier, delays
        self.parents, self.fields = parents, fields
        self.has_children = self.is_reserved = False
        self.pk = ""

    @property
    def ident(self) -> str:
        """What its job is found by; known as soon as the primary key is."""
        return f"{self.way.subject.repr}:{self.pk}"


class Workflow:
    """Jobs that come after one another: planned one by one, then added in one script call, all or none.

    Each may come after those that were planned before, and after jobs that are there: so they never wait in a circle.

    Attributes:
        id: what the field `workflow` of its jobs holds.
        steps: what was planned. jobs: in the same order; none before `add`.
    """

    def __init__(self, id: str | None = None) -> None:
        self.id = id or os.urandom(8).hex()
        self.jobs: list[Any] = []
        self.steps: list[Step] = []
        self._reserved: dict[Any, Iterator[int]] = {}
        self._edges = 0

    @classmethod
    def of(cls, job: Job) -> Workflow:
        """The workflow that a job was added with, with those of its jobs whose records are there, parents first.

        Raises:
            InvalidArgument: it was added alone.
        """
        model: Any = type(job)
        id = job.workflow.hget() if recipes.has_edges(model) else None
        if not id:
            raise InvalidArgument("job", job.ident, "a job that was added with a workflow")
        workflow = cls(id)
        workflow.jobs = _parents_first(list(_jobs_of(model, id)))
        return workflow

    def plan(
        self,
        model: type[Job],
        identifier: str,
        queue_name: str | None = None,
        priority: int | str = 0,
        queue_model: Any = None,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
        after: Any = None,
        fields_if_new: Fields | None = None,
    ) -> Step:
        """Plan a job; what it answers is for `after` of others.

        Args:
            model: the class of the job.
            after: a step, a job, an ident, or an iterable of these.
            fields_if_new: further fields of the job, and options of its runs; or a function that gets the idents of the
                jobs that it comes after, in the order of `after`, and gives these.
        Raises:
            LimpydJobsException, InvalidArgument: as `Job.add_job`; too many jobs; a step of another workflow.
        """
        if len(self.steps) >= MOST_JOBS:
            raise InvalidArgument("workflow", len(self.steps) + 1, f"at most {MOST_JOBS} jobs")
        way = model._way(queue_model, queue_name, priority)
        compute_delayed_until(delayed_for, delayed_until)
        text = recipes.to_text("identifier", identifier)
        parents = self._parents(after)
        fields = {} if fields_if_new is None else fields_if_new
        step = Step(self, way, text, (delayed_for, delayed_until), parents, fields)
        step.pk = str(next(self._reserved.get(model, iter(())), ""))
        step.is_reserved = bool(step.pk)
        for parent in parents:
            if isinstance(parent, Step):
                parent.has_children = True
        self.steps.append(step)
        return step

    def reserve(self, model: type[Job], count: int) -> None:
        """Choose the primary keys of the next jobs of a class that are planned, so that their idents are known at once.

        Raises:
            InvalidArgument: more jobs than a workflow may have; or Redis does not make the primary keys of the class.
        """
        if count > MOST_JOBS:
            raise InvalidArgument("workflow", count, f"at most {MOST_JOBS} jobs")
        last = _next_pks(model, count, model.retry_for)
        self._reserved[model] = iter(range(last - count + 1, last + 1))

    def _parents(self, after: Any) -> list[Step | str]:
        many = [after] if isinstance(after, (str, Step)) or hasattr(after, "ident") else list(after or ())
        parents: list[Step | str] = []
        for one in dict.fromkeys(many):
            if not isinstance(one, Step):
                parents.extend(idents_of(one))
            elif one.workflow is self:
                parents.append(one)
            else:
                raise InvalidArgument("after", one, "steps that were planned before, in the same workflow")
        edges = self._edges + len(parents)
        if edges > MOST_EDGES:
            raise InvalidArgument("after", edges, f"at most {MOST_EDGES} edges between the jobs of a workflow")
        self._edges = edges
        return parents

    def add(self, retry_for: float | None = None) -> Workflow:
        """Add all jobs, in one call: a workflow is there as a whole, or not at all.

        Args:
            retry_for: as for `add_job`. It may be sent again, and adds nothing twice: also by another call of `add`
                after one that was ended by an error of redis-py, such as a timeout.
        Raises:
            InvalidArgument, LimpydJobsException: as `add_job`. JobAlreadyQueued: a job is queued under one of the
                identifiers. Nothing was written.
        Redis: workflow.lua.
        """
        if not self.steps or self.jobs:
            raise LimpydJobsException("A workflow is added once, and has one job at least")
        first = self.steps[0].way
        patience = _seconds("retry_for", first.model.retry_for if retry_for is None else retry_for)
        self._check()
        with adding(first.model, first.name, None):
            done = self._write(first.model, patience)
        if done.kind == "TAKEN":
            raise JobAlreadyExists(f"The value of {done.field!r} belongs to another job; nothing was written")
        repair_indexes(done.changes)
        self.jobs = [step.way.model.from_pk(step.pk) for step in self.steps]
        return self

    def _write(self, model: Any, patience: float) -> transitions.Created:
        for _ in range(MOST_TRIES):
            self._take_pks(patience)
            done: transitions.Created = model._send(self._call(), patience)
            while done.kind == "NO_QUEUE":
                way = self._ways()[done.number]
                way.queue_model.get_queue(way.name, way.target.priority)
                done = model._send(self._call(), patience)
            if done.kind != "TAKEN" or done.field != "pk":
                break
            for step in self.steps:
                step.pk = step.pk if step.is_reserved else ""
        return done

    async def aadd(self, retry_for: float | None = None) -> Workflow:
        """As `add`, for a coroutine: in a thread."""
        return await asyncio.to_thread(self.add, retry_for)

    def cancel(self, reason: str | None = None) -> dict[Cancellation, int]:
        """Cancel each of its jobs that has not ended, the last ones first; how many are counted by what became of them.

        One that runs is asked to end, as by `Job.cancel`; one whose record is gone has ended. The number of calls is
        that of the jobs.
        """
        counts: Counter[Cancellation] = Counter()
        for job in reversed(self.jobs):
            became = Cancellation.ENDED
            with suppress(DoesNotExist):
                became = job.cancel(reason)
            counts[became] += 1
        return dict(counts)

    def has_ended(self) -> bool:
        """Have all of its jobs ended for good? Those whose records are gone have."""
        return all(status is None or (status in ENDS and not queued) for status, queued in _states_of(self.jobs))

    # --- In the words of the script

    def _check(self) -> None:
        namespace, database = self.steps[0].way.target.namespace, self.steps[0].way.model.database
        identifiers: set[tuple[str, str]] = set()
        for step in self.steps:
            key = (step.way.subject.repr, step.identifier)
            if key in identifiers:
                raise InvalidArgument("identifier", step.identifier, "one that no other job of the workflow has")
            identifiers.add(key)
            if step.way.target.namespace != namespace or step.way.model.database is not database:
                raise InvalidArgument("model", step.way.model, "classes of jobs in one namespace of one database")

    def _take_pks(self, patience: float) -> None:
        """Choose primary keys that nobody has: an edge needs the idents of both. Those of a call that failed stay."""
        steps: dict[Any, list[Step]] = {}
        for step in self.steps:
            if not step.pk:
                steps.setdefault(step.way.model, []).append(step)
        for model, of_class in steps.items():
            last = _next_pks(model, len(of_class), patience)
            for number, step in enumerate(of_class, last - len(of_class) + 1):
                step.pk = str(number)

    def _ways(self) -> list[Way]:
        return list({step.way.target: step.way for step in self.steps}.values())

    def _call(self) -> transitions.Call[transitions.Created]:
        subjects = list({step.way.subject: None for step in self.steps})
        targets = [way.target for way in self._ways()]
        classes = {subject: number for number, subject in enumerate(subjects, 1)}
        queues = {target: number for number, target in enumerate(targets, 1)}
        jobs = [self._describe(step, classes[step.way.subject], queues[step.way.target]) for step in self.steps]
        return transitions.workflow(targets[0].namespace, subjects, targets, jobs)

    def _describe(self, step: Step, number: int, target: int) -> dict[str, Any]:
        after = [parent if isinstance(parent, str) else parent.ident for parent in step.parents]
        given = step.fields(after) if callable(step.fields) else step.fields
        fields = step.way.with_run_options(given, bool(after))
        delayed_for, delayed_until = step.delays
        until = compute_delayed_until(delayed_for, delayed_until)
        values = {**fields, "workflow": self.id}
        addition, record = step.way.addition(step.identifier, values, False, None, None)
        step.way.check_may_wait(record, False)
        rest = json.loads(addition.rest) if addition.rest else {}
        if "uniqueness" in rest:
            raise InvalidArgument("if_queued", step.identifier, "left out, like unique_for, for the jobs of a workflow")
        return {
            **rest,
            "class": number,
            "target": target,
            "pk": step.pk,
            "identifier": step.identifier,
            "hash": list(addition.texts),
            "sets": list(addition.sets),
            "after": after,
            "policy": policy_of(values) if FIELD in values else "cancel",
            "delay": list(to_delay(delayed_for, until)),
            "has_children": step.has_children,
        }


def _next_pks(model: Any, count: int, patience: float) -> int:
    """The last of some numbers that no other job of a class gets.

    Raises:
        InvalidArgument: the primary keys of the class are not made by Redis.
    """
    if not model.get_field("pk")._auto_increment:
        raise InvalidArgument("model", model.__name__, "a class whose primary keys are made by Redis")
    return int(model._patiently(lambda client: client.incrby(f"{model._name}:max_pk", count), patience))


def _pages(jobs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (jobs[start : start + PAGE] for start in range(0, len(jobs), PAGE))


def _states_of(jobs: Sequence[Any]) -> Iterator[tuple[str | None, str | None]]:
    for page in _pages([job for job in jobs if hasattr(job, "_pk")]):  # an instance that was deleted has none
        pipeline = page[0].database.connection.pipeline(transaction=False)
        for job in page:
            pipeline.hmget(f"{job._name}:{job._pk}:hash", "status", "queued")
        yield from map(tuple, pipeline.execute())


def _parents_first(jobs: Sequence[Any]) -> list[Any]:
    found = {job.ident: job for job in jobs}
    parents: dict[str, Any] = {}
    for page in _pages(jobs):
        pipeline = page[0].database.connection.pipeline(transaction=False)
        for job in page:
            pipeline.smembers(f"{job._name}:{job._pk}:parents")
        parents.update(zip((job.ident for job in page), pipeline.execute(), strict=True))
    return [found[ident] for ident in TopologicalSorter(parents).static_order() if ident in found]


def _jobs_of(model: Any, id: str) -> Iterator[Any]:
    """The jobs of a workflow, of all classes that the registry of the namespace knows. Raises JobClassError."""
    namespace = model.queue_model.namespace or ""
    seen: set[str] = set()
    for model_repr, text in model.database.connection.hgetall(f"{namespace}:models").items():
        key = json.loads(text)["key"]
        index = f"{key}:workflow:{id}"
        if key in seen or not model.database.connection.exists(index):
            continue
        seen.add(key)
        owner = Job.class_of(f"{model_repr}:0")
        for pk in model.database.connection.sscan_iter(index, count=PAGE):
            yield owner.from_pk(pk)
