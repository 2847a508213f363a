"""Doing something to jobs: to those that are named, or to all that a filter finds.

Whatever concerns more than one says how many and which, and asks. What is done to all that a filter finds is an
operation, which goes on where it was when it is interrupted, even by `kill -9`: `--resume ID`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..exceptions import LimpydJobsException
from ..statuses import ENDS, STATUSES, Cancellation
from .common import FINE, PROGRAM, WRONG, Command, Duration, Given, Rate, joined
from .filters import QUEUES, STATUS_FILTER, filter_options, in_words, read_filter
from .output import clean, counted, print_json, print_text, progress, say

if TYPE_CHECKING:
    from ..admin import JobFilter, Operation

DONE = {
    "requeue": "requeued",
    "cancel": "canceled",
    "move": "moved",
    "delete": "deleted",
    "purge": "removed",
    "purge_errors": "removed",
}


# --- asking


YES = click.option("--yes", "is_answered", is_flag=True, help="Do not ask.")
DRY_RUN = click.option("--dry-run", "is_dry", is_flag=True, help="Say how many jobs it would concern, and do nothing.")


def ask(question: str, is_answered: bool) -> None:
    """Ask before something is done.

    Args:
        is_answered: `--yes` was given.
    Raises:
        UsageError: nobody is there to be asked.
        Exit: the answer is no.
    """
    if is_answered:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask at: give --yes.")
    if not click.confirm(question, err=True):
        say("Nothing was done.")
        raise click.exceptions.Exit(WRONG)


# --- doing it


@dataclass(frozen=True)
class Request:
    """What is asked for, whichever way the jobs are named.

    Attributes:
        kind: of the operation: `requeue`...
        idents: of the jobs, or their identifiers; empty: a filter says which.
        wanted: that filter.
        options: as the functions of `admin` take them.
        is_everything: `--all` was given.
    """

    kind: str
    idents: Sequence[str]
    wanted: JobFilter
    options: Mapping[str, Any]
    rate: float | None
    resume_id: str | None
    is_everything: bool
    is_answered: bool
    is_dry: bool

    def check(self) -> None:
        """Exactly one way of naming the jobs.

        Raises:
            UsageError: none, or several.
        """
        has_filter = self.is_everything or bool(in_words(self.wanted))
        ways = [bool(self.idents), has_filter, self.resume_id is not None]
        if sum(ways) != 1:
            reason = "Name the jobs one way" if any(ways) else "Say which jobs"
            raise click.UsageError(
                f"{reason}: by IDENT, by a filter like --queue (or --all for all of them), or by --resume."
            )


def job_command(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A sub-command that does something to jobs; the function makes of the values what `admin` takes as options.

    Args:
        options: of the sub-command itself.
    """

    def decorate(read_options: Callable[..., Mapping[str, Any]]) -> click.Command:
        kind = read_options.__name__

        def run(given: Given, **values: Any) -> int:
            wanted, resume_id = read_filter(values), values.pop("resume_id")
            common = {name: values.pop(name) for name in ("idents", "rate", "is_everything", "is_answered", "is_dry")}
            if resume_id is not None and any(value not in (None, False) for value in values.values()):
                raise click.UsageError("--resume goes on with what was asked for before: give no options of that.")
            options = {} if resume_id is not None else read_options(**values)
            request = Request(kind=kind, wanted=wanted, options=options, resume_id=resume_id, **common)
            request.check()
            return act_on_named(given, request) if request.idents else act_on_many(given, request)

        function: Any = click.pass_obj(run)
        for option in reversed((*options, *MANY)):
            function = option(function)
        return click.command(kind, cls=Command, help=read_options.__doc__)(function)

    return decorate


MANY = (
    click.argument("idents", nargs=-1, metavar="[IDENT]..."),
    filter_options(),
    click.option("--all", "is_everything", is_flag=True, help="All jobs that it can be done to."),
    click.option("--rate", type=Rate(), metavar="RATE", help="No more jobs in a time than this, like 50/s or 600/m."),
    click.option("--resume", "resume_id", metavar="ID", help="Go on with an operation that was interrupted."),
    YES,
    DRY_RUN,
)


def act_on_named(given: Given, request: Request) -> int:
    """Do it to each job that is named; what cannot be done to one does not keep it from the others."""
    from .. import admin

    act: Callable[..., Any] = getattr(admin, request.kind)
    question = f"{request.kind.capitalize()} {counted(len(request.idents), 'job')}?"
    scope = given.scope
    if len(request.idents) > 1 and not request.is_dry:
        ask(question, request.is_answered)
    done, failed = {}, {}
    for name in request.idents:
        try:
            ident = admin.get_job(name, **scope).ident
            answer = None if request.is_dry else act(ident, **request.options, **scope)
            if answer == Cancellation.ENDED:
                failed[name] = f"{ident} has ended already"
            else:
                done[ident] = DONE[request.kind] if answer is None else answer.value
        except LimpydJobsException as error:
            failed[name] = str(error)
    _report_named(given, request, done, failed)
    return WRONG if failed else FINE


