"""The repair of the books: for each problem that `check` finds, what puts it in order, if anything does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..models import Queue
from .books import Problem


@dataclass(frozen=True)
class Repair:
    """What is, was or cannot be done about a problem.

    Attributes:
        text: a sentence: what will be done; or why nothing can be.
        is_possible: False: nothing safe can be done here.
        is_done: it was done.
    """

    problem: Problem
    text: str
    is_possible: bool = True
    is_done: bool = False


def repair(
    problems: Iterable[Problem] | None = None,
    on_repair: Callable[[Repair], bool] = lambda repair: True,
    queue_model: Any = Queue,
) -> list[Repair]:
    """Put the books in order, problem by problem; answers those that were, or cannot be.

    Each problem is looked at again first: one that was only a moment between two states of a worker is left out. Then
    `on_repair` is told what would be done, and decides; what is done then is just that, or nothing.

    Args:
        problems: as `check` answers them; asked of it when None.
        on_repair: called for each repair before it is made, also for those that are not possible: then its answer means
            nothing.
    """
    raise NotImplementedError
