"""A measurement leaves nothing behind, whatever becomes of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, admin
from limpyd_jobs.exceptions import InvalidArgument, LimpydJobsException

from ..base import RedisServer
from .support import rights_of_the_page, user

measuring = import_module("limpyd_jobs.admin.bench")  # `admin.bench` is the function
pytestmark = pytest.mark.usefixtures("database")


def keys() -> set[str]:
    return set(Queue.get_connection().scan_iter())


@pytest.fixture(autouse=True)
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "STARTS", 3)
    monkeypatch.setattr(measuring, "SAMPLES", 10)


def test_a_measurement_says_what_things_cost_and_leaves_the_jobs_of_others_alone() -> None:
    job = Job.add_job("a", "bench")
    before, steps = keys(), []

    result = admin.bench(30, on_progress=lambda *step: steps.append(step))

    assert result.jobs == 30
    assert 0 < result.round_trip <= result.round_trip_p99
    assert 0 < result.start <= result.start_p99
    assert min(result.add, result.add_many, result.run) > 0
    assert result.trips_per_add == pytest.approx(1 / result.add / result.round_trip)
    assert steps == [(name, done, 5) for done, name in enumerate([*measuring.STEPS, "done"])]
    assert keys() == before
    assert job.status.hget() == "w"


def test_a_measurement_that_is_interrupted_leaves_nothing() -> None:
    def interrupt(step: str, done: int, count: int) -> None:
        if step == "run":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admin.bench(30, on_progress=interrupt)

    assert keys() == set()


def test_what_a_killed_measurement_has_left_goes_with_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PLACES", 1)
    Queue.get_connection().set("jobs:bench-0:job:1:hash", "left")

    admin.bench(1)

    assert keys() == set()


def test_too_many_measurements_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PLACES", 1)
    Queue.get_connection().set("jobs:bench-0-owner", "another")

    with pytest.raises(LimpydJobsException, match="1 others measure"):
        admin.bench(1)

    assert keys() == {"jobs:bench-0-owner"}


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "10"])
def test_a_number_of_jobs_that_is_none_is_refused(jobs: Any) -> None:
    with pytest.raises(InvalidArgument, match="an integer of 1 or more"):
        admin.bench(jobs)


def test_a_user_with_the_rights_of_the_page_may_measure_where_another_one_has(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PLACES", 1)
    admin.bench(1)

    with user(redis_server, rights_of_the_page()) as queue_model:
        assert admin.bench(5, queue_model=queue_model).jobs == 5
