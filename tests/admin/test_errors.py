"""Finding, grouping and counting the errors of jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from limpyd_jobs import Error, Job, Queue, admin, utils
from limpyd_jobs.admin import ErrorFilter
from limpyd_jobs.admin.fingerprints import place_of
from limpyd_jobs.exceptions import InvalidArgument
from limpyd_jobs.fields import InstanceHashField

pytestmark = pytest.mark.usefixtures("database")
NOW = datetime(2026, 5, 1, 12)
TRACE = """Traceback (most recent call last):
  File "/srv/releases/20260401/shop/mails.py", line 12, in run
    send(user)
  File "/srv/releases/20260401/shop/smtp.py", line 99, in send
    connect()
  File "/srv/venv/lib/python3.11/site-packages/smtp/client.py", line 4, in connect
    raise SMTPError(f"no answer from {host} at 0x7f3a")
smtp.SMTPError: no answer from 10.0.0.1 at 0x7f3a
"""


class ErrorsMailJob(Job):
    queue_name = "mail"


class ErrorsPlainError(Error):
    """Has no indexes where Error has some."""

    type = InstanceHashField()
    date_time = InstanceHashField()


class CodedError(Exception):
    def __init__(self, text: str, code: Any) -> None:
        super().__init__(text)
        self.code = code


def happen(error: BaseException, identifier: str = "a", seconds_ago: float = 0, **values: Any) -> Any:
    """An Error, and its job."""
    model, job_class = values.pop("model", Error), values.pop("job_class", ErrorsMailJob)
    job = job_class.add_job(identifier, queue_name="mail")
    when = NOW - timedelta(seconds=seconds_ago)
    return model.add_error(values.pop("queue", "mail"), job, error, when=when, **values)


def messages(wanted: ErrorFilter | None = None, **page: Any) -> list[str]:
    return [error.message for error in admin.find_errors(wanted or ErrorFilter(), **page).items]


# --- Finding


def test_an_error_comes_with_all_that_is_known_of_it() -> None:
    error = happen(CodedError("full", 452), trace=TRACE)

    (found,) = admin.find_errors().items

    job = ErrorsMailJob.from_pk("1").ident
    expected = (error.pk.get(), job, "a", "mail", "CodedError", "452", "full", str(NOW), TRACE)
    assert found == admin.ErrorRecord(*expected)


def test_the_newest_errors_come_first_page_by_page() -> None:
    for text in "abcde":
        happen(ValueError(text))
    first = admin.find_errors(limit=2)
    Error.from_pk("5").delete()
    happen(ValueError("new"))

    second = admin.find_errors(limit=2, after=first.next)

    assert [error.message for error in (*first.items, *second.items)] == ["e", "d", "c", "b"]
    assert messages(after=second.next) == ["a"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (ErrorFilter(type="ValueError"), ["queue", "value"]),
        (ErrorFilter(code="7"), ["coded"]),
        (ErrorFilter(queues=("other",)), ["queue"]),
        (ErrorFilter(queues="mail", type="ValueError"), ["value"]),
        (ErrorFilter(identifier="user:*"), ["user"]),
        (ErrorFilter(identifier="user:1"), ["user"]),
        (ErrorFilter(job_class="Job"), ["job"]),
        (ErrorFilter(job_class="limpyd_jobs.models.Job"), ["job"]),
        (ErrorFilter(job="limpyd_jobs.models.Job:1"), ["job"]),
        (ErrorFilter(job_class="gone.module.NoSuchJob"), []),
        (ErrorFilter(group="nosuch"), []),
    ],
)
@pytest.mark.parametrize("model", [Error, ErrorsPlainError])
def test_errors_are_found_by_what_they_hold(wanted: ErrorFilter, found: list[str], model: Any) -> None:
    happen(ValueError("value"), model=model)
    happen(CodedError("coded", 7), model=model)
    happen(KeyError("key"), model=model)
    happen(ValueError("queue"), queue="other", model=model)
    happen(TypeError("user"), identifier="user:1", model=model)
    happen(TypeError("job"), job_class=Job, model=model)

    assert messages(wanted) == found


@pytest.mark.parametrize("model", [Error, ErrorsPlainError])
@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        ("2026-05-01 12", None, ["now"]),
        ("2026-05-01 12:00:00", None, ["now"]),
        ("2026-05-01 12:00:00.000001", None, []),
        ("2026-05-01T11:59", "2026-05-01 12:00:00", ["second"]),
        (None, "2026-05-01 11:59:59", ["hour", "day"]),
        (None, "2026-05-01 11:59:59.500000", ["second", "hour", "day"]),
        ("2026-05", "2026-05-01 11", []),
        ("2026-04-30", "2026-05-01", ["day"]),
        ("2026", None, ["now", "second", "hour", "day"]),
    ],
)
def test_errors_are_found_by_their_time(model: Any, since: str | None, until: str | None, found: list[str]) -> None:
    for seconds, text in ((86400, "day"), (3600, "hour"), (1, "second"), (0, "now")):
        happen(ValueError(text), seconds_ago=seconds, model=model)

    assert messages(ErrorFilter(since=since, until=until)) == found


@pytest.mark.parametrize("text", ["yesterday", "01/02/2026", "2026-02-31", 5, ""])
def test_what_is_no_time_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"since argument: .* must be UTC, YYYY-MM-DD HH:MM:SS"):
        ErrorFilter(since=text)


def test_a_record_that_is_no_hash_is_left_out() -> None:
    happen(ValueError("a"))
    happen(ValueError("b"))
    Queue.get_connection().delete("jobs:error:2:hash")
    Queue.get_connection().set("jobs:error:2:hash", "x")

    assert messages() == ["a"]
    assert admin.count_errors() == [("ValueError", 1)]


# --- Groups


def test_errors_of_one_place_are_one_group_whatever_their_message_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "_fixed", NOW)
    happen(ValueError("user 1"), trace=TRACE, seconds_ago=90000)
    happen(ValueError("user 3"), trace=TRACE, seconds_ago=60)
    happen(ValueError("user 2"), trace=TRACE.replace("line 99", "line 101").replace("20260401", "20260501"))
    happen(ValueError("user 4"), trace=TRACE, seconds_ago=5000)

    (group,) = admin.group_errors()

    assert (group.type, group.code, group.place) == ("ValueError", None, "shop/smtp.py:send")
    assert (group.count, group.last_hour, group.hour_before) == (4, 2, 1)
    assert (group.first_seen, group.last_seen) == ("2026-04-30 11:00:00", "2026-05-01 12:00:00")
    assert (group.message, group.error, group.example) == ("user 2", "3", ErrorsMailJob.from_pk("1").ident)


def test_the_class_the_code_and_the_place_tell_groups_apart() -> None:
    happen(CodedError("a", 1), trace=TRACE)
    happen(CodedError("a", 2), trace=TRACE)
    happen(CodedError("a", 2), trace=TRACE.replace("in send", "in receive"))
    happen(ValueError("a"), trace=TRACE)
    happen(ValueError("a"))
    happen(ValueError("b"))

    groups = admin.group_errors()

    assert (groups[0].count, groups[0].place) == (2, None)
    assert sorted((group.type, group.code or "", group.place or "") for group in groups) == [
        ("CodedError", "1", "shop/smtp.py:send"),
        ("CodedError", "2", "shop/smtp.py:receive"),
        ("CodedError", "2", "shop/smtp.py:send"),
        ("ValueError", "", ""),
        ("ValueError", "", "shop/smtp.py:send"),
    ]
    assert len({group.fingerprint for group in groups}) == 5


def test_the_errors_of_a_group_are_found_by_its_fingerprint() -> None:
    happen(ValueError("a"), trace=TRACE)
    happen(ValueError("b"))
    (group,) = [group for group in admin.group_errors() if group.place]

    assert messages(ErrorFilter(group=group.fingerprint)) == ["a"]
    assert admin.count_errors(ErrorFilter(group=group.fingerprint)) == [("ValueError", 1)]


def test_a_fingerprint_stays_as_it_is() -> None:
    """It is noted in tickets and in silencing rules: a change of it is a change for users."""
    happen(CodedError("a", 1), trace=TRACE)

    assert [group.fingerprint for group in admin.group_errors()] == ["cafe4ac5b38b"]


FRAME = '  File "{}", line 3, in {}\n    x()\n'
HEAD = "Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        ([("/app/shop/mails.py", "run")], "shop/mails.py:run"),
        ([("mails.py", "<module>")], "mails.py:<module>"),
        ([("C:\\app\\shop\\mails.py", "run")], "shop/mails.py:run"),
        ([("/app/shop/mails.py", "run"), ("/usr/lib/python3.11/json/decoder.py", "decode")], "shop/mails.py:run"),
        ([("/app/a.py", "run"), ("<frozen importlib._bootstrap>", "_find")], "app/a.py:run"),
        ([("/app/a.py", "run"), ("/app/a.py", "<listcomp>")], "app/a.py:run"),
        ([("/v/lib/python3.12/site-packages/lib/a.py", "f")], "lib/a.py:f"),
        ([], None),
    ],
)
def test_the_place_is_the_last_line_that_is_the_programs_own(frames: list[Any], place: str | None) -> None:
    assert place_of(HEAD + "".join(FRAME.format(*frame) for frame in frames) + "ValueError: x") == place


def test_of_exceptions_that_came_of_one_another_the_place_of_the_last_one_counts() -> None:
    first, second = (HEAD + FRAME.format("/app/a.py", name) + "ValueError" for name in ("first", "second"))

    assert place_of(f"{first}\n\nDuring handling of the above exception, another...:\n\n{second}") == "app/a.py:second"


def test_without_a_traceback_there_is_no_place() -> None:
    assert (place_of(None), place_of("")) == (None, None)


# --- Counts


def test_errors_are_counted_by_type_queue_and_hour() -> None:
    happen(ValueError("a"), seconds_ago=7200)
    happen(ValueError("b"), queue="other")
    happen(KeyError("c"))

    counts = {by: admin.count_errors(by=by) for by in ("type", "queue", "hour")}

    assert counts == {
        "type": [("ValueError", 2), ("KeyError", 1)],
        "queue": [("mail", 2), ("other", 1)],
        "hour": [("2026-05-01 10", 1), ("2026-05-01 12", 2)],
    }


def test_what_errors_are_not_counted_by_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="by argument: 'day': must be one of type, queue, hour"):
        admin.count_errors(by="day")
