"""A call that is not made yet, to be passed around: what chains and groups are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from . import options as task_options
from .calls import spec_of
from .models import TaskJob
from .registry import find_task

R = TypeVar("R")


@dataclass(frozen=True)
class Signature(Generic[R]):
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

    def set(self, **options: Any) -> Signature[R]:
        """The same with other options: those of a call, see `Task.options`."""
        return replace(self, options={**self.options, **task_options.of_call(options)})
