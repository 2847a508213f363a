"""What `add_job` and a class say of the runs of a job: timeouts, retries, expiry; and canceling."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.contrib.indexes import SimpleDateTimeIndex
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Backoff, Cancellation, Job, Queue, transitions
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, JobAlreadyQueued
from limpyd_jobs.fields import CancelReasonField
from limpyd_jobs.retries import Retries
from limpyd_jobs.utils import utcnow

from ..base import ROOT
from .support import assert_filters_equal_hashes, assert_only_place, connection, counted_round_trips, dump, run_worker


class ToldJob(Job):
    queue_name = "runs"

    size = fields.InstanceHashField(indexable=True)


class SayingJob(Job):
    queue_name = "runs"
    job_timeout = timedelta(minutes=1)
    expires = 50
    requeue_times = 3
    backoff = "linear"
    retry_on = OSError


class FieldsJob(Job):
    """One of a program that had fields of these names before."""

    queue_name = "runs"

    expires = fields.InstanceHashField(indexable=True)
    job_timeout = fields.InstanceHashField()

    def backoff(self) -> str:
        return "mine"

    @property
    def retry_on(self) -> str:
        return "mine"


class OwnFieldJob(Job):
    """One of a program that had a field of the name of ours before."""

    queue_name = "runs"

    run_options = fields.InstanceHashField(indexable=True)


class OwnReasonJob(Job):
    """As before, of a program in which customers cancel orders."""

    queue_name = "runs"

    cancel_reason = fields.InstanceHashField(indexable=True)


class IndexedJob(Job):
    queue_name = "runs"

    cancel_reason = CancelReasonField(indexable=True)
    status = fields.InstanceHashField(indexable=True, indexes=[SimpleDateTimeIndex])


def stored(job: Any) -> dict[str, Any]:
    return json.loads(job.run_options.hget() or "{}")  # type: ignore[no-any-return]


# --- What is stored


def test_nothing_is_stored_when_nothing_is_said(database: Any) -> None:
    job = ToldJob.add_job("a", job_timeout=None, retry_on=None)
    assert job.run_options.hget() is None
    assert job.run_option("job_timeout") is None


@pytest.mark.parametrize("delay", [None, 50])
def test_what_add_job_is_told_is_stored_and_read_again(database: Any, delay: float | None) -> None:
    said = {"job_timeout": 5, "requeue_times": 3, "backoff": [1, 10], "retry_on": OSError, "size": 2}

    job = ToldJob.add_job("a", delayed_for=delay, **said)

    assert job.run_options.hget() == (
        '{"job_timeout":5,"requeue_times":3,"backoff":[1,10],"retry_on":["builtins.OSError"]}'
    )
    assert job.size.hget() == "2"
    assert job.run_option("backoff") == Backoff(delays=(1, 10))
    assert job.run_option("job_timeout") == 5


def test_many_jobs_say_what_each_is_told(database: Any) -> None:
    ToldJob.add_jobs(
        ["a", {"identifier": "b", "job_timeout": 5}, {"identifier": "c", "job_timeout": 6, "delayed_for": 50}]
    )
    assert [stored(ToldJob.from_pk(pk)).get("job_timeout") for pk in ("1", "2", "3")] == [None, 5, 6]


def test_options_cost_no_round_trip(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ToldJob.add_job("first", job_timeout=5)
    with counted_round_trips(monkeypatch) as sent:
        ToldJob.add_job("a", job_timeout=5, expires=50)
    assert len(sent) == 1


def test_an_existing_job_keeps_its_own(database: Any) -> None:
    job = ToldJob.add_job("a", job_timeout=5)
    ToldJob.add_job("a", job_timeout=6, priority=3)
    assert stored(job) == {"job_timeout": 5}


@pytest.mark.parametrize(
    "said", [{"job_timeout": 0}, {"expires": "soon"}, {"requeue_times": -1}, {"backoff": "quick"}, {"retry_on": "Late"}]
)
def test_a_bad_value_is_refused_before_anything_is_written(database: Any, said: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid {next(iter(said))} argument"):
        ToldJob.add_job("a", **said)
    with pytest.raises(InvalidArgument, match=f"Invalid {next(iter(said))} argument"):
        ToldJob.add_jobs([{"identifier": "a", **said}])
    assert dump() == {}


def test_the_field_and_an_option_are_not_given_together(database: Any) -> None:
    with pytest.raises(InvalidArgument, match="given alone, without expires"):
        ToldJob.add_job("a", run_options='{"job_timeout":5}', expires=5)
    assert ToldJob.add_job("a", run_options='{"job_timeout":5}').run_option("job_timeout") == 5


# --- The class


def test_a_class_says_what_its_jobs_do_not(database: Any) -> None:
    job = SayingJob.add_job("a", requeue_times=0)
    assert (job.run_option("job_timeout"), job.run_option("requeue_times")) == (60, 0)
    assert job.run_option("retry_on") == ("builtins.OSError",)
    assert job.run_option("requeue_delay_delta") is None


def test_the_retries_are_those_of_the_job_its_class_and_the_worker(database: Any) -> None:
    job = SayingJob.add_job("a", backoff="constant")
    default = Retries(requeue_times=9, requeue_delay_delta=7, no_retry_on=("builtins.KeyError",))
    assert job.effective_retries(default) == Retries(
        3, 7, Backoff("constant"), ("builtins.OSError",), ("builtins.KeyError",)
    )
    assert ToldJob.add_job("b").effective_retries(default) is default


def test_the_expiry_of_a_class_counts_from_each_add(database: Any) -> None:
    before = time.time()
    alike, delayed = SayingJob.add_job("a"), SayingJob.add_job("b", delayed_for=1000)
    SayingJob.add_jobs(["c"])
    moments = [stored(job)["expires"] for job in (alike, delayed, SayingJob.from_pk("3"))]
    assert all(before + 50 <= moment <= time.time() + 50 for moment in moments)
    assert SayingJob.add_job("d", expires=datetime(2040, 1, 1)).run_option("expires") == 2208988800


@pytest.mark.parametrize(("name", "value"), [("job_timeout", "5"), ("backoff", "quick"), ("requeue_times", 1.5)])
def test_a_class_with_a_bad_value_is_refused_when_it_is_used(database: Any, name: str, value: Any) -> None:
    bad = type(f"Bad{name.title().replace('_', '')}Job", (Job,), {name: value, "__module__": __name__})
    with pytest.raises(ConfigurationException, match=rf"Invalid Bad\w+\.{name}: {value!r}: must be"):
        bad.add_job("a", "runs")  # type: ignore[attr-defined]
    assert dump() == {}


# --- Programs that had these names


def test_a_field_of_the_name_of_an_option_stays_a_field(database: Any) -> None:
    job = FieldsJob.add_job("a", expires=1, job_timeout=2, requeue_times=3)
    assert (job.expires.hget(), job.job_timeout.hget(), stored(job)) == ("1", "2", {"requeue_times": 3})
    assert FieldsJob.collection(expires="1") == [job.pk.get()]
    assert run_worker("runs", callback=lambda job, queue: None).num_loops == 1
    assert job.status.hget() == STATUSES.SUCCESS


def test_methods_and_properties_of_these_names_are_not_ours(database: Any) -> None:
    job = FieldsJob.add_job("a")
    assert (job.run_option("backoff"), job.run_option("retry_on"), job.run_option("expires")) == (None, None, None)
    assert job.backoff() == job.retry_on == "mine"


def test_a_field_of_the_name_of_ours_is_not_read(database: Any) -> None:
    job = OwnFieldJob.add_job("a", run_options='{"expires":1}')
    assert job.run_option("expires") is None
    worker = run_worker("runs", callback=lambda job, queue: None)
    assert worker.num_loops == 1
    assert (job.status.hget(), job.run_options.hget()) == (STATUSES.SUCCESS, '{"expires":1}')


def test_a_class_with_a_field_of_the_name_of_ours_takes_no_options(database: Any) -> None:
    with pytest.raises(InvalidArgument, match="requeue_times"):
        OwnFieldJob.add_job("a", requeue_times=3)


# --- What cannot be read


@pytest.mark.parametrize("text", ["garbage", '{"expires":', '{"expires":"soon"}', "[]", '{"backoff":"quick"}'])
def test_options_that_cannot_be_read_say_nothing_and_are_told_of_once(
    database: Any, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    job = ToldJob.add_job("a")
    job.run_options.hset(text)
    caplog.set_level(logging.WARNING, "limpyd-jobs")
    assert [job.run_option("job_timeout"), job.run_option("backoff")] == [None, None]
    assert [record.message for record in caplog.records] == [
        f"The field run_options of {job.ident} cannot be read, and is ignored: {text!r}"
    ]
    run_worker("runs", callback=lambda job, queue: None)
    assert job.status.hget() == STATUSES.SUCCESS


def test_what_a_worker_claimed_knows_its_options_without_asking(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ToldJob.add_job("a", job_timeout=5)
    found: list[Any] = []

    def look(job: Any, queue: Any) -> None:
        with counted_round_trips(monkeypatch) as sent:
            found.append(job.run_option("job_timeout"))
        found.append(len(sent))

    run_worker("runs", callback=look)
    assert found == [5, 0]


# --- Expiry


@pytest.mark.parametrize("prefetch", [0, 10])
@pytest.mark.parametrize("expires", [0, datetime(2020, 1, 1), timedelta()])
def test_a_job_that_has_expired_is_canceled_and_not_run(database: Any, expires: Any, prefetch: int) -> None:
    job = ToldJob.add_job("late", expires=expires)
    ToldJob.add_job("good", expires=1000)
    worker_ran: list[str] = []

    run_worker("runs", loops=2, callback=lambda job, queue: worker_ran.append(job.identifier.hget()), prefetch=prefetch)

    assert worker_ran == ["good"]
    assert job.hmget("status", "cancel_reason", "queued", "tries", "start") == ["c", "expired", None, None, None]
    assert_filters_equal_hashes(ToldJob)


def test_a_delayed_job_that_has_expired_meanwhile_is_canceled_when_it_is_due(database: Any) -> None:
    job = ToldJob.add_job("late", delayed_for=0.05, expires=0.01)
    ToldJob.add_job("good", delayed_for=0.1)
    run_worker("runs", callback=lambda job, queue: None)
    assert job.hmget("status", "cancel_reason") == ["c", "expired"]


def test_the_method_of_a_job_is_told_that_it_is_skipped(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ToldJob, "on_skipped", lambda job, queue: told.append(job.ident), raising=False)
    job = ToldJob.add_job("late", expires=0)
    ToldJob.add_job("good")
    run_worker("runs", callback=lambda job, queue: None)
    assert told == [job.ident]


@pytest.mark.parametrize("delay", [None, 1000])
@pytest.mark.parametrize("priority", [0, 5])
def test_a_job_that_has_expired_does_not_stand_for_a_new_one(database: Any, delay: float | None, priority: int) -> None:
    late = ToldJob.add_job("a", expires=0, delayed_for=delay)
    new = ToldJob.add_job("a", priority=priority)
    assert late.hmget("status", "cancel_reason", "queued") == ["c", "expired", None]
    assert_only_place(new, "waiting", Queue.get_queue("runs", priority))
    assert new.ident != late.ident


def requeue(job: Any) -> None:
    job.requeue()


def move(job: Any) -> None:
    job.enqueue_or_delay()


def place(job: Any) -> None:
    Queue.get_queue("runs").enqueue_job(job)


@pytest.mark.parametrize("again", [requeue, move, place])
@pytest.mark.parametrize("delay", [None, 1000])
def test_a_job_that_has_expired_does_not_stand_in_the_way_of_an_older_one(
    database: Any, again: Any, delay: float | None
) -> None:
    old = ToldJob.add_job("a")
    run_worker("runs", callback=lambda job, queue: 1 / 0)
    late = ToldJob.add_job("a", expires=0, delayed_for=delay)

    again(old)

    assert late.hmget("status", "cancel_reason", "queued") == ["c", "expired", None]
    assert_only_place(old, "waiting", Queue.get_queue("runs"))


@pytest.mark.parametrize("again", [requeue, move, place])
def test_a_job_that_expires_later_stands_in_the_way(database: Any, again: Any) -> None:
    old = ToldJob.add_job("a")
    run_worker("runs", callback=lambda job, queue: 1 / 0)
    late = ToldJob.add_job("a", expires=1000)

    with pytest.raises(JobAlreadyQueued):
        again(old)

    assert late.status.hget() == "w"


@pytest.mark.parametrize(("again", "status"), [(requeue, "e"), (move, "e"), (move, "s"), (move, "c")])
@pytest.mark.parametrize("more", [{}, {"job_timeout": 5}])
def test_a_job_that_begins_anew_forgets_an_expiry_that_is_past(
    database: Any, again: Any, status: str, more: dict[str, Any]
) -> None:
    job = ToldJob.add_job("a", expires=1000, **more)

    def run(job: Any, queue: Any) -> None:
        if status == "c":
            job.status.hset("c")
        elif status == "e":
            raise ValueError("boom")

    run_worker("runs", callback=run)
    job.run_options.hset(json.dumps({"expires": 5, **more}, separators=(",", ":")))

    again(job)

    assert job.hmget("status", "cancel_reason") == ["w", None]
    assert stored(job) == more


def test_an_expiry_that_is_to_come_is_kept_by_a_job_that_begins_anew(database: Any) -> None:
    job = ToldJob.add_job("a", expires=1000)
    run_worker("runs", callback=lambda job, queue: 1 / 0)
    job.requeue()
    assert "expires" in stored(job)


# --- Cancel


@pytest.mark.parametrize("delay", [None, 1000])
def test_a_job_that_waits_or_is_delayed_is_canceled_at_once(database: Any, delay: float | None) -> None:
    job = ToldJob.add_job("a", delayed_for=delay, size=3)

    assert job.cancel() is Cancellation.CANCELED

    assert job.hmget("status", "cancel_reason", "queued") == ["c", "canceled", None]
    queue = Queue.get_queue("runs")
    assert (queue.waiting.llen(), queue.delayed.zcard()) == (0, 0)
    assert_filters_equal_hashes(ToldJob)


def test_a_reason_is_kept(database: Any) -> None:
    job = ToldJob.add_job("a")
    job.cancel("the user has left")
    assert job.cancel_reason.hget() == "the user has left"


@pytest.mark.parametrize("again", [requeue, move, place])
def test_an_own_field_cancel_reason_is_kept_when_the_job_is_put_in_a_queue_again(database: Any, again: Any) -> None:
    job = OwnReasonJob.add_job("a", cancel_reason="mine")
    run_worker("runs", callback=lambda job, queue: 1 / 0)
    again(job)
    assert job.hmget("status", "cancel_reason") == ["w", "mine"]
    assert OwnReasonJob.collection(cancel_reason="mine") == [job.pk.get()]


@pytest.mark.parametrize("ends", [lambda job: job.cancel(), lambda job: OwnReasonJob.add_job("a")])
def test_an_own_field_cancel_reason_is_kept_when_the_job_is_canceled(database: Any, ends: Any) -> None:
    job = OwnReasonJob.add_job("a", cancel_reason="mine", expires=0)
    ends(job)
    assert job.hmget("status", "cancel_reason") == ["c", "mine"]


def test_an_own_field_cancel_reason_is_kept_when_a_worker_finds_that_the_job_has_expired(database: Any) -> None:
    job = OwnReasonJob.add_job("a", cancel_reason="mine", expires=0)
    run_worker("runs", callback=lambda job, queue: None)
    assert job.hmget("status", "cancel_reason") == ["c", "mine"]


def test_a_reason_is_refused_where_cancel_reason_is_an_own_field(database: Any) -> None:
    job = OwnReasonJob.add_job("a", cancel_reason="mine")
    with pytest.raises(InvalidArgument, match="None: OwnReasonJob has a field cancel_reason of its own"):
        job.cancel("no more")
    assert job.hmget("status", "cancel_reason") == ["w", "mine"]


@pytest.mark.parametrize("reason", [5, b"x", "\ud800"])
def test_a_reason_that_is_no_text_is_refused(database: Any, reason: Any) -> None:
    job = ToldJob.add_job("a")
    with pytest.raises(InvalidArgument, match="Invalid reason argument"):
        job.cancel(reason)
    assert job.status.hget() == "w"


def test_canceling_again_answers_the_same_and_writes_nothing(database: Any) -> None:
    job = ToldJob.add_job("a")
    job.cancel("first")
    before = dump()
    assert job.cancel("second") is Cancellation.CANCELED
    assert dump() == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_has_ended_stays_as_it_is(database: Any, fails: bool) -> None:
    job = ToldJob.add_job("a")
    run_worker("runs", callback=lambda job, queue: 1 / 0 if fails else None)
    before = dump()
    assert job.cancel() is Cancellation.ENDED
    assert dump() == before


def test_a_job_that_is_gone_is_told_of(database: Any) -> None:
    job = ToldJob.add_job("a")
    other = ToldJob.from_pk(job.pk.get())
    run_worker("runs", callback=lambda job, queue: None)
    job.delete()
    with pytest.raises(DoesNotExist):
        other.cancel()


@pytest.mark.parametrize("prefetch", [0, 10])
def test_a_job_that_runs_is_asked_and_counts_as_canceled_at_its_end(database: Any, prefetch: int) -> None:
    job, answers = ToldJob.add_job("a"), []

    def run(running: Any, queue: Any) -> None:
        answers.append(ToldJob.from_pk(job.pk.get()).cancel())
        answers.append(running.cancel())

    run_worker("runs", callback=run, prefetch=prefetch)

    assert answers == [Cancellation.REQUESTED] * 2
    assert job.hmget("status", "cancel_reason", "queued") == ["c", "canceled", None]


def test_a_job_that_was_claimed_ahead_is_asked_and_does_not_begin(database: Any) -> None:
    ToldJob.add_job("first")
    second, found = ToldJob.add_job("second"), []

    def run(job: Any, queue: Any) -> None:
        found.append(job.identifier.hget())
        if len(found) == 1:
            found.append(second.cancel())
            ToldJob.add_job("third")

    run_worker("runs", loops=3, callback=run, prefetch=10)

    assert found == ["first", Cancellation.REQUESTED, "third"]
    assert second.hmget("status", "queued") == ["c", None]


def test_a_job_of_version_2_is_found_without_its_queue_key(database: Any) -> None:
    job = ToldJob.add_job("a", priority=3)
    connection().hdel(job.key, "queue_key")
    assert job.cancel() is Cancellation.CANCELED
    assert Queue.get_queue("runs", 3).waiting.llen() == 0


def test_a_job_that_a_worker_of_version_2_runs_is_asked(database: Any) -> None:
    job = ToldJob.add_job("a")
    Queue.get_queue("runs").waiting.lpop()
    job.status.hset(STATUSES.RUNNING)
    assert [job.cancel(), job.cancel()] == [Cancellation.REQUESTED] * 2
    assert job.hmget("status", "queued") == ["c", "1"]


def test_a_job_whose_status_was_written_by_hand_leaves_its_queue(database: Any) -> None:
    job = ToldJob.add_job("a")
    job.status.hset(STATUSES.CANCELED)
    assert job.cancel() is Cancellation.CANCELED
    assert job.queued.hget() is None
    assert Queue.get_queue("runs").waiting.llen() == 0


def test_a_job_between_its_error_and_its_requeue_is_let_go(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, answers = ToldJob.add_job("a"), []
    monkeypatch.setattr(ToldJob, "on_error", lambda job, *_: answers.append(job.cancel()), raising=False)

    run_worker("runs", callback=lambda job, queue: 1 / 0, requeue_times=3)

    assert answers == [Cancellation.REQUESTED]
    assert job.hmget("status", "queued") == ["c", None]
    assert connection().zcard("jobs:leases") == 0


def test_indexes_that_no_script_knows_are_brought_in_step(database: Any) -> None:
    job = IndexedJob.add_job("a")
    job.cancel("late")
    assert IndexedJob.collection(cancel_reason="late") == [job.pk.get()]


def test_a_canceled_job_that_is_added_to_a_queue_again_loses_its_reason(database: Any) -> None:
    job = ToldJob.add_job("a")
    job.cancel()
    job.enqueue_or_delay()
    assert job.hmget("status", "cancel_reason") == ["w", None]
    assert_only_place(job, "waiting", Queue.get_queue("runs"))


def test_a_new_job_takes_the_place_of_a_canceled_one(database: Any) -> None:
    job = ToldJob.add_job("a")
    job.cancel()
    assert ToldJob.add_job("a").ident != job.ident


def test_canceling_costs_one_round_trip(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ToldJob.add_job("first").cancel()
    job = ToldJob.add_job("a")
    with counted_round_trips(monkeypatch) as sent:
        job.cancel()
    assert len(sent) == 1


def test_a_claim_and_a_cancel_never_both_have_the_job(database: Any) -> None:
    for number in range(20):
        job = ToldJob.add_job(str(number))
        if number % 2:
            assert job.cancel() is Cancellation.CANCELED
        now = str(utcnow())
        call = transitions.claim("jobs", "jobs:queue", f"w-{number}", "w", 30, now, ("runs",))
        taken = transitions.send(connection(), call)
        assert taken.kind == ("EMPTY" if number % 2 else "CLAIMED")
        if not number % 2:
            assert job.cancel() is Cancellation.REQUESTED
            transitions.send(connection(), transitions.skip("jobs", taken.claim))


def test_of_canceling_and_claiming_at_the_same_time_each_job_gets_one(database: Any) -> None:
    jobs = [ToldJob.add_job(str(number)) for number in range(100)]
    barrier = threading.Barrier(2)
    answers: dict[str, Cancellation] = {}
    taken: list[transitions.Taken] = []

    def cancel_all() -> None:
        barrier.wait()
        for job in jobs:
            answers[job.ident] = job.cancel()

    def claim_all() -> None:
        barrier.wait()
        for number in range(len(jobs)):
            call = transitions.claim("jobs", "jobs:queue", f"w-{number}", "w", 30, str(utcnow()), ("runs",))
            taken.append(transitions.send(connection(), call))

    threads = [threading.Thread(target=target) for target in (cancel_all, claim_all)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    claimed = {one.ident for one in taken if one.kind == "CLAIMED"}
    assert {one.kind for one in taken} <= {"CLAIMED", "EMPTY"}
    assert {ident for ident, answer in answers.items() if answer is Cancellation.REQUESTED} == claimed
    assert set(answers.values()) <= {Cancellation.REQUESTED, Cancellation.CANCELED}
    assert len(answers) == len(jobs)


# --- The documents


def test_the_examples_of_the_document_run_as_they_are(database: Any) -> None:
    text = (ROOT / "docs" / "retries.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shared: dict[str, Any] = {"__name__": "examples"}
    for block in blocks:
        exec(block, shared)
    assert len(blocks) == 3
    assert stored(shared["FetchJob"].from_pk("3")) == {"backoff": [1, 10, 60]}
