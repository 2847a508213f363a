"""Jobs on Redis, where every job, queue and error is a record that you can query and subclass."""

import warnings

with warnings.catch_warnings():
    # limpyd needs pkg_resources, and we the setuptools that has it: nothing that a user could do about it.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    import limpyd  # noqa: F401

from .exceptions import ConfigurationException, JobCanceled, JobFailed, JobTimeout, LimpydJobsException, NoResult, Retry
from .models import Error, Job, Queue
from .retries import Backoff
from .statuses import STATUSES, Cancellation
from .version import EXACT_VERSION, VERSION
from .workers import Worker

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
    "JobCanceled",
    "JobFailed",
    "JobTimeout",
    "LimpydJobsException",
    "NoResult",
    "Queue",
    "Retry",
    "Worker",
]
