"""Many jobs that come after one another, added in one script: all, or none."""

from __future__ import annotations

from typing import Any

import pytest
from limpyd import fields
from redis.exceptions import TimeoutError as RedisTimeoutError

from limpyd_jobs import STATUSES, Cancellation, Job, Queue, Worker, admin, transitions
from limpyd_jobs.exceptions import (
    InvalidArgument,
    JobAlreadyExists,
    JobAlreadyQueued,
    LimpydJobsException,
    WrongKeyType,
)
from limpyd_jobs.workflows import Workflow


class WorkflowJob(Job):
    """A plain job of these tests."""

    queue_name = "flow"
    log: list[str] = []
    code = fields.InstanceHashField(indexable=True, unique=True)
    tags = fields.SetField(indexable=True)
    told = fields.InstanceHashField()

    def run(self, queue: Any) -> None:
        WorkflowJob.log.append(str(self.identifier.hget()))


class WorkflowOtherJob(WorkflowJob):
    """One of another class."""


@pytest.fixture(autouse=True)
def books(database: Any) -> Any:
    WorkflowJob.log = []
    yield
    assert [str(problem) for problem in admin.check()] == []


def work(queue: str = "flow") -> list[str]:
    Worker(queue, burst=True, terminate_gracefully=False, save_errors=False, logger_level=100).run()
    return WorkflowJob.log


def diamond(**options: Any) -> Workflow:
    workflow = Workflow()
    first = workflow.plan(WorkflowJob, "first")
    left = workflow.plan(WorkflowJob, "left", after=first)
    right = workflow.plan(WorkflowOtherJob, "right", after=first)
    workflow.plan(WorkflowJob, "last", after=[left, right], **options)
    return workflow


def statuses(workflow: Workflow) -> str:
    return "".join(job.status.hget() for job in workflow.jobs)


def test_the_jobs_of_a_workflow_run_in_their_order() -> None:
    workflow = diamond().add()
    assert statuses(workflow) == "wbbb"

    log = work()

    assert (log[0], sorted(log[1:3]), log[3:]) == ("first", ["left", "right"], ["last"])

    assert statuses(workflow) == "ssss"
    assert workflow.has_ended()


def test_they_are_what_add_job_would_have_added() -> None:
    workflow = Workflow()
    workflow.plan(WorkflowJob, "one", "flow", 5, delayed_for=100, fields_if_new={"code": "x", "tags": ["a"], "told": 1})
    workflow.add()
    (job,) = workflow.jobs
    alone = WorkflowJob.add_job("two", "flow", 5, delayed_for=100, code="y", tags=["a"], told=1)

    assert job.hgetall().keys() == {*alone.hgetall(), "workflow"}
    assert job.status.hget() == STATUSES.DELAYED and job.tags.smembers() == {"a"}
    assert sorted(WorkflowJob.collection(tags="a", status="d")) == [job.pk.get(), alone.pk.get()]


