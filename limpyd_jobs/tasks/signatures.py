"""A call that is not made yet, to be passed around; and chains and groups of them, which are workflows of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from .. import run_options, waiting
from ..additions import idents_of
from ..exceptions import InvalidArgument
from ..models import NOT_GIVEN
from ..serializers import ResultOf
from ..statuses import Cancellation
from ..workflows import Step, Workflow
from . import options as task_options
from .calls import spec_of
from .models import TaskJob
from .registry import find_task

R = TypeVar("R")
WHERE = ("identifier", "queue_name", "priority", "queue_model", "delayed_for", "delayed_until")  # for Workflow.plan


class Piece:
    """What chains and groups are made of: calls, and chains and groups of them."""

    @property
    def size(self) -> int:
        """How many jobs it becomes."""
        raise NotImplementedError

    def plan(self, workflow: Workflow, before: Any, policy: str | None) -> Any:
        """Plan its jobs; answers those that it ends with: a step, or a list.

        Args:
            before: such steps, of what comes before it; None when it is the first.
            policy: what a job does if one that it comes after fails; None for what its class says.
        """
        raise NotImplementedError

    def __or__(self, after: Piece) -> Chain:
        """First this, then that: a chain."""
        return chain(self, after)


@dataclass(frozen=True)
class Signature(Piece, Generic[R]):
    """A task, arguments and options: `send.s("a@b.c", subject="x")`. What the task returns is an `R`.

    Attributes:
        task: its name.
        options: of the call, as `options.of_call` gives them.
        is_immutable: it takes no more arguments, like the result of the one before it in a chain.
    """

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_immutable: bool = False

    def spec(self, *given: Any) -> dict[str, Any]:
        """The arguments of `TaskJob.add_job` for this call.

        Args:
            given: arguments that come before its own, if it takes more.
        Raises:
            WrongArguments, NotSerializable, TooLarge, InvalidArgument: nothing was written.
        """
        args = self.args if self.is_immutable else (*given, *self.args)
        return spec_of(self.task, find_task(self.task), args, self.kwargs, self.options)

    def add(self, *given: Any) -> TaskJob[R]:
        """Add the job; arguments and errors as `spec`."""
        job: TaskJob[R] = TaskJob.add_call(self.spec(*given))
        return job

    async def aadd(self, *given: Any) -> TaskJob[R]:
        """As `add`, for a coroutine."""
        job: TaskJob[R] = await TaskJob.aadd_call(self.spec(*given))
        return job

    @property
    def size(self) -> int:
        """One."""
        return 1

    def plan(self, workflow: Workflow, before: Any, policy: str | None) -> Step:
        """Plan its job. What comes before it gives its result as the first argument, if it takes one."""
        spec = self.spec(*([] if before is None else [_result_of(before)]))
        spec.pop("retry_for", None)
        if spec.pop("prepend", False):
            raise InvalidArgument("prepend", True, "left out in a chain or a group")
        after = [*_flat(before), *idents_of(spec.pop("after", None))]
        if policy is not None and after:
            spec.setdefault("if_parent_fails", policy)
        where = {name: spec.pop(name) for name in WHERE if name in spec}
        return workflow.plan(TaskJob, **where, after=after, fields_if_new=spec)

    def set(self, **options: Any) -> Signature[R]:
        """The same with other options: those of a call, see `Task.options`."""
        return replace(self, options=task_options.of_step(self.options, options))


# --- Several of them


class Flow(Piece):
    """A chain or a group: added as a whole, or not at all."""

    def add(self, if_parent_fails: str | None = None) -> AddedFlow:
        """Add all of its jobs, in one call; see docs/workflows.md.

        Args:
            if_parent_fails: what a job does if one that it comes after fails: `cancel` (when None), `run` or `wait`.
        Raises:
            WrongArguments, NotSerializable, TooLarge: as for a task that is added alone.
            InvalidArgument: no such policy; more jobs or edges than a workflow may have. JobAlreadyQueued: one of its
                identifiers is queued. Nothing was written.
        """
        if if_parent_fails is not None:
            run_options.check("if_parent_fails", if_parent_fails)
        workflow = Workflow()
        workflow.reserve(TaskJob, self.size)
        ends = self.plan(workflow, None, if_parent_fails)
        for parent in {parent for step in workflow.steps for parent in step.parents}:
            if isinstance(parent, Step):
                parent.fields = {**parent.fields, "save_result": True}  # type: ignore[dict-item]
        workflow.add()
        jobs = dict(zip(workflow.steps, workflow.jobs, strict=True))
        return AddedFlow(workflow, [jobs[step] for step in _flat(ends)], isinstance(ends, list))

    async def aadd(self, if_parent_fails: str | None = None) -> AddedFlow:
        """As `add`, for a coroutine: in a thread."""
        return await asyncio.to_thread(self.add, if_parent_fails)


@dataclass(frozen=True)
class Chain(Flow):
    """Pieces one after the other; each gets the result of the one before, that of a group as a list."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """How many jobs it becomes."""
        return sum(piece.size for piece in self.pieces)

    def plan(self, workflow: Workflow, before: Any, policy: str | None) -> Any:
        """Plan its jobs; it ends with those of its last piece."""
        for piece in self.pieces:
            before = piece.plan(workflow, before, policy)
        return before


@dataclass(frozen=True)
class Group(Flow):
    """Pieces side by side; all of them get the result of what comes before."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """How many jobs it becomes."""
        return sum(piece.size for piece in self.pieces)

    def plan(self, workflow: Workflow, before: Any, policy: str | None) -> list[Any]:
        """Plan its jobs; it ends with all of its pieces, in their order."""
        return [piece.plan(workflow, before, policy) for piece in self.pieces]


def chain(*pieces: Any) -> Chain:
    """Calls one after the other: `chain(load.s(url), resize.s(size=5))`, or `load.s(url) | resize.s(size=5)`.

    Args:
        pieces: calls, chains, groups; or one iterable of these.
    Raises:
        InvalidArgument: something else, or nothing.
    """
    found: list[Piece] = []
    for piece in _pieces("chain", pieces):
        found.extend(piece.pieces if isinstance(piece, Chain) else [piece])
    return Chain(tuple(found))


def group(*pieces: Any) -> Group:
    """Calls side by side: `group(load.s(url) for url in urls)`. Arguments and errors as `chain`."""
    return Group(tuple(_pieces("group", pieces)))


def chord(header: Any, callback: Piece) -> Chain:
    """A group, and what runs when all of it has ended: it gets the list of the results, in the order of the group.

    Args:
        header: a group, or an iterable of what one is made of.
    """
    return chain(header if isinstance(header, Group) else group(header), callback)


def _pieces(what: str, given: tuple[Any, ...]) -> list[Piece]:
    is_iterable = len(given) == 1 and not isinstance(given[0], (Piece, str, bytes)) and isinstance(given[0], Iterable)
    found = list(given[0]) if is_iterable else list(given)
    if not found or not all(isinstance(piece, Piece) for piece in found):
        raise InvalidArgument(what, found, "one or more calls (made by .s() or .si()), chains or groups")
    return found


def _flat(ends: Any) -> Iterable[Step]:
    if isinstance(ends, list):
        for end in ends:
            yield from _flat(end)
    elif ends is not None:
        yield ends


def _result_of(ends: Any) -> Any:
    """What stands for the results of some steps, in the same shape."""
    return [_result_of(end) for end in ends] if isinstance(ends, list) else ResultOf(ends.ident)


class AddedFlow:
    """The jobs of a chain or a group that was added.

    Attributes:
        workflow: all of them, see `limpyd_jobs.workflows.Workflow`.
        ends: the jobs that it ends with: one of a chain, or all at the end of a group, in its order.
    """

    def __init__(self, workflow: Workflow, ends: list[TaskJob[Any]], is_group: bool) -> None:
        self.workflow, self.ends, self._is_group = workflow, ends, is_group

    @property
    def id(self) -> str:
        """What the field `workflow` of its jobs holds."""
        return self.workflow.id

    @property
    def jobs(self) -> list[TaskJob[Any]]:
        """All of its jobs, in the order in which they were written down."""
        return self.workflow.jobs

    @property
    def last(self) -> TaskJob[Any]:
        """The job that it ends with; of a group, the last one."""
        return self.ends[-1]

    def wait(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until what it ends with has ended. Returns whether it has. Arguments and errors as `wait_all`."""
        return waiting.wait_all(self.ends, timeout)

    async def await_end(self, timeout: float | timedelta | None = None) -> bool:
        """As `wait`, for a coroutine."""
        return await waiting.await_all(self.ends, timeout)

    def get_results(self, default: Any = NOT_GIVEN) -> list[Any]:
        """The results of the jobs that it ends with, in their order; arguments and errors as `Job.get_result`."""
        return [job.get_result(default) for job in self.ends]

    def get_result(self, default: Any = NOT_GIVEN) -> Any:
        """The result of the job that it ends with; of a group, the list of all."""
        return self.get_results(default) if self._is_group else self.last.get_result(default)

    def cancel(self, reason: str | None = None) -> dict[Cancellation, int]:
        """Cancel whatever of it has not ended; see `Workflow.cancel`."""
        return self.workflow.cancel(reason)