def _report_named(given: Given, request: Request, done: Mapping[str, str], failed: Mapping[str, str]) -> None:
    if given.wants_json:
        print_json({"kind": request.kind, "dry_run": request.is_dry, "done": done, "failed": failed})
    else:
        for ident, became in done.items():
            print_text(f"{clean(ident)} {'would be ' if request.is_dry else ''}{became}")
    for reason in failed.values():
        say(f"{PROGRAM}: {clean(reason)}")


def act_on_many(given: Given, request: Request) -> int:
    """Do it to all that the filter finds, or to those that are left of an operation that was interrupted."""
    from .. import admin

    if request.resume_id is not None:
        return run_operation(given, _resumed(given, request.resume_id, request.kind), request)
    operation = admin.start_operation(request.kind, request.wanted, **request.options, **given.scope)
    return run_operation(given, operation, request)


def _resumed(given: Given, id: str, kind: str) -> Operation:
    from .. import admin

    operation = admin.resume_operation(id, **given.scope)
    if operation.kind.partition("_")[0] != kind:
        raise click.UsageError(f"The operation {id!r} is a {operation.kind}, not a {kind}.")
    return operation


def run_operation(given: Given, operation: Operation, request: Request) -> int:
    """Ask, then do it, with a bar that shows how far it is."""
    from .. import admin

    which = in_words(request.wanted)
    question = f"{request.kind.capitalize()} {_what(operation, operation.count)}" + (f" ({which})" if which else "")
    if request.is_dry or not operation.count:
        if request.resume_id is None:
            admin.drop_operation(operation.id, **given.scope)
        _report(given, operation, request.is_dry)
        return FINE
    if request.resume_id is None:
        try:
            ask(f"{question}?", request.is_answered)
        except BaseException:
            admin.drop_operation(operation.id, **given.scope)
            raise
    ended = _run(operation, request)
    _report(given, ended, False)
    return WRONG if ended.skipped else FINE


def _what(operation: Operation, count: int) -> str:
    return counted(count, "error" if operation.kind == "purge_errors" else "job")


def _run(operation: Operation, request: Request) -> Operation:
    way_on = f"{PROGRAM} {request.kind} --resume {operation.id}"
    say(f"Operation {operation.id}; if it is interrupted, go on with: {way_on}")
    came_to = operation.done + sum(operation.skipped.values())
    try:
        with progress(request.kind, operation.count) as advance:

            def show(done: int, count: int) -> None:
                nonlocal came_to
                came_to = done
                advance(done, count)

            return operation.run(request.rate, show)
    except BaseException:  # whatever it was: it is told of by who catches it
        say(f"Interrupted after {came_to:,} of {_what(operation, operation.count)}. Go on with: {way_on}")
        raise


def _report(given: Given, operation: Operation, is_dry: bool) -> None:
    if given.wants_json:
        print_json(
            {
                "operation": operation.id,
                "kind": operation.kind,
                "dry_run": is_dry,
                "count": operation.count,
                "done": operation.done,
                "skipped": operation.skipped,
            }
        )
        return
    done = DONE[operation.kind]
    if is_dry:
        print_text(f"{_what(operation, operation.count)} would be {done}")
        return
    print_text(f"{_what(operation, operation.done)} {done}")
    for reason, count in operation.skipped.items():
        say(f"{_what(operation, count)} skipped: {clean(reason)}")


# --- the sub-commands


@click.command(cls=Command)
@click.argument("job_class", metavar="CLASS")
@click.argument("identifier")
@click.option("--queue", metavar="NAME", help="Where it goes. [the queue of its class]")
@click.option("--priority", type=int, default=0, help="A higher one runs sooner. [0]")
@click.option("--delayed-for", type=Duration(), metavar="DURATION", help="It may start after this, like 10m.")
@click.option(
    "--delayed-until",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"]),
    metavar="TIME",
    help="It may start then: UTC, YYYY-MM-DD HH:MM:SS.",
)
@click.option("--prepend", is_flag=True, help="Before the others of its priority.")
@click.option("--field", "fields", multiple=True, metavar="NAME=VALUE", help="A further field of its class.")
@click.pass_obj
def add(
    given: Given,
    job_class: str,
    identifier: str,
    queue: str | None,
    priority: int,
    delayed_for: float | None,
    delayed_until: datetime | None,
    prepend: bool,
    fields: tuple[str, ...],
) -> None:
    """Add a job.

    CLASS is like my.module.MailJob; --pythonpath or --job-modules says that it may be imported. When the identifier is
    queued already, that job is answered.
    """
    from .. import admin

    values = dict(_read_field(text) for text in fields)
    ident = admin.add(
        job_class, identifier, queue, priority, delayed_for, delayed_until, prepend, values or None, **given.scope
    )
    if given.wants_json:
        print_json({"ident": ident})
    else:
        print_text(clean(ident))


