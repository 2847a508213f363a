"""What others see of a worker while it lives: its record in Redis, and a file for the probes of containers."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from redis.exceptions import RedisError

from .. import transitions
from ..database import hide_secret, is_outage
from ..models import worker_recipe
from ..version import EXACT_VERSION
from .heartbeat_file import renew_file
from .insight import MIB, resident_mib

NOTE_SECONDS = 5.0  # how often the record is written
EARLY_SECONDS = 4.0  # by a worker that is about to wait, together with what it waits by
GONE_SECONDS = 15.0  # after the last time, a worker is believed to be dead
STILL_SECONDS = 60.0  # after which a worker that neither looks for work nor runs any is stuck
MAX_JOBS = 20  # in the record
SHOWN_ELSEWHERE = ("queues", "terminate_gracefuly")  # the latter under its better name
SECRET_WORDS = ("password", "passwd", "secret", "token", "credential", "api_key", "dsn")


class Presence:
    """Writes the `WorkerInfo` of a worker, and renews its `heartbeat_file`.

    All of this is for those who look: what goes wrong with it is logged once, and keeps no worker from its jobs.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._recipe = worker_recipe(worker._namespace)
        self._constant = {
            "kind": type(worker).__name__,
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "version": EXACT_VERSION,
            "queues": _json(worker.queues),
            "options": _json(options_of(worker)),
            "started": str(worker.start_date.replace(microsecond=0)),
        }
        self._noted_at = float("-inf")
        self._lock = threading.Lock()
        self._was_refused = self._has_complained = False

    # --- The record

    def take_call(self, is_early: bool = False) -> transitions.Call[None] | None:
        """What writes the record, if it is time to: for one of those who ask, who sends it."""
        with self._lock:
            if time.monotonic() - self._noted_at < (EARLY_SECONDS if is_early else NOTE_SECONDS):
                return None
            if is_early and self._was_refused:
                return None
            self._noted_at, self._was_refused = time.monotonic(), False
        return self._call({**self._constant, **self._momentary()})

    def _call(self, values: Mapping[str, str]) -> transitions.Call[None]:
        worker = self._worker
        return transitions.note_worker(worker._namespace, self._recipe, worker._worker_key, GONE_SECONDS, values)

    def _momentary(self) -> dict[str, str]:
        worker = self._worker
        jobs = list(worker._at_work.values())
        claims = [claim for claim in (job._claim for job in jobs[:MAX_JOBS]) if claim is not None]
        counts = {"jobs": max(worker.num_loops - len(jobs), 0), "errors": worker.num_errors}
        return {
            "status": "ending" if worker.end_forced else str(worker.status),
            "jobs": _json([[claim.ident, claim.start] for claim in claims]),
            "counts": _json(counts),
            "memory": str(int(resident_mib() * MIB)),
        }

    def note(self, client: Any) -> None:
        """Write the record, if it is time to, and renew the file; called once a second."""
        self.renew_file()
        call = self.take_call()
        if call is not None:
            self._try_to_send(client, call)

    def note_refused(self) -> None:
        """What was sent early was refused, perhaps as Redis has not the script: the heartbeat sends it next."""
        with self._lock:
            self._noted_at, self._was_refused = float("-inf"), True

    def forget(self, client: Any) -> None:
        """The worker ends: its record goes."""
        self._try_to_send(client, self._call({}))

    def _try_to_send(self, client: Any, call: transitions.Call[None]) -> None:
        try:
            transitions.send(client, call)
        except RedisError as error:
            self.complain(error)

    def complain(self, error: Exception) -> None:
        """Say once why others do not see this worker; of an outage others tell."""
        if not (self._has_complained or is_outage(error)):
            self._has_complained = True
            self._worker.log(f"What this worker does cannot be noted in Redis: {error}", level="warning")

    # --- The file

    def renew_file(self) -> None:
        """The worker lives, and is not stuck."""
        if self._worker.heartbeat_file is not None and self._worker._is_moving(STILL_SECONDS):
            renew_file(self._worker.heartbeat_file)


def options_of(worker: Any) -> dict[str, Any]:
    """The options in force, by their names, as JSON has them; `***` for what may be a secret of a subclass."""
    names = [name for name in (*worker.parameters, *worker.more_parameters) if name not in SHOWN_ELSEWHERE]
    found = {name: _plain(getattr(worker, name, None)) for name in names}
    return {name: "***" if any(word in name for word in SECRET_WORDS) else value for name, value in found.items()}


def _plain(value: Any) -> Any:
    """The value of an option as JSON has it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return hide_secret(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return hide_secret(str(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
