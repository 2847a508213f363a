"""What may be in the way of a job, in words.

A *clause* is a sentence without its subject: "is delayed until ...". So it can be said of the job itself ("It is
delayed until ...") and of one that another job waits for ("..., which is delayed until ...").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..utils import seconds_of
from ..wording import duration, local, utc
from .sight import Sight

NAMED = 3  # workers, or jobs, in a sentence


@dataclass(frozen=True)
class Cause:
    """One thing that is in the way of a job, or what has become of it."""

    reason: str
    clause: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    starts_in: float | None = None


def delay(sight: Sight, due: float, retry: str, evidence: Mapping[str, Any]) -> Cause:
    """It is not its time yet, or no worker has seen that it is. `retry`: what it failed with before, as words."""
    found = {**queue_evidence(sight), "until": utc(due), "until_local": local(due) or utc(due), **evidence}
    if due > sight.now:
        here = f", {local(due)} here" if local(due) else ""
        clause = f"is delayed until {utc(due)} UTC{here} (in {duration(due - sight.now)}){retry}"
        return Cause("delayed", clause, found, due - sight.now)
    clause = (
        f"was delayed until {utc(due)} UTC ({duration(sight.now - due)} ago){retry}: a worker that looks lets it wait"
    )
    return Cause("due", clause, found, 0.0)


def queue_evidence(sight: Sight) -> dict[str, Any]:
    if sight.queue is None:
        return {"queue": None}
    return {"queue": sight.queue.name, "priority": sight.queue.priority}


def pace(rate: float) -> str:
    """How fast the jobs of a queue are started, as words."""
    if not rate:
        return "of which none was started in the last minutes"
    return (
        f"of which about {rate:.2g} are started a second"
        if rate >= 1
        else f"of which one is started every {duration(1 / rate)}"
    )


def capacity(options: Mapping[str, Any]) -> int:
    """How many jobs a worker runs at the same time, by its options."""
    wanted = [options.get(name) for name in ("threads", "concurrency")]
    return max([int(one) for one in wanted if isinstance(one, int)], default=1)


def named(names: list[str], count: int | None = None) -> str:
    """Some names, and how many more there are."""
    more = (len(names) if count is None else count) - NAMED
    listed = ", ".join(names[:NAMED])
    return f"{listed} and {more:,} more" if more > 0 else listed or "nothing"


def named_jobs(jobs: Any) -> str:
    """Jobs that run, with how long they do."""
    times = [f"{job.ident} ({duration(job.seconds)})" if job.seconds is not None else job.ident for job in jobs]
    return named(times)


def name_error(error: Mapping[str, Any]) -> str:
    """An error in a line."""
    lines = str(error["message"] or "").splitlines() or [""]
    return f"{error['type']}: {lines[0][:200]}" if lines[0] else str(error["type"])


def to_the_second(text: str | None) -> str:
    """A time without fractions of a second."""
    return (text or "some time").partition(".")[0]


def ago(text: str, now: float) -> str:
    """How long ago a time was."""
    seconds = seconds_of(text)
    return "some time ago" if seconds is None else f"{duration(now - seconds)} ago"
