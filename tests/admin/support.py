"""What tests of administration share: workers that others see, users of Redis with few rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from limpyd_jobs import transitions
from limpyd_jobs.database import JobsDatabase
from limpyd_jobs.models import worker_recipe
from limpyd_jobs.transitions import Taken

from ..base import ROOT, RedisServer
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


@contextmanager
def user(server: RedisServer, rights: str) -> Iterator[Any]:
    """A queue model that asks as a user with these rights."""
    client().execute_command("ACL", "SETUSER", "doctors", "reset", "on", ">secret", *rights.split())
    database = JobsDatabase(server.url.replace("://", "://doctors:secret@"))
    try:
        yield SimpleNamespace(database=database, namespace="jobs", _name="jobs:queue")
    finally:
        client().acl_deluser("doctors")


def rights_of_the_page() -> str:
    """The rights that docs/deployment.md gives to a user, without its name, password and state."""
    [line] = [
        line for line in (ROOT / "docs/deployment.md").read_text().splitlines() if line.startswith("user jobs on")
    ]
    return line.removeprefix("user jobs on >secret ")
