"""What `status --watch` shows where there is not room for all."""

from __future__ import annotations

import pytest

from limpyd_jobs.admin import QueueStatus
from limpyd_jobs.cli.watching import busiest, share


def queue(name: str, **values: int) -> QueueStatus:
    numbers = {"waiting": 0, "due": 0, "delayed": 0, "running": 0, "errors": 0, "succeeded": 0}
    return QueueStatus(name, 0, **{**numbers, **values})


def test_queues_with_work_come_before_those_that_are_idle_and_keep_their_order() -> None:
    queues = [queue("a", errors=5), queue("b", delayed=1), queue("c", waiting=1), queue("d"), queue("e", running=1)]

    assert [[one.name for one in busiest(queues, room)] for room in (1, 2, 3, 5)] == [
        ["c"],
        ["c", "e"],
        ["b", "c", "e"],
        ["a", "b", "c", "d", "e"],
    ]


@pytest.mark.parametrize(
    ("lines", "queues", "workers", "expected"),
    [
        (20, 5, 5, (5, 5)),
        (20, 50, 5, (15, 5)),
        (20, 5, 50, (5, 15)),
        (20, 50, 50, (10, 10)),
        (2, 50, 50, (3, 3)),
    ],
)
def test_the_rows_of_a_screen_are_shared(lines: int, queues: int, workers: int, expected: tuple[int, int]) -> None:
    assert share(lines, queues, workers) == expected