def test_it_is_added_in_one_script(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    send = transitions.send
    WorkflowJob.add_job("an older one")
    monkeypatch.setattr(transitions, "send", lambda client, call: calls.append(call.script) or send(client, call))

    diamond().add()

    assert calls == ["workflow"]


def test_a_repeated_call_adds_nothing_twice() -> None:
    workflow = diamond().add()

    done = transitions.send(WorkflowJob.database.connection, workflow._call())

    assert done.kind == "ALREADY"
    assert len(WorkflowJob.collection()) == 3


def test_who_calls_add_again_after_a_lost_reply_adds_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = diamond()
    send = transitions.send

    def lose_the_reply(client: Any, call: Any) -> Any:
        send(client, call)
        raise RedisTimeoutError("no reply")

    with monkeypatch.context() as patches, pytest.raises(RedisTimeoutError):
        patches.setattr(transitions, "send", lose_the_reply)
        workflow.add(retry_for=0)
    work()  # else the identifiers would be queued
    workflow.add()

    assert statuses(workflow) == "ssss"
    assert len(WorkflowJob.collection()) == 3
    assert len(WorkflowJob.log) == 4


def test_its_jobs_may_come_after_one_that_is_there() -> None:
    before = WorkflowJob.add_job("before")
    workflow = Workflow()
    workflow.plan(WorkflowJob, "second", after=[workflow.plan(WorkflowJob, "first", after=before), before.ident])
    workflow.add()

    assert statuses(workflow) == "bb"
    assert work() == ["before", "first", "second"]


def test_one_that_is_there_and_has_failed_cancels_what_comes_after_it() -> None:
    before = WorkflowJob.add_job("before")
    before.cancel()
    workflow = Workflow()
    first = workflow.plan(WorkflowJob, "first", after=before)
    workflow.plan(WorkflowJob, "second", after=first)
    workflow.plan(WorkflowJob, "third", after=first, fields_if_new={"if_parent_fails": "run"})
    workflow.add()

    assert statuses(workflow) == "ccw"
    assert workflow.jobs[0].cancel_reason.hget() == f"parent failed: {before.ident}"


def test_fields_may_depend_on_the_idents_of_the_parents() -> None:
    workflow = Workflow()
    first = workflow.plan(WorkflowJob, "first")
    workflow.plan(WorkflowJob, "last", after=first, fields_if_new=lambda idents: {"told": " ".join(idents)})
    workflow.add()

    assert workflow.jobs[1].told.hget() == workflow.jobs[0].ident


def test_an_identifier_that_is_queued_refuses_all_of_it() -> None:
    queued = WorkflowJob.add_job("left")

    with pytest.raises(JobAlreadyQueued, match="left") as caught:
        diamond().add()

    assert caught.value.queued_ident == queued.ident
    assert len(WorkflowJob.collection()) == 1


def test_an_identifier_that_has_ended_does_not_matter() -> None:
    WorkflowJob.add_job("left")
    work()

    assert statuses(diamond().add()) == "wbbb"


def test_an_identifier_of_a_job_that_has_expired_does_not_matter() -> None:
    expired = WorkflowJob.add_job("left", expires=0)

    workflow = diamond().add()

    assert statuses(workflow) == "wbbb"
    assert expired.status.hget() == STATUSES.CANCELED
    assert expired.cancel_reason.hget() == "expired"


def test_an_identifier_that_is_planned_twice_is_refused() -> None:
    workflow = diamond()
    workflow.plan(WorkflowJob, "left")

    with pytest.raises(InvalidArgument, match="left"):
        workflow.add()


@pytest.mark.parametrize("codes", [["x"], ["y", "y"]])
def test_a_unique_value_that_is_taken_refuses_all_of_it(codes: list[str]) -> None:
    WorkflowJob.add_job("there", code="x")
    workflow = diamond()
    for code in codes:
        workflow.plan(WorkflowJob, f"more {len(workflow.steps)}", fields_if_new={"code": code})

    with pytest.raises(JobAlreadyExists, match="code"):
        workflow.add()

    assert len(WorkflowJob.collection()) == 1


def test_primary_keys_that_are_taken_are_passed_over() -> None:
    workflow = diamond()
    WorkflowJob.database.connection.sadd("jobs:workflowjob:collection", "2")

    workflow.add()

    assert [job.pk.get() for job in workflow.jobs] == ["4", "5", "2", "6"]
    WorkflowJob.database.connection.srem("jobs:workflowjob:collection", "2")


def test_a_parent_that_does_not_exist_refuses_all_of_it() -> None:
    workflow = diamond(delayed_for=5)
    workflow.plan(WorkflowJob, "more", after="limpyd_jobs.models.Job:7")

    with pytest.raises(InvalidArgument, match="Job:7"):
        workflow.add()

    assert len(WorkflowJob.collection()) == 0


def test_a_key_of_a_queue_of_another_type_refuses_all_of_it() -> None:
    queue = Queue.get_queue("flow")
    WorkflowJob.database.connection.set(queue.waiting.key, "text")

    with pytest.raises(WrongKeyType):
        diamond().add()

    assert len(WorkflowJob.collection()) == 0
    WorkflowJob.database.connection.delete(queue.waiting.key)


def test_a_key_of_an_index_of_another_type_undoes_all_of_it() -> None:
    client = WorkflowJob.database.connection
    client.set("jobs:workflowjob:status:b", "text")

    with pytest.raises(Exception, match="WRONGTYPE"):
        diamond().add()

    client.delete("jobs:workflowjob:status:b")
    assert len(WorkflowJob.collection()) == 0 and Queue.get_queue("flow").waiting.llen() == 0


def test_a_workflow_is_added_once_and_not_empty() -> None:
    with pytest.raises(LimpydJobsException):
        Workflow().add()
    with pytest.raises(LimpydJobsException):
        diamond().add().add()


def test_a_step_of_another_workflow_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="same workflow"):
        Workflow().plan(WorkflowJob, "a", after=Workflow().plan(WorkflowJob, "b"))


