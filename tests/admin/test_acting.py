"""Acting on one job, with its class and without it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Cancellation, Job, Queue, Worker, admin
from limpyd_jobs.admin.acting import Actor
from limpyd_jobs.exceptions import (
    InvalidArgument,
    JobAlreadyQueued,
    JobChanged,
    JobClassError,
    JobNotFound,
    JobNotInStatus,
)
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.models import Error

pytestmark = pytest.mark.usefixtures("database")


class ActingJob(Job):
    """With an index and a key of its own, and a hook."""

    queue_name = "acting"
    topic = InstanceHashField(indexable=True)
    notes = fields.ListField()
    entered: list[str] = []

    def run(self, queue: Any) -> None:
        if not self.topic.hget():
            raise ValueError("no topic")

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        self.entered.append(self.identifier.hget())
        super().enqueue_or_delay(*args, **kwargs)


class PlainActingJob(Job):
    """One whose class the scripts can do without."""

    queue_name = "acting"
    topic = InstanceHashField(indexable=True)
    notes = fields.ListField()

    def run(self, queue: Any) -> None:
        if not self.topic.hget():
            raise ValueError("no topic")


@pytest.fixture(params=["with its class", "without its class"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Is the class of jobs not to be had, as on the terminal of an operator?"""
    is_elsewhere = bool(request.param == "without its class")
    if is_elsewhere:
        monkeypatch.setattr("limpyd_jobs.admin.acting.class_of", lambda ident: None)
    return is_elsewhere


def run_all(*names: str) -> None:
    Worker(names or ["acting"], burst=True, terminate_gracefully=False, logger_level=100).run()


def failed(identifier: str = "a", **more: Any) -> Any:
    job = PlainActingJob.add_job(identifier, **more)
    run_all()
    assert job.status.hget() == STATUSES.ERROR
    return job


def is_well() -> bool:
    return admin.check() == []


# --- requeue


def test_a_job_that_failed_is_put_back_in_its_queue(elsewhere: bool) -> None:
    job = failed()

    admin.requeue(job.ident)

    assert job.hmget("status", "queued", "end") == [STATUSES.WAITING, "1", None]
    assert is_well()


def test_it_may_be_put_in_another_queue_at_another_priority_and_later(elsewhere: bool) -> None:
    job = failed()

    admin.requeue(job.ident, "other", 7, delayed_for=100)

    assert job.hmget("status", "priority") == [STATUSES.DELAYED, "7"]
    assert Queue.count_delayed_jobs("other") == 1
    assert is_well()


@pytest.mark.parametrize("status", ["canceled", "success"])
def test_what_has_ended_otherwise_runs_once_more(elsewhere: bool, status: str) -> None:
    job = PlainActingJob.add_job("a", topic="x")
    if status == "canceled":
        job.cancel()
    run_all()

    admin.requeue(job.ident)

    assert job.status.hget() == STATUSES.WAITING
    assert Queue.count_waiting_jobs("acting") == 1
    assert is_well()


def test_what_has_not_ended_is_not_requeued(elsewhere: bool) -> None:
    job = PlainActingJob.add_job("a")

    with pytest.raises(JobNotInStatus):
        admin.requeue(job.ident)


def test_it_is_not_requeued_beside_another_one_with_its_identifier(elsewhere: bool) -> None:
    job = failed()
    PlainActingJob.add_job("a")

    with pytest.raises(JobAlreadyQueued):
        admin.requeue(job.ident)


def test_the_hooks_of_its_class_are_called() -> None:
    job = ActingJob.add_job("a")
    run_all()
    ActingJob.entered.clear()

    admin.requeue(job.ident)

    assert ActingJob.entered == ["a"]
    assert is_well()


def test_a_job_is_known_by_its_identifier_or_its_primary_key_too() -> None:
    failed("mail:1")
    admin.requeue("mail:1")

    admin.cancel("1")

    assert PlainActingJob.get("1").status.hget() == STATUSES.CANCELED


def test_a_job_that_does_not_exist_is_not_found() -> None:
    with pytest.raises(JobNotFound):
        admin.requeue("nothing")


# --- move, cancel, add


def test_a_waiting_job_is_moved(elsewhere: bool) -> None:
    job = PlainActingJob.add_job("a")

    admin.move(job.ident, "other", 3)

    assert Queue.count_waiting_jobs("other") == 1
    assert Queue.count_waiting_jobs("acting") == 0
    assert job.priority.hget() == "3"
    assert is_well()


def test_a_delayed_job_keeps_its_time_when_it_is_moved(elsewhere: bool) -> None:
    job = PlainActingJob.add_job("a", delayed_for=1000)
    before = job.delayed_until.hget()

    admin.move(job.ident, priority=4)

    assert job.hmget("status", "delayed_until", "priority") == [STATUSES.DELAYED, before, "4"]
    assert is_well()


def test_to_move_a_job_needs_a_place(elsewhere: bool) -> None:
    job = PlainActingJob.add_job("a")

    with pytest.raises(InvalidArgument, match="queue"):
        admin.move(job.ident)


def test_a_job_that_has_ended_is_not_moved(elsewhere: bool) -> None:
    job = failed()

    with pytest.raises(JobNotInStatus):
        admin.move(job.ident, "other")


