"""Calling tasks by name, also those whose code is not here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..exceptions import InvalidArgument, TaskNotFound
from . import options as task_options
from .calls import spec_of
from .models import TaskJob
from .registry import KnownTask, find_task, near

if TYPE_CHECKING:
    from typing_extensions import Unpack


def call(
    name: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = False,
    **options: Unpack[task_options.CallOptions],
) -> TaskJob[Any]:
    """Add a job that calls a task: `call("shop.mails:send", ["a@b.c"], {"subject": "x"}, queue="mail")`.

    What its definition says holds if it is in this process; else what the options say here, and for its runs the
    definition that the worker has.

    Args:
        verify: look first whether a worker has registered the task; without a `queue` it goes to the one of its
            definition then.
        options: as those of `Task.options`.
    Raises:
        TaskNotFound: with `verify`, nobody has registered it; the message has names that are near.
        WrongArguments, NotSerializable, TooLarge, InvalidArgument: nothing was written.
    """
    job: TaskJob[Any] = TaskJob.add_call(_spec(name, args, kwargs, verify, options))
    return job


async def acall(
    name: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = False,
    **options: Unpack[task_options.CallOptions],
) -> TaskJob[Any]:
    """As `call`, for a coroutine."""
    if verify:
        spec = await asyncio.to_thread(_spec, name, args, kwargs, verify, options)
    else:
        spec = _spec(name, args, kwargs, verify, options)
    job: TaskJob[Any] = await TaskJob.aadd_call(spec)
    return job


def _spec(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, verify: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise InvalidArgument("name", name, "the name of a task: module:function")
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise InvalidArgument("args", args, "a list or a tuple of arguments")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidArgument("kwargs", kwargs, "a mapping of arguments by name")
    found = task_options.of_call(options)
    if verify:
        known = check_known(name)
        found.setdefault("queue_name", known.queue)
    return spec_of(name, find_task(name), tuple(args), dict(kwargs or {}), found)


def check_known(name: str) -> KnownTask:
    """A task that a worker has registered.

    Raises:
        TaskNotFound: none has.
    """
    known = TaskJob.known_tasks()
    if name not in known:
        raise TaskNotFound(name, near(name, known), "no worker has registered it")
    return known[name]


def known_tasks() -> dict[str, KnownTask]:
    """The tasks that workers have registered, by name: with docstring, signature, queue and options."""
    return TaskJob.known_tasks()
