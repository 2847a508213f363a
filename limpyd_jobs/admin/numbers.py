"""How many jobs were added, started and ended, how long they waited and ran: of each queue and task, by time.

The scripts count what they do in `jobs:numbers:<minute>`; `roll_up.lua` adds the minutes that are over to hours and to
a total. See docs/numbers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import InvalidArgument
from ..models import Queue

MINUTES_KEPT = 26 * 60
HOURS_KEPT = 31 * 24
BATCH = 60  # minutes or hours that are read in one round trip

BOUNDS = tuple(
    2**power / 1000 for power in range(33)
)  # the upper bounds of all buckets, in seconds: 1 ms, 2 ms ... 49 days
REST = "*"  # the task and the queue of what is counted where a minute has too many of them


@dataclass(frozen=True)
class Histogram:
    """How often something took how long.

    Attributes:
        buckets: upper bound in seconds, one of `BOUNDS` -> how many took at most as long, and longer than half of that
            (of the first bucket: than nothing). In order, without those that are empty. The last of the `BOUNDS` also has
            what took longer.
        sum: of all, in seconds.
        count: of all.
    """

    buckets: Mapping[float, int] = field(default_factory=dict)
    sum: float = 0.0
    count: int = 0

    def quantile(self, part: float) -> float | None:
        """How many seconds this part of all took at most, like 0.5 for the median; None when there is nothing.

        Within a bucket all are taken to be spread evenly: so it is off by less than a factor of two.

        Raises:
            InvalidArgument: `part` is not between 0 and 1.
        """
        if not 0 <= part <= 1:
            raise InvalidArgument("part", part, "a number from 0 to 1")
        left = part * self.count
        for bound, count in self.buckets.items():
            if left <= count:
                lower = 0.0 if bound == BOUNDS[0] else bound / 2
                return lower + (bound - lower) * left / count
            left -= count
        return None

    @property
    def mean(self) -> float | None:
        """The seconds of the average; None when there is nothing."""
        return self.sum / self.count if self.count else None


@dataclass(frozen=True)
class Numbers:
    """What became of the jobs of a task in a queue, in some time.

    Attributes:
        queue: its name; '' for jobs that were executed at once, in no queue.
        task: the name of the task, of a call of one; else the class of the job (`my.module.MailJob`).
        added: new jobs, also those that wait for others.
        started: runs that began.
        succeeded, failed: runs that ended so; a job that failed and is tried again failed each time.
        requeued: jobs that had ended and were put in a queue again, or were tried again.
        recovered: jobs whose worker was lost, and that were given back to their queue.
        canceled: jobs that ended so, also by their `expires`.
        wait: from when a job could have started until it did, for each that started.
        run: of each run that succeeded or failed.
        time: when it begins, in seconds since the epoch, by the clock of Redis; None: it is of all times.
    """

    queue: str
    task: str
    added: int = 0
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    requeued: int = 0
    recovered: int = 0
    canceled: int = 0
    wait: Histogram = Histogram()
    run: Histogram = Histogram()
    time: int | None = None


@dataclass(frozen=True)
class Rates:
    """How many jobs of a queue come and go in a second.

    Attributes:
        rate_in: added, or put in it again.
        rate_out: ended: succeeded, failed, canceled.
        started: those that began to run.
    """

    rate_in: float = 0.0
    rate_out: float = 0.0
    started: float = 0.0


def series(since_minutes: int = 60, queue_model: Any = Queue) -> list[Numbers]:
    """The numbers of the last minutes: for each minute, those of each queue and task that had any, oldest first.

    The last one is the minute that has just begun.

    Args:
        since_minutes: how many, up to 1560, which is 26 hours.
    Raises:
        InvalidArgument: `since_minutes` is not accepted.
    """
    raise NotImplementedError


def by_hour(since_hours: int = 24, queue_model: Any = Queue) -> list[Numbers]:
    """As `series`, by the hour.

    Args:
        since_hours: how many, up to 744, which is 31 days.
    Raises:
        InvalidArgument: `since_hours` is not accepted.
    """
    raise NotImplementedError


def totals(queue_model: Any = Queue) -> list[Numbers]:
    """All that was ever counted, for each queue and task: numbers that only grow."""
    raise NotImplementedError


def rates(minutes: int = 5, queue_model: Any = Queue) -> dict[str, Rates]:
    """How many jobs came and went in a second, of late, for each name of a queue that had any.

    Args:
        minutes: over how many, and the one that has just begun.
    Raises:
        InvalidArgument: `minutes` is not accepted.
    """
    raise NotImplementedError
