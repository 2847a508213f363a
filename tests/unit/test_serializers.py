"""Arguments and results become texts, and values again. No Redis."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpyd_jobs import serializers
from limpyd_jobs.exceptions import InvalidArgument, NotDecodable, NotSerializable, TooLarge
from limpyd_jobs.serializers import Hints, ResultOf, Serializer, decode_arguments, encode_arguments

from ..base import ROOT

JSON = serializers.get("json")
BOTH = ["json", "msgpack"]


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass(frozen=True)
class Visit:
    at: datetime
    places: list[Point]
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Tag:
    name: str


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Mixed(Enum):
    PAIR = (1, 2)
    WORD = "word"


class Named(NamedTuple):
    first: int
    second: str


@dataclasses.dataclass
class Other:
    name: str


# --- what goes in comes out ---


def whole_seconds(offset: timedelta) -> timedelta:
    return offset - timedelta(microseconds=offset.microseconds)


OFFSETS = (
    st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(whole_seconds).map(timezone)
)
HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | OFFSETS)
    | st.dates()
    | st.times(timezones=st.none() | OFFSETS)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.text().map(ResultOf),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
KEYS = HASHABLE | st.text(max_size=2).map("$".__add__) | st.sampled_from(sorted(serializers.READERS))
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """The value with the class of each part: 1, 1.0 and True are equal for Python."""
    if isinstance(value, dict):
        return dict, {repr(shape(key)): shape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [shape(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(shape(item)) for item in value)
    if isinstance(value, (datetime, time)):
        value = value.replace(fold=0)  # it is not stored: an offset says more
    return type(value), repr(value), getattr(value, "tzinfo", None) and value.utcoffset()


@pytest.mark.parametrize("name", BOTH)
@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_a_value_comes_back_as_it_was(name: str, value: Any) -> None:
    serializer = serializers.get(name)

    found = serializer.decode(serializer.encode(value))

    assert found == value
    assert shape(found) == shape(value)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("number", [math.inf, -math.inf, -0.0, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**300])
def test_an_unusual_number_comes_back(name: str, number: float) -> None:
    serializer = serializers.get(name)

    assert shape(serializer.decode(serializer.encode([number]))) == shape([number])


@pytest.mark.parametrize("name", BOTH)
def test_a_number_comes_back_that_python_would_not_print(name: str) -> None:
    serializer = serializers.get(name)

    assert serializer.decode(serializer.encode(10**6000)) == 10**6000


@pytest.mark.parametrize("name", BOTH)
def test_what_is_no_number_comes_back(name: str) -> None:
    serializer = serializers.get(name)

    number, decimal = serializer.decode(serializer.encode((math.nan, Decimal("sNaN12"))))

    assert math.isnan(number) and str(decimal) == "sNaN12"


@pytest.mark.parametrize("name", BOTH)
def test_the_text_can_be_held_by_a_hash_of_redis(name: str) -> None:
    text = serializers.get(name).encode({"é": b"\xff\x00", "nul": "\x00"})

    assert isinstance(text, str) and text.encode().decode() == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"to": "a@b.c", "n": [1, 2.5, None, True]}, '{"to":"a@b.c","n":[1,2.5,null,true]}'),
        (datetime(2026, 11, 21, 12), '{"$datetime":"2026-11-21T12:00:00"}'),
        (datetime(2026, 11, 21, 12, tzinfo=timezone.utc), '{"$datetime":"2026-11-21T12:00:00+00:00"}'),
        (date(2026, 11, 21), '{"$date":"2026-11-21"}'),
        (time(12, 30), '{"$time":"12:30:00"}'),
        (timedelta(days=1, seconds=2), '{"$timedelta":[1,2,0]}'),
        (Decimal("1.50"), '{"$decimal":"1.50"}'),
        (UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        (b"abc", '{"$bytes":"YWJj"}'),
        ((1, "a"), '{"$tuple":[1,"a"]}'),
        ({3, 1}, '{"$set":[1,3]}'),
        (frozenset({"b", "a"}), '{"$frozenset":["a","b"]}'),
        ({1: "a"}, '{"$dict":[[1,"a"]]}'),
        ({"$date": "no"}, '{"$dict":[["$date","no"]]}'),
        (math.inf, '{"$float":"inf"}'),
        (2**64, '{"$int":"0x10000000000000000"}'),
        (ResultOf("app.Job:1"), '{"$result":"app.Job:1"}'),
        (Color.RED, '"red"'),
        (Point(1), '{"x":1,"y":0.0}'),
    ],
    ids=lambda value: type(value).__name__,  # the text of a set differs from process to process
)
def test_each_type_has_its_form(value: Any, text: str) -> None:
    assert JSON.encode(value) == text


def test_the_document_has_each_tag() -> None:
    document = (ROOT / "docs" / "serializers.md").read_text()

    assert [tag for tag in serializers.READERS if f'"{tag}"' not in document] == []


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (OrderedDict(a=1), {"a": 1}),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (Named(1, "a"), (1, "a")),
        (type("Word", (str,), {})("a"), "a"),
        (Size.SMALL, 1),
        ({Color.RED: 1}, {"red": 1}),
        (
            datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Paris")),
            datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=2))),
        ),
    ],
    ids=lambda value: type(value).__name__,  # a memoryview has its address in its text
)
def test_a_kind_of_something_comes_back_as_that(value: Any, found: Any) -> None:
    assert shape(JSON.decode(JSON.encode(value))) == shape(found)


def test_equal_sets_have_the_same_text() -> None:
    words = [str(number) for number in range(100)]

    assert JSON.encode(set(words)) == JSON.encode(set(reversed(words)))


def test_a_tag_that_nobody_knows_stays_a_dict() -> None:
    assert JSON.decode('{"$ref": "x"}') == {"$ref": "x"}


def test_nothing_is_imported_for_a_text() -> None:
    text = '{"$dataclass": "os:system", "$enum": ["antigravity", 1]}'

    assert JSON.decode(text) == {"$dataclass": "os:system", "$enum": ["antigravity", 1]}


# --- what cannot be stored ---


def circular() -> list[Any]:
    value: list[Any] = [1]
    value.append({"self": value})
    return value


def nested(depth: int) -> Any:
    return functools.reduce(lambda inner, _: {"a": (inner,)}, range(depth // 2), None)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"users": [0, 1, 2, {"when": threading.Lock()}]}, "value.users[3].when", "lock cannot be stored: no form"),
        ({"a b": object()}, "value['a b']", "object cannot be stored"),
        ({1: object()}, "value[1]", "object cannot be stored"),
        ({(1, object): 1}, "value[(1, <class 'object'>)][1]", "type cannot be stored"),
        ([Point(1, object())], "value[0].y", "object cannot be stored"),  # type: ignore[arg-type]
        ((Path("/tmp"),), "value[0]", "Path cannot be stored"),
        (["\ud800"], "value[0]", "lone surrogates"),
        ({"\ud800": 1}, "value['\\ud800']", "lone surrogates"),
        (circular(), "value[1].self", "it contains itself"),
        (nested(102), "value" + ".a[0]" * 50, "more than 100"),
        ({Tag("a")}, "value[0]", "can be hashed"),
        ({Tag("a"): 1}, f"value[{Tag('a')!r}]", "can be hashed"),
        ({ResultOf: 1}, "value[<class 'limpyd_jobs.serializers.ResultOf'>]", "type cannot be stored"),
        ([time(tzinfo=timezone(timedelta(microseconds=1)))], "value[0]", "a fraction of a second"),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=1.5))), "value", "a fraction of a second"),
        (time(12, tzinfo=ZoneInfo("Europe/Paris")), "value", "no offset without a date"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_with_its_path(name: str, value: Any, path: str, reason: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        serializers.get(name).encode(value)

    assert caught.value.argument == path
    assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


@pytest.mark.parametrize("name", BOTH)
def test_what_is_as_deep_as_it_may_be_comes_back(name: str) -> None:
    serializer, value = serializers.get(name), nested(serializers.MAX_DEPTH)

    assert serializer.decode(serializer.encode(value)) == value


def test_what_is_there_twice_does_not_contain_itself() -> None:
    shared = [1]

    assert JSON.decode(JSON.encode([shared, {"again": shared}])) == [[1], {"again": [1]}]


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ([1, object()], {}, "arguments[1]"),
        ([], {"users": [0, {"when": object()}]}, "arguments.users[1].when"),
    ],
)
def test_the_path_to_an_argument_is_as_the_caller_wrote_it(args: list[Any], kwargs: dict[str, Any], path: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        encode_arguments(JSON, args, kwargs)

    assert str(caught.value).startswith(f"{path}: object cannot be stored")


def test_a_text_may_be_as_large_as_its_limit() -> None:
    assert JSON.encode("é" * 49, max_size=100) == '"' + "é" * 49 + '"'


@pytest.mark.parametrize("name", BOTH)
def test_a_text_that_is_larger_is_refused_with_both_sizes(name: str) -> None:
    with pytest.raises(TooLarge) as caught:
        serializers.get(name).encode("é" * 200, what="result", max_size=100)

    assert caught.value.size > caught.value.limit == 100
    assert f"result: {caught.value.size} bytes are too many, 100 at most" in str(caught.value)


def test_arguments_have_a_limit_by_default() -> None:
    with pytest.raises(TooLarge, match="arguments: 1048"):
        encode_arguments(JSON, ["x" * serializers.MAX_ARGUMENTS], {})


# --- what cannot be read ---


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    "text", ["", "{", "é", '{"$date":"yesterday"}', '{"$set":[[]]}', '{"$timedelta":1}', "[" * 9999]
)
def test_another_text_is_not_decoded(name: str, text: str) -> None:
    with pytest.raises(NotDecodable, match="Unable to decode"):
        serializers.get(name).decode(text)


@pytest.mark.parametrize("text", ["1", "[]", "[[]]", "[1,{}]", "[[],[]]", '[[],{"$dict":[[1,2]]}]'])
def test_another_text_is_no_arguments(text: str) -> None:
    with pytest.raises(NotDecodable, match="a list of a list and a dict"):
        decode_arguments(JSON, text)


# --- type hints ---


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Point(1, 2.0), Point),
        ([Point(1)], list[Point]),
        ({"a": [Point(1)]}, dict[str, list[Point]]),
        (Point(1), Optional[Point]),  # noqa: UP045
        (None, Point | None),
        (Visit(datetime(2026, 1, 1, tzinfo=timezone.utc), [Point(1)], frozenset({"a"})), Visit),
        ({"a": Other("x")}, dict[str, Other]),
        (Color.RED, Color),
        (Color.RED, Optional[Color]),  # noqa: UP045
        ({Color.RED: 1}, dict[Color, int]),
        ({Color.RED, Color.BLUE}, set[Color]),
        (Size.SMALL, Size),
        (Mixed.PAIR, Mixed),
        (Mixed.WORD, Mixed),
        (Named(1, "a"), Named),
        (Other("a"), Union[Point, Other]),  # noqa: UP007
        (Point(1), Point | Other),
        (Other("a"), Point | Other | None),
        (datetime(2026, 1, 1), datetime | date),
        (date(2026, 1, 1), datetime | date),
        (bytearray(b"a"), bytearray),
    ],
    ids=lambda value: type(value).__name__,  # the text of a set differs from process to process
)
def test_a_hint_restores_the_class(name: str, value: Any, hint: Any) -> None:
    serializer = serializers.get(name)

    found = serializer.decode(serializer.encode(value), hint)

    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1", float, 1.0),
        ("[1,2]", tuple[int, ...], (1, 2)),
        ('[1,"a"]', tuple[int, str], (1, "a")),
        ("[1,2]", set[int], {1, 2}),
        ('{"1":"a"}', dict[int, str], {1: "a"}),
        ('{"1":{"x":2}}', dict[int, Point], {1: Point(2)}),
        ('"2026-11-21T12:00:00"', datetime, datetime(2026, 11, 21, 12)),
        ('"1.50"', Decimal, Decimal("1.50")),
        ('["00000000-0000-0000-0000-000000000001"]', list[UUID], [UUID(int=1)]),
        ("1", int | float, 1),
        ('"5"', int | str, "5"),
    ],
)
def test_a_hint_restores_what_another_program_wrote(text: str, hint: Any, value: Any) -> None:
    assert shape(JSON.decode(text, hint)) == shape(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("5", int),
        ("abcd", bytes),
        ("green", Color),
        ("other", Mixed),
        ({"y": 1}, Point),
        (1, threading.Thread),
        ([1], list[threading.Thread]),
        (1, "a text"),
        (1, Callable[[int], int]),
        (1, Point | Other),
        (1, ...),
    ],
    ids=lambda value: type(value).__name__,  # the text of a set differs from process to process
)
def test_a_value_that_a_hint_does_not_fit_stays_as_it_is(value: Any, hint: Any) -> None:
    assert shape(JSON.decode(JSON.encode(value), hint)) == shape(value)


def test_the_arguments_of_a_function_are_restored_by_its_hints() -> None:
    def move(job: Any, start: Point, /, end: Point, *ways: Color, speed: float = 1, **more: Other) -> Visit: ...

    text = encode_arguments(JSON, [Point(1), Point(2), Color.RED], {"speed": 3, "who": Other("a"), "job": Other("b")})
    hints = Hints(move, skip=1)

    args, kwargs = hints.restore(*decode_arguments(JSON, text))

    assert args == [Point(1), Point(2), Color.RED]
    assert kwargs == {"speed": 3.0, "who": Other("a"), "job": Other("b")} and type(kwargs["speed"]) is float
    assert hints.result is Visit


def test_a_hint_that_cannot_be_resolved_does_not_hinder_others() -> None:
    def call(a: Gone, b: Point, c: "Gone | None" = None) -> Gone: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    hints = Hints(call)

    assert hints.restore([{"x": 1}, {"x": 1}], {"c": 1}) == ([{"x": 1}, Point(1)], {"c": 1})
    assert hints.result is Any


def test_a_function_that_is_wrapped_has_its_own_hints() -> None:
    def call(a: int, point: Point) -> None: ...

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert Hints(wrapper).restore([1, {"x": 1}], {}) == ([1, Point(1)], {})
    assert Hints(functools.partial(call, 1)).restore([{"x": 1}], {}) == ([Point(1)], {})


def test_an_object_that_can_be_called_has_the_hints_of_its_method() -> None:
    class Caller:
        point: int

        def __call__(self, point: Point) -> None: ...

    assert Hints(Caller()).restore([], {"point": {"x": 1}}) == ([], {"point": Point(1)})


def test_arguments_that_a_function_does_not_take_stay_as_they_are() -> None:
    assert Hints(lambda a: a).restore([1, 2], {"b": 3}) == ([1, 2], {"b": 3})


# --- serializers of one's own ---


class Reversed(Serializer):
    """Texts, backwards."""

    def dumps(self, value: Any, what: str) -> str:
        return "".join(reversed(value))

    def loads(self, text: str) -> Any:
        return text[::-1]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Serializer:
    monkeypatch.setattr(serializers, "_registered", dict(serializers._registered))
    serializer = Reversed()
    serializers.register("reversed", serializer)
    return serializer


def test_a_serializer_of_ones_own_is_used_by_its_name(registered: Serializer) -> None:
    assert serializers.get("reversed") is registered
    assert registered.encode("abc") == "cba" and registered.decode("cba") == "abc"


def test_it_may_be_registered_again_under_its_name(registered: Serializer) -> None:
    serializers.register("reversed", registered)

    assert serializers.get("reversed") is registered


def test_its_errors_are_ours(registered: Serializer) -> None:
    with pytest.raises(NotSerializable, match=r"^result: int cannot be stored: TypeError"):
        registered.encode(1, what="result")
    with pytest.raises(NotDecodable, match="TypeError"):
        registered.decode(1)  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        registered.encode("abc", max_size=2)


@pytest.mark.parametrize("name", ["", "JSON", "a b", "1a", None, 3, "x" * 65, "json", "msgpack"])
def test_a_serializer_is_not_registered_under_a_bad_name_or_that_of_another(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        serializers.register(name, Reversed())


def test_only_a_serializer_is_registered() -> None:
    with pytest.raises(InvalidArgument, match="an instance of"):
        serializers.register("other", Reversed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pickle", "", None, []])
def test_a_serializer_that_is_not_registered_is_refused_with_those_that_are(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="json, msgpack"):
        serializers.get(name)
