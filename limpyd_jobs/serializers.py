"""How arguments and results become a text for Redis, and values again.

What JSON cannot say is tagged: `{"$datetime": "2026-11-21T12:00:00"}`; docs/serializers.md has the table. Nothing that
is read names code to import: a dataclass is stored as a dict and an Enum as its value, and the type hint of who reads
makes them what they were.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import typing
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace, UnionType
from typing import Any
from uuid import UUID

import msgspec

from .exceptions import InvalidArgument, NotDecodable, NotSerializable, TooLarge, shorten

MAX_ARGUMENTS = 1024 * 1024  # bytes of the text that all arguments of a call become
MAX_RESULT = 1024 * 1024
MAX_DEPTH = 100  # containers in containers
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1  # what both formats have a number for
DEFAULT = "json"

# Of a hint `bytes`, msgspec would take a plain text for base64.
NEVER_FROM_TEXT = (bytes, bytearray, memoryview)


@dataclasses.dataclass(frozen=True)
class ResultOf:
    """Stands in a value for the result of another job, which is read when it is needed.

    Attributes:
        ident: of the job.
    """

    ident: str


class Serializer(ABC):
    """What makes values texts, and texts values again; one's own has `dumps` and `loads`, and is registered."""

    @abstractmethod
    def dumps(self, value: Any, what: str) -> str:
        """The text of a value.

        Args:
            what: the first word of the path in an error: `arguments`.
        Raises:
            NotSerializable: with the path; any other exception becomes one, without it.
        """

    @abstractmethod
    def loads(self, text: str) -> Any:
        """The value of a text, as far as the text alone tells it; any exception becomes `NotDecodable`."""

    def encode(self, value: Any, *, what: str = "value", max_size: int | None = None) -> str:
        """The text of a value.

        Args:
            what: names the value in errors.
            max_size: in bytes; None: any.
        Raises:
            NotSerializable: something in it cannot be stored.
            TooLarge: the text has more bytes.
        """
        try:
            text = self.dumps(value, what)
            size = len(text) if text.isascii() else len(text.encode())
        except NotSerializable:
            raise
        except Exception as error:
            raise NotSerializable((what,), type(value).__qualname__, f"{type(error).__name__}: {error}") from error
        if max_size is not None and size > max_size:
            raise TooLarge(what, size, max_size)
        return text

    def decode(self, text: str, annotation: Any = Any) -> Any:
        """The value of a text.

        Args:
            annotation: a type hint, see `restore`.
        Raises:
            NotDecodable: it is not what `encode` writes.
        """
        try:
            value = self.loads(text)
        except NotDecodable:
            raise
        except Exception as error:
            raise NotDecodable(text, f"{type(error).__name__}: {error}") from error
        return restore(value, annotation)


class JSONSerializer(Serializer):
    """JSON, with tags for what it has no word for."""

    def dumps(self, value: Any, what: str) -> str:
        """See `Serializer.dumps`."""
        return msgspec.json.encode(_Planer(what).plane(value)).decode()

    def loads(self, text: str) -> Any:
        """See `Serializer.loads`."""
        value = msgspec.json.decode(text)
        return from_plain(value) if '"$' in text or '"\\u0024' in text else value


class MsgpackSerializer(Serializer):
    """The same plain values in msgpack, as base64: shorter for numbers and bytes, unreadable for people."""

    def dumps(self, value: Any, what: str) -> str:
        """See `Serializer.dumps`."""
        return b64encode(msgspec.msgpack.encode(_Planer(what, has_bytes=True).plane(value))).decode()

    def loads(self, text: str) -> Any:
        """See `Serializer.loads`."""
        return from_plain(msgspec.msgpack.decode(b64decode(text, validate=True)))


_registered: dict[str, Serializer] = {"json": JSONSerializer(), "msgpack": MsgpackSerializer()}


