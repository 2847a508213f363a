"""The errors of jobs: finding them, grouping them by where they come from, counting them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..models import Queue
from .records import ErrorFilter, ErrorRecord, Page

EVERY_ERROR = ErrorFilter()


@dataclass(frozen=True)
class ErrorGroup:
    """Errors of one kind: of one class of exception, with one code, raised in one place.

    Attributes:
        fingerprint: of these three; the same in each version of the program in which they are.
        place: `directory/file.py:function` of the last line of the traceback that is the program's own, neither of a
            package nor of Python; None: no traceback was saved.
        first_seen, last_seen: UTC.
        example: the ident of the job that failed last; `error` is the primary key of its Error.
        message: of the last one.
        last_hour, hour_before: how many there were in the last sixty minutes, and in the sixty before.
    """

    fingerprint: str
    type: str
    code: str | None
    place: str | None
    count: int
    first_seen: str
    last_seen: str
    example: str
    error: str
    message: str
    last_hour: int = 0
    hour_before: int = 0


def find_errors(
    wanted: ErrorFilter = EVERY_ERROR, limit: int = 50, after: str | None = None, queue_model: Any = Queue
) -> Page[ErrorRecord]:
    """A page of the errors that a filter finds, the newest first.

    What is there all the time is on one of the pages, once, though others come and go meanwhile.

    Args:
        limit: of the page, 1 to 1000.
        after: `next` of the page before; None for the first.
    Raises:
        InvalidArgument: a value is not accepted.
    """
    raise NotImplementedError


def each_error(wanted: ErrorFilter = EVERY_ERROR, queue_model: Any = Queue) -> Iterator[ErrorRecord]:
    """All errors that a filter finds, the newest first, one after the other."""
    raise NotImplementedError


def group_errors(wanted: ErrorFilter = EVERY_ERROR, queue_model: Any = Queue) -> list[ErrorGroup]:
    """The errors that a filter finds, by kind: the kinds with most errors first.

    All of them are read, and only the groups are held in memory.
    """
    raise NotImplementedError


def count_errors(
    wanted: ErrorFilter = EVERY_ERROR, by: str = "type", queue_model: Any = Queue
) -> list[tuple[str, int]]:
    """How many errors a filter finds of each type or queue, those with most first, or in each hour, in order.

    Args:
        by: `type`, `queue` or `hour`; an hour is UTC, `YYYY-MM-DD HH`.
    Raises:
        InvalidArgument: `by` is none of these.
    """
    raise NotImplementedError
