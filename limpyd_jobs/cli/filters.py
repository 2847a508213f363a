"""The options that say which jobs are meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..statuses import STATUSES
from .common import Duration, Moment, Names, Status, joined
from .output import clean, show_age

if TYPE_CHECKING:
    from ..admin import ErrorFilter, JobFilter

SECOND = len("2026-11-21 18:30:00")
QUEUES = click.option(
    "--queues",
    "--queue",
    "queues",
    type=Names(),
    multiple=True,
    metavar="NAMES",
    help="Only these queues; with commas, or given many times.",
)
FILTERS = (
    QUEUES,
    click.option("--identifier", metavar="TEXT", help="With this identifier; may hold * and ?."),
    click.option("--class", "job_class", metavar="NAME", help="Of this class: my.module.MailJob, or MailJob."),
    click.option("--task", metavar="NAME", help="Calls of this task."),
    click.option(
        "--older-than", type=Duration(), metavar="DURATION", help="Added longer ago than this, like 2h or 7d."
    ),
    click.option("--newer-than", type=Duration(), metavar="DURATION", help="Added in this last time."),
    click.option("--ended-before", type=Moment(), metavar="TIME", help="Ended before: UTC, or how long ago, like 2h."),
)
STATUS_FILTER = click.option(
    "--status",
    "statuses",
    type=Status(),
    multiple=True,
    metavar="STATUS",
    help=f"In this status: {', '.join(name.lower() for name in STATUSES)}; may be given many times.",
)


def filter_options(*more: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The options that say which jobs are meant."""

    def decorate(function: Any) -> Any:
        for option in reversed((*more, *FILTERS)):
            function = option(function)
        return function

    return decorate


def read_filter(values: dict[str, Any]) -> JobFilter:
    """The filter that the options of `filter_options` stand for; they are taken out of the values."""
    from ..admin import JobFilter

    names = ("identifier", "job_class", "task", "older_than", "newer_than", "ended_before")
    return JobFilter(
        queues=joined(values.pop("queues")),
        statuses=values.pop("statuses", ()),
        **{name: values.pop(name) for name in names},
    )


def in_words(wanted: JobFilter | ErrorFilter) -> str:
    """A filter as it is said in a question: `status error, queue mail`; an empty text for all."""
    values = defaultdict(lambda: None, asdict(wanted))
    said = [
        ("status", " or ".join(STATUSES.by_value(value).lower() for value in values["statuses"] or ())),
        ("queue", " or ".join(values["queues"])),
        ("identifier", values["identifier"]),
        ("class", values["job_class"]),
        ("task", values["task"]),
        ("older than", show_age(values["older_than"])),
        ("newer than", show_age(values["newer_than"])),
        ("ended before", (values["ended_before"] or "")[:SECOND]),
        ("before", (values["until"] or "")[:SECOND]),
    ]
    return ", ".join(f"{name} {clean(value)}" for name, value in said if value)
