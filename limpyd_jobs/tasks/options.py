"""The options of tasks and of their calls: which there are, and what is accepted.

They have the names that `Job.add_job`, classes of jobs and workers have for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypedDict

from .. import recipes, run_options, serializers, uniqueness
from ..additions import idents_of
from ..exceptions import ConfigurationException, InvalidArgument
from ..models import _seconds
from ..utils import compute_delayed_until


class CallOptions(TypedDict, total=False):
    """What may be said for one call. `queue` and `timeout` are short for `queue_name` and `job_timeout`."""

    queue: str
    queue_name: str
    priority: int
    prepend: bool
    delayed_for: float | timedelta
    delayed_until: datetime
    retry_for: float
    identifier: str | Callable[..., str]
    unique: str
    serializer: str
    max_size: int
    timeout: float | timedelta
    job_timeout: float | timedelta
    expires: float | timedelta | datetime
    requeue_times: int
    requeue_delay_delta: float | timedelta
    backoff: Any
    retry_on: Any
    no_retry_on: Any
    save_result: Any
    keep_success: Any
    keep_errors: Any
    unique_for: float | timedelta
    if_queued: str
    max_concurrency: int
    rate_limit: str
    limit_key: str | Callable[..., str]
    after: Any
    if_parent_fails: str


class TaskOptions(CallOptions, total=False):
    """What may be said of a task: also its name, and what only a worker looks at."""

    name: str
    isolate: bool


EXCLUSIVE = (("identifier", "unique"), ("delayed_for", "delayed_until"))
ALIASES = {"queue": "queue_name", "timeout": "job_timeout"}
NOT_OF_A_TASK = ("delayed_until", "after")  # what is said of a single job
OWN = ("identifier", "unique", "serializer", "max_size", "name", "isolate")  # these are no arguments of `add_job`
# What a task says of these is not stored with each call: the worker looks it up, in the code that it has. How long a
# record is kept is none of them: the scripts that end a job decide that, also without a worker.
LOOKED_UP = (
    "job_timeout",
    "requeue_times",
    "requeue_delay_delta",
    "backoff",
    "retry_on",
    "no_retry_on",
    "save_result",
)
OF_THE_ARGUMENTS = ("identifier", "limit_key")  # these may be templates of them, or functions


def of_call(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call, under their long names and checked; None says nothing.

    Raises:
        InvalidArgument: an option that there is not, or a value that is not accepted.
    """
    return _checked(given, CallOptions.__annotations__)


def of_step(former: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call, as `of_call`, and those that were said before: what is said last wins.

    Raises:
        InvalidArgument: as `of_call`.
    """
    found = of_call(given)
    excluded = {name for pair in EXCLUSIVE for name in pair if not found.keys().isdisjoint(pair)}
    return {**{name: value for name, value in former.items() if name not in excluded}, **found}


def of_task(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task, as `of_call`.

    Args:
        owner: the task, for errors.
    Raises:
        ConfigurationException: an option that there is not, or a value that is not accepted.
    """
    names = TaskOptions.__annotations__.keys() - set(NOT_OF_A_TASK)
    try:
        return _checked(given, names)
    except InvalidArgument as error:
        raise ConfigurationException(f"{owner}: {error}") from error


def _checked(given: Mapping[str, Any], accepted: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in accepted:
            near = get_close_matches(name, accepted, 1)
            hint = f": did you mean {near[0]}?" if near else f": {', '.join(sorted(accepted))}"
            raise InvalidArgument(name, value, f"left out: there is no such option here{hint}")
        long = ALIASES.get(name, name)
        if long in found:
            short = next(one for one in ALIASES if ALIASES[one] == long)
            raise InvalidArgument(name, value, f"given once: {short} is short for {long}")
        if value is not None:
            _check(long, value)
            found[long] = idents_of(value) if long == "after" else value  # an iterator can be read once
    for one, other in EXCLUSIVE:
        if one in found and other in found:
            raise InvalidArgument(one, found[one], f"given alone: {one} and {other} are exclusive")
    return found


def _check(name: str, value: Any) -> None:
    if name in CHECKS:
        CHECKS[name](value)
    elif name in run_options.NAMES:
        run_options.check(name, value)
    elif name in uniqueness.NAMES:
        uniqueness.check(name, value)


def _is_bool(name: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, bool):
            raise InvalidArgument(name, value, "True or False")

    return check


def _check_unique(value: Any) -> None:
    if value != "args":
        raise InvalidArgument("unique", value, '"args"')


def _is_of_arguments(name: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not callable(value) and (not isinstance(value, str) or not value):
            raise InvalidArgument(name, value, "a text, a template like user:{id}, or a function of the arguments")

    return check


def _check_size(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument("max_size", value, "a number of bytes, 1 or more")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue_name": recipes.to_queue_name,
    "priority": recipes.to_priority,
    "prepend": _is_bool("prepend"),
    "isolate": _is_bool("isolate"),
    "delayed_for": lambda value: compute_delayed_until(delayed_for=value),
    "delayed_until": lambda value: compute_delayed_until(delayed_until=value),
    **{name: _is_of_arguments(name) for name in OF_THE_ARGUMENTS},
    "unique": _check_unique,
    "retry_for": lambda value: _seconds("retry_for", value),
    "serializer": serializers.get,
    "max_size": _check_size,
}


def of_runs(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of a task say of its runs, for a worker: checked, and in uniform kinds."""
    return {name: run_options.check(name, options[name]) for name in LOOKED_UP if name in options}


def of_adding(of_task: Mapping[str, Any], of_call: Mapping[str, Any]) -> dict[str, Any]:
    """The options that go to `add_job`: those of the call, and of the task what a worker does not look up."""
    found = {name: value for name, value in of_task.items() if name not in (*OWN, *LOOKED_UP)}
    if of_call:
        if "delayed_until" in of_call:
            found.pop("delayed_for", None)
        found |= {name: value for name, value in of_call.items() if name not in OWN}
    return found
