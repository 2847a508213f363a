"""What is known of a job beside its status: how far it has come, and what it answered.

A result is stored as the name of its serializer, a colon, and the text that this makes of it: `json:{"sum":3}`. Without
a name, `:...` says why the result of a job that ended well could not be stored.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from . import serializers
from .exceptions import InvalidArgument, ResultNotStored
from .utils import parse_datetime, utcnow

T = TypeVar("T")

REPORT_SECONDS = 0.3  # between two reports of `track`
MAX_NOTE = 10_000  # characters


@dataclass(frozen=True)
class Progress:
    """How far a job has come, as it said last.

    Attributes:
        percent: 0 to 100, None when it did not say.
        note: what it does; None when it did not say.
        updated: when it said so, as a naive UTC datetime, by the clock of its machine.
    """

    percent: float | None
    note: str | None
    updated: datetime


def progress_text(percent: float | None, note: str | None) -> str:
    """What a job says of its progress, as JSON; what is None is left as it was.

    Raises:
        InvalidArgument: a value is not accepted, or both are None.
    """
    if percent is None and note is None:
        raise InvalidArgument("percent", percent, "a number from 0 to 100, unless there is a note")
    if percent is not None and not _is_percentage(percent):
        raise InvalidArgument("percent", percent, "a number from 0 to 100")
    if note is not None and not (isinstance(note, str) and len(note) <= MAX_NOTE and _is_storable(note)):
        raise InvalidArgument("note", note, f"a string of at most {MAX_NOTE} characters that UTF-8 can hold")
    said = {"percent": percent, "note": note, "updated": str(utcnow())}
    return json.dumps({name: value for name, value in said.items() if value is not None}, ensure_ascii=False)


def _is_percentage(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 100


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def read_progress(text: str | None) -> Progress | None:
    """The progress that a record holds; None when there is none that can be read."""
    try:
        found = json.loads(text or "null")
        percent, note = found.get("percent"), found.get("note")
        return Progress(percent, note, parse_datetime(found["updated"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def result_text(value: Any, serializer: str) -> str:
    """What is stored of the result of a job.

    Raises:
        LimpydJobsException: it cannot be stored, is too large, or there is no serializer of this name.
    """
    text = serializers.get(serializer).encode(value, what="result", max_size=serializers.MAX_RESULT)
    return f"{serializer}:{text}"


def not_stored_text(reason: str) -> str:
    """What is stored instead of a result that cannot be."""
    return f":{reason}"


def read_result(ident: str, text: str, annotation: Any) -> Any:
    """The result of a job, from what is stored.

    Raises:
        ResultNotStored: that was not possible. NotDecodable: something else was written there.
        InvalidArgument: its serializer is not registered in this process.
    """
    serializer, _, rest = text.partition(":")
    if not serializer:
        raise ResultNotStored(ident, f"it ended well, but what it answered could not be stored: {rest}")
    return serializers.get(serializer).decode(rest, annotation)


class Track(Generic[T]):
    """Gives what an iterable gives, and reports after how many of its items it is.

    An item counts when the next one is asked for. A report is made at most every REPORT_SECONDS, and at the end.

    Args:
        items: an iterable, or an async one for `async for`.
        total: how many there are.
        report, areport: called with the percentage.
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        total: int,
        report: Callable[[float], Any],
        areport: Callable[[float], Awaitable[Any]],
    ) -> None:
        self._items: Any = items
        self._total = total
        self._report, self._areport = report, areport
        self._reported_at = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        for done, item in enumerate(self._items):
            if self._is_time():
                self._report(self._percent(done))
            yield item
        self._report(100)

    async def __aiter__(self) -> AsyncIterator[T]:
        done = 0
        async for item in _aiter_of(self._items):
            if self._is_time():
                await self._areport(self._percent(done))
            yield item
            done += 1
        await self._areport(100)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS:
            return False
        self._reported_at = now
        return True

    def _percent(self, done: int) -> float:
        return round(min(100 * done / self._total, 100), 1) if self._total else 100


async def _aiter_of(items: Any) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def total_of(items: Any, total: int | None) -> int:
    """How many items there are.

    Raises:
        InvalidArgument: the total is not a number of items; or it is not given, and the iterable has no length.
    """
    if total is None and isinstance(items, Sized):
        return len(items)
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        accepted = "an integer, 0 or more" if total is not None else "given: the iterable has no length"
        raise InvalidArgument("total", total, accepted)
    return total
