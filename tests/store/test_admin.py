"""What `admin.check` finds among the keys that belong to no record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, admin
from limpyd_jobs.admin import books, reading

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


# --- edges


def edge_problem() -> str:
    [problem] = [problem for problem in admin.check() if problem.kind == "edge"]
    return problem.detail


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("hset", "jobs:job:1:hash", "follow_up", ""), "does not know it"),
        (("srem", "jobs:job:1:children", "limpyd_jobs.models.Job:2"), "does not know it"),
        (("hset", "jobs:job:1:hash", "status", "s"), "has ended"),
        (("hdel", "jobs:job:1:hash", "status"), "does not exist"),
    ],
)
def test_a_job_that_waits_for_one_that_will_not_tell_it_is_reported(command: tuple[str, ...], why: str) -> None:
    parent = Job.add_job("a", "q")
    Job.add_job("b", "q", after=parent)
    assert admin.check() == []

    client().execute_command(*command)

    assert edge_problem() == f"it waits for {parent.ident}, which {why}"


def test_a_job_that_waits_for_one_of_an_unknown_class_is_reported() -> None:
    child = Job.add_job("b", "q", after=Job.add_job("a", "q"))
    child.waits_for.sadd("nosuch.Class:1")

    assert edge_problem() == "it waits for nosuch.Class:1, which has a class that cannot be had"


def test_a_blocked_job_that_waits_for_none_is_reported() -> None:
    child = Job.add_job("b", "q", after=Job.add_job("a", "q"))
    child.waits_for.delete()

    assert edge_problem() == "it is BLOCKED, and waits for no job"


# --- while others work


def test_no_key_is_read_as_a_whole() -> None:
    Job.add_job("b", "q", after=Job.add_job("a", "q"))
    Job.add_job("c", "q", delayed_for=100)
    client().config_resetstat()

    assert admin.check() == []

    assert client().info("commandstats").keys().isdisjoint({"cmdstat_smembers", "cmdstat_hgetall", "cmdstat_hkeys"})


@pytest.mark.parametrize("is_one", [True, False], ids=["one job, again and again", "another one each time"])
def test_what_changes_while_it_is_read_is_not_reported(is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job.add_job(name, "q") for name in "ab"]
    readings = []

    def read_and_change(client: Any, key: str) -> Iterator[str]:
        yield from reading.each_of_list(client, key)
        job = jobs[0 if is_one else len(readings)]
        readings.append(key)
        job.enqueue_or_delay("q") if job.status.hget() == "c" else job.cancel()

    monkeypatch.setattr(books, "each_of_list", read_and_change)

    assert admin.check() == []
    assert len(readings) == 2


def test_something_else_under_a_key_of_a_queue_is_reported() -> None:
    Job.add_job("a", "q")
    client().rename("jobs:queue:1:waiting", "kept")
    client().set("jobs:queue:1:waiting", "x")

    assert ("key", "jobs:queue:1:waiting") in [(problem.kind, problem.subject) for problem in admin.check()]


@pytest.mark.parametrize("added", [0, 1, 3, 1500])
def test_a_list_is_read_whole_though_its_end_grows_and_its_head_is_taken(
    added: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [str(number) for number in range(4500)]
    client().rpush("list", *items)
    found = []

    for position, item in enumerate(reading.each_of_list(client(), "list")):
        found.append(item)
        if position in (10, 1500):
            client().lpop("list", 2)
            for number in range(added):
                client().rpush("list", f"{position}/{number}")

    assert set(items[4:]) <= set(found)
    assert added == 1500 or len(found) == len(set(found))
