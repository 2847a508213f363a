"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .books import Problem, check
from .details import JobDetails, Lease, Moment, Relative, SavedResult, show
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
from .finding import count_jobs, each_job, find_jobs, get_job
from .health import health
from .numbers import Histogram, Numbers, Rates, by_hour, rates, series, totals
from .overview import QueueStatus, Status, status
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
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
    "Page",
    "Pause",
    "Problem",
    "QueueStatus",
    "Rates",
    "Relative",
    "SavedResult",
    "Status",
    "WorkerRecord",
    "by_hour",
    "check",
    "count_errors",
    "count_jobs",
    "drain",
    "each_error",
    "each_job",
    "find_errors",
    "find_jobs",
    "get_job",
    "group_errors",
    "health",
    "left",
    "listeners",
    "pause",
    "paused",
    "rates",
    "resume",
    "series",
    "show",
    "status",
    "totals",
    "workers",
]
