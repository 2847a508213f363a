"""How far a job has come, and its state in a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Job, Queue, outcomes, transitions
from limpyd_jobs.exceptions import InvalidArgument, LimpydJobsException
from limpyd_jobs.outcomes import Progress
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers import AsyncWorker

from .support import connection, counted_round_trips, fail, run_worker

pytestmark = pytest.mark.usefixtures("database")


class ProgressJob(Job):
    queue_name = "progress"


class OwnProgressJob(Job):
    """One of a program that had fields of these names before."""

    queue_name = "progress"

    progress = fields.InstanceHashField(indexable=True)
    state = fields.InstanceHashField(indexable=True)
    update = fields.InstanceHashField()
    track = fields.InstanceHashField()
    cancel = fields.InstanceHashField()


class OwnNamesJob(Job):
    """One of a program that had fields with the names of all that has come since."""

    queue_name = "progress"

    aget_progress = fields.InstanceHashField()
    aget_result = fields.InstanceHashField()
    aexecute_now = fields.InstanceHashField()
    aupdate = fields.InstanceHashField()
    await_until = fields.InstanceHashField()
    cancel = fields.InstanceHashField()
    execute_now = fields.InstanceHashField()
    get_carried = fields.InstanceHashField()
    get_children = fields.InstanceHashField()
    get_parents = fields.InstanceHashField()
    get_progress = fields.InstanceHashField()
    get_result = fields.InstanceHashField()
    state = fields.InstanceHashField()
    track = fields.InstanceHashField()
    update = fields.InstanceHashField()
    wait = fields.InstanceHashField()


# What workers call of a job, what limpyd and version 2 have, what classes have to add jobs: these names are taken.
TAKEN = {
    *("aadd_job", "aadd_jobs", "add_job", "add_jobs", "available_commands", "available_getters", "available_modifiers"),
    *("class_of", "delete", "duration", "effective_retries", "enqueue_or_delay", "get_from_ident", "hmget", "ident"),
    *("is_known", "must_be_cancelled_on_error", "must_exist", "register", "requeue", "run", "run_option"),
    *("worker_started",),
}


class OwnMethodJob(Job):
    """One of a program that had a method and a property of these names before."""

    queue_name = "progress"

    def update(self, amount: int) -> int:  # type: ignore[override]
        return amount

    @property
    def state(self) -> str:  # type: ignore[override]
        return "mine"


@pytest.fixture
def every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes by between two items."""
    monkeypatch.setattr(outcomes, "REPORT_SECONDS", 0)


def seen_by_others(job: Any) -> Progress | None:
    found: Progress | None = ProgressJob.get_from_ident(job.ident).get_progress()
    return found


def told(job: Any) -> tuple[float | None, str | None]:
    found = seen_by_others(job)
    assert found is not None
    return found.percent, found.note


def lapse(job: Any) -> None:
    connection().zadd("jobs:leases", {job.ident: 1})
    transitions.send(connection(), transitions.recover("jobs", "jobs:queue", "r", "other", 30, 3))


# --- update


def test_what_a_job_says_in_its_run_is_seen_at_once_elsewhere() -> None:
    job = ProgressJob.add_job("a")
    assert seen_by_others(job) is None
    seen = []

    def work(running: Any, queue: Any) -> None:
        assert running.update(percent=40, note="half of it")
        seen.append(seen_by_others(job))

    run_worker("progress", callback=work)
    (progress,) = seen
    assert progress is not None
    assert (progress.percent, progress.note) == (40, "half of it")
    assert timedelta() <= utcnow() - progress.updated < timedelta(minutes=1)
    assert told(job) == (40, "half of it")


def test_what_is_not_given_stays() -> None:
    job = ProgressJob.add_job("a")
    job.update(note="begun")
    job.update(percent=12.5)
    assert told(job) == (12.5, "begun")
    job.update(note="")
    assert told(job) == (12.5, "")


def test_an_update_is_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ProgressJob.add_job("a")
    job.update(percent=1)
    with counted_round_trips(monkeypatch) as sent:
        job.update(percent=2)
    assert len(sent) == 1


