"""Tasks, executed at once and in the process of a test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, testing
from limpyd_jobs.exceptions import InvalidArgument, WrongArguments
from limpyd_jobs.tasks import TaskJob, chain, chord, group

from ..rooms import sample_tasks as tasks


@pytest.fixture(autouse=True)
def no_calls() -> None:
    tasks.calls.clear()


def test_a_task_is_run_now() -> None:
    job = tasks.send.run_now("a@b.c", subject="x")

    assert isinstance(job, TaskJob)
    assert job.status.hget() == STATUSES.SUCCESS
    assert job.get_result() == 1
    assert tasks.calls == [("a@b.c", "x")]
    assert testing.queued() == []


def test_a_coroutine_task_is_run_now_also_in_a_loop() -> None:
    first = tasks.fetch.run_now("one")

    second = asyncio.run(tasks.fetch.arun_now("two"))

    assert [call[:2] for call in tasks.calls] == [("one", 1), ("two", 1)]
    assert [call[3] for call in tasks.calls] == [first.ident, second.ident]


def test_a_task_that_fails_is_tried_again_at_once_and_its_error_is_recorded() -> None:
    job = tasks.fail.run_now()

    assert job.hmget("status", "tries") == [STATUSES.ERROR, "3"]
    assert len(Error.collection_for_job(job)) == 3


def test_wrong_arguments_are_refused_before_anything_is_written() -> None:
    wrong: Any = tasks.send
    with pytest.raises(WrongArguments):
        wrong.run_now()

    assert list(TaskJob.collection()) == []


def test_what_a_task_says_of_its_queue_is_left_out_and_what_a_call_says_of_it_refused() -> None:
    job = tasks.late.run_now()

    assert job.hmget("status", "delayed_until", "priority") == [STATUSES.SUCCESS, None, "3"]
    with pytest.raises(InvalidArgument, match="executed at once"):
        tasks.late.options(delayed_for=5).run_now()


def test_options_of_the_call_hold() -> None:
    job = tasks.fail.options(requeue_times=0, identifier="mine").run_now()

    assert job.hmget("tries", "identifier") == ["1", "sample.fail:mine"]


def test_tasks_are_run_when_they_are_added() -> None:
    with testing.eager():
        job = tasks.send.add("a@b.c")
        tasks.send.add_many([("b@b.c",), ("c@b.c",)])

    assert job.status.hget() == STATUSES.SUCCESS
    assert [to for to, _ in tasks.calls] == ["a@b.c", "b@b.c", "c@b.c"]


def test_chains_and_groups_are_run_when_they_are_added() -> None:
    async def main() -> Any:
        return await group(tasks.send.s("c@b.c"), tasks.send.s("d@b.c")).aadd()

    with testing.eager():
        flows = [chain(tasks.send.si("a@b.c"), tasks.send.si("b@b.c")).add(), asyncio.run(main())]

    assert [job.status.hget() for flow in flows for job in flow.jobs] == [STATUSES.SUCCESS] * 4
    assert [to for to, _ in tasks.calls] == ["a@b.c", "b@b.c", "c@b.c", "d@b.c"]


def test_tasks_are_run_when_a_coroutine_adds_them() -> None:
    async def main() -> None:
        with testing.eager():
            await tasks.fetch.aadd("one")

    asyncio.run(main())

    assert [call[0] for call in tasks.calls] == ["one"]


def test_a_chain_and_the_chord_of_a_coroutine_are_run_when_they_are_added() -> None:
    async def main() -> Any:
        return await chord([tasks.send.s("c@b.c"), tasks.send.s("d@b.c")], tasks.note.s()).aadd()

    with testing.eager():
        flow = chain(tasks.send.s("a@b.c"), tasks.send.si("b@b.c")).add()
        assert flow.workflow.has_ended()
        asyncio.run(main())

    assert [to for to, _ in tasks.calls] == ["a@b.c", "b@b.c", "c@b.c", "d@b.c", [3, 4]]
