"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .bench import BenchResult, bench
from .books import Problem, check
from .doctor import Finding, diagnose
from .explaining import Explanation, explain
from .health import health
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .server import ServerStatus, server_status, start_server, stop_server
from .workers import CurrentJob, WorkerRecord, listeners, workers

__all__ = [
    "BenchResult",
    "CurrentJob",
    "ErrorFilter",
    "ErrorRecord",
    "Explanation",
    "Finding",
    "JobFilter",
    "JobRecord",
    "Left",
    "Page",
    "Pause",
    "Problem",
    "ServerStatus",
    "WorkerRecord",
    "bench",
    "check",
    "diagnose",
    "drain",
    "explain",
    "health",
    "left",
    "listeners",
    "pause",
    "paused",
    "resume",
    "server_status",
    "start_server",
    "stop_server",
    "workers",
]
