"""Whether a job is tried again, and when. No Redis, no chance, no clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import redis

from limpyd_jobs import run_options
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, JobTimeout, Retry
from limpyd_jobs.retries import NO_LIMIT, Backoff, Retries, exception_names, is_one_of, parse_backoff
from limpyd_jobs.utils import check_on

BOOM = ValueError("boom")


class OwnError(OSError):
    """An error of the user's."""


def delays(backoff: Any, count: int = 5, default: float = 30) -> list[float]:
    parsed = parse_backoff("backoff", backoff)
    return [parsed.delay_before(number, default, lambda: 0.5) for number in range(1, count + 1)]


# --- Backoff


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        ("constant", [30, 30, 30, 30, 30]),
        ("linear", [30, 60, 90, 120, 150]),
        ("exponential", [30, 60, 120, 240, 480]),
        ("exponential:1", [1, 2, 4, 8, 16]),
        ("exponential:1:5", [1, 2, 4, 5, 5]),
        ("exponential:1:5:jitter", [0.5, 1, 2, 2.5, 2.5]),
        ("exponential:::jitter", [15, 30, 60, 120, 240]),
        ("constant:7200", [7200] * 5),
        ("1,10, 60", [1, 10, 60, 60, 60]),
        ("10", [10] * 5),
        ([1, timedelta(minutes=1)], [1, 60, 60, 60, 60]),
        (Backoff(delay=1, factor=3), [1, 3, 9, 27, 81]),
        ({"kind": "linear", "delay": 2}, [2, 4, 6, 8, 10]),
    ],
)
def test_each_form_of_a_backoff_gives_its_delays(backoff: Any, expected: list[float]) -> None:
    assert delays(backoff) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "quick", "exponential:x", "exponential:1:2:yes", "exponential:1:2:jitter:3", "1,,2", "-1", "1,nan"),
        *({"kind": "quick"}, {"speed": 1}, {"jitter": "no"}, {"factor": 0.5}, {"delay": -1}, {1: 2}),
        *([], [-1], ["1"], [1e12], [1] * 2000, 5, True),
    ],
)
def test_what_is_no_backoff_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Invalid backoff argument.*exponential:1:3600:jitter"):
        parse_backoff("backoff", value)


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_growing_delays_stop_at_the_maximum_however_often_a_job_is_tried(kind: str) -> None:
    assert Backoff(kind).delay_before(10**6, 30) == 3600


def test_full_jitter_is_between_nothing_and_the_delay() -> None:
    backoff = Backoff("constant", 10, jitter=True)
    assert [backoff.delay_before(1, 30, lambda chance=chance: chance) for chance in (0, 0.25, 1)] == [0, 2.5, 10]


@pytest.mark.parametrize(
    ("backoff", "stored"),
    [
        (Backoff("linear"), "linear"),
        (Backoff(delays=(1, 2)), [1, 2]),
        (Backoff(delay=1, jitter=True), {"kind": "exponential", "delay": 1, "jitter": True}),
        (Backoff(delays=(1,), jitter=True), {"kind": "exponential", "delays": (1,), "jitter": True}),
    ],
)
def test_a_backoff_is_stored_in_its_shortest_form(backoff: Backoff, stored: Any) -> None:
    assert backoff.to_json() == stored
    assert parse_backoff("backoff", stored) == backoff


# --- Exceptions by name


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (ValueError, ("builtins.ValueError",)),
        ("ValueError", ("builtins.ValueError",)),
        ("IOError, app.errors.Late", ("builtins.OSError", "app.errors.Late")),
        ([OwnError, "KeyError", OwnError], (f"{__name__}.OwnError", "builtins.KeyError")),
        ([], ()),
    ],
)
def test_exceptions_are_stored_by_name(value: Any, names: tuple[str, ...]) -> None:
    assert exception_names("retry_on", value) == names


@pytest.mark.parametrize("value", ["", "Late", "app..Late", "int", int, 5, [5], {"a": 1}, "ValueError,", b"ValueError"])
def test_what_names_no_exception_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Invalid retry_on argument.*module\.Class"):
        exception_names("retry_on", value)


def test_an_exception_is_matched_by_the_names_of_its_bases_and_by_other_names_of_these() -> None:
    error = OwnError("late")
    assert is_one_of(error, ["builtins.OSError"])
    assert is_one_of(error, [f"{__name__}.OwnError"])
    assert is_one_of(TimeoutError(), ["socket.timeout"])
    assert is_one_of(redis.ConnectionError(), ["redis.ConnectionError"])
    assert not is_one_of(error, ["builtins.ValueError", "app.errors.Late"])


