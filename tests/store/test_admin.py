"""What `admin.check` finds among the keys that belong to no record."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import Job, Queue, admin

pytestmark = pytest.mark.usefixtures("database")


def client() -> Any:
    return Queue.get_connection()


def orphans() -> list[str]:
    """The keys that are reported as nobody's."""
    return [problem.subject for problem in admin.check() if problem.kind == "key"]


@pytest.mark.parametrize("kind", ["ready", "due", "queues", "doorbell"])
@pytest.mark.parametrize("name", ["queue:nosuch", "nosuch:q", "q"])
def test_a_key_of_a_queue_name_that_no_queue_has_is_reported(kind: str, name: str) -> None:
    Job.add_job("a", "q")
    client().set(f"jobs:{kind}:{name}", "x")

    assert orphans() == [f"jobs:{kind}:{name}"]


def test_the_keys_of_a_queue_that_was_renamed_are_reported_under_its_old_name() -> None:
    Job.add_job("a", "q")
    Queue.get_queue("q").name.hset("other")

    assert orphans() == ["jobs:doorbell:queue:q", "jobs:queues:queue:q", "jobs:ready:queue:q"]


def test_the_keys_of_a_queue_that_exists_are_not_reported() -> None:
    Job.add_job("a", "q")
    Job.add_job("b", "q", 5, delayed_for=100)

    assert {f"jobs:{kind}:queue:q" for kind in ("ready", "due", "queues", "doorbell")} <= set(client().keys("*"))
    assert admin.check() == []


def test_a_note_of_an_end_that_never_expires_is_reported() -> None:
    client().set("jobs:done:forgotten", "x")
    client().set("jobs:done:recent", "x", ex=60)

    assert orphans() == ["jobs:done:forgotten"]
