"""Those who run jobs."""

from . import at_once  # noqa: F401  (it tells the models how jobs are executed at once)
from .asynchronous import AsyncWorker
from .base import LOGGER_NAME
from .blocking import Worker
from .config import WorkerConfig
from .consuming import AsyncConsumer
from .pool import WorkerPool

__all__ = ["LOGGER_NAME", "AsyncConsumer", "AsyncWorker", "Worker", "WorkerConfig", "WorkerPool"]
