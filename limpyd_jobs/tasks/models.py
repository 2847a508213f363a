"""The record of a task that was called: one class for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from .. import outcomes, recipes, retries, serializers
from ..exceptions import TaskNotFound, WrongArguments
from ..fields import InstanceHashField
from ..models import NOT_GIVEN, Job
from ..retries import Retries
from .registry import KnownTask, describe, get_task, registry

D = TypeVar("D")
R = TypeVar("R")

# What another try does not mend, unless somebody says that it does: by `retry_on`.
NOT_RETRIED = (TaskNotFound, WrongArguments)


class TaskJob(Job, Generic[R]):
    """A call of a task: which one, and its arguments. What the task returns is an `R`.

    `TaskJob.collection(task="shop.mails:send")` are those of one task, as is `send.jobs()`.
    """

    task = InstanceHashField(indexable=True)  # its name
    arguments = InstanceHashField()  # encoded, `[[...], {...}]`
    serializer = InstanceHashField()  # what has encoded them, and encodes the result; nothing for JSON

    queue_name = "default"
    _task_field = "task"
    keep_success = "1d"
    keep_errors = "30d"

    _stored: tuple[str, str, str] | None = None
    _known_name: str | None = None  # of its task, as far as whoever has added it knows

    @classmethod
    def add_call(cls, spec: Mapping[str, Any]) -> Any:
        """Add a job by the arguments of `add_job`."""
        job = cls.add_job(**spec)
        job._known_name = spec["task"]
        return job

    @classmethod
    async def aadd_call(cls, spec: Mapping[str, Any]) -> Any:
        """As `add_call`, for a coroutine."""
        job = await cls.aadd_job(**spec)
        job._known_name = spec["task"]
        return job

    # --- What is called

    def _read(self) -> tuple[str, str, str]:
        """The name of the task, the arguments, the serializer: read once, as none changes in a job that has begun."""
        if self._stored is None:
            values = self._patiently(lambda client: self.hmget("task", "arguments", "serializer"), self.retry_for)
            self._stored = tuple(value or "" for value in values)  # type: ignore[assignment]
        assert self._stored is not None
        return self._stored

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return self._read()[0] if self._known_name is None else self._known_name

    @property
    def args(self) -> list[Any]:
        """The arguments by place, as they were stored."""
        return self._decoded()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name, as they were stored."""
        return self._decoded()[1]

    def _decoded(self) -> tuple[list[Any], dict[str, Any]]:
        _, text, serializer = self._read()
        return serializers.decode_arguments(serializers.get(serializer or serializers.DEFAULT), text or "[[],{}]")

    def _find_task(self) -> Any:
        """The task, if this process has it or may import it; else None."""
        try:
            return get_task(self.task_name)
        except TaskNotFound:
            return None

    def _next_queue_name(self, queue_name: str | None) -> str:
        """Without a name, of the queue that it was in last: those of the calls of a task are not those of the class."""
        return self._get_queue_name(self._last_queue_name() if queue_name is None else queue_name)

    def _last_queue_name(self) -> str | None:
        key = self._patiently(lambda client: self.queue_key.hget(), self.retry_for)
        found = self._patiently(lambda client: client.hget(f"{key}:hash", "name"), self.retry_for) if key else None
        task = None if found else self._find_task()
        return found or (None if task is None else task.queue_name)

    # --- Its run

    def run(self, queue: Any) -> Any:
        """Call the task. Of a coroutine function that gives the coroutine, for the worker to await.

        Raises:
            TaskNotFound: the worker has no task of this name. WrongArguments: it takes others by now.
        """
        return get_task(self.task_name).call_for(self, *self._decoded())

    @property
    def _is_coroutine(self) -> bool:  # type: ignore[override]
        task = self._find_task()
        return task is not None and task.is_coroutine

    def _own_isolate(self) -> bool | None:
        task = self._find_task()
        said = None if task is None else task.task_options.get("isolate")
        return super()._own_isolate() if said is None else said

    @property
    def _says_how_to_run(self) -> bool:
        return True

    def _run_options(self) -> Mapping[str, Any]:
        """What the call says; then what its task says, in the code of this process; then the class."""
        task = self._find_task()
        of_task = {} if task is None else task.run_options
        model: Any = type(self)
        return {**recipes.class_run_options(model), **of_task, **self._own_run_options()}

    def effective_retries(self, default: Retries) -> Retries:
        """As that of a Job; but what another try does not mend is not tried again, unless `retry_on` has it."""
        found = super().effective_retries(default)
        wanted = found.retry_on or ()
        left = tuple(name for kind in NOT_RETRIED if (name := retries.name_of(kind)) not in wanted)
        return replace(found, no_retry_on=(*(found.no_retry_on or ()), *left))

    # --- Its result

    def _result_text(self, value: Any) -> str:
        return outcomes.result_text(value, self._read()[2] or serializers.DEFAULT)

    @overload  # type: ignore[override]  # of a Job it is of any type
    def get_result(self, *, annotation: Any = None, error_model: Any = None) -> R: ...
    @overload
    def get_result(self, default: D, annotation: Any = None, error_model: Any = None) -> R | D: ...
    def get_result(self, default: Any = NOT_GIVEN, annotation: Any = None, error_model: Any = None) -> Any:
        """What the task returned, if that is saved; arguments and errors as `Job.get_result`.

        Args:
            annotation: a type hint; that of the function when None, if this process has it.
        """
        return super().get_result(default, self._result_hint(annotation), error_model)

    @overload  # type: ignore[override]
    async def aget_result(self, *, annotation: Any = None, error_model: Any = None) -> R: ...
    @overload
    async def aget_result(self, default: D, annotation: Any = None, error_model: Any = None) -> R | D: ...
    async def aget_result(self, default: Any = NOT_GIVEN, annotation: Any = None, error_model: Any = None) -> Any:
        """As `get_result`, for a coroutine."""
        if annotation is None and self._known_name is None and self._stored is None:
            annotation = await asyncio.to_thread(self._result_hint, None)
        return await super().aget_result(default, self._result_hint(annotation), error_model)

    def _result_hint(self, given: Any) -> Any:
        if given is not None:
            return given
        task = self._find_task()
        return Any if task is None else task.result_hint

    # --- For producers without the code

    @classmethod
    def worker_started(cls) -> None:
        """Register the tasks of this process in `jobs:tasks`."""
        if registry:
            cls.register_tasks([describe(task) for task in registry.values()])

    @classmethod
    def register_tasks(cls, tasks: list[KnownTask]) -> None:
        """Write down which tasks there are, for `known_tasks` and `verify`."""
        values = {task.name: task.to_json() for task in tasks}
        cls.database.connection.hset(cls._tasks_key(), mapping=values)

    @classmethod
    def known_tasks(cls) -> dict[str, KnownTask]:
        """The tasks that workers have registered, by name."""
        found = cls.database.connection.hgetall(cls._tasks_key())
        return {name: KnownTask.read(name, found[name]) for name in sorted(found)}

    @classmethod
    def _tasks_key(cls) -> str:
        return f"{cls.namespace}:tasks"
