"""What is queued, what runs, what failed, and why: nothing here changes anything."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .common import Command, Given, Moment, Whole, joined
from .filters import QUEUES, STATUS_FILTER, filter_options, read_filter
from .output import (
    GAP,
    READABLE,
    Column,
    clean,
    clean_lines,
    is_drawn_on,
    make_console,
    print_json,
    print_json_list,
    print_table,
    print_text,
    say,
    show_age,
)
from .rows import (
    ERROR_COLUMNS,
    GROUP_COLUMNS,
    JOB_COLUMNS,
    QUEUE_COLUMNS,
    WORKER_COLUMNS,
    error_row,
    group_row,
    job_json,
    job_row,
    moment,
    queue_row,
    status_word,
    trend,
    worker_row,
)

if TYPE_CHECKING:
    from ..admin import ErrorFilter, ErrorRecord, JobDetails, JobRecord, Page, Relative

LARGEST_PAGE = 1000
BAR_WIDTH = 40


# --- status


@click.command(cls=Command)
@QUEUES
@click.option(
    "--watch",
    is_flag=False,
    flag_value="2",
    type=click.FloatRange(0.1, 3600),
    metavar="[SECONDS]",
    help="Show it on the whole screen, and again every 2 seconds, or as often as given; q ends it.",
)
@click.pass_obj
def status(given: Given, queues: tuple[tuple[str, ...], ...], watch: float | None) -> None:
    """What is queued and what runs, on one screen.

    The rates are of the last five minutes, of all queues of the name; "oldest" is how long the first job has waited.
    """
    from .. import admin

    names = joined(queues)
    if watch is not None:
        from .watching import watch as watch_status  # a terminal's: termios is not everywhere

        if given.wants_json:
            raise click.UsageError("--watch and --json exclude each other.")
        watch_status(given, names, watch)
        return
    found = admin.status(names, **given.scope)
    if given.wants_json:
        print_json(found)
        return
    print_table(QUEUE_COLUMNS, map(queue_row, found.queues))
    print_text("")
    print_table(WORKER_COLUMNS, map(worker_row, found.workers))


# --- jobs


PAGING = (
    click.option("--limit", type=Whole(1, LARGEST_PAGE), default=50, help="How many on a page. [50]"),
    click.option("--after", metavar="NEXT", help="The page that begins there: what the page before has told as next."),
    click.option("--all", "is_everything", is_flag=True, help="All of them, rather than a page."),
)


def paged(function: Any) -> Any:
    """The options of what comes in pages."""
    for option in reversed(PAGING):
        function = option(function)
    return function


def _tell_of_next(page: Page[Any]) -> None:
    if page.next is not None:
        say(f"There are more: --after={page.next}")


@click.command(cls=Command)
@filter_options(STATUS_FILTER)
@paged
@click.option("--count", "only_count", is_flag=True, help="Only how many there are.")
@click.pass_obj
def jobs(given: Given, /, limit: int, after: str | None, is_everything: bool, only_count: bool, **values: Any) -> None:
    """Find jobs, the newest first."""
    from .. import admin

    wanted = read_filter(values)
    if only_count:
        count = admin.count_jobs(wanted, **given.scope)
        print_json({"count": count}) if given.wants_json else print_text(str(count))
        return
    page: Page[JobRecord] = admin.Page([])
    found: Iterable[JobRecord]
    if is_everything:
        found = admin.each_job(wanted, **given.scope)
    else:
        page = admin.find_jobs(wanted, limit, after, **given.scope)
        found = page.items
    if given.wants_json:
        print_json_list("jobs", map(job_json, found), page.next)
        return
    print_table(JOB_COLUMNS, map(job_row, found))
    _tell_of_next(page)


# --- show


@click.command(cls=Command)
@click.argument("ident")
@click.pass_obj
def show(given: Given, ident: str) -> None:
    """All that is known of a job.

    IDENT is like my.module.MailJob:7; its primary key alone, or its identifier, will do: then it is the newest.
    """
    from .. import admin

    details = admin.show(ident, **given.scope)
    if given.wants_json:
        print_json({**asdict(details), "record": job_json(details.record)})
        return
    for title, text in _parts_of(details):
        print_text(f"{title}", "bold")
        print_text(text + "\n")


def _parts_of(details: JobDetails) -> Iterable[tuple[str, str]]:
    """What is said of a job, under titles."""
    job = details.record
    yield clean(job.ident), _lines(_facts_of(details))
    yield "History", _lines((moment(one.time) or "at some time", f"{one.event} {one.text}") for one in details.history)
    yield "Fields", _lines(sorted(details.fields.items()))
    for title, jobs_of in (
        ("Comes after", details.parents),
        ("Waits for", details.waits_for),
        ("Children", details.children),
    ):
        if jobs_of:
            yield title, _lines((one.ident, _relative(one)) for one in jobs_of)
    for error in details.errors:
        title = f"Error {error.pk}, {moment(error.date_time)}: {error.type}" + (
            f" ({error.code})" if error.code else ""
        )
        yield clean(title), "\n".join(filter(None, [f"  {clean(error.message)}", _traceback(error)]))


def _facts_of(details: JobDetails) -> Iterable[tuple[str, Any]]:
    job = details.record
    yield "identifier", job.identifier
    yield "status", status_word(job.status)
    yield "queue", job.queue
    yield "priority", job.priority
    yield "tries", job.tries
    if job.task:
        yield "task", job.task
    if details.lease:
        yield "held by", details.lease.worker or "a process that puts it in its queue"
        yield "lease ends", f"in {details.lease.seconds:.0f} seconds, unless it is renewed"
    if details.progress:
        percent = "" if details.progress.percent is None else f"{details.progress.percent:g}% "
        yield "progress", f"{percent}{details.progress.note or ''}"
    if details.result:
        fault = f": {details.result.fault}" if details.result.fault else ""
        yield "result", details.result.text or f"none could be stored{fault}"
    if job.fault:
        yield "fault", job.fault


def _relative(one: Relative) -> str:
    state = status_word(one.status) if one.status else "its record is gone"
    return f"{state} {one.identifier or ''}"


def _traceback(error: ErrorRecord) -> str:
    return "\n".join(f"  {line}" for line in clean_lines(error.traceback or "").splitlines())


def _lines(pairs: Iterable[tuple[str, Any]]) -> str:
    cleaned = [(clean(name), clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in cleaned), default=0)
    return "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in cleaned)


# --- errors


@click.command(cls=Command)
@QUEUES
@click.option("--class", "job_class", metavar="NAME", help="Of jobs of this class: my.module.MailJob, or MailJob.")
@click.option("--type", metavar="NAME", help="Of this class of exceptions, like ValueError.")
@click.option("--code", metavar="CODE", help="With this code.")
@click.option("--identifier", metavar="TEXT", help="Of jobs with this identifier; may hold * and ?.")
@click.option("--since", type=Moment(), metavar="TIME", help="Not before: UTC, or how long ago, like 2h or 7d.")
@click.option("--until", type=Moment(), metavar="TIME", help="Before this.")
@paged
@click.option("--groups", is_flag=True, help="By class, code and place of the raise: count, first and last, trend.")
@click.option("--by", type=click.Choice(["type", "queue", "hour"]), help="How many there are of each.")
@click.option("--csv", "wants_csv", is_flag=True, help="As CSV; without --groups and --by: all, with their tracebacks.")
@click.pass_obj
def errors(
    given: Given,
    /,
    queues: tuple[tuple[str, ...], ...],
    limit: int,
    after: str | None,
    is_everything: bool,
    groups: bool,
    by: str | None,
    wants_csv: bool,
    **values: Any,
) -> None:
    """Find errors, the newest first; or group and count them."""
    from .. import admin

    if sum([groups, by is not None]) > 1 or (wants_csv and given.wants_json):
        raise click.UsageError("Only one of --groups and --by, and of --csv and --json, can be given.")
    wanted = admin.ErrorFilter(queues=joined(queues), **values)
    if groups:
        _print_groups(given, wanted, wants_csv)
    elif by is not None:
        _print_counts(given, wanted, by, wants_csv)
    elif is_everything or wants_csv:
        _print_errors(given, admin.each_error(wanted, **given.scope), None, wants_csv)
    else:
        page = admin.find_errors(wanted, limit, after, **given.scope)
        _print_errors(given, page.items, page.next, wants_csv)
        if not given.wants_json:
            _tell_of_next(page)


def _print_errors(given: Given, found: Iterable[ErrorRecord], following: str | None, wants_csv: bool) -> None:
    if given.wants_json:
        print_json_list("errors", found, following)
    elif wants_csv:
        names = ["pk", "date_time", "type", "code", "message", "queue", "identifier", "job", "traceback"]
        _print_csv(names, ([getattr(error, name) for name in names] for error in found))
    else:
        print_table(ERROR_COLUMNS, map(error_row, found))


def _print_groups(given: Given, wanted: ErrorFilter, wants_csv: bool) -> None:
    from .. import admin

    found = admin.group_errors(wanted, **given.scope)
    if given.wants_json:
        print_json({"groups": [{**asdict(group), "trend": trend(group)} for group in found]})
    elif wants_csv:
        _print_csv([column.title for column in GROUP_COLUMNS], map(group_row, found))
    else:
        print_table(GROUP_COLUMNS, map(group_row, found))


def _print_counts(given: Given, wanted: ErrorFilter, by: str, wants_csv: bool) -> None:
    from .. import admin

    found = admin.count_errors(wanted, by, **given.scope)
    if given.wants_json:
        print_json({"by": by, "counts": [{by: name, "count": count} for name, count in found]})
    elif wants_csv:
        _print_csv([by, "count"], found)
    else:
        columns = (Column(by, shrinks=True), Column("count", is_number=True), Column("", style=lambda text: "red"))
        print_table(columns, _histogram(found, _bar_width(found)))


def _bar_width(counts: Sequence[tuple[str, int]]) -> int:
    """Of the longest bar: what a terminal leaves beside the names, of which as much as can be is to be read."""
    if not is_drawn_on(sys.stdout):
        return BAR_WIDTH
    names, numbers = (max((len(str(one[place])) for one in counts), default=0) for place in (0, 1))
    room = make_console().width - min(names, READABLE) - max(numbers, len("count")) - 2 * GAP
    return max(min(BAR_WIDTH, room), 1)


def _histogram(counts: Sequence[tuple[str, int]], width: int) -> Iterable[tuple[Any, ...]]:
    """The counts, each with a bar; the longest is as wide."""
    largest = max((count for _, count in counts), default=1)
    return ((name, count, "#" * max(round(width * count / largest), 1)) for name, count in counts)


def _print_csv(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)


# --- explain


@click.command(cls=Command)
@click.argument("ident")
@click.pass_obj
def explain(given: Given, ident: str) -> None:
    """Why a job is not running, in one sentence, with the evidence.

    IDENT is as for show.
    """
    from .. import admin

    found = admin.explain(ident, **given.scope)
    if given.wants_json:
        print_json(found)
        return
    print_text(clean(found.sentence), "bold")
    rows: list[tuple[str, Any]] = [("reason", found.reason)]
    if found.starts_in is not None:
        rows.append(("starts in", f"about {show_age(found.starts_in)}"))
    print_text(_lines([*rows, *((name, _evidence(value)) for name, value in found.evidence.items())]))


def _evidence(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_evidence(one)) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_evidence(one)}" for name, one in value.items())
    return value


COMMANDS = (status, jobs, show, errors, explain)
