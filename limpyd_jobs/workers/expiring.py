"""Jobs that are kept for a time of their own, and then go.

A script that ends a job for good notes when its record goes, if `keep_success` or `keep_errors` of the job or of its
class says for how long it is kept: in the sorted set `jobs:expiring`. Every worker looks there now and then, also one
that has nothing else to do. See docs/retention.md.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from .. import recipes, transitions
from ..database import is_outage
from ..models import has_plain_error_indexes
from ..statuses import STATUSES
from ..transitions import Past
from .retention import (
    BATCH,
    BUSY_SECONDS,
    IDLE_SECONDS,
    class_of,
    errors_stay,
    pks_of_errors,
    read_errors,
    read_jobs,
    repair_removed,
)

FIRST_LOOK_SECONDS = (1.0, 10.0)  # after the start of a worker: many that start together do not look together
NEXT_STEP_SECONDS = 0.01  # an idle worker waits so long where there are more to remove
MOST_ERRORS = 500  # of one job, that go in one step


class ExpiringJobs:
    """Removes the jobs whose own time of being kept is over.

    Args:
        log: called with a line and a level.
    """

    def __init__(self, queue_model: Any, error_model: Any, log: Callable[[str, str], None]) -> None:
        self._queue_model, self._error_model, self._log = queue_model, error_model, log
        self._look_at = time.monotonic() + random.uniform(*FIRST_LOOK_SECONDS)
        self._passed_over = 0  # of the first ones, since their classes cannot be had here
        self._warned: set[str] = set()

    @property
    def is_due(self) -> bool:
        """Is it time to look?"""
        return self._look_at <= time.monotonic()

    def trim(self) -> None:
        """Remove some of those that are due, a hundred at most."""
        self._look_at = time.monotonic() + IDLE_SECONDS  # also when it fails
        try:
            seconds = self._trim()
        except (ResponseError, ValueError) as error:  # ValueError: UnicodeError, too
            if is_outage(error):
                raise
            self._warn(f"The jobs that are kept for a time of their own stay: {error}", "error")
        else:
            self._look_at = time.monotonic() + seconds

    def _warn(self, message: str, level: str = "warning") -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._log(message, level)

    def _trim(self) -> float:
        """Remove some, and answer the seconds until the next look."""
        current, entries = self._read_page()
        due = [ident for ident, when in entries if when <= current]
        models = {ident: class_of(ident) for ident in due}
        known = {ident: model for ident, model in models.items() if model is not None}
        done = self._forget(known) if known else 0
        for ident in due[:1] if not known else ():
            self._warn(f"{ident} is kept for longer than it should be: its class cannot be had here")
        if done < len(known):
            return 0
        if len(due) == BATCH:
            self._passed_over += BATCH - len(known)
            return 0
        self._passed_over = 0
        upcoming = [when - current for _, when in entries if when > current]
        wait = min(max(min(upcoming, default=IDLE_SECONDS), BUSY_SECONDS), IDLE_SECONDS)
        return wait * random.uniform(0.9, 1.1)

    def _read_page(self) -> tuple[float, list[tuple[str, float]]]:
        """The time by the clock of Redis, and the next ones with theirs."""
        pipeline = self._queue_model.get_connection().pipeline(transaction=False)
        first = self._passed_over
        pipeline.time()
        pipeline.zrange(f"{self._queue_model.namespace or ''}:expiring", first, first + BATCH - 1, withscores=True)
        (seconds, micros), entries = pipeline.execute()
        return seconds + micros / 1_000_000, entries

    def _forget(self, models: dict[str, Any]) -> int:
        """Remove jobs; answers to how many the script came."""
        client = self._queue_model.get_connection()
        found = read_jobs(models, client)
        errors, incomplete = self._errors_of(found)
        past = {ident: self._past(ident, models[ident], found[ident], errors.get(ident, [])) for ident in models}
        call = transitions.forget(
            self._queue_model.namespace or "", [(one, ident not in incomplete) for ident, one in past.items()]
        )
        done, removed = transitions.send(client, call)
        for ident in removed:
            repair_removed(models[ident], ident.partition(":")[2], found[ident] or {})
            for pk, values in errors.get(ident, ()):
                repair_removed(self._error_model, pk, values)
        return done

    def _errors_of(
        self, found: dict[str, dict[str, str | None] | None]
    ) -> tuple[dict[str, list[tuple[str, dict[str, str | None]]]], set[str]]:
        """The Errors of jobs, and those jobs that have more of them than go in one step."""
        failed = [ident for ident, values in found.items() if values is not None and _may_have_failed(values)]
        if not failed:
            return {}, set()
        if not has_plain_error_indexes(self._error_model):
            self._warn(errors_stay(self._error_model))
            return {}, set()
        pks = pks_of_errors(self._error_model, failed)
        incomplete = {ident for ident, many in pks.items() if len(many) > MOST_ERRORS}
        return read_errors(self._error_model, {ident: many[:MOST_ERRORS] for ident, many in pks.items()}), incomplete

    def _past(
        self, ident: str, model: Any, values: dict[str, str | None] | None, errors: list[tuple[str, Any]]
    ) -> Past:
        """What goes with a job."""
        values = values or {}
        job = {
            **recipes.removal(model, ident.partition(":")[2], values),
            "identifier": values.get("identifier"),
        }
        return Past(ident, job, [recipes.removal(self._error_model, *error) for error in errors], values)


def _may_have_failed(values: dict[str, str | None]) -> bool:
    return values["status"] != STATUSES.SUCCESS or values["tries"] not in (None, "0", "1")
