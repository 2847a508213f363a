"""How many jobs were added, started and ended, how long they waited and ran: of each queue and task, by time.

The scripts count what they do in `jobs:numbers:<minute>`; `roll_up.lua` adds the minutes that are over to hours and to
a total. See docs/numbers.md.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import transitions
from ..exceptions import InvalidArgument
from ..models import Queue
from ..utils import server_seconds
from .reading import chunks, client_of

MINUTES_KEPT = 26 * 60
HOURS_KEPT = 31 * 24
BATCH = 20  # minutes or hours that are read in one round trip

BOUNDS = tuple(2**power / 1000 for power in range(33))  # of all buckets, in seconds: 1 ms, 2 ms, 4 ms ... 49 days
REST = "*"  # the task and the queue of what is counted where a minute has too many of them
MOST_OF_TOTAL = 10000  # fields, of which one is `rolled`; see roll_up.lua


@dataclass(frozen=True)
class Histogram:
    """How often something took how long.

    Attributes:
        buckets: upper bound in seconds, one of `BOUNDS` -> how many took at most as long, and longer than half of
            that. In order, without those that are empty. The first one has what took no time, the last of the `BOUNDS`
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
        queue: its name; '' for jobs that were executed at once, of no queue.
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
    _check_count("since_minutes", since_minutes, MINUTES_KEPT)
    minute = _roll_up(queue_model).minute
    times = range(minute - since_minutes + 1, minute + 1)
    found = zip(times, _read(queue_model, (f"{time}" for time in times)), strict=True)
    return [one for time, fields in found for one in _numbers([_of_minute(fields)], time * 60)]


def by_hour(since_hours: int = 24, queue_model: Any = Queue) -> list[Numbers]:
    """As `series`, by the hour. The last one is the hour that has begun, without the last minute of it.

    Args:
        since_hours: how many, up to 744, which is 31 days.
    Raises:
        InvalidArgument: `since_hours` is not accepted.
    """
    _check_count("since_hours", since_hours, HOURS_KEPT)
    hour = _roll_up(queue_model).minute // 60
    times = range(hour - since_hours + 1, hour + 1)
    found = zip(times, _read(queue_model, (f"hour:{time}" for time in times)), strict=True)
    return [one for time, fields in found for one in _numbers([fields], time * 3600)]


def totals(queue_model: Any = Queue) -> list[Numbers]:
    """All that was ever counted, for each queue and task: numbers that only grow."""
    while True:
        minute = _roll_up(queue_model).minute
        names = ["total", f"{minute}", f"{minute + 1}"]  # the next one may just have begun
        pipeline = client_of(queue_model).pipeline(transaction=False)  # Redis refuses those when its memory is full
        for name in names:
            pipeline.hgetall(_key(queue_model, name))
        pipeline.hget(_key(queue_model, "total"), "rolled")
        total, *minutes, rolled = pipeline.execute()
        if total.pop("rolled", None) == rolled:  # else what is in a minute may be in the total by now, too
            break
    found = {name: int(number) for name, number in total.items() if _is_number(name, number)}
    for name, fields in zip(names[1:], minutes, strict=True):
        if int(name) > int(rolled or 0):
            _add_to_total(found, _of_minute(fields))
    return _numbers([found], None)


def _add_to_total(total: dict[str, int], minute: Mapping[str, int]) -> None:
    """Add a minute as roll_up.lua will do it: else what is of `*` in a full total would be of its task for a minute."""
    for name, number in minute.items():
        if name not in total and number and len(total) + 1 >= MOST_OF_TOTAL:
            name = f"{name.partition(' ')[0]} {REST} {REST}"
        total[name] = total.get(name, 0) + number


