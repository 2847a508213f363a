"""Jobs on Redis, where every job, queue and error is a record that you can query and subclass."""

import warnings

with warnings.catch_warnings():
    # limpyd needs pkg_resources, and we the setuptools that has it: nothing that a user could do about it.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    import limpyd  # noqa: F401

from .exceptions import (
    ConfigurationException,
    JobAlreadyQueued,
    JobCanceled,
    JobFailed,
    JobTimeout,
    LimpydJobsException,
    NoResult,
    Retry,
    WaitTimeout,
)
from .models import Error, Job, Queue, WorkerInfo, current_job
from .retries import Backoff
from .statuses import STATUSES, Cancellation
from .version import EXACT_VERSION, VERSION
from .waiting import as_completed, await_all, await_any, await_completed, wait_all, wait_any
from .workers import Worker
from .workflows import Workflow

__version__ = EXACT_VERSION
__all__ = [
    "EXACT_VERSION",
    "STATUSES",
    "VERSION",
    "Backoff",
    "Cancellation",
    "ConfigurationException",
    "Error",
    "Job",
    "JobAlreadyQueued",
    "JobCanceled",
    "JobFailed",
    "JobTimeout",
    "LimpydJobsException",
    "NoResult",
    "Queue",
    "Retry",
    "WaitTimeout",
    "Worker",
    "WorkerInfo",
    "Workflow",
    "as_completed",
    "await_all",
    "await_any",
    "await_completed",
    "current_job",
    "wait_all",
    "wait_any",
]
