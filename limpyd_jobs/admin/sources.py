"""Which records may be meant: their primary keys, the newest first, read in bounded pages from the smallest place.

The order of a class: numbers, which Redis has given, the highest first; then keys that users have chosen. It does not
depend on when or from where they are read: so a primary key is all that is needed to go on.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from ..exceptions import InvalidArgument
from .reading import MEMBERS, ask, chunks, is_wrong_type

T = TypeVar("T")
R = TypeVar("R", covariant=True)
Order = tuple[int, int, str]

FEW = 10_000  # primary keys that are read and put in order at once
MOST = 100_000  # that are held in memory
FIRST_STEP = 100  # primary keys that are looked at first, when they are tried one after the other
LONGEST_STEP = 8 * MEMBERS
LONGEST_NUMBER = 16  # digits of a primary key that Redis has given
AT_THE_START: Order = (2, 0, "")


class Source(Protocol):
    """Some of the records of a class.

    Attributes:
        size: how many there are, more or less.
    """

    size: int

    def scan(self) -> Iterator[str]:
        """Their primary keys, in no order, some perhaps twice."""

    def among(self, pks: list[str]) -> Iterator[str]:
        """Those of some primary keys that are of it, in their order."""


class Sets:
    """The records that are in one of some sets.

    Args:
        size: how many members the sets have.
    """

    def __init__(self, client: Any, keys: Sequence[str], size: int) -> None:
        self._client, self.size = client, size
        self._keys = (*keys, *keys[:-1])  # a record may move from one set to another while they are read

    def scan(self) -> Iterator[str]:
        """Page by page."""
        for key in self._keys:
            yield from self._client.sscan_iter(key, count=MEMBERS)

    def among(self, pks: list[str]) -> Iterator[str]:
        """Asks all of the sets for each; a round trip."""
        parts = list(chunks(pks, MEMBERS))
        replies = ask(self._client, (("SMISMEMBER", key, *part) for part in parts for key in self._keys))
        for part in parts:
            found = [next(replies) for _ in self._keys]
            yield from (pk for pk, *is_in in zip(part, *found, strict=True) if any(is_in))


class Range:
    """The records that a sorted set of texts has between two of these: each a value, a separator and a primary key.

    Args:
        bounds: as ZRANGEBYLEX takes them.
        collection: the key of the set of all records, which is asked for single ones: it has more than the range.
    """

    def __init__(
        self, client: Any, key: str, bounds: tuple[str, str], separator: str, collection: str, size: int
    ) -> None:
        self._client, self._key, self._bounds, self._separator = client, key, bounds, separator
        self._all, self.size = Sets(client, (collection,), size), size

    @classmethod
    def read(cls, client: Any, key: str, bounds: tuple[str, str], separator: str, collection: str) -> Range | None:
        """The range with its size; None: something else is under the key."""
        size = next(ask(client, [("ZLEXCOUNT", key, *bounds)]))
        return None if is_wrong_type(size) else cls(client, key, bounds, separator, collection, size)

    def scan(self) -> Iterator[str]:
        """Page by page, each from the last member of the one before."""
        first, last = self._bounds
        while members := self._client.zrangebylex(self._key, first, last, 0, MEMBERS):
            yield from (member.rpartition(self._separator)[2] for member in members)
            first = f"({members[-1]}"

    def among(self, pks: list[str]) -> Iterator[str]:
        """Those that exist."""
        return self._all.among(pks)


class Chosen:
    """Records that are known already."""

    def __init__(self, pks: Collection[str]) -> None:
        self._pks, self.size = set(pks), len(pks)

    def scan(self) -> Iterator[str]:
        """All of them."""
        return iter(self._pks)

    def among(self, pks: list[str]) -> Iterator[str]:
        """Those that are known."""
        return (pk for pk in pks if pk in self._pks)


def order_of(pk: str) -> Order:
    """What the primary keys of a class are ordered by, the newest with the highest."""
    is_number = pk.isascii() and pk.isdigit() and len(pk) <= LONGEST_NUMBER and (pk == "0" or pk[0] != "0")
    return (1, int(pk), "") if is_number else (0, 0, pk)


def newest(source: Source, top: int, below: Order = AT_THE_START) -> Iterator[str]:
    """The primary keys of a source, the newest first.

    One that is small is read, and put in order. A large one is not: the numbers are tried from the highest one down,
    and when as many were tried as the source holds, so that it may hold few of the next ones, it is read after all.

    Args:
        top: the highest number that Redis has given; 0: it gave none.
        below: only those that come after this one.
    """
    position = below
    while source.size:
        if source.size > FEW and top and position[0]:
            number = top if position[0] > 1 else min(position[1] - 1, top)
            stop = max(number - source.size, 0)
            yield from _tried(source, number, stop)
            position = (1, stop + 1, "")
        found = heapq.nlargest(MOST, (order for order in map(order_of, source.scan()) if order < position))
        for order in dict.fromkeys(found):
            yield str(order[1]) if order[0] else order[2]
        if len(found) < MOST:
            return
        position = found[-1]


def _tried(source: Source, number: int, stop: int) -> Iterator[str]:
    """The numbers from one down to another, which is not included, that are of a source."""
    step = FIRST_STEP
    while number > stop:
        last = max(number - step, stop)
        yield from source.among([str(one) for one in range(number, last, -1)])
        number, step = last, min(step * 2, LONGEST_STEP)


def growing(items: Iterable[T], first: int, most: int) -> Iterator[list[T]]:
    """The items in chunks, each twice as long as the one before: little is read for a short page."""
    iterator, size = iter(items), min(first, most)
    while chunk := list(islice(iterator, size)):
        yield chunk
        size = min(size * 2, most)


def to_top(text: Any) -> int:
    """The number in a key `max_pk`; 0: there is none, or something else is there."""
    is_number = isinstance(text, str) and text.isdecimal() and len(text) <= LONGEST_NUMBER
    return int(text) if is_number else 0


def smallest(client: Any, models: Iterable[Mapping[Any, Sequence[str]]]) -> list[tuple[Sets, Any]]:
    """For each of some models the source with the fewest members, and the name of this option.

    Args:
        models: the options: by name the keys of sets, one of which has each record that is meant. Options with keys of
            a wrong type are left out.
    """
    models = list(models)
    keys = [key for options in models for key in chain.from_iterable(options.values())]
    sizes = dict(zip(keys, ask(client, (("SCARD", key) for key in keys)), strict=True))
    return [_smallest(client, options, sizes) for options in models]


def _smallest(client: Any, options: Mapping[Any, Sequence[str]], sizes: Mapping[str, Any]) -> tuple[Sets, Any]:
    usable = {name: keys for name, keys in options.items() if not any(is_wrong_type(sizes[key]) for key in keys)}
    found = [(Sets(client, keys, sum(sizes[key] for key in keys)), name) for name, keys in usable.items()]
    return min(found, key=lambda option: option[0].size, default=(Sets(client, (), 0), ""))


# --- Pages over several classes


class Stream(Protocol[R]):
    """The records of one class that are meant.

    Attributes:
        key: its key prefix.
        top: as for `newest`.
    """

    key: str
    top: int

    def read(self, below: Order, first: int) -> Iterator[tuple[str, R]]:
        """Primary keys and records, the newest first.

        Args:
            first: how many are wanted soon.
        """


def page_of(
    streams: Iterable[Stream[T]], limit: int, after: str | None, recency: Callable[[T], str]
) -> tuple[list[T], str | None]:
    """A page of the records of several classes, and what to pass as `after` for the next one.

    Args:
        recency: what a record is ordered by among those of other classes.
    Raises:
        InvalidArgument: `limit` or `after` is not accepted.
    """
    check_limit(limit)
    positions = None if after is None else _read_token(after)
    kept = [stream for stream in streams if positions is None or stream.key in positions]
    next_positions = {stream.key: (positions or {}).get(stream.key, _start_of(stream)) for stream in kept}
    items: list[T] = []
    for key, pk, item in _merged(kept, next_positions, limit + 1, recency):
        if len(items) == limit:
            return items, _to_token(next_positions)
        next_positions[key] = pk
        items.append(item)
    return items, None


def each_of(streams: Iterable[Stream[T]], recency: Callable[[T], str]) -> Iterator[T]:
    """All records of several classes that are there now, the newest first."""
    kept = list(streams)
    for _, _, item in _merged(kept, {stream.key: _start_of(stream) for stream in kept}, MEMBERS, recency):
        yield item


def _start_of(stream: Stream[Any]) -> str:
    """What the records that are there now come after; '' for all, where no numbers tell which are new."""
    return str(stream.top + 1) if stream.top else ""


def _merged(
    streams: list[Stream[T]], positions: Mapping[str, str], first: int, recency: Callable[[T], str]
) -> Iterator[tuple[str, str, T]]:
    def read(stream: Stream[T]) -> Iterator[tuple[str, str, T]]:
        below = order_of(positions[stream.key]) if positions[stream.key] else AT_THE_START
        return ((stream.key, pk, item) for pk, item in stream.read(below, first))

    return heapq.merge(*map(read, streams), key=lambda found: (order_of(found[1])[0], recency(found[2])), reverse=True)


def check_limit(limit: Any) -> None:
    """Raise InvalidArgument when a page cannot have so many items."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MEMBERS:
        raise InvalidArgument("limit", limit, f"an integer from 1 to {MEMBERS}")


def _to_token(positions: Mapping[str, str]) -> str:
    text = json.dumps(positions, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(text: str) -> dict[str, str]:
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return {str(key): str(pk) for key, pk in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise InvalidArgument("after", text, "what `next` of a page was") from None