def test_a_job_is_canceled_with_a_reason(elsewhere: bool) -> None:
    job = PlainActingJob.add_job("a")

    assert admin.cancel(job.ident, "not wanted") is Cancellation.CANCELED

    assert job.hmget("status", "cancel_reason") == [STATUSES.CANCELED, "not wanted"]
    assert is_well()


def test_a_job_is_added_by_the_name_of_its_class() -> None:
    ident = admin.add("PlainActingJob", "a", fields={"topic": "x"}, delayed_for=100)

    assert ident == PlainActingJob.get("1").ident
    assert PlainActingJob.get("1").topic.hget() == "x"


def test_a_class_that_is_not_known_is_refused() -> None:
    with pytest.raises(JobClassError, match="no class of this name"):
        admin.add("NoSuchJobAtAll", "a")
    with pytest.raises(JobClassError, match=r"job class of .nosuch\.module\.Job.: "):
        admin.add("nosuch.module.Job", "a")


@pytest.mark.parametrize("name", ["pk", "status", "priority", "identifier", "queue_model", "delayed_for", "tries"])
def test_what_each_job_has_is_no_field_of_a_new_one(name: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"{name} argument: .e.: must be a field of its class"):
        admin.add("PlainActingJob", "a", fields={name: "e"})

    assert admin.count_jobs() == 0


# --- delete


def all_keys() -> set[str]:
    return set(Queue.get_connection().keys("*plainactingjob*")) - {"jobs:plainactingjob:max_pk"}


@pytest.mark.parametrize("kind", ["waiting", "delayed", "failed", "done", "canceled"])
def test_a_job_is_deleted_with_all_that_belongs_to_it(elsewhere: bool, kind: str) -> None:
    job = PlainActingJob.add_job(
        "a",
        topic="x" if kind == "done" else "",
        notes=["n"],
        delayed_for=100 if kind == "delayed" else None,
    )
    if kind in ("failed", "done"):
        run_all()
    if kind == "canceled":
        job.cancel()

    admin.delete(job.ident)

    queue = Queue.get_queue("acting")
    assert all_keys() == set()
    assert [queue.waiting.llen(), queue.delayed.zcard(), queue.success.llen(), queue.errors.llen()] == [0, 0, 0, 0]
    assert len(Error.collection()) == 0
    assert is_well()


def test_a_running_job_is_not_deleted_unless_that_is_forced(elsewhere: bool) -> None:
    seen: list[Any] = []

    def callback(job: Any, queue: Any) -> None:
        with pytest.raises(JobNotInStatus):
            admin.delete(job.ident)
        admin.delete(job.ident, is_forced=True)
        seen.append(job.ident)

    PlainActingJob.add_job("a")
    worker = Worker(["acting"], callback=callback, max_loops=1, timeout=1, terminate_gracefully=False)
    worker.run()

    assert len(seen) == 1
    assert all_keys() == set()
    assert is_well()


def test_who_waits_for_a_deleted_job_is_told() -> None:
    parent = PlainActingJob.add_job("a")
    child = PlainActingJob.add_job("b", after=parent)

    admin.delete(parent.ident)

    assert child.status.hget() == STATUSES.CANCELED
    assert is_well()


def test_a_delete_of_its_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[str] = []

    def delete(self: Any) -> Any:
        deleted.append(self.ident)
        return Job.delete(self)

    monkeypatch.setattr(PlainActingJob, "delete", delete)
    job = failed()

    admin.delete(job.ident)

    assert deleted == [job.ident]
    assert all_keys() == set()
    assert len(Error.collection()) == 0
    assert is_well()


def test_a_delete_of_its_class_is_not_called_for_a_job_that_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    job = PlainActingJob.add_job("a")
    client = Queue.get_connection()
    client.zadd("jobs:leases", {job.ident: 99999999999})
    client.hset("jobs:claims", mapping={job.ident: "t", "t": job.ident})
    monkeypatch.setattr(PlainActingJob, "delete", lambda self: pytest.fail("it was deleted"))

    with pytest.raises(JobNotInStatus):
        admin.delete(job.ident)

    assert job.status.hget() == STATUSES.WAITING


# --- what cannot be done without the class


def test_an_index_that_only_its_class_can_keep_is_a_refusal_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = PlainActingJob.add_job("a")
    monkeypatch.setattr("limpyd_jobs.admin.acting.class_of", lambda ident: None)
    client, name = Queue.get_connection(), PlainActingJob.get_model_repr()
    recipe = json.loads(client.hget("jobs:models", name))
    recipe["indexes"]["status"].append(["foreign"])
    client.hset("jobs:models", name, json.dumps(recipe))

    for act in (lambda: admin.cancel(job.ident), lambda: admin.delete(job.ident), lambda: admin.move(job.ident, "b")):
        with pytest.raises(JobClassError, match="--pythonpath"):
            act()
    assert job.status.hget() == STATUSES.WAITING


# --- as it was read


def test_a_job_that_has_failed_again_since_it_was_read_is_left_alone(elsewhere: bool) -> None:
    job = failed()
    record = admin.get_job(job.ident)
    admin.requeue(job.ident)
    run_all()

    with pytest.raises(JobChanged):
        Actor().requeue(record)
    assert job.status.hget() == STATUSES.ERROR
