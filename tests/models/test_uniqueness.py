"""How an identifier is unique: `unique_for`, `if_queued`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.contrib.indexes import SimpleDateTimeIndex

from limpyd_jobs import STATUSES, Job, Queue, Worker, admin, transitions
from limpyd_jobs.exceptions import (
    ConfigurationException,
    InvalidArgument,
    JobAlreadyExists,
    JobAlreadyQueued,
    WrongKeyType,
)
from limpyd_jobs.utils import utcnow

from ..base import ROOT, wait_until
from .support import (
    assert_filters_equal_hashes,
    assert_indexes_as_rebuilt,
    assert_only_place,
    connection,
    counted_round_trips,
    dump,
    fail,
    places,
    run_worker,
)


class UniquenessJob(Job):
    queue_name = "unique"

    color = fields.InstanceHashField(indexable=True)
    note = fields.InstanceHashField()
    code = fields.InstanceHashField(unique=True)
    day = fields.InstanceHashField(indexable=True, indexes=[SimpleDateTimeIndex])
    words = fields.ListField()
    labels = fields.SetField(indexable=True)


class UniquenessHourlyJob(Job):
    queue_name = "unique"
    unique_for = timedelta(hours=1)


class UniquenessRaisingJob(Job):
    queue_name = "unique"
    if_queued = "raise"


class UniquenessFieldsJob(Job):
    """One of a program that had fields of these names before."""

    queue_name = "unique"

    unique_for = fields.InstanceHashField(indexable=True)
    if_queued = fields.InstanceHashField()


class UniquenessPlacingJob(Job):
    queue_name = "unique"

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> Any:
        return super().enqueue_or_delay(*args, **kwargs)


class UniquenessUnindexedJob(Job):
    """Scripts find it by what they have noted."""

    queue_name = "unique"

    identifier = fields.InstanceHashField()


def claimed(token: str = "w-1") -> Any:
    """The claim of the next job, which runs now."""
    taken = transitions.send(
        connection(), transitions.claim("jobs", "jobs:queue", token, "w", 30, str(utcnow()), ("unique",))
    )
    assert taken.kind == "CLAIMED"
    return taken.claim


def succeed(*_: Any) -> None:
    """A callback that does nothing."""


def hash_of(job: Any) -> dict[str, str]:
    return connection().hgetall(f"{job._name}:{job.pk.get()}:hash")  # type: ignore[no-any-return]


def at_once(number: int, add: Callable[[int], Any]) -> list[Any]:
    """What many threads get that add at the same time; an exception is what it raised."""
    barrier, found = threading.Barrier(number), []

    def run(place: int) -> None:
        barrier.wait()
        try:
            found.append(add(place))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=[place]) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == number
    return found


@pytest.fixture(autouse=True)
def sound_books(database: Any) -> Any:
    """After each test the books are right."""
    yield database
    assert [str(problem) for problem in admin.check()] == []


# --- unique_for


def test_an_identifier_is_unique_after_the_end_of_its_job() -> None:
    job = UniquenessJob.add_job("a", unique_for=60)
    run_worker("unique", callback=succeed)

    again = UniquenessJob.add_job("a", unique_for=60)

    assert again.ident == job.ident
    assert job.status.hget() == STATUSES.SUCCESS and places(job) == []


def test_a_job_that_failed_has_its_identifier_too() -> None:
    job = UniquenessJob.add_job("a", unique_for=60)
    run_worker("unique", callback=fail)

    assert UniquenessJob.add_job("a", unique_for=60).ident == job.ident


def test_the_time_is_that_of_the_job_and_calls_do_not_prolong_it() -> None:
    job = UniquenessJob.add_job("a", unique_for=timedelta(seconds=60))
    UniquenessJob.add_job("a", unique_for=9000)
    run_worker("unique")
    UniquenessJob.add_job("a", unique_for=9000)

    key = f"jobs:unique:{job.get_model_repr()}:a"
    assert connection().get(key) == job.pk.get()
    assert 30_000 < connection().pttl(key) <= 60_000


def test_after_its_time_the_identifier_is_free() -> None:
    job = UniquenessJob.add_job("a", unique_for=0.001)
    run_worker("unique")
    wait_until(lambda: not connection().exists(f"jobs:unique:{job.get_model_repr()}:a"))

    again = UniquenessJob.add_job("a", unique_for=60)

    assert again.ident != job.ident
    assert_only_place(again, "waiting", Queue.get_queue("unique"))


def test_a_call_that_does_not_ask_does_not_look() -> None:
    job = UniquenessJob.add_job("a", unique_for=60)
    run_worker("unique")

    assert UniquenessJob.add_job("a").ident != job.ident


def test_a_job_that_was_canceled_frees_its_identifier() -> None:
    job = UniquenessJob.add_job("a", unique_for=60)
    job.cancel()

    assert UniquenessJob.add_job("a", unique_for=60).ident != job.ident


def test_a_job_that_was_deleted_frees_its_identifier() -> None:
    job = UniquenessJob.add_job("a", unique_for=60)
    run_worker("unique")
    ident = job.ident
    job.delete()

    assert UniquenessJob.add_job("a", unique_for=60).ident != ident


def test_each_class_has_its_own_identifiers() -> None:
    UniquenessJob.add_job("a", unique_for=60)

    other = UniquenessHourlyJob.add_job("a")

    assert other.status.hget() == STATUSES.WAITING


def test_a_class_may_say_it_for_all_its_jobs() -> None:
    job = UniquenessHourlyJob.add_job("a")
    run_worker("unique")

    assert UniquenessHourlyJob.add_job("a").ident == job.ident
    assert UniquenessHourlyJob.add_job("a", unique_for=None).ident != job.ident


def test_many_jobs_at_once_are_unique_too() -> None:
    UniquenessHourlyJob.add_jobs(["a", "b"])
    run_worker("unique", loops=2)

    counts = UniquenessHourlyJob.add_jobs(["a", "b", "c", {"identifier": "b", "unique_for": None}])

    assert counts == (2, 2)


def test_a_coroutine_adds_unique_jobs_too() -> None:
    job = UniquenessHourlyJob.add_job("a")
    run_worker("unique")

    again = asyncio.run(UniquenessHourlyJob.aadd_job("a"))

    assert again.ident == job.ident


def test_a_job_that_its_own_method_places_is_unique_too() -> None:
    job = UniquenessPlacingJob.add_job("a", unique_for=60)
    run_worker("unique")

    assert UniquenessPlacingJob.add_job("a", unique_for=60).ident == job.ident


def test_of_many_that_add_at_once_one_job_is_new() -> None:
    def add(number: int) -> str:
        job = UniquenessHourlyJob.add_job("a")
        if number == 0:
            run_worker("unique")
        return str(job.ident)

    assert len(set(at_once(8, add))) == 1
    assert len(UniquenessHourlyJob.collection()) == 1


# --- raise


def test_a_job_that_is_queued_is_an_error() -> None:
    job = UniquenessRaisingJob.add_job("a")
    before = dump()

    with pytest.raises(JobAlreadyQueued, match="identifier 'a'") as caught:
        UniquenessRaisingJob.add_job("a", priority=5)

    assert caught.value.queued_ident == job.ident and caught.value.is_queued
    assert dump() == before


def test_a_job_that_runs_is_an_error_too() -> None:
    UniquenessRaisingJob.add_job("a")
    claim = claimed()

    with pytest.raises(JobAlreadyQueued):
        UniquenessRaisingJob.add_job("a")

    transitions.send(connection(), transitions.finish("jobs", claim, str(utcnow())))


def test_a_job_that_has_ended_is_no_error() -> None:
    job = UniquenessRaisingJob.add_job("a")
    run_worker("unique")

    assert UniquenessRaisingJob.add_job("a").ident != job.ident


def test_a_job_that_has_ended_is_an_error_while_its_identifier_is_unique() -> None:
    UniquenessRaisingJob.add_job("a", unique_for=60)
    run_worker("unique")

    with pytest.raises(JobAlreadyQueued, match="unique for longer") as caught:
        UniquenessRaisingJob.add_job("a", unique_for=60)

    assert not caught.value.is_queued


def test_an_expired_job_is_no_error() -> None:
    UniquenessRaisingJob.add_job("a", expires=0)

    assert UniquenessRaisingJob.add_job("a").status.hget() == STATUSES.WAITING


def test_of_many_that_raise_one_adds() -> None:
    found = at_once(12, lambda number: UniquenessRaisingJob.add_job("a"))

    assert sum(isinstance(one, JobAlreadyQueued) for one in found) == 11
    assert len(UniquenessRaisingJob.collection()) == 1


def test_of_many_jobs_the_first_error_is_raised_and_the_others_are_added() -> None:
    UniquenessRaisingJob.add_job("b")

    with pytest.raises(JobAlreadyQueued, match="'b'"):
        UniquenessRaisingJob.add_jobs(["a", "b", "c"])

    assert {job.identifier.hget() for job in UniquenessRaisingJob.collection().instances()} == {"a", "b", "c"}


def test_a_coroutine_gets_the_error() -> None:
    UniquenessRaisingJob.add_job("a")

    with pytest.raises(JobAlreadyQueued):
        asyncio.run(UniquenessRaisingJob.aadd_job("a"))


@pytest.mark.parametrize("model", [UniquenessRaisingJob, UniquenessUnindexedJob])
@pytest.mark.parametrize("choice", ["raise", "keep", "replace"])
def test_a_call_that_is_sent_again_gets_its_job(model: Any, choice: str) -> None:
    way = model._way(None, None, 0)
    addition, _ = way.addition("a", {"if_queued": choice, "unique_for": 60}, False, None, None)
    call = transitions.add(way.subject, [addition])

    first, second = (transitions.send(connection(), call)[0] for _ in range(2))

    assert first.kind == "NEW" and second.pk == first.pk  # type: ignore[union-attr]
    assert len(model.collection()) == 1


def test_a_call_that_is_sent_again_when_its_job_has_ended_gets_it_all_the_same() -> None:
    way = UniquenessRaisingJob._way(None, None, 0)
    addition, _ = way.addition("a", {"if_queued": "raise"}, False, None, None)
    call = transitions.add(way.subject, [addition])

    (first,) = transitions.send(connection(), call)
    run_worker("unique")
    (second,) = transitions.send(connection(), call)

    assert second == first and len(UniquenessRaisingJob.collection()) == 1


# --- replace


def test_a_job_that_waits_gets_the_new_fields_and_keeps_the_others() -> None:
    job = UniquenessJob.add_job("a", color="red", note="old", words=["x", "y"], code="1")
    before = hash_of(job)

    again = UniquenessJob.add_job(
        "a", if_queued="replace", color="blue", words=["z"], code="2", job_timeout=5, added="2001-01-01 00:00:00"
    )

    assert again.ident == job.ident
    changes = {"color": "blue", "code": "2", "run_options": '{"job_timeout":5}'}
    assert hash_of(job) == {**before, **changes}
    assert job.words.lmembers() == ["z"]
    assert_filters_equal_hashes(UniquenessJob, "color", "code", "identifier", "queued")
    assert_only_place(job, "waiting", Queue.get_queue("unique"))


def test_a_job_that_is_delayed_stays_so() -> None:
    job = UniquenessJob.add_job("a", delayed_for=60, note="old")
    until = job.delayed_until.hget()

    UniquenessJob.add_job("a", if_queued="replace", note="new")

    assert job.hmget("note", "delayed_until", "status") == ["new", until, STATUSES.DELAYED]


def test_a_list_may_become_empty() -> None:
    job = UniquenessJob.add_job("a", words=["x"])

    UniquenessJob.add_job("a", if_queued="replace", words=[])

    assert job.words.lmembers() == []


def test_a_job_that_is_replaced_moves_to_a_higher_priority_as_ever() -> None:
    job = UniquenessJob.add_job("a", note="old")

    UniquenessJob.add_job("a", priority=3, if_queued="replace", note="new")

    assert job.hmget("note", "priority") == ["new", "3"]
    assert_only_place(job, "waiting", Queue.get_queue("unique", 3))


def test_an_index_that_no_script_knows_is_in_step_with_the_new_value() -> None:
    job = UniquenessJob.add_job("a", day="2026-01-01 00:00:00")

    UniquenessJob.add_job("a", if_queued="replace", day="2027-02-02 00:00:00")

    assert job.day.hget() == "2027-02-02 00:00:00"
    assert_indexes_as_rebuilt(UniquenessJob)


def test_a_new_job_is_added_as_ever() -> None:
    job = UniquenessJob.add_job("a", if_queued="replace", note="new", words=["x"])

    assert job.note.hget() == "new" and job.words.lmembers() == ["x"]
    assert "if_queued" not in hash_of(job)


def test_a_job_that_runs_keeps_its_fields() -> None:
    job = UniquenessJob.add_job("a", note="old")
    claim = claimed()
    before = dump()

    again = UniquenessJob.add_job("a", priority=9, if_queued="replace", note="new")

    assert again.ident == job.ident and dump() == before
    transitions.send(connection(), transitions.finish("jobs", claim, str(utcnow())))


def test_a_job_that_waits_for_its_next_try_gets_the_new_fields() -> None:
    job = UniquenessJob.add_job("a", note="old", requeue_times=1, requeue_delay_delta=60)
    run_worker("unique", callback=fail)

    UniquenessJob.add_job("a", priority=-1, if_queued="replace", note="new")

    assert job.hmget("note", "status") == ["new", STATUSES.DELAYED]


def test_a_unique_value_of_another_job_is_refused_and_nothing_written() -> None:
    UniquenessJob.add_job("other", code="2")
    UniquenessJob.add_job("a", code="1")
    before = dump()

    with pytest.raises(JobAlreadyExists, match="code"):
        UniquenessJob.add_job("a", priority=5, if_queued="replace", code="2", note="new")

    assert dump() == before


def test_a_unique_value_of_its_own_is_accepted() -> None:
    job = UniquenessJob.add_job("a", code="1")

    UniquenessJob.add_job("a", if_queued="replace", code="1", note="new")

    assert job.note.hget() == "new"


def test_something_of_another_type_under_an_index_is_refused_and_nothing_written() -> None:
    UniquenessJob.add_job("a", color="red")
    connection().set("jobs:uniquenessjob:color:blue", "something")
    before = dump()

    with pytest.raises(WrongKeyType, match="color:blue"):
        UniquenessJob.add_job("a", priority=4, if_queued="replace", color="blue", note="new")

    assert dump() == before
    connection().delete("jobs:uniquenessjob:color:blue")


def test_a_field_that_no_script_can_replace_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'labels' is indexed"):
        UniquenessJob.add_job("a", if_queued="replace", labels=["x"])


def test_a_job_that_its_own_method_places_gets_the_new_fields() -> None:
    job = UniquenessPlacingJob.add_job("a", cancel_on_error=0)

    UniquenessPlacingJob.add_job("a", priority=2, if_queued="replace", cancel_on_error=1)

    assert job.hmget("cancel_on_error", "priority") == ["1", "2"]
    assert_only_place(job, "waiting", Queue.get_queue("unique", 2))


def test_many_jobs_get_their_new_fields() -> None:
    UniquenessJob.add_jobs([{"identifier": str(number), "color": "red"} for number in range(20)])

    counts = UniquenessJob.add_jobs(
        {"identifier": str(number), "color": "blue", "if_queued": "replace"} for number in range(21)
    )

    assert counts == (1, 20)
    assert len(UniquenessJob.collection(color="blue")) == 21 and len(UniquenessJob.collection(color="red")) == 0


def test_of_many_that_replace_one_wins_as_a_whole() -> None:
    def add(number: int) -> str:
        return str(
            UniquenessJob.add_job("a", if_queued="replace", color=str(number), note=str(number), words=[number]).ident
        )

    assert len(set(at_once(12, add))) == 1

    job = UniquenessJob.get("1")
    color, note = job.hmget("color", "note")
    assert [color] == [note] == job.words.lmembers()
    assert_filters_equal_hashes(UniquenessJob, "color")


def test_a_worker_gets_all_of_the_new_fields_or_none() -> None:
    seen: list[list[str]] = []
    UniquenessJob.add_job("a", color="0", note="0")

    def add(number: int) -> None:
        if number:
            UniquenessJob.add_job("a", if_queued="replace", color=str(number), note=str(number))
        else:
            run_worker("unique", callback=lambda job, queue: seen.append(job.hmget("color", "note")))

    at_once(6, add)

    assert seen and all(color == note for color, note in seen)


# --- rerun


class UniquenessRerunJob(Job):
    queue_name = "unique"
    if_queued = "rerun"

    note = fields.InstanceHashField()


class UniquenessUnindexedRerunJob(UniquenessRerunJob):
    """Scripts find it by what they have noted."""

    identifier = fields.InstanceHashField()


class UniquenessOwnParentsJob(Job):
    queue_name = "unique"

    parents = fields.InstanceHashField()


RERUN_MODELS = [UniquenessRerunJob, UniquenessUnindexedRerunJob]


def finish(claim: Any) -> None:
    transitions.send(connection(), transitions.finish("jobs", claim, str(utcnow())))


@pytest.mark.parametrize("model", RERUN_MODELS)
def test_one_job_runs_after_the_one_that_runs_however_many_ask(model: Any) -> None:
    first = model.add_job("a", note="first")
    claim = claimed()

    idents = {model.add_job("a", note=str(number)).ident for number in range(3)}

    (again,) = (Job.get_from_ident(ident) for ident in idents)
    assert again.ident != first.ident
    assert again.hmget("status", "queued", "note") == [STATUSES.BLOCKED, "1", "0"] and places(again) == []
    assert again.parents.smembers() == again.waits_for.smembers() == {first.ident}
    assert [str(problem) for problem in admin.check()] == []
    finish(claim)
    assert_only_place(again, "waiting", Queue.get_queue("unique"))
    assert model.add_job("a").ident == again.ident
    run_worker("unique", callback=succeed)
    assert again.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize("model", RERUN_MODELS)
def test_when_the_one_that_comes_after_runs_there_may_be_one_after_that(model: Any) -> None:
    idents = [model.add_job("a").ident]
    for turn in range(3):
        claim = claimed(f"w-{turn}")
        idents += sorted({model.add_job("a").ident for _ in range(2)})
        finish(claim)

    assert len(set(idents)) == 4
    run_worker("unique", callback=succeed)
    assert model.add_job("a").ident not in idents


def test_a_job_that_waits_is_kept() -> None:
    job = UniquenessRerunJob.add_job("a", note="first")

    assert UniquenessRerunJob.add_job("a", note="second").ident == job.ident

    assert job.hmget("note", "status") == ["first", STATUSES.WAITING]
    assert "run_options" not in hash_of(job)


def test_a_job_that_waits_for_its_next_try_is_kept_with_the_one_after_it() -> None:
    first = UniquenessRerunJob.add_job("a", requeue_times=1, requeue_delay_delta=60)
    added: list[str] = []

    def add_and_fail(job: Any, queue: Any) -> None:
        added.append(UniquenessRerunJob.add_job("a").ident)
        fail()

    run_worker("unique", callback=add_and_fail)

    again = Job.get_from_ident(added[0])
    assert [first.status.hget(), again.status.hget()] == [STATUSES.DELAYED, STATUSES.BLOCKED]
    assert UniquenessRerunJob.add_job("a").ident == first.ident
    assert len(UniquenessRerunJob.collection()) == 2


@pytest.mark.parametrize(("policy", "status"), [(None, STATUSES.WAITING), ("cancel", STATUSES.CANCELED)])
def test_it_runs_after_a_failure_too_unless_it_says_otherwise(policy: str | None, status: str) -> None:
    UniquenessRerunJob.add_job("a")
    options = {"if_parent_fails": policy, "job_timeout": 7} if policy else {"job_timeout": 7}
    added: list[Any] = []

    def add_and_fail(job: Any, queue: Any) -> None:
        added.append(UniquenessRerunJob.add_job("a", **options))
        fail()

    run_worker("unique", callback=add_and_fail)

    assert added[0].status.hget() == status
    assert added[0].run_option("job_timeout") == 7


def test_a_running_job_that_is_canceled_lets_the_next_one_run() -> None:
    first = UniquenessRerunJob.add_job("a")
    claim = claimed()
    again = UniquenessRerunJob.add_job("a")

    first.cancel()
    transitions.send(connection(), transitions.skip("jobs", claim))

    assert_only_place(again, "waiting", Queue.get_queue("unique"))


@pytest.mark.parametrize("model", RERUN_MODELS)
def test_the_one_that_comes_after_may_be_canceled_and_asked_for_again(model: Any) -> None:
    first = model.add_job("a")
    claim = claimed()
    canceled = model.add_job("a")
    canceled.cancel()

    again = model.add_job("a")

    assert again.ident not in (first.ident, canceled.ident) and again.status.hget() == STATUSES.BLOCKED
    finish(claim)
    assert_only_place(again, "waiting", Queue.get_queue("unique"))


def test_others_keep_the_job_that_runs_while_one_comes_after_it() -> None:
    first = UniquenessRerunJob.add_job("a")
    claim = claimed()
    again = UniquenessRerunJob.add_job("a")

    assert UniquenessRerunJob.add_job("a", if_queued="keep", priority=5).ident == first.ident
    assert UniquenessRerunJob.add_job("a", if_queued="replace", note="new").ident == first.ident
    with pytest.raises(JobAlreadyQueued) as caught:
        UniquenessRerunJob.add_job("a", if_queued="raise")

    assert caught.value.queued_ident == first.ident
    assert again.status.hget() == STATUSES.BLOCKED
    finish(claim)
    with pytest.raises(JobAlreadyQueued, match=again.ident):
        fail_and_requeue(first)


def fail_and_requeue(job: Any) -> None:
    job.status.hset(STATUSES.ERROR)
    try:
        job.requeue("unique")
    finally:
        job.status.hset(STATUSES.SUCCESS)


def test_it_has_its_own_priority_and_delay() -> None:
    UniquenessRerunJob.add_job("a")
    claim = claimed()
    again = UniquenessRerunJob.add_job("a", priority=4, delayed_for=100)

    finish(claim)

    assert_only_place(again, "delayed", Queue.get_queue("unique", 4))


def test_a_call_to_run_once_more_that_is_sent_again_adds_no_other_job() -> None:
    UniquenessRerunJob.add_job("a")
    claim = claimed()
    way = UniquenessRerunJob._way(None, None, 0)
    addition, _ = way.addition("a", {"if_queued": "rerun"}, False, None, None)
    call = transitions.add(way.subject, [addition])

    (first,) = transitions.send(connection(), call)
    finish(claim)
    claim = claimed("w-2")
    (second,) = transitions.send(connection(), call)

    assert second == first and len(UniquenessRerunJob.collection()) == 2
    finish(claim)


def test_many_jobs_run_once_more() -> None:
    UniquenessRerunJob.add_jobs(["a", "b"])
    claim = claimed()

    counts = UniquenessRerunJob.add_jobs(["a", "b", "c", "a"])

    assert counts == (2, 2)
    finish(claim)
    run_worker("unique", loops=3, callback=succeed)


def test_a_coroutine_asks_to_run_once_more() -> None:
    UniquenessRerunJob.add_job("a")
    claim = claimed()

    job = asyncio.run(UniquenessRerunJob.aadd_job("a"))

    assert job.status.hget() == STATUSES.BLOCKED
    finish(claim)


def test_it_is_unique_for_its_time() -> None:
    UniquenessRerunJob.add_job("a", unique_for=60)
    claim = claimed()
    again = UniquenessRerunJob.add_job("a", unique_for=60)
    finish(claim)
    run_worker("unique", callback=succeed)

    assert UniquenessRerunJob.add_job("a", unique_for=60).ident == again.ident


def test_of_many_that_ask_at_once_one_more_runs() -> None:
    UniquenessRerunJob.add_job("a")
    claim = claimed()

    found = at_once(12, lambda number: UniquenessRerunJob.add_job("a").ident)

    assert len(set(found)) == 1 and len(UniquenessRerunJob.collection()) == 2
    finish(claim)


def test_whoever_asks_is_followed_by_a_run_that_begins_later() -> None:
    """What `rerun` is for: nothing that was asked for while a job ran is lost."""
    last, seen, barrier = {"asked": 0}, [], threading.Barrier(2)

    def ask() -> None:
        barrier.wait()
        for number in range(1, 41):
            last["asked"] = number
            UniquenessRerunJob.add_job("a")

    asker = threading.Thread(target=ask)
    asker.start()
    barrier.wait()
    while asker.is_alive() or not seen or seen[-1] != 40:
        worker = Worker("unique", callback=lambda job, queue: seen.append(last["asked"]), burst=True, max_duration=20)
        worker.run()
    asker.join(20)

    assert seen[-1] == 40
    assert {job.status.hget() for job in UniquenessRerunJob.collection().instances()} == {STATUSES.SUCCESS}


@pytest.mark.parametrize(
    ("model", "reason"),
    [(UniquenessPlacingJob, "methods of UniquenessPlacingJob"), (UniquenessOwnParentsJob, "fields of its own among")],
)
def test_a_class_whose_jobs_cannot_wait_for_others_cannot_run_once_more(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        model.add_job("a", if_queued="rerun")


def test_a_job_that_comes_after_others_cannot_run_once_more() -> None:
    other = Job.add_job("other", "q")

    with pytest.raises(InvalidArgument, match="comes after others"):
        UniquenessRerunJob.add_job("a", after=other)


# --- what is accepted


@pytest.mark.parametrize("value", [0, -1, "1h", True, 0.0001, timedelta(days=40000)])
def test_a_time_that_is_none_is_refused(value: Any) -> None:
    before = dump()

    with pytest.raises(InvalidArgument, match="unique_for"):
        UniquenessJob.add_job("a", unique_for=value)

    assert dump() == before


@pytest.mark.parametrize("value", ["", "drop", 1, ["keep"]])
def test_a_choice_that_there_is_not_is_refused_with_those_that_there_are(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="keep, replace, rerun, raise"):
        UniquenessJob.add_job("a", if_queued=value)


@pytest.mark.parametrize(("name", "value"), [("unique_for", -1), ("if_queued", "drop")])
def test_a_class_that_says_something_else_is_refused(name: str, value: Any) -> None:
    model = type(
        f"UniquenessBad{name.title()}Job", (Job,), {"queue_name": "unique", name: value, "__module__": __name__}
    )

    with pytest.raises(ConfigurationException, match=name):
        model.add_job("a")


def test_fields_of_these_names_stay_fields() -> None:
    job = UniquenessFieldsJob.add_job("a", unique_for="ever", if_queued="raise")

    assert UniquenessFieldsJob.add_job("a", if_queued="raise").ident == job.ident
    assert job.hmget("unique_for", "if_queued") == ["ever", "raise"]


def test_a_job_with_these_options_takes_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    UniquenessHourlyJob.add_job("a", if_queued="raise")

    with counted_round_trips(monkeypatch) as sent:
        UniquenessHourlyJob.add_job("b", if_queued="raise")

    assert len(sent) == 1


def test_the_document_has_each_choice() -> None:
    document = (ROOT / "docs" / "uniqueness.md").read_text()

    assert [name for name in ("keep", "replace", "rerun", "raise") if f"| `{name}`" not in document] == []
