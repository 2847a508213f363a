"""Ends of several jobs of one worker whose replies are lost at the same time."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Worker, transitions
from limpyd_jobs.workers import AsyncWorker

from .base import client


class SideBySideJob(Job):
    queue_name = "test"


def claim_two(worker_class: type[Worker], options: dict[str, Any]) -> tuple[Worker, list[transitions.Claim]]:
    worker = worker_class("test", terminate_gracefully=False, **options)
    worker.update_keys()
    call = worker._exchange_call([], 2, True, runs_count=2)
    worker._note_exchanged([], transitions.send(client(), call), 2)
    claims = [taken.claim for taken in worker._ahead.claims]
    return worker, [claim for claim in claims if claim is not None]


KINDS = pytest.mark.parametrize(
    ("worker_class", "options"), [(Worker, {"threads": 2}), (AsyncWorker, {})], ids=["threads", "async"]
)


@KINDS
def test_an_error_that_is_sent_again_is_recorded_once_though_others_ended_meanwhile(
    worker_class: type[Worker], options: dict[str, Any], database: Any
) -> None:
    SideBySideJob.add_jobs(["one", "two"])
    _, claims = claim_two(worker_class, options)

    def fail(claim: transitions.Claim) -> str:
        ended = transitions.send(client(), transitions.fail("jobs", claim, "now", 5, ""))
        return str(ended.kind)

    assert [fail(claims[0]), fail(claims[1]), fail(claims[0]), fail(claims[1])] == ["OK", "OK", "ALREADY", "ALREADY"]
    assert client().llen("jobs:queue:1:errors") == 2
    assert list(Error.collection()) == []


@KINDS
def test_a_success_that_is_sent_again_is_no_lost_lease_though_others_ended_meanwhile(
    worker_class: type[Worker], options: dict[str, Any], database: Any
) -> None:
    jobs = [SideBySideJob.add_job("one"), SideBySideJob.add_job("two")]
    _, claims = claim_two(worker_class, options)

    def finish(claim: transitions.Claim) -> str:
        return str(transitions.send(client(), transitions.finish("jobs", claim, "now")).kind)

    assert [finish(claims[0]), finish(claims[1]), finish(claims[0])] == ["OK", "OK", "ALREADY"]
    assert [job.status.hget() for job in jobs] == [STATUSES.SUCCESS] * 2


@KINDS
def test_numbers_of_jobs_that_are_over_are_given_again(
    worker_class: type[Worker], options: dict[str, Any], database: Any
) -> None:
    SideBySideJob.add_jobs(map(str, range(30)))
    if worker_class is AsyncWorker:
        options = {"concurrency": 2}

    worker_class("test", terminate_gracefully=False, burst=True, callback=lambda job, queue: None, **options).run()

    assert len(client().keys("jobs:done:*")) <= 3
