"""Those who run jobs."""

from .base import LOGGER_NAME
from .blocking import Worker
from .config import WorkerConfig
from .pool import WorkerPool

__all__ = ["LOGGER_NAME", "Worker", "WorkerConfig", "WorkerPool"]
