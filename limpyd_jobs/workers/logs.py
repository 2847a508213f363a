"""How lines of the log look: text, or one JSON object each.

What a worker says of a job goes along with its records as the attribute `limpyd_jobs`, a dict: so other formatters,
and handlers that send records elsewhere, have it, too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

from ..exceptions import ConfigurationException
from ..models import MAX_TRACEBACK, class_name, printable, running_job, shortened
from ..transitions import Claim

LOG_FORMAT = "[%(process)d] %(asctime)s (%(name)s) %(levelname)-8s %(message)s"
FORMATS = ("text", "json")
FACTS = "limpyd_jobs"  # the attribute of a record
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", FACTS}

about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039  (nobody changes it)
"""What is to be said beside the next message, of the job that it is about."""


def facts_of(job: Any) -> dict[str, Any]:
    """What is said of a job beside each message about it, without a round trip."""
    claim = job._claim or job._last_claim
    return {"job": job.ident} if claim is None else facts_of_claim(claim)


def facts_of_claim(claim: Claim) -> dict[str, Any]:
    """The same, of a job that somebody has claimed."""
    return {"queue": claim.queue_name or None, "job": claim.ident, "identifier": claim.identifier}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for the records of any logger; see docs/telemetry.md.

    Of a record that a job has logged, the job is told as well. What the program gave as `extra` is there, too, as a
    text if it is nothing that JSON knows.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII, without its end."""
        entry = {**self._own(record), **self._said(record)}
        others = {name: value for name, value in vars(record).items() if name not in STANDARD and name not in entry}
        entry.update(others)
        try:
            line = json.dumps(entry, default=printable, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # a key that is no text, NaN, a circle
            line = ""
        if line and "\\ud" not in line:
            return line
        return json.dumps({name: _fit(value) for name, value in entry.items()}, default=printable)

    def _own(self, record: logging.LogRecord) -> dict[str, Any]:
        return {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process or os.getpid(),
        }

    def _said(self, record: logging.LogRecord) -> dict[str, Any]:
        """The message, and what it is about."""
        facts: Mapping[str, Any] | None = getattr(record, FACTS, None)
        if not isinstance(facts, Mapping):
            job = running_job.get()
            facts = facts_of(job) if job is not None else {}
        message = facts["message"] if "message" in facts else record.getMessage()
        said = {"message": "", **facts} | {"message": shortened(printable(message), MAX_TRACEBACK)}  # it comes first
        if record.exc_info and record.exc_info[1] is not None:
            said.setdefault("error", class_name(record.exc_info[1]))
            if "traceback" not in said:
                said["traceback"] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = record.stack_info
        for name in {"traceback", "stack"} & said.keys():
            said[name] = said[name] and shortened(printable(said[name]), MAX_TRACEBACK)
        return said


def _fit(value: Any) -> Any:
    """A value as strict readers of JSON take it, too: its text, if it is something else."""
    if isinstance(value, str):
        return printable(value)  # half of a surrogate pair can be escaped, and not be read again
    try:
        json.dumps(value, default=printable, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return printable(value)
    return value


def make_log_handler(log_format: str = "text") -> logging.Handler:
    """Writes to stderr; as text, with the process in front."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(LOG_FORMAT))
    return handler


def show_as(log_format: Any, logger: Any) -> None:
    """Have the lines of a logger written as an option says.

    For `json` that is each handler that writes lines, also of loggers above, but for those with a formatter of the
    program's own; if there is no handler, one for stderr. `text` leaves all as it is.

    Raises:
        ConfigurationException: it is none of the formats.
    """
    if log_format not in FORMATS:
        raise ConfigurationException(f"Invalid log_format: {log_format!r}: must be {' or '.join(FORMATS)}")
    if log_format == "text":
        return
    logger = getattr(logger, "logger", logger)  # of an adapter
    handlers = list(_handlers_of(logger))
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler.formatter) in (type(None), logging.Formatter):
            handler.setFormatter(JsonFormatter())
    if not handlers:
        logger.addHandler(make_log_handler("json"))


def _handlers_of(logger: Any) -> Iterator[logging.Handler]:
    current: logging.Logger | None = logger
    while current is not None:
        yield from current.handlers
        current = current.parent if current.propagate else None
