"""Bad input: each mistake gets a sentence with the argument, the value and what is accepted; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import ConfigurationException, Error, Job, LimpydJobsException, Queue, Worker
from limpyd_jobs.exceptions import InvalidArgument

from .support import dump, failed_job

IN_2050 = datetime(2050, 1, 2, 3, 4, 5)

BAD_NAMES = ["", "a,b", ",", "a\0b", "a\nb", "a\rb", 5, 0, b"q", ["q"], True, False, "lone \ud800"]
BAD_PRIORITIES = [
    *("high", "", "1.5", 1.5, 1.0, True, False, [1], {}, b"1", Decimal("1"), float("nan"), float("inf")),
    *(2**53 + 1, -(2**53) - 1, str(2**53 + 1)),
]
BAD_VALUES = [
    None,
    True,
    ["a"],
    {"a": 1},
    {"a"},
    ("a",),
    object(),
    datetime(2020, 1, 1),
    b"\xff",
    "lone \ud800",
    Decimal("1"),
]
BAD_DURATIONS = ["5", "", True, [5], {}, float("nan"), float("inf"), 1e300, b"5", datetime(2020, 1, 1)]
BAD_MOMENTS = ["soon", "2050-13-01", "2050-01-01 25:00:00", 5, 5.5, True, [2050], timedelta(seconds=5), b"2050-01-01"]


class BadInputJob(Job):
    """With a field of each kind."""

    size = fields.InstanceHashField(indexable=True)
    label = fields.StringField()
    steps = fields.ListField()
    tags = fields.SetField(indexable=True)
    scores = fields.SortedSetField()
    options = fields.HashField()


class BadInputError(Error):
    server = fields.InstanceHashField()


@contextmanager
def refused(argument: str, value: Any) -> Iterator[None]:
    """The block raises InvalidArgument, with the argument, the value and what is accepted; nothing is written."""
    before = dump()
    with pytest.raises(InvalidArgument) as caught:
        yield
    message = str(caught.value)
    assert isinstance(caught.value, LimpydJobsException)
    assert isinstance(caught.value, ValueError)
    assert argument in message
    assert repr(value)[:40] in message
    assert re.search(r"must be \w+", message)
    assert "\n" not in message
    assert len(message) < 300
    assert dump() == before


@contextmanager
def refused_unknown(field: str) -> Iterator[None]:
    """As `refused`, for a field that the model does not have."""
    before = dump()
    with pytest.raises(InvalidArgument, match=rf"{field}.*there is none of this name"):
        yield
    assert dump() == before


def names(values: list[Any]) -> Any:
    """Values for parametrize, with ids that are the same in every process."""
    ids = [
        type(value).__name__ if isinstance(value, set) or " at 0x" in repr(value) else repr(value)[:30]
        for value in values
    ]
    return {"argvalues": values, "ids": ids}


@pytest.fixture
def some_data(database: Any) -> Any:
    """A waiting and a failed job, so that there is something to harm."""
    failed = failed_job(identifier="failed")
    Job.add_job("a", "q")
    return failed


# --- Names of queues


@pytest.mark.parametrize("name", **names(BAD_NAMES))
def test_add_job_refuses_a_queue_name(some_data: Any, name: Any) -> None:
    with refused("queue_name", name):
        Job.add_job("new", name)


@pytest.mark.parametrize("name", **names(BAD_NAMES))
def test_requeue_refuses_a_queue_name(some_data: Any, name: Any) -> None:
    with refused("queue_name", name):
        some_data.requeue(name)


@pytest.mark.parametrize("name", **names(BAD_NAMES))
def test_enqueue_or_delay_refuses_a_queue_name(some_data: Any, name: Any) -> None:
    with refused("queue_name", name):
        some_data.enqueue_or_delay(name)


@pytest.mark.parametrize("name", **names([*BAD_NAMES, None]))
def test_get_queue_refuses_a_name(some_data: Any, name: Any) -> None:
    with refused("name", name):
        Queue.get_queue(name)


@pytest.mark.parametrize("name", **names(BAD_NAMES[:6]))
def test_a_bad_queue_name_of_the_class_is_refused(some_data: Any, monkeypatch: Any, name: Any) -> None:
    monkeypatch.setattr(BadInputJob, "queue_name", name)
    before = dump()

    with pytest.raises(LimpydJobsException, match="name"):
        BadInputJob.add_job("new")

    assert dump() == before


# --- Priorities


@pytest.mark.parametrize("priority", **names([*BAD_PRIORITIES, None]))
def test_add_job_refuses_a_priority(some_data: Any, priority: Any) -> None:
    with refused("priority", priority):
        Job.add_job("new", "q", priority)


@pytest.mark.parametrize("priority", **names(BAD_PRIORITIES))
def test_add_job_refuses_a_priority_for_an_existing_job_too(some_data: Any, priority: Any) -> None:
    with refused("priority", priority):
        Job.add_job("a", "q", priority)


@pytest.mark.parametrize("priority", **names(BAD_PRIORITIES))
def test_requeue_and_enqueue_or_delay_refuse_a_priority(some_data: Any, priority: Any) -> None:
    with refused("priority", priority):
        some_data.requeue("q", priority)
    with refused("priority", priority):
        some_data.enqueue_or_delay("q", priority)


@pytest.mark.parametrize("priority", **names([*BAD_PRIORITIES, None]))
def test_get_queue_refuses_a_priority(some_data: Any, priority: Any) -> None:
    with refused("priority", priority):
        Queue.get_queue("q", priority)


@pytest.mark.parametrize("priority", [2**53, -(2**53), 0, "7", "-7"])
def test_the_greatest_and_smallest_priorities_are_accepted(database: Any, priority: Any) -> None:
    job = Job.add_job("a", "q", priority)

    assert job.priority.hget() == str(priority)
    assert Queue.get_queue("q", priority).waiting.lmembers() == [job.ident]


# --- Identifiers and values


@pytest.mark.parametrize("identifier", **names(BAD_VALUES))
def test_add_job_refuses_an_identifier(some_data: Any, identifier: Any) -> None:
    with refused("identifier", identifier):
        Job.add_job(identifier, "q")


@pytest.mark.parametrize(("identifier", "text"), [("", ""), (5, "5"), (1.5, "1.5"), (b"bytes", "bytes"), ("é", "é")])
def test_add_job_accepts_strings_and_numbers_as_identifiers(database: Any, identifier: Any, text: str) -> None:
    job = Job.add_job(identifier, "q")

    assert job.identifier.hget() == text
    assert Job.add_job(text, "q").ident == job.ident


@pytest.mark.parametrize("value", **names(BAD_VALUES))
@pytest.mark.parametrize("name", ["size", "label", "cancel_on_error"])
def test_add_job_refuses_a_value_of_a_field(some_data: Any, name: str, value: Any) -> None:
    with refused(name, value):
        BadInputJob.add_job("new", "new-queue", **{name: value})


@pytest.mark.parametrize("value", **names([None, True, {"a": 1}, object(), [["nested"]], ["good", None], {"a", None}]))
@pytest.mark.parametrize("name", ["steps", "tags"])
def test_add_job_refuses_the_items_of_a_list_or_set(some_data: Any, name: str, value: Any) -> None:
    before = dump()

    with pytest.raises(InvalidArgument, match=name):
        BadInputJob.add_job("new", "new-queue", **{name: value})

    assert dump() == before


@pytest.mark.parametrize("value", **names([{"a": None}, {"a": ["b"]}, {None: "a"}, 5, "text", ["a"], None]))
def test_add_job_refuses_the_items_of_a_hash(some_data: Any, value: Any) -> None:
    before = dump()

    with pytest.raises(InvalidArgument, match="options"):
        BadInputJob.add_job("new", "new-queue", options=value)

    assert dump() == before


@pytest.mark.parametrize(
    "value", **names([{"a": None}, {"a": "high"}, {None: 1}, {"a": float("nan")}, 5, "text", ["a"], None])
)
def test_add_job_refuses_the_scores_of_a_sorted_set(some_data: Any, value: Any) -> None:
    before = dump()

    with pytest.raises(InvalidArgument, match="scores"):
        BadInputJob.add_job("new", "new-queue", scores=value)

    assert dump() == before


def test_add_job_refuses_an_unknown_field(some_data: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"sise.*BadInputJob") as caught:
        BadInputJob.add_job("new", "new-queue", sise=3)

    assert caught.value.argument == "sise"
    assert list(Queue.collection(name="new-queue")) == []
    assert list(BadInputJob.collection()) == []


def test_add_job_refuses_an_unknown_field_for_an_existing_job_too(database: Any) -> None:
    BadInputJob.add_job("a", "q")

    with refused_unknown("sise"):
        BadInputJob.add_job("a", "q", 5, sise=3)


def test_get_queue_refuses_an_unknown_field(some_data: Any) -> None:
    with refused_unknown("colour"):
        Queue.get_queue("new-queue", colour="red")


def test_add_error_refuses_an_unknown_field(some_data: Any) -> None:
    with refused_unknown("sever"):
        BadInputError.add_error("q", some_data, ValueError(), sever="web1")


@pytest.mark.parametrize("value", **names(BAD_VALUES))
def test_add_error_refuses_a_value_of_a_field(some_data: Any, value: Any) -> None:
    with refused("server", value):
        BadInputError.add_error("q", some_data, ValueError(), server=value)


@pytest.mark.parametrize("value", **names(["yesterday", 5, timedelta(1)]))
def test_add_error_refuses_a_moment(some_data: Any, value: Any) -> None:
    with refused("when", value):
        Error.add_error("q", some_data, ValueError(), value)


@pytest.mark.parametrize("value", **names(BAD_VALUES))
def test_writing_a_field_refuses_a_value(some_data: Any, value: Any) -> None:
    with refused("identifier", value):
        some_data.identifier.hset(value)
    with refused("status", value):
        some_data.hmset(identifier="fine", status=value)


@pytest.mark.parametrize("value", **names(BAD_VALUES))
def test_set_fields_refuses_a_value_before_it_writes_another(database: Any, value: Any) -> None:
    job = BadInputJob.add_job("a", "q")

    with refused("size", value):
        job.set_fields(identifier="fine", size=value)


def test_set_fields_refuses_an_unknown_field(some_data: Any) -> None:
    with refused_unknown("colour"):
        some_data.set_fields(identifier="fine", colour="red")


# --- Delays


@pytest.mark.parametrize("duration", **names(BAD_DURATIONS))
def test_add_job_and_requeue_refuse_a_duration(some_data: Any, duration: Any) -> None:
    with refused("delayed_for", duration):
        Job.add_job("new", "q", delayed_for=duration)
    with refused("delayed_for", duration):
        some_data.requeue("q", delayed_for=duration)


@pytest.mark.parametrize("moment", **names([*BAD_MOMENTS, "2050-01-01"]))
def test_add_job_and_requeue_refuse_a_moment(some_data: Any, moment: Any) -> None:
    with refused("delayed_until", moment):
        Job.add_job("new", "q", delayed_until=moment)
    with refused("delayed_until", moment):
        some_data.requeue("q", delayed_until=moment)


@pytest.mark.parametrize("moment", **names(BAD_MOMENTS))
def test_enqueue_or_delay_refuses_a_moment(some_data: Any, moment: Any) -> None:
    with refused("delayed_until", moment):
        some_data.enqueue_or_delay("q", delayed_until=moment)


@pytest.mark.parametrize("moment", **names([*BAD_MOMENTS, None, "2050-01-01"]))
def test_delay_job_refuses_a_moment(some_data: Any, moment: Any) -> None:
    queue = Queue.get_queue("q")

    with refused("delayed_until", moment):
        queue.delay_job(some_data, moment)


def test_add_job_and_requeue_refuse_both_kinds_of_delay(some_data: Any) -> None:
    before = dump()

    with pytest.raises(ValueError, match=r"delayed_until.*delayed_for"):
        Job.add_job("new", "q", delayed_for=5, delayed_until=IN_2050)
    with pytest.raises(ValueError, match=r"delayed_until.*delayed_for"):
        some_data.requeue("q", delayed_for=5, delayed_until=IN_2050)

    assert dump() == before


def test_refusing_both_kinds_of_delay_is_an_error_of_the_package(some_data: Any) -> None:
    with pytest.raises(LimpydJobsException):
        Job.add_job("new", "q", delayed_for=5, delayed_until=IN_2050)


# --- Models as arguments


@pytest.mark.parametrize("model", **names([Job, str, "limpyd_jobs.models.Queue", 5]))
def test_add_job_and_requeue_refuse_what_is_no_queue_model(some_data: Any, model: Any) -> None:
    with refused("queue_model", model):
        Job.add_job("new", "q", queue_model=model)
    with refused("queue_model", model):
        some_data.requeue("q", queue_model=model)
    with refused("queue_model", model):
        some_data.enqueue_or_delay("q", queue_model=model)


# --- Workers


@pytest.mark.parametrize(
    "queues", **names([None, "", [], (), "a,,b", ",", ["a", ""], ["a,b"], ["a\n"], [5], 5, b"q", [None]])
)
def test_a_worker_refuses_queues(database: Any, queues: Any) -> None:
    with pytest.raises(ConfigurationException, match="queue") as caught:
        Worker(queues)

    assert "\n" not in str(caught.value)
    assert dump() == {}


@pytest.mark.parametrize("callback", ["text", 5, "limpyd_jobs.no.such.function"])
def test_a_worker_refuses_a_callback_that_is_not_callable(database: Any, callback: Any) -> None:
    with pytest.raises(ConfigurationException, match="callback is not callable") as caught:
        Worker("q", callback=callback)

    assert repr(callback) in str(caught.value)


@pytest.mark.parametrize("model", [Job, str, "limpyd_jobs.models.Queue", Queue.get_queue])
def test_a_worker_refuses_models_of_another_kind(database: Any, model: Any) -> None:
    with pytest.raises(ConfigurationException, match="queue model"):
        Worker("q", queue_model=model)
    with pytest.raises(ConfigurationException, match="error model"):
        Worker("q", error_model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_loops", -1), ("max_loops", "5"), ("max_loops", 1.5), ("max_loops", True),
        ("max_duration", -1), ("max_duration", "5"), ("max_duration", True), ("max_duration", float("nan")),
        ("timeout", -1), ("timeout", "5"), ("timeout", float("nan")),
        ("requeue_times", -1), ("requeue_times", 1.5), ("requeue_priority_delta", "1"), ("requeue_priority_delta", 0.5),
        ("requeue_delay_delta", -1), ("requeue_delay_delta", "5"), ("requeue_delay_delta", float("nan")),
        ("fetch_priorities_delay", -1), ("fetch_delayed_delay", "5"), ("lease_seconds", 0), ("lease_seconds", "5"),
        ("lease_seconds", True), ("lease_seconds", float("nan")), ("logger_level", "LOUD"),
    ],
)  # fmt: skip
def test_a_worker_refuses_an_option_by_name(database: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationException, match=name) as caught:
        Worker("q", **{name: value})

    assert repr(value) in str(caught.value)


def test_a_worker_warns_of_an_unknown_option(database: Any) -> None:
    with pytest.warns(UserWarning, match="max_lops"):
        Worker("q", max_lops=5)


@pytest.mark.parametrize("value", [None, 5, True, b"q"])
@pytest.mark.parametrize(
    "ask",
    [
        Queue.count_waiting_jobs,
        Queue.count_delayed_jobs,
        Queue.get_all,
        Queue.get_all_by_priority,
        Queue.get_waiting_keys,
    ],
    ids=lambda ask: ask.__name__,
)
def test_what_names_no_queues_is_refused(database: Any, ask: Any, value: Any) -> None:
    with refused("names", value):
        ask(value)
