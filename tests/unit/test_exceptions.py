"""The errors travel: to other processes, with all that they say. No Redis."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, exceptions
from limpyd_jobs.exceptions import (
    CommandFailed,
    ConfigurationException,
    DatabaseException,
    EmbeddedServerError,
    ExecutionLost,
    InvalidArgument,
    InvalidDatabaseURL,
    JobAlreadyExists,
    JobAlreadyQueued,
    JobCanceled,
    JobChanged,
    JobClassError,
    JobFailed,
    JobNotFound,
    JobNotInStatus,
    JobProcessDied,
    JobTimeout,
    LeaseLost,
    LimpydJobsException,
    NoResult,
    NotDecodable,
    NotSerializable,
    QueueDeleted,
    ResultNotStored,
    Retry,
    ServerTooOld,
    TaskAlreadyDefined,
    TaskNotFound,
    TooLarge,
    WaitTimeout,
    WorkerLost,
    WrongArguments,
    WrongKeyType,
)

SAMPLES: list[LimpydJobsException | JobTimeout] = [
    LimpydJobsException("Queue's name not defined"),
    ConfigurationException("The callback is not callable"),
    InvalidArgument("priority", "high", "an integer"),
    InvalidDatabaseURL("redis://***", "the port must be a number"),
    DatabaseException("refused"),
    ServerTooOld("5.0.7", "6.2"),
    EmbeddedServerError("no binary"),
    JobNotInStatus("app.Job:1", "w", "requeue"),
    JobChanged("app.Job:1", "w", "requeue"),
    JobAlreadyQueued("app.Job:1", "app.Job:2"),
    JobAlreadyExists("The value of 'code' belongs to another job"),
    JobClassError("app.Gone:1", "No module named 'app'"),
    JobTimeout("app.Job:1", 2.5),
    JobProcessDied(4711, -9),
    JobFailed("app.Job:1", "ValueError", "it failed", "Traceback...", "7"),
    JobNotFound("user:12:mail"),
    JobCanceled("app.Job:1", "not wanted"),
    LeaseLost("app.Job:1"),
    NoResult("app.Job:1", "it has not ended"),
    ResultNotStored("app.Job:1", "result: object cannot be stored"),
    NotDecodable("{]", "malformed"),
    NotSerializable(("arguments", ".users", "[3]"), "Lock", "no form for it is known"),
    QueueDeleted("app.Job:1"),
    ExecutionLost("app.Job:1"),
    TooLarge("arguments", 2000000, 1048576),
    Retry("too many requests", delayed_for=timedelta(minutes=1)),
    TaskAlreadyDefined("shop:send", "send (shop.py:1)", "send (shop.py:9)"),
    CommandFailed("false", 1, "broken"),
    TaskNotFound("shop:sned", ["shop:send"], "no worker has registered it"),
    WaitTimeout(3, 10),
    WorkerLost("app.Job:1", 4),
    WrongArguments("shop:send", "(to)", "missing a required argument: 'to'"),
    WrongKeyType("jobs:queue:1:waiting"),
]


def test_each_error_has_a_sample() -> None:
    found = {
        kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if kind.__module__ == exceptions.__name__
    }
    assert {type(error) for error in SAMPLES} == found


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_pickled_with_its_facts_and_its_message(
    error: LimpydJobsException | JobTimeout, protocol: int
) -> None:
    found = pickle.loads(pickle.dumps(error, protocol))

    assert type(found) is type(error)
    assert (str(found), repr(found), found.args, vars(found)) == (str(error), repr(error), error.args, vars(error))


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_copied_with_its_facts_and_its_message(error: LimpydJobsException | JobTimeout) -> None:
    found = copy.deepcopy(error)

    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def refuse() -> None:
    raise InvalidArgument("priority", "high", "an integer")


def test_an_error_of_a_process_of_a_pool_is_raised_here_and_the_pool_goes_on() -> None:
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(InvalidArgument) as raised:
            pool.submit(refuse).result(20)
        assert pool.submit(len, "abc").result(20) == 3

    assert (raised.value.argument, raised.value.value, raised.value.accepted) == ("priority", "high", "an integer")


# --- attributes that are not there


def test_the_statuses_can_be_copied_and_pickled() -> None:
    assert copy.deepcopy(STATUSES) == copy.copy(STATUSES) == pickle.loads(pickle.dumps(STATUSES)) == STATUSES


@pytest.mark.parametrize("name", ["__wrapped__", "__deepcopy__", "__anything__"])
def test_the_statuses_can_be_asked_for_what_python_looks_for(name: str) -> None:
    assert not hasattr(STATUSES, name)


def test_a_property_of_a_job_that_raises_an_attribute_error_says_which() -> None:
    class PropertyJob(Job):
        @property
        def customer(self) -> Any:
            return self.missing_thing

    with pytest.raises(AttributeError, match="missing_thing"):
        _ = PropertyJob.from_pk("1").customer


# --- what a job raises, or gets


def test_the_timeout_of_a_job_is_not_swallowed_by_except_exception() -> None:
    assert not isinstance(JobTimeout("app.Job:1", 5), Exception)
    assert str(JobTimeout("app.Job:1", 5)) == "app.Job:1 has run for longer than 5 seconds"


def test_a_retry_says_when_in_seconds_or_as_naive_utc() -> None:
    moment = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert Retry(delayed_for=timedelta(minutes=1)).delayed_for == 60
    assert Retry(delayed_until=moment).delayed_until == datetime(2026, 1, 1)
    assert (Retry().delayed_for, Retry().delayed_until) == (None, None)


@pytest.mark.parametrize(
    "delays",
    [
        {"delayed_for": "1"},
        {"delayed_for": True},
        {"delayed_for": -1},
        {"delayed_for": float("nan")},
        {"delayed_for": 1e12},
        {"delayed_until": 5},
        {"delayed_for": 1, "delayed_until": datetime(2026, 1, 1)},
    ],
)
def test_a_retry_refuses_what_is_no_delay(delays: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="delayed_"):
        Retry(**delays)
