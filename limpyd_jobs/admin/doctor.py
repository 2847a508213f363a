"""The state of health of a Redis that holds jobs: what is wrong with it, or will be, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from redis.exceptions import ResponseError

from ..models import Queue
from . import jobs_checks, redis_checks
from .patient import Check, Finding, Patient

CHECKS: list[Check] = [*redis_checks.CHECKS, *jobs_checks.CHECKS]  # add yours


def diagnose(checks: Iterable[Check] | None = None, queue_model: Any = Queue) -> list[Finding]:
    """Look at Redis, and at what is in it, for what is wrong or will be. Nothing of anybody is changed.

    What the user of Redis may not ask for is said as a finding of the level `info`.

    Args:
        checks: functions that get a `Patient` and give findings; CHECKS when None.
    Raises:
        ConnectionError: of redis-py; Redis cannot be reached.
    """
    patient = Patient(queue_model)
    return [finding for check in (CHECKS if checks is None else checks) for finding in _findings(check, patient)]


def _findings(check: Check, patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except ResponseError as error:  # it may not be asked, a replica does not write, a command has no such name here
        subject = getattr(check, "__name__", "check").replace("_", " ")
        yield Finding("info", subject, f"It cannot be seen: {error}")