def rates(minutes: int = 5, queue_model: Any = Queue) -> dict[str, Rates]:
    """How many jobs came and went in a second, of late, for each name of a queue that had any.

    Args:
        minutes: over how many, and the one that has just begun.
    Raises:
        InvalidArgument: `minutes` is not accepted.
    """
    _check_count("minutes", minutes, MINUTES_KEPT - 1)
    now = server_seconds(client_of(queue_model).time())
    first = int(now) // 60 - minutes
    seconds = now - first * 60
    found: dict[str, list[Numbers]] = defaultdict(list)
    for fields in _read(queue_model, (f"{minute}" for minute in range(first, first + minutes + 1))):
        for one in _numbers([_of_minute(fields)], None):
            found[one.queue].append(one)
    return {
        queue: Rates(
            sum(one.added + one.requeued for one in many) / seconds,
            sum(one.succeeded + one.failed + one.canceled for one in many) / seconds,
            sum(one.started for one in many) / seconds,
        )
        for queue, many in sorted(found.items())
    }


# --- How they are kept

ONE = 10**10  # see `tally_time` in _common.lua
COUNTS = {"a": "added", "q": "requeued", "v": "recovered", "c": "canceled"}
BUCKETS = {"w": "started", "s": "succeeded", "e": "failed"}
SUMS = {"w": "W", "s": "R", "e": "R"}
FIELD = re.compile(r"(?:[aqvcWR]|[wse](?:[12]?\d|3[0-2])) [^ ]* ", re.ASCII)


def _check_count(argument: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidArgument(argument, value, f"an integer from 1 to {most}")


def _key(queue_model: Any, name: str) -> str:
    return f"{queue_model.namespace or ''}:numbers:{name}"


def _roll_up(queue_model: Any) -> transitions.RolledUp:
    """Add up all minutes that are over, if no worker has done it."""
    while True:
        done = transitions.send(client_of(queue_model), transitions.roll_up(queue_model.namespace or ""))
        if not done.has_more:
            return done


def _read(queue_model: Any, names: Iterable[str]) -> Iterator[dict[str, str]]:
    for page in chunks((_key(queue_model, name) for name in names), BATCH):
        pipeline = client_of(queue_model).pipeline(transaction=False)
        for key in page:
            pipeline.hgetall(key)
        yield from pipeline.execute()


def _is_number(name: str, text: str) -> bool:
    """Is it one of ours? What else somebody has written there counts nothing."""
    return FIELD.match(name) is not None and text.isdecimal()


def _of_minute(fields: Mapping[str, str]) -> dict[str, int]:
    """The fields of a minute as those of an hour: how long something took in fields of their own."""
    found: dict[str, int] = defaultdict(int)
    for name, text in fields.items():
        if not _is_number(name, text):
            continue
        kind, _, rest = name.partition(" ")
        if kind[1:]:
            count, took = divmod(int(text), ONE)
            found[name] += count
            found[f"{SUMS[kind[0]]} {rest}"] += took * 2 ** int(kind[1:])
        else:
            found[name] += int(text)
    return found


def _numbers(parts: Iterable[Mapping[str, Any]], time: int | None) -> list[Numbers]:
    """Add up fields, and make of them the numbers of each queue and task."""
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for fields in parts:
        for name, number in fields.items():
            if _is_number(name, f"{number}"):
                kind, task, queue = name.split(" ", 2)
                found[queue, task][kind] += int(number)
    return [_numbers_of(*of, found[of], time) for of in sorted(found)]


def _numbers_of(queue: str, task: str, kinds: Mapping[str, int], time: int | None) -> Numbers:
    counts: dict[str, int] = {name: kinds.get(kind, 0) for kind, name in COUNTS.items()}
    for kind, name in BUCKETS.items():
        counts[name] = sum(_buckets(kinds, kind).values())
    wait, run = _histogram(kinds, "W", "w"), _histogram(kinds, "R", "s", "e")
    return Numbers(queue, task, **counts, wait=wait, run=run, time=time)


def _histogram(kinds: Mapping[str, int], sum_kind: str, *of: str) -> Histogram:
    found = [_buckets(kinds, kind) for kind in of]
    buckets = {bound: sum(one.get(bound, 0) for one in found) for bound in BOUNDS}
    filled = {bound: count for bound, count in buckets.items() if count}
    return Histogram(filled, kinds.get(sum_kind, 0) / 1_000_000, sum(filled.values()))


def _buckets(kinds: Mapping[str, int], kind: str) -> dict[float, int]:
    return {BOUNDS[int(name[1:])]: number for name, number in kinds.items() if name[0] == kind and name[1:]}
