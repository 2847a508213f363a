"""What Sentry learns of jobs that fail, in a process whose program uses it.

Nothing here imports it: without it, or before `sentry_sdk.init`, there is nothing to do. A job is in a scope of its
own. What it raises is one event, with tags of the job; the line of the log about it, of which Sentry would make another
one, is none. Nor is that about a signal: to be stopped is no error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..exceptions import Retry
from ..instruments import Instrument
from .logs import FACTS, facts_of

FLUSH_SECONDS = 2.0  # of the process of an isolated job, at its end
MODULE = "sentry_sdk"
OF_LINES = ("queue", "job", "identifier")  # the tags of an event that a line of the log has become
PACKAGE = __name__.partition(".")[0]

_known: set[int] = set()  # the modules that were told to look at lines of the log, by their `id`


class Reports(Instrument):
    """Reports what a job raises, where it runs: in the process of an isolated job, too."""

    @contextmanager
    def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
        """See Instrument."""
        sentry = sys.modules[MODULE]
        is_here = worker._is_this_process  # else it is the process of an isolated job, which ends with it
        with sentry.isolation_scope() as scope:
            _describe(scope, job)
            try:
                yield
            except BaseException as error:
                if not isinstance(error, Retry) and not (is_here and worker._must_not_be_caught(error)):
                    _report(error)
                raise
            finally:
                if not is_here:
                    sentry.flush(FLUSH_SECONDS)


class OutsideReports(Instrument):
    """Reports what becomes of the process of an isolated job: its time is over, or it has died."""

    stays_outside = True

    def around(self, job: Any, queue: Any, worker: Any) -> AbstractContextManager[Any]:
        """See Instrument."""
        return self._around_isolated(job, worker) if worker._is_isolated(job) else nullcontext()

    @contextmanager
    def _around_isolated(self, job: Any, worker: Any) -> Iterator[None]:
        with sys.modules[MODULE].isolation_scope() as scope:
            _describe(scope, job)
            try:
                yield
            except BaseException as error:
                if job._trace is None and not worker._must_not_be_caught(error):  # else it was reported there
                    _report(error)
                raise


INSTRUMENTS = (OutsideReports(), Reports())


def sentry_instruments() -> Sequence[Instrument]:
    """Those for Sentry, if the program has it, and has told it where to report to."""
    return INSTRUMENTS if look_at_lines() else ()


def look_at_lines() -> bool:
    """Look at the lines of the log of which Sentry makes events from now on, if the program uses it; does it?"""
    sentry: Any = sys.modules.get(MODULE)
    if not hasattr(sentry, "isolation_scope") or not sentry.get_client().is_active():  # the first came with version 2
        return False
    if id(sentry) not in _known:
        _known.add(id(sentry))
        sentry.scope.add_global_event_processor(_look_at_line)
    return True


def _describe(scope: Any, job: Any) -> None:
    scope.clear_breadcrumbs()
    facts, model_repr = facts_of(job), job.get_model_repr()
    task = getattr(job, "task_name", None)
    scope.set_transaction_name(task if isinstance(task, str) else model_repr, source="task")
    tags = {**facts, "job_class": model_repr, "task": task if isinstance(task, str) else None}
    for name, value in tags.items():
        if value is not None:
            scope.set_tag(name, value)
    scope.add_event_processor(_without_our_variables)
    if isinstance(task, str) and _may_send_arguments():
        scope.set_context("arguments", {"args": job.args, "kwargs": job.kwargs})


def _may_send_arguments() -> bool:
    sentry: Any = sys.modules[MODULE]
    said = sentry.get_client().options.get("data_collection")  # newer versions have it instead of `send_default_pii`
    if isinstance(said, dict) and said.get("provided_by_user"):
        return bool(said.get("queues"))
    return bool(sentry.scope.should_send_default_pii())


def _report(error: BaseException) -> None:
    sentry: Any = sys.modules[MODULE]
    mechanism = {"type": PACKAGE, "handled": False}
    options = sentry.get_client().options
    event, hint = sentry.utils.event_from_exception(error, client_options=options, mechanism=mechanism)
    sentry.capture_event(event, hint=hint)


def _look_at_line(event: Any, hint: Any) -> Any:
    """Let an event of a line of the log say which job it is about; let there be none of one that is no news."""
    facts = getattr((hint or {}).get("log_record"), FACTS, None) or {}
    is_reported = "is_requeued" in facts and facts["error"] != Retry.__name__  # as what the job has raised
    if is_reported or "signal" in facts:
        return None
    if "message" in facts:  # else all lines would be of one group, by the text `[%s] %s`
        event["logentry"] = {"message": facts["message"]}
        event["tags"] = {**{name: facts[name] for name in OF_LINES if facts.get(name)}, **(event.get("tags") or {})}
    return event


def _without_our_variables(event: Any, hint: Any) -> Any:
    """Of the local variables in a traceback leave those of the program: ours hold the arguments of tasks."""
    for value in (event.get("exception") or {}).get("values") or ():
        for frame in (value.get("stacktrace") or {}).get("frames") or ():
            if str(frame.get("module", "")).partition(".")[0] == PACKAGE:
                frame.pop("vars", None)
    return event