def test_too_many_jobs_and_too_many_edges_are_refused() -> None:
    workflow = Workflow()
    steps = [workflow.plan(WorkflowJob, str(number)) for number in range(9_994)]
    for number in range(5):
        workflow.plan(WorkflowJob, f"after {number}", after=steps)

    with pytest.raises(InvalidArgument, match="50000 edges"):
        workflow.plan(WorkflowJob, "one edge too many", after=steps)
    workflow.plan(WorkflowJob, "the last one")
    with pytest.raises(InvalidArgument, match="10000 jobs"):
        workflow.plan(WorkflowJob, "one job too many")


def test_who_has_one_of_its_jobs_cancels_all_of_it() -> None:
    workflow = diamond().add()
    WorkflowJob.add_job("another one")
    found = Workflow.of(WorkflowJob.get(workflow.jobs[-1].pk.get()))

    assert {job.ident for job in found.jobs} == {job.ident for job in workflow.jobs}
    assert found.cancel("enough") == {Cancellation.CANCELED: 4}

    assert statuses(workflow) == "cccc"
    assert work() == ["another one"]


def test_who_has_one_of_its_jobs_has_all_with_the_parents_first() -> None:
    workflow = Workflow()
    step = None
    for number in range(
        6
    ):  # whatever class comes first, children would be canceled after their parents, and run meanwhile
        step = workflow.plan((WorkflowJob, WorkflowOtherJob)[number % 2], str(number), after=step)
    workflow.add()

    found = Workflow.of(workflow.jobs[3])

    assert [job.ident for job in found.jobs] == [job.ident for job in workflow.jobs]


def test_jobs_whose_records_are_gone_have_ended() -> None:
    workflow = diamond().add()
    workflow.jobs[0].delete()
    WorkflowOtherJob.get_from_ident(workflow.jobs[2].ident).delete()

    assert workflow.has_ended()
    assert workflow.cancel() == {Cancellation.ENDED: 2, Cancellation.CANCELED: 2}
    assert work() == []


def test_a_job_that_was_added_alone_has_no_workflow() -> None:
    with pytest.raises(InvalidArgument, match="workflow"):
        Workflow.of(WorkflowJob.add_job("alone"))


def test_its_jobs_are_found_by_its_id() -> None:
    workflow = diamond().add()

    assert len(WorkflowJob.collection(workflow=workflow.id)) == 3


def test_ten_thousand_jobs_and_one_after_them_all() -> None:
    workflow = Workflow()
    steps = [workflow.plan(WorkflowJob, str(number), "aside") for number in range(9_999)]
    workflow.plan(WorkflowJob, "last", after=steps)

    workflow.add()

    last = workflow.jobs[-1]
    assert last.status.hget() == STATUSES.BLOCKED
    assert last.waits_for.scard() == 9_999
    assert Queue.get_queue("aside").waiting.llen() == 9_999


def test_ten_thousand_jobs_after_one() -> None:
    workflow = Workflow()
    first = workflow.plan(WorkflowJob, "first")
    for number in range(9_999):
        workflow.plan(WorkflowJob, str(number), "aside", after=first)
    workflow.add()

    work()

    assert Queue.get_queue("aside").waiting.llen() == 9_999
    assert len(WorkflowJob.collection(status=STATUSES.BLOCKED)) == 0
