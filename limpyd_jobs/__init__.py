"""Jobs on Redis, where every job, queue and error is a record that you can query and subclass."""

from .exceptions import ConfigurationException, LimpydJobsException
from .models import Error, Job, Queue
from .statuses import STATUSES
from .version import EXACT_VERSION, VERSION
from .workers import Worker

__version__ = EXACT_VERSION
__all__ = [
    "EXACT_VERSION",
    "STATUSES",
    "VERSION",
    "ConfigurationException",
    "Error",
    "Job",
    "LimpydJobsException",
    "Queue",
    "Worker",
]
