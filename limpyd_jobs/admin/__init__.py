"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .bench import BenchResult, bench
from .books import Problem, check
from .doctor import Finding, diagnose
from .explaining import Explanation, explain
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .server import ServerStatus, server_status, start_server, stop_server

__all__ = [
    "BenchResult",
    "ErrorFilter",
    "ErrorRecord",
    "Explanation",
    "Finding",
    "JobFilter",
    "JobRecord",
    "Page",
    "Problem",
    "ServerStatus",
    "bench",
    "check",
    "diagnose",
    "explain",
    "server_status",
    "start_server",
    "stop_server",
]
