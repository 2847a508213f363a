"""What a check of `doctor` says, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redis.exceptions import ResponseError

from ..models import Queue
from .workers import WorkerRecord, workers

LEVELS = ("ok", "info", "warning", "error")
PAGE = 500
HISTORIES = ("success", "errors")


@dataclass(frozen=True)
class Finding:
    """What one check has to say.

    Attributes:
        level: one of LEVELS; `info`: it is to be known, or it cannot be seen.
        subject: what was looked at, in a word or two.
        fix: what to do: a command, or a line of configuration; None: nothing.
    """

    level: str
    subject: str
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.level}: {self.subject}: {self.text}" + (f" Fix: {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class QueueSeen:
    """A queue of one priority.

    Attributes:
        key: its prefix, `jobs:queue:3`.
        keep: what it says to keep, by history; '' for nothing said.
        lengths: of `waiting`, `delayed`, `success` and `errors`; 0 for what is of another type.
    """

    key: str
    name: str
    priority: str
    keep: dict[str, str]
    lengths: dict[str, int]

    @property
    def queued(self) -> int:
        """How many jobs are to be run."""
        return self.lengths["waiting"] + self.lengths["delayed"]


class Patient:
    """A Redis with its jobs, as the checks look at it; what several of them need is read once."""

    def __init__(self, queue_model: Any = Queue) -> None:
        self.queue_model = queue_model
        self.client = queue_model.database.connection
        self.namespace: str = queue_model.namespace or ""
        self._info: dict[str, dict[str, Any]] = {}

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO. Raises ResponseError: the user may not ask."""
        if section not in self._info:
            self._info[section] = dict(self.client.info(section))
        return self._info[section]

    def config(self, name: str) -> str | None:
        """An option of Redis; None when the user may not ask, or where there is none."""
        try:
            found = self.client.config_get(name)
        except ResponseError:
            return None
        return str(found[name]) if name in found else None

    @cached_property
    def workers(self) -> list[WorkerRecord]:
        """Those that are alive."""
        return workers(queue_model=self.queue_model)

    @cached_property
    def queues(self) -> list[QueueSeen]:
        """All queues."""
        return [queue for pks in self._pages_of_queues() for queue in self._read_queues(pks)]

    def _pages_of_queues(self) -> Iterator[list[str]]:
        cursor = -1
        while cursor:
            cursor, pks = self.client.sscan(f"{self.queue_model._name}:collection", max(cursor, 0), count=PAGE)
            yield list(pks)

    def _read_queues(self, pks: list[str]) -> Iterator[QueueSeen]:
        keys = [f"{self.queue_model._name}:{pk}" for pk in pks]
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(f"{key}:hash", "name", "priority", "keep_success", "keep_errors")
            pipeline.llen(f"{key}:waiting").zcard(f"{key}:delayed")
            pipeline.llen(f"{key}:success").llen(f"{key}:errors")
        replies = iter(pipeline.execute(raise_on_error=False))
        for key in keys:
            fields, *counts = (next(replies) for _ in range(5))
            if isinstance(fields, Exception) or fields[0] is None:
                continue  # that is for `check`
            lengths = [0 if isinstance(count, Exception) else int(count) for count in counts]
            yield QueueSeen(
                key,
                fields[0],
                fields[1] or "0",
                {name: text or "" for name, text in zip(HISTORIES, fields[2:], strict=True)},
                dict(zip(("waiting", "delayed", *HISTORIES), lengths, strict=True)),
            )

    def listeners_of(self, name: str) -> list[WorkerRecord]:
        """The workers that take jobs of a queue."""
        return [worker for worker in self.workers if name in worker.queues]


Check = Callable[[Patient], Iterator[Finding]]