def test_an_update_is_published() -> None:
    job = ProgressJob.add_job("a")
    pubsub = connection().pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(f"jobs:progressjob:{job.pk.get()}:events")
    pubsub.get_message(timeout=5)
    job.update(percent=40, note="é")
    message = pubsub.get_message(timeout=5)
    pubsub.close()
    kind, _, text = message["data"].partition(" ")
    found = outcomes.read_progress(text)
    assert kind == "update"
    assert found == job.get_progress()


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan"), float("inf"), True, "40"])
def test_a_percentage_that_is_none_is_refused(percent: Any) -> None:
    job = ProgressJob.add_job("a")
    with pytest.raises(InvalidArgument, match="Invalid percent argument"):
        job.update(percent=percent)
    assert job.get_progress() is None


@pytest.mark.parametrize("note", [7, b"x", "\ud800", "x" * (outcomes.MAX_NOTE + 1)])
def test_a_note_that_cannot_be_stored_is_refused(note: Any) -> None:
    job = ProgressJob.add_job("a")
    with pytest.raises(InvalidArgument, match="Invalid note argument"):
        job.update(note=note)
    assert job.get_progress() is None


def test_an_update_without_anything_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="unless there is a note"):
        ProgressJob.add_job("a").update()


def test_nothing_is_written_when_the_lease_is_lost() -> None:
    job = ProgressJob.add_job("a")
    said = []

    def work(running: Any, queue: Any) -> None:
        lapse(job)
        said.append(running.update(percent=40))

    run_worker("progress", callback=work)
    assert said == [False]
    assert seen_by_others(job) is None


def test_nothing_is_written_when_the_job_is_gone() -> None:
    job = ProgressJob.add_job("a")
    other = ProgressJob.get_from_ident(job.ident)
    connection().delete(job.key)
    assert not other.update(percent=40)
    assert not connection().exists(job.key)


def test_what_was_run_here_is_not_updated_after_its_end() -> None:
    ProgressJob.add_job("a")
    jobs = []
    run_worker("progress", callback=lambda job, queue: jobs.append(job))
    assert not jobs[0].update(percent=40)
    assert seen_by_others(jobs[0]) is None


def test_what_cannot_be_read_is_no_progress() -> None:
    job = ProgressJob.add_job("a")
    for text in ("", "x", "[]", "7", '{"percent":4}', '{"updated":"x"}'):
        job.progress.hset(text)
        assert job.get_progress() is None
        job.update(note="on")
        assert told(job)[1] == "on"


@pytest.mark.parametrize("again", ["requeue", "enqueue_or_delay", "enqueue_job", "delay_job"])
def test_progress_is_forgotten_when_the_job_is_put_in_a_queue_again(again: str) -> None:
    job = ProgressJob.add_job("a")
    job.update(percent=40)
    run_worker("progress", callback=fail)
    assert told(job) == (40, None)
    if again == "delay_job":
        Queue.get_queue("progress").delay_job(job, utcnow() + timedelta(hours=1))
    elif again == "enqueue_job":
        Queue.get_queue("progress").enqueue_job(job)
    else:
        getattr(job, again)()
    assert seen_by_others(job) is None


def test_progress_is_forgotten_when_the_job_is_given_back() -> None:
    job = ProgressJob.add_job("a")
    taken = transitions.send(
        connection(), transitions.claim("jobs", "jobs:queue", "t", "w", 30, str(utcnow()), ["progress"])
    )
    job._claim = taken.claim
    assert job.update(percent=40)
    lapse(job)
    assert seen_by_others(job) is None
    assert not job.update(percent=41)


def test_coroutines_say_and_ask_without_blocking() -> None:
    job = ProgressJob.add_job("a")
    seen = []

    async def work(running: Any, queue: Any) -> None:
        seen.append(await running.aget_progress())
        await running.aupdate(percent=40)
        seen.append(await running.aget_progress())
        seen.append(running.get_progress())

    run_worker("progress", callback=work, worker_class=AsyncWorker)
    assert [found and found.percent for found in seen] == [None, 40, 40]
    assert told(job) == (40, None)


def test_an_isolated_job_says_how_far_it_is() -> None:
    job = ProgressJob.add_job("a")
    run_worker("progress", callback=lambda running, queue: running.update(percent=40), isolate=True)
    assert told(job) == (40, None)


# --- track


def test_a_loop_is_reported_as_a_percentage(every_report: None) -> None:
    job = ProgressJob.add_job("a")
    seen = []
    for item in job.track("abcd"):
        seen.append((item, *told(job)))
    assert [part[:2] for part in seen] == [("a", 0), ("b", 25), ("c", 50), ("d", 75)]
    assert told(job) == (100, None)


