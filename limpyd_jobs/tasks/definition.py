"""`@task`, and what it makes of a function."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from .. import additions, serializers
from ..exceptions import ConfigurationException, InvalidArgument
from ..workers.at_once import IN_QUEUES_ONLY
from . import options as task_options
from .calls import bind, check_template, spec_of
from .models import TaskJob
from .references import references_in, resolved
from .registry import registry
from .signatures import Signature

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
C = TypeVar("C")  # what a call gives at once: a coroutine, of a coroutine function
R = TypeVar("R")  # the result


class Addable(Generic[P, R]):
    """What becomes a job when it is given arguments: a task, or a task with options for a call."""

    _task: Task[Any, Any, Any]
    _options: Mapping[str, Any] = {}

    def add(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskJob[R]:
        """Add a job that calls the task with these arguments; as `Job.add_job`.

        Raises:
            WrongArguments: (a TypeError) the function does not take them.
            NotSerializable, TooLarge: they cannot be stored; with the path to the value.
        """
        job: TaskJob[R] = TaskJob.add_call(self._spec(args, kwargs))
        return job

    async def aadd(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskJob[R]:
        """As `add`, for a coroutine."""
        job: TaskJob[R] = await TaskJob.aadd_call(self._spec(args, kwargs))
        return job

    def add_many(self, calls: Iterable[Any]) -> additions.AddedJobs:
        """Add many jobs, some hundreds in a round trip; as `Job.add_jobs`.

        Args:
            calls: the arguments of each, as a tuple, a list, or a mapping by name; an iterable of any length.
        Returns:
            How many were new, and how many identifiers were queued already.
        Raises:
            As `add`, for the first that cannot be added: those before it are added.
        """
        return TaskJob.add_jobs(self._specs(calls), **self._patience)

    async def aadd_many(self, calls: Iterable[Any]) -> additions.AddedJobs:
        """As `add_many`, for a coroutine: in a thread, where `calls` is read, too."""
        return await TaskJob.aadd_jobs(self._specs(calls), **self._patience)

    def run_now(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskJob[R]:
        """Make a job that calls the task, and run it here and now, in no queue; as `Job.execute_now`.

        Its error is recorded, not raised. Raises as `add`.
        """
        job: TaskJob[R] = TaskJob.execute_now(**self._spec_of_now(args, kwargs))
        return job

    async def arun_now(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskJob[R]:
        """As `run_now`, in the running event loop; as `Job.aexecute_now`."""
        job: TaskJob[R] = await TaskJob.aexecute_now(**self._spec_of_now(args, kwargs))
        return job

    def s(self, /, *args: Any, **kwargs: Any) -> Signature[R]:
        """A call to be made later, by a chain for instance; arguments may still be missing, at the start.

        Raises:
            WrongArguments: the function takes no such ones.
        """
        bind(self._task, args, kwargs, partial=True)
        return Signature(self._task.name, args, kwargs, self._options)

    def si(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """A whole call to be made later: it takes no more arguments. Errors as `s`."""
        bind(self._task, args, kwargs)
        return Signature(self._task.name, args, kwargs, self._options, is_immutable=True)

    def options(self, **options: Unpack[task_options.CallOptions]) -> Prepared[P, R]:
        """The task with options for a call: `send.options(queue="urgent", delayed_for=60).add(...)`.

        Raises:
            InvalidArgument: there is no such option, or its value is not accepted.
        """
        return Prepared(self._task, task_options.of_step(self._options, options))

    def _spec(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return spec_of(self._task.name, self._task, args, kwargs, self._options)

    def _spec_of_now(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `TaskJob.execute_now`: without what the task says of its place in a queue."""
        spec = self._spec(args, kwargs)
        return {name: value for name, value in spec.items() if name not in IN_QUEUES_ONLY or name in self._options}

    def _specs(self, calls: Iterable[Any]) -> Iterator[dict[str, Any]]:
        if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable):
            raise InvalidArgument("calls", calls, "an iterable of tuples, or of mappings")
        for given in calls:
            if isinstance(given, Mapping):
                spec = self._spec((), given)
            elif isinstance(given, (tuple, list)):
                spec = self._spec(tuple(given), {})
            else:
                raise InvalidArgument("calls", given, "the arguments of a call, as a tuple or a mapping")
            spec.pop("retry_for", None)
            yield spec

    @property
    def _patience(self) -> dict[str, Any]:
        return {"retry_for": self._options.get("retry_for", self._task.task_options.get("retry_for"))}