def test_nothing_is_imported_to_match_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.__import__", lambda *_, **__: pytest.fail("imported"))
    found = is_one_of(BOOM, ["turtledemo.clock.Late"])
    monkeypatch.undo()
    assert not found


# --- Is it tried again?


def answer(tries: int, error: BaseException = BOOM, **said: Any) -> float | None:
    return Retries(**said).delay_before_retry(tries, error, lambda: 1)


def test_nothing_is_tried_again_when_nobody_has_said_so() -> None:
    assert answer(1) is None
    assert Retries().limit(BOOM) == 0


def test_a_number_of_retries_is_kept() -> None:
    assert [answer(tries, requeue_times=2, requeue_delay_delta=7) for tries in (1, 2, 3)] == [7, 7, None]


def test_a_name_of_a_backoff_alone_retries_nothing() -> None:
    assert answer(1, backoff=Backoff("linear")) is None


def test_a_list_of_delays_is_as_many_retries_unless_their_number_is_given() -> None:
    backoff = Backoff(delays=(1, 10))
    assert [answer(tries, backoff=backoff) for tries in (1, 2, 3)] == [1, 10, None]
    assert [answer(tries, backoff=backoff, requeue_times=3) for tries in (1, 2, 3, 4)] == [1, 10, 10, None]
    assert answer(1, backoff=backoff, requeue_times=0) is None


def test_only_some_exceptions_are_retried_and_others_never() -> None:
    said: dict[str, Any] = {
        "requeue_times": 1,
        "retry_on": ("builtins.OSError",),
        "no_retry_on": (f"{__name__}.OwnError",),
    }
    assert answer(1, OSError(), **said) == 30
    assert answer(1, ValueError(), **said) is None
    assert answer(1, OwnError(), **said) is None


def test_an_empty_list_of_exceptions_retries_none() -> None:
    assert answer(1, requeue_times=1, retry_on=()) is None


def test_a_timeout_is_an_error_like_any_other() -> None:
    names = exception_names("no_retry_on", JobTimeout)
    assert answer(1, JobTimeout("a:1", 5), requeue_times=1) == 30
    assert answer(1, JobTimeout("a:1", 5), requeue_times=1, no_retry_on=names) is None


def test_a_job_that_asks_for_it_is_tried_again_when_it_says() -> None:
    assert answer(1, Retry(delayed_for=5)) == 5
    assert Retries().delay(1, Retry(delayed_until=datetime(2026, 1, 2)), now=datetime(2026, 1, 1)) == 86400
    assert answer(9, Retry(), backoff=Backoff("linear", 2)) == 18


def test_a_job_that_asks_for_it_is_limited_by_the_number_of_retries_alone() -> None:
    assert Retries().limit(Retry()) == NO_LIMIT
    assert answer(1, Retry(), requeue_times=1, retry_on=("builtins.OSError",)) == 30
    assert answer(2, Retry(), requeue_times=1) is None


# --- What is stored


def test_the_options_of_a_job_are_stored_as_compact_json() -> None:
    given = {"retry_on": OSError, "expires": 5, "job_timeout": timedelta(seconds=5), "backoff": [1, 10]}
    text = run_options.to_text(given, 1000)
    assert text == '{"expires":1005.0,"job_timeout":5.0,"backoff":[1,10],"retry_on":["builtins.OSError"]}'
    assert run_options.read(text) == {
        "expires": 1005,
        "job_timeout": 5,
        "backoff": Backoff(delays=(1, 10)),
        "retry_on": ("builtins.OSError",),
    }


def test_an_expiry_may_be_a_moment() -> None:
    assert run_options.to_text({"expires": datetime(1970, 1, 2)}, 1000) == '{"expires":86400.0}'


@pytest.mark.parametrize(
    "text", ["", "5", "[]", "{", '{"expires":"soon"}', '{"expires":true}', '{"job_timeout":-1}', '{"backoff":"quick"}']
)
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        run_options.read(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job_timeout", 0),
        ("job_timeout", "5"),
        ("expires", -1),
        ("expires", "soon"),
        ("requeue_times", -1),
        ("requeue_times", 1.5),
        ("requeue_times", True),
        ("requeue_delay_delta", -1),
        ("backoff", "quick"),
        ("retry_on", "Late"),
        ("no_retry_on", 5),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid {name} argument.*must be"):
        run_options.check(name, value)
    with pytest.raises(ConfigurationException, match=rf"Invalid MailJob\.{name}: .*must be"):
        check_on("MailJob", run_options.check, name, value)
