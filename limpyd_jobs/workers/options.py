"""The options of the worker's command line, as optparse knows them, and what is accepted as their values.

The destination of an option is the name of the worker's parameter. None means: not given, the worker class decides.
"""

from __future__ import annotations

import logging
import math
from copy import copy
from datetime import timedelta
from optparse import Option, OptionValueError
from typing import Any

from .logs import FORMATS


def check_seconds(option: Option, name: str, text: str) -> float:
    """A duration from the command line: an int when it is whole, so that it is shown as it was written."""
    try:
        value = float(text)
        timedelta(seconds=value)  # nan, inf and what is longer than one can be are refused
        return int(value) if value.is_integer() else value
    except (ValueError, OverflowError):
        hint = "a number of seconds, 0.5 is accepted too"
        raise OptionValueError(f"option {name}: invalid integer value: {text!r} ({hint})") from None


class WorkerOption(Option):
    """An option of optparse, which can also be of the type `seconds` (int or float)."""

    TYPES = (*Option.TYPES, "seconds")
    TYPE_CHECKER = copy(Option.TYPE_CHECKER) | {"seconds": check_seconds}


make_option = WorkerOption

OPTIONS: tuple[Option, ...] = (
    make_option(
        "--pythonpath",
        action="append",
        help="Add a directory to the Python path; may be given many times, and hold * and ?, "
        "e.g. --pythonpath=/my/project",
    ),
    make_option(
        "--worker-config",
        help="Use this subclass of WorkerConfig to run the worker, e.g. --worker-config=my.module.MyWorkerConfig "
        "(default: limpyd_jobs.workers.WorkerConfig)",
    ),
    make_option("--print-options", action="store_true", help="Print the options in force before the worker starts"),
    make_option(
        "--processes",
        type="int",
        help="Run this many workers, each in a process of its own, and replace those that end, e.g. --processes=4 "
        "(default: one worker, in this process)",
    ),
    make_option(
        "--reload",
        action="store_true",
        help="For development: start the workers again when a source file that they have loaded changes",
    ),
    make_option("--dry-run", action="store_true", help="Start the worker and end it at once: no job is executed"),
    make_option("--queues", help="The names of the queues to work on, with commas, e.g. --queues=queue1,queue2"),
    make_option(
        "--queue-model",
        help="The model of all the queues, a subclass of Queue, e.g. --queue-model=my.module.MyQueue "
        "(default: limpyd_jobs.models.Queue)",
    ),
    make_option(
        "--error-model",
        help="The model to save errors in, a subclass of Error, e.g. --error-model=my.module.MyError "
        "(default: limpyd_jobs.models.Error)",
    ),
    make_option(
        "--worker-class",
        help="The worker to run, a subclass of Worker, e.g. --worker-class=my.module.MyWorker "
        "(default: limpyd_jobs.workers.Worker)",
    ),
    make_option(
        "--callback",
        help="The function to call with each job and its queue, e.g. --callback=my.module.my_function "
        '(default: the method "run" of the job)',
    ),
    make_option("--logger-name", help='The name of the logger, e.g. --logger-name="limpyd-jobs.mails"'),
    make_option("--logger-level", help="The level of the logger, a name or a number, e.g. --logger-level=WARNING"),
    make_option(
        "--log-format",
        type="choice",
        choices=FORMATS,
        help="How the lines of the log look: text, or json for an object each, with the queue, the job, its duration "
        "and its outcome (default: text)",
    ),
    make_option("--save-errors", action="store_true", help="Save the errors of the jobs in the error model"),
    make_option(
        "--no-save-errors",
        action="store_false",
        dest="save_errors",
        help="Do not save the errors of the jobs",
    ),
    make_option("--save-tracebacks", action="store_true", help="Save the traceback with each error"),
    make_option(
        "--no-save-tracebacks",
        action="store_false",
        dest="save_tracebacks",
        help="Save the errors without their tracebacks",
    ),
    make_option("--max-loops", type="int", help="End after this many jobs, e.g. --max-loops=100 (default: 1000)"),
    make_option(
        "--max-duration",
        type="seconds",
        help="Take no more jobs after this many seconds, e.g. --max-duration=3600 (default: no limit)",
    ),
    make_option(
        "--terminate-gracefuly",
        "--terminate-gracefully",
        action="store_true",
        dest="terminate_gracefuly",
        help="At SIGINT and SIGTERM, finish the current job and then end (default)",
    ),
    make_option(
        "--no-terminate-gracefuly",
        "--no-terminate-gracefully",
        action="store_false",
        dest="terminate_gracefuly",
        help="Leave SIGINT and SIGTERM alone: they interrupt the current job",
    ),
    make_option(
        "--prefetch",
        type="int",
        help="Claim up to this many jobs in one round trip, for very short jobs, e.g. --prefetch=50 (default: 0, one)",
    ),
    make_option(
        "--max-memory",
        type="int",
        help="End after the job that leaves the process with more resident memory, in MiB, e.g. --max-memory=500 "
        "(default: no limit)",
    ),
    make_option("--burst", action="store_true", help="End when nothing is waiting and no delayed job is due"),
    make_option(
        "--threads",
        type="int",
        help="Run up to this many jobs at a time, each in a thread, e.g. --threads=10 (default: 1)",
    ),
    make_option(
        "--async",
        action="store_true",
        dest="is_async",
        help="Run jobs in an event loop, as limpyd_jobs.workers.AsyncWorker does; the same as naming that with "
        "--worker-class, and what a --callback that is a coroutine function does by itself",
    ),
    make_option(
        "--concurrency",
        type="int",
        help="How many jobs an AsyncWorker runs at a time at most, e.g. --concurrency=500 (default: 100)",
    ),
    make_option("--isolate", action="store_true", help="Run each job in a forked process of its own"),
    make_option(
        "--allow-unenforced-timeouts",
        action="store_true",
        help="Run jobs with a job_timeout also in threads, where nothing can end them",
    ),
    make_option(
        "--timeout",
        type="seconds",
        help="The longest wait for a job in one call, in seconds; 0 for no limit, e.g. --timeout=5 (default: 30)",
    ),
    make_option(
        "--fetch-priorities-delay",
        type="seconds",
        help="The longest time, in seconds, before a queue that another program made is seen, "
        "e.g. --fetch-priorities-delay=20 (default: 25)",
    ),
    make_option(
        "--fetch-delayed-delay",
        type="seconds",
        help="The longest time between two looks at the delayed jobs, in seconds, e.g. --fetch-delayed-delay=20 "
        "(default: 25)",
    ),
    make_option(
        "--requeue-times",
        type="int",
        help="How many times a job that fails is put back in its queue, e.g. --requeue-times=5 (default: 0)",
    ),
    make_option(
        "--requeue-priority-delta",
        type="int",
        help="What a job's priority changes by each time that it is put back, e.g. --requeue-priority-delta=-2 "
        "(default: -1)",
    ),
    make_option(
        "--requeue-delay-delta",
        type="seconds",
        help="How long a job that is put back is delayed, in seconds, e.g. --requeue-delay-delta=15 (default: 30)",
    ),
    make_option(
        "--backoff",
        help="How that delay grows from one retry to the next: constant, linear or exponential, with a delay of its "
        "own, a maximum and jitter if wanted, e.g. --backoff=exponential:1:3600:jitter; or the delay before each "
        "retry, e.g. --backoff=1,10,60 (default: it does not grow)",
    ),
    make_option(
        "--retry-on",
        help="The exceptions after which a job is put back, dotted names with commas, e.g. "
        "--retry-on=OSError,my.module.MyError (default: all)",
    ),
    make_option(
        "--no-retry-on",
        help="The exceptions after which a job is not put back, e.g. --no-retry-on=ValueError (default: none)",
    ),
    make_option(
        "--save-result",
        help="For how long what jobs answer is kept, e.g. --save-result=1h (s, m, h, d, w); yes for as long as their "
        "records (default: it is not)",
    ),
    make_option(
        "--job-timeout",
        type="seconds",
        help="How long a job may run, in seconds, e.g. --job-timeout=300 (default: no limit)",
    ),
    make_option(
        "--lease-seconds",
        type="seconds",
        help="How long a job belongs to a worker that gives no sign of life, in seconds, e.g. --lease-seconds=120 "
        "(default: 30)",
    ),
    make_option(
        "--max-recoveries",
        type="int",
        help="How many times a job whose worker was lost is given back, before it is put in the errors (default: 3)",
    ),
    make_option(
        "--stop-timeout",
        type="seconds",
        help="How long the current job may go on after SIGINT or SIGTERM, in seconds; then it is given back to its "
        "queue and the worker ends with the exit code 3, as it does at once at SIGQUIT (default: no limit)",
    ),
    make_option(
        "--job-modules",
        help="Modules and packages, with commas, that the jobs in Redis may have imported to find their classes, "
        "besides what is in --pythonpath, e.g. --job-modules=my.jobs,my.other; * for any (default: none)",
    ),
    make_option(
        "--tasks",
        action="append",
        help="Modules with tasks, and packages, whose modules are all imported; with commas, or given many times, "
        "e.g. --tasks=shop.tasks,shop.mails",
    ),
    make_option(
        "--keep-success",
        help="How many of the jobs that ended well are kept in each queue, or for how long, e.g. --keep-success=1000 "
        "or --keep-success=7d (s, m, h, d, w); the field keep_success of a queue wins (default: all)",
    ),
    make_option(
        "--keep-errors",
        help="The same for the jobs that failed, and their errors, e.g. --keep-errors=30d (default: all)",
    ),
    make_option(
        "--metrics-port",
        help="Show metrics for Prometheus at this port of 127.0.0.1, or at HOST:PORT, e.g. --metrics-port=9808; 0 for "
        "any port that is free (default: none)",
    ),
    make_option(
        "--heartbeat-file",
        help="A file whose time of modification is renewed while the worker lives, for the probes of containers, e.g. "
        "--heartbeat-file=/tmp/alive (default: none)",
    ),
    make_option(
        "--database",
        help="The Redis database: redis://[user:password@]host:port/db, rediss://..., unix:///path?db=0, "
        "embedded:///directory or host:port:db (default: the environment variable LIMPYD_JOBS_DATABASE, where a "
        "password is safer; else localhost:6379:0)",
    ),
    make_option(
        "--no-title",
        action="store_false",
        dest="update_title",
        default=True,
        help="Do not show what the worker does in the title of its process",
    ),
)