def register(name: str, serializer: Serializer) -> None:
    """Make a serializer known by a name, in producers and in workers alike.

    Raises:
        InvalidArgument: the name is not a lowercase word or belongs to another serializer; `serializer` is not one.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
        raise InvalidArgument("name", name, "a lowercase letter, then letters, digits, '-' or '_', 64 at most")
    if not isinstance(serializer, Serializer):
        raise InvalidArgument("serializer", serializer, "an instance of limpyd_jobs.serializers.Serializer")
    if _registered.setdefault(name, serializer) is not serializer:
        raise InvalidArgument("name", name, f"free: it names {type(_registered[name]).__name__}")


def get(name: str = DEFAULT) -> Serializer:
    """The serializer of this name.

    Raises:
        InvalidArgument: none is registered under it.
    """
    found = _registered.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument("serializer", name, f"one of {', '.join(sorted(_registered))}, or registered before")
    return found


# --- to what both formats can say ---


class _Planer:
    """Makes values plain: None, bool, int, float, str, list, dict with texts as keys, and bytes where there are any.

    Its `steps` lead to the value that it is at, so an error knows the path.
    """

    def __init__(self, what: str, has_bytes: bool = False) -> None:
        self.steps: list[Any] = [what]
        self.has_bytes = has_bytes
        self._open: set[int] = set()  # the containers that it is in
        self._must_hash = False  # is it in a set, or in a key?

    def plane(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        writer = WRITERS.get(kind) or _writer_of_kin(kind)
        if writer is None:
            raise self.refusal(value, "no form for it is known; a serializer of your own may have one")
        return writer(self, value)

    def refusal(self, value: Any, reason: str) -> NotSerializable:
        what, *keys = self.steps
        return NotSerializable((what, *map(_step, keys)), type(value).__qualname__, reason)

    @contextmanager
    def inside(self, container: Any, is_hashed: bool | None = None) -> Iterator[None]:
        """While its items are made plain; `is_hashed`: they must come back as something that can be hashed."""
        if id(container) in self._open:
            raise self.refusal(container, "it contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise self.refusal(container, f"it is in more than {MAX_DEPTH} others")
        before = self._must_hash
        self._open.add(id(container))
        self._must_hash = before if is_hashed is None else is_hashed
        yield
        self._must_hash = before
        self._open.remove(id(container))

    def items(self, container: Iterable[Any]) -> list[Any]:
        found = []
        for place, item in enumerate(container):
            self.steps.append(place)
            found.append(self.plane(item))
            self.steps.pop()
        return found

    def of_list(self, value: Sequence[Any]) -> Any:
        self.check_hash(value)
        with self.inside(value):
            return self.items(value)

    def of_tuple(self, value: Sequence[Any]) -> Any:
        with self.inside(value):
            return {"$tuple": self.items(value)}

    def tagged_set(self, tag: str, value: Iterable[Any]) -> Any:
        with self.inside(value, is_hashed=True):
            return {tag: sorted(self.items(value), key=msgspec.json.encode)}  # so that equal sets are stored alike

    def of_set(self, value: Iterable[Any]) -> Any:
        self.check_hash(value)
        return self.tagged_set("$set", value)

    def of_dict(self, value: Mapping[Any, Any]) -> Any:
        self.check_hash(value)
        with self.inside(value):
            if all(type(key) is str and key[:1] != "$" for key in value):
                return dict(self.member(key, item) for key, item in value.items())
            return {"$dict": [self.member(key, item) for key, item in value.items()]}

    def member(self, key: Any, item: Any) -> list[Any]:
        self.steps.append(key)
        pair = [self.key(key), self.plane(item)]
        self.steps.pop()
        return pair

    def key(self, key: Any) -> Any:
        if type(key) is str:
            return self.of_text(key)
        with self.inside([], is_hashed=True):
            return self.plane(key)

    def of_dataclass(self, value: Any) -> Any:
        if self._must_hash:
            raise self.refusal(value, "in a set, and as a key, only what can be hashed without its class may be")
        with self.inside(value):
            names = [field.name for field in dataclasses.fields(value)]
            return dict(self.member(name, getattr(value, name)) for name in names)

    def check_hash(self, value: Any) -> None:
        if self._must_hash:  # of an Enum
            raise self.refusal(value, "in a set, and as a key, only what can be hashed may be")

    def of_text(self, value: str) -> str:
        text = str.__str__(value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise self.refusal(value, "it has lone surrogates, which are no characters") from None
        return text

    def of_integer(self, value: int) -> Any:
        number = int(value)
        return number if MIN_INTEGER <= number <= MAX_INTEGER else {"$int": hex(number)}

    def of_number(self, value: float) -> Any:
        number = float(value)
        return number if math.isfinite(number) else {"$float": repr(number)}

    def of_time(self, value: time) -> Any:
        if value.tzinfo is not None and value.utcoffset() is None:
            raise self.refusal(value, "its time zone has no offset without a date")
        return {"$time": time.isoformat(self.with_offset(value))}

    def of_datetime(self, value: datetime) -> Any:
        return {"$datetime": datetime.isoformat(self.with_offset(value))}

    def with_offset(self, value: Any) -> Any:
        offset = None if value.tzinfo is None else value.utcoffset()
        if offset is not None and offset.microseconds:  # Python reads +00:00:00.000001 as UTC
            raise self.refusal(value, "the offset of its time zone has a fraction of a second")
        return value

    def of_bytes(self, value: Any) -> Any:
        found = bytes(value)
        return found if self.has_bytes else {"$bytes": b64encode(found).decode()}


def _step(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{shorten(key)}]"


_Writer: typing.TypeAlias = "Callable[[_Planer, Any], Any]"

WRITERS: dict[type, _Writer] = {
    str: _Planer.of_text,
    int: _Planer.of_integer,
    float: _Planer.of_number,
    dict: _Planer.of_dict,
    list: _Planer.of_list,
    tuple: _Planer.of_tuple,
    set: _Planer.of_set,
    frozenset: lambda planer, value: planer.tagged_set("$frozenset", value),
    bytes: _Planer.of_bytes,
    bytearray: _Planer.of_bytes,
    memoryview: _Planer.of_bytes,
    datetime: _Planer.of_datetime,
    date: lambda planer, value: {"$date": date.isoformat(value)},
    time: _Planer.of_time,
    timedelta: lambda planer, value: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda planer, value: {"$decimal": Decimal.__str__(value)},
    UUID: lambda planer, value: {"$uuid": UUID.__str__(value)},
    ResultOf: lambda planer, value: {"$result": planer.of_text(value.ident)},
}


def _writer_of_kin(kind: type) -> _Writer | None:
    """What writes a class that has no form of its own: an Enum, a dataclass, or a kind of something that has one."""
    if issubclass(kind, Enum):
        return lambda planer, value: planer.plane(value.value)
    if dataclasses.is_dataclass(kind):
        return _Planer.of_dataclass
    return next((WRITERS[parent] for parent in kind.__mro__ if parent in WRITERS), None)


# --- and back ---


def from_plain(value: Any) -> Any:
    """The value of a plain one. A tag that is not known is left as it is: no dict of ours looks like one by chance."""
    if type(value) is list:
        return [from_plain(item) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        reader = READERS.get(tag)
        if reader is not None:
            return reader(content)
    return {key: from_plain(item) for key, item in value.items()}


READERS: dict[str, Callable[[Any], Any]] = {
    "$int": lambda content: int(content, 16),
    "$float": float,
    "$dict": lambda content: {from_plain(key): from_plain(item) for key, item in content},
    "$tuple": lambda content: tuple(map(from_plain, content)),
    "$set": lambda content: set(map(from_plain, content)),
    "$frozenset": lambda content: frozenset(map(from_plain, content)),
    "$bytes": lambda content: b64decode(content, validate=True),
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda content: timedelta(*content),
    "$decimal": Decimal,
    "$uuid": UUID,
    "$result": ResultOf,
}


def restore(value: Any, annotation: Any) -> Any:
    """What a type hint makes of a value that was read: dataclasses, Enums, floats of integers, tuples of lists...

    A value that does not fit, or a hint that cannot be used, leaves the value as it is: hints of Python check nothing.
    """
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    try:
        return msgspec.convert(value, annotation, builtin_types=NEVER_FROM_TEXT, str_keys=True)
    except msgspec.ValidationError:
        return value
    except Exception:  # msgspec cannot use the hint (TypeError), or a `__post_init__` did not like the value
        return _restore_otherwise(value, annotation)


def _restore_otherwise(value: Any, annotation: Any) -> Any:
    """As `restore`, for hints that msgspec refuses: an Enum of any values, a Union of what it cannot tell apart."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        try:
            return annotation(value)
        except ValueError:
            return value
    if typing.get_origin(annotation) not in (typing.Union, UnionType):
        return value
    members = typing.get_args(annotation)
    if type(value) in members:
        return value
    found = (restore(value, member) for member in members)
    return next((restored for restored in found if type(restored) is not type(value)), value)


