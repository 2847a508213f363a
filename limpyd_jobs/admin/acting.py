"""Acting on jobs: on one that is named, or, as an operation that can be resumed, on all that a filter finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

from ..models import Queue
from ..statuses import ENDS, Cancellation
from .records import ErrorFilter, JobFilter

KINDS = ("requeue", "cancel", "move", "delete", "purge", "purge_errors")


@dataclass(frozen=True)
class Operation:
    """Something that is done to many jobs, one after the other; kept in `jobs:operations` until it has ended.

    Attributes:
        kind: one of KINDS.
        wanted: which jobs; of `purge_errors`, which Errors.
        options: as the function for one job takes them.
        cut_off: UTC; what was added, or has ended, later is not meant.
        who: who has started it, `user@host`.
        count: how many it concerned when it was started.
        done: how many were acted on.
        skipped: how many were not, by the reason.
        position: where a run that was interrupted goes on.
    """

    id: str
    kind: str
    wanted: JobFilter | ErrorFilter
    options: Mapping[str, Any]
    cut_off: str
    who: str
    count: int
    done: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    position: str | None = None

    _queue_model: ClassVar[Any] = Queue

    def run(self, rate: float | None = None, on_progress: Callable[[int, int], None] | None = None) -> Operation:
        """Act on the jobs that are left; answers how far it has come, which is all of it.

        Each job is acted on once, however often this is interrupted and resumed, and by however many at a time.

        Args:
            rate: jobs a second, at most.
            on_progress: called with how many it has come to, and how many there are in all.
        Raises:
            KeyboardInterrupt, and whatever else interrupts it: resume it by its id.
        """
        raise NotImplementedError


def add(
    job_class: str,
    identifier: str,
    queue: str | None = None,
    priority: int = 0,
    delayed_for: float | timedelta | None = None,
    delayed_until: datetime | None = None,
    prepend: bool = False,
    fields: Mapping[str, Any] | None = None,
    queue_model: Any = Queue,
) -> str:
    """Add a job. Answers its ident, or that of the one that is queued with this identifier."""
    raise NotImplementedError


def requeue(
    ident: str,
    queue: str | None = None,
    priority: int | None = None,
    delayed_for: float | timedelta | None = None,
    delayed_until: datetime | None = None,
    queue_model: Any = Queue,
) -> None:
    """Put a job that failed back in a queue: the one that it was in last when None."""
    raise NotImplementedError


def cancel(ident: str, reason: str | None = None, queue_model: Any = Queue) -> Cancellation:
    """See to it that a job is not run."""
    raise NotImplementedError


def move(ident: str, queue: str | None = None, priority: int | None = None, queue_model: Any = Queue) -> None:
    """Put a job that waits or is delayed in another queue, or at another priority; its time stays."""
    raise NotImplementedError


def delete(ident: str, forced: bool = False, queue_model: Any = Queue) -> None:
    """Remove a job with all that belongs to it: its places, its entries in histories, its Errors."""
    raise NotImplementedError


def start_operation(
    kind: str, wanted: JobFilter | ErrorFilter, who: str | None = None, queue_model: Any = Queue, **options: Any
) -> Operation:
    """Prepare to act on all jobs that a filter finds; nothing is done to them before `run`."""
    raise NotImplementedError


def start_purge(
    statuses: tuple[str, ...] = ENDS,
    older_than: float = 0,
    wanted: JobFilter = JobFilter(),
    queue_model: Any = Queue,
) -> Operation:
    """Prepare to remove jobs that have ended in one of these statuses, so many seconds ago or more."""
    raise NotImplementedError


def start_purge_of_errors(
    older_than: float = 0, wanted: ErrorFilter = ErrorFilter(), queue_model: Any = Queue
) -> Operation:
    """Prepare to remove Errors that were written so many seconds ago or more; their jobs stay."""
    raise NotImplementedError


def resume_operation(id: str, queue_model: Any = Queue) -> Operation:
    """An operation that was interrupted, to be run."""
    raise NotImplementedError


def drop_operation(id: str, queue_model: Any = Queue) -> bool:
    """Forget an operation that is not to be resumed. Answers whether there was one."""
    raise NotImplementedError


def operations(queue_model: Any = Queue) -> list[Operation]:
    """Those that were started and have not ended, oldest first."""
    raise NotImplementedError
