"""Jobs that come after others: what `add`, the ends of their parents and `follow_up` do to them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.exceptions import DoesNotExist

from limpyd_jobs import STATUSES, Cancellation, Error, Job, Queue, Worker, admin, transitions
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, JobNotInStatus
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers.expiring import ExpiringJobs


class BlockedJob(Job):
    """A plain job of these tests."""

    queue_name = "blocked"
    log: list[str] = []

    def run(self, queue: Any) -> None:
        BlockedJob.log.append(str(self.identifier.hget()))
        if "bad" in str(self.identifier.hget()):
            raise ValueError("bad")


class BlockedOtherJob(BlockedJob):
    """One whose children run all the same, unless they say otherwise."""

    if_parent_fails = "run"


class BlockedOwnFieldJob(Job):
    """It has a field of ours for its own ends."""

    queue_name = "blocked"
    children = fields.InstanceHashField()


class BlockedPlacingJob(Job):
    """It wants to be called when it enters a queue."""

    queue_name = "blocked"

    def enqueue_or_delay(self, *args: Any, **kwargs: Any) -> None:
        super().enqueue_or_delay(*args, **kwargs)


@pytest.fixture(autouse=True)
def books(database: Any) -> Any:
    BlockedJob.log = []
    yield
    assert [str(problem) for problem in admin.check()] == []


def work(**options: Any) -> list[str]:
    """What a worker runs until nothing waits."""
    Worker("blocked", burst=True, terminate_gracefully=False, save_errors=False, logger_level=100, **options).run()
    return BlockedJob.log


def statuses(*jobs: Any) -> str:
    return "".join(job.status.hget() for job in jobs)


# --- Adding


def test_a_job_after_others_is_blocked_and_in_no_queue() -> None:
    one, two = BlockedJob.add_job("one"), BlockedJob.add_job("two")

    last = BlockedJob.add_job("last", after=[one, two.ident])

    assert (last.status.hget(), last.queued.hget()) == (STATUSES.BLOCKED, "1")
    assert last.parents.smembers() == last.waits_for.smembers() == {one.ident, two.ident}
    assert one.children.smembers() == {last.ident}
    assert Queue.get_queue("blocked").waiting.lmembers() == [one.ident, two.ident]


def test_it_runs_when_all_of_them_have_ended() -> None:
    one, two = BlockedJob.add_job("one"), BlockedJob.add_job("two")
    last = BlockedJob.add_job("last", after=[one, two])

    assert work() == ["one", "two", "last"]
    assert statuses(last) == "s"
    assert last.waits_for.smembers() == set()
    assert {job.ident for job in last.get_parents()} == {one.ident, two.ident}
    assert [job.ident for job in one.get_children()] == [last.ident]


def test_a_job_after_one_that_has_ended_well_is_queued_as_ever() -> None:
    first = BlockedJob.add_job("first")
    work()

    last = BlockedJob.add_job("last", after=first)

    assert statuses(last) == "w"
    assert last.parents.smembers() == {first.ident} and last.waits_for.smembers() == set()


def test_a_job_after_none_is_queued_as_ever() -> None:
    assert statuses(BlockedJob.add_job("a", after=[]), BlockedJob.add_job("b", after=None)) == "ww"


def test_an_identifier_that_is_blocked_counts_as_queued() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)

    again = BlockedJob.add_job("last", priority=5, prepend=True)

    assert again.ident == last.ident
    assert statuses(last) == "b"


def test_many_jobs_may_be_added_after_others() -> None:
    first = BlockedJob.add_job("first")

    BlockedJob.add_jobs(["a", {"identifier": "b", "after": None}, "c"], after=first)

    found = {job.identifier.hget(): job.status.hget() for job in BlockedJob.collection().instances()}
    assert found == {"first": "w", "a": "b", "b": "w", "c": "b"}
    assert work()[0] == "first"


@pytest.mark.parametrize("after", ["nonsense", "limpyd_jobs.models.Job:77", 5, [3], {"x": 1}, "a.B:1", [""]])
def test_what_is_no_job_is_refused_before_anything_is_written(after: Any, database: Any) -> None:
    BlockedJob.add_job("first")
    before = BlockedJob.collection()

    with pytest.raises(InvalidArgument):
        BlockedJob.add_job("last", after=after)

    assert sorted(before) == sorted(BlockedJob.collection())


def test_a_parent_that_was_deleted_is_refused() -> None:
    first = BlockedJob.add_job("first")
    ident = first.ident
    work()
    first.delete()

    with pytest.raises(InvalidArgument, match="exist"):
        BlockedJob.add_job("last", after=ident)


def test_too_many_parents_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="10000"):
        BlockedJob.add_job("last", after=[f"a.B:{number}" for number in range(10_001)])


@pytest.mark.parametrize("policy", ["ignore", 3])
def test_an_unknown_policy_is_refused(policy: Any) -> None:
    with pytest.raises(InvalidArgument, match="cancel, run, wait"):
        BlockedJob.add_job("last", after=BlockedJob.add_job("first"), if_parent_fails=policy)


def test_an_unknown_policy_of_a_class_is_refused() -> None:
    class BlockedWrongJob(BlockedJob):
        if_parent_fails = "never"

    with pytest.raises(ConfigurationException, match="if_parent_fails"):
        BlockedWrongJob.add_job("a")


@pytest.mark.parametrize("model", [BlockedOwnFieldJob, BlockedPlacingJob])
def test_a_class_whose_jobs_no_script_can_release_is_refused(model: Any) -> None:
    first = BlockedJob.add_job("first")

    with pytest.raises(InvalidArgument, match="after"):
        model.add_job("last", after=first)


def test_a_class_with_a_field_of_ours_cannot_be_a_parent() -> None:
    first = BlockedOwnFieldJob.add_job("first")

    with pytest.raises(InvalidArgument, match="after"):
        BlockedJob.add_job("last", after=first)


def test_prepend_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="prepend"):
        BlockedJob.add_job("last", after=BlockedJob.add_job("first"), prepend=True)


def test_a_coroutine_adds_a_job_after_others() -> None:
    import asyncio

    first = BlockedJob.add_job("first")

    last = asyncio.run(BlockedJob.aadd_job("last", after=[first]))

    assert statuses(last) == "b"


# --- Parents that fail


def test_a_parent_that_fails_cancels_what_comes_after_it() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=[bad, BlockedJob.add_job("good")])
    end = BlockedJob.add_job("end", after=last)

    assert work() == ["bad", "good"]
    assert statuses(last, end) == "cc"
    assert last.cancel_reason.hget() == f"parent failed: {bad.ident}"
    assert end.cancel_reason.hget() == f"parent failed: {last.ident}"
    assert last.queued.hget() is None and last.waits_for.smembers() == set()


def test_a_job_may_run_although_its_parent_failed() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad, if_parent_fails="run")

    assert work() == ["bad", "last"]
    assert statuses(bad, last) == "es"


def test_a_class_may_say_what_its_jobs_do() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedOtherJob.add_job("last", after=bad)

    assert work() == ["bad", "last"]
    assert last.run_option("if_parent_fails") == "run"


def test_a_job_may_wait_until_its_parent_is_requeued_and_succeeds() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad, if_parent_fails="wait")
    work()
    assert statuses(bad, last) == "eb"

    bad.identifier.hset("mended")
    bad.requeue()

    assert work() == ["bad", "mended", "last"]
    assert statuses(bad, last) == "ss"


def test_a_parent_that_is_retried_has_not_failed_yet() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad)

    assert work(requeue_times=2, requeue_delay_delta=0) == ["bad", "bad", "bad"]
    assert statuses(bad, last) == "ec"


def test_a_requeued_parent_leaves_its_canceled_children_alone() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad)
    work()
    bad.identifier.hset("mended")

    bad.requeue()

    assert work() == ["bad", "mended"]
    assert statuses(bad, last) == "sc"


@pytest.mark.parametrize(("policy", "status"), [("cancel", "c"), ("run", "w"), ("wait", "b")])
def test_a_parent_that_has_failed_already_is_met_at_once(policy: str, status: str) -> None:
    bad = BlockedJob.add_job("bad")
    work()

    last = BlockedJob.add_job("last", after=bad, if_parent_fails=policy)

    assert statuses(last) == status
    assert last.queued.hget() == (None if status == "c" else "1")


def test_a_parent_that_was_canceled_has_failed() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)

    first.cancel()

    assert statuses(first, last) == "cc"


def test_a_parent_that_a_program_cancels_has_failed_when_a_worker_comes_to_it() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)

    first.status.hset(STATUSES.CANCELED)

    assert statuses(last) == "b"
    work()
    assert statuses(last) == "c"


def test_a_parent_that_expires_has_failed() -> None:
    first = BlockedJob.add_job("first", expires=0)
    last = BlockedJob.add_job("last", after=first)

    work()

    assert statuses(first, last) == "cc"


# --- Blocked jobs


def test_a_blocked_job_can_be_canceled() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)
    end = BlockedJob.add_job("end", after=last)

    assert last.cancel("no more") is Cancellation.CANCELED

    assert statuses(last, end) == "cc"
    assert last.cancel_reason.hget() == "no more"
    assert work() == ["first"]


def test_a_blocked_job_that_a_program_has_canceled_ends_with_its_parent() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)

    last.status.hset(STATUSES.CANCELED)

    assert work() == ["first"]
    assert (last.status.hget(), last.queued.hget()) == (STATUSES.CANCELED, None)


def test_a_blocked_job_is_not_put_in_a_queue() -> None:
    last = BlockedJob.add_job("last", after=BlockedJob.add_job("first"))

    with pytest.raises(JobNotInStatus, match="'b'"):
        last.requeue()
    with pytest.raises(JobNotInStatus, match="'b'"):
        last.enqueue_or_delay()
    with pytest.raises(JobNotInStatus, match="'b'"):
        Queue.get_queue("blocked").enqueue_job(last)

    assert statuses(last) == "b"


def test_a_blocked_job_in_a_waiting_list_is_taken_away_and_stays_blocked() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first)
    Queue.get_queue("blocked").waiting.lpush(last.ident)

    Worker("blocked", burst=True, terminate_gracefully=False, max_loops=1, logger_level=100).run()
    assert work() == ["first", "last"]


def test_a_delayed_job_waits_for_its_time_too() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first, delayed_for=timedelta(hours=1))
    assert statuses(last) == "b"

    work()

    assert statuses(last) == "d"
    assert Queue.get_queue("blocked").delayed.zmembers() == [last.ident]


def test_a_time_that_is_past_does_not_delay_it() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first, delayed_for=1000)
    last.delayed_until.hset(str(utcnow() - timedelta(seconds=1)))

    assert work() == ["first", "last"]
    assert last.delayed_until.hget() is None


def test_a_parent_that_is_deleted_tells_its_children_first() -> None:
    first = BlockedJob.add_job("first", delayed_for=1000)
    last = BlockedJob.add_job("last", after=first)

    Queue.get_queue("blocked").delayed.zrem(first.ident)
    first.delete()

    assert statuses(last) == "c"
    assert last.get_parents() == []
    with pytest.raises(DoesNotExist):
        BlockedJob.get(first.pk.get())


def test_a_parent_that_is_deleted_cancels_also_those_that_would_wait() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad, if_parent_fails="wait")
    work()

    bad.delete()

    assert statuses(last) == "c"


def test_a_parent_that_retention_removes_cancels_those_that_would_wait() -> None:
    bad = BlockedJob.add_job("bad")
    last = BlockedJob.add_job("last", after=bad, if_parent_fails="wait")

    work(keep_errors=0)

    assert statuses(last) == "c"
    assert not BlockedJob.exists(identifier="bad")


def test_retention_leaves_a_success_alone_while_its_children_have_not_ended() -> None:
    first, second = BlockedJob.add_job("first"), BlockedJob.add_job("second", "elsewhere")
    last = BlockedJob.add_job("last", "elsewhere", after=[first, second])

    work(keep_success=0)

    assert BlockedJob.exists(identifier="first") and first.status.hget() == STATUSES.SUCCESS
    assert first.connection.zscore("jobs:expiring", first.ident) is not None
    second.cancel()
    assert statuses(last) == "c"
    first.connection.zadd("jobs:expiring", {first.ident: 1})
    ExpiringJobs(Queue, Error, lambda *line: None).trim()
    assert not BlockedJob.exists(identifier="first")


def test_a_job_whose_queue_was_deleted_ends_in_error() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", "other", after=first)
    Queue.get_queue("other").delete()
    last.connection.delete("jobs:queues:queue:other")

    work()
    assert statuses(last) == "w"
    worker = Worker("blocked", burst=True, terminate_gracefully=False, save_errors=False, logger_level=100)
    worker._recover_lapsed()

    assert statuses(last) == "e"


# --- Many children


def test_thousands_of_children_are_released_in_bounded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    send = transitions.send
    first = BlockedJob.add_job("first")
    BlockedJob.add_jobs((f"child {number}" for number in range(1800)), "elsewhere", after=first)

    def counted(client: Any, call: Any) -> Any:
        calls.append(call.script)
        return send(client, call)

    monkeypatch.setattr(transitions, "send", counted)
    work()

    assert 3 <= calls.count("follow_up") <= 5  # one of them looks whether there is something
    assert len(BlockedJob.collection(status=STATUSES.WAITING)) == 1800
    assert Queue.get_queue("elsewhere").waiting.llen() == 1800


def test_what_one_worker_has_left_another_goes_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    first = BlockedJob.add_job("first")
    BlockedJob.add_jobs((f"child {number}" for number in range(1300)), "elsewhere", after=first)
    with monkeypatch.context() as patched:
        patched.setattr("limpyd_jobs.models._tell_children", lambda *args: None)
        patched.setattr(Worker, "_follow_up", lambda self: None)
        work()
    assert len(BlockedJob.collection(status=STATUSES.BLOCKED)) > 0
    assert [str(problem) for problem in admin.check()] == []

    Worker("blocked", burst=True, terminate_gracefully=False, logger_level=100)._recover_lapsed()

    assert len(BlockedJob.collection(status=STATUSES.BLOCKED)) == 0
    assert first.connection.exists("jobs:followups") == 0


def test_thousands_of_children_are_canceled_with_theirs() -> None:
    bad = BlockedJob.add_job("bad")
    BlockedJob.add_jobs((f"child {number}" for number in range(700)), after=bad)
    for pk in sorted(BlockedJob.collection(status=STATUSES.BLOCKED))[:3]:
        child = BlockedJob.get(pk)
        BlockedJob.add_jobs((f"grandchild {pk} {number}" for number in range(300)), after=child)

    work()

    assert len(BlockedJob.collection(status=STATUSES.CANCELED)) == 1600
    assert bad.connection.exists("jobs:followups") == 0


def test_a_child_of_an_unknown_class_is_registered_and_released() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedOtherJob.add_job("last", after=first)
    BlockedJob.database.connection.hdel("jobs:models", last.get_model_repr())

    work()
    assert statuses(last) == "b"
    worker = Worker("blocked", burst=True, terminate_gracefully=False, save_errors=False, logger_level=100)
    worker._recover_lapsed()
    worker._recover_lapsed()

    assert work() == ["first", "last"]


def test_an_end_that_is_told_twice_releases_nothing_twice() -> None:
    first, second = BlockedJob.add_job("first"), BlockedJob.add_job("second", "elsewhere")
    last = BlockedJob.add_job("last", after=[first, second])
    work()

    for _ in range(3):
        first.connection.zadd("jobs:followups", {first.ident: 0})
        transitions.send(first.connection, transitions.follow_up("jobs"))

    assert statuses(last) == "b"
    assert last.waits_for.smembers() == {second.ident}


def test_the_policy_is_stored_with_the_options_of_the_runs() -> None:
    first = BlockedJob.add_job("first")
    last = BlockedJob.add_job("last", after=first, if_parent_fails="wait", job_timeout=5)

    assert json.loads(last.run_options.hget()) == {"job_timeout": 5, "if_parent_fails": "wait"}
    first.cancel()
    assert statuses(last) == "b"
