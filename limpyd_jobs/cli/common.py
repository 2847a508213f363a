"""What all sub-commands have in common: their options, the database, what may be given as a value, exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import click

from ..exceptions import ConfigurationException
from ..statuses import STATUSES
from ..utils import KEEP_UNITS, parse_moment, utcnow

PROGRAM = "limpyd-jobs"
FINE, WRONG, USAGE, NO_REDIS, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes


# --- the options of every sub-command


def _common_options() -> list[click.Option]:
    """New ones for each command: click notes in them what was given."""
    several: dict[str, Any] = {"multiple": True, "expose_value": False, "callback": _remember}
    single: dict[str, Any] = {"expose_value": False, "callback": _remember}
    return [
        click.Option(["--json", "wants_json"], is_flag=True, help="Print one JSON document.", **single),
        click.Option(
            ["--database"],
            metavar="NAME",
            help="The Redis database: redis://[user:password@]host:port/db, rediss://..., unix:///path?db=0, "
            "embedded:///directory or host:port:db (default: the environment variable LIMPYD_JOBS_DATABASE, where a "
            "password is safer; else localhost:6379:0).",
            **single,
        ),
        click.Option(
            ["--pythonpath"], metavar="DIR", help="Add a directory to the Python path; may hold * and ?.", **several
        ),
        click.Option(
            ["--queue-model"],
            metavar="PATH",
            help="The model of the queues, like my.module.MyQueue: its namespace is the one that is meant.",
            **single,
        ),
        click.Option(
            ["--tasks"],
            metavar="NAMES",
            help="Modules with tasks or jobs, and packages, that are imported; with commas.",
            **several,
        ),
        click.Option(
            ["--job-modules"],
            metavar="NAMES",
            help="Modules that jobs in Redis may have imported when something is done to them; with commas, * for any.",
            **several,
        ),
    ]


COMMON = ("json", "database", "pythonpath", "queue-model", "tasks", "job-modules")


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Note what was given, before or after the sub-command: the later one wins, and lists grow."""
    if value in (None, (), False):
        return
    given: Given = context.find_object(Given) or context.ensure_object(Given)
    name = str(parameter.name)
    setattr(given, name, (*getattr(given, name), *value) if isinstance(value, tuple) else value)


@dataclass
class Given:
    """What the common options say, and what comes of that."""

    wants_json: bool = False
    database: str | None = None
    pythonpath: tuple[str, ...] = ()
    queue_model: str | None = None
    tasks: tuple[str, ...] = ()
    job_modules: tuple[str, ...] = ()
    database_name: str = field(default="", init=False)

    @cached_property
    def scope(self) -> dict[str, Any]:
        """The queue model, for the functions of `admin`: `status(**given.scope)`. Connects, and imports what is named.

        Raises:
            ConfigurationException: something cannot be imported.
            DatabaseException: the server cannot be used.
        """
        from .. import admin

        scope = self._import()
        self.database_name = admin.connect(self.named_database, **scope)
        return scope

    @property
    def named_database(self) -> str | None:
        """The database that was named, if any, on the command line or by the environment."""
        from ..database import DATABASE_VARIABLE

        return self.database or os.environ.get(DATABASE_VARIABLE) or None

    def _import(self) -> dict[str, Any]:
        """As the worker does: the path first, then what is named; then the models are connected."""
        from ..modules import allowed_modules, find_directories, import_all
        from ..workers.config import import_path

        directories = find_directories(self.pythonpath)
        sys.path[:0] = [directory for directory in directories if directory not in sys.path]
        allowed_modules.add_directories(directories)
        for names in self.job_modules:
            allowed_modules.add(names)
        allowed_modules.add(import_all("tasks", self.tasks))
        if self.queue_model is None:
            return {}
        try:
            return {"queue_model": import_path(self.queue_model)}
        except ConfigurationException as error:
            raise ConfigurationException(f"Invalid queue-model {self.queue_model!r}: {error}") from error


class Command(click.Command):
    """A sub-command: has the common options, gets a `Given`, and answers its exit code (None is 0)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_params = list(self.params)
        self.params = [*self.params, *_common_options()]

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Given)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)


class Group(click.Group):
    """Sub-commands, in the order in which they are defined; the common options may stand before them, too."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})
        self.params = [*self.params, *_common_options()]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            ctx.fail(f"Missing command: one of {', '.join(self.commands)}.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Given)
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # nobody reads on, as with `| head`; what is still in the buffer is not for anybody
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FINE

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


Group.group_class = Group


def write_options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """The options for `--help`: those of the command first, then those that each has."""
    titles: dict[str, list[tuple[str, str]]] = {"Options": [], "Common options": []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            is_common = parameter.opts[0].lstrip("-") in COMMON
            titles["Common options" if is_common else "Options"].append(record)
    for title, records in titles.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


# --- what may be given as a value


def parse_seconds(text: str) -> float:
    """A duration in seconds: `90`, `0.5`, `45s`, `30m`, `12h`, `7d`, `2w`.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smhdw]?)", text.strip())
    if match is None:
        raise ValueError(text)
    seconds = float(match[1]) * KEEP_UNITS[match[2] or "s"]
    if seconds > timedelta(days=36525).total_seconds():
        raise ValueError(text)
    return seconds


class Kind(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in some versions of click
    """What may be given as a value; its errors say what is accepted."""


class Whole(Kind):
    """A whole number between two limits."""

    name = "number"

    def __init__(self, least: int, most: int | None = None) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if number < self.least or (self.most is not None and number > self.most):
            accepted = f"{self.least} or more" if self.most is None else f"from {self.least} to {self.most}"
            self.fail(f"{value!r} is not a whole number, {accepted}.", param, ctx)
        return number


class Duration(Kind):
    """In seconds, as a float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return value
        try:
            return parse_seconds(value)
        except ValueError:
            self.fail(f"{value!r} is not a duration like 90, 45s, 30m, 12h, 7d or 2w.", param, ctx)


class Moment(Kind):
    """A date and time in UTC, or the beginning of one, as a text; or how long ago it is."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        try:
            return parse_moment(text) if _is_date(text) else str(utcnow() - timedelta(seconds=parse_seconds(text)))[:19]
        except (ValueError, OverflowError):
            accepted = "YYYY-MM-DD HH:MM:SS in UTC, nor the beginning of one, nor how long ago, like 2h or 7d"
            self.fail(f"{value!r} is neither {accepted}.", param, ctx)


def _is_date(text: str) -> bool:
    return "-" in text or re.fullmatch(r"(19|20)\d\d", text) is not None


class Rate(Kind):
    """Jobs in a time: `50/s`, `600/m`, `1000/h`, or a number a second; as a float a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return value
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:/([smh]))?", value.strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a rate like 50/s, 600/m or 1000/h.", param, ctx)
        return float(match[1]) / KEEP_UNITS[match[2] or "s"]


class Status(Kind):
    """A status by its name or its letter; as the letter."""

    name = "status"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        by_name = {**{name.lower(): letter for name, letter in STATUSES.items()}, **{v: v for v in STATUSES.values()}}
        found = by_name.get(value.lower())
        if found is None:
            self.fail(f"{value!r} is not one of {', '.join(name.lower() for name in STATUSES)}.", param, ctx)
        return found


class Names(Kind):
    """Names with commas; as a tuple."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            self.fail(f"{value!r} are not names with commas between them.", param, ctx)
        return names


def joined(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The names of an option that may be given many times, each with commas."""
    return tuple(name for names in lists for name in names)