def _read_field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="'--field'")
    return name, value


TO = click.option("--to", metavar="NAME", help="The queue to put them in. [the one that each is, or was, in]")
PRIORITY = click.option("--priority", type=int, help="Their priority from now on. [as it is]")


@job_command(
    STATUS_FILTER,
    TO,
    PRIORITY,
    click.option("--delayed-for", type=Duration(), metavar="DURATION", help="They may start after this, like 10m."),
)
def requeue(to: str | None, priority: int | None, delayed_for: float | None) -> Mapping[str, Any]:
    """Put jobs that failed back in a queue.

    One by its IDENT (or identifier), or all that the filter finds: each exactly once, also when it is interrupted and
    resumed. Jobs that ended otherwise can be meant, too: --status says so.
    """
    return {"queue": to, "priority": priority, "delayed_for": delayed_for}


@job_command(STATUS_FILTER, click.option("--reason", metavar="TEXT", help="Kept as its cancel_reason."))
def cancel(reason: str | None) -> Mapping[str, Any]:
    """See to it that jobs are not run.

    Those that wait or are delayed are canceled at once. One that runs is asked to end.
    """
    return {"reason": reason}


@job_command(STATUS_FILTER, TO, PRIORITY)
def move(to: str | None, priority: int | None) -> Mapping[str, Any]:
    """Put jobs in another queue, or at another priority.

    Those that wait or are delayed; when they may start stays as it is.
    """
    if to is None and priority is None:
        raise click.UsageError("Say where they go: --to NAME, --priority N, or both.")
    return {"queue": to, "priority": priority}


@job_command(
    STATUS_FILTER,
    click.option("--forced", "is_forced", is_flag=True, help="Also jobs that run; what they do is not recorded then."),
)
def delete(is_forced: bool) -> Mapping[str, Any]:
    """Remove jobs with all that belongs to them.

    Their places, their entries in histories, their errors.
    """
    return {"is_forced": is_forced}


@click.command(cls=Command)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(["success", "error", "canceled"]),
    multiple=True,
    help="Only jobs that ended so; may be given many times. [all three]",
)
@click.option("--older-than", type=Duration(), metavar="DURATION", help="Jobs that ended this long ago, like 7d.")
@QUEUES
@click.option("--class", "job_class", metavar="NAME", help="Of this class: my.module.MailJob, or MailJob.")
@click.option("--errors", "only_errors", is_flag=True, help="Remove Error records of this age; their jobs stay.")
@click.option("--rate", type=Rate(), metavar="RATE", help="No more in a time than this, like 50/s or 600/m.")
@click.option("--resume", "resume_id", metavar="ID", help="Go on with a purge that was interrupted.")
@YES
@DRY_RUN
@click.pass_obj
def purge(
    given: Given,
    statuses: tuple[str, ...],
    older_than: float | None,
    queues: tuple[tuple[str, ...], ...],
    job_class: str | None,
    only_errors: bool,
    rate: float | None,
    resume_id: str | None,
    is_answered: bool,
    is_dry: bool,
) -> int:
    """Remove jobs that have ended, by status and age.

    With all that belongs to them.

    For a retention that goes on by itself see --keep-success and --keep-errors of the worker.
    """
    from .. import admin

    if (older_than is None) == (resume_id is None):
        raise click.UsageError("Say how old: --older-than DURATION (0 for all); or give --resume.")
    letters = tuple(STATUSES[name.upper()] for name in statuses) or ENDS
    wanted = admin.JobFilter(queues=joined(queues), job_class=job_class)
    if resume_id is not None:
        operation = _resumed(given, resume_id, "purge")
    elif only_errors:
        errors = admin.ErrorFilter(queues=wanted.queues, job_class=job_class)
        operation = admin.start_purge_of_errors(older_than or 0, errors, **given.scope)
    else:
        operation = admin.start_purge(letters, older_than or 0, wanted, **given.scope)
    shown = wanted if only_errors else replace(wanted, statuses=letters)
    request = Request("purge", (), shown, {}, rate, resume_id, False, is_answered, is_dry)
    return run_operation(given, operation, request)


COMMANDS = (add, requeue, cancel, move, delete, purge)
