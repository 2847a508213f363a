"""The errors of jobs: finding them, grouping them by where they come from, counting them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from limpyd.contrib.indexes import SimpleDateTimeIndex

from .. import recipes
from ..exceptions import InvalidArgument
from ..models import Queue
from ..utils import utcnow
from .fingerprints import fingerprint, place_of
from .matching import ENOUGH, ErrorQuestion, is_pattern
from .reading import AT_ONCE, ask, client_of, error_models, is_wrong_type, job_kinds
from .records import ErrorFilter, ErrorRecord, Page
from .sources import Order, Range, Source, each_of, growing, newest, page_of, smallest, to_top

BY = {"type": "type", "queue": "queue_name", "hour": "date_time"}
HOUR, SECOND = len("2026-01-01 00"), len("2026-01-01 00:00:00")  # characters of a time
WITH_TRACEBACKS = 100  # Errors that are read in one round trip: each may have 100,000 characters

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
    items, following = page_of(_streams(wanted, queue_model), limit, after, _recency)
    return Page(items, following)


def each_error(wanted: ErrorFilter = EVERY_ERROR, queue_model: Any = Queue) -> Iterator[ErrorRecord]:
    """All errors that a filter finds, the newest first, one after the other."""
    return each_of(_streams(wanted, queue_model), _recency)


def group_errors(wanted: ErrorFilter = EVERY_ERROR, queue_model: Any = Queue) -> list[ErrorGroup]:
    """The errors that a filter finds, by kind: the kinds with most errors first.

    All of them are read, and only the groups are held in memory.
    """
    hour_ago, two_hours_ago = (str(utcnow() - timedelta(hours=hours)) for hours in (1, 2))
    groups: dict[str, _Group] = {}
    for error in each_error(wanted, queue_model):
        place = place_of(error.traceback)
        key = fingerprint(error.type, error.code, place)
        if key not in groups:
            groups[key] = _Group(key, place, error)
        groups[key].add(error, hour_ago, two_hours_ago)
    return sorted((group.result() for group in groups.values()), key=lambda group: (-group.count, group.fingerprint))


def count_errors(
    wanted: ErrorFilter = EVERY_ERROR, by: str = "type", queue_model: Any = Queue
) -> list[tuple[str, int]]:
    """How many errors a filter finds of each type or queue, those with most first, or in each hour, in order.

    Args:
        by: `type`, `queue` or `hour`; an hour is UTC, `YYYY-MM-DD HH`.
    Raises:
        InvalidArgument: `by` is none of these.
    """
    if by not in BY:
        raise InvalidArgument("by", by, f"one of {', '.join(BY)}")
    counts: Counter[str] = Counter()
    for stream in _streams(wanted, queue_model):
        counts.update((value or "")[: HOUR if by == "hour" else None] for value in stream.values(BY[by]))
    return sorted(counts.items()) if by == "hour" else sorted(counts.items(), key=lambda found: (-found[1], found[0]))


class _Group:
    """A group of errors while they are counted."""

    def __init__(self, key: str, place: str | None, error: ErrorRecord) -> None:
        self._fingerprint, self._place = key, place
        self._last = replace(error, traceback=None)
        self._first_seen = error.date_time
        self._counts = [0, 0, 0]  # all, in the last hour, in the hour before

    def add(self, error: ErrorRecord, hour_ago: str, two_hours_ago: str) -> None:
        """Count one more."""
        moment = error.date_time
        self._counts[0] += 1
        if moment >= two_hours_ago:
            self._counts[1 if moment >= hour_ago else 2] += 1
        self._first_seen = min(self._first_seen, moment)
        if moment > self._last.date_time:
            self._last = replace(error, traceback=None)

    def result(self) -> ErrorGroup:
        """What is known of it."""
        last = self._last
        return ErrorGroup(
            self._fingerprint,
            last.type,
            last.code,
            self._place,
            self._counts[0],
            first_seen=self._first_seen,
            last_seen=last.date_time,
            example=last.job,
            error=last.pk,
            message=last.message,
            last_hour=self._counts[1],
            hour_before=self._counts[2],
        )


# --- Reading


def _recency(error: ErrorRecord) -> str:
    return error.date_time


def _streams(wanted: ErrorFilter, queue_model: Any) -> list[_Errors]:
    """The errors that a filter finds, by model, each from the smallest source."""
    client, models = client_of(queue_model), error_models(queue_model)
    classes = _class_names(wanted.job_class, queue_model)
    tops = ask(client, (("GET", f"{model._name}:max_pk") for model in models))
    return [
        _Errors(client, model, to_top(top), _source(client, model, wanted, classes), ErrorQuestion(wanted, classes))
        for model, top in zip(models, tops, strict=True)
    ]


def _class_names(job_class: str | None, queue_model: Any) -> tuple[str, ...]:
    """The names, with their modules, of a class of jobs; nothing when it is not known."""
    if job_class is None:
        return ()
    found = [name for kind in job_kinds(queue_model) if kind.is_named(job_class) for name in kind.names]
    return tuple(dict.fromkeys([*found, *([job_class] if "." in job_class else [])]))


def _source(client: Any, model: Any, wanted: ErrorFilter, classes: Iterable[str]) -> Source:
    """The smallest set, or part of the index of times, that has all errors that are meant."""
    job_name, _, job_pk = (wanted.job or "").partition(":")
    values: dict[str, list[str | None]] = {
        "type": [wanted.type],
        "code": [wanted.code],
        "queue_name": list(wanted.queues),
        "identifier": [None if is_pattern(wanted.identifier) else wanted.identifier],
        "job_model_repr": [job_name] if wanted.job else list(classes),
        "job_pk": [job_pk or None],
    }
    options = {"": [f"{model._name}:collection"]}
    for name, asked in values.items():
        if asked and None not in asked and recipes.has_equal_index(model, name):
            index = model.get_field(name)._indexes[0]
            options[name] = [index.get_storage_key(value) for value in asked]
    found: Source = smallest(client, [options])[0][0]
    times = _times(client, model, wanted)
    return times if times is not None and times.size < found.size else found


def _times(client: Any, model: Any, wanted: ErrorFilter) -> Range | None:
    """The errors of a time, by their index."""
    index: Any = next(iter(model.get_field("date_time")._indexes), None) if model.has_field("date_time") else None
    if (wanted.since is None and wanted.until is None) or type(index) is not SimpleDateTimeIndex:
        return None
    by_time = index._indexes[0]
    bounds = _bounds(wanted.since, wanted.until)
    return Range.read(client, by_time.get_storage_key(""), bounds, by_time.separator, f"{model._name}:collection")


def _bounds(since: str | None, until: str | None) -> tuple[str, str]:
    """What ZRANGEBYLEX takes for a time, in an index that holds seconds, and no more: all of its last second."""
    first = f"[{since[:SECOND]}" if since else "-"
    if until is None:
        return first, "+"
    return first, f"({until}" if len(until) <= SECOND else f"({until[:SECOND]};"  # `;` comes after the separator


class _Errors:
    """The errors of a model that a filter finds."""

    def __init__(self, client: Any, model: Any, top: int, source: Source, question: ErrorQuestion) -> None:
        self.key, self.top, self._source = model._name, top, source
        self._client, self._question = client, question
        self._at_once = WITH_TRACEBACKS if "traceback" in question.names else AT_ONCE

    def read(self, below: Order, first: int) -> Iterator[tuple[str, ErrorRecord]]:
        """Those below a primary key, the newest first; `first` are read at first."""
        for pks in growing(newest(self._source, self.top, below), first, self._at_once):
            kept, is_end = self._sift(pks, ())
            for pk, values in self._read([pk for pk, _ in kept]):
                if self._question.keeps(values):
                    yield pk, _error_record(pk, values)
            if is_end:
                return

    def values(self, name: str) -> Iterator[str | None]:
        """What a field holds, of each."""
        for pks in growing(newest(self._source, self.top), self._at_once, self._at_once):
            kept, is_end = self._sift(pks, (name,))
            yield from (values[name] for _, values in kept)
            if is_end:
                return

    def _sift(self, pks: list[str], more: tuple[str, ...]) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
        """Those that are meant, with the fields that tell it and `more`; and whether no older ones are meant."""
        names = tuple(dict.fromkeys((*self._question.names, *more)))
        if not names:
            return [(pk, {}) for pk in pks], False
        replies = ask(self._client, (("HMGET", f"{self.key}:{pk}:hash", *names) for pk in pks))
        found = [
            (pk, dict(zip(names, values, strict=True)))
            for pk, values in zip(pks, replies, strict=True)
            if not is_wrong_type(values)
        ]
        is_end = len(found) >= ENOUGH and self.top > 0 and all(self._question.is_too_old(one) for _, one in found)
        return [(pk, values) for pk, values in found if self._question.keeps(values)], is_end

    def _read(self, pks: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
        for part in growing(pks, WITH_TRACEBACKS, WITH_TRACEBACKS):
            replies = ask(self._client, (("HGETALL", f"{self.key}:{pk}:hash") for pk in part))
            for pk, values in zip(part, replies, strict=True):
                if values and not is_wrong_type(values):
                    yield pk, values


def _error_record(pk: str, values: Mapping[str, str]) -> ErrorRecord:
    return ErrorRecord(
        pk=pk,
        job=f"{values.get('job_model_repr', '')}:{values.get('job_pk', '')}",
        identifier=values.get("identifier", ""),
        queue=values.get("queue_name", ""),
        type=values.get("type", ""),
        code=values.get("code"),
        message=values.get("message", ""),
        date_time=values.get("date_time", ""),
        traceback=values.get("traceback"),
    )
