"""The setting LIMPYD_JOBS, a dictionary; read once, when the app is ready."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from ...database import DATABASE_VARIABLE, DEFAULT_DATABASE, parse_database
from ...exceptions import InvalidDatabaseURL

NAME = "LIMPYD_JOBS"
KEYS = ("DATABASE", "MODULES")


@dataclass(frozen=True)
class Settings:
    """What LIMPYD_JOBS says, and otherwise the environment.

    Attributes:
        database: its name, see docs/deployment.md; None: the models stay where the program has put them.
        modules: the names of the modules that are imported from each app that has them.
    """

    database: str | None = None
    modules: tuple[str, ...] = ("jobs", "tasks")


def read_settings() -> Settings:
    """What is set.

    Raises:
        ImproperlyConfigured: it cannot be used; each reason in a sentence.
    """
    given = getattr(settings, NAME, {})
    reasons = list(_problems(given))
    if reasons:
        raise ImproperlyConfigured(" ".join(reasons))
    modules = given.get("MODULES", Settings.modules)
    return Settings(_database_of(given), tuple(modules))


def check_settings(app_configs: Any = None, **options: Any) -> list[Any]:
    """The system check of Django."""
    given = getattr(settings, NAME, {})
    found = [checks.Error(reason, id="limpyd_jobs.E001") for reason in _problems(given)]
    if not found and _database_of(given) is None:
        hint = f'Set {NAME} = {{"DATABASE": "redis://..."}}, or the environment variable {DATABASE_VARIABLE}.'
        found.append(checks.Warning("No database of jobs is named.", hint=hint, id="limpyd_jobs.W001"))
    return found


def _database_of(given: Mapping[str, Any]) -> str | None:
    """That of the settings: two processes with the same settings have the same one, whatever their environments."""
    return given.get("DATABASE") or os.environ.get(DATABASE_VARIABLE) or None


def _problems(given: Any) -> Iterator[str]:
    """Why it cannot be used; no password is shown."""
    if not isinstance(given, Mapping):
        yield f"{NAME} must be a dictionary, not of the type {type(given).__name__}."
        return
    for name in given:
        if name not in KEYS:
            yield f"{NAME} has {name!r}, which is unknown; accepted: {', '.join(KEYS)}."
    yield from _problems_of_database(given)
    modules = given.get("MODULES", ())
    if not isinstance(modules, (list, tuple)) or not all(_is_name(name) for name in modules):
        yield f'{NAME}["MODULES"] is {modules!r}: must be a list of names of modules, as in ["jobs", "tasks"].'


def _problems_of_database(given: Mapping[str, Any]) -> Iterator[str]:
    database = given.get("DATABASE")
    if database is not None and not isinstance(database, str):
        kind = type(database).__name__
        yield f'{NAME}["DATABASE"] is of the type {kind}: must be the name of a database, as in "redis://...".'
        return
    where = f'{NAME}["DATABASE"]' if database else f"The environment variable {DATABASE_VARIABLE}"
    try:
        parse_database(_database_of(given) or DEFAULT_DATABASE)
    except InvalidDatabaseURL as error:
        yield f"{where} cannot be used: {error}."


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
