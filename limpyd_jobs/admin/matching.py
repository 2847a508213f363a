"""What a filter asks, in the values of the fields of a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta

from ..statuses import STATUSES
from ..utils import FIRST_MOMENT, parse_datetime, utcnow
from .fingerprints import fingerprint, place_of
from .reading import JobKind, QueueNames
from .records import ErrorFilter, JobFilter

WILDCARDS = {"*": ".*", "?": "."}
SKEW_SECONDS = 3600  # by which the clocks of two machines differ at most
ENOUGH = 100  # records in a row, of which all are too old, or too new: those on that side of them are, too
Values = Mapping[str, "str | None"]


class JobQuestion:
    """What a filter asks of the jobs of a class.

    Attributes:
        names: the fields that tell whether a job is meant; none: each one is.
    """

    def __init__(self, wanted: JobFilter, kind: JobKind, names: QueueNames, is_pattern: bool = True) -> None:
        self._wanted, self._queues, self._task = wanted, names, kind.task or ""
        self._is_identifier = matcher(wanted.identifier, is_pattern)
        self._latest = _ago(wanted.older_than)
        self._earliest = _ago(wanted.newer_than)
        self._too_old = None if wanted.newer_than is None else _ago(wanted.newer_than + SKEW_SECONDS)
        self._too_new = None if wanted.older_than is None else _ago(wanted.older_than - SKEW_SECONDS)
        asked = {
            "status": bool(wanted.statuses) or wanted.ended_before is not None,
            "identifier": wanted.identifier is not None,
            "queue_key": bool(wanted.queues),
            "added": any(value is not None for value in (self._latest, self._earliest, wanted.ended_before)),
            "end": wanted.ended_before is not None,
            self._task: wanted.task is not None,
        }
        self.names = tuple(name for name, is_asked in asked.items() if is_asked)

    def keeps(self, values: Values, found_in: str | None = None) -> bool:
        """Is a job meant?

        Args:
            found_in: the name of the queue in which it was found; a job of version 2 does not say it.
        """
        wanted, added, end = self._wanted, values.get("added"), values.get("end")
        return (
            (not wanted.statuses or values.get("status") in wanted.statuses)
            and (self._is_identifier is None or self._is_identifier(values.get("identifier") or ""))
            and (self._latest is None or (added is not None and added <= self._latest))
            and (self._earliest is None or (added is not None and added >= self._earliest))
            and (wanted.ended_before is None or (end or _end_of_canceled(values)) <= wanted.ended_before)
            and (wanted.task is None or values.get(self._task) == wanted.task)
            and (not wanted.queues or self._queue_of(values, found_in) in wanted.queues)
        )

    def _queue_of(self, values: Values, found_in: str | None) -> str | None:
        key = values.get("queue_key")
        return self._queues.of([key])[key] if key else found_in

    @property
    def asks_for_old(self) -> bool:
        """Are only jobs meant that were added some time ago?"""
        return self._too_new is not None

    def is_too_new(self, added: str) -> bool:
        """Was a job added so late that no newer job is meant, even if the clocks were wrong?"""
        return self._too_new is not None and added > self._too_new

    def is_too_old(self, values: Values) -> bool:
        """Was it added so long before those that are meant that no older job is, even if the clocks were wrong?"""
        return self._too_old is not None and (values.get("added") or self._too_old) < self._too_old


class ErrorQuestion:
    """What a filter asks of errors.

    Attributes:
        names: the fields that tell whether an error is meant; none: each one is.
    """

    def __init__(self, wanted: ErrorFilter, classes: Collection[str]) -> None:
        self._wanted, self._classes = wanted, classes
        self._is_identifier = matcher(wanted.identifier)
        self._job = None if wanted.job is None else wanted.job.partition(":")[::2]
        self._too_old = None if wanted.since is None else _skewed(wanted.since)
        asked = {
            "type": wanted.type is not None or wanted.group is not None,
            "code": wanted.code is not None or wanted.group is not None,
            "traceback": wanted.group is not None,
            "queue_name": bool(wanted.queues),
            "identifier": wanted.identifier is not None,
            "job_model_repr": wanted.job_class is not None or wanted.job is not None,
            "job_pk": wanted.job is not None,
            "date_time": wanted.since is not None or wanted.until is not None,
        }
        self.names = tuple(name for name, is_asked in asked.items() if is_asked)

    def keeps(self, values: Values) -> bool:
        """Is an error meant?"""
        wanted, moment, job_class = self._wanted, values.get("date_time") or "", values.get("job_model_repr") or ""
        return (
            (wanted.type is None or values.get("type") == wanted.type)
            and (wanted.code is None or values.get("code") == wanted.code)
            and (not wanted.queues or values.get("queue_name") in wanted.queues)
            and (self._is_identifier is None or self._is_identifier(values.get("identifier") or ""))
            and (wanted.job_class is None or job_class in self._classes or _is_last(wanted.job_class, job_class))
            and (self._job is None or (job_class, values.get("job_pk")) == self._job)
            and (wanted.since is None or moment >= wanted.since)
            and (wanted.until is None or (moment != "" and moment < wanted.until))
            and (wanted.group is None or _fingerprint_of(values) == wanted.group)
        )

    def is_too_old(self, values: Values) -> bool:
        """As that of a `JobQuestion`."""
        return self._too_old is not None and (values.get("date_time") or self._too_old) < self._too_old


def _fingerprint_of(values: Values) -> str:
    return fingerprint(values.get("type") or "", values.get("code"), place_of(values.get("traceback")))


def _is_last(name: str, model_repr: str) -> bool:
    return model_repr.rpartition(".")[2] == name


def _skewed(since: str) -> str | None:
    """A moment that is earlier by SKEW_SECONDS."""
    text = since + FIRST_MOMENT[len(since) :]
    try:
        return str(parse_datetime(text) - timedelta(seconds=SKEW_SECONDS))
    except OverflowError:  # the beginning of the year 1
        return None


def _ago(seconds: float | None) -> str | None:
    return None if seconds is None else str(utcnow() - timedelta(seconds=seconds))


def is_pattern(text: str | None) -> bool:
    """Does it stand for several texts?"""
    return text is not None and bool(set(text) & WILDCARDS.keys())


def matcher(text: str | None, may_be_pattern: bool = True) -> Callable[[str], bool] | None:
    """Is a text like this one, in which `*` is anything, and `?` any character? None: all are."""
    if text is None:
        return None
    if not may_be_pattern or not is_pattern(text):
        return lambda other: other == text
    parts = (WILDCARDS.get(character) or re.escape(character) for character in text)
    matches = re.compile("".join(parts), re.DOTALL).fullmatch
    return lambda other: matches(other) is not None


def _end_of_canceled(values: Values) -> str:
    """What stands for the end of a job that has none: it was canceled before it ran, or it has not ended."""
    return (values.get("added") or "~") if values.get("status") == STATUSES.CANCELED else "~"
