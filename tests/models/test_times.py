"""Dates are naive UTC in every field and score; aware ones are converted, whatever the time zone of the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, models, utils
from limpyd_jobs.exceptions import InvalidArgument
from limpyd_jobs.models import datetime_to_score
from limpyd_jobs.utils import parse_datetime, utcnow

from .support import assert_only_place, connection, dump, failed_job, run_worker

NAIVE = datetime(2050, 1, 2, 3, 4, 5, 678901)
SCORE = 2524705445.678901  # `date --utc --date='2050-01-02 03:04:05' +%s`
INDIA, NEW_YORK = timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-5))
AWARE = [
    pytest.param(NAIVE, id="naive"),
    pytest.param(NAIVE.replace(tzinfo=timezone.utc), id="utc"),
    pytest.param(datetime(2050, 1, 2, 8, 34, 5, 678901, INDIA), id="india"),
    pytest.param(datetime(2050, 1, 1, 22, 4, 5, 678901, NEW_YORK), id="new-york"),
]
ZONES = ["UTC", "Asia/Kolkata", "America/New_York", "XYZ+11:45", "Europe/Paris"]


@pytest.fixture(params=ZONES)
def zone(request: Any) -> Iterator[str]:
    """The machine is in another time zone."""
    former = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield request.param
    if former is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = former
    time.tzset()


def assert_delayed_until_then(job: Any, queue: Any) -> None:
    assert job.hmget("status", "delayed_until") == [STATUSES.DELAYED, str(NAIVE)]
    assert queue.delayed.zscore(job.ident) == pytest.approx(SCORE, abs=1e-5)
    assert_only_place(job, "delayed", queue)


# --- Aware datetimes


@pytest.mark.parametrize("until", AWARE)
def test_j17_add_job_converts(database: Any, until: datetime) -> None:
    job = Job.add_job("a", "q", delayed_until=until)

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize("until", AWARE)
def test_j34_requeue_converts(database: Any, until: datetime) -> None:
    job = failed_job()

    job.requeue("q", delayed_until=until)

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize("until", AWARE)
def test_j37_enqueue_or_delay_converts(database: Any, until: datetime) -> None:
    job = Job.add_job("a", "q")

    job.enqueue_or_delay("q", delayed_until=until)

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize("until", AWARE)
def test_q12_delay_job_converts(database: Any, until: datetime) -> None:
    job = Job.add_job("a", "q")

    Queue.get_queue("q").delay_job(job, until)

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize("when", AWARE)
def test_e14_add_error_converts(database: Any, when: datetime) -> None:
    error = Error.add_error("q", Job.add_job("a", "q"), ValueError(), when)

    assert error.hmget("date_time", "date", "time") == [str(NAIVE), "2050-01-02", "03:04:05.678901"]
    assert error.datetime == NAIVE


@pytest.mark.parametrize("when", AWARE)
def test_q09_datetime_to_score_is_seconds_since_the_epoch_in_utc(when: datetime) -> None:
    assert datetime_to_score(when) == pytest.approx(SCORE, abs=1e-6)
    assert datetime_to_score(datetime(1970, 1, 1)) == 0
    assert datetime_to_score(datetime(1969, 12, 31, 23, 59)) == -60


def test_j56_an_aware_datetime_that_is_over_means_at_once(database: Any) -> None:
    """Read without its zone it would be hours ahead."""
    over = (datetime.now(timezone.utc) - timedelta(minutes=1)).astimezone(INDIA)

    job = Job.add_job("a", "q", delayed_until=over)

    assert job.status.hget() == STATUSES.WAITING


def test_j17_an_aware_datetime_that_is_to_come_is_delayed(database: Any) -> None:
    """Read without its zone it would be hours ago."""
    to_come = (datetime.now(timezone.utc) + timedelta(minutes=1)).astimezone(NEW_YORK)

    job = Job.add_job("a", "q", delayed_until=to_come)

    assert job.status.hget() == STATUSES.DELAYED


# --- Text


@pytest.mark.parametrize(
    "text",
    [
        "2050-01-02 03:04:05.678901",
        "2050-01-02T03:04:05.678901",
        "2050-01-02 03:04:05.678901+00:00",
        "2050-01-02T03:04:05.678901Z",
        "2050-01-02 08:34:05.678901+05:30",
        "2050-01-01 22:04:05.678901-05:00",
    ],
)
def test_j40_text_is_converted(database: Any, text: str) -> None:
    job = Job.add_job("a", "q")

    job.enqueue_or_delay("q", delayed_until=text)

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2050-01-02 03:04:05", datetime(2050, 1, 2, 3, 4, 5)),
        ("2050-01-02 03:04", datetime(2050, 1, 2, 3, 4)),
        ("2050-01-02", datetime(2050, 1, 2)),
        (str(datetime(2050, 1, 2, 3, 4, 5, tzinfo=INDIA)), datetime(2050, 1, 1, 21, 34, 5)),
    ],
)
def test_j40_any_representation_of_a_datetime_is_read(database: Any, text: str, expected: datetime) -> None:
    job = Job.add_job("a", "q")

    job.enqueue_or_delay("q", delayed_until=text)

    assert parse_datetime(job.delayed_until.hget()) == expected


def test_j40_the_delayed_until_of_another_job_can_be_handed_on(database: Any) -> None:
    first, job = Job.add_job("first", "q", delayed_until=NAIVE), Job.add_job("a", "q")

    job.enqueue_or_delay("q", delayed_until=first.delayed_until.hget())

    assert_delayed_until_then(job, Queue.get_queue("q"))


def test_j47_the_text_that_a_running_job_writes_is_converted(database: Any) -> None:
    job = Job.add_job("a", "q")

    text = "2050-01-02 08:34:05.678901+05:30"
    run_worker("q", callback=lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=text))

    assert_delayed_until_then(job, Queue.get_queue("q"))


@pytest.mark.parametrize(
    "until",
    [
        datetime(2048, 2, 29, 23, 59, 59, 999999),
        datetime(2099, 12, 31, 23, 59, 59),
        datetime(2100, 3, 1),
        datetime(2400, 2, 29, 12),
        datetime(9999, 12, 31, 23, 59, 59),
    ],
)
def test_j16_the_days_of_the_calendar_are_right(database: Any, until: datetime) -> None:
    job = Job.add_job("a", "q", delayed_until=until)

    assert parse_datetime(job.delayed_until.hget()) == pytest.approx(until, abs=timedelta(milliseconds=1))


@pytest.mark.parametrize("until", [datetime.max.replace(tzinfo=NEW_YORK), datetime.min.replace(tzinfo=INDIA)])
def test_j17_a_datetime_that_has_no_representation_in_utc_is_refused(database: Any, until: datetime) -> None:
    with pytest.raises(InvalidArgument, match="delayed_until"):
        Job.add_job("a", "q", delayed_until=until)

    assert dump() == {}


def test_j17_the_greatest_datetime_is_accepted(database: Any) -> None:
    job = Job.add_job("a", "q", delayed_until=datetime.max)

    assert_only_place(job, "delayed", Queue.get_queue("q"))
    assert parse_datetime(job.delayed_until.hget()) > datetime(9999, 12, 31)


# --- Other time zones


def test_q09_the_score_does_not_depend_on_the_time_zone(database: Any, zone: str) -> None:
    job = Job.add_job("a", "q", delayed_until=NAIVE)

    assert_delayed_until_then(job, Queue.get_queue("q"))


def test_j17_delayed_for_does_not_depend_on_the_time_zone(database: Any, zone: str) -> None:
    job = Job.add_job("a", "q", delayed_for=100)

    assert Queue.get_queue("q").delayed.zscore(job.ident) == pytest.approx(time.time() + 100, abs=2)


def test_j12_dates_are_utc_in_any_time_zone(database: Any, zone: str) -> None:
    before = datetime.fromtimestamp(time.time(), timezone.utc).replace(tzinfo=None)
    job = Job.add_job("a", "q")
    run_worker("q")

    after = datetime.fromtimestamp(time.time(), timezone.utc).replace(tzinfo=None)
    (error,) = Error.collection_for_job(job).instances()
    dates = [parse_datetime(text) for text in (*job.hmget("added", "start", "end"), error.date_time.hget())]
    assert all(before <= date <= after for date in dates)


def test_q14_a_due_job_is_due_in_any_time_zone(database: Any, zone: str) -> None:
    queue = Queue.get_queue("q")
    due, future = Job.add_job("due", "q"), Job.add_job("future", "q")
    queue.delay_job(due, utcnow() - timedelta(seconds=1))
    queue.delay_job(future, utcnow() + timedelta(minutes=5))

    queue.requeue_delayed_jobs()

    assert queue.waiting.lmembers() == [due.ident]
    assert queue.delayed.zmembers() == [future.ident]


def test_j47_a_job_that_delays_itself_is_due_in_any_time_zone(database: Any, zone: str) -> None:
    job = Job.add_job("a", "q")

    until = str(utcnow() + timedelta(minutes=5))
    run_worker("q", callback=lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=until))

    assert Queue.get_queue("q").delayed.zscore(job.ident) == pytest.approx(time.time() + 300, abs=2)


def test_j37_a_local_datetime_with_its_zone_is_converted(database: Any, zone: str) -> None:
    local = datetime.now().astimezone() + timedelta(minutes=5)

    job = Job.add_job("a", "q", delayed_until=local)

    assert Queue.get_queue("q").delayed.zscore(job.ident) == pytest.approx(time.time() + 300, abs=2)


# --- The clock of Redis


class ByHookJob(Job):
    """Is called when one of its jobs is put somewhere: not the script alone puts it there."""

    queue_name = "q"

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        super().enqueue_or_delay(*args, **kwargs)


class ByHookQueue(Queue):
    def delay_job(self, job: Any, delayed_until: datetime) -> None:
        super().delay_job(job, delayed_until)


@pytest.fixture(params=[-7200, 7200], ids=["slow", "fast"])
def wrong_clock(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine is two hours slow, or fast."""

    def wrong_utcnow() -> datetime:
        return utcnow() + timedelta(seconds=request.param)

    monkeypatch.setattr(utils, "utcnow", wrong_utcnow)
    monkeypatch.setattr(models, "utcnow", wrong_utcnow)


