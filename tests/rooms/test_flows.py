"""Chains, groups and chords of tasks, on real workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Cancellation, Queue, Worker, admin
from limpyd_jobs.exceptions import InvalidArgument, JobAlreadyQueued, JobCanceled, WrongArguments
from limpyd_jobs.tasks import TaskJob, chain, chord, group, task
from limpyd_jobs.workers import AsyncWorker
from limpyd_jobs.workflows import Workflow

calls: list[Any] = []


@task(queue="flows", save_result=True)
def number(value: int) -> int:
    calls.append(value)
    return value


@task(queue="flows", save_result=True)
def plus(left: int, right: int = 1) -> int:
    return left + right


@task(queue="flows", save_result=True)
def total(values: list[int]) -> int:
    calls.append("total")
    return sum(values)


@task(queue="flows", save_result=True)
async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


@task(queue="flows", save_result=True)
def fail(value: int = 0) -> int:
    raise ValueError("boom")


@task(queue="flows", save_result=True)
def listed(values: list[int | None]) -> list[int | None]:
    return values


@task(queue="flows", save_result=True)
def tomorrow(day: date) -> date:
    return day.replace(day=day.day + 1)


@task(queue="flows", save_result=True, identifier="like {value}")
def alike(value: int) -> int:
    return value


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    calls.clear()
    yield
    assert [str(problem) for problem in admin.check()] == []


@pytest.fixture(params=[Worker, AsyncWorker])
def worker_class(request: pytest.FixtureRequest) -> Any:
    return request.param


def work(worker_class: type[Worker] = Worker, **options: Any) -> None:
    """Run a worker until nothing waits."""
    usual = {"burst": True, "max_loops": 20_000, "terminate_gracefully": False, "save_errors": False}
    worker_class("flows", logger_level=100, **usual, **options).run()


def statuses(flow: Any) -> str:
    return "".join(job.status.hget() for job in flow.jobs)


def test_each_call_of_a_chain_gets_the_result_of_the_one_before(worker_class: Any) -> None:
    flow = chain(number.s(1), plus.s(right=10), double.s()).add()
    assert statuses(flow) == "wbb"

    work(worker_class)

    assert flow.wait(timeout=5)
    assert flow.get_result() == flow.last.get_result() == 22
    assert flow.get_results() == [22]


def test_calls_are_chained_by_a_bar() -> None:
    flow = (number.s(1) | plus.s() | plus.s()).add()

    work()

    assert len(flow.jobs) == 3
    assert flow.get_result() == 3


def test_an_immutable_call_gets_no_result() -> None:
    flow = (number.s(1) | plus.si(5, 6)).add()

    work()

    assert flow.get_result() == 11


@pytest.mark.parametrize("policy", ["cancel", "run"])
def test_its_calls_may_come_after_other_jobs_too(policy: str) -> None:
    first = fail.add()
    flow = chain(number.s(1), group(plus.s(), plus.options(after=[first]).s(5))).add(policy)
    assert statuses(flow) == "wbb"

    work()

    assert statuses(flow) == ("ssc" if policy == "cancel" else "sss")
    assert flow.jobs[2].parents.smembers() == {first.ident, flow.jobs[0].ident}
    assert flow.jobs[1].get_result() == 2


def test_a_group_has_its_results_in_its_order(worker_class: Any) -> None:
    flow = group(number.s(value) for value in (3, 1, 2)).add()
    assert statuses(flow) == "www"

    work(worker_class)

    assert flow.wait(timeout=5)
    assert flow.get_result() == flow.get_results() == [3, 1, 2]


@pytest.mark.parametrize("make", [chord, lambda header, callback: group(header) | callback])
def test_a_callback_gets_the_results_of_the_group_in_its_order(make: Any, worker_class: Any) -> None:
    flow = make([number.s(value) for value in (3, 1, 2)], listed.s()).add()

    work(worker_class)

    assert flow.get_result() == [3, 1, 2]


def test_results_that_are_still_needed_stay_though_nothing_is_kept() -> None:
    flow = (group(number.options(keep_success=0).s(value) for value in range(30)) | total.s()).add()

    Worker("flows", burst=True, max_loops=20_000, terminate_gracefully=False, keep_success=1, logger_level=100).run()

    assert flow.get_result() == sum(range(30))


def test_a_group_in_a_chain_gets_the_result_before_and_gives_a_list_to_what_comes_after() -> None:
    flow = (number.s(1) | group(plus.s(10), plus.s(20) | double.s()) | total.s() | plus.s()).add()

    work()

    assert flow.get_result() == 11 + 42 + 1
    names = [job.task_name.rpartition(":")[2] for job in flow.jobs]
    assert names == ["number", "plus", "plus", "double", "total", "plus"]


def test_a_group_of_groups_gives_lists_of_lists() -> None:
    flow = (group(group(number.s(1), number.s(2)), number.s(3)) | listed.s()).add()

    work()

    assert flow.last.get_result(annotation=Any) == [[1, 2], 3]


def test_a_group_may_come_after_a_group() -> None:
    flow = (group(number.s(1), number.s(2)) | group(total.s(), total.s())).add()

    work()

    assert flow.get_result() == [3, 3]


def test_type_hints_restore_results() -> None:
    flow = (tomorrow.s(date(2026, 1, 1)) | tomorrow.s()).add()

    work()

    assert flow.get_result() == date(2026, 1, 3)


def test_what_an_identifier_is_made_of_may_be_a_result() -> None:
    first = (number.s(1) | alike.s()).add()
    second = (number.s(1) | alike.s()).add()

    assert first.last.identifier.hget() != second.last.identifier.hget()


def test_what_a_limit_counts_by_may_not_be_a_result() -> None:
    limited = plus.options(max_concurrency=1, limit_key="sum of {left}")

    with pytest.raises(InvalidArgument, match="left is a result of another job"):
        chain(number.s(1), limited.s()).add()

    assert limited.add(1).run_option("limit_key") == "sum of 1"
    with pytest.raises(InvalidArgument, match="limit_key"):
        limited.options(limit_key="a{").add(1)


def test_an_identifier_that_is_queued_refuses_all_of_it() -> None:
    alike.add(1)

    with pytest.raises(JobAlreadyQueued):
        group(number.s(1), alike.s(1)).add()

    assert len(TaskJob.collection()) == 1


def test_a_call_that_fails_cancels_the_rest_of_the_chain() -> None:
    flow = (number.s(1) | fail.s() | plus.s() | plus.s()).add()

    work()

    assert statuses(flow) == "secc"
    with pytest.raises(JobCanceled, match="parent failed"):
        flow.get_result()


def test_calls_that_are_canceled_when_they_are_added_are_kept_as_errors_are() -> None:
    failed = fail.add()
    work()

    alone = number.options(after=failed).add(1)
    flow = chain(number.options(after=failed, keep_errors=60).s(1), plus.s()).add()

    assert (alone.status.hget(), statuses(flow)) == (STATUSES.CANCELED, "cc")
    kept = TaskJob.database.connection.zrange("jobs:expiring", 0, -1)
    assert kept[0] == flow.jobs[0].ident
    assert {alone.ident, failed.ident, *(job.ident for job in flow.jobs)} == set(kept)


def test_a_callback_may_run_although_some_have_failed() -> None:
    flow = chord([number.s(1), fail.s(2), number.s(3)], listed.s()).add(if_parent_fails="run")

    work()

    assert flow.get_result() == [1, None, 3]


def test_a_chain_may_wait_until_a_call_is_requeued() -> None:
    flow = (fail.s() | plus.si(1)).add(if_parent_fails="wait")
    work()
    assert statuses(flow) == "eb"

    flow.jobs[0].task.hset(number.name)
    flow.jobs[0].arguments.hset("[[1],{}]")
    flow.jobs[0].requeue("flows")
    work()

    assert flow.get_result() == 2


def test_a_call_that_is_requeued_goes_to_the_queue_where_it_was() -> None:
    job = fail.add()
    work()

    job.requeue()
    assert Queue.count_waiting_jobs("flows") == 1
    job.enqueue_or_delay(priority=5)

    assert job.queue_key.hget() == f"jobs:queue:{Queue.get_queue('flows', 5).pk.get()}"
    assert Queue.count_waiting_jobs("flows") == 1


def test_all_of_it_is_canceled_by_who_has_its_last_job() -> None:
    flow = (group(number.s(1), number.s(2)) | total.s()).add()
    last = TaskJob.get(flow.last.pk.get())

    assert Workflow.of(last).cancel() == {Cancellation.CANCELED: 3}

    work()
    assert calls == []
    assert flow.wait(timeout=1)


def test_a_call_in_it_may_come_after_a_job_that_is_there() -> None:
    before = number.add(3)

    flow = chain(number.options(after=before).s(1), plus.s(), plus.options(after=[before]).s()).add()
    assert statuses(flow) == "bbb"

    work()
    assert flow.get_result() == 3
    assert calls == [3, 1]


def test_its_jobs_are_a_collection() -> None:
    flow = (group(number.s(1), number.s(2)) | total.s()).add()

    assert len(TaskJob.collection(workflow=flow.id, status=STATUSES.WAITING)) == 2


def test_a_coroutine_adds_it() -> None:
    flow = asyncio.run((number.s(1) | plus.s()).aadd())

    work()

    assert flow.get_result() == 2


@pytest.mark.parametrize("wrong", [lambda: chain(), lambda: group([]), lambda: group(5), lambda: chain(number)])
def test_what_is_no_call_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument):
        wrong()


def test_an_unknown_policy_is_refused_also_where_nothing_comes_after_another() -> None:
    with pytest.raises(InvalidArgument, match="if_parent_fails"):
        group(number.s(1), number.s(2)).add(if_parent_fails="ignore")
    assert list(TaskJob.collection()) == []


def test_wrong_arguments_are_refused_before_anything_is_written() -> None:
    with pytest.raises(WrongArguments):
        (number.s(1) | plus.s(1, 2)).add()

    assert len(TaskJob.collection()) == 0


@pytest.mark.timeout(300)  # it takes some seconds, or two minutes where much else runs
def test_ten_thousand_calls_and_a_callback() -> None:
    flow = chord((number.s(value) for value in range(9_999)), total.s()).add()

    work(prefetch=50)

    assert flow.get_result() == sum(range(9_999))
    assert calls.count("total") == 1


def test_more_calls_than_a_workflow_may_have_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="10000"):
        group(number.s(value) for value in range(10_001)).add()
