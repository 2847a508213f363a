"""What is queued, and who works on it, on one screen."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, admin, transitions
from limpyd_jobs.admin import overview
from limpyd_jobs.models import worker_recipe

from .conftest import watched

pytestmark = pytest.mark.usefixtures("database")


def client() -> Any:
    return Queue.get_connection()


def only(name: str = "mail") -> admin.QueueStatus:
    (found,) = admin.status([name]).queues
    return found


def note_worker(pk: str, queues: str) -> None:
    """The record of a worker that is somewhere else."""
    texts = dict.fromkeys(("kind", "host", "version", "started", "status"), "x")
    texts |= {"pid": "1", "memory": "1", "queues": queues, "options": "{}", "jobs": "[]", "counts": "{}"}
    transitions.send(client(), transitions.note_worker("jobs", worker_recipe("jobs"), pk, 60, texts))


def test_queues_come_by_name_and_those_of_higher_priority_first() -> None:
    for name, priority in (("mail", 0), ("backup", 1), ("mail", 5)):
        Queue.get_queue(name, priority)

    found = admin.status()

    assert [(queue.name, queue.priority) for queue in found.queues] == [("backup", 1), ("mail", 5), ("mail", 0)]
    assert found.workers == []
    assert found.time.startswith("20")


def test_only_the_queues_that_are_named_are_shown() -> None:
    for name in ("mail", "backup", "other"):
        Queue.get_queue(name)

    assert [queue.name for queue in admin.status(["mail", "nosuch", "other"]).queues] == ["mail", "other"]


def test_a_queue_tells_how_many_jobs_are_where() -> None:
    for number in range(3):
        Job.add_job(f"waiting {number}", "mail")
    Job.add_job("delayed", "mail", delayed_for=1000)
    due = Job.add_job("due", "mail", delayed_for=1000)
    queue = Queue.get_queue("mail")
    client().zadd(queue.delayed.key, {due.ident: 1})
    queue.errors.rpush("a", "b")
    queue.success.rpush("c")

    found = only()

    sizes = (found.waiting, found.due, found.delayed, found.running, found.errors, found.succeeded)
    assert sizes == (3, 1, 2, 0, 2, 1)


def test_jobs_run_in_the_queue_that_they_were_taken_from_also_those_of_version_2() -> None:
    leased, old = Job.add_job("a", "mail"), Job.add_job("b", "mail", priority=3)
    ahead = Job.add_job("claimed ahead", "mail")
    for job in (leased, old):
        job.status.hset(STATUSES.RUNNING)
    client().zadd("jobs:leases", {leased.ident: 1, ahead.ident: 1, "gone.Job:1": 1})

    assert [(queue.priority, queue.running) for queue in admin.status().queues] == [(3, 1), (0, 1)]


def test_the_age_is_that_of_the_job_at_the_head_since_it_has_waited() -> None:
    seconds = client().time()[0]
    job = Job.add_job("a", "mail", added=str(overview.score_to_datetime(seconds - 500)))
    Job.add_job("b", "mail")

    assert 499 <= (only().oldest_age or 0) < 560
    job.delayed_until.hset(str(overview.score_to_datetime(seconds - 300)))
    assert 299 <= (only().oldest_age or 0) < 360
    assert admin.health(max_oldest_age=400) == [] and len(admin.health(max_oldest_age=100)) == 1
    job.waiting_since.hset(str(overview.score_to_datetime(seconds - 100)))
    assert 99 <= (only().oldest_age or 0) < 160


@pytest.mark.parametrize("head", ["gone.module.Job:1", "limpyd_jobs.models.Job:99", "x"])
def test_the_age_of_a_job_that_cannot_be_read_is_not_known(head: str) -> None:
    Queue.get_queue("mail").waiting.rpush(head)

    assert (only().waiting, only().oldest_age) == (1, None)


def test_one_queue_may_be_named_alone() -> None:
    Job.add_job("a", "mail", added="2026-01-01 00:00:00")
    Job.add_job("b", "other")

    assert [queue.name for queue in admin.status("mail").queues] == ["mail"]
    assert admin.left("mail").waiting == 1 and admin.drain("mail", timeout=0).waiting == 1
    assert len(admin.health("mail", max_oldest_age=1)) == 1


def test_a_recipe_that_is_broken_hides_nothing_else() -> None:
    job = Job.add_job("a", "mail", added="2026-01-01 00:00:00")
    client().hset("jobs:models", "gone.Job", "{")
    client().zadd("jobs:leases", {job.ident: 1})

    assert (only().waiting, admin.workers()) == (1, [])
    assert len(admin.health(max_oldest_age=1)) == 1
    assert admin.left(["mail"]).waiting == 1
    assert "error" not in {finding.level for finding in admin.diagnose() if finding.subject == "records"}


def test_an_empty_queue_has_no_age() -> None:
    Queue.get_queue("mail")

    assert only().oldest_age is None


def test_what_is_known_of_a_name_holds_for_all_its_priorities() -> None:
    for name, priority in (("mail", 0), ("mail", 5), ("other", 0)):
        Queue.get_queue(name, priority)
    admin.pause("mail")
    for number in range(3):
        Job.add_job(f"{number}", "mail")
    note_worker("first", '["mail", "other"]')
    note_worker("second", '["mail", "mail"]')

    found = admin.status()

    told = [(queue.name, queue.paused, queue.listeners, queue.rate_in > 0, queue.rate_out) for queue in found.queues]
    assert told == [("mail", True, 2, True, 0.0), ("mail", True, 2, True, 0.0), ("other", False, 1, False, 0.0)]
    assert [worker.id for worker in found.workers] == ["first", "second"]


def test_queues_with_broken_keys_are_shown_as_far_as_they_can_be_read() -> None:
    broken, whole = Queue.get_queue("mail"), Queue.get_queue("other")
    client().set(broken.waiting.key, "x")
    client().delete(whole.key)
    client().set(whole.key, "x")

    assert [(queue.name, queue.waiting) for queue in admin.status().queues] == [("mail", 0)]


def test_queues_of_a_subclass_are_shown_too() -> None:
    class OverviewQueue(Queue):
        """Another class, in the same namespace."""

    Job.add_job("a", "mail")
    Job.add_job("b", "special", queue_model=OverviewQueue)

    assert [(queue.name, queue.waiting) for queue in admin.status().queues] == [("mail", 1), ("special", 1)]


def test_thousands_of_queues_are_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    Job.add_jobs({"identifier": f"{number}", "queue_name": f"queue {number}"} for number in range(1200))
    monkeypatch.setattr(overview, "workers", lambda queue_model: [])

    with watched(client()) as sent:
        found = admin.status()

    assert sum(queue.waiting for queue in found.queues) == 1200
    assert not [command for command in sent.large if command != "HGETALL jobs:paused"]