def seconds_until_due(job: Any, queue: Any) -> float:
    """By the clock of Redis."""
    seconds, micros = connection().time()
    return float(queue.delayed.zscore(job.ident)) - seconds - micros / 1_000_000


@pytest.mark.parametrize("queue_model", [Queue, ByHookQueue])
@pytest.mark.parametrize("model", [Job, ByHookJob])
def test_a_job_is_delayed_by_the_clock_of_redis(database: Any, wrong_clock: None, model: Any, queue_model: Any) -> None:
    job = model.add_job("a", "q", queue_model=queue_model, delayed_for=600)

    queue = queue_model.get_queue("q")
    assert seconds_until_due(job, queue) == pytest.approx(600, abs=5)
    assert datetime_to_score(parse_datetime(job.delayed_until.hget())) == pytest.approx(
        queue.delayed.zscore(job.ident), abs=0.001
    )


@pytest.mark.parametrize("queue_model", [Queue, ByHookQueue])
@pytest.mark.parametrize("model", [Job, ByHookJob])
def test_a_job_is_requeued_by_the_clock_of_redis(
    database: Any, wrong_clock: None, model: Any, queue_model: Any
) -> None:
    job = failed_job(model)

    job.requeue("q", queue_model=queue_model, delayed_for=600)

    assert seconds_until_due(job, queue_model.get_queue("q")) == pytest.approx(600, abs=5)
