"""All that is known of one job."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin
from limpyd_jobs.exceptions import JobNotFound
from limpyd_jobs.fields import InstanceHashField

pytestmark = pytest.mark.usefixtures("database")


class DetailsShadowingJob(Job):
    progress = InstanceHashField()
    children = InstanceHashField()
    saved_result = InstanceHashField()
    cancel_reason = InstanceHashField()
    queue_name = "details"


def client() -> Any:
    return Queue.get_connection()


def events(details: admin.JobDetails) -> list[str]:
    return [moment.event for moment in details.history]


def test_a_new_job_has_been_added_and_nothing_more() -> None:
    job = Job.add_job("a", "details", priority=3)

    details = admin.show("a")

    assert details.record == admin.get_job(job.ident)
    assert details.fields["status"] == STATUSES.WAITING
    assert [(moment.event, moment.text) for moment in details.history] == [("added", "with the priority 3")]
    assert (details.errors, details.lease, details.result, details.progress) == ((), None, None, None)


def test_the_history_tells_what_became_of_it_and_when() -> None:
    job = Job.add_job("a", "details", delayed_until=None)
    times = {"added": "01", "delayed_until": "02", "start": "05", "end": "06"}
    for name, second in times.items():
        job.get_field(name).hset(f"2026-01-01 10:00:{second}")
    for second, text in ((4, "second"), (3, "first")):
        Error.add_error("details", job, ValueError(text))
        Error.from_pk(str(5 - second)).date_time.hset(f"2026-01-01 10:00:0{second}")
    job.hmset(status=STATUSES.SUCCESS, tries=3, recoveries=1)

    details = admin.show(job.ident)

    assert [(moment.event, moment.text) for moment in details.history] == [
        ("added", "with the priority 0"),
        ("due", "delayed until then"),
        ("error", "ValueError: first"),
        ("error", "ValueError: second"),
        ("started", "try 3"),
        ("ended", "success"),
        ("recovered", "its lease has lapsed once"),
    ]
    assert [error.message for error in details.errors] == ["first", "second"]  # the newest record first


def test_the_errors_are_those_of_this_job_with_their_tracebacks() -> None:
    job, other = Job.add_job("a", "details"), DetailsShadowingJob.add_job("b")
    Error.add_error("details", job, ValueError("mine"), trace="Traceback")
    Error.add_error("details", other, ValueError("not mine"))

    (error,) = admin.show(job.ident).errors

    assert (error.message, error.traceback, error.job) == ("mine", "Traceback", job.ident)


def test_the_jobs_before_and_after_it_come_with_their_statuses() -> None:
    parent = Job.add_job("parent", "details")
    job = Job.add_job("a", "details", after=[parent])
    gone = Job.add_job("gone", "details", after=[job])
    client().delete(gone.key)

    details, of_parent = admin.show(job.ident), admin.show(parent.ident)

    assert details.parents == details.waits_for == (admin.Relative(parent.ident, "parent", STATUSES.WAITING),)
    assert details.children == (admin.Relative(gone.ident),)
    assert of_parent.children == (admin.Relative(job.ident, "a", STATUSES.BLOCKED),)


def test_a_lease_tells_which_worker_has_it_and_until_when() -> None:
    job = Job.add_job("a", "details")
    now = client().time()[0]
    client().zadd("jobs:leases", {job.ident: now + 60})
    client().hset("jobs:claims", job.ident, "0123abcd-17")

    lease = admin.show(job.ident).lease

    assert lease is not None
    assert lease.worker == "0123abcd"
    assert 50 < lease.seconds <= 60
    assert lease.until.startswith("20")


def test_a_process_that_only_places_it_is_no_worker() -> None:
    job = Job.add_job("a", "details")
    client().zadd("jobs:leases", {job.ident: 1})
    client().hset("jobs:claims", job.ident, "0123abcd0123abcd")

    lease = admin.show(job.ident).lease

    assert lease is not None
    assert (lease.worker, lease.until) == (None, "1970-01-01 00:00:01")
    assert lease.seconds < 0


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('json:{"sum":3}', admin.SavedResult("json", '{"sum":3}', 14)),
        (":too large", admin.SavedResult("", "", 10, fault="too large")),
    ],
)
def test_its_result_comes_as_it_is_stored(stored: str, expected: admin.SavedResult) -> None:
    job = Job.add_job("a", "details")
    job.status.hset(STATUSES.SUCCESS)
    job.saved_result.set(stored)

    assert admin.show(job.ident).result == expected


def test_how_far_it_has_come_is_told() -> None:
    job = Job.add_job("a", "details")
    job.update(40, "half of it")

    details = admin.show(job.ident)

    assert details.progress == job.get_progress()
    assert [(moment.event, moment.text) for moment in details.history][1:] == [("progress", "40 % half of it")]


def test_why_it_was_canceled_is_told() -> None:
    job = Job.add_job("a", "details")
    job.cancel("not needed")

    assert admin.show(job.ident).history[-1].event == "canceled"
    assert admin.show(job.ident).history[-1].text == "not needed"


def test_fields_that_are_the_users_own_are_shown_as_fields_and_nothing_more() -> None:
    job = DetailsShadowingJob.add_job("a", progress="of ours", children="two")
    job.hmset(status=STATUSES.CANCELED, cancel_reason="mine")

    details = admin.show(job.ident)

    assert (details.progress, details.children, details.result) == (None, (), None)
    assert details.history[-1].text == ""
    assert (details.fields["progress"], details.fields["children"]) == ("of ours", "two")


def test_of_a_record_that_is_no_hash_its_fault_is_told() -> None:
    job = Job.add_job("a", "details")
    client().delete(job.key)
    client().set(job.key, "x")

    assert admin.show(job.ident).record.fault == "jobs:job:1:hash is no hash"


def test_a_job_that_there_is_not_is_not_shown() -> None:
    with pytest.raises(JobNotFound):
        admin.show("limpyd_jobs.models.Job:7")


class DetailsFailingJob(Job):
    queue_name = "details"

    def run(self, queue: Any) -> None:
        raise ValueError("user 12 is unknown")


def test_of_a_job_that_a_worker_has_run_the_whole_story_is_told() -> None:
    job = DetailsFailingJob.add_job("a")

    Worker("details", max_loops=1, timeout=1, terminate_gracefuly=False).run()

    details, (group,) = admin.show("a"), admin.group_errors()
    assert [(moment.event, moment.text) for moment in details.history] == [
        ("added", "with the priority 0"),
        ("started", "try 1"),
        ("error", "ValueError: user 12 is unknown"),
        ("ended", "error"),
    ]
    assert "in run\n    raise ValueError" in (details.errors[0].traceback or "")
    assert (group.example, group.place) == (job.ident, "admin/test_details.py:run")
    assert admin.find_jobs(admin.JobFilter(statuses="error", queues="details")).items == [details.record]
