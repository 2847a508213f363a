"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .acting import add, cancel, delete, move, requeue
from .bench import BenchResult, bench
from .books import Problem
from .connecting import connect
from .details import JobDetails, Lease, Moment, Relative, SavedResult, show
from .doctor import diagnose
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
from .explaining import Explanation, explain
from .finding import count_jobs, each_job, find_jobs, get_job
from .health import health
from .numbers import Histogram, Numbers, Rates, by_hour, rates, series, totals
from .operating import (
    Operation,
    drop_operation,
    operations,
    resume_operation,
    start_operation,
    start_purge,
    start_purge_of_errors,
)
from .overview import QueueStatus, Status, status
from .patient import Finding, Patient
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .repairing import Repair, check, repair
from .server import ServerStatus, server_status, start_server, stop_server
from .workers import CurrentJob, WorkerRecord, listeners, workers

__all__ = [
    "BenchResult",
    "CurrentJob",
    "ErrorFilter",
    "ErrorGroup",
    "ErrorRecord",
    "Explanation",
    "Finding",
    "Histogram",
    "JobDetails",
    "JobFilter",
    "JobRecord",
    "Lease",
    "Left",
    "Moment",
    "Numbers",
    "Operation",
    "Page",
    "Patient",
    "Pause",
    "Problem",
    "QueueStatus",
    "Rates",
    "Relative",
    "Repair",
    "SavedResult",
    "ServerStatus",
    "Status",
    "WorkerRecord",
    "add",
    "bench",
    "by_hour",
    "cancel",
    "check",
    "connect",
    "count_errors",
    "count_jobs",
    "delete",
    "diagnose",
    "drain",
    "drop_operation",
    "each_error",
    "each_job",
    "explain",
    "find_errors",
    "find_jobs",
    "get_job",
    "group_errors",
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
    "show",
    "start_operation",
    "start_purge",
    "start_purge_of_errors",
    "start_server",
    "status",
    "stop_server",
    "totals",
    "workers",
]
