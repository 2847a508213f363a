"""Finding jobs by a filter, page by page, and by an ident, a primary key or an identifier."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Job, Queue, admin, utils
from limpyd_jobs.admin import JobFilter
from limpyd_jobs.admin.sources import Sets, smallest
from limpyd_jobs.exceptions import InvalidArgument, JobNotFound
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.tasks import task

pytestmark = pytest.mark.usefixtures("database")
NOW = datetime(2026, 5, 1, 12)


class FindingJob(Job):
    queue_name = "finding"


class FindingNamedJob(Job):
    """Its primary keys are chosen by who adds it."""

    name = fields.PKField()
    queue_name = "finding"


class FindingOtherPlaceJob(Job):
    namespace = "finding-other"
    queue_name = "finding"


class FindingShadowingJob(Job):
    """Has fields of its own where ours would be."""

    progress = InstanceHashField()
    parents = InstanceHashField()
    task = InstanceHashField()
    queue_name = "finding"


class FindingIndexedJob(Job):
    """Finds its statuses by an index of its own."""

    status = InstanceHashField()
    queue_name = "finding"


@task(name="finding:send")
def send(number: int) -> int:
    return number


def client() -> Any:
    return Queue.get_connection()


def identifiers(wanted: JobFilter | None = None, **page: Any) -> list[str]:
    return [record.identifier for record in admin.find_jobs(wanted or JobFilter(), **page).items]


def add(*names: str, job_class: Any = FindingJob, **values: Any) -> list[Any]:
    return [job_class.add_job(name, **values) for name in names]


# --- Filters


def test_the_newest_jobs_come_first() -> None:
    add("a", "b", "c")

    assert identifiers() == ["c", "b", "a"]


def test_jobs_of_several_classes_come_by_when_they_were_added() -> None:
    add("a")
    add("b", job_class=Job, queue_name="finding")
    add("c")

    assert identifiers() == ["c", "b", "a"]


@pytest.mark.parametrize("given", ["error", "ERROR", "e", ("error",), ["e", "error"]])
def test_a_status_is_given_by_its_name_or_its_value(given: Any) -> None:
    jobs = add("a", "b")
    jobs[0].status.hset(STATUSES.ERROR)

    assert identifiers(JobFilter(statuses=given)) == ["a"]
    assert JobFilter(statuses=given).statuses == ("e",)


@pytest.mark.parametrize("moment", ["2026-13", "2026-02-31", "2026-11-21 25", "soon", ""])
def test_a_time_that_there_is_not_is_refused(moment: str) -> None:
    with pytest.raises(InvalidArgument, match=r"ended_before argument: .* must be UTC, YYYY-MM-DD HH:MM:SS or the"):
        JobFilter(ended_before=moment)


def test_a_time_may_be_written_as_in_logs() -> None:
    assert JobFilter(ended_before="2026-11-21T18:30:00.25Z").ended_before == "2026-11-21 18:30:00.25"


def test_a_status_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"statuses argument: 'lost': must be one of waiting \(w\), delayed"):
        JobFilter(statuses=("lost",))


@pytest.mark.parametrize(("pattern", "found"), [("user:*", ["user:12", "user:1"]), ("user:?", ["user:1"])])
def test_a_star_in_an_identifier_is_anything_and_a_question_mark_a_character(pattern: str, found: list[str]) -> None:
    add("user:1", "user:12", "a user:1", "user.1")

    assert identifiers(JobFilter(identifier=pattern)) == found


def test_jobs_are_found_by_the_queue_that_they_are_or_were_last_in() -> None:
    moved, waiting, _ = add("moved", "waiting", "other", queue_name="first")
    waiting.enqueue_or_delay("second")
    moved.status.hset(STATUSES.CANCELED)

    assert identifiers(JobFilter(queues=("second",))) == ["waiting"]
    assert identifiers(JobFilter(queues="first")) == ["other", "moved"]
    assert identifiers(JobFilter(queues=("nosuch",))) == []


def as_if_large(*arguments: Any) -> list[Any]:
    """The smallest sources, as if they held thousands."""
    return [(Sets(client(), source._keys, 20_000), name) for source, name in smallest(*arguments)]


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("statuses", [(), ("w",), ("d", "r"), ("c", "b", "s", "e")])
def test_the_places_of_a_queue_have_all_its_jobs(
    is_large: bool, statuses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    Job.add_job("waiting", "q")
    Job.add_job("delayed", "q", delayed_for=100)
    Job.add_job("child", "q", after=[Job.add_job("canceled", "q")])
    Job.add_job("other", "elsewhere")
    parked, running = Job.add_job("parked", "q"), Job.add_job("running", "q")
    for job in (parked, running):
        client().lrem(f"{job.queue_key.hget()}:waiting", 0, job.ident)
    client().zadd("jobs:limit:one:parked", {f"1 {parked.ident}": 0})
    client().zadd("jobs:limits:due", {"one": 0})
    client().zadd("jobs:leases", {running.ident: 0})
    running.status.hset(STATUSES.RUNNING)
    Queue.collection(name="q").instances()[0].errors.rpush(Job.add_job("failed", "q").ident)
    for name, status in (("failed", "e"), ("canceled", "c")):
        job = Job.collection(identifier=name).instances()[0]
        job.status.hset(status)
    if is_large:
        monkeypatch.setattr(admin.finding, "smallest", as_if_large)
    wanted = {"waiting": "w", "delayed": "d", "child": "b", "canceled": "c", "parked": "w", "failed": "e"}
    wanted["running"] = "r"

    found = identifiers(JobFilter(queues=("q",), statuses=statuses))

    assert sorted(found) == sorted(name for name, status in wanted.items() if not statuses or status in statuses)


@pytest.mark.parametrize("name", ["FindingJob", "tests.admin.test_finding.FindingJob"])
def test_a_class_is_named_with_its_module_or_alone(name: str) -> None:
    add("a")
    add("b", job_class=Job, queue_name="finding")

    assert identifiers(JobFilter(job_class=name)) == ["a"]


def test_a_class_that_there_is_not_is_refused() -> None:
    add("a")

    with pytest.raises(InvalidArgument, match="job_class argument: 'NoSuchJob': must be the name of a class of jobs"):
        admin.find_jobs(JobFilter(job_class="NoSuchJob"))


def test_the_calls_of_a_task_are_found_by_its_name() -> None:
    send(1)
    call = send.add(1)
    add("a", job_class=FindingShadowingJob, task="finding:send")

    (found,) = admin.find_jobs(JobFilter(task="finding:send")).items

    assert (found.ident, found.task) == (call.ident, "finding:send")


def test_ages_count_from_when_a_job_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("old", 7200), ("hour", 3600), ("new", 5)):
        FindingJob.add_job(name, added=str(NOW - timedelta(seconds=seconds)))
    monkeypatch.setattr(utils, "_fixed", NOW)

    assert identifiers(JobFilter(older_than=3600)) == ["hour", "old"]
    assert identifiers(JobFilter(newer_than=3600)) == ["new", "hour"]
    assert identifiers(JobFilter(older_than=60, newer_than=4000)) == ["hour"]


@pytest.mark.parametrize("age", [-1, float("nan"), "1h", True])
def test_an_age_that_is_no_number_of_seconds_is_refused(age: Any) -> None:
    with pytest.raises(InvalidArgument, match="older_than"):
        JobFilter(older_than=age)


def test_jobs_are_found_by_when_they_ended() -> None:
    first, second, _ = add("first", "second", "running")
    first.end.hset("2026-01-01 10:00:00")
    second.end.hset("2026-01-03 10:00:00")

    assert identifiers(JobFilter(ended_before="2026-01-02")) == ["first"]


def test_they_are_counted() -> None:
    add(*"abc")
    add("d", queue_name="other")

    counts = [JobFilter(), JobFilter(statuses="w"), JobFilter(queues="other"), JobFilter(identifier="?")]

    assert [admin.count_jobs(wanted) for wanted in counts] == [4, 4, 1, 4]


# --- Pages


def test_pages_follow_one_another_and_the_last_one_says_so() -> None:
    add(*"abcde")

    first = admin.find_jobs(limit=2)
    second = admin.find_jobs(limit=2, after=first.next)
    third = admin.find_jobs(limit=2, after=second.next)

    pages = [[record.identifier for record in page.items] for page in (first, second, third)]
    assert pages == [["e", "d"], ["c", "b"], ["a"]]
    assert third.next is None


def test_jobs_that_come_and_go_between_pages_disturb_nothing() -> None:
    jobs = add(*"abcdef")
    add("x", job_class=Job, queue_name="finding")
    first = admin.find_jobs(limit=3)
    jobs[4].delete()  # of the first page
    jobs[2].delete()  # of a later one
    add("new")
    add("new", job_class=Job, queue_name="finding")

    second = admin.find_jobs(limit=10, after=first.next)

    assert [record.identifier for record in (*first.items, *second.items)] == ["x", "f", "e", "d", "b", "a"]


def test_a_class_none_of_whose_jobs_came_on_the_first_page_shows_no_newer_ones_on_the_next() -> None:
    add("old", job_class=Job, queue_name="finding")
    add(*"abc")
    first = admin.find_jobs(limit=2)
    add("new", job_class=Job, queue_name="finding")

    assert identifiers(after=first.next) == ["a", "old"]


@pytest.mark.parametrize("token", ["x", "", "e30x!", "MQ"])
def test_what_is_no_token_of_a_page_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="after"):
        admin.find_jobs(after=token)


@pytest.mark.parametrize("limit", [0, 1001, "5", True])
def test_a_page_has_one_to_a_thousand_jobs(limit: Any) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        admin.find_jobs(limit=limit)


def test_each_job_goes_on_though_those_before_are_deleted_and_others_come() -> None:
    add(*"abcd")
    found = []

    for record in admin.each_job():
        found.append(record.identifier)
        FindingJob.from_pk(record.ident.partition(":")[2]).delete()
        add(f"new {record.identifier}")

    assert found == ["d", "c", "b", "a"]


def test_keys_that_users_have_chosen_come_last_each_once() -> None:
    for name in ("x", "007", "y:z", "12"):
        FindingNamedJob.add_job(f"named {name}", name=name)
    add("plain")

    first = admin.find_jobs(limit=2)
    second = admin.find_jobs(limit=9, after=first.next)

    found = [record.ident.partition(":")[2] for record in (*first.items, *second.items)]
    assert sorted(found) == ["007", "1", "12", "x", "y:z"]
    assert set(found[-3:]) == {"x", "007", "y:z"}


# --- Records of all kinds


def test_a_class_with_a_namespace_of_its_own_is_found_where_its_queue_is() -> None:
    add("a", job_class=FindingOtherPlaceJob)

    assert identifiers() == ["a"]
    assert client().exists("finding-other:findingotherplacejob:1:hash")


def test_jobs_are_read_without_the_code_of_their_class() -> None:
    recipe = {
        "repr": "gone.jobs.GoneJob",
        "key": "gone:gonejob",
        "indexes": {"status": [["equal", "gone:gonejob:status:"]]},
    }
    client().hset("jobs:models", "gone.jobs.GoneJob", json.dumps(recipe))
    client().hset("gone:gonejob:3:hash", mapping={"identifier": "a", "status": "e"})
    client().sadd("gone:gonejob:collection", 3)
    client().sadd("gone:gonejob:status:e", 3)

    assert [record.ident for record in admin.find_jobs(JobFilter(statuses="e")).items] == ["gone.jobs.GoneJob:3"]
    assert admin.get_job("gone.jobs.GoneJob:3").identifier == "a"


def test_a_class_that_has_moved_is_one_class() -> None:
    add("a")
    FindingJob.register("jobs", "old.module.FindingJob")

    (found,) = admin.find_jobs().items

    assert found.ident == "tests.admin.test_finding.FindingJob:1"
    assert admin.get_job("old.module.FindingJob:1") == found
    assert identifiers(JobFilter(job_class="old.module.FindingJob")) == ["a"]


def test_a_status_without_an_index_is_read_from_the_records() -> None:
    jobs = add("a", "b", job_class=FindingIndexedJob)
    jobs[0].status.hset(STATUSES.ERROR)

    assert identifiers(JobFilter(statuses="e")) == ["a"]


@pytest.mark.parametrize("is_large", [False, True])
def test_jobs_of_version_2_are_found_by_the_lists_of_their_queue(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = add("a")
    job.queue_key.hdel()
    if is_large:
        monkeypatch.setattr(admin.finding, "smallest", as_if_large)

    (found,) = admin.find_jobs(JobFilter(queues="finding")).items

    assert (found.identifier, found.queue) == ("a", "finding")
    assert identifiers(JobFilter(queues="other")) == []


def test_records_that_vanish_while_they_are_read_are_left_out() -> None:
    add("a", "b")
    client().delete("jobs:findingjob:2:hash")  # it is in the sets still

    assert identifiers() == ["a"]
    assert identifiers(JobFilter(statuses="w")) == ["a"]


def test_a_record_that_is_no_hash_is_shown_with_its_fault() -> None:
    add("a", "b")
    client().delete("jobs:findingjob:2:hash")
    client().set("jobs:findingjob:2:hash", "x")

    broken, whole = admin.find_jobs().items

    assert (broken.ident, broken.fault) == (FindingJob.from_pk("2").ident, "jobs:findingjob:2:hash is no hash")
    assert whole.fault is None
    assert identifiers(JobFilter(statuses="w")) == ["a"]


def test_an_index_that_is_no_set_is_not_used() -> None:
    add("a", "b")
    client().delete("jobs:findingjob:status:w")
    client().set("jobs:findingjob:status:w", "x")

    assert identifiers(JobFilter(statuses="w")) == ["b", "a"]


def test_a_recipe_that_cannot_be_read_is_left_out() -> None:
    add("a")
    client().hset("jobs:models", "broken.Job", "[1")

    assert identifiers() == ["a"]


def test_the_jobs_of_another_namespace_are_not_there() -> None:
    class FindingElsewhereQueue(Queue):
        namespace = "finding-elsewhere"

    Job.add_job("there", "q", queue_model=FindingElsewhereQueue)
    before = {record.identifier for record in admin.find_jobs(queue_model=FindingElsewhereQueue).items}

    assert before == {"there"}
    assert BaseJobsModel.namespace == "jobs"


# --- One job


def test_a_job_is_had_by_its_ident() -> None:
    (job,) = add("a")

    found = admin.get_job(job.ident)

    assert (found.ident, found.identifier, found.queue, found.status) == (job.ident, "a", "finding", "w")
    assert found.fields["identifier"] == "a"


def test_a_job_is_had_by_a_primary_key_that_one_class_has() -> None:
    add("a", "b")
    add("c", job_class=Job, queue_name="finding")

    assert admin.get_job("2").identifier == "b"
    with pytest.raises(JobNotFound, match=r"by '1': it could be limpyd_jobs.models.Job:1 or tests.*FindingJob:1"):
        admin.get_job("1")


def test_of_jobs_with_an_identifier_the_newest_is_had() -> None:
    for _ in range(3):
        (job,) = add("user:12:mail")
        job.status.hset(STATUSES.SUCCESS)
        job.queued.hdel()

    assert admin.get_job("user:12:mail").ident == FindingJob.from_pk("3").ident


def test_an_identifier_with_a_star_is_had_as_it_is() -> None:
    add("a*", "ab")

    assert admin.get_job("a*").identifier == "a*"


@pytest.mark.parametrize("wanted", ["nosuch", "tests.admin.test_finding.FindingJob:99", "99", ":", "a:b:c"])
def test_what_is_no_job_is_said(wanted: str) -> None:
    add("a")

    with pytest.raises(JobNotFound, match="No job found by") as error:
        admin.get_job(wanted)

    assert error.value.wanted == wanted
