"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .bench import BenchResult, bench
from .books import Problem, check
from .doctor import Finding, diagnose
from .errors import ErrorGroup, count_errors, each_error, find_errors, group_errors
from .explaining import Explanation, explain
from .finding import JobDetails, Lease, Moment, Relative, SavedResult, count_jobs, each_job, find_jobs, get_job, show
from .health import health
from .overview import QueueStatus, Status, status
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
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
    "JobDetails",
    "JobFilter",
    "JobRecord",
    "Lease",
    "Left",
    "Moment",
    "Page",
    "Pause",
    "Problem",
    "QueueStatus",
    "Relative",
    "SavedResult",
    "ServerStatus",
    "Status",
    "WorkerRecord",
    "bench",
    "check",
    "count_errors",
    "count_jobs",
    "diagnose",
    "drain",
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
    "pause",
    "paused",
    "resume",
    "server_status",
    "show",
    "start_server",
    "status",
    "stop_server",
    "workers",
]
