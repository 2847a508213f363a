"""Running workers within a test, and looking at what they leave behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from limpyd_jobs import Worker
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.transitions import Call, Taken, claim
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers.heartbeat import Heartbeat

from ..base import PATIENCE_SECONDS, wait_until

DEADLINE_SECONDS = PATIENCE_SECONDS


class Log(logging.Handler):
    """Collects log records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def lines(self) -> list[str]:
        """The messages without the worker that each begins with."""
        return [message.partition("] ")[2] for message in self.messages]

    def level_of(self, text: str) -> str:
        """The level of the first message that holds a text."""
        return next(record.levelname for record in self.records if text in record.getMessage())

    @property
    def tracebacks(self) -> list[str]:
        """The exceptions that were logged with a traceback, as text."""
        return [repr(record.exc_info[1]) for record in self.records if record.exc_info]


def work(jobs: int, queues: Any = "test", worker_class: type[Worker] = Worker, **options: Any) -> Worker:
    """Run a worker in this thread until it has taken so many jobs."""
    worker = worker_class(queues, max_loops=jobs, **{"terminate_gracefully": False, **options})
    run(worker)
    assert worker.num_loops == jobs, f"took {worker.num_loops} jobs, not {jobs}, in {DEADLINE_SECONDS} seconds"
    return worker


def run(worker: Worker) -> None:
    """Run a worker in this thread; a worker that does not end by itself is stopped."""
    timer = threading.Timer(DEADLINE_SECONDS, lambda: setattr(worker, "end_forced", True))
    timer.daemon = True
    timer.start()
    try:
        worker.run()
    finally:
        timer.cancel()


class Running:
    """A worker that runs in a thread, ended with the block.

    with Running(Worker("test")) as worker:
        ...
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # raised again in the thread of the test
            self.error = error

    def __enter__(self) -> Worker:
        self.thread.start()
        return self.worker

    def __exit__(self, *exception: object) -> None:
        self.worker.end_forced = True
        self.join()

    def join(self, timeout: float = DEADLINE_SECONDS) -> None:
        """Wait for its end; what it raised is raised here."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the worker did not end"
        if self.error is not None:
            raise self.error


def idle(worker_class: type[Worker] = Worker, queues: Any = "test", **options: Any) -> Worker:
    """A worker for a thread of its own; it ends when it is told to."""
    return worker_class(queues, **{"terminate_gracefully": False, **options})


def wait_until_idle(workers: int = 1) -> None:
    """Wait until that many clients block on a list of Redis: nothing else in a test does, but an idle worker."""
    wait_until(lambda: client().info("clients")["blocked_clients"] == workers, message=f"{workers} workers are idle")


def client() -> Any:
    """The connection of the models."""
    return BaseJobsModel.database.connection


def leased() -> list[str]:
    """The idents that somebody holds, by any of the records of it."""
    claims = client().hgetall("jobs:claims")
    found = {*client().zrange("jobs:leases", 0, -1), *claims.keys(), *claims.values()}
    return sorted(text for text in found if ":" in text)


def claim_call(token: str = "somebody-1", lease_seconds: float = 30, queues: Any = ("test",)) -> Call[Taken]:
    """The claim of a worker that the test plays."""
    worker = token.partition("-")[0]
    return claim("jobs", "jobs:queue", token, worker, lease_seconds, str(utcnow()), list(queues))


def wait_until_lapsed(ident: str) -> None:
    """Wait until the lease of a job is over, by the clock of Redis."""

    def is_over() -> bool:
        seconds, micros = client().time()
        deadline = client().zscore("jobs:leases", ident)
        return deadline is not None and deadline <= seconds + micros / 1_000_000

    wait_until(is_over, message=f"the lease of {ident} is over")


def beats_on_demand(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Stop the hearts of workers; gives a function in which they beat, twice at least.

    The leases can be long then: short ones a busy machine loses. And no beat meets the end of a job on its way.
    """
    beat, lock, may_beat, beats = Heartbeat.beat, threading.Lock(), threading.Event(), []

    def beat_if_it_may(self: Heartbeat) -> None:
        with lock:
            if may_beat.is_set():
                beat(self)
                beats.append(self)

    def let_them_beat() -> None:
        before = len(beats)
        may_beat.set()
        wait_until(lambda: len(beats) >= before + 2, message="the heart beats twice")
        with lock:
            may_beat.clear()

    monkeypatch.setattr(Heartbeat, "_interval", lambda self: 0.02)
    monkeypatch.setattr(Heartbeat, "beat", beat_if_it_may)
    return let_them_beat