def test_a_loop_over_a_generator_needs_a_total(every_report: None) -> None:
    job = ProgressJob.add_job("a")

    def many() -> Iterator[int]:
        yield from range(4)

    with pytest.raises(InvalidArgument, match="the iterable has no length"):
        job.track(many())
    seen = [told(job)[0] for _ in job.track(many(), total=3)]
    assert seen == [0, 33.3, 66.7, 100]


@pytest.mark.parametrize("total", [-1, 1.5, True, "4"])
def test_a_total_that_is_none_is_refused(total: Any) -> None:
    with pytest.raises(InvalidArgument, match="Invalid total argument"):
        ProgressJob.add_job("a").track([1], total=total)


def test_a_loop_over_nothing_is_at_its_end() -> None:
    job = ProgressJob.add_job("a")
    assert list(job.track([])) == []
    assert told(job) == (100, None)


def test_a_quick_loop_is_reported_at_its_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ProgressJob.add_job("a")
    job.update(note="on")
    monkeypatch.setattr(outcomes.time, "monotonic", lambda: 1.0)
    with counted_round_trips(monkeypatch) as sent:
        assert sum(job.track(range(1000))) == 499500
    assert len(sent) == 1
    assert told(job) == (100, "on")


def test_a_loop_that_is_left_is_not_at_its_end(every_report: None) -> None:
    job = ProgressJob.add_job("a")
    for item in job.track("abcd"):
        if item == "c":
            break
    assert told(job) == (50, None)


def test_a_loop_of_a_coroutine_is_reported(every_report: None) -> None:
    job = ProgressJob.add_job("a")

    async def many() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def percents(items: Any, total: int | None = None) -> list[float | None]:
        return [told(job)[0] async for _ in job.track(items, total)]

    assert asyncio.run(percents(many(), 2)) == [0, 50]
    assert asyncio.run(percents([1, 2, 3, 4])) == [0, 25, 50, 75]
    assert told(job) == (100, None)


# --- state


def test_the_state_is_the_status_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ProgressJob.add_job("a")
    for name, letter in STATUSES.items():
        job.status.hset(letter)
        assert job.state == name.lower()
    job.status.hset("x")
    assert job.state == "x"
    with counted_round_trips(monkeypatch) as sent:
        assert job.state
    assert len(sent) == 1


def test_a_job_that_is_gone_has_no_state() -> None:
    job = ProgressJob.add_job("a")
    other = ProgressJob.get_from_ident(job.ident)
    job.delete()
    with pytest.raises(DoesNotExist):
        assert other.state


# --- programs that had these names before


def test_fields_of_these_names_stay_what_they_are() -> None:
    job = OwnProgressJob.add_job("a", progress="4", state="new", update="x", track="y", cancel="z")
    values = [job.progress.hget(), job.state.hget(), job.update.hget(), job.track.hget(), job.cancel.hget()]  # type: ignore[attr-defined]
    assert values == ["4", "new", "x", "y", "z"]
    assert list(OwnProgressJob.collection(state="new")) == [job.pk.get()]


def test_each_name_that_is_not_taken_gives_way_to_a_field() -> None:
    ours = {name for name, value in vars(Job).items() if name[0] != "_" and hasattr(value, "__get__")} - TAKEN
    assert ours == set(OwnNamesJob._fields) - set(Job._fields)
    job = OwnNamesJob.add_job("a", **dict.fromkeys(ours, "mine"))
    assert {name: getattr(job, name).hget() for name in ours} == dict.fromkeys(ours, "mine")


def test_what_a_class_hides_by_fields_can_be_called_of_job() -> None:
    job = OwnNamesJob.add_job("a")
    assert list(Job.track(job, [1])) == [1]
    progress = Job.get_progress(job)
    assert progress is not None
    assert progress.percent == 100


def test_an_own_field_progress_is_left_alone() -> None:
    job = OwnProgressJob.add_job("a", progress="4")
    run_worker("progress", callback=fail)
    job.requeue()
    assert job.progress.hget() == "4"
    assert list(OwnProgressJob.collection(progress="4")) == [job.pk.get()]
    assert job.get_progress() is None
    with pytest.raises(LimpydJobsException, match="a field progress of its own"):
        Job.update(job, percent=4)


def test_methods_of_these_names_stay_what_they_are() -> None:
    job = OwnMethodJob.add_job("a")
    assert (job.update(3), job.state) == (3, "mine")
