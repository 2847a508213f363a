"""Functions as jobs."""

from ..models import current_job
from .definition import BoundTask, Task, task
from .models import TaskJob
from .registry import KnownTask, get_task, registry
from .remote import acall, call, known_tasks
from .signatures import Signature

__all__ = [
    "BoundTask",
    "KnownTask",
    "Signature",
    "Task",
    "TaskJob",
    "acall",
    "call",
    "current_job",
    "get_task",
    "known_tasks",
    "registry",
    "task",
]
