"""What a check of `doctor` says, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redis.exceptions import ResponseError

from ..models import Queue
from .reading import QueueRef, ask, client_of, each_queue, is_wrong_type
from .workers import WorkerRecord, workers

LEVELS = ("ok", "info", "warning", "error")
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
    priority: int
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
        self.client = client_of(queue_model)
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
        queues = list(each_queue(self.queue_model))
        commands = (command for queue in queues for command in _ask_of(queue.key))
        replies = ask(self.client, commands)
        return [_queue_seen(queue, [next(replies) for _ in range(5)]) for queue in queues]

    def listeners_of(self, name: str) -> list[WorkerRecord]:
        """The workers that take jobs of a queue."""
        return [worker for worker in self.workers if name in worker.queues]


def _ask_of(key: str) -> Iterator[tuple[str, ...]]:
    yield ("HMGET", f"{key}:hash", *(f"keep_{name}" for name in HISTORIES))
    yield ("LLEN", f"{key}:waiting")
    yield ("ZCARD", f"{key}:delayed")
    yield from (("LLEN", f"{key}:{name}") for name in HISTORIES)


def _queue_seen(queue: QueueRef, replies: list[Any]) -> QueueSeen:
    keep, *counts = replies
    keeps = [None] * len(HISTORIES) if is_wrong_type(keep) else keep
    lengths = [0 if is_wrong_type(count) else int(count) for count in counts]
    return QueueSeen(
        queue.key,
        queue.name,
        queue.priority,
        {name: text or "" for name, text in zip(HISTORIES, keeps, strict=True)},
        dict(zip(("waiting", "delayed", *HISTORIES), lengths, strict=True)),
    )


Check = Callable[[Patient], Iterator[Finding]]
