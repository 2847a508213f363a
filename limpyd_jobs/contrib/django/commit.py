"""Jobs that are added when a transaction is committed: a worker must not look for rows that are not there yet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec

from django.db import transaction

from ... import recipes
from ...additions import OPTIONS, Chunk, to_terms
from ...exceptions import InvalidArgument
from ...models import Job
from ...tasks.definition import Addable
from ...tasks.models import TaskJob

P = ParamSpec("P")


@dataclass(frozen=True)
class OnCommit:
    """Adds jobs on commit: `OnCommit(using="shop", robust=True)(send.add, "a@b.c")`; `on_commit` is `OnCommit()`.

    Attributes:
        using: of which database, by its alias; Django's default one when None.
        robust: an error of Redis, after the commit, is logged by Django and not raised.
    """

    using: str | None = None
    robust: bool = False

    def __call__(self, add: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `add` with these arguments when the transaction is committed; at once when there is none.

        What is rolled back adds nothing. There is no job yet, so there is nothing to return. The arguments are checked
        now, and those of a task are stored as they are now. `delayed_for` counts from the commit.

        Args:
            add: of a task or a class of jobs (`send.add`, `MailJob.add_job`), or anything else to be called:
                `add_many`, `Workflow.add`...
        Raises:
            As `add`, where the arguments are not accepted: then the transaction can still be rolled back.
        """
        if inspect.iscoroutinefunction(add):
            raise InvalidArgument("add", add, "a plain function, as add_job: nobody would await this one")
        prepared = _prepared(add, args, kwargs)

        def add_on_commit() -> None:  # a function, as Django logs its name
            prepared()

        transaction.on_commit(add_on_commit, using=self.using, robust=self.robust)


on_commit = OnCommit()
"""Adds a job when the transaction of the default database is committed: `on_commit(send.add, "a@b.c")`."""


def _prepared(add: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """What remains to be done on commit; the arguments are checked where they are those of a job."""
    owner, function = getattr(add, "__self__", None), getattr(add, "__func__", None)
    if isinstance(owner, Addable) and function is Addable.add:
        return partial(TaskJob.add_call, owner._spec(args, kwargs))
    if function is getattr(Job.add_job, "__func__", None):
        _check_job(owner, inspect.signature(add).bind(*args, **kwargs))
    return partial(add, *args, **kwargs)


def _check_job(model: Any, bound: inspect.BoundArguments) -> None:
    """Raise what `add_job` would raise for its arguments; nothing is written."""
    bound.apply_defaults()
    given = dict(bound.arguments)
    given.update(given.pop("fields_if_new"))
    del given["retry_for"]
    options = {name: given.pop(name) for name in OPTIONS}
    way = model._known_way(options["queue_model"], options["queue_name"], options["priority"])
    identifier = recipes.to_text("identifier", given.pop("identifier"))
    Chunk().add(to_terms(way, options, given), identifier)
