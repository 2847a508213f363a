"""Workers that others see, played by a test."""

from __future__ import annotations

import json
from typing import Any

from limpyd_jobs import transitions
from limpyd_jobs.models import worker_recipe
from limpyd_jobs.transitions import Taken

from ..workers.base import claim_call, client


def see_worker(name: str = "somebody", *queues: str, **values: Any) -> None:
    """Have a worker alive, for others to see."""
    known = {
        "kind": "Worker",
        "host": "box",
        "pid": "42",
        "version": "3.0.0",
        "queues": json.dumps(queues or ["test"]),
        "options": "{}",
        "started": "2026-11-21 12:00:00",
        "status": "waiting",
        "counts": "{}",
        "memory": "0",
    }
    transitions.send(client(), transitions.note_worker("jobs", worker_recipe("jobs"), name, 15, {**known, **values}))


def take(token: str = "somebody-1", **more: Any) -> Taken:
    """Take the next job, as the worker of this token."""
    return transitions.send(client(), claim_call(token, **more))
