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
from .books import Problem, check
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page
from .repairing import Repair, repair

__all__ = [
    "ErrorFilter",
    "ErrorRecord",
    "JobFilter",
    "JobRecord",
    "Operation",
    "Page",
    "Problem",
    "Repair",
    "add",
    "cancel",
    "check",
    "delete",
    "drop_operation",
    "move",
    "operations",
    "repair",
    "requeue",
    "resume_operation",
    "start_operation",
    "start_purge",
    "start_purge_of_errors",
]
