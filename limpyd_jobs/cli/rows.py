"""Records as rows of tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..statuses import STATUSES
from ..utils import parse_datetime, utcnow
from .output import Column, show_age, show_size

if TYPE_CHECKING:
    from ..admin import ErrorGroup, ErrorRecord, JobRecord, QueueStatus, WorkerRecord

STATUS_STYLES = {
    "running": "green",
    "success": "green",
    "error": "red",
    "canceled": "yellow",
    "delayed": "cyan",
    "blocked": "magenta",
}


def status_word(letter: str | None) -> str:
    """`waiting` for `w`."""
    return STATUSES.by_value(letter, "unknown").lower()


def moment(text: str | None) -> str:
    """A time as it is stored, to the second."""
    return (text or "")[:19]


def age_of(text: str) -> str:
    """How long ago a time is that a row has, for a terminal: `3m12s`."""
    try:
        return show_age((utcnow() - parse_datetime(text)).total_seconds())
    except ValueError:  # there is none, or nobody knows what it is
        return text


def _alarming(text: str) -> str:
    return "red" if text not in ("", "0") else ""


# --- queues and workers


QUEUE_COLUMNS = (
    Column("queue", shrinks=True),
    Column("prio", is_number=True, spare=6),
    Column("waiting", is_number=True),
    Column("due", is_number=True, spare=8),
    Column("delayed", is_number=True, spare=7),
    Column("running", is_number=True, style=lambda text: "green" if text != "0" else "", spare=2),
    Column("errors", is_number=True, style=_alarming, spare=3),
    Column("in/s", is_number=True, spare=5),
    Column("out/s", is_number=True, spare=4),
    Column("oldest", is_number=True),
    Column("workers", is_number=True, style=lambda text: "yellow" if text == "0" else "", spare=1),
    Column("state", style=lambda text: "bold yellow"),
)


def queue_row(queue: QueueStatus) -> tuple[Any, ...]:
    """A queue in a table."""
    return (
        queue.name,
        queue.priority,
        queue.waiting,
        queue.due,
        queue.delayed,
        queue.running,
        queue.errors,
        f"{queue.rate_in:.1f}",
        f"{queue.rate_out:.1f}",
        show_age(queue.oldest_age),
        queue.listeners,
        "paused" if queue.paused else "",
    )


WORKER_COLUMNS = (
    Column("worker", shrinks=True),
    Column("host", shrinks=True, spare=1),
    Column("pid", is_number=True, spare=5),
    Column("queues", shrinks=True, spare=2),
    Column("status", style=lambda text: "green" if text == "running" else "", spare=3),
    Column("up", is_number=True, spare=7),
    Column("job", shrinks=True),
    Column("for", is_number=True),
    Column("done", is_number=True, spare=4),
    Column("errors", is_number=True, style=_alarming, spare=6),
    Column("memory", is_number=True, spare=8),
    Column("heartbeat", is_number=True),
)


def worker_row(worker: WorkerRecord) -> tuple[Any, ...]:
    """A worker in a table."""
    job = worker.jobs[0] if worker.jobs else None
    more = f" and {len(worker.jobs) - 1} more" if len(worker.jobs) > 1 else ""
    return (
        worker.id,
        worker.host,
        worker.pid,
        ",".join(worker.queues),
        worker.status,
        age_of(worker.started),
        f"{job.ident}{more}" if job else "",
        show_age(job.seconds) if job else "",
        worker.counts.get("jobs", 0),
        worker.counts.get("errors", 0),
        show_size(worker.memory_bytes),
        show_age(worker.heartbeat_age),
    )


# --- jobs and errors


JOB_COLUMNS = (
    Column("ident", shrinks=True),
    Column("identifier", shrinks=True, spare=1),
    Column("status", style=lambda text: STATUS_STYLES.get(text, "")),
    Column("queue", shrinks=True, spare=3),
    Column("prio", is_number=True, spare=7),
    Column("tries", is_number=True, spare=6),
    Column("added", brief=age_of, spare=2),
    Column("started", brief=age_of, spare=5),
    Column("ended", brief=age_of, spare=4),
)


def job_row(job: JobRecord) -> tuple[Any, ...]:
    times = (moment(job.added), moment(job.start), moment(job.end))
    return (job.ident, job.identifier, status_word(job.status), job.queue, job.priority, job.tries, *times)


def job_json(job: JobRecord) -> dict[str, Any]:
    """A job for JSON: `status` is as it is stored, `state` the word for it."""
    return {**asdict(job), "state": status_word(job.status)}


ERROR_COLUMNS = (
    Column("time", brief=age_of),
    Column("type", shrinks=True, style=lambda text: "red"),
    Column("code", spare=4),
    Column("queue", shrinks=True, spare=3),
    Column("identifier", shrinks=True, spare=2),
    Column("job", shrinks=True, spare=1),
    Column("message", shrinks=True),
)
GROUP_COLUMNS = (
    Column("fingerprint", spare=1),
    Column("count", is_number=True),
    Column("type", shrinks=True, style=lambda text: "red"),
    Column("code", spare=4),
    Column("place", shrinks=True, spare=3),
    Column("first seen", brief=age_of, spare=6),
    Column("last seen", brief=age_of),
    Column("last hour", is_number=True, spare=7),
    Column("hour before", is_number=True, spare=8),
    Column("trend", style=lambda text: {"up": "red", "down": "green"}.get(text, ""), spare=2),
    Column("example", shrinks=True, spare=5),
    Column("message", shrinks=True),
)


def error_row(error: ErrorRecord) -> tuple[Any, ...]:
    time, subject = moment(error.date_time), (error.queue, error.identifier, error.job)
    return (time, error.type, error.code, *subject, error.message)


def group_row(group: ErrorGroup) -> tuple[Any, ...]:
    return (
        group.fingerprint,
        group.count,
        group.type,
        group.code,
        group.place,
        moment(group.first_seen),
        moment(group.last_seen),
        group.last_hour,
        group.hour_before,
        trend(group),
        group.example,
        group.message,
    )


def trend(group: ErrorGroup) -> str:
    """How the last hour compares with the one before: `up`, `down`, `same`, or nothing when there were none."""
    if group.last_hour == group.hour_before:
        return "same" if group.last_hour else ""
    return "up" if group.last_hour > group.hour_before else "down"