class Prepared(Addable[P, R]):
    """A task with options for a call."""

    def __init__(self, task: Task[Any, Any, Any], options: Mapping[str, Any]) -> None:
        self._task, self._options = task, options

    def __repr__(self) -> str:
        return f"<{self._task!r} with {dict(self._options)!r}>"


class Task(Addable[P, R], Generic[P, C, R]):
    """A function that can also be a job. To be called, it is the plain function; see `task`.

    Attributes:
        name: what Redis stores: `module:qualname`, or as it was set.
        is_coroutine: is it a coroutine function?
        is_bound: does it get its job first?
        signature: of the function. call_signature: of `add`: without the job.
        task_options: as they were given, under their long names.
        run_options: what they say of its runs, as `run_options.check` gives it.
        result_hint: the type hint of what it returns.
    """

    def __init__(self, function: Callable[..., Any], is_bound: bool, options: Mapping[str, Any]) -> None:
        _check_function(function)
        name = options.get("name") or _name_of(function)
        owner = f"The task {name}"
        self._task = self
        self.name, self.is_bound = _check_name(name), is_bound
        self.is_coroutine = inspect.iscoroutinefunction(function)
        self.task_options = task_options.of_task(owner, options)
        self.run_options = task_options.of_runs(self.task_options)
        self.signature = _readable(inspect.signature(function))
        self.call_signature = _without_job(owner, self.signature) if is_bound else self.signature
        for option in task_options.OF_THE_ARGUMENTS:
            check_template(owner, option, self.task_options.get(option), self.call_signature)
        update_wrapper(self, function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C:
        """Call the plain function."""
        result: C = self.__wrapped__(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> str:
        return self.__qualname__

    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    @property
    def queue_name(self) -> str:
        """Where its jobs go, if nothing else is said."""
        return str(self.task_options.get("queue_name") or TaskJob.queue_name)

    @cached_property
    def _hints(self) -> serializers.Hints:
        return serializers.Hints(self.__wrapped__, skip=int(self.is_bound))

    @property
    def result_hint(self) -> Any:
        return self._hints.result

    def jobs(self, **filters: Any) -> Any:
        """The collection of its jobs, filtered further by indexed fields: `send.jobs(status=STATUSES.ERROR)`."""
        return TaskJob.collection(task=self.name, **filters)

    def call_for(self, job: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call the function for a job, with the stored arguments as its type hints say.

        Raises:
            WrongArguments: it takes others by now.
        """
        bind(self, args, kwargs)
        if any(references_in((args, kwargs))):
            if self.is_coroutine:
                return self._call_with_results(job, args, kwargs)
            args, kwargs = resolved((args, kwargs), _runs_after_failures(job))
        return self._call_restored(job, args, kwargs)

    async def _call_with_results(self, job: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Read the results in a thread, so that the event loop goes on."""
        args, kwargs = await asyncio.to_thread(resolved, (args, kwargs), _runs_after_failures(job))
        return await self._call_restored(job, args, kwargs)

    def _call_restored(self, job: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self._hints.restore(args, kwargs)
        return self.__wrapped__(*([job] if self.is_bound else []), *args, **kwargs)


def _runs_after_failures(job: Any) -> bool:
    return bool(job.run_option("if_parent_fails") == "run")


class BoundTask(Task[P, C, R]):
    """A task that gets its job first. A plain call gives it one, too."""

    def __call__(self, job: TaskJob[Any] | None, /, *args: P.args, **kwargs: P.kwargs) -> C:  # type: ignore[override]
        """Call the plain function."""
        result: C = self.__wrapped__(job, *args, **kwargs)
        return result


class Decorator(Protocol):
    """What `task(...)` gives: makes a task of a function, or of a coroutine function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...


class BoundDecorator(Protocol):
    """As `Decorator`, for functions that get their job first."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskJob[Any], P], Coroutine[Any, Any, R]], /
    ) -> BoundTask[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskJob[Any], P], R], /) -> BoundTask[P, R, R]: ...


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[Any, Any, R], R]: ...
@overload
def task(function: Callable[P, R], /) -> Task[P, R, R]: ...
@overload
def task(*, bind: Literal[True], **options: Unpack[task_options.TaskOptions]) -> BoundDecorator: ...
@overload
def task(*, bind: Literal[False] = False, **options: Unpack[task_options.TaskOptions]) -> Decorator: ...
def task(function: Any = None, /, *, bind: bool = False, **options: Any) -> Any:
    """Make a task of a function at the first level of a module, or of a coroutine function.

        @task
        def clean() -> None: ...

        @task(queue="mail", requeue_times=3, backoff="exponential")
        def send(to: str, subject: str = "hi") -> int: ...

        send("a@b.c")  # still the plain function
        job = send.add("a@b.c", subject="x")

    Args:
        bind: the function gets its job first; its callers do not give it.
        options: see docs/tasks.md, and `options.TaskOptions`.
    Raises:
        ConfigurationException: it is no function that a worker can import by name, or an option is not accepted.
        TaskAlreadyDefined: another function has its name.
    """
    if function is None:
        return lambda function: _define(function, bind, options)
    return _define(function, bind, options)


