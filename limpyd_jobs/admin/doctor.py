"""The state of health of a Redis that holds jobs: what is wrong with it, or will be, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..models import Queue

LEVELS = ("ok", "info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """What one check has to say.

    Attributes:
        level: one of LEVELS; `info`: to be known, or it cannot be seen.
        subject: what was looked at, in a word or two.
        fix: a command or a line of configuration; None: there is nothing to do.
    """

    level: str
    subject: str
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.level}: {self.subject}: {self.text}" + (f" Fix: {self.fix}" if self.fix else "")


CHECKS: list[Callable[[Any], Iterable[Finding]]] = []


def diagnose(checks: Iterable[Callable[[Any], Iterable[Finding]]] | None = None, queue_model: Any = Queue) -> list[Finding]:
    """Look at Redis, and at what is in it, for what is wrong or will be.

    Args:
        checks: CHECKS when None. Each is called with what it may look at, and gives findings.
    """
    raise NotImplementedError
