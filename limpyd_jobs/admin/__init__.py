"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .books import Problem, check
from .health import health
from .pausing import Left, Pause, drain, left, pause, paused, resume
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .workers import CurrentJob, WorkerRecord, listeners, workers

__all__ = [
    "CurrentJob",
    "ErrorFilter",
    "ErrorRecord",
    "JobFilter",
    "JobRecord",
    "Left",
    "Page",
    "Pause",
    "Problem",
    "WorkerRecord",
    "check",
    "drain",
    "health",
    "left",
    "listeners",
    "pause",
    "paused",
    "resume",
    "workers",
]