def _define(function: Any, bind: bool, options: Mapping[str, Any]) -> Task[Any, Any, Any]:
    found: Task[Any, Any, Any] = (BoundTask if bind else Task)(function, bind, options)
    registry.add(found)
    return found


# --- Which functions can be tasks


def _check_function(function: Any) -> None:
    shown = getattr(function, "__qualname__", None) or repr(function)
    if not inspect.isfunction(function):
        kind = "a method" if isinstance(function, (staticmethod, classmethod)) else "none"
        raise ConfigurationException(f"A task must be a function; {shown} is {kind}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationException(f"A task must be a function that does something; {shown} is a generator function")


def _name_of(function: Any) -> str:
    """`module:qualname`.

    Raises:
        ConfigurationException: no module has a function under this name.
    """
    qualname = function.__qualname__
    if qualname == "<lambda>" or "<locals>" in qualname:
        what = "a lambda" if qualname.endswith("<lambda>") else "inside another function"
        raise ConfigurationException(
            f"The task {qualname} cannot be imported by its name, as it is {what}: define it at the first level of a "
            "module, or give it a `name` and see to it that workers define it, too"
        )
    if "." in qualname:
        raise ConfigurationException(f"The task {qualname} is a method: a task must be a function, outside of a class")
    return f"{_module_of(function)}:{qualname}"


def _module_of(function: Any) -> str:
    """The module that a worker imports: of a program that was started, the name that its file has as a module."""
    if function.__module__ != "__main__":
        return str(function.__module__)
    main: Any = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:  # python -m shop.mails
        return str(spec.name).removesuffix(".__main__")
    stem, _ = os.path.splitext(os.path.basename(getattr(main, "__file__", None) or ""))
    return stem if stem.isidentifier() else "__main__"


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not name.isprintable() or any(map(str.isspace, name)):
        raise ConfigurationException(f"Invalid name of a task: {name!r}: must be a text without spaces")
    return name


def _without_job(owner: str, signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in by_place:
        raise ConfigurationException(f"{owner}: with bind=True its first parameter gets the job: it has none")
    return signature.replace(parameters=parameters[1:])


class _Hint(str):
    """An annotation that is a text: shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _readable(signature: inspect.Signature) -> inspect.Signature:
    """The same, whose text is as in the source also with `from __future__ import annotations`."""

    def shown(hint: Any) -> Any:
        return _Hint(hint) if isinstance(hint, str) else hint

    parameters = [one.replace(annotation=shown(one.annotation)) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=shown(signature.return_annotation))
