"""Looking after what runs: queues that are paused or drained, workers, the books, Redis, measurements, probes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..exceptions import DatabaseException
from .acting import ask
from .common import FINE, WRONG, Command, Duration, Given, Group, Whole, joined
from .filters import QUEUES
from .output import (
    Column,
    clean,
    counted,
    is_drawn_on,
    print_json,
    print_table,
    print_text,
    progress,
    say,
    show_age,
    show_size,
)
from .rows import WORKER_COLUMNS, worker_row

if TYPE_CHECKING:
    from ..admin import Finding, Left, Problem, Repair, ServerStatus

LEVEL_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
FIELD_COLUMNS = (Column("name"), Column("value", shrinks=True))


# --- queues


@click.command(cls=Command)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option("--reason", default="", metavar="TEXT", help="Why, for who asks later.")
@click.pass_obj
def pause(given: Given, queues: tuple[str, ...], reason: str) -> None:
    """Have workers take no more jobs of some queues.

    They see it within a second. What runs goes on to its end, jobs can be added, and delayed ones become due.
    """
    from .. import admin

    pauses = [admin.pause(queue, reason, **given.scope) for queue in queues]
    if given.wants_json:
        print_json({"paused": pauses})
        return
    for one in pauses:
        print_text(f"{clean(one.queue)} is paused since {one.since}" + (f": {clean(one.reason)}" if one.reason else ""))


@click.command(cls=Command)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.pass_obj
def resume(given: Given, queues: tuple[str, ...]) -> None:
    """Have workers take jobs of some queues again.

    It is no error when one is not paused.
    """
    from .. import admin

    were_paused = {queue: admin.resume(queue, **given.scope) for queue in queues}
    if given.wants_json:
        print_json({"resumed": were_paused})
        return
    for queue, was_paused in were_paused.items():
        print_text(f"{clean(queue)} " + ("is resumed" if was_paused else "was not paused"))


@click.command(cls=Command)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option("--timeout", type=Duration(), metavar="DURATION", help="Wait no longer than this, like 10m.")
@click.option("--delayed", is_flag=True, help="Wait for delayed jobs that are not due yet, too.")
@click.pass_obj
def drain(given: Given, queues: tuple[str, ...], timeout: float | None, delayed: bool) -> int:
    """Wait until some queues have nothing left to do.

    That is: no job waits, is due or runs. The exit code is 1 when the time is over before.
    """
    from .. import admin

    total = admin.left(queues, delayed, **given.scope).count
    with progress("drain", total) as advance:

        def show(left: Left) -> None:
            advance(max(total - left.count, 0), total)

        rest = admin.drain(queues, show, timeout, delayed, **given.scope)
    if given.wants_json:
        print_json({"queues": queues, "count": rest.count, **asdict(rest)})
    elif rest.count:
        print_text(
            f"The time is over: {counted(rest.count, 'job')} left: "
            f"{rest.waiting} waiting, {rest.delayed} delayed, {rest.running} running"
        )
    else:
        print_text("Nothing is left")
    return WRONG if rest.count else FINE


# --- workers


@click.command(cls=Command)
@click.pass_obj
def workers(given: Given) -> None:
    """The workers that are alive, and what each of them runs.

    One that was killed is gone from here after some seconds.
    """
    from .. import admin

    found = admin.workers(**given.scope)
    if given.wants_json:
        print_json({"workers": found})
        return
    print_table(WORKER_COLUMNS, map(worker_row, found))
    if not found:
        say("No worker is alive.")


# --- the books and Redis


PROBLEM_COLUMNS = (Column("kind"), Column("subject"), Column("detail"))


@click.command(cls=Command)
@click.option("--repair", is_flag=True, help="Repair what can be repaired: each repair is explained before it is made.")
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@click.pass_obj
def check(given: Given, repair: bool, yes: bool) -> int:
    """Check the books: is each job in one place, and is that noted?

    Everything is read, so it takes as long as there are records. A problem is told of when it is seen twice: the first
    look may have met a worker in the middle of its work. The exit code is 1 when there are problems, with --repair when
    some are left.
    """
    from .. import admin

    problems = admin.check(**given.scope)
    if problems:
        first = set(problems)
        problems = [problem for problem in admin.check(**given.scope) if problem in first]
    repairs: list[Repair] = []
    if not given.wants_json:
        _print_problems(problems)
    if repair and problems:
        ask(f"Repair {counted(len(problems), 'problem')}?", yes)
        repairs = admin.repair(problems, _explain_quietly if given.wants_json else _explain_repair, **given.scope)
    # what is not among the repairs was not found again
    left = sum(1 for one in repairs if not one.is_done) if repair else len(problems)
    if given.wants_json:
        print_json({"problems": problems, "repairs": repairs, "left": left})
    else:
        say(f"{counted(len(problems), 'problem')} found" + (f", {left} left." if repair else "."))
    return WRONG if left else FINE


def _print_problems(problems: Sequence[Problem]) -> None:
    """On a terminal as sentences, since what is wrong has to be read to its end."""
    if not is_drawn_on(sys.stdout):
        print_table(PROBLEM_COLUMNS, [(one.kind, one.subject, one.detail) for one in problems])
        return
    for one in problems:
        print_text(f"{one.kind:<8} {clean(one.subject)}: {clean(one.detail)}", "red")


def _explain_repair(repair: Repair) -> bool:
    print_text(f"{clean(repair.problem.subject)}: {clean(repair.text)}", "" if repair.is_possible else "yellow")
    return True


def _explain_quietly(repair: Repair) -> bool:
    return True


@click.command(cls=Command)
@click.pass_obj
def doctor(given: Given) -> int:
    """Examine Redis: what is wrong, and what to do.

    Also what will be wrong.
    The exit code is 1 when there is an error; warnings alone leave it at 0.
    """
    from .. import admin

    findings = admin.diagnose(**given.scope)
    if given.wants_json:
        print_json({"database": given.database_name, "findings": findings})
    elif is_drawn_on(sys.stdout):
        for finding in findings:
            _print_finding(finding)
    else:
        columns = [Column("level"), Column("subject"), Column("text"), Column("fix")]
        print_table(columns, [(one.level, one.subject, one.text, one.fix) for one in findings])
    return WRONG if any(finding.level == "error" for finding in findings) else FINE


def _print_finding(finding: Finding) -> None:
    style = LEVEL_STYLES[finding.level]
    print_text(f"{finding.level:<8} {clean(finding.subject)}: {clean(finding.text)}", style)
    if finding.fix:
        print_text(f"{'':<8} fix: {clean(finding.fix)}")


# --- the embedded server


@click.group(cls=Group)
def server() -> None:
    """The embedded server: start, status, stop."""


def _directory_option(function: Any) -> Any:
    return click.argument("directory", required=False, metavar="[DIRECTORY]")(function)


def _directory_of(given: Given, directory: str | None) -> str:
    """The directory that is given, or that of the database `embedded:///directory` that is named."""
    from ..database import parse_database

    named = given.named_database
    if directory is None and named is not None:
        directory = parse_database(named).get("embedded")
    if directory is None:
        raise click.UsageError("Name a directory, as argument or by --database=embedded:///directory.")
    return directory


def _print_server(given: Given, status: ServerStatus) -> int:
    if given.wants_json:
        print_json(status)
    else:
        values = {
            "state": status.state,
            "directory": status.directory,
            "database": status.database,
            "socket": status.socket,
            "pid": status.pid,
            "version": status.version,
            "up": show_age(status.uptime_seconds),
            "memory": show_size(status.memory_bytes),
            "data": show_size(status.data_bytes),
        }
        print_table(FIELD_COLUMNS, values.items(), has_titles=False)
    return FINE if status.state == "running" else WRONG


@server.command("start")
@_directory_option
@click.pass_obj
def start_server(given: Given, directory: str | None) -> int:
    """Make sure that it runs. It stays when this command ends."""
    from .. import admin

    return _print_server(given, admin.start_server(_directory_of(given, directory)))


@server.command("status")
@_directory_option
@click.pass_obj
def server_status(given: Given, directory: str | None) -> int:
    """How it is; nothing is started. The exit code is 1 when it does not run."""
    from .. import admin

    return _print_server(given, admin.server_status(_directory_of(given, directory)))


@server.command("stop")
@_directory_option
@click.pass_obj
def stop_server(given: Given, directory: str | None) -> None:
    """End it, and wait until it has; its data stays."""
    from .. import admin

    found = _directory_of(given, directory)
    was_running = admin.stop_server(found)
    if given.wants_json:
        print_json({"directory": found, "was_running": was_running})
    else:
        print_text("It is stopped" if was_running else "None was running")


# --- measurements and probes


@click.command(cls=Command)
@click.option("--jobs", type=Whole(1, 1_000_000), default=1000, help="How many are added and run. [1000]")
@click.pass_obj
def bench(given: Given, jobs: int) -> None:
    """Measure in some seconds what this Redis does from here.

    Under keys of its own, which are removed afterwards; nobody's queues are touched.
    """
    from .. import admin

    scope = given.scope
    with progress("bench", 1) as advance:
        found = admin.bench(jobs, lambda name, done, count: advance(done, count), **scope)
    if given.wants_json:
        print_json(found)
        return
    rows = [
        ("jobs", found.jobs),
        ("round trip", f"{found.round_trip * 1e3:.2f} ms, p99 {found.round_trip_p99 * 1e3:.2f} ms"),
        ("add, one by one", f"{found.add:,.0f}/s, {found.trips_per_add:.2f} round trips each"),
        ("add, many", f"{found.add_many:,.0f}/s, {found.trips_per_add_many:.2f} round trips each"),
        ("run", f"{found.run:,.0f}/s, {found.trips_per_run:.2f} round trips each"),
        ("added to started", f"{found.start * 1e3:.2f} ms, p99 {found.start_p99 * 1e3:.2f} ms"),
    ]
    print_table(FIELD_COLUMNS, rows, has_titles=False)


@click.command(cls=Command)
@click.option("--listen", default="127.0.0.1:9808", metavar="HOST:PORT", help="Where Prometheus asks. [127.0.0.1:9808]")
@click.pass_obj
def metrics(given: Given, listen: str) -> None:
    """Serve the metrics of all queues for Prometheus.

    Until it is interrupted, or told to end by SIGTERM. Needs the extra "metrics".
    """
    scope = given.scope
    from ..admin.prometheus import serve  # what it needs is not always installed: then it says so

    server = serve(listen, **scope)
    print_json({"url": server.url}) if given.wants_json else print_text(f"Listening at {server.url}")
    sys.stdout.flush()
    try:
        with _ended_by_sigterm():
            server.wait()
    finally:
        server.stop()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Without a handler the first process of a container would not hear it, and be killed after half a minute."""
    former = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(FINE))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@click.command(cls=Command)
@QUEUES
@click.option("--min-workers", type=Whole(0), default=0, help="So many workers must be alive. [0]")
@click.option(
    "--max-oldest-age", type=Duration(), metavar="DURATION", help="No job may have waited for longer, like 10m."
)
@click.pass_obj
def health(given: Given, queues: tuple[tuple[str, ...], ...], min_workers: int, max_oldest_age: float | None) -> int:
    """Is all well? The exit code says it: 0 or 1, for probes.

    Redis must answer and accept writes; more is looked at if it is asked for. Here 1 is also said when Redis cannot be
    reached.
    """
    import redis

    from .. import admin

    try:
        problems = admin.health(joined(queues), min_workers, max_oldest_age, **given.scope)
    except (DatabaseException, redis.RedisError) as error:
        problems = [" ".join(str(error).split())]
    if given.wants_json:
        print_json({"is_well": not problems, "problems": problems})
    else:
        for problem in problems or ["All is well"]:
            print_text(clean(problem), "red" if problems else "green")
    return WRONG if problems else FINE


COMMANDS = (pause, resume, drain, workers, check, doctor, server, bench, metrics, health)
