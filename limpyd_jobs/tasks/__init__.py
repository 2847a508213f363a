"""Functions as jobs."""

from ..models import current_job
from .definition import BoundTask, Task, task
from .models import TaskJob
from .registry import KnownTask, get_task, registry
from .remote import acall, call, known_tasks
from .signatures import AddedFlow, Chain, Group, Signature, chain, chord, group

__all__ = [
    "AddedFlow",
    "BoundTask",
    "Chain",
    "Group",
    "KnownTask",
    "Signature",
    "Task",
    "TaskJob",
    "acall",
    "call",
    "chain",
    "chord",
    "current_job",
    "get_task",
    "group",
    "known_tasks",
    "registry",
    "task",
]
