"""Values of many items: Lua passes at most some 8,000 arguments to a command at once."""

from __future__ import annotations

from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import Error, Job, Queue, Worker, admin

from .support import assert_only_place, connection, fail, run_worker

pytestmark = pytest.mark.usefixtures("database")

COUNT = 8_200
ITEMS = [f"item {number}" for number in range(COUNT)]
VALUES: dict[str, Any] = {
    "steps": ITEMS,
    "tags": set(ITEMS),
    "scores": {item: float(number) for number, item in enumerate(ITEMS)},
    "options": {item: f"value {number}" for number, item in enumerate(ITEMS)},
}


class LargeJob(Job):
    steps = fields.ListField()
    tags = fields.SetField()
    scores = fields.SortedSetField()
    options = fields.HashField()
    words = fields.ListField(indexable=True)


class LargeError(Error):
    steps = fields.ListField()
    tags = fields.SetField()
    scores = fields.SortedSetField()
    options = fields.HashField()


class LargeErrorWorker(Worker):
    def additional_error_fields(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return VALUES


def stored(record: Any, name: str) -> Any:
    """The value of a field as it was given."""
    readers = {
        "steps": lambda field: field.lmembers(),
        "tags": lambda field: field.smembers(),
        "scores": lambda field: dict(field.zrange(0, -1, withscores=True)),
        "options": lambda field: field.hgetall(),
    }
    return readers[name](record.get_field(name))


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_job_is_added_with_a_value_of_many_items(name: str) -> None:
    job = LargeJob.add_job("a", "q", **{name: VALUES[name]})

    assert stored(job, name) == VALUES[name]
    assert_only_place(job, "waiting", Queue.get_queue("q"))
    assert admin.check() == []


def test_a_job_is_found_by_each_of_the_many_items_of_an_indexed_value() -> None:
    job = LargeJob.add_job("a", "q", words=ITEMS)

    assert len(connection().keys("jobs:largejob:words:*")) == COUNT
    for item in (ITEMS[0], ITEMS[999], ITEMS[1000], ITEMS[-1]):
        assert LargeJob.collection(words=item) == [job.pk.get()]


@pytest.mark.parametrize("name", sorted(VALUES))
def test_an_error_is_saved_with_a_value_of_many_items(name: str) -> None:
    job = LargeJob.add_job("a", "q")

    error = LargeError.add_error("q", job, ValueError("boom"), **{name: VALUES[name]})

    assert stored(error, name) == VALUES[name]


def test_a_worker_saves_an_error_with_values_of_many_items_with_the_end_of_the_job() -> None:
    job = LargeJob.add_job("a", "q")

    run_worker("q", callback=fail, worker_class=LargeErrorWorker, error_model=LargeError)

    assert job.status.hget() == "e"
    (error,) = LargeError.collection().instances()
    assert {name: stored(error, name) for name in VALUES} == VALUES