# The smallest value of a number, and whether it is accepted itself; in the order in which they are checked.
LIMITS: dict[str, tuple[int, bool]] = {
    "processes": (0, False),
    "max_loops": (0, True),
    "max_duration": (0, True),
    "timeout": (0, True),
    "fetch_priorities_delay": (0, False),
    "fetch_delayed_delay": (0, False),
    "requeue_times": (0, True),
    "requeue_delay_delta": (0, True),
    "lease_seconds": (0, False),
    "max_recoveries": (0, True),
    "stop_timeout": (0, True),
    "prefetch": (0, True),
    "threads": (1, True),
    "concurrency": (1, True),
    "max_memory": (0, False),
    "job_timeout": (0, False),
}


def complaint(option: Option, value: float) -> str | None:
    """What is wrong with the number given for an option; None when it is accepted."""
    limit, is_accepted = LIMITS.get(str(option.dest), (-math.inf, True))
    if value > limit or (value == limit and is_accepted):
        return None
    accepted = "a positive integer" + (" (including 0)" if is_accepted and limit == 0 else "")
    accepted += " or float" if option.type == "seconds" else ""
    return f"The {option_name(str(option.dest))} argument ({value}) must be {accepted}"


def option_name(destination: str) -> str:
    """`max-loops` for `max_loops`."""
    return destination.replace("_", "-")


def parse_logger_level(text: str | int) -> int | None:
    """The number of a logging level, from its name (in any case) or the number itself; None for what is neither."""
    if str(text).isdecimal():
        return int(text)
    for name in (str(text), str(text).upper()):
        level: Any = logging.getLevelName(name)  # a text, for an unknown name
        if isinstance(level, int):
            return level
    return None
