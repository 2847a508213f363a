"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .acting import add, cancel, delete, move, requeue
from .books import Problem, check
from .details import JobDetails, Lease, Moment, Relative, SavedResult, show
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
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
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .repairing import Repair, repair
from .workers import CurrentJob, WorkerRecord, listeners, workers

__all__ = [
    "CurrentJob",
    "ErrorFilter",
    "ErrorGroup",
    "ErrorRecord",
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
    "Pause",
    "Problem",
    "QueueStatus",
    "Rates",
    "Relative",
    "Repair",
    "SavedResult",
    "Status",
    "WorkerRecord",
    "add",
    "by_hour",
    "cancel",
    "check",
    "count_errors",
    "count_jobs",
    "delete",
    "drain",
    "drop_operation",
    "each_error",
    "each_job",
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
    "show",
    "start_operation",
    "start_purge",
    "start_purge_of_errors",
    "status",
    "totals",
    "workers",
]
