"""Lines of the log as JSON: what is in them, and that they are what they claim to be."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from limpyd_jobs import Job
from limpyd_jobs.exceptions import ConfigurationException
from limpyd_jobs.workers import LOGGER_NAME, AsyncWorker, Worker
from limpyd_jobs.workers.logs import FACTS, JsonFormatter, show_as

from .base import Log, work

pytestmark = pytest.mark.usefixtures("database")


class LoggedJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        name = self.identifier.hget()
        if name == "talks":
            logging.getLogger("shop").warning("sold %d", 3, extra={"amount": 3, "unfit": {1, 2}, "job": "mine"})
        if name.startswith("bad"):
            raise LookupError("nö\nline 2")
        if name == "stops":
            self.status.hset("c")


class Lines(logging.StreamHandler):  # type: ignore[type-arg]  # it takes one from Python 3.11 on
    """Writes into a text, which is read as one object a line."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def about(self, ident: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry.get("job") == ident]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the workers, and the loggers of the program, write."""
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    logging.getLogger(LOGGER_NAME).setLevel(logging.NOTSET)


@pytest.fixture
def formatter() -> JsonFormatter:
    return JsonFormatter()


# --- what workers say


@pytest.mark.parametrize(
    "options",
    [{}, {"prefetch": 5}, {"threads": 2}, {"worker_class": AsyncWorker}],
    ids=["plain", "ahead", "hands", "loop"],
)
def test_each_line_about_a_job_has_its_facts(lines: Lines, options: dict[str, Any]) -> None:
    job = LoggedJob.add_job("user:ä")

    worker = work(1, log_format="json", **options)

    start, end = lines.about(job.ident)
    assert (start["message"], "outcome" in start) == ("[test|1|user:ä] starting", False)
    assert {name: end[name] for name in ("queue", "job", "identifier", "worker", "outcome", "level", "logger")} == {
        "queue": "test",
        "job": job.ident,
        "identifier": "user:ä",
        "worker": worker.id,
        "outcome": "success",
        "level": "info",
        "logger": "limpyd-jobs",
    }
    assert end["message"].startswith("[test|1|user:ä] success, in 0:00:00")
    assert 0 <= end["duration"] < 60 and isinstance(end["pid"], int)
    assert datetime.fromisoformat(end["time"]).utcoffset() is not None


def test_an_error_has_its_type_and_its_traceback(lines: Lines) -> None:
    job = LoggedJob.add_job("bad", requeue_times=1)

    work(1, log_format="json")

    failed, requeued = lines.about(job.ident)[1:]
    assert (failed["level"], failed["outcome"], failed["error"], failed["is_requeued"]) == (
        "error",
        "error",
        "LookupError",
        True,
    )
    assert failed["message"].endswith("error: nö\nline 2 [requeued]")
    assert failed["traceback"].startswith("Traceback (most recent call last):\n") and 0 <= failed["duration"] < 60
    assert (requeued["outcome"], "traceback" in requeued) == ("requeued", False)


def test_what_was_canceled_says_so(lines: Lines) -> None:
    job = LoggedJob.add_job("stops")

    work(1, log_format="json")

    assert lines.about(job.ident)[-1]["outcome"] == "canceled"


