"""The record of a task that was called: one class for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from .. import recipes, retries, serializers
from ..exceptions import TaskNotFound, WrongArguments
from ..fields import InstanceHashField
from ..models import Job
from ..retries import Retries
from .registry import KnownTask, describe, get_task, registry

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
    keep_success = "1d"
    keep_errors = "30d"

    _stored: tuple[str, str, str] | None = None

    # --- What is called

    def _read(self) -> tuple[str, str, str]:
        """The name of the task, the arguments, the serializer: read once, as none of them changes."""
        if self._stored is None:
            values = self._patiently(lambda client: self.hmget("task", "arguments", "serializer"), self.retry_for)
            self._stored = tuple(value or "" for value in values)  # type: ignore[assignment]
        assert self._stored is not None
        return self._stored

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return self._read()[0]

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

    # --- Its run

    def run(self, queue: Any) -> Any:
        """Call the task. Of a coroutine function that gives the coroutine, for the worker to await.

        Raises:
            TaskNotFound: the worker has no task of this name. WrongArguments: it takes others by now.
        """
        task = get_task(self.task_name)
        return task.call_for(self, *self._decoded())

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
