"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .acting import (
    Operation,
    add,
    cancel,
    delete,
    drop_operation,
    move,
    operations,
    requeue,
    resume_operation,
    start_operation,
    start_purge,
    start_purge_of_errors,
)
from .bench import BenchResult, bench
from .books import Problem, check
from .doctor import diagnose
from .explaining import Explanation, explain
from .findings import Finding
from .health import health
from .numbers import Histogram, Numbers, Rates, by_hour, rates, series, totals
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .repairing import Repair, repair
from .server import ServerStatus, server_status, start_server, stop_server
from .workers import CurrentJob, WorkerRecord, listeners, workers

__all__ = [
    "BenchResult",
    "CurrentJob",
    "ErrorFilter",
    "ErrorRecord",
    "Explanation",
    "Finding",
    "Histogram",
    "JobFilter",
    "JobRecord",
    "Left",
    "Numbers",
    "Operation",
    "Page",
    "Pause",
    "Problem",
    "Rates",
    "Repair",
    "ServerStatus",
    "WorkerRecord",
    "add",
    "bench",
    "by_hour",
    "cancel",
    "check",
    "delete",
    "diagnose",
    "drain",
    "drop_operation",
    "explain",
    "health",
    "left",
    "listeners",
    "move",
    "operations",
    "pause",
    "paused",
    "rates",
    "repair",
    "requeue",
    "resume",
    "resume_operation",
    "series",
    "server_status",
    "start_operation",
    "start_purge",
    "start_purge_of_errors",
    "start_server",
    "stop_server",
    "totals",
    "workers",
]