def test_what_a_hook_raises_is_told_with_its_job(lines: Lines) -> None:
    class Raising(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
            raise KeyError("hook")

    job = LoggedJob.add_job("a")

    work(1, worker_class=Raising, log_format="json")

    told = lines.about(job.ident)[1]
    assert (told["error"], told["message"]) == ("KeyError", f"{job.ident} raised, in job_success")
    assert told["traceback"].startswith("Traceback") and told["worker"]


def test_what_a_job_logs_itself_is_told_with_it(lines: Lines) -> None:
    job = LoggedJob.add_job("talks")

    work(1, log_format="json")

    said = next(entry for entry in lines.entries if entry["logger"] == "shop")
    assert (said["message"], said["job"], said["identifier"]) == ("sold 3", job.ident, "talks")
    assert (said["amount"], said["unfit"]) == (3, "{1, 2}")


def test_a_worker_that_logs_in_its_own_way_still_tells_of_the_job(lines: Lines) -> None:
    class Telling(Worker):
        def log(self, message: str, level: str = "info") -> None:
            super().log(f"! {message}", level)

    job = LoggedJob.add_job("a")

    work(1, worker_class=Telling, log_format="json")

    assert [entry["message"][:2] for entry in lines.about(job.ident)] == ["! ", "! "]


def test_stacks_are_one_line(lines: Lines) -> None:
    Worker("test", log_format="json", terminate_gracefully=False).log_stacks()

    (entry,) = lines.entries
    assert entry["level"] == "critical" and "test_stacks_are_one_line" in entry["message"]


# --- text


def test_the_text_format_is_what_it_was(lines: Lines) -> None:
    LoggedJob.add_job("a")

    worker = work(1)

    text = lines.stream.getvalue().splitlines()
    assert text[1] == f"[{worker.id}] [test|1|a] starting"


def test_a_record_has_the_facts_also_with_the_text_format(log: Log) -> None:
    job = LoggedJob.add_job("a")

    work(1)

    facts = [getattr(record, FACTS) for record in log.records]
    assert [one.get("outcome") for one in facts if one.get("job") == job.ident] == [None, "success"]


def test_a_logger_that_takes_no_facts_gets_none() -> None:
    class Mine:
        def __init__(self) -> None:
            self.said: list[str] = []

        def info(self, text: str, *args: Any) -> None:
            self.said.append(text % args)

    class Own(Worker):
        def set_logger(self) -> None:
            self.logger = Mine()

    LoggedJob.add_job("a")

    worker = work(1, worker_class=Own)

    assert any("starting" in text for text in worker.logger.said)


# --- the option


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigurationException, match="Invalid log_format: 'xml': must be text or json"):
        Worker("test", log_format="xml")


def test_a_logger_without_a_handler_gets_one_for_stderr() -> None:
    logger = logging.Logger("alone")

    show_as("json", logger)

    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    assert isinstance(handler.formatter, JsonFormatter)


def test_a_formatter_of_the_program_is_left_alone() -> None:
    class Own(logging.Formatter):
        pass

    logger, handler = logging.Logger("mine"), logging.StreamHandler()
    handler.setFormatter(own := Own())
    logger.addHandler(handler)

    show_as("json", logger)

    assert logger.handlers == [handler] and handler.formatter is own


# --- the formatter


def test_a_line_is_ascii_and_one_line_whatever_is_said(formatter: JsonFormatter) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "ü\u2028\n\ud800 %s", ({1: object},), None)

    line = formatter.format(record)

    assert line.isascii() and "\n" not in line
    assert json.loads(line)["message"].startswith("ü\u2028\n")


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, object()], ids=["nan", "key", "object"])
def test_what_json_cannot_hold_becomes_a_text(formatter: JsonFormatter, value: Any) -> None:
    record = logging.makeLogRecord({"msg": "m", "amount": value})

    assert json.loads(formatter.format(record), parse_constant=pytest.fail)["amount"] == str(value)


def test_a_circle_becomes_a_text(formatter: JsonFormatter) -> None:
    circle: list[Any] = []
    circle.append(circle)

    assert json.loads(formatter.format(logging.makeLogRecord({"amount": circle})))["amount"] == "[[...]]"


def test_an_exception_is_told_with_its_type(formatter: JsonFormatter) -> None:
    try:
        raise OSError("disk")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "m", (), sys.exc_info())

    entry = json.loads(formatter.format(record))

    assert entry["error"] == "OSError" and entry["traceback"].endswith("OSError: disk")


def test_what_json_cannot_hold_spoils_nothing_beside_it(formatter: JsonFormatter) -> None:
    record = logging.makeLogRecord(
        {"msg": "m", "amount": float("nan"), "count": 3, "name_of_it": "\ud800", "list": [1]}
    )

    entry = json.loads(formatter.format(record))

    assert (entry["count"], entry["list"], entry["name_of_it"]) == (3, [1], "\\ud800")


def test_a_huge_traceback_is_shortened(formatter: JsonFormatter) -> None:
    facts = {"message": "m", "traceback": "x" * 3_000_000}

    line = formatter.format(logging.makeLogRecord({FACTS: facts}))

    assert len(line) < 110_000


def test_the_stack_of_a_call_is_told(formatter: JsonFormatter) -> None:
    record = logging.makeLogRecord({"msg": "m", "stack_info": "Stack (most recent call last):"})

    assert json.loads(formatter.format(record))["stack"] == "Stack (most recent call last):"
