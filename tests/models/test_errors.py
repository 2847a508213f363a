"""Section E of the checklist: the errors, and the reports that they are for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import Error, Job
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.utils import utcnow

from .support import assert_filters_equal_hashes, assert_indexes_as_rebuilt, counted_round_trips, fail, run_worker

WHEN = datetime(2017, 5, 6, 7, 8, 9, 123456)


class ErrorsJob(Job):
    pass


class ErrorsError(Error):
    server = fields.InstanceHashField(indexable=True)
    tags = fields.SetField(indexable=True)
    context = fields.HashField()


class CodedError(Exception):
    code = 404


@pytest.fixture
def job(database: Any) -> Any:
    return Job.add_job("a", "q")


@pytest.fixture
def error(job: Any) -> Any:
    return Error.add_error("q", job, CodedError("not found"), WHEN, "Traceback: ...")


def pks(*errors: Any) -> set[str]:
    return {error.pk.get() for error in errors}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("job_model_repr", "limpyd_jobs.models.Job", id="e01"),
        pytest.param("job_pk", "1", id="e02"),
        pytest.param("identifier", "a", id="e03"),
        pytest.param("queue_name", "q", id="e04"),
        pytest.param("date", "2017-05-06", id="e07"),
        pytest.param("type", "CodedError", id="e09"),
        pytest.param("code", "404", id="e10"),
    ],
)
def test_e01_to_e10_the_field_is_stored_and_indexed(error: Any, name: str, value: str) -> None:
    assert error.get_field(name).hget() == value
    assert list(Error.collection(**{name: value})) == [error.pk.get()]
    assert list(Error.collection(**{name: f"{value}0"})) == []


def test_e05_date_time_is_the_moment_with_microseconds(error: Any) -> None:
    assert error.date_time.hget() == "2017-05-06 07:08:09.123456"


def test_e05_date_time_is_found_to_the_second(error: Any) -> None:
    assert list(Error.collection(date_time="2017-05-06 07:08:09")) == [error.pk.get()]
    assert list(Error.collection(date_time="2017-05-06 07:08:10")) == []


def test_e05_date_time_is_indexed_by_its_date_and_its_time(error: Any) -> None:
    assert list(Error.collection(date_time__date="2017-05-06")) == [error.pk.get()]
    assert list(Error.collection(date_time__time="07:08:09")) == [error.pk.get()]
    assert list(Error.collection(date_time__date="2017-05-07")) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"date_time__gt": "2017-01-01"}, "bc"),
        ({"date_time__gte": "2017-05-06 07:08:09"}, "bc"),
        ({"date_time__gt": "2017-05-06 07:08:09"}, "c"),
        ({"date_time__lt": "2017-05-06 07:08:09"}, "a"),
        ({"date_time__lte": "2017-05-06 07:08:09"}, "ab"),
        ({"date_time__gt": "2016", "date_time__lt": "2018"}, "b"),
        ({"date_time__date__gte": "2017-05-06", "date_time__time__lt": "12:00:00"}, "b"),
    ],
)
def test_e06_date_time_can_be_compared_as_text(job: Any, filters: dict[str, str], expected: str) -> None:
    errors = {
        "a": Error.add_error("q", job, ValueError(), datetime(2015, 1, 2)),
        "b": Error.add_error("q", job, ValueError(), WHEN),
        "c": Error.add_error("q", job, ValueError(), datetime(2020, 12, 31, 23, 59, 59)),
    }

    assert set(Error.collection(**filters)) == {errors[name].pk.get() for name in expected}


def test_e08_time_is_stored_and_not_indexed(error: Any) -> None:
    assert error.time.hget() == "07:08:09.123456"
    assert not Error.get_field("time").indexable


def test_e10_without_a_code_nothing_is_stored(job: Any) -> None:
    error = Error.add_error("q", job, ValueError("it failed"))

    assert error.code.hget() is None


def test_e10_a_code_may_be_text(job: Any) -> None:
    exception = ValueError("it failed")
    exception.code = "E_FAIL"  # type: ignore[attr-defined]

    error = Error.add_error("q", job, exception)

    assert list(Error.collection(code="E_FAIL")) == [error.pk.get()]


def test_e11_the_message_is_the_text_of_the_exception(error: Any) -> None:
    assert error.message.hget() == "not found"


@pytest.mark.parametrize("message", ["", "é ☃", "two\nlines", "nul\0byte", "lone \ud800 surrogate", "x" * 10_000])
def test_e11_any_message_can_be_stored(job: Any, message: str) -> None:
    error = Error.add_error("q", job, ValueError(message))

    stored = error.message.hget() or ""
    assert stored == message.encode("utf-8", "backslashreplace").decode()


def test_e12_the_traceback_is_stored(error: Any) -> None:
    assert error.traceback.hget() == "Traceback: ..."


def test_e12_without_a_traceback_nothing_is_stored(job: Any) -> None:
    assert Error.add_error("q", job, ValueError()).traceback.hget() is None


@pytest.mark.parametrize("when", [WHEN, datetime(2017, 5, 6, 7, 8, 9)])
def test_e13_datetime_is_the_moment(job: Any, when: datetime) -> None:
    error = Error.add_error("q", job, ValueError(), when)

    assert error.datetime == when


def test_e14_when_is_now_by_default(job: Any) -> None:
    before = utcnow()

    error = Error.add_error("q", job, ValueError())

    assert before <= error.datetime <= utcnow()
    assert error.date.hget() == str(error.datetime.date())
    assert error.time.hget() == str(error.datetime.time())


def test_e14_all_arguments_may_be_named(job: Any) -> None:
    error = Error.add_error(queue_name="q", job=job, error=ValueError("x"), when=WHEN, trace="trace")

    assert error.hmget("queue_name", "job_pk", "message", "traceback") == ["q", "1", "x", "trace"]


def test_e14_add_error_costs_one_round_trip(job: Any, monkeypatch: Any) -> None:
    job = Job.get_from_ident(job.ident)
    Error.add_error("q", job, ValueError("warm"))

    with counted_round_trips(monkeypatch) as sent:
        Error.add_error("q", job, ValueError("it failed"))

    assert len(sent) <= 2  # the identifier of the job is read, when nobody has read it


def test_e14_a_worker_adds_an_error(job: Any) -> None:
    before = utcnow()

    def fail_with_code(job: Any, queue: Any) -> None:
        raise CodedError("not found")

    run_worker("q", callback=fail_with_code)

    (error,) = Error.collection().instances()
    assert error.hmget("job_model_repr", "job_pk", "identifier", "queue_name", "type", "code", "message") == [
        "limpyd_jobs.models.Job",
        "1",
        "a",
        "q",
        "CodedError",
        "404",
        "not found",
    ]
    assert before <= error.datetime <= utcnow()
    assert error.traceback.hget().strip().endswith("CodedError: not found")
    assert_filters_equal_hashes(Error, "job_model_repr", "job_pk", "identifier", "queue_name", "date", "type", "code")


def test_e14_each_failure_adds_an_error(job: Any) -> None:
    run_worker("q", loops=3, callback=fail, requeue_times=2, requeue_delay_delta=0)

    assert len(list(Error.collection_for_job(job))) == 3


def test_e15_more_fields_of_a_subclass_are_saved(job: Any) -> None:
    error = ErrorsError.add_error("q", job, ValueError(), server="web1", tags=["x", "y"], context={"size": 3})

    assert error.server.hget() == "web1"
    assert error.tags.smembers() == {"x", "y"}
    assert error.context.hgetall() == {"size": "3"}


def test_e15_more_fields_of_a_subclass_can_be_filtered_on(job: Any) -> None:
    error = ErrorsError.add_error("q", job, ValueError(), server="web1", tags=["x", "y"])
    ErrorsError.add_error("q", job, ValueError(), server="web2", tags=["y"])

    assert list(ErrorsError.collection(server="web1")) == [error.pk.get()]
    assert list(ErrorsError.collection(tags="x", queue_name="q")) == [error.pk.get()]


def test_e16_the_errors_of_a_job_are_those_of_its_class_and_identifier(job: Any) -> None:
    same = Job(identifier="a")
    other, other_class = Job.add_job("b", "q"), ErrorsJob.add_job("a", "q")
    errors = [Error.add_error("q", found, ValueError()) for found in (job, same)]
    Error.add_error("q", other, ValueError())
    Error.add_error("q", other_class, ValueError())

    assert set(Error.collection_for_job(job)) == pks(*errors)
    assert set(Error.collection_for_job(other_class)) != pks(*errors)


def test_e16_it_is_a_collection_of_limpyd(job: Any) -> None:
    for exception in (ValueError(), KeyError(), ValueError()):
        Error.add_error("q", job, exception)

    collection = Error.collection_for_job(job).filter(type="ValueError")

    assert len(collection) == 2
    assert {error.type.hget() for error in collection.instances()} == {"ValueError"}
    assert collection.sort().values_list("pk", flat=True)


def test_e17_filters_combine(job: Any) -> None:
    other = ErrorsJob.add_job("b", "r")
    error = Error.add_error("q", job, CodedError("x"), WHEN)
    Error.add_error("r", job, CodedError("x"), WHEN)
    Error.add_error("q", other, CodedError("x"), WHEN)
    Error.add_error("q", job, ValueError("x"), WHEN)
    Error.add_error("q", job, CodedError("x"), WHEN - timedelta(days=1))

    filters = {
        "queue_name": "q",
        "job_model_repr": job.get_model_repr(),
        "identifier": "a",
        "date": "2017-05-06",
        "type": "CodedError",
        "code": 404,
        "date_time__gte": "2017-05-06",
    }
    assert list(Error.collection(**filters)) == [error.pk.get()]


def test_e17_a_deleted_error_is_not_found(error: Any) -> None:
    error.delete()

    assert list(Error.collection(type="CodedError")) == []
    assert list(Error.collection(date_time__gt="2000")) == []


def test_e_error_is_a_model_of_the_base(database: Any) -> None:
    assert issubclass(Error, BaseJobsModel)
    assert Error.namespace == "jobs"


# --- In a pipeline of limpyd, before whose end nobody has seen a reply


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("method", ["hset", "hmset"])
def test_e05_a_date_time_written_in_a_pipeline_is_found_at_its_new_date_only(
    error: Any, method: str, transaction: bool
) -> None:
    new = "2031-01-02 03:04:05"

    with BaseJobsModel.database.pipeline(transaction=transaction) as pipeline:
        error.date_time.hset(new) if method == "hset" else error.hmset(date_time=new, message="moved")
        pipeline.execute()

    assert error.date_time.hget() == new
    assert pks(*Error.collection(date_time__gt="2030-01-01").instances()) == pks(error)
    assert list(Error.collection(date_time__lt="2030-01-01")) == []
    assert_indexes_as_rebuilt(Error)


def test_e05_a_date_time_deleted_in_a_pipeline_is_found_no_more(error: Any) -> None:
    with BaseJobsModel.database.pipeline() as pipeline:
        error.date_time.hdel()
        pipeline.execute()

    assert error.date_time.hget() is None
    assert list(Error.collection(date_time__gt="2000-01-01")) == []
