"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .books import Problem, check
from .details import JobDetails, Lease, Moment, Relative, SavedResult, show
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
from .finding import count_jobs, each_job, find_jobs, get_job
from .overview import QueueStatus, Status, status
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page

__all__ = [
    "ErrorFilter",
    "ErrorGroup",
    "ErrorRecord",
    "JobDetails",
    "JobFilter",
    "JobRecord",
    "Lease",
    "Moment",
    "Page",
    "Problem",
    "QueueStatus",
    "Relative",
    "SavedResult",
    "Status",
    "check",
    "count_errors",
    "count_jobs",
    "each_error",
    "each_job",
    "find_errors",
    "find_jobs",
    "get_job",
    "group_errors",
    "show",
    "status",
]