# --- the arguments of a function ---


def encode_arguments(
    serializer: Serializer, args: Sequence[Any], kwargs: Mapping[str, Any], max_size: int | None = MAX_ARGUMENTS
) -> str:
    """The text of the arguments of a call, `[[...], {...}]`; an error says `arguments[0]`, `arguments.users[3]`.

    Raises:
        NotSerializable, TooLarge: as `Serializer.encode`.
    """
    try:
        return serializer.encode([list(args), dict(kwargs)], what="arguments", max_size=max_size)
    except NotSerializable as error:
        raise error.without_step(1) from error.__cause__


def decode_arguments(serializer: Serializer, text: str) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, as they were stored: `Hints.restore` makes of them what the function takes.

    Raises:
        NotDecodable: it is not what `encode_arguments` writes.
    """
    found = serializer.decode(text)
    if isinstance(found, list) and len(found) == 2:
        args, kwargs = found
        if isinstance(args, list) and isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs):
            return args, kwargs
    raise NotDecodable(text, "arguments must be a list of a list and a dict")


class Hints:
    """The type hints of a function: those of its parameters, and what it returns.

    Annotations that are texts are resolved, each for itself; one that cannot be resolved counts as none.

    Args:
        skip: how many of the first parameters a caller does not give: 1 for a function that gets its job first.
    Attributes:
        result: the hint of what it returns; Any without one.
    """

    def __init__(self, function: Callable[..., Any], skip: int = 0) -> None:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
        hints = _resolved_hints(function)
        self.result = hints.get("return", Any)
        self._positional = [
            hints.get(parameter.name, Any) for parameter in parameters if parameter.kind in _GIVEN_BY_PLACE
        ]
        self._named = {
            parameter.name: hints.get(parameter.name, Any)
            for parameter in parameters
            if parameter.kind in _GIVEN_BY_NAME
        }
        rest = {parameter.kind: hints.get(parameter.name, Any) for parameter in parameters}
        self._other_positional = rest.get(inspect.Parameter.VAR_POSITIONAL, Any)
        self._other_named = rest.get(inspect.Parameter.VAR_KEYWORD, Any)

    def restore(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call as the hints say."""
        more = max(len(args) - len(self._positional), 0)
        by_place = [*self._positional, *[self._other_positional] * more]
        restored = [restore(value, hint) for value, hint in zip(args, by_place, strict=False)]
        named = {name: restore(value, self._named.get(name, self._other_named)) for name, value in kwargs.items()}
        return restored, named


_GIVEN_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_GIVEN_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _resolved_hints(function: Any) -> dict[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):  # an instance with `__call__`
        function = type(function).__call__
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        alone = SimpleNamespace(__annotations__={name: hint})
        try:
            found.update(typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True))
        except Exception:  # a text may name anything, or nothing
            continue
    return found
