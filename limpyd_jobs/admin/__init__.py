"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .acting import add, cancel, delete, move, requeue
from .books import Problem, check
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
from .finding import (
    JobDetails,
    Lease,
    Moment,
    Relative,
    SavedResult,
    count_jobs,
    each_job,
    find_jobs,
    get_job,
    show,
)
from .operations import (
    Operation,
    drop_operation,
    operations,
    resume_operation,
    start_operation,
    start_purge,
    start_purge_of_errors,
)
from .overview import QueueStatus, Status, status
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .repairing import Repair, repair

__all__ = [
    "ErrorFilter",
    "ErrorGroup",
    "ErrorRecord",
    "JobDetails",
    "JobFilter",
    "JobRecord",
    "Lease",
    "Moment",
    "Operation",
    "Page",
    "Problem",
    "QueueStatus",
    "Relative",
    "Repair",
    "SavedResult",
    "Status",
    "add",
    "cancel",
    "check",
    "count_errors",
    "count_jobs",
    "delete",
    "drop_operation",
    "each_error",
    "each_job",
    "find_errors",
    "find_jobs",
    "get_job",
    "group_errors",
    "move",
    "operations",
    "repair",
    "requeue",
    "resume_operation",
    "show",
    "start_operation",
    "start_purge",
    "start_purge_of_errors",
    "status",
]
