"""Ending what takes too long by a timer. No Redis."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.workers.time_limit import TimeLimit, can_limit_time

from ..base import wait_until


class Late(BaseException):
    """What the limits of these tests raise."""


@pytest.fixture(autouse=True)
def alarm_of_pytest() -> Iterator[None]:
    """pytest-timeout may have a timer under way."""
    handler = signal.getsignal(signal.SIGALRM)
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, left, interval)


def limit(seconds: float, text: str = "late") -> TimeLimit:
    return TimeLimit(seconds, lambda: Late(text))


def spin() -> None:
    """Run for ever, in Python."""
    while True:
        pass


def sleep() -> None:
    time.sleep(60)


def wait_for_event() -> None:
    threading.Event().wait(60)


def read_pipe() -> None:
    reader, writer = os.pipe()
    try:
        os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("body", [spin, sleep, wait_for_event, read_pipe])
def test_a_body_that_takes_too_long_is_ended(body: Callable[[], None]) -> None:
    with pytest.raises(Late), limit(0.05):
        body()


def test_a_body_that_is_quick_enough_runs_to_its_end() -> None:
    done = []

    with limit(60):
        done.append(1)

    assert done == [1]


def test_nothing_is_left_behind() -> None:
    with limit(60):
        pass

    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_nothing_is_left_behind_by_a_limit_that_has_raised() -> None:
    with pytest.raises(Late), limit(0.01):
        spin()

    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_error_of_a_body_passes() -> None:
    with pytest.raises(ZeroDivisionError), limit(60):
        _ = 1 / 0

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def spin_until(end: float) -> None:
    # a function of its own: Python 3.13 leaves the jump at the end of such a loop out of the blocks around it
    while time.perf_counter() < end:
        pass


def test_a_limit_that_ends_with_the_body_never_raises_later() -> None:
    late, escaped = 0, 0
    for turn in range(10_000):
        end = time.perf_counter() + (turn % 20) * 0.00005  # some before the limit, some after it, many right at it
        try:
            try:
                with limit(0.0005):
                    spin_until(end)
            except Late:
                late += 1
            for _ in range(20):  # where a signal that comes late would be handled
                pass
        except Late:
            escaped += 1

    assert escaped == 0
    assert 0 < late < 10_000
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_comes_as_the_block_is_left_ends_the_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the signal were handled before the first line of `__exit__`."""

    def exit_late(self: TimeLimit, *exception: object) -> None:
        spin()

    monkeypatch.setattr(TimeLimit, "__exit__", exit_late)

    with pytest.raises(Late), limit(0.01):
        pass

    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# --- nested


def test_of_nested_limits_the_inner_one_raises_when_it_is_shorter() -> None:
    with limit(60, "outer"):
        with pytest.raises(Late, match="inner"), limit(0.01, "inner"):
            spin()

        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60


def test_of_nested_limits_the_outer_one_raises_when_it_is_shorter() -> None:
    with pytest.raises(Late, match="outer"), limit(0.05, "outer"), limit(60, "inner"):
        spin()

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_outer_limit_holds_after_the_inner_one() -> None:
    with pytest.raises(Late, match="outer"), limit(0.05, "outer"):
        with limit(60, "inner"):
            pass
        spin()


def test_a_limit_can_be_used_again() -> None:
    again = limit(0.01)

    for _ in range(2):
        with pytest.raises(Late), again:
            spin()


# --- what was there before


def test_a_former_handler_is_put_back() -> None:
    rung: list[Any] = []
    signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))

    with limit(60):
        pass
    signal.raise_signal(signal.SIGALRM)

    assert rung == [signal.SIGALRM]


def test_a_former_timer_goes_on_with_what_is_left_of_its_time() -> None:
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 50, 7)

    with pytest.raises(Late), limit(0.05):
        spin()

    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    assert 0 < left <= 49.95
    assert interval == 7


def test_a_former_timer_that_is_over_meanwhile_rings_at_the_end() -> None:
    rung: list[Any] = []
    signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01)

    with pytest.raises(Late), limit(0.05):
        spin()

    wait_until(lambda: rung == [signal.SIGALRM])


def test_an_alarm_from_elsewhere_does_not_raise_and_the_limit_stays() -> None:
    with pytest.raises(Late), limit(0.05):
        signal.raise_signal(signal.SIGALRM)
        spin()


# --- what it cannot do


def test_an_error_that_the_body_catches_is_not_raised_again() -> None:
    caught = 0

    with limit(0.05):
        try:
            spin()
        except BaseException:
            caught += 1
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass

    assert caught == 1


def test_a_body_that_takes_the_alarm_for_itself_has_no_limit_and_leaves_none() -> None:
    rung: list[Any] = []

    with limit(0.05):
        signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
        wait_until(lambda: rung)

    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_thread_cannot_have_a_limit() -> None:
    found: list[Any] = []

    def run() -> None:
        found.append(can_limit_time())
        try:
            with limit(1):
                pass
        except ConfigurationException as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert found == [
        False,
        "A time limit works in the main thread of a process only: run the job there, or isolate it",
    ]
    assert can_limit_time()


@pytest.mark.parametrize("seconds", [0, 0.0, -1, math.inf, math.nan, True, "1", None])
def test_what_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Invalid seconds argument: .*: must be a number, more than 0"):
        TimeLimit(seconds, Late)


def test_a_very_long_time_is_accepted() -> None:
    with limit(10.0**300):
        pass
