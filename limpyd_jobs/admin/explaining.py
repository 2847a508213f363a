"""Why a job does not run: one sentence, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models import Queue


@dataclass(frozen=True)
class Explanation:
    """Why a job does not run, where it runs, or how it ended.

    Attributes:
        sentence: for people.
        reason: a word, for programs: see docs/explain.md.
        evidence: what the sentence was made from: texts, numbers, lists and dicts of these.
        starts_in: about how many seconds it takes until the job starts; None when nobody can tell.
    """

    ident: str
    sentence: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    starts_in: float | None = None

    def __str__(self) -> str:
        return self.sentence


def explain(ident: str, queue_model: Any = Queue) -> Explanation:
    """Say in one sentence why a job does not run, where it runs, or how it ended.

    Args:
        ident: `module.Class:7`, a primary key alone or an identifier, as `get_job` takes them.
    Raises:
        JobNotFound: there is no such job.
    """
    raise NotImplementedError
